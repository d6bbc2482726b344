"""`distill` and `train-reference`: the two trainings, each of which goes on where it stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.models.places import find_start
from pocketfocus.run.constants import MULTIPLE
from pocketfocus.run.errors import UserError

commands = typer.Typer()
OWN, PAPER = "pocketfocus", "paper"  # recipes of fine-tunings
METHODS_HELP = (
    "regression: one step, zero noise, pixels; adversarial: the same with a GAN term; prior: the "
    "prior of depth alone, which finds a photo's position; consistency: the reference's own UNet "
    "in 1 to 4 steps, written to DIR/reference"
)


Method = Annotated[
    str,
    typer.Option("--method", metavar="regression|adversarial|prior|consistency", help=METHODS_HELP),
]
DistillMinutes = Annotated[
    float | None,
    typer.Option(
        "--distill-minutes",
        metavar="M",
        help="how long to distil (default 1, with --steps no limit); 0 copies the student",
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=1,
        help="of training, instead of or beside --distill-minutes: a distillation interrupted "
        "and gone on with then ends bit for bit as one that was not",
    ),
]
TeacherStacks = Annotated[
    int,
    typer.Option("--teacher-stacks", metavar="N", min=1, help="stacks of the reference, at most"),
]
Crop = Annotated[
    int | None,
    typer.Option("--crop", metavar="S", min=64, help="train on crops of this size, 64, 128, …"),
]
Rate = Annotated[
    float | None, typer.Option("--learning-rate", metavar="R", help="else the method's own")
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="tiny|phone",
        help="size of a student distilled --from-scratch (default tiny); another start is "
        "refused unless it is of this size",
    ),
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        metavar="adamw|muon",
        help="adamw is gentle, as is usual for a student that has learned; muon learns at full "
        "pace, as is usual --from-scratch, and falls to zero",
    ),
]
Qat = Annotated[
    str | None,
    typer.Option(
        "--qat",
        metavar="RECIPE",
        help="learn through the rounding of a recipe (int8, int4, mixed or a .yaml file), so "
        "that quantizing the student loses less",
    ),
]
LearnFrom = Annotated[
    str,
    typer.Option(
        "--learn-from",
        metavar="both|reference|stacks",
        help="the reference's stacks of --photos, true --stacks, or both",
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init",
        metavar="svd|learn2refocus|DIR|HUB_ID",
        help="fine-tune this full-size model; else a small one is trained from nothing",
    ),
]
Train = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="temporal|all",
        help="what of --init learns: its temporal transformer blocks (as in the paper; the "
        "default), or all of its UNet",
    ),
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        metavar="pocketfocus|paper",
        help="how --init learns: on crops, with warm-up, clipping and EMA (the default), or as "
        "Learn2Refocus's published code, on whole frames of 640x896",
    ),
]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", metavar="M", help="how long to train in all (default 120)"),
]
TrainingSteps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        min=2,
        help="how many optimizer steps in all, instead of or beside --minutes: a training "
        "interrupted and gone on with then ends bit for bit as one that was not",
    ),
]
Batch = Annotated[
    int | None, typer.Option("--batch", min=1, help="crops of stacks at a time, in each process")
]
Accumulate = Annotated[
    int, typer.Option("--accumulate", metavar="N", min=1, help="batches of a step, added up")
]
TrainingRate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", metavar="R", help="of the denoiser (default 0.0015; with --init 0.00001)"
    ),
]


@commands.command(
    epilog="Example: pocketfocus distill --distill-minutes 30 --out build/mine\n\n"
    "A few-step reference: pocketfocus distill --method consistency --distill-minutes 120 "
    "--out build/few"
)
def distill(
    out: arguments.Out,
    reference: arguments.Reference = "default",
    student: arguments.Student = None,
    photos: arguments.Photos = None,
    method: Method = "regression",
    distill_minutes: DistillMinutes = None,
    steps: Steps = None,
    teacher_stacks: TeacherStacks = 600,
    targets: Annotated[int | None, typer.Option("--targets", min=1, hidden=True)] = None,
    crop: Crop = None,
    rate: Rate = None,
    optimizer: Optimizer = None,
    from_scratch: arguments.FromScratch = False,
    preset: Preset = None,
    qat: Qat = None,
    learn_from: LearnFrom = "both",
    stacks: arguments.Stacks = None,
    scenes: Annotated[int, typer.Option("--scenes", min=1, help=arguments.SCENES)] = 24,
    seed: arguments.Seed = 0,
) -> None:
    """Distil the reference into a student, DIR/student; run it again to go on.

    It learns from the reference's own stacks of --photos and from true stacks, or from one of them.
    Ctrl-C saves, and the same command goes on; a longer --distill-minutes trains it further.
    DIR/training has the checkpoint, train.jsonl and TensorBoard's files, DIR/loss.png the curve.
    On several GPUs, put `accelerate launch --multi_gpu --num_processes N -m` before the command.
    """
    arguments.output_folder(out)
    spec = arguments.reference(reference)
    length = length_of(distill_minutes, steps)
    start = arguments.start_folder(student, from_scratch, length)
    check_numbers(crop, rate)
    if learn_from == "reference":
        arguments.unused("by --learn-from reference", {"--stacks": stacks})
    if learn_from == "stacks" and qat is None:
        arguments.unused("by --learn-from stacks", {"--photos": photos})
    if length <= 0:
        options_of_learning = {"--qat": qat, "--optimizer": optimizer, "--preset": preset}
        arguments.unused("in 0 minutes", options_of_learning)
    files = arguments.photo_files(photos)

    from pocketfocus.data.datasets import SYNTHETIC
    from pocketfocus.distill.student.methods import get_method, with_optimizer
    from pocketfocus.distill.student.options import Distillation
    from pocketfocus.distill.student.stage import distill_run
    from pocketfocus.quantize.recipes import get_recipe

    chosen = get_method(method)
    if not chosen.student and (student is not None or from_scratch or preset is not None):
        raise UserError(
            f"{method} distils the reference's own UNet: leave out --student, --from-scratch and "
            "--preset"
        )
    with_optimizer(chosen.warm, optimizer)
    if qat is not None:
        get_recipe(qat)
    options = Distillation(
        minutes=length,
        steps=steps,
        reference=spec,
        start=start,
        photos=files,
        from_scratch=from_scratch,
        preset=preset,
        method=method,
        crops=None if crop is None else (chosen.crops[0].resized(crop),),
        max_teacher_stacks=targets or teacher_stacks,
        learning_rate=rate,
        optimizer=optimizer,
        qat=qat,
        learn_from=learn_from,
        sources=tuple(stacks or [SYNTHETIC]),
        scenes=scenes,
        seed=seed,
    )
    distill_run(out, options)
    made = "student" if chosen.student else "reference"
    typer.echo(f"{made}: {out / made}")


def length_of(minutes: float | None, steps: int | None) -> float:
    """Return the minutes that a distillation takes at most: with steps alone there is no limit."""
    if minutes is None:
        return 1.0 if steps is None else math.inf
    return arguments.minutes(minutes)


def check_numbers(crop: int | None, rate: float | None) -> None:
    """Raise UserError for a crop or a learning rate that no training takes."""
    if crop is not None and crop % MULTIPLE:
        nearest = crop // MULTIPLE * MULTIPLE
        raise UserError(f"--crop {crop} is no multiple of {MULTIPLE}: take {nearest}")
    if rate is not None and not 0 < rate < 1:
        raise UserError(f"--learning-rate {rate} is not between 0 and 1: leave it out")


def check_start(init: str | None, train: str | None, recipe: str | None) -> None:
    """Raise UserError for options of a fine-tuning without a model to tune, and for a part of it
    that the paper's recipe does not train."""
    for option, value in (("train", train), ("recipe", recipe)):
        if value is not None and init is None:
            raise UserError(
                f"--{option} {value} says how a full-size model learns, and there is none: name it "
                "with --init"
            )
    if recipe == PAPER and train not in (None, "temporal"):
        raise UserError(f"--recipe {PAPER} trains temporal blocks, not {train}: leave out --train")


def check_textures(photos: Path | None, sources: Sequence[str]) -> None:
    """Raise UserError for photos that are to be textures, of sources that have no such scenes."""
    from pocketfocus.data.datasets import is_rendered, is_rgbd

    if not any(is_rendered(spec) and not is_rgbd(spec) for spec in sources):
        arguments.unused("without procedural scenes among --stacks", {"--photos": photos})


@commands.command(
    "train-reference",
    epilog="Example: pocketfocus train-reference --minutes 120 --out build/reference\n\n"
    "Fine-tune as the paper does: pocketfocus train-reference --init svd:fp16 --recipe paper "
    "--stacks my/stacks --steps 200000 --out build/refocus",
)
def train_reference(
    out: arguments.Out,
    init: Init = None,
    train: Train = None,
    recipe: Recipe = None,
    minutes: Minutes = None,
    steps: TrainingSteps = None,
    stacks: arguments.Stacks = None,
    scenes: Annotated[int, typer.Option("--scenes", min=8, help=arguments.SCENES)] = 400,
    size: Annotated[
        str | None,
        arguments.size_option("of the stacks, a square (default 256; with --recipe paper any)"),
    ] = None,
    photos: arguments.Photos = None,
    batch: Batch = None,
    accumulate: Accumulate = 1,
    rate: TrainingRate = None,
    seed: arguments.Seed = 0,
) -> None:
    """Train a reference on focal stacks, or fine-tune a full-size one; run it again to go on.

    Ctrl-C saves, and the same command goes on where it stopped. DIR gets the reference in the
    layout of diffusers, and for each training a folder with its checkpoint, train.jsonl and
    TensorBoard's files. A folder of stacks has a folder per scene with nine images sorted near to
    far, or Learn2Refocus's layout; of those in its train_scenes.txt only, where it has one. With
    --photos, their pictures are textures of the rendered scenes beside the bundled ones. On several
    GPUs, put `accelerate launch --multi_gpu --num_processes N -m` before the command, or --use_fsdp
    in place of --multi_gpu to shard a full-size UNet.
    """
    arguments.output_folder(out)
    check_start(init, train, recipe)
    if init is not None:
        arguments.reference(init, find_start)
    sides = None if size is None else arguments.size(size, MULTIPLE)
    if sides is not None and recipe != PAPER and sides[0] != sides[1]:
        raise UserError(f"--size {size} is no square: give one number, such as {sides[1]}")
    files = arguments.photo_files(photos)

    from pocketfocus.data.datasets import SYNTHETIC
    from pocketfocus.distill.reference.training import Training, run_training

    sources = tuple(stacks or [SYNTHETIC])
    check_textures(photos, sources)
    training = Training(
        minutes=None if minutes is None else arguments.minutes(minutes),
        steps=steps,
        init=init,
        train=train or "temporal",
        recipe=recipe or OWN,
        stacks=sources,
        scenes=scenes,
        size=sides,
        photos=tuple(files or ()),
        batch=batch,
        accumulate=accumulate,
        learning_rate=rate,
        seed=seed,
    )
    run_training(training, out)
    typer.echo(f"reference: {out}")
