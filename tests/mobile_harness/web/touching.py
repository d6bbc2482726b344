"""What a user does on the page, in a browser: open it, pick a photo, move sliders, save."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from tests.mobile_harness.web.conftest import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TAKEN = 4
# What is saved loses nothing, and the software that stands in for a graphics processor may draw.
TESTED = """
const toBlob = HTMLCanvasElement.prototype.toBlob;
HTMLCanvasElement.prototype.toBlob = function (done) { toBlob.call(this, done, "image/png"); };
const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  if (kind === "webgl2" && window.without) return null;
  return get.call(this, kind, { ...options, failIfMajorPerformanceCaveat: false });
};
const click = HTMLAnchorElement.prototype.click;
HTMLAnchorElement.prototype.click = function () {
  if (this.download && window.downloaded) window.next(window.blob);
  else click.call(this);
  window.downloaded ||= this.download;
};
const create = URL.createObjectURL;
URL.createObjectURL = (blob) => create(window.blob = blob);
"""
# Chromium lets a page download a second time only after a second.
NEXT = """async () => {
  const next = new Promise((done) => { window.next = done; });
  document.getElementById("save").click();
  const bytes = new Uint8Array(await (await next).arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}"""
# The phone takes WebGL's memory back; what is said is done in the same moment.
LOSE = """(id) => {
  const work = document.getElementById("work");  // it may be over before a poll sees it
  const look = () => { window.worked ||= !work.hidden; };
  new MutationObserver(look).observe(work, { attributes: true });
  const gl = document.querySelector("#view canvas").getContext("webgl2");
  gl.getExtension("WEBGL_lose_context").loseContext();
  document.getElementById(id)?.click();
}"""
# It takes it whenever there is something to draw.
ALWAYS_LOST = """
const lay = WebGL2RenderingContext.prototype.texImage3D;
WebGL2RenderingContext.prototype.texImage3D = function (...words) {
  lay.apply(this, words);
  this.getExtension("WEBGL_lose_context").loseContext();
};
"""
NO_CANVAS = """
const had = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function (kind, options) {
  return kind === "2d" && window.full ? null : had.call(this, kind, options);
};
"""
WITHOUT_WEBGL = "window.without = true;"
UNLINKED = """
const give = WebGL2RenderingContext.prototype.shaderSource;
WebGL2RenderingContext.prototype.shaderSource = function (shader, source) {
  give.call(this, shader, source + "}");
};
"""
NO_MEMORY = """
window.createImageBitmap = async () => {
  throw new DOMException("The ImageBitmap could not be allocated.", "InvalidStateError");
};
"""
SMALL_TEXTURES = """
const ask = WebGL2RenderingContext.prototype.getParameter;
WebGL2RenderingContext.prototype.getParameter = function (name) {
  return name === this.MAX_TEXTURE_SIZE ? 480 : ask.call(this, name);
};
"""


def opened(browser: Browser, serving: Serving, *scripts: str) -> Page:
    """The page on a phone whose screen has a pixel for each of the page's; nothing is kept."""
    context = browser.new_context(
        viewport={"width": 390, "height": 844},
        has_touch=True,
        reduced_motion="reduce",
        service_workers="block",
    )
    for script in (*scripts, TESTED):
        context.add_init_script(script)
    page = context.new_page()
    page.goto(serving.url)
    page.wait_for_selector("html[data-ready]")
    return page


def refocus(page: Page, photo: Path, position: int | None = TAKEN, timeout_s: float = 120) -> None:
    """Pick a photo, say where it is sharp if that is given, and wait for its picture."""
    done = "#result:not([hidden]), #trouble:not([hidden])"
    page.set_input_files("#pick", photo)
    page.wait_for_selector(done, timeout=1000 * timeout_s)
    assert page.locator("#trouble").inner_text() == ""
    if position is not None:
        page.locator("#taken-words").click()
        page.locator("#at").fill(str(position))
        page.locator("#go").click()
        page.wait_for_selector(done, timeout=1000 * timeout_s)
        assert page.locator("#trouble").inner_text() == ""
        page.locator("#taken-words").click()
    page.evaluate("document.getElementById('view').scrollIntoView()")


def look(page: Page, focus: float, aperture: float) -> None:
    page.get_by_role("slider", name="Focus").fill(str(focus))
    page.get_by_role("slider", name="Aperture").fill(str(aperture))


def saved(page: Page) -> Image.Image:
    """The picture that Save gives: the first of a page by a download, others as they are."""
    if page.evaluate("window.downloaded"):
        return Image.open(BytesIO(b64decode(page.evaluate(NEXT)))).convert("RGB")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    return Image.open(download.value.path()).convert("RGB")


def difference(a: Image.Image, b: Image.Image) -> int:
    """The largest one of two pictures of one size, of 255."""
    assert a.size == b.size
    return int(np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)).max())
