"""What of the rendered scenes carries over to real stacks: each step of realism left out in turn.

    python -m pocketfocus.research.realism REAL_STACKS --photos PHOTOS --out build/realism

trains one denoiser of the default reference a variant on its own scenes, all for as many steps and
from the same start, and scores it on the real stacks and on rendered validation scenes. It goes
on where it was interrupted, and ends with the tables of docs/realism.md. The second compares the
stacks themselves: the radius of the circle of confusion that every focal step adds, how much
brighter far focus is, and the contrast of detail by size, measured alike in real and rendered ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch

from pocketfocus.benchmarks.evaluate import frames_by_position, validation_stacks
from pocketfocus.benchmarks.tables import difference, markdown
from pocketfocus.data.datasets import RGBD_PAIRS, Request, open_source, textures
from pocketfocus.data.optics import blurred, srgb_to_linear
from pocketfocus.data.scenes import FULL, Photos, Realism, train_photos
from pocketfocus.data.stacks import (
    FocalStack,
    RenderedScenes,
    Source,
    StackFolder,
    cache_sources,
    read_photos,
)
from pocketfocus.distill.reference.autoencoder import initialise
from pocketfocus.distill.reference.denoiser import EncodedStacks, encode_stacks
from pocketfocus.distill.reference.phases import INITIAL_CROPS, Phase, fingerprint, train_denoiser
from pocketfocus.distill.reference.presets import build_reference
from pocketfocus.distill.train.crops import Crops, random_crops
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.model import Model, NamedModel, refocus
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.photos.focusmap import all_in_focus, best_focus, luma
from pocketfocus.run.cache import Kept
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import Row, key_of, write_atomic
from pocketfocus.run.metrics import psnr
from pocketfocus.run.progress import console, track

SIZE = (256, 256)
SCENES, VALIDATION_SCENES = 48, 12
STEPS, RATE = 80, 2e-3
CROPS = (Crops(1.0, 4, 128),)
INPUTS = (0, 4, 8)
PAIRS = 8  # of scenes in the variant with RGB-D, one in so many
SLOPES = tuple(round(0.05 * n, 2) for n in range(1, 41))  # px a focal step
FAR_STEPS = (2, 4)  # distances between the frames that blur is measured on
BANDS = (4, 8, 16, 32, 64)  # lowest frequency of each octave, cycles a frame
SHARP = 0.3  # a pixel belongs to a frame when its best focus is this near


@dataclass(frozen=True)
class Variant:
    """A way to render: photos as textures, one scene in `rgbd` from an RGB-D pair (0: none)."""

    realism: Realism = FULL
    photos: str = "all"  # all, bundled, none
    rgbd: int = 0


VARIANTS = {
    "everything": Variant(),
    "without layout": Variant(replace(FULL, layout=False)),
    "without photos as textures": Variant(photos="none"),
    "bundled photos only": Variant(photos="bundled"),
    "without foliage": Variant(replace(FULL, foliage=False)),
    "without grain, JPEG, other apertures": Variant(replace(FULL, body=False)),
    "apertures × 0.5": Variant(replace(FULL, aperture=0.5)),
    "apertures × 2": Variant(replace(FULL, aperture=2.0)),
    "an eighth from an RGB-D pair": Variant(rgbd=PAIRS),
}
WHOLE = "everything"


def sources(variant: Variant, scenes: int, photos: Photos) -> list[Source]:
    """The stacks of a variant; `photos` are those beside the bundled ones."""
    textures: Photos = {"all": [*train_photos(), *photos], "bundled": train_photos(), "none": ()}[
        variant.photos
    ]
    pairs = scenes // variant.rgbd if variant.rgbd else 0
    rendered = RenderedScenes(range(scenes - pairs), SIZE, textures, variant.realism)
    return [rendered] + ([open_source(RGBD_PAIRS, Request(pairs, SIZE))] if pairs else [])


def train(stacks: np.ndarray, folder: Path, steps: int) -> ReferencePipeline:
    """Train a reference on true stacks, uint8 [N,9,3,H,W]; its autoencoder stays as it starts,
    linear."""
    torch.manual_seed(0)
    pipeline, generator = build_reference(), torch.Generator().manual_seed(0)
    crops = random_crops(stacks, INITIAL_CROPS, CROPS[0].size, generator)
    initialise(pipeline.vae, crops.flatten(0, 1))
    pipeline.vae.eval().requires_grad_(False)
    encoded = EncodedStacks(stacks, encode_stacks(pipeline, stacks))
    schedule, spec = Schedule(steps=steps, learning_rate=RATE), {"pixels": fingerprint(stacks)}
    train_denoiser(pipeline, encoded, folder, Phase(schedule, CROPS, config=spec))
    return pipeline


def gains(
    model: Model, stacks: Sequence[FocalStack], inputs: Sequence[int] = INPUTS
) -> dict[str, float]:
    """Return by scene the PSNR above that of repeating the photo, off the diagonal, in dB; a scene
    without any of the input positions is left out."""
    found = {}
    for stack in track(stacks, "scoring", len(stacks)):
        truth, gained = frames_by_position(stack), []
        for position in [p for p in inputs if p in truth]:
            photo = truth[position]
            made = refocus(model, photo, position, stack.name)
            for output, frame in truth.items():
                if not torch.equal(frame, photo):
                    gained.append(psnr(made[output][None], frame) - psnr(photo, frame))
        if gained:
            found[stack.name] = fmean(gained)
    return found


@dataclass(frozen=True)
class Study:
    """What all variants have in common: photos as textures, and stacks of each kind to score on."""

    out: Path
    scenes: int
    steps: int
    photos: Photos
    tests: Mapping[str, Sequence[FocalStack]]

    def measure(self, name: str, variant: Variant) -> Row:
        """Train and score one variant, or read what was measured before; kept in `out`."""
        key = key_of(
            variant=asdict(variant),
            scenes=self.scenes,
            steps=self.steps,
            photos=[list(p.shape) for p in self.photos],
            tests={kind: [s.name for s in stacks] for kind, stacks in self.tests.items()},
        )
        kept = Kept(self.out / f"{key}.json", key)
        if kept.fields:
            return kept.fields
        folder = self.out / name.replace(" ", "-").replace(",", "")
        rendered = sources(variant, self.scenes, self.photos)
        pixels = cache_sources(folder / "stacks", rendered, SIZE).pixels
        model = NamedModel("reference", None, train(pixels, folder, self.steps))
        kept.save(variant=name, **{kind: gains(model, test) for kind, test in self.tests.items()})
        return kept.fields


def realism_table(rows: Sequence[Row], kinds: Sequence[str]) -> str:
    """Show the mean gain of each variant, and its difference to all with a standard error."""
    whole = next(row for row in rows if row["variant"] == WHOLE)
    lines = []
    for row in rows:
        cells = [row["variant"]]
        for kind in kinds:
            values = list(row[kind].values())
            cells.append(f"{fmean(values):+z.2f}")
            paired = [row[kind][scene] - whole[kind][scene] for scene in row[kind]]
            cells.append("–" if row is whole else difference(paired))
        lines.append(cells)
    heads = [head for kind in kinds for head in (f"{kind}: over copy", "against everything")]
    return markdown(["scenes", *heads], lines)


def blur_slope(stack: FocalStack) -> float:
    """Return the pixels of blur radius a focal step: what turns the areas sharp in one frame into
    the others.

    One disc radius, in proportion to the distance between frames, has the least squared error in
    linear light over all pairs `FAR_STEPS` apart and all pixels that are sharp in the first.
    UserError when no pixel is.
    """
    linear = srgb_to_linear((stack.frames + 1) / 2)
    focus = best_focus(stack.frames)
    near = [n for n in range(len(linear)) if float(stack.positions[n]).is_integer()]
    errors = dict.fromkeys(SLOPES, 0.0)
    count = 0
    for a in near:
        mask = ((focus - a).abs() <= SHARP).float()
        others = [b for b in near if abs(stack.positions[a] - stack.positions[b]) in FAR_STEPS]
        if not mask.any():
            continue
        count += len(others)
        for b in others:
            distance = abs(stack.positions[a] - stack.positions[b])
            for slope in SLOPES:
                made = blurred(linear[a][None], slope * distance)[0]
                errors[slope] += float((mask * (made - linear[b]) ** 2).sum())
    if not count:
        raise UserError(f"{stack.name} has no frames {FAR_STEPS} steps apart to measure blur on")
    return min(errors, key=errors.__getitem__)


def contrast(stack: FocalStack) -> list[float]:
    """Return the RMS contrast of the all-in-focus image's luma, as a percentage of white, by octave
    band."""
    image = luma(all_in_focus(stack.frames)[None])[0, 0].numpy()
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    power = np.abs(np.fft.fft2((image - image.mean()) * window)) ** 2 / (window**2).sum()
    cycles = [np.fft.fftfreq(side) * side for side in image.shape]
    radius = np.hypot(cycles[0][:, None], cycles[1])
    return [
        100 * float(np.sqrt(power[(radius >= low) & (radius < 2 * low)].sum() / image.size))
        for low in BANDS
    ]


def brightening(stack: FocalStack) -> float:
    """Return by how many percent there is more linear light in the farthest frame than in the
    nearest one."""
    nearest, farthest = srgb_to_linear((stack.frames[[0, -1]] + 1) / 2).mean((1, 2, 3)).tolist()
    return 100 * (farthest / nearest - 1)


def likeness_table(tests: Mapping[str, Iterable[FocalStack]]) -> str:
    """Show how alike sets of stacks are: blur, brightness and contrast, medians over scenes."""
    lines = []
    for kind, stacks in tests.items():
        kept = list(stacks)
        slopes = [blur_slope(stack) for stack in track(kept, f"blur of {kind}", len(kept))]
        bands = np.median([contrast(stack) for stack in kept], 0)
        spread = f"{median(slopes):.2f} ({min(slopes):.2f} to {max(slopes):.2f})"
        lit = median(brightening(stack) for stack in kept)
        lines.append([kind, str(len(kept)), spread, f"{lit:+.1f}", *(f"{b:.1f}" for b in bands)])
    heads = [f"{low}–{2 * low} cycles" for low in BANDS]
    return markdown(["stacks", "scenes", "blur, px a step", "far/near light, %", *heads], lines)


@reported("realism")
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; see the module's docstring."""
    parser = argparse.ArgumentParser(description="what realism of the scenes is worth")
    parser.add_argument("real", type=Path, metavar="REAL_STACKS")
    parser.add_argument("--photos", type=Path, help="textures beside the bundled photos")
    parser.add_argument("--scenes", type=int, default=SCENES, help="rendered for each variant")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, each variant")
    parser.add_argument("--out", type=Path, default=Path("build/realism"))
    options = parser.parse_args(arguments)
    photos = textures(read_photos(options.photos)) if options.photos else []
    real = list(StackFolder(options.real, SIZE))
    tests = {"real": real, "rendered": validation_stacks()[:VALIDATION_SCENES]}
    study = Study(options.out, options.scenes, options.steps, photos, tests)
    rows = [study.measure(name, variant) for name, variant in VARIANTS.items()]
    text = f"{realism_table(rows, list(tests))}\n\n{likeness_table(tests)}\n"
    with write_atomic(options.out / "tables.md") as scratch:
        scratch.write_text(text, encoding="utf-8")
    console.print(f"tables: {options.out / 'tables.md'}")
    print(text)


if __name__ == "__main__":
    main()
