"""`distill` and `train-reference`: the two trainings, each of which goes on where it stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from pocketfocus.cli import arguments
from pocketfocus.errors import UserError

commands = typer.Typer()


@commands.command(epilog="Example: pocketfocus distill --distill-minutes 30 --out build/mine")
def distill(
    out: arguments.Out,
    reference: arguments.Reference = "default",
    student: arguments.Student = None,
    photos: arguments.Photos = None,
    distill_minutes: arguments.Minutes = 1.0,
    steps: Annotated[
        int | None, typer.Option("--steps", metavar="N", min=1, help="of training, at most")
    ] = None,
    from_scratch: arguments.FromScratch = False,
    preset: Annotated[
        str,
        typer.Option(
            "--preset", metavar="tiny|phone", help="size of a student distilled --from-scratch"
        ),
    ] = "tiny",
    stacks: arguments.Stacks = None,
    scenes: Annotated[
        int, typer.Option("--scenes", min=1, help="how many focal stacks to render of each source")
    ] = 24,
    seed: arguments.Seed = 0,
) -> None:
    """Distil the reference into a one-step student, DIR/student; run it again to go on.

    It learns from the reference's own stacks of --photos and from true stacks. Ctrl-C saves, and
    the same command goes on where it stopped; a longer --distill-minutes trains it further.
    DIR/training has the checkpoint, train.jsonl and TensorBoard's files, DIR/loss.png the curve.
    """
    arguments.output_folder(out)
    spec = arguments.reference(reference)
    start = arguments.student_folder(student)
    length = arguments.minutes(distill_minutes)
    files = arguments.photo_files(photos)
    if preset != "tiny" and not from_scratch:
        raise UserError(
            f"--preset {preset} is the size of a new student, and this one starts from "
            f"{student or 'the shipped one'}: add --from-scratch"
        )

    from pocketfocus.datasets import SYNTHETIC
    from pocketfocus.distill.stage import Distillation, distill_run

    settings = Distillation(
        minutes=length,
        steps=steps,
        from_scratch=from_scratch,
        preset=preset,
        sources=tuple(stacks or [SYNTHETIC]),
        scenes=scenes,
        seed=seed,
    )
    distill_run(out, spec, start, files, settings=settings)
    typer.echo(f"student: {out / 'student'}")


@commands.command(
    "train-reference",
    epilog="Example: pocketfocus train-reference --minutes 120 --out build/reference\n\n"
    "Fine-tune as the paper does: pocketfocus train-reference --init svd --stacks my/stacks "
    "--size 512 --steps 200000 --out build/refocus",
)
def train_reference(
    out: arguments.Out,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            metavar="svd|learn2refocus|DIR",
            help="fine-tune this full-size model; else a small one is trained from nothing",
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--train",
            metavar="temporal|all",
            help="what of --init learns: its temporal transformer blocks (as in the paper; the "
            "default), or all of its UNet",
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", metavar="M", help="how long to train in all (default 120)"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="N",
            min=2,
            help="how many optimizer steps in all, instead of or beside --minutes: a training "
            "interrupted and gone on with then ends bit for bit as one that was not",
        ),
    ] = None,
    stacks: arguments.Stacks = None,
    scenes: Annotated[
        int, typer.Option("--scenes", min=8, help="how many focal stacks to render of each source")
    ] = 400,
    size: Annotated[int, typer.Option("--size", min=64, help="of the stacks, in pixels")] = 256,
    photos: arguments.Photos = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="crops of stacks at a time, in each process"),
    ] = None,
    accumulate: Annotated[
        int, typer.Option("--accumulate", metavar="N", min=1, help="batches of a step, added up")
    ] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="R",
            help="of the denoiser (default 0.002; with --init 0.00001)",
        ),
    ] = None,
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
    if train is not None and init is None:
        raise UserError(
            f"--train {train} says what of a full-size model learns, and there is none: name it "
            "with --init"
        )
    if init is not None and init != "svd":
        arguments.reference(init)
    files = arguments.photo_files(photos)

    from pocketfocus.datasets import SYNTHETIC
    from pocketfocus.distill.training import Training, run_training

    training = Training(
        minutes=None if minutes is None else arguments.minutes(minutes),
        steps=steps,
        init=init,
        train=train or "temporal",
        stacks=tuple(stacks or [SYNTHETIC]),
        scenes=scenes,
        size=size,
        photos=tuple(files or ()),
        batch=batch,
        accumulate=accumulate,
        learning_rate=rate,
        seed=seed,
    )
    run_training(training, out)
    typer.echo(f"reference: {out}")
