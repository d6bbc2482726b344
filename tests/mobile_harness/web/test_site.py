"""The page as a static site: from a plain host of files, below its root, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from pocketfocus.cli import main
from pocketfocus.data.scenes import bundled_photos
from pocketfocus.mobile_harness.web import site
from pocketfocus.mobile_harness.web.guard import HEADERS
from pocketfocus.photos.images import to_tensor, to_uint8
from pocketfocus.run.errors import UserError
from tests.conftest import Exported
from tests.mobile_harness.web.touching import TESTED, difference, look, refocus, saved

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIDE, FP32 = 64, "onnx/student-fp32.onnx"
THREADS_MS, COPY_MS = 20_000, 300_000  # how long app.ts waits for a service worker


@pytest.fixture(scope="module")
def written(built_page: Path, web_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert built_page.is_dir()
    out = tmp_path_factory.mktemp("host") / "somebody" / "site"
    assert site.write_site(web_run, out) == out / "index.html"
    return out


@pytest.fixture(scope="module")
def address(written: Path) -> Iterator[str]:
    """Where a plain `python -m http.server` gives it, two folders below its root."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--directory", str(written.parent.parent)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout
    port = re.search(r"port (\d+)", process.stdout.readline())
    assert port
    yield f"http://127.0.0.1:{port[1]}/somebody/site/"
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The site on a phone; nothing goes wrong, and nothing is asked for elsewhere."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True,
        reduced_motion="reduce",
    )  # fmt: skip
    context.add_init_script(TESTED)
    page = context.new_page()
    wrong: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if line.type == "error" else None)
    page.on("response", lambda got: wrong.append(got.url) if got.status >= 400 else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    yield page
    context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith((address, "blob:"))] == []


@contextmanager
def hosted(folder: Path, fate: dict[str, str]) -> Iterator[str]:
    """The address of a host of files; what ends in a name of `fate` is refused, or held."""
    ended = threading.Event()

    class Host(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            found = next((fate[name] for name in fate if self.path.endswith(name)), "given")
            if found == "given":
                super().do_GET()
            elif found == "refused" or ended.wait(300):
                self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Host, directory=folder)) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            ended.set()
            server.shutdown()


def cat(folder: Path) -> Path:
    """A photo as large as the files take."""
    picture = Image.fromarray(bundled_photos()["chelsea"])
    photo = picture.crop((100, 20, 356, 276)).resize((SIDE, SIDE), Image.Resampling.BOX)
    photo.save(folder / "photo.png")
    return folder / "photo.png"


@pytest.mark.browser
def test_a_plain_host_gives_threads_after_one_more_load(page: Page) -> None:
    assert page.evaluate("crossOriginIsolated")
    assert page.evaluate("sessionStorage.length") == 0, "another visit may load once more again"


@pytest.mark.browser
def test_what_needs_a_host_is_not_shown(page: Page) -> None:
    assert not page.get_by_role("tab", name="Measure").is_visible()
    assert page.get_by_role("heading", name="Refocus a photo").is_visible()


@pytest.mark.browser
def test_the_site_makes_the_files_own_pictures(page: Page, web_run: Path, tmp_path: Path) -> None:
    photo = cat(tmp_path)
    session = onnxruntime.InferenceSession(web_run / FP32, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    tensor, position = to_tensor(Image.open(photo)).numpy(), np.eye(9, dtype=np.float32)[4:5]
    stack = torch.from_numpy(session.run(None, {names[0]: tensor, names[1]: position})[0])
    page.get_by_text("File and runtime").click()
    page.select_option("#file", FP32)
    refocus(page, photo)
    for frame in (0, 8):
        look(page, frame, 1)
        assert difference(saved(page), Image.fromarray(to_uint8(stack[frame]))) <= 2


@pytest.mark.browser
@pytest.mark.parametrize("answers", [True, False])
def test_a_service_worker_that_is_not_installed_costs_threads_alone(
    browser: Browser, written: Path, tmp_path: Path, answers: bool
) -> None:
    """One of its files is refused, or never comes; the page itself does without that one."""
    fate = {"icon.svg": "refused" if answers else "held"}
    context = browser.new_context(viewport={"width": 390, "height": 844})
    with hosted(written, fate) as address:
        page = context.new_page()
        page.clock.install()
        page.goto(address)
        if not answers:
            page.get_by_text("the page then loads once more").wait_for()
            page.clock.fast_forward(THREADS_MS)
        page.wait_for_selector("html[data-ready]")
        assert not page.evaluate("crossOriginIsolated")
        refocus(page, cat(tmp_path), None)
        assert "1 thread)" in page.locator("#took").inner_text()
        if not answers:
            page.get_by_text("Keeping a copy").wait_for()
            page.clock.fast_forward(COPY_MS)
        page.get_by_text("No copy was kept on this phone: the page's own files").wait_for()
        context.close()


@pytest.mark.browser
def test_the_site_stays_when_the_network_is_gone_and_does_not_say_so(
    browser: Browser, written: Path, tmp_path: Path
) -> None:
    """Requests then stay without an answer, for minutes."""
    fate: dict[str, str] = {}
    context = browser.new_context(viewport={"width": 390, "height": 844})
    with hosted(written, fate) as address:
        page = context.new_page()
        page.goto(address)
        page.get_by_text("Kept on this phone: works without network with int8").wait_for(
            timeout=120_000
        )
        fate[""] = "held"
        page.reload()
        page.wait_for_selector("html[data-ready]")
        refocus(page, cat(tmp_path), None)
        context.close()


@pytest.mark.browser
def test_the_site_stays_when_the_network_is_gone(browser: Browser, address: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(address)
    page.get_by_text("Kept on this phone: works without network with int8").wait_for(
        timeout=120_000
    )
    context.set_offline(True)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate("crossOriginIsolated")
    context.close()


def test_what_a_host_is_given_is_the_page_and_the_files(written: Path, web_run: Path) -> None:
    described = json.loads((written / "api/run").read_text())
    assert described["measures"] is False
    for file in described["files"]:
        name = file["name"]
        assert (written / "api/files" / name).read_bytes() == (web_run / name).read_bytes()
    names = {path.relative_to(written).as_posix() for path in written.rglob("*") if path.is_file()}
    expected = {f"api/files/{file['name']}" for file in described["files"]}
    assert {name for name in names if name.startswith("api/")} == {"api/run", *expected}
    headers = (written / "_headers").read_text().splitlines()
    assert headers == ["/*", *(f"  {name}: {value}" for name, value in HEADERS.items())]


def test_the_pages_policy_is_in_it(written: Path) -> None:
    text = (written / "index.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "frame-ancestors" not in policy, "which only a header can say"


def test_a_site_replaces_itself_and_nothing_else(
    built_page: Path, written: Path, web_run: Path, tmp_path: Path
) -> None:
    again = tmp_path / "site"
    shutil.copytree(written, again)
    (again / "stale.js").touch()
    site.write_site(web_run, again)
    assert not (again / "stale.js").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(UserError, match="holds something else: name a new folder with --site"):
        site.write_site(web_run, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]


def test_the_command_writes_the_site_alone(
    built_page: Path, exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = exported(["onnx/student-int8.onnx"])
    words = ["publish", str(run), "--site", str(tmp_path / "site")]
    assert main(words) == 2
    assert "no parity gate was run" in capsys.readouterr().err
    assert not (tmp_path / "site").exists()
    assert main([*words, "--unproven"]) == 0
    assert capsys.readouterr().out == f"site: {tmp_path / 'site' / 'index.html'}\n"
    assert (tmp_path / "site" / "api/files/onnx/student-int8.onnx").is_file()
    assert not (run / "published").exists()
