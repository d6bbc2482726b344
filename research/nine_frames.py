"""The README's picture: a photo beside the nine frames that `pocketfocus refocus` made of it.

    python -m pocketfocus.research.nine_frames PHOTO build/refocused docs/reference/nine-frames.jpg

writes it; docs/measured.md has the commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pocketfocus.data.optics import distance
from pocketfocus.photos.images import FORMATS, load_photo
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import write_atomic

COLUMNS = 3
GAP, HEAD = 8, 24  # pixels between pictures; of the line above each
INK, PAPER = "#222222", "white"
QUALITY = 90  # JPEG


def sheet(photo: Image.Image, frames: Sequence[Image.Image]) -> Image.Image:
    """The photo to the left, in the frames' size, and the frames in rows of three, each titled."""
    width, height = frames[0].size
    rows = -(-len(frames) // COLUMNS)
    size = (COLUMNS + 1) * (width + GAP) - GAP, rows * (height + HEAD + GAP) - GAP
    made, font = Image.new("RGB", size, PAPER), ImageFont.load_default(HEAD * 2 / 3)
    draw = ImageDraw.Draw(made)

    def place(picture: Image.Image, column: int, row: int, title: str) -> None:
        left, top = column * (width + GAP), row * (height + HEAD + GAP)
        draw.text((left, top + HEAD / 6), title, fill=INK, font=font)
        made.paste(picture, (left, top + HEAD))

    resized = photo.resize((width, height), Image.Resampling.LANCZOS)
    place(resized, 0, (rows - 1) // 2, "the photo")
    for index, frame in enumerate(frames):
        place(frame, 1 + index % COLUMNS, index // COLUMNS, f"focus {index}: {distance(index)}")
    return made


@reported("nine_frames")
def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture as a JPEG."""
    parser = argparse.ArgumentParser(description="a photo beside the nine frames made of it")
    parser.add_argument("photo", type=Path)
    parser.add_argument("refocused", type=Path, help="the folder of `pocketfocus refocus --out`")
    parser.add_argument("out", type=Path)
    given = parser.parse_args(arguments)
    photo, files = load_photo(given.photo), sorted(given.refocused.glob("frame_*.png"))
    if not files:
        raise UserError(f"{given.refocused} holds no frames: run `pocketfocus refocus` first")
    made = sheet(photo, [Image.open(file, formats=FORMATS).convert("RGB") for file in files])
    with write_atomic(given.out) as scratch:
        made.save(scratch, "JPEG", quality=QUALITY)


if __name__ == "__main__":
    main()
