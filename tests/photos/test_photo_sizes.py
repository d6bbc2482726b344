"""Working sizes: multiples of 64 within a budget, near to the photo's aspect ratio."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfocus.models.reference import published_size
from pocketfocus.photos.images import fit_size, photo_size
from pocketfocus.run.constants import Size

sides = st.integers(16, 20_000)
photos = st.tuples(sides, sides).filter(lambda s: max(s) <= 16 * min(s))
budgets = st.integers(16 * 64**2, 1_000_000)


@given(photos, budgets)
def test_fit_size_keeps_its_bounds(photo: tuple[int, int], max_pixels: int) -> None:
    height, width = fit_size(photo, max_pixels)
    assert width % 64 == height % 64 == 0
    assert min(width, height) >= 64
    assert width * height <= max_pixels


@given(photos, budgets)
def test_fit_size_is_not_beaten(photo: tuple[int, int], max_pixels: int) -> None:
    """No larger size has as good an aspect ratio, and none as large a better one."""
    height, width = fit_size(photo, max_pixels)
    aspect = math.log(photo[1] / photo[0])

    def stretch(w: int, h: int) -> float:
        return abs(math.log(w / h) - aspect)

    own = stretch(width, height)
    for w in range(64, max_pixels // 64 + 1, 64):
        for h in {max(64, h) for h in range(height - 128, height + 192, 64)}:
            if w * h <= max_pixels and w * h > width * height:
                assert stretch(w, h) > own - 1e-9
            if w * h <= max_pixels and w * h == width * height:
                assert stretch(w, h) >= own - 1e-9


@given(photos, budgets)
def test_fit_size_stretches_little_and_uses_its_budget(
    photo: tuple[int, int], max_pixels: int
) -> None:
    height, width = fit_size(photo, max_pixels)
    narrow = math.sqrt(max_pixels / (max(photo) / min(photo))) / 64  # tiles across, before rounding
    stretch = abs(math.log(width / height * photo[0] / photo[1]))
    assert stretch <= math.log(1 + 1 / max(1.0, math.floor(narrow)))
    assert width * height >= max_pixels * (0.5 if narrow >= 2 else 0.25)


@pytest.mark.parametrize(
    ("photo", "max_pixels", "expected"),
    [
        ((3000, 4000), 256 * 256, (192, 256)),
        ((4000, 3000), 256 * 256, (256, 192)),
        ((512, 512), 256 * 256, (256, 256)),
        ((1080, 1920), 256 * 256, (192, 320)),
        ((256, 16), 256 * 256, (1024, 64)),
        ((3000, 4000), 500_000, (576, 768)),
        ((30, 30), 64 * 64, (64, 64)),
    ],
)
def test_fit_size_of_usual_photos(
    photo: tuple[int, int], max_pixels: int, expected: tuple[int, int]
) -> None:
    assert fit_size(photo, max_pixels) == expected


def test_fit_size_needs_room_for_one_tile() -> None:
    with pytest.raises(ValueError, match="4095 pixels"):
        fit_size((100, 100), 4095)


@given(photos, budgets)
def test_photo_size_has_the_photos_aspect(photo: tuple[int, int], max_pixels: int) -> None:
    working = fit_size(photo, max_pixels)
    height, width = photo_size(working, photo)
    assert width % 2 == height % 2 == 0
    if max(photo) <= 2 * min(photo):
        assert height >= working[0]
        assert width >= working[1]
        assert working[0] == height or working[1] == width
    assert abs(width - height * photo[1] / photo[0]) <= 1 + photo[1] / photo[0]


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((20, 320), (32, 512)),  # 256x4096 once
        ((250, 4000), (250, 4000)),  # its own
        ((100, 100), (256, 256)),
        ((100, 190), (256, 486)),
    ],
)
def test_a_long_photo_is_not_blown_up_to_a_square_s_side(
    photo: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert photo_size((256, 256), photo) == expected


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ((896, 640), (832, 576)),  # a frame of the data set
        ((640, 896), (576, 832)),
        ((576, 832), (576, 832)),  # as it is
        ((500, 333), (448, 320)),  # floored, never enlarged
        ((3024, 4032), (576, 832)),
        ((4032, 3024), (832, 576)),
        ((40, 100), (64, 64)),  # but a side below 64
        ((70, 9000), (64, 7808)),
    ],
)
def test_published_size_of_usual_photos(photo: tuple[int, int], expected: tuple[int, int]) -> None:
    assert published_size(photo) == expected


@given(photos)
def test_published_size_is_of_the_first_scale_that_holds(photo: tuple[int, int]) -> None:
    """In whole hundredths; where a side is a multiple at such a scale, rounding may floor it."""

    def sizes(n: int) -> list[Size]:
        rows, columns = (
            sorted({max(1, (side * (100 - n) - less) // 6400) * 64 for less in (1, 0)})
            for side in photo
        )
        return [(height, width) for height in rows for width in columns]

    first = next(n for n in range(100) if math.prod(sizes(n)[0]) <= 500_000)
    last = next(n for n in range(100) if math.prod(sizes(n)[-1]) <= 500_000)
    found = published_size(photo)
    assert any(found in sizes(n) for n in range(first, last + 1)) and math.prod(found) <= 500_000
