"""The page of `refocus`, in a real browser: tap, slider, keys, and nothing from a network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import gaussian

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.photos.gallery import save_refocus
from pocketfocus.photos.images import to_tensor
from pocketfocus.photos.refocusing import Enlarged
from pocketfocus.run.metrics import psnr

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

LEFT, RIGHT = 2, 7  # the frames in which the halves of the test stack are sharp
H, W = 96, 144

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(bundled_photos()["chelsea"]).crop((60, 20, 348, 212)).resize((W, H))


@pytest.fixture(scope="module")
def folder(photo: Image.Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What save_refocus writes of a stack whose halves are sharp in frames LEFT and RIGHT."""
    sharp = to_tensor(photo)[0].numpy()
    blurs = [
        [gaussian(sharp, (0, *[0.8 * abs(t - at)] * 2)) for at in (LEFT, RIGHT)] for t in range(9)
    ]
    halves = [np.concatenate([near[..., : W // 2], far[..., W // 2 :]], -1) for near, far in blurs]
    out = tmp_path_factory.mktemp("refocus")
    made = Enlarged(torch.from_numpy(np.stack(halves)), (H, W))
    save_refocus(made, np.asarray(photo), 4, out, "student-int8.pte")
    return out


@pytest.fixture
def page(browser: Browser, folder: Path) -> Iterator[Page]:
    """The page on a phone's screen; it asks for nothing but itself and has no errors."""
    page = browser.new_page(
        viewport={"width": 390, "height": 844}, has_touch=True, reduced_motion="reduce"
    )
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text))
    page.goto((folder / "index.html").as_uri())
    yield page
    page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith("data:")] == [
        (folder / "index.html").as_uri()
    ]


def seen(page: Page) -> Image.Image:
    """The photo as it is on the screen, scaled to the frames' size."""
    page.evaluate("document.getElementById('ring').classList.remove('seen')")
    page.wait_for_timeout(60)
    shot = page.locator("#view").screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB").resize((W, H), Image.Resampling.BOX)


def looks_like(page: Page, pictures: dict[str, Image.Image]) -> str:
    """The name of the picture that the screen shows."""
    found = to_tensor(seen(page))[..., 12:, :]
    scores = {
        name: psnr(found, to_tensor(picture)[..., 12:, :]) for name, picture in pictures.items()
    }
    return max(scores, key=lambda name: scores[name])


@pytest.fixture(scope="module")
def pictures(folder: Path) -> dict[str, Image.Image]:
    """What the page can show: frames "0" … "8" and "sharp"."""
    names = {str(i): f"frame_{i}.png" for i in range(9)} | {"sharp": "all_in_focus.png"}
    return {key: Image.open(folder / name) for key, name in names.items()}


def test_tap_shows_the_frame_that_is_sharpest_there(
    page: Page, pictures: dict[str, Image.Image]
) -> None:
    assert looks_like(page, pictures) == "4"  # the input position
    area = page.locator("#view").bounding_box()
    assert area
    for across, frame in ((0.2, LEFT), (0.8, RIGHT), (0.001, LEFT), (0.999, RIGHT)):
        x, y = area["x"] + across * area["width"], area["y"] + 0.5 * area["height"]
        page.touchscreen.tap(x, y)
        assert page.get_by_role("slider").input_value() == str(frame)
        assert looks_like(page, pictures) == str(frame)


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_a_ring_marks_the_tap_and_goes(page: Page, motion: Any) -> None:
    page.emulate_media(reduced_motion=motion)
    area = page.locator("#view").bounding_box()
    assert area
    x, y = area["x"] + 0.3 * area["width"], area["y"] + 0.6 * area["height"]
    page.evaluate(
        """() => {
          window.opacities = [];
          const look = () => {
            opacities.push(Number(getComputedStyle(ring).opacity));
            requestAnimationFrame(look);
          };
          look();
        }"""
    )
    page.touchscreen.tap(x, y)
    page.wait_for_timeout(400)  # until it has its own size
    found = page.locator("#ring").bounding_box()
    assert found
    assert abs(found["x"] + found["width"] / 2 - x) < 1.5
    assert abs(found["y"] + found["height"] / 2 - y) < 1.5
    page.wait_for_timeout(1200)
    opacities = page.evaluate("opacities")
    assert opacities[0] == opacities[-1] == 0
    assert max(opacities) == 1


def test_slider_racks_with_the_keyboard(page: Page, pictures: dict[str, Image.Image]) -> None:
    slider = page.get_by_role("slider", name="Focus")
    slider.focus()
    assert slider.get_attribute("aria-valuetext") == "4 · about 10 cm · as photographed"
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "5 · about 13 cm"
    assert looks_like(page, pictures) == "5"
    for key, frame in (("ArrowLeft", "4"), ("Home", "0"), ("End", "8")):
        page.keyboard.press(key)
        assert slider.input_value() == frame
        assert looks_like(page, pictures) == frame
    assert slider.get_attribute("aria-valuetext") == "8 · infinity"


def test_hold_shows_the_original(
    page: Page, pictures: dict[str, Image.Image], photo: Image.Image
) -> None:
    either = {"0": pictures["0"], "photo": photo}
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    hold = page.get_by_role("button", name="original")
    area = hold.bounding_box()
    assert area
    page.mouse.move(area["x"] + 20, area["y"] + 20)
    page.mouse.down()
    assert looks_like(page, either) == "photo"
    assert hold.get_attribute("aria-pressed") == "true"
    page.mouse.up()
    assert looks_like(page, pictures) == "0"
    hold.focus()
    page.keyboard.down("Space")
    assert looks_like(page, either) == "photo"
    page.keyboard.up("Space")
    assert looks_like(page, pictures) == "0"


def test_all_in_focus_and_focus_map_come_and_go(
    page: Page, pictures: dict[str, Image.Image]
) -> None:
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    sharp = page.get_by_role("button", name="All in focus")
    sharp.click()
    assert looks_like(page, pictures) == "sharp"
    legend = page.locator("#legend")
    assert not legend.is_visible()
    page.get_by_role("button", name="Focus map").click()
    assert sharp.get_attribute("aria-pressed") == "false"
    assert legend.is_visible()
    near, far = (np.asarray(seen(page).getpixel((x, H // 2)), int) for x in (W // 5, 4 * W // 5))
    assert far[1] > near[1] + 60  # viridis: far is lighter green
    page.get_by_role("button", name="Focus map").click()
    assert not legend.is_visible()
    assert looks_like(page, pictures) == "0"


def test_fits_a_phone_and_fingers(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("summary").click()
    for control in page.locator("button, input, summary, li a").all():
        area = control.bounding_box()
        assert area
        assert area["height"] >= 44
    view = page.locator("#view").bounding_box()
    assert view
    assert abs(view["width"] / view["height"] - W / H) < 0.01


def test_dark_and_light(page: Page) -> None:
    def brightness(scheme: Any) -> tuple[int, int]:
        page.emulate_media(color_scheme=scheme)
        style = "getComputedStyle(document.body)"
        colours = (page.evaluate(f"{style}.{k}") for k in ("backgroundColor", "color"))
        back, text = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
        return back, text

    back, text = brightness("light")
    assert back > 600 > 150 > text
    back, text = brightness("dark")
    assert back < 150 < 600 < text


def test_focus_racks_smoothly(page: Page) -> None:
    page.emulate_media(reduced_motion="no-preference")
    seen_opacities = page.evaluate(
        """() => new Promise((done) => {
          const found = new Set(), began = performance.now();
          slider.value = 8;
          slider.dispatchEvent(new Event("input"));
          const look = () => {
            found.add(frames.map((frame) => Number(frame.style.opacity)).join());
            if (performance.now() - began < 900) requestAnimationFrame(look);
            else done([...found].map((text) => text.split(",").map(Number)));
          };
          look();
        })"""
    )
    assert any(0 < opacity < 1 for opacities in seen_opacities for opacity in opacities)
    assert seen_opacities[-1] == [0] * 8 + [1]
