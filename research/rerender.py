"""Real focal stacks against the same scenes, rendered again from their own picture and depth.

    python -m pocketfocus.research.rerender learn2refocus-sample

What is sharp somewhere in a stack makes a picture that is sharp everywhere, and where it is sharp
says how far it is. Rendered again by this project's optics, the scene is as laid out as the real
one: what is left between both is the renderer's. Each row has lights pressed together by another
shoulder of the tone curve before they were blurred. Pictures are `blur.SIDE` pixels wide.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pocketfocus.benchmarks.truth import source_name, true_stacks
from pocketfocus.data.optics import (
    Camera,
    Shoulder,
    dioptres,
    linear_to_srgb,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.data.photo_scenes import APERTURES, layers_of
from pocketfocus.photos.focusmap import all_in_focus, best_focus, guided, luma, sharpness
from pocketfocus.research.blur import as_seen, at_all_positions
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.metrics import psnr

SHOULDERS = (
    Shoulder(0, 8),
    Shoulder(0.5, 4),
    Shoulder(1, 4),
    Shoulder(0.5, 8),
    Shoulder(1, 8),
    Shoulder(2, 8),
)
SURE = 3e-4  # sharpness at which half of a place's own word is taken for its distance
SMOOTHED = (6, 1e-3)  # of the map of distances: radius in pixels, epsilon of `guided`
APERTURE = Camera.aperture_mm * sum(APERTURES) / 2


def distances(frames: Tensor, sharp: Tensor) -> Tensor:
    """Return dioptres [H, W] of a stack [9, 3, H, W] by where it is sharpest; plain places take
    their neighbours' word, up to the edges of its sharp picture [3, H, W]."""
    sure = sharpness(frames).amax(0)[None, None]
    sure = sure / (sure + SURE)
    guide = luma(sharp[None])
    said = guided(best_focus(frames)[None, None] * sure, guide, *SMOOTHED)
    position = said / guided(sure, guide, *SMOOTHED).clamp(min=1e-3)
    return dioptres(0) - (dioptres(0) - dioptres(1)) * position[0, 0].clamp(0, FRAMES - 1)


def rerendered(sharp: Tensor, depth: Tensor, shoulder: Shoulder) -> Tensor:
    """Render a stack [9, 3, H, W] in [-1, 1] of a picture [3, H, W] at dioptres [H, W]."""
    light = shoulder.undone(srgb_to_linear((sharp + 1) / 2)).permute(1, 2, 0)
    layers = layers_of(light.contiguous().numpy(), depth.numpy().astype(np.float32))
    linear = shoulder.applied(render_stack(layers, Camera(aperture_mm=APERTURE)))
    return 2 * linear_to_srgb(linear) - 1


def in_light_of(made: Tensor, truth: Tensor) -> Tensor:
    """Return an image [3, H, W] with a field of gains, a polynomial of degree two, that brings its
    light nearest to the truth's: a lens's light falls off by another amount at every focus."""
    grey, wanted = ((image.mean(0) + 1) / 2 for image in (made, truth))
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in grey.shape), indexing="ij")
    parts = torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y])
    system = (parts * grey).flatten(1).T.double()
    gains = torch.linalg.lstsq(system, wanted.reshape(-1, 1).double()).solution[:, 0].float()
    field = (parts * gains[:, None, None]).sum(0)
    return (made + 1) * field - 1


def study(stacks: Sequence[Tensor]) -> list[tuple[Shoulder, float, float, float]]:
    """Return for every shoulder the PSNR of the first frames, of the last, and of all, in dB, means
    over stacks [9, 3, H, W]."""
    found = {shoulder: list[list[float]]() for shoulder in SHOULDERS}
    for frames in stacks:
        sharp = all_in_focus(frames)
        depth = distances(frames, sharp)
        for shoulder, figures in found.items():
            made = rerendered(sharp, depth, shoulder)
            pairs = zip(made, frames, strict=True)
            figures.append([psnr(in_light_of(one, true), true) for one, true in pairs])
    rows = []
    for shoulder, figures in found.items():
        mean = np.mean(figures, 0)
        rows.append((shoulder, float(mean[0]), float(mean[-1]), float(mean.mean())))
    return rows


@reported("rerender")
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row of each shoulder."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.rerender", description=__doc__.splitlines()[0]
    )
    parser.add_argument("stacks", metavar="SOURCE", help="as `evaluate --stacks`")
    parser.add_argument("--scenes", type=int, default=99, help="at most")
    options = parser.parse_args(arguments)
    stacks, _ = true_stacks(options.stacks, options.scenes, None, register=True)
    with torch.inference_mode():
        seen = [as_seen(stack) for stack in at_all_positions(stacks)]
        if not seen:
            raise UserError(f"{options.stacks} has no frames at 0 to {FRAMES - 1}: name others")
        rows = study(seen)
    print(f"{source_name(options.stacks)}, {len(seen)} stacks\n")
    print("| strength | power | frame 0, dB | frame 8 | all nine |\n|" + " ---: |" * 5)
    for shoulder, *figures in rows:
        said = " | ".join(f"{figure:.2f}" for figure in figures)
        print(f"| {shoulder.strength:g} | {shoulder.power:g} | {said} |")


if __name__ == "__main__":
    main()
