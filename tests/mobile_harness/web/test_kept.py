"""The page's service worker in a real browser: what it keeps, and what it lets through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import FLAGS, chromium_path
from tests.mobile_harness.web.conftest import Serving, start_on_network

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

FILE = "api/files/onnx/student-fp32.onnx"  # not the one that a first visit keeps
RUNTIME = "ort/ort-wasm-simd-threaded.asyncify.wasm"  # for WebGPU; kept once it was used
PUTS = {
    "fail": 'async () => { throw new DOMException("no room", "QuotaExceededError"); }',
    "never end": "() => new Promise(() => {})",
}
SIZE = """async (path) => {
  const response = await fetch(path, { signal: AbortSignal.timeout(20_000) });
  return (await response.arrayBuffer()).byteLength;
}"""
IS_KEPT = "async (path) => Boolean(await caches.match(new URL(path, location.origin)))"
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built_page")]


def visited(browser: Browser, url: str) -> Page:
    """The page on a phone that has kept it."""
    page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
    page.goto(url)
    page.get_by_text("Kept on this phone: works without network with int8").wait_for()
    return page


@pytest.fixture(scope="module")
def page(browser: Browser, serving: Serving) -> Iterator[Page]:
    page = visited(browser, serving.url)
    yield page
    page.context.close()


@pytest.mark.parametrize("path", [FILE, RUNTIME])
@pytest.mark.parametrize("puts", PUTS)
def test_what_cannot_be_kept_is_given_all_the_same(
    page: Page, built_page: Path, serving: Serving, puts: str, path: str
) -> None:
    """Where there is no room, and before there is a whole copy."""
    (worker,) = page.context.service_workers
    worker.evaluate(
        f"() => {{ self.put ??= Cache.prototype.put; Cache.prototype.put = {PUTS[puts]}; }}"
    )
    folder = serving.run if path == FILE else built_page
    try:
        assert (
            page.evaluate(SIZE, path) == (folder / path.removeprefix("api/files/")).stat().st_size
        )
        assert not page.evaluate(IS_KEPT, path)
    finally:
        worker.evaluate("() => { Cache.prototype.put = self.put; }")


@pytest.mark.parametrize("path", [FILE, RUNTIME])
def test_what_was_used_once_is_kept(page: Page, path: str) -> None:
    size = page.evaluate(SIZE, path)
    page.wait_for_function(IS_KEPT, arg=path)
    page.context.set_offline(True)
    assert page.evaluate(SIZE, path) == size
    page.context.set_offline(False)


def test_a_first_copy_that_fails_is_no_older_one(browser: Browser, serving: Serving) -> None:
    """A full store: the first time nothing is kept, afterwards what was kept stays."""
    page = browser.new_page()
    page.add_init_script(f"Cache.prototype.put = {PUTS['fail']}")
    page.goto(serving.url)
    page.get_by_text("No copy was kept on this phone: no room").wait_for()
    page.close()
    page = visited(browser, serving.url)
    page.add_init_script(f"Cache.prototype.put = {PUTS['fail']}")
    page.reload()
    page.get_by_text("The copy kept on this phone was not renewed: no room").wait_for()
    page.context.close()


def test_a_phone_that_kept_the_page_comes_in_again(browser: Browser, web_run: Path) -> None:
    """With a token beside its cookie, and with the next token where its cookie is gone."""
    server = start_on_network(web_run)
    flags = [*FLAGS, "--ignore-certificate-errors"]  # else the certificate keeps workers out
    try:
        with browser.browser_type.launch(executable_path=chromium_path(), args=flags) as chromium:
            page = visited(chromium, server.url)
            page.goto(server.url)
            page.wait_for_selector("html[data-ready]")
            page.context.clear_cookies()
            assert server.process.stdout
            said = (re.search(r"https://\S+token=\S+", line) for line in server.process.stdout)
            page.goto(next(filter(None, said))[0])
            page.wait_for_selector("html[data-ready]")
    finally:
        assert server.stop() == 0
