"""The picture of the page in pixels: what `pocketfocus.models.render` makes, drawn both ways."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.data.scenes import bundled_photos
from pocketfocus.export.stage import Export, export_run
from pocketfocus.models.render import Analysed, aperture_of, focus_weights
from pocketfocus.models.student import PRESETS, Analysis, RefocusStudent
from pocketfocus.photos.images import to_tensor, to_uint8
from tests.conftest import stir
from tests.mobile_harness.web.conftest import Serving, start
from tests.mobile_harness.web.touching import (
    SMALL_TEXTURES,
    TAKEN,
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
FACTOR = 15
PAINTERS = ("WebGL2", "Canvas2D")
SHAPES = ("landscape", "portrait", "wide")
pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("built_page")]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A served run with a file for landscape photos."""

    torch.manual_seed(0)
    student = RefocusStudent(**PRESETS["micro"] | {"size": TAKES})
    stir(student)
    folder, run = tmp_path_factory.mktemp("student"), tmp_path_factory.mktemp("run")
    student.save_pretrained(folder)
    export_run(folder, Export(run, ["onnx"], ["fp32"]), log=lambda line: None)
    server = start(run)
    yield server
    server.stop()


def picture(shape: str) -> Image.Image:
    """A photo that the file takes after averaging over 15x15 pixels."""
    height, width = {"landscape": TAKES, "portrait": TAKES[::-1], "wide": (24, 64)}[shape]
    photo = Image.fromarray(bundled_photos()["coffee"])
    return photo.resize((FACTOR * width, FACTOR * height), Image.Resampling.LANCZOS)


def analysed(serving: Serving, photo: Tensor, position: int | None) -> Analysed:
    """Its analysis by onnxruntime here: portraits transposed, edges repeated."""
    small = F.avg_pool2d(photo, FACTOR)
    height, width = small.shape[-2:]
    transposed = height > width
    room = TAKES[::-1] if transposed else TAKES
    padded = F.pad(small, (0, room[1] - width, 0, room[0] - height), mode="replicate")
    session = onnxruntime.InferenceSession(serving.run / FILE, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    given = torch.zeros(1, 9) if position is None else one_hot(position)
    fed = (padded.mT if transposed else padded).contiguous().numpy()
    found = map(torch.from_numpy, session.run(None, {names[0]: fed, names[1]: given.numpy()}))
    maps = [value.mT if transposed and value.ndim == 4 else value for value in found]
    return Analysed(padded, Analysis(*maps), (height, width))


def on_screen(page: Page) -> Image.Image:
    page.wait_for_timeout(150)
    shot = page.locator("#view canvas").screenshot()
    return Image.open(io.BytesIO(shot)).convert("RGB")


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

    tensor = to_tensor(photo)
    known = analysed(wide, tensor, TAKEN)
    for focus, aperture in ((0, 1), (3.5, 1), (3.5, 0.5), (8, 0), (6.25, 2)):
        look(page, focus, aperture)
        made = known.render(tensor, focus_weights(focus), aperture_of(aperture))
        expected = Image.fromarray(to_uint8(made)[0])
        assert difference(expected, photo) > 10
        assert difference(saved(page), expected) <= 2, (focus, aperture)

    page.get_by_role("button", name="Pixels").click()  # the same, in the middle of the screen
    if shape != "wide":  # of whole pixels of the screen, its view is
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


def test_a_photo_is_turned_upright_and_reduced_to_what_the_device_draws(
    browser: Browser, wide: Serving, tmp_path: Path
) -> None:
    """A portrait photo that lies on its side in the file, of 960x720, where textures end at 480."""
    photo, exif = picture("portrait"), Image.Exif()
    exif[0x0112] = 6
    exif[0x8769] = {0x9206: 0.1}  # SubjectDistance
    lying = photo.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "photo.jpg", quality=98, exif=exif)
    page = opened(browser, wide, SMALL_TEXTURES)
    refocus(page, tmp_path / "photo.jpg", None)
    assert "10 cm: the camera noted 0.10 m" in page.locator("#taken-words").inner_text()
    words = page.locator("#took").inner_text()
    assert "360 × 480 pixels" in words
    assert "The photo has 720 × 960; this phone shows and saves less" in words
    expected = np.asarray(photo.resize((360, 480), Image.Resampling.LANCZOS), np.float32)
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
        told = route.fetch().json()
        told["files"] = [file | {"sizes": None} for file in told["files"]]
        asked.append(route.request.url)
        route.fulfill(json=told)

    page.route("**/api/run", any_size)
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert asked
    refocus(page, tmp_path / "photo.png")
    assert "analysed at 64 × 48 " in page.locator("#took").inner_text()  # and so the file is called
    look(page, 3.5, 1)
    tensor = to_tensor(photo)
    made = analysed(wide, tensor, TAKEN).render(tensor, focus_weights(3.5), aperture_of(1))
    assert difference(saved(page), Image.fromarray(to_uint8(made)[0])) <= 2
    page.context.close()


def test_the_position_is_found(browser: Browser, wide: Serving, tmp_path: Path) -> None:
    photo = picture("portrait")
    photo.save(tmp_path / "photo.png")
    chances = analysed(wide, to_tensor(photo), None).analysis.positions[0].double()
    expected = int((chances.cumsum(0) < 0.5).sum())
    sure = round(100 * float(chances[max(0, expected - 1) : expected + 2].sum()))
    page = opened(browser, wide)
    refocus(page, tmp_path / "photo.png", None)
    assert page.locator("#at").input_value() == str(expected)
    assert f"estimated, {sure} % sure" in page.locator("#taken-words").inner_text()
    assert float(page.get_by_role("slider", name="Focus").input_value()) == expected
    page.context.close()
