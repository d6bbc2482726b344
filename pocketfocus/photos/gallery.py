"""What the user gets of nine frames of a photo: pictures, a video, and a page to tap on.

Legend: H, W. Frames are sRGB, frame 0 near (5 cm), frame 8 at infinity.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pocketfocus.data.optics import distance
from pocketfocus.photos.focusmap import focus_grid
from pocketfocus.photos.images import Pixels, data_uri, encoded, size_of
from pocketfocus.photos.pixels import resized, shortened
from pocketfocus.photos.refocusing import Refocused
from pocketfocus.run.constants import FRAMES, FRAMES_SIDE, check_position
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_set

COLOURS = "viridis"
FRAME_MS = 120
PAGE, TITLE = "index.html", "Refocused photo · pocketfocus"
HEAD = 4096  # bytes of a page in which its title is
FOCUS_MAP, GIF, MP4, SHARP = "focus_map.png", "stack.gif", "stack.mp4", "all_in_focus.png"
FRAME_FILES = tuple(f"frame_{index}.png" for index in range(FRAMES))
FILES = (*FRAME_FILES, SHARP, GIF, MP4, FOCUS_MAP, PAGE)


def check_not_replaced(photo: Path, out_dir: Path) -> None:
    """Raise UserError where one of the files of nine frames in `out_dir` would be the photo, or
    others that are not all there as an earlier refocusing made them."""
    there = [name for name in FILES if os.path.lexists(out_dir / name)]
    for name in there:
        file = out_dir / name
        if file.exists() and photo.exists() and file.samefile(photo):
            raise UserError(
                f"{photo} is {name} in {out_dir}, which nine frames would replace: name another "
                "folder with --out"
            )
    if there and not (len(there) == len(FILES) and _is_own(out_dir / PAGE)):
        raise UserError(
            f"{out_dir} holds {_and_more(there)} of another origin, which nine frames would "
            "replace: name another folder with --out"
        )


def _is_own(page: Path) -> bool:
    """Whether a page was written here."""
    with suppress(OSError), page.open("rb") as file:
        return TITLE.encode() in file.read(HEAD)
    return False


def _and_more(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more files"


def save_refocus(
    made: Refocused, photo: Pixels, position: int, out_dir: Path, model_name: str
) -> list[Path]:
    """Write the nine frames of a photo [H, W, 3] in sRGB into `out_dir`; returns the files.

    frame_0.png … frame_8.png and all_in_focus.png as large as they are, made and written one by
    one; stack.gif and stack.mp4 (near to far and back), focus_map.png, and index.html, which needs
    no other file, at most `FRAMES_SIDE` pixels long. All of them or none: other files in `out_dir`
    stay, those of the same names are replaced. UserError when the folder cannot be written or the
    disk is full.
    """
    check_position(position)
    with write_set(Path(out_dir)) as scratch:
        frames = [
            _saved(made.picture(float(index)), scratch / name)
            for index, name in enumerate(FRAME_FILES)
        ]
        sharp = _saved(made.picture(float(position), 0.0), scratch / SHARP)
        focus = made.focus_map()
        (scratch / GIF).write_bytes(_gif(frames))
        _save_mp4(frames, scratch / MP4)
        (scratch / FOCUS_MAP).write_bytes(_focus_figure(focus.numpy()))
        names = sorted(path.name for path in scratch.iterdir())
        pictures = {
            "frames": [_embedded(frame) for frame in frames],
            "photo": _embedded(Image.fromarray(resized(photo, size_of(frames[0])))),
            "sharp": _embedded(sharp),
        }
        words = {"position": position, "model_name": model_name, "names": names}
        words |= dict(zip(("height", "width"), size_of(frames[0]), strict=True))
        (scratch / PAGE).write_text(_page(pictures, focus, words), encoding="utf-8")
    return [Path(out_dir) / name for name in (*names, PAGE)]


def _saved(picture: Pixels, path: Path) -> Image.Image:
    """Write a picture as PNG, and return it as it is shown."""
    path.write_bytes(encoded(Image.fromarray(picture), "PNG"))
    return Image.fromarray(shortened(picture, FRAMES_SIDE))


def _there_and_back(frames: list[Image.Image]) -> list[Image.Image]:
    """Play near to far and back to the frame after the nearest, so that it can be repeated."""
    return frames + frames[-2:0:-1]


def _gif(frames: list[Image.Image]) -> bytes:
    """Return an endless GIF near to far and back, all frames in the same 256 colours."""
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames]))
    palette = strip.reduce(3).quantize(256)  # a ninth of the pixels is plenty for it
    mapped = _there_and_back([frame.quantize(palette=palette) for frame in frames])
    rest = mapped[1:]
    return encoded(mapped[0], "GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0)


def _save_mp4(frames: list[Image.Image], path: Path, rounds: int = 3) -> None:
    """Write H.264 that every phone plays, `rounds` times near to far and back.

    yuv420p needs even sides: an odd last row or column is left out.
    OSError when ffmpeg cannot write all frames, UserError when there is no ffmpeg.
    """
    width, height = (side - side % 2 for side in frames[0].size)
    played = _there_and_back(frames) * rounds
    name = str(path.absolute())  # before a colon ffmpeg would take another for a protocol's
    try:
        writer = imageio_ffmpeg.write_frames(
            name,
            (width, height),
            fps=1000 / FRAME_MS,
            codec="libx264",
            macro_block_size=2,
            quality=None,
            output_params=["-crf", "16", "-movflags", "+faststart"],
            ffmpeg_log_level="quiet",
        )
        writer.send(None)
    except RuntimeError as error:  # imageio-ffmpeg's wheel brings one for all usual machines
        raise UserError(
            f"cannot write {path.name}: no ffmpeg found; install ffmpeg or imageio-ffmpeg"
        ) from error
    try:
        try:
            for frame in played:
                writer.send(np.ascontiguousarray(np.asarray(frame)[:height, :width]))
        finally:
            writer.close()
        written, _ = imageio_ffmpeg.count_frames_and_secs(name)
    except (OSError, RuntimeError):  # their texts are ffmpeg's whole log
        written = 0
    if written != len(played):
        raise OSError(f"ffmpeg could not write all of {path.name}")


def _focus_figure(focus: NDArray[np.float32]) -> bytes:
    """Return the map of best focus [H, W] in colours, with its legend, as PNG."""
    rows, columns = focus.shape
    scale = 6.0 / max(rows, columns)  # inches a pixel
    size = max(columns * scale, 2.0) + 1.6, max(rows * scale, 2.4)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set_axis_off()
    picture = axes.imshow(focus, cmap=COLOURS, vmin=0, vmax=FRAMES - 1, interpolation="nearest")
    legend = figure.colorbar(picture, ax=axes, shrink=0.9, ticks=range(FRAMES))
    legend.set_ticklabels([f"{index}  {distance(index)}" for index in range(FRAMES)])
    legend.set_label("sharpest at focal position")
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _embedded(image: Image.Image) -> str:
    """Hold a picture inside the page, as WebP."""
    return data_uri(encoded(image, "WEBP", quality=90, method=4), "webp")


def _page(pictures: Mapping[str, object], focus: Tensor, words: Mapping[str, object]) -> str:
    """Return the self-contained page: its pictures, the grid of best focus, and the words around
    them."""
    grid = focus_grid(focus)
    colours = colormaps[COLOURS](focus.numpy() / (FRAMES - 1), bytes=True)[..., :3]
    steps = [colormaps[COLOURS](index / 16, bytes=True)[:3] for index in range(17)]
    values = {
        "title": TITLE,
        "map": _embedded(Image.fromarray(np.ascontiguousarray(colours))),
        "legend": ", ".join(f"rgb({r} {g} {b})" for r, g, b in steps),
        "grid": {"columns": grid.shape[1], "cells": "".join(map(str, grid.flatten().tolist()))},
        "distances": [distance(index) for index in range(FRAMES)],
    }
    templates = Environment(
        loader=PackageLoader("pocketfocus.photos"), autoescape=True, undefined=StrictUndefined
    )
    return templates.get_template("refocus.html").render({**values, **pictures, **words})
