"""The page of `serve` on a phone's screen, in a real browser, with the real runtime."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos.images import to_tensor, to_uint8
from pocketfocus.run.files import read_json
from tests.conftest import chromium_path
from tests.mobile_harness.web.conftest import Serving, started
from tests.mobile_harness.web.touching import difference, look, opened, refocus, saved

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SIDE = 64
# Chromium itself answers after 20 s, or not while threads wait; the page then goes on after 25.
MEMORY = """
Performance.prototype.measureUserAgentSpecificMemory = async () => ({ bytes: 3 * 2 ** 20 });
"""
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser: Browser, serving: Serving) -> Iterator[Page]:
    """The page on a phone; every request goes to the server that gave it."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True,
        reduced_motion="reduce",
    )  # fmt: skip
    page = context.new_page()
    page.add_init_script(MEMORY)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(serving.url)
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert errors == []
    assert [url for url in asked if not url.startswith((serving.url, "blob:"))] == []


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    picture = Image.fromarray(bundled_photos()["chelsea"])
    picture.crop((100, 20, 356, 276)).resize((SIDE, SIDE), Image.Resampling.BOX).save(path)
    return path


@pytest.fixture(scope="module")
def refocused(page: Page, photo: Path) -> Page:
    """The page with nine frames of the fp32 file, focused at position 4."""
    page.get_by_text("File and runtime").click()
    page.select_option("#file", "onnx/student-fp32.onnx")
    refocus(page, photo)
    return page


@pytest.fixture(scope="module")
def stack(serving: Serving, photo: Path) -> torch.Tensor:
    """The same file's frames by onnxruntime here, [9,3,S,S]."""
    path = serving.run / "onnx/student-fp32.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tensor = to_tensor(Image.open(photo)).numpy()
    names = [value.name for value in session.get_inputs()]
    position = np.eye(9, dtype=np.float32)[4:5]
    return torch.from_numpy(session.run(None, {names[0]: tensor, names[1]: position})[0])


def seen(page: Page) -> Image.Image:
    """The picture on the screen, at the frames' size."""
    page.evaluate("document.getElementById('ring').classList.remove('seen')")
    page.wait_for_timeout(150)
    shot = page.locator("#view").screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def test_the_browser_gives_threads(page: Page) -> None:
    assert page.evaluate("crossOriginIsolated")
    assert page.evaluate("typeof SharedArrayBuffer") == "function"


def test_drag_racks_and_hold_shows_the_original(refocused: Page) -> None:
    slider = refocused.get_by_role("slider", name="Focus")
    slider.fill("4")
    area = refocused.locator("#view").bounding_box()
    assert area
    x, y = area["x"] + area["width"] / 2, area["y"] + area["height"] / 2
    refocused.mouse.move(x, y)
    refocused.mouse.down()
    refocused.mouse.move(x + area["width"] / 4, y, steps=5)
    refocused.mouse.up()
    assert float(slider.input_value()) == pytest.approx(6, abs=0.1)
    refocused.mouse.move(x, y)
    refocused.mouse.down()
    refocused.wait_for_timeout(500)
    assert refocused.locator("#badge").inner_text() == "Original photo"
    refocused.mouse.up()
    assert refocused.locator("#badge").inner_text() == ""
    assert float(slider.input_value()) == pytest.approx(6, abs=0.1)  # a hold is no tap
    hold = refocused.get_by_role("button", name="Hold")
    hold.focus()
    refocused.keyboard.down("Space")
    assert hold.get_attribute("aria-pressed") == "true"
    refocused.keyboard.up("Space")
    assert hold.get_attribute("aria-pressed") == "false"


def window(shown: Image.Image, whole: Image.Image) -> tuple[int, int]:
    """Where in a picture the half of its width and height is that is shown: left, top."""
    half = np.asarray(shown.resize((SIDE // 2, SIDE // 2), Image.Resampling.BOX), float)
    views = sliding_window_view(np.asarray(whole, float), half.shape)[:, :, 0]
    top, left = np.unravel_index(np.abs(views - half).mean((2, 3, 4)).argmin(), views.shape[:2])
    return int(left), int(top)


def tap_twice(page: Page, x: float, y: float) -> None:
    """Two taps a seventh of a second apart, however busy this machine is."""
    session, now = page.context.new_cdp_session(page), time.time()
    for at, kind in ((0, "Pressed"), (0.05, "Released"), (0.15, "Pressed"), (0.2, "Released")):
        about = {"x": x, "y": y, "button": "left", "clickCount": 1, "timestamp": now + at}
        session.send("Input.dispatchMouseEvent", {"type": f"mouse{kind}", **about})


def test_two_taps_zoom_to_where_they_are(refocused: Page) -> None:
    slider, zoom = (
        refocused.get_by_role("slider", name="Focus"),
        refocused.get_by_role("button", name="Pixels"),
    )
    area = refocused.locator("#view").bounding_box()
    assert area
    x, y = area["x"] + area["width"] / 4, area["y"] + area["height"] / 4
    slider.fill("2.5")
    whole = seen(refocused)
    tap_twice(refocused, x, y)
    assert zoom.get_attribute("aria-pressed") == "true"
    assert slider.input_value() == "2.5", "two taps do not focus"
    assert window(seen(refocused), whole) == pytest.approx((0, 0), abs=1)
    refocused.mouse.move(x, y)
    refocused.mouse.down()
    refocused.mouse.move(x - area["width"] / 2, y, steps=3)  # looks around, and racks nothing
    refocused.mouse.up()
    assert slider.input_value() == "2.5"
    assert window(seen(refocused), whole) == pytest.approx((16, 0), abs=1)
    zoom.tap()
    assert zoom.get_attribute("aria-pressed") == "false"


def test_what_is_saved_is_a_jpeg_of_the_photos_size(refocused: Page) -> None:
    with refocused.expect_download() as download:
        refocused.get_by_role("button", name="Save").tap()
    picture = Image.open(download.value.path())
    assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone_fingers_and_the_sun(refocused: Page, scheme: Any) -> None:
    refocused.emulate_media(color_scheme=scheme)
    assert refocused.evaluate("document.documentElement.scrollWidth") <= 390
    for control in refocused.locator("button:visible, select:visible, summary").all():
        area = control.bounding_box()
        assert area
        assert area["height"] >= 44
    style = "getComputedStyle(document.body)"
    back, text = (
        sum(map(int, refocused.evaluate(f"{style}.{key}.match(/\\d+/g).slice(0, 3)")))
        for key in ("backgroundColor", "color")
    )
    assert abs(back - text) > 650


def test_measuring_sends_rows_that_pass(refocused: Page, serving: Serving) -> None:
    refocused.get_by_role("tab", name="Measure").tap()
    refocused.get_by_label("Name of this phone").fill("")
    refocused.get_by_role("button", name="Measure all files").tap()
    assert "name" in refocused.get_by_role("alert").inner_text()
    refocused.get_by_label("Name of this phone").fill("Test phone")
    refocused.get_by_label("Timed calls").fill("5")
    refocused.get_by_role("button", name="Measure all files").tap()
    refocused.wait_for_selector(
        "#trouble:not([hidden]), #results .row:nth-child(2)", timeout=240_000
    )
    assert refocused.locator("#trouble").inner_text() == ""
    bench, verify = (
        [r for r in read_json(serving.run / file)["rows"] if r["device"].startswith("Test phone,")]
        for file in ("bench.json", "verify.json")
    )
    names = {"onnx/student-fp32.onnx", "onnx/student-int8.onnx"}
    assert {row["artifact"] for row in bench} == {row["artifact"] for row in verify} == names
    assert {row["status"] for row in verify} == {"pass"}
    for row in bench:
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["runs"] == 5
        assert row["runtime"].startswith("onnxruntime-web ")
        assert row["heap_mib"] > row["bytes"] / 2**20, "the file is in it"
        assert row["browser_memory_mib"] == 3


def test_a_first_visit_is_enough_for_when_the_network_is_gone(
    browser: Browser, serving: Serving, photo: Path
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True)
    page = context.new_page()
    page.goto(serving.url)
    page.get_by_text("Kept on this phone: works without network with int8").wait_for()
    context.set_offline(True)
    with pytest.raises(Exception, match="Failed to fetch"):
        page.evaluate("fetch('/api/golden')")
    page.reload()
    page.wait_for_selector("html[data-ready]")
    refocus(page, photo)
    context.close()


def test_a_graphics_processor_that_never_answers_is_done_without(
    browser: Browser, serving: Serving
) -> None:
    gpu = "{ requestAdapter: () => new Promise(() => {}) }"
    page = opened(browser, serving, f"Object.defineProperty(navigator, 'gpu', {{ value: {gpu} }})")
    assert page.locator("#backend option").count() == 1
    page.context.close()


@pytest.mark.usefixtures("built_page")
def test_a_browser_comes_for_bench_and_verify(browser: Browser, web_run: Path) -> None:
    """`verify --device browser` ends when one device has measured every file, and with `--repeat`
    has called each again and again."""
    words = ["verify", str(web_run), "--device", "browser", "--wait", "240", "--repeat", "3"]
    waiting = started(words, web_run)
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.add_init_script(MEMORY)
    page.goto(waiting.url)
    page.get_by_label("Name of this phone").fill("Visitor")  # the Measure tab is the open one
    page.get_by_label("Timed calls").fill("1")
    page.get_by_role("button", name="Measure all files").click()
    assert waiting.process.wait(240) == 0
    page.context.close()
    assert waiting.process.stdout
    said = " ".join(waiting.process.stdout.read().split())
    assert "onnx/student-fp32.onnx" in said and "onnx/student-int8.onnx" in said
    assert said.count(" pass ") >= 2
    assert "not-run" not in said
    rows = [
        r for r in read_json(web_run / "bench.json")["rows"] if r["device"].startswith("Visitor, ")
    ]
    assert {row["model"] for row in rows} == {"Visitor"}
    assert all(row["os"] and row["runtime"] and row["status"] == "measured" for row in rows)
    assert said.count("the same in 3 calls") == 2
    again = read_json(web_run / "repeat.json")["rows"]
    assert {row["artifact"] for row in again} == {row["artifact"] for row in rows}
    for row in again:
        assert row["status"] == "pass" and row["device"] == rows[0]["device"]
        assert re.fullmatch(r"one result, [0-9a-f]{12}; memory [+]\d+[.]\d MiB", row["why"])


def test_webgpu_makes_the_same_frames(
    built_page: Path, serving: Serving, photo: Path, stack: torch.Tensor, browser: Browser
) -> None:
    """On Chromium's software adapter, which some builds of it lack."""
    flags = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
    with browser.browser_type.launch(
        executable_path=chromium_path(), args=[*flags, "--enable-features=Vulkan"]
    ) as chromium:
        page = opened(chromium, serving)
        page.get_by_text("File and runtime").click()
        if not page.locator("#backend option[value=webgpu]").count():
            pytest.skip("this Chromium gives no WebGPU adapter")
        page.select_option("#backend", "webgpu")
        page.select_option("#file", "onnx/student-fp32.onnx")
        refocus(page, photo, timeout_s=240)
        assert "fp32, webgpu" in page.locator("#took").inner_text()
        for frame in (0, 8):  # of a photo that is analysed at its own size
            look(page, frame, 1)
            expected = Image.fromarray(to_uint8(stack[frame]))
            assert difference(saved(page), expected) <= 2
