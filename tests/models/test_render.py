"""Images at the photo's own size: against PyTorch's enlargement, by tiles, at any focus."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.data.optics import one_hot
from pocketfocus.models.render import (
    FIXED,
    PART,
    TILE,
    Analysed,
    Render,
    aperture_of,
    focus_weights,
    padded,
    span_of,
    taps,
    tiles_along,
)
from pocketfocus.models.student import Analysis, build_student
from pocketfocus.run.constants import FRAMES, IMAGES
from pocketfocus.run.errors import UserError
from tests.conftest import change_pictures

SMALL, FULL = (48, 64), (151, 205)
OWN = 2
PHONES = aperture_of(1.0)


def rand(*shape: int, seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*shape, generator=generator)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return rand(1, 3, *FULL, seed=0, low=-0.7, high=0.7)


@pytest.fixture(scope="module")
def analysed(photo: Tensor) -> Analysed:
    """What a student may say: small changes of which nothing is clamped, none of its own frame."""
    small = F.interpolate(photo, SMALL, mode="area")
    images = small + rand(IMAGES, 3, *SMALL, seed=1, low=-0.2, high=0.2)
    detail = rand(1, IMAGES, *SMALL, seed=2, low=-0.1, high=0.1)
    images[OWN], detail[:, OWN] = small[0], 0
    dioptres, positions = torch.zeros(1, 1, 12, 16), one_hot(OWN)
    analysis = Analysis(images[:FRAMES], images[FRAMES:], detail, dioptres, positions)
    return Analysed(small, analysis, SMALL)


def enlarged(x: Tensor) -> Tensor:
    return F.interpolate(x, FULL, mode="bilinear", align_corners=False)


def expected(analysed: Analysed, photo: Tensor, image: int) -> Tensor:
    """The photo, the change enlarged, and a gain times what the analysis is too coarse for."""
    images = torch.cat([analysed.analysis.stack, analysed.analysis.sharp])
    gain = analysed.analysis.detail[:, image : image + 1]
    change = images[image : image + 1] - analysed.small
    small = analysed.small
    return photo + enlarged(change - gain * small) + enlarged(gain) * photo


@pytest.mark.parametrize("frame", range(FRAMES))
def test_a_frame_is_enlarged_as_pytorch_does(analysed: Analysed, photo: Tensor, frame: int) -> None:
    made = analysed.render(photo, focus_weights(frame), PHONES)
    torch.testing.assert_close(made, expected(analysed, photo, frame), atol=2e-5, rtol=0)


def test_its_own_focus_gives_the_photo_exactly(analysed: Analysed, photo: Tensor) -> None:
    assert torch.equal(analysed.render(photo, focus_weights(OWN), PHONES), photo)
    other = analysed.render(photo, focus_weights(OWN + 1), PHONES)
    assert (other - photo).abs().max() > 0.1


def test_a_students_own_frame_is_the_photo_through_all_of_it(photo: Tensor) -> None:
    torch.manual_seed(0)
    student = build_student("micro").eval()
    change_pictures(student)
    small = F.interpolate(photo, (64, 64), mode="area")
    with torch.no_grad():
        analysed = Analysed(small, student.analyse(small, one_hot(7)), (64, 64))
        assert torch.equal(analysed.render(photo, focus_weights(7), PHONES), photo)
        assert not torch.equal(analysed.render(photo, focus_weights(6), PHONES), photo)


def test_between_two_planes_lies_their_mean(analysed: Analysed, photo: Tensor) -> None:
    near, far = (analysed.render(photo, focus_weights(n), PHONES) for n in (4, 5))
    between = analysed.render(photo, focus_weights(4.5), PHONES)
    torch.testing.assert_close(between, (near + far) / 2, atol=1e-5, rtol=0)


def test_apertures(analysed: Analysed, photo: Tensor) -> None:
    """0 is sharp everywhere, at any focus; 1 a frame; between and beyond lie on their line."""
    frame, sharp = (expected(analysed, photo, image) for image in (6, FRAMES))
    for aperture in (0.0, 0.5, 1.0, 2.0):
        made = analysed.render(photo, focus_weights(6), aperture_of(aperture))
        line = (sharp + aperture * (frame - sharp)).clamp(-1, 1)
        torch.testing.assert_close(made, line, atol=2e-5, rtol=0)
    closed = [analysed.render(photo, focus_weights(n), aperture_of(0)) for n in (0, 8)]
    assert torch.equal(*closed)


@pytest.mark.parametrize("tile", [(37, 53), (151, 64), (1, 205), (50, 50)])
def test_tiles_are_the_whole_bit_for_bit(
    analysed: Analysed, photo: Tensor, tile: tuple[int, int]
) -> None:
    focus, aperture = focus_weights(5.3), aperture_of(1.4)
    whole = analysed.render(photo, focus, aperture)
    made = torch.full_like(whole, torch.nan)
    for top in range(0, FULL[0], tile[0]):
        for left in range(0, FULL[1], tile[1]):
            below, right = min(top + tile[0], FULL[0]), min(left + tile[1], FULL[1])
            spans = span_of(top, below, FULL[0], SMALL[0]), span_of(left, right, FULL[1], SMALL[1])
            part = photo[..., top:below, left:right]
            made[..., top:below, left:right] = analysed.render(part, focus, aperture, spans, FULL)
    assert torch.equal(made, whole)


@pytest.mark.parametrize("full", [7, 48, 100, 4032])
def test_taps_are_bilinear_and_read_within_their_span(full: int) -> None:
    small = 48
    signal = rand(1, 1, small, seed=3)
    truth = F.interpolate(signal, full, mode="linear", align_corners=False)[0, 0]
    for start, stop in ((0, full), (0, 1), (full - 1, full), (full // 3, full // 3 + 3)):
        span = span_of(start, stop, full, small)
        assert 0 <= span.low < span.high <= small
        weights = taps(span, full, small)
        torch.testing.assert_close(weights.sum(1), torch.ones(stop - start))
        torch.testing.assert_close(
            weights @ signal[0, 0, span.low : span.high], truth[start:stop], atol=1e-5, rtol=0
        )


def test_edges_that_were_added_do_not_count(analysed: Analysed, photo: Tensor) -> None:
    """Where the analysis has more than the photo, to be a multiple, that part is not read."""
    added = [
        F.pad(tensor, (0, 5, 0, 3), value=9.0)
        for tensor in (analysed.small, *analysed.analysis[:3])
    ]
    small, stack, sharp, detail = added
    found = analysed.analysis._replace(stack=stack, sharp=sharp, detail=detail)
    padded = Analysed(small, found, SMALL)
    made = [one.render(photo, focus_weights(3.5), PHONES) for one in (analysed, padded)]
    assert torch.equal(*made)


@pytest.mark.parametrize("focus", [-0.1, 8.01, float("nan")])
def test_a_focus_outside_is_refused_in_one_line(focus: float) -> None:
    with pytest.raises(UserError, match=r"focus .* is outside 0\.\.8: give a number") as raised:
        focus_weights(focus)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("aperture", [-1.0, 2.5, float("nan")])
def test_an_aperture_outside_is_refused_in_one_line(aperture: float) -> None:
    with pytest.raises(UserError, match=r"aperture .* is outside 0\.\.2: give 0 for") as raised:
        aperture_of(aperture)
    assert "\n" not in str(raised.value)


def test_weights_of_a_focus() -> None:
    for focus in (0.0, 3.25, 8.0):
        weights = focus_weights(focus)
        assert weights.shape == (1, FRAMES) and weights.min() >= 0
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        torch.testing.assert_close(weights[0] @ torch.arange(9.0), torch.tensor(focus))


@pytest.mark.parametrize("full", [(151, 205), (300, 420), (48, 64), (31, 999)])
def test_tiles_of_fixed_shapes_are_the_image(full: tuple[int, int], analysed: Analysed) -> None:
    """As an exported file takes them, whatever the size of the photo: padded, and side by side."""
    photo = rand(1, 3, *full, seed=5, low=-0.7, high=0.7)
    focus, aperture = focus_weights(2.6), aperture_of(1.3)
    whole = analysed.render(photo, focus, aperture)
    made = torch.full_like(whole, torch.nan)
    for rows in tiles_along(full[0], SMALL[0]):
        for columns in tiles_along(full[1], SMALL[1]):
            part = (..., slice(rows.start, rows.stop), slice(columns.start, columns.stop))
            feeds = padded(analysed.feeds(photo[part], focus, aperture, (rows, columns), full))
            assert tuple(tuple(tensor.shape) for tensor in feeds) == FIXED
            tile = Render()(*feeds)
            made[part] = tile[..., : rows.stop - rows.start, : columns.stop - columns.start]
    torch.testing.assert_close(made, whole, atol=2e-6, rtol=0)


@pytest.mark.parametrize("full, small", [(864, 320), (320, 320), (4032, 448), (700, 694), (5, 320)])
def test_no_tile_takes_more_of_the_analysis_than_a_file_does(full: int, small: int) -> None:
    spans = tiles_along(full, small)
    assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
    assert spans[-1].stop == full
    assert max(span.stop - span.start for span in spans) <= TILE
    assert max(span.high - span.low for span in spans) <= PART


def test_what_is_larger_than_a_file_takes_is_refused(analysed: Analysed) -> None:
    photo = rand(1, 3, TILE + 1, 9, seed=6)
    with pytest.raises(ValueError, match=r"photo is \[1, 3, 257, 9\], a file takes"):
        padded(analysed.feeds(photo, focus_weights(1), PHONES))
