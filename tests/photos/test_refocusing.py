"""Pictures of any focus and aperture at a photo's own size: tiles, planes, positions, memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.TiffImagePlugin import IFDRational
from torch import Tensor

from pocketfocus.data.optics import (
    Camera,
    Layer,
    linear_to_srgb,
    one_hot,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.data.scenes import VALIDATION_SEED, bundled_photos, held_out_photos
from pocketfocus.data.stacks import RenderedScenes
from pocketfocus.export.open import open_model
from pocketfocus.models.analyse import Analyser, averaged
from pocketfocus.models.model import Model
from pocketfocus.models.places import STUDENTS
from pocketfocus.models.reference import published_size
from pocketfocus.photos import refocusing
from pocketfocus.photos.focusmap import all_in_focus
from pocketfocus.photos.images import Pixels, from_pixels, to_uint8
from pocketfocus.photos.pixels import Photo, open_photo
from pocketfocus.photos.refocusing import (
    Enlarged,
    Rendered,
    analysed,
    find_position,
    focus_at,
    focused_at,
    reduced,
    refocused,
    tell_focus,
)
from pocketfocus.photos.saving import save_picture
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

Exported = Callable[[Sequence[str]], Path]
POSITIONS = [*map(float, range(9)), 3.5]


@pytest.fixture(scope="module")
def photo() -> Pixels:
    return np.ascontiguousarray(bundled_photos()["chelsea"][:299, :451])


@pytest.fixture(scope="module")
def scene() -> Tensor:
    """A disc at 8 D before a wall at 14 D … 2 D: its images at `POSITIONS`, sRGB in [-1, 1]."""
    photos = bundled_photos()
    wall, disc = (
        srgb_to_linear(torch.from_numpy(photos[name][:256, :256].copy()).movedim(-1, 0) / 255)
        for name in ("chelsea", "coffee")
    )
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    slope = torch.linspace(14, 2, 256).expand(256, 256)
    round_one = (70 - (x - 128).hypot(y - 128)).clamp(0, 1)
    layers = [Layer(wall, torch.ones(256, 256), slope), Layer(disc, round_one, slope * 0 + 12)]
    return linear_to_srgb(render_stack(layers, Camera(), POSITIONS)) * 2 - 1


def model_of(folder: Path) -> tuple[Model, Analyser]:
    model = open_model(str(folder))
    assert model.analyser is not None
    return model, model.analyser


def test_tiles_are_the_whole(
    photo: Pixels, small_student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = model_of(small_student)
    made = refocused(model, photo, 4)
    whole = made.picture(6.4, 0.7)
    monkeypatch.setattr(refocusing, "TILE", 100)
    tiled = made.picture(6.4, 0.7)
    assert tiled.shape == photo.shape
    assert np.abs(whole.astype(int) - photo).max() > 20
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 1
    assert difference.mean() < 1e-3


def test_eight_and_sixteen_bits_are_the_same_picture(photo: Pixels, small_student: Path) -> None:
    model, _ = model_of(small_student)
    few = refocused(model, photo, 4).picture(1.5)
    many = refocused(model, photo.astype(np.uint16) * 257, 4).picture(1.5)
    assert many.dtype == np.uint16
    assert np.abs(many / 257 - few).max() <= 0.51
    assert len(np.unique(many)) > 1000  # rendered in 16, not enlarged from 8


@pytest.mark.parametrize("size", [(299, 451), (150, 226), (37, 50)])
def test_bands_of_a_photo_are_averaged_as_all_of_it(
    size: tuple[int, int], photo: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refocusing, "BAND", 64)
    torch.testing.assert_close(reduced(photo, size), averaged(from_pixels(photo), size))


def test_between_two_planes_it_is_nearer_to_the_truth_than_either(scene: Tensor) -> None:
    """By a network that knows the true frames of whole positions."""
    truth, pixels = scene[9], to_uint8(scene[6])

    def of_truth(photo: Tensor, position: Tensor) -> Sequence[Tensor]:
        height, width = photo.shape[-2:]
        gains = torch.zeros(1, 10, height, width)
        return scene[:9], scene[:1], gains, torch.zeros(1, 1, height // 4, width // 4), position

    exact = analysed(Analyser("truth", of_truth, sizes=((256, 256),)), pixels, 6)
    steps = [Rendered(exact, pixels).picture(focus) for focus in (3.0, 3.25, 3.5, 3.75, 4.0)]
    errors = [float((from_pixels(step)[0] - truth).square().mean()) for step in steps]
    assert errors[2] < min(errors[0], errors[4])


@pytest.mark.parametrize("position", [0, 6])
def test_between_two_planes_the_shipped_student_moves_one_way(position: int, scene: Tensor) -> None:
    made = refocused(open_model("student"), to_uint8(scene[position]), position)
    steps = [made.picture(focus).astype(float) for focus in (3.0, 3.25, 3.5, 3.75, 4.0)]
    from_first = [np.abs(step - steps[0]).mean() for step in steps]
    from_last = [np.abs(step - steps[-1]).mean() for step in steps]
    assert from_first == sorted(from_first)
    assert from_last == sorted(from_last, reverse=True)
    assert from_first[1] > 0.1


@pytest.mark.parametrize("name", STUDENTS)
def test_a_shipped_student_is_nearer_to_the_truth_than_the_photo(name: str) -> None:
    seeds = range(VALIDATION_SEED, VALIDATION_SEED + 3)
    scenes, gains = RenderedScenes(seeds, (256, 256), held_out_photos()), []
    for number, position in product(range(3), (0, 4)):
        found = scenes.load(number)
        assert found is not None
        photo = found.frames[position]
        made = refocused(open_model(name), to_uint8(photo), position)
        gains += [
            psnr(from_pixels(made.picture(n))[0], found.frames[n]) - psnr(photo, found.frames[n])
            for n in range(FRAMES)
            if n != position
        ]
    assert np.mean(gains) > 0.4


def test_a_stack_alone_is_enlarged_and_says_so(
    photo: Pixels, capfd: pytest.CaptureFixture[str]
) -> None:
    def stack_of(photo: Tensor, position: int) -> Tensor:
        return torch.cat([photo * n / 8 for n in range(9)])

    model = Model("old.pte", (64, 64), stack_of)
    made = refocused(model, photo, 4)
    assert "old.pte makes frames of 96x64 pixels: enlarged to 451x299" in capfd.readouterr().err
    assert isinstance(made, Enlarged)
    assert made.picture(0.0).shape == photo.shape
    assert np.abs(made.picture(0.0).astype(int) - 128).max() <= 1
    between = (made.picture(3.0).astype(int) + made.picture(4.0)) / 2
    assert np.abs(made.picture(3.5) - between).max() <= 3
    assert refocused(model, photo, 4, whole=False).picture(2.0).shape == (64, 96, 3)
    assert capfd.readouterr().err == ""
    sharp = Enlarged(made.stack, (64, 64)).picture(3.0, 0.0)
    assert np.array_equal(sharp, to_uint8(all_in_focus(made.stack)))


@pytest.mark.parametrize(("focus", "aperture"), [(-0.1, 1), (8.1, 1), (4, -1), (4, 2.5)])
def test_what_is_no_focus_or_aperture_is_refused(
    focus: float, aperture: float, photo: Pixels, small_student: Path
) -> None:
    made = refocused(model_of(small_student)[0], photo, 4)
    with pytest.raises(UserError, match="is outside 0"):
        made.picture(focus, aperture)


def test_focus_at_a_point() -> None:
    focus = torch.arange(12.0).reshape(3, 4) / 2
    assert focus_at(focus, 0, 0) == 0
    assert focus_at(focus, 0.99, 0.99) == 5.5
    assert focus_at(focus, 0.5, 0.4) == 3.0


def test_the_focus_map_is_that_of_distances(photo: Pixels, small_student: Path) -> None:
    """In 20 dioptres, near 1, infinity 0; a photo's repeated edges are no part of it."""
    analyser = model_of(small_student)[1]

    def seen(small: Tensor, position: Tensor) -> Sequence[Tensor]:
        stack, sharp, detail, dioptres, positions = analyser.call(small, position)
        ramp = torch.linspace(1.2, 0, 16).expand_as(dioptres)
        return stack, sharp, detail, ramp, positions

    portrait = np.ascontiguousarray(photo[:256, :160])
    made = Rendered(analysed(Analyser("seen", seen, sizes=((64, 64),)), portrait, 4), portrait)
    focus = made.focus_map()
    assert focus.shape == (64, 40)
    assert focus[:, 0].max() == 0
    torch.testing.assert_close(focus[0, 32], torch.tensor(8 - 8 * 1.2 * (1 - 7.625 / 15)))


# positions


def test_the_position_is_found_without_one_and_then_given(
    photo: Pixels, small_student: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, analyser = model_of(small_student)
    given: list[Tensor] = []

    def sure(small: Tensor, position: Tensor) -> Sequence[Tensor]:
        given.append(position)
        return *analyser.call(small, position)[:4], 0.9 * one_hot(6) + 0.1 / 9

    found = find_position(Analyser("sure", sure, sizes=((64, 64),)), photo, Image.Exif(), "cat.jpg")
    assert found == 6
    assert [position.sum() for position in given] == [0]
    said = capfd.readouterr().err
    assert "cat.jpg was taken at position 6 (20 cm), by its picture, 93% sure" in said
    analysed(Analyser("sure", sure, sizes=((64, 64),)), photo, found)
    assert torch.equal(given[1], one_hot(6))


@pytest.mark.parametrize(
    ("metres", "range_of", "position"),
    [
        (IFDRational(5, 100), None, 0),
        (IFDRational(1, 10), None, 4),
        (IFDRational(3, 1), 3, 8),
        (IFDRational(0xFFFFFFFF, 1), None, 8),
        (IFDRational(0, 1), None, None),
        (IFDRational(0, 0), 1, None),
        (None, 3, 8),
        (None, 1, None),
        (None, None, None),
        ("near", 0, None),
    ],
)
def test_positions_by_exif(metres: object, range_of: object, position: int | None) -> None:
    assert focused_at(metres, range_of) == position


def test_exif_comes_first(
    photo: Pixels, small_student: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9206] = IFDRational(1, 10)
    assert find_position(model_of(small_student)[1], photo, exif, "cat.jpg") == 4
    assert "by its EXIF data" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("focus", [0.0, 3.0, 4.75, 7.9999999, 8.0])
def test_a_refocused_picture_tells_its_new_focus(
    focus: float, suffix: str, photo: Pixels, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif.get_ifd(IFD.Exif).update({Base.SubjectDistance: 0.1, Base.SubjectDistanceRange: 3})
    tell_focus(exif, focus)
    save_picture(Photo("cat.jpg", photo, None, exif, None), tmp_path / f"made{suffix}", {})
    camera = open_photo(tmp_path / f"made{suffix}").exif.get_ifd(IFD.Exif)
    assert focused_at(camera[Base.SubjectDistance]) == round(focus)
    assert Base.SubjectDistanceRange not in camera


# files of a fixed size, and large photos


@pytest.mark.parametrize("name", ["onnx/student-fp32.onnx", "executorch/student-fp32.pte"])
def test_a_file_gives_what_its_student_gives(
    name: str, exported: Exported, small_student: Path, photo: Pixels
) -> None:
    file = exported([name]) / name
    square = np.ascontiguousarray(photo[:256, :256])
    expected = refocused(model_of(small_student)[0], square, 4).picture(2.5)
    found = refocused(model_of(file)[0], square, 4).picture(2.5)
    assert np.abs(found.astype(int) - expected).max() <= 1
    portrait = np.ascontiguousarray(photo[:, :160])
    assert refocused(model_of(file)[0], portrait, 4).picture(2.5).shape == portrait.shape


MEASURED = """
import sys
from pocketfocus.cli import main
from pocketfocus.run.memory import peak_mib
code = main(["refocus", *sys.argv[1:]])
print(code, round(peak_mib()))
"""


def test_12_megapixels_take_less_than_900_mb(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (378, 504, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((4032, 3024), Image.Resampling.BICUBIC).save(tmp_path / "12.jpg")
    words = [str(tmp_path / "12.jpg"), "--focus-at", "0.5,0.5", "--out", str(tmp_path / "out.jpg")]
    command = [sys.executable, "-c", MEASURED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    code, mebibytes = map(int, done.stdout.split()[-2:])
    assert code == 0
    assert mebibytes < 900e6 / 1024**2
    assert Image.open(tmp_path / "out.jpg").size == (4032, 3024)


def test_a_model_says_what_size_fits_it() -> None:
    """References of the published formulation get the authors' size, resized as they resize."""
    seen: list[Tensor] = []

    def call(photo: Tensor, _: int) -> Tensor:
        seen.append(photo)
        return photo.expand(9, -1, -1, -1)

    pixels = np.random.default_rng(0).integers(0, 256, (896, 640, 3), np.uint8)
    made = refocused(Model("any", None, call, fit=published_size), pixels, 4, whole=False)
    small = Image.fromarray(pixels).resize((576, 832))  # Pillow's own way, which they leave alone
    torch.testing.assert_close(seen[0], from_pixels(np.asarray(small)))
    assert made.picture(3.0).shape[:2] == (832, 594)
    refocused(Model("any", None, call), pixels, 4, whole=False)
    assert seen[1].shape[-2:] == (256, 192)
    refocused(Model("any", (64, 64), call, fit=published_size), pixels, 4)
    assert seen[2].shape[-2:] == (64, 64)
