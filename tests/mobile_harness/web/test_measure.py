"""Stop on the Measure tab, wherever it is pressed, and a worker that answers no more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mobile_harness.web.conftest import Serving
from tests.mobile_harness.web.touching import opened

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

# What never ends by itself: the browser's measure of memory, and requests that a test holds.
ENDLESS = """
Performance.prototype.measureUserAgentSpecificMemory = () => window.endless
  ? new Promise(() => {}) : Promise.resolve({ bytes: 2 ** 20 });
"""


@pytest.fixture(scope="module")
def page(browser: Browser, serving: Serving) -> Iterator[Page]:
    """The Measure tab of a phone with a name, for one timed call a file."""
    page = opened(browser, serving, ENDLESS)
    page.get_by_role("tab", name="Measure").click()
    page.get_by_label("Name of this phone").fill("Stopped")
    page.get_by_label("Timed calls").fill("1")
    yield page
    page.unroute_all(behavior="ignoreErrors")
    page.context.close()


def waited_for(page: Page, held: list[Route]) -> None:
    for _ in range(1200):
        if held:
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.locator("#measuring").inner_text())


@pytest.mark.browser
@pytest.mark.parametrize(
    "path", ["**/api/golden", "**/api/files/**", None, "**/api/measurements", "**/outputs"]
)
def test_stop_stops_at_once(page: Page, path: str | None) -> None:
    """While a request is under way, or the browser measures its memory; and what comes after it is
    neither measured nor sent."""
    held: list[Route] = []
    asked: list[str] = []
    page.evaluate("(endless) => { window.endless = endless; }", path is None)
    if path:
        page.route(path, lambda route: held.append(route))
    page.get_by_role("button", name="Measure all files").click()
    if path:
        waited_for(page, held)
    else:
        page.get_by_text("asking the browser for its memory").wait_for(timeout=120_000)
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Measure all files").wait_for(timeout=5000)
    page.wait_for_timeout(500)
    assert page.locator("#measuring").inner_text() == "Stopped."
    assert page.locator("#trouble").inner_text() == ""
    assert asked == []
    page.unroute_all(behavior="ignoreErrors")


ENGINE = """
import { Engine } from "PAGE/engine.ts";
globalThis.Worker = class { postMessage() {} terminate() {} };
const said = (promise) => promise.then(() => "answered", (error) => error.message);
const ends = {
  close: (engine) => engine.close(),
  error: (engine) => engine.worker.onerror({ message: "no memory" }),
  unread: (engine) => engine.worker.onmessageerror({}),
};
for (const end of Object.values(ends)) {
  const engine = new Engine(), before = said(engine.open({}));
  end(engine);
  const late = new Promise((done) => setTimeout(done, 1000, "never settles"));
  for (const asked of [before, said(engine.open({}))]) {
    console.log(await Promise.race([asked, late]));
  }
}
process.exit();
"""


@pytest.mark.usefixtures("built_page")
def test_a_worker_that_is_gone_answers_with_why(root: Path, tmp_path: Path) -> None:
    """What was asked before, and what is asked afterwards."""
    page = root / "mobile_harness/web/page"
    (tmp_path / "asks.mjs").write_text(ENGINE.replace("PAGE", str(page / "src")))
    bundle = [str(page / "node_modules/.bin/esbuild"), "asks.mjs", "--bundle", "--format=esm"]
    for command in ([*bundle, "--outfile=out.mjs"], ["node", "out.mjs"]):
        found = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert found.returncode == 0, found.stderr
    unread = "what the worker made could not be read"
    assert found.stdout.splitlines() == ["stopped"] * 2 + ["no memory"] * 2 + [unread] * 2
