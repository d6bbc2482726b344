"""`distill` and `train-reference`: the two trainings, each of which goes on where it stopped."""

from __future__ import annotations

from typing import Annotated

import typer

from pocketfocus.cli import arguments

commands = typer.Typer()

AUTOENCODER_SHARE = 0.5  # of the minutes of train-reference; the denoiser has the rest
AUTOENCODER_RATE, DENOISER_RATE = 1.5e-3, 6e-4
TEXTURE_SIDE = 900  # photos are scaled down to this for textures: scenes are 256 pixels wide


@commands.command(epilog="Example: pocketfocus distill --distill-minutes 30 --out build/mine")
def distill(
    out: arguments.Out,
    reference: arguments.Reference = "default",
    student: arguments.Student = None,
    photos: arguments.Photos = None,
    distill_minutes: arguments.Minutes = 1.0,
    from_scratch: arguments.FromScratch = False,
    seed: arguments.Seed = 0,
) -> None:
    """Distil the reference into a one-step student: DIR/student, train.jsonl and loss.png."""
    arguments.output_folder(out)
    spec = arguments.reference(reference)
    start = arguments.student_folder(student)
    length = arguments.minutes(distill_minutes)
    files = arguments.photo_files(photos)

    from pocketfocus.distill.stage import Distillation, distill_run

    settings = Distillation(minutes=length, from_scratch=from_scratch, seed=seed)
    distill_run(out, spec, start, files, settings=settings)
    typer.echo(f"student: {out / 'student'}")


@commands.command(
    "train-reference",
    epilog="Example: pocketfocus train-reference --minutes 120 --out build/reference",
)
def train_reference(
    out: arguments.Out,
    minutes: Annotated[
        float, typer.Option("--minutes", metavar="M", help="how long to train in all")
    ] = 120.0,
    scenes: Annotated[
        int, typer.Option("--scenes", min=8, help="how many synthetic focal stacks to render")
    ] = 400,
    size: Annotated[
        int, typer.Option("--size", min=128, help="of the rendered stacks, in pixels")
    ] = 256,
    photos: arguments.Photos = None,
    seed: arguments.Seed = 0,
) -> None:
    """Train a small reference on synthetic focal stacks; run it again to go on.

    With --photos, their pictures are textures of the scenes beside the bundled ones.
    """
    arguments.output_folder(out)
    total = arguments.minutes(minutes)
    files = arguments.photo_files(photos)

    import numpy as np

    from pocketfocus.distill.loop import Schedule
    from pocketfocus.distill.reference import train_reference
    from pocketfocus.images import load_photo
    from pocketfocus.scenes import train_photos
    from pocketfocus.stacks import cache_stacks

    textures = train_photos()
    for file in files or ():
        picture = load_photo(file)
        picture.thumbnail((TEXTURE_SIDE, TEXTURE_SIDE))
        textures.append(np.asarray(picture))
    stacks = cache_stacks(out / "stacks", range(scenes), (size, size), textures)
    autoencoder = Schedule(total * AUTOENCODER_SHARE, learning_rate=AUTOENCODER_RATE)
    denoiser = Schedule(total * (1 - AUTOENCODER_SHARE), learning_rate=DENOISER_RATE)
    train_reference(stacks.pixels, out, autoencoder, denoiser, seed=seed)
    typer.echo(f"reference: {out}")
