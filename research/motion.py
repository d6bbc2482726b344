"""How the frames of real focal stacks move against each other as the lens focuses.

    python -m pocketfocus.research.motion learn2refocus-sample

Every stack is registered by itself (`photos.registration`), from its frames alone; what it takes
from the first frame to the last says how the lens breathes: its magnification, and its distortion,
which is the same in all stacks of one lens.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

import torch

from pocketfocus.benchmarks.truth import source_name, true_stacks
from pocketfocus.data.stacks import FocalStack
from pocketfocus.photos.registration import farthest_px, motion, undone
from pocketfocus.run.errors import reported
from pocketfocus.run.metrics import psnr

HEADER = "| stack | moved, px | magnification, % | distortion, % | copy, dB | registered |"


def row(stack: FocalStack) -> str:
    """A row of the table: how far the frame that moves most moves, a root mean square in the file's
    pixels; from the first frame to the last how much farther from the centre things lie, near it
    and, on top, half of the shorter side away; and the PSNR of frames as every other one."""
    found = motion(stack.frames, stack.aspect)
    size = (stack.frames.shape[-2], stack.frames.shape[-1])
    grown = (found[-1] - found[0])[[2, 5, 6]]
    magnified, distorted = 50 * float(grown[0] + grown[1]), 100 * float(grown[2])
    still = undone(stack.frames, found, stack.aspect)
    copied = [
        fmean(psnr(a, b) for a, b in combinations(frames, 2)) for frames in (stack.frames, still)
    ]
    far = farthest_px(found, size, stack.aspect)
    figures = f"{far:.2f} | {magnified:+.2f} | {distorted:+.2f} | {copied[0]:.2f} | {copied[1]:.2f}"
    return f"| {stack.name} | {figures} |"


@reported("motion")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row of each stack."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.motion", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stacks", metavar="SOURCE", help="as `evaluate --stacks`")
    parser.add_argument("--scenes", type=int, default=99, help="at most")
    options = parser.parse_args(arguments)
    stacks, _ = true_stacks(options.stacks, options.scenes, None)
    print(f"{source_name(options.stacks)}\n\n{HEADER}\n| --- |{' ---: |' * 5}")
    with torch.inference_mode():
        for stack in stacks:
            print(row(stack), flush=True)


if __name__ == "__main__":
    main()
