"""The picture of the page in pixels: what `pocketfocus.models.render` makes, drawn both ways."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.scenes import bundled_photos
from pocketfocus.export.open import open_model
from pocketfocus.export.stage import Export, export_run
from pocketfocus.models.analyse import likely_position
from pocketfocus.models.render import Analysed, aperture_of, focus_weights
from pocketfocus.models.student import PRESETS, RefocusStudent, save_student
from pocketfocus.photos.images import to_tensor, to_uint8
from pocketfocus.photos.refocusing import Rendered, analysed, focus_at
from pocketfocus.run.constants import Size
from tests.conftest import stir
from tests.mobile_harness.web.conftest import Serving, start
from tests.mobile_harness.web.touching import (
    ALWAYS_LOST,
    LOSE,
    NO_CANVAS,
    NO_MEMORY,
    SMALL_TEXTURES,
    TAKEN,
    UNLINKED,
    WITHOUT_WEBGL,
    difference,
    look,
    opened,
    refocus,
    saved,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

FILE = "onnx/student-fp32.onnx"
TAKES = (48, 64)  # of its photos, landscape
PAINTERS = ("WebGL2", "Canvas2D")
SHAPES = ("landscape", "portrait", "wide", "small")  # one is smaller than the file's
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built_page")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A served run with a file for landscape photos."""
    yield from served(tmp_path_factory, ())


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A served run with a file for photos of any shape."""
    yield from served(tmp_path_factory, None)


def served(
    tmp_path_factory: pytest.TempPathFactory, sizes: tuple[Size, ...] | None
) -> Iterator[Serving]:
    torch.manual_seed(0)
    student = RefocusStudent(**PRESETS["micro"] | {"size": TAKES})
    stir(student)
    folder, run = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("run")
    save_student(student, folder, half=False)
    export_run(folder, Export(run, ["onnx"], ["fp32"], sizes=sizes), log=lambda line: None)
    server = start(run)
    yield server
    server.stop()


def picture(shape: str) -> Image.Image:
    """A photo of a size that no side of what the file takes divides."""
    sizes = {"landscape": (960, 733), "portrait": (733, 960), "wide": (961, 307), "small": (37, 31)}
    photo = Image.fromarray(bundled_photos()["coffee"])
    return photo.resize(sizes[shape], Image.Resampling.LANCZOS)


def known(serving: Serving, photo: Image.Image, position: int | None) -> Analysed:
    """Its analysis as `refocus` makes it, with the same file."""
    analyser = open_model(str(serving.run / FILE), 1).analyser
    assert analyser is not None
    return analysed(analyser, np.asarray(photo), position)


def rendered(analysis: Analysed, photo: Image.Image, focus: float, aperture: float) -> Image.Image:
    made = analysis.render(to_tensor(photo), focus_weights(focus), aperture_of(aperture))
    return Image.fromarray(to_uint8(made)[0])


def on_screen(page: Page) -> Image.Image:
    page.wait_for_timeout(150)
    shot = page.locator("#view canvas").screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB")


@pytest.mark.parametrize("shape", ["portrait", "wide", "small"])
def test_a_file_of_free_sizes_analyses_a_photo_in_its_shape(
    browser: Browser, free: Serving, tmp_path: Path, shape: str
) -> None:
    photo = picture(shape)
    photo.save(tmp_path / "photo.png")
    page = opened(browser, free)
    refocus(page, tmp_path / "photo.png")
    analysis = known(free, photo, TAKEN)
    height, width = analysis.size
    assert height / width == pytest.approx(photo.height / photo.width, rel=0.05)
    look(page, 0, 1)
    assert difference(saved(page), rendered(analysis, photo, 0, 1)) <= 2


@pytest.mark.parametrize("painter", PAINTERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_picture_is_the_renderers(
    browser: Browser, wide: Serving, tmp_path: Path, painter: str, shape: str
) -> None:
    photo = picture(shape)
    photo.save(tmp_path / "photo.png")
    page = opened(browser, wide, *([] if painter == "WebGL2" else [WITHOUT_WEBGL]))
    refocus(page, tmp_path / "photo.png")
    words = page.locator("#took").inner_text()
    assert f"{photo.width} × {photo.height} pixels" in words
    assert f"drawn by {painter}" in words
    assert difference(saved(page), photo) == 0, "at its own focus and aperture it is the photo"

    analysis = known(wide, photo, TAKEN)
    for focus, aperture in ((0, 1), (3.5, 1), (3.5, 0.5), (8, 0), (6.25, 2)):
        look(page, focus, aperture)
        expected = rendered(analysis, photo, focus, aperture)
        assert difference(expected, photo) > 10
        assert difference(saved(page), expected) <= 2, (focus, aperture)

    page.get_by_role("button", name="Pixels").click()  # the same, in the middle of the screen
    if shape not in ("wide", "small"):  # of whole pixels of the screen, its view is
        shot = on_screen(page)
        left, top = ((a - b) // 2 for a, b in zip(photo.size, shot.size, strict=True))
        crops = [
            expected.crop((x, y, x + shot.width, y + shot.height))
            for x in (left, left + 1)
            for y in (top, top + 1)
        ]
        inner = (20, 20, shot.width - 20, shot.height - 20)  # its corners are round
        assert min(difference(shot.crop(inner), crop.crop(inner)) for crop in crops) <= 2
    page.context.close()


def test_what_the_graphics_processor_refuses_is_drawn_without_it(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    photo = picture("small")
    photo.save(tmp_path / "photo.png")
    page = opened(browser, wide, UNLINKED)
    refocus(page, tmp_path / "photo.png")
    assert "drawn by Canvas2D" in page.locator("#took").inner_text()
    look(page, 3.5, 1)
    assert difference(saved(page), rendered(known(wide, photo, TAKEN), photo, 3.5, 1)) <= 2
    page.context.close()


@pytest.mark.parametrize("pressed", ["", "go", "save"])
def test_a_picture_whose_memory_was_taken_back_is_drawn_again(
    browser: Browser, wide: Serving, tmp_path: Path, pressed: str
) -> None:
    """Also where it is analysed again, or saved, before the page hears of it."""
    photo = picture("landscape")
    photo.save(tmp_path / "photo.png")
    expected = rendered(known(wide, photo, TAKEN), photo, 3.5, 0.5)
    page = opened(browser, wide)
    refocus(page, tmp_path / "photo.png")
    look(page, 3.5, 0.5)
    before = on_screen(page)
    page.evaluate(LOSE, pressed)
    page.wait_for_function("() => window.worked")
    page.locator("#result").wait_for()
    trouble = page.locator("#trouble").inner_text()
    if pressed == "save":
        assert trouble.startswith("It was not saved: the phone took the picture's memory back")
        assert not page.evaluate("window.downloaded")
        page.evaluate("document.getElementById('trouble').hidden = true")  # which moves the view
    else:
        assert trouble == ""
    if pressed == "go":  # which begins where the photo is sharp
        look(page, 3.5, 0.5)
    assert difference(on_screen(page), before) <= 2
    assert difference(saved(page), expected) <= 2
    page.context.close()


def test_a_phone_that_takes_memory_back_each_time_draws_without_it(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    photo = picture("landscape")
    photo.save(tmp_path / "photo.png")
    page = opened(browser, wide, ALWAYS_LOST)
    page.set_input_files("#pick", tmp_path / "photo.png")
    page.get_by_text("drawn by Canvas2D").wait_for(timeout=120_000)
    position = int(page.locator("#at").input_value())
    look(page, 3.5, 0.5)
    expected = rendered(known(wide, photo, position), photo, 3.5, 0.5)
    assert difference(saved(page), expected) <= 2
    page.context.close()


def test_what_there_is_no_canvas_for_is_not_saved(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    """Of a canvas without a context, browsers make a picture all the same: a black one."""
    picture("small").save(tmp_path / "photo.png")
    page = opened(browser, wide, NO_CANVAS)
    refocus(page, tmp_path / "photo.png")
    page.evaluate("window.full = true; document.getElementById('save').click()")
    page.get_by_text("this browser makes no picture of 37 × 31 pixels").wait_for()
    assert not page.evaluate("window.downloaded")
    page.context.close()


def test_a_file_is_blamed_only_where_it_is_no_picture(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    picture("small").save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("text")
    page = opened(browser, wide, NO_MEMORY)
    for name, words in {
        "text.png": "text.png is no picture that this browser reads: pick a JPEG or PNG",
        "photo.png": "photo.png was not read: The ImageBitmap could not be allocated. "
        "Close other pages and try again, or pick another photo or a smaller one.",
    }.items():
        page.set_input_files("#pick", tmp_path / name)
        page.wait_for_selector("#trouble:not([hidden])")
        assert page.locator("#trouble").inner_text() == words
        assert page.locator("#start").is_visible()
    page.context.close()


def test_a_photo_is_turned_upright_and_reduced_to_what_the_device_draws(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    """A portrait photo that lies on its side in the file, where textures end at 480 pixels."""
    photo, exif = picture("portrait"), Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0x9206: 0.1}  # SubjectDistance
    lying = photo.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "photo.jpg", quality=98, exif=exif)
    page = opened(browser, wide, SMALL_TEXTURES)
    refocus(page, tmp_path / "photo.jpg", None)
    assert "10 cm: the camera noted 0.10 m" in page.locator("#taken-words").inner_text()
    words = page.locator("#took").inner_text()
    assert "366 × 480 pixels" in words
    assert "The photo has 733 × 960; this phone shows and saves less" in words
    expected = np.asarray(photo.resize((366, 480), Image.Resampling.LANCZOS), np.float32)
    assert np.abs(np.asarray(saved(page), np.float32) - expected).mean() < 3
    page.context.close()


def test_a_file_of_any_size_gets_the_photos_own_proportions(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    """About as many pixels as the student was made for; here as many as the file really takes."""
    photo = picture("landscape")
    photo.save(tmp_path / "photo.png")
    page = opened(browser, wide)
    asked: list[str] = []

    def any_size(route: Route) -> None:
        answer = route.fetch().json()
        answer["files"] = [file | {"sizes": None} for file in answer["files"]]
        asked.append(route.request.url)
        route.fulfill(json=answer)

    page.route("**/api/run", any_size)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert asked
    refocus(page, tmp_path / "photo.png")
    assert "analysed at 63 × 48 " in page.locator("#took").inner_text()
    look(page, 3.5, 1)
    assert difference(saved(page), rendered(known(wide, photo, TAKEN), photo, 3.5, 1)) <= 2
    page.context.close()


def test_the_position_is_found(browser: Browser, wide: Serving, tmp_path: Path) -> None:
    photo = picture("portrait")
    photo.save(tmp_path / "photo.png")
    expected, sure = likely_position(known(wide, photo, None).analysis)
    page = opened(browser, wide)
    refocus(page, tmp_path / "photo.png", None)
    assert page.locator("#at").input_value() == str(expected)
    assert f"by the picture, {100 * sure:.0f} % sure" in page.locator("#taken-words").inner_text()
    assert float(page.get_by_role("slider", name="Focus").input_value()) == expected
    page.context.close()


@pytest.mark.parametrize("shape", ["landscape", "portrait"])
def test_a_tap_focuses_as_focus_at_does(
    browser: Browser, wide: Serving, tmp_path: Path, shape: str
) -> None:
    photo = picture(shape)
    photo.save(tmp_path / "photo.png")
    analysis = known(wide, photo, TAKEN)
    sharp = Rendered(analysis, np.asarray(photo)).focus_map()
    height, width = sharp.shape
    inner = ((sharp > 0.5) & (sharp < 7.5)).nonzero()
    row, column = map(int, inner[len(inner) // 2])
    x, y = (column + 0.5) / width, (row + 0.5) / height
    page = opened(browser, wide)
    refocus(page, tmp_path / "photo.png")
    area = page.locator("#view").bounding_box()
    assert area
    page.touchscreen.tap(area["x"] + x * area["width"], area["y"] + y * area["height"])
    focus = float(page.get_by_role("slider", name="Focus").input_value())
    assert focus == pytest.approx(focus_at(sharp, x, y), abs=0.01)
    assert difference(saved(page), rendered(analysis, photo, focus, 1)) <= 2
    page.context.close()
