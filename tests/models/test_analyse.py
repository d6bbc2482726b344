"""Photos of any size and shape get into a network: in proportion, and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pocketfocus.models.analyse import Analyser, areas, averaged, likely_position
from pocketfocus.models.model import Model, refocus
from pocketfocus.models.student import Analysis, RefocusStudent, build_student
from pocketfocus.photos.images import from_pixels
from pocketfocus.photos.refocusing import reduced
from pocketfocus.run.errors import UserError
from tests.conftest import change_pictures

LANDSCAPE = (320, 448)
sides = st.integers(16, 6000)
photos = st.tuples(sides, sides).filter(lambda s: max(s) <= 16 * min(s))


def nothing(photo: Tensor, position: Tensor) -> Sequence[Tensor]:
    raise AssertionError


ANY = Analyser("any", nothing, multiple=16, pixels=320 * 448)
FILE = Analyser("file", nothing, sizes=(LANDSCAPE,))


@pytest.fixture(scope="module")
def student() -> RefocusStudent:
    torch.manual_seed(0)
    student = build_student("micro").eval()
    change_pictures(student)
    return student


@given(photos)
def test_it_keeps_proportions_and_is_as_large_as_the_network_knows(photo: tuple[int, int]) -> None:
    for analyser in (ANY, FILE):
        fit = analyser.fit(photo)
        scale = (fit.size[0] * fit.size[1] / (photo[0] * photo[1])) ** 0.5
        for small, full, padded in zip(fit.size, photo, fit.padded, strict=True):
            assert abs(small - scale * full) <= 1 + 0.02 * small
            assert small <= padded
    fit = ANY.fit(photo)
    assert fit.size[0] * fit.size[1] == pytest.approx(320 * 448, rel=0.02)
    assert all(0 <= p - s < 16 and p % 16 == 0 for p, s in zip(fit.padded, fit.size, strict=True))
    assert FILE.fit(photo).padded in (LANDSCAPE, LANDSCAPE[::-1])


@pytest.mark.parametrize(
    ("photo", "size", "padded"),
    [
        ((640, 896), (320, 448), (320, 448)),
        ((896, 640), (448, 320), (448, 320)),
        ((64, 64), (379, 379), (384, 384)),
        ((3024, 4032), (328, 437), (336, 448)),
        ((1080, 2520), (248, 578), (256, 592)),
    ],
)
def test_sizes_of_usual_photos(
    photo: tuple[int, int], size: tuple[int, int], padded: tuple[int, int]
) -> None:
    fit = ANY.fit(photo)
    assert (fit.size, fit.padded, fit.transposed) == (size, padded, False)


def test_a_files_nearest_size_is_chosen() -> None:
    wide, square = replace(FILE, sizes=(LANDSCAPE, (384, 384))), (384, 384)
    assert wide.fit((3000, 3100)).padded == square
    assert wide.fit((3024, 4032)).padded == LANDSCAPE
    portrait = wide.fit((4032, 3024))
    assert (portrait.padded, portrait.transposed) == (LANDSCAPE[::-1], True)
    both = replace(FILE, sizes=(LANDSCAPE, LANDSCAPE[::-1]))
    assert not both.fit((4032, 3024)).transposed


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (10, 90)])
def test_averages_are_those_of_a_photo_of_repeated_pixels(size: tuple[int, int]) -> None:
    photo, (height, width) = torch.rand(1, 3, 100, 90), size
    fine = photo.repeat_interleave(height, -2).repeat_interleave(width, -1)
    expected = fine.reshape(1, 3, height, 100, width, 90).mean((3, 5))
    torch.testing.assert_close(averaged(photo, size), expected)


def test_a_smaller_photo_is_enlarged_bilinearly() -> None:
    photo = torch.rand(1, 3, 20, 30)
    expected = F.interpolate(photo, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(averaged(photo, (64, 96)), expected)
    pixels = (photo[0].permute(1, 2, 0) * 255).byte().numpy()
    whole = averaged(from_pixels(pixels), (64, 96))
    torch.testing.assert_close(reduced(pixels, (64, 96)), whole)


def call(student: RefocusStudent) -> Callable[[Tensor, Tensor], Sequence[Tensor]]:
    return lambda photo, position: student(photo, position)


def test_a_portrait_in_a_landscape_file_is_the_transposed_photo(student: RefocusStudent) -> None:
    analyser = Analyser("file", call(student), sizes=((32, 64),))
    photo = torch.rand(1, 3, 64, 32) * 2 - 1
    found, size = analyser.analyse_whole(photo, 2)
    expected, _ = analyser.analyse_whole(photo.mT.contiguous(), 2)
    assert size == found.size == (64, 32)
    for made, known in zip(found.analysis[:4], expected.analysis[:4], strict=True):
        torch.testing.assert_close(made, known.mT)


def test_frames_have_the_photos_size_and_its_own_frame_is_the_photo(
    student: RefocusStudent,
) -> None:
    analyser = Analyser("student", call(student), multiple=student.multiple, pixels=64 * 64)
    model = Model("student", None, lambda *_: torch.zeros(0), analyser)
    for size in ((64, 64), (90, 50), (301, 517)):
        photo = torch.rand(1, 3, *size) * 2 - 1
        stack = refocus(model, photo, 3)
        assert stack.shape == (9, 3, *size)
        torch.testing.assert_close(stack[3:4], photo, atol=1e-5, rtol=0)
        assert (stack[6] - photo[0]).abs().max() > 0.01


def test_a_squeezed_photo_is_analysed_as_the_lens_saw_it(student: RefocusStudent) -> None:
    seen: list[Tensor] = []

    def watched(photo: Tensor, position: Tensor) -> Sequence[Tensor]:
        seen.append(photo)
        return student(photo, position)

    analyser = Analyser("student", watched, multiple=student.multiple, pixels=48 * 64)
    model = Model("student", None, lambda *_: torch.zeros(0), analyser)
    rows, columns = torch.meshgrid(torch.arange(192), torch.arange(144), indexing="ij")
    disc = (((rows - 90) ** 2 + (columns - 70) ** 2) < 40**2).float().expand(1, 3, -1, -1) * 2 - 1
    squeezed = averaged(disc, (192, 96))
    stack = refocus(model, squeezed, 3, aspect=144 / 192)
    assert stack.shape == (9, 3, 192, 96)
    torch.testing.assert_close(stack[3:4], squeezed, atol=1e-5, rtol=0)
    refocus(model, disc, 3)
    torch.testing.assert_close(seen[0], seen[1], atol=0.35, rtol=0)
    assert (seen[0] - seen[1]).abs().mean() < 0.02
    refocus(model, squeezed, 3)
    assert seen[2].shape != seen[0].shape


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda found: [value / 0 for value in found], "not finite from the desk, position 3"),
        (lambda found: found[:1], "export it again"),
        (lambda found: [found[0][:8], *found[1:]], r"gives \[\(8, 3, 64, 64\)"),
    ],
)
def test_a_broken_networks_output_is_refused(
    spoil: Callable[[Sequence[Tensor]], Sequence[Tensor]], said: str, student: RefocusStudent
) -> None:
    analyser = Analyser("int4.pte", lambda *given: spoil(student(*given)), sizes=((64, 64),))
    with pytest.raises(UserError, match=said):
        analyser.analyse_whole(torch.zeros(1, 3, 90, 70), 3, "the desk")
    with pytest.raises(UserError, match="position 9 is outside"):
        analyser.analyse_whole(torch.zeros(1, 3, 90, 70), 9)


@pytest.mark.parametrize(
    ("chances", "position", "near"),
    [
        ([0, 0, 0, 1, 0, 0, 0, 0, 0], 3, 1.0),
        ([0.3, 0, 0, 0, 0, 0, 0, 0.3, 0.4], 7, 0.7),
        ([0, 0, 0, 0, 0, 0, 0, 0.2, 0.8], 8, 1.0),
    ],
)
def test_the_likely_position_is_the_median(
    chances: list[float], position: int, near: float
) -> None:
    analysis = Analysis(*(torch.zeros(1),) * 4, torch.tensor([chances]))
    found, sure = likely_position(analysis)
    assert found == position
    assert sure == pytest.approx(near)


def shares(full: int, small: int) -> NDArray[np.float64]:
    """How much of each of `full` pixels each of `small` ones takes, pixel by pixel."""
    width = full / small
    spans = [(each * width, (each + 1) * width) for each in range(small)]
    return np.array(
        [[max(0.0, min(b, n + 1) - max(a, n)) / width for n in range(full)] for a, b in spans]
    )


@pytest.mark.parametrize(("full", "small"), [(100, 7), (33, 33), (40, 39), (56, 1), (100, 50)])
def test_areas_are_what_pixels_cover(full: int, small: int) -> None:
    assert np.abs(areas(full, small).numpy() - shares(full, small)).max() < 1e-6


LONG = """
from pocketfocus.models.analyse import areas
from pocketfocus.run.memory import peak_mib
before = peak_mib()
print(areas(56_568, 300).nbytes / 2**20, peak_mib() - before)
"""


def test_the_areas_of_a_long_photo_take_little_more_memory_than_they_hold() -> None:
    """65 MiB; made at once in twice the precision, 390 more."""
    words = [sys.executable, "-c", LONG]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    held, taken = map(float, said.split())
    assert taken < 2 * held


@pytest.mark.parametrize("size", [(60, 100), (100, 60)])
def test_a_self_ensemble_is_the_mean_of_a_photo_and_its_mirror_image(
    student: RefocusStudent, size: tuple[int, int]
) -> None:
    """Mirrored as the photo lies, in a file of landscape photos too."""
    once = Analyser("file", student, sizes=((64, 96),))
    twice = replace(once, self_ensemble=True)
    photo = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fit = once.fit(size)
    assert fit.transposed == (size[0] > size[1])
    whole = F.interpolate(photo, fit.padded)  # nothing is padded, which would be mirrored with it
    fit = replace(fit, size=fit.padded)
    made = twice.analyse(whole, fit, 3).analysis
    straight = once.analyse(whole, fit, 3).analysis
    turned = once.analyse(whole.flip(-1), fit, 3).analysis
    for field in ("stack", "sharp", "detail", "dioptres"):
        mean = (getattr(straight, field) + getattr(turned, field).flip(-1)) / 2
        torch.testing.assert_close(getattr(made, field), mean)
        assert not torch.equal(getattr(made, field), getattr(straight, field))
    torch.testing.assert_close(made.positions, (straight.positions + turned.positions) / 2)
    mirrored = twice.analyse(whole.flip(-1), fit, 3).analysis
    torch.testing.assert_close(mirrored.stack.flip(-1), made.stack)
