"""What everything agrees on: how many frames a stack has, and in which order a size is given."""

from __future__ import annotations

from pocketfocus.run.errors import UserError

FRAMES = 9  # of a stack, from near (5 cm) to infinity, evenly spaced in dioptres
POSITIONS = tuple(map(float, range(FRAMES)))
IMAGES = FRAMES + 1  # of a rendered scene: the frames, and the picture that is sharp everywhere
MULTIPLE = 64  # of pixels, the sides of what a model of any size takes
FRAMES_SIDE = 1280  # pixels of the longer side of a photo's nine frames, unless said otherwise
RUNS, RUNS_WITH_PUBLISHED = 50, 40  # timed calls a file, and from which on the reference's 25 steps
SELF_ENSEMBLE = "@self-ensemble"  # after the name of a student or its file: analysed mirrored too
FIRST_LOOK = "first.jpg"  # in the folder of a run: a photo, refocused
Size = tuple[int, int]
"""(height, width) in pixels; only Pillow's own calls take (width, height)."""


def size_text(size: Size) -> str:
    """Return a size as people write it, width first: (640, 896) is "896x640"."""
    height, width = size
    return f"{width}x{height}"


def check_position(position: object) -> None:
    """Raise UserError unless `position` is one of the nine focal positions, a whole number."""
    if position not in range(FRAMES):
        raise UserError(
            f"position {position!r} is outside 0..{FRAMES - 1}: give a whole number from 0 (near, "
            f"5 cm) to {FRAMES - 1} (infinity)"
        )
