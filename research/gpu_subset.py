"""Photos with depth, scaled down, to carry to a machine with a GPU for a short training.

`python -m pocketfocus.research.gpu_subset RGBD_DIR OUT [--shrink 0.75] [--megabytes 34]` copies
every photo at the scale at which scenes use it, thinning out the largest source until all of them
fit, and writes by how much they shrank into shrunk.txt.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pocketfocus.data.photo_scenes import SHRUNK, kind_of
from pocketfocus.data.rgbd import MILLIMETRE, RGBD, read_rgbd, rgbd_pairs
from pocketfocus.data.stacks import say_skipped
from pocketfocus.photos.images import BROKEN
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import check_replaceable, size_bytes, write_atomic

QUALITY = 90
STRIDE = 7919  # a prime: neighbours, often of one scene, do not go together
DEPTH_SHARE = 0.5  # of a photo's sides
FARTHEST = 65_535  # millimetres that 16 bits hold


def shrink(pair: RGBD, out: Path, factor: float) -> int:
    """Write a pair scaled down, depth in millimetres; bytes of both files."""
    height, width = pair.dioptres.shape
    sides = (round(factor * width), round(factor * height))
    small = Image.fromarray(pair.photo).resize(sides, Image.Resampling.LANCZOS)
    small.save(out / f"{pair.name}.jpg", quality=QUALITY)
    cells = (round(DEPTH_SHARE * sides[0]), round(DEPTH_SHARE * sides[1]))
    nearest = Image.fromarray(pair.dioptres).resize(cells, Image.Resampling.NEAREST)
    millimetres = (1 / (MILLIMETRE * np.asarray(nearest))).round().clip(1, FARTHEST)
    Image.fromarray(millimetres.astype(np.uint16)).save(out / f"{pair.name}.depth.png")
    return sum(size_bytes(out / f"{pair.name}{end}") for end in (".jpg", ".depth.png"))


def subset(folder: Path, out: Path, factor: float, limit: int) -> tuple[int, int]:
    """Write the subset; how many pairs, and bytes. Pairs that are broken are left out, saying so;
    UserError when all are, or not even a few fit."""
    check_replaceable(out, (SHRUNK,), "OUT")
    if not 0 < factor <= 1:
        raise UserError(f"--shrink {factor:g} scales nothing down: give more than 0 up to 1")
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    with write_atomic(out) as scratch:
        scratch.mkdir()
        for photo, depth in rgbd_pairs(folder):
            try:
                size = shrink(read_rgbd(photo, depth), scratch, factor)
            except (UserError, *BROKEN) as error:
                say_skipped(photo.stem, str(error))
                continue
            kinds[kind_of(photo.stem)].append((size, photo.stem))
        if not kinds:
            raise UserError(f"{folder} holds no photo with depth that can be read: name another")
        total = sum(size for pairs in kinds.values() for size, _ in pairs)
        while total > limit:
            largest = max(kinds.values(), key=len, default=[])
            if len(largest) < 2:
                raise UserError(f"{limit} bytes hold no subset of {folder}: raise --megabytes")
            size, name = largest.pop(STRIDE % len(largest))
            for end in (".jpg", ".depth.png"):
                (scratch / f"{name}{end}").unlink()
            total -= size
        (scratch / SHRUNK).write_text(f"{factor}\n", encoding="utf-8")
    return sum(map(len, kinds.values())), total


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--shrink", type=float, default=0.75)
    parser.add_argument("--megabytes", type=float, default=34.0)
    options = parser.parse_args(arguments)
    with reported("gpu_subset"):
        count, size = subset(
            options.folder, options.out, options.shrink, int(1e6 * options.megabytes)
        )
        print(f"{options.out}: {count} photos with depth, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
