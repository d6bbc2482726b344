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
from pocketfocus.data.rgbd import rgbd_pairs
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import check_replaceable, size_bytes, write_atomic

QUALITY = 90
STRIDE = 7919  # a prime: neighbours, often of one scene, do not go together
DEPTH_SHARE = 0.5  # of a photo's sides


def shrink(photo: Path, depth: Path, out: Path, factor: float) -> int:
    """Write a pair scaled down; bytes of both files."""
    with Image.open(photo, formats=("JPEG", "PNG")) as image:
        sides = (round(factor * image.width), round(factor * image.height))
        small = image.convert("RGB").resize(sides, Image.Resampling.LANCZOS)
    small.save(out / f"{photo.stem}.jpg", quality=QUALITY)
    with Image.open(depth, formats=("PNG",)) as image:
        cells = (round(DEPTH_SHARE * sides[0]), round(DEPTH_SHARE * sides[1]))
        millimetres = np.asarray(image.resize(cells, Image.Resampling.NEAREST))
    Image.fromarray(millimetres.astype(np.uint16)).save(out / f"{photo.stem}.depth.png")
    return sum(size_bytes(out / f"{photo.stem}{end}") for end in (".jpg", ".depth.png"))


def subset(folder: Path, out: Path, factor: float, limit: int) -> tuple[int, int]:
    """Write the subset; how many pairs, and bytes. UserError when not even a few fit."""
    check_replaceable(out, (SHRUNK,), "OUT")
    kinds: dict[str, list[tuple[int, str]]] = defaultdict(list)
    with write_atomic(out) as scratch:
        scratch.mkdir()
        for photo, depth in rgbd_pairs(folder):
            if depth.suffix == ".png":
                size = shrink(photo, depth, scratch, factor)
                kinds[kind_of(photo.stem)].append((size, photo.stem))
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
