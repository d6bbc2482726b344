"""Nine frames of a photo by two files of a run, as a job in a process of its own (see `host`).

It is what a user waits for: the photo is scaled and analysed once by the student's file, and every
frame is rendered tile by tile, at the photo's own size, by the file that renders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketfocus.export.open import analyser_of_file
from pocketfocus.export.targets import Runner, get_target
from pocketfocus.mobile_harness.worker import (
    Measured,
    Outputs,
    Tables,
    measure,
    opener_of,
    read_job,
)
from pocketfocus.models.analyse import Analyser
from pocketfocus.models.render import aperture_of, cut, focus_weights
from pocketfocus.photos.images import to_uint8
from pocketfocus.run.constants import FRAMES

RENDER = "render"  # the field of a job's arguments that names the second file


def run_frames(
    arguments: Mapping[str, Any], tables: Tables, say: Callable[[str], None]
) -> Measured:
    """Do a job with a student's file and the one that renders beside it, of the same target; a
    call takes a photo [1,3,H,W] and a position [1,9], and makes frames [9,3,H,W] of 0..255."""
    given = dict(arguments)
    render = given.pop(RENDER)
    job = read_job(given, tables)
    sizes = get_target(job.target).sizes(Path(job.artifact))
    opened = opener_of(job.target)

    def opener(artifact: str, threads: int) -> Runner:
        analyser = analyser_of_file(artifact, opened(artifact, threads), sizes)
        return frames_by(analyser, opened(render, threads))

    return measure(opener, job)


def frames_by(analyser: Analyser, render: Runner) -> Runner:
    """What makes the nine frames of a photo."""

    def run(photo: Tensor, position: Tensor) -> Outputs:
        analysed, _ = analyser.analyse_whole(photo, int(position.argmax()))
        made = torch.empty(FRAMES, *photo.shape[1:], dtype=torch.uint8)
        for place, feeds in cut(analysed, photo, focus_weights(0), aperture_of(1)):
            rows, columns = (part.stop - part.start for part in place)
            for frame in range(FRAMES):
                (tile,) = render(*feeds._replace(focus=focus_weights(frame)))
                pixels = to_uint8(tile[0, :, :rows, :columns], planar=True)
                made[(frame, slice(None), *place)] = torch.from_numpy(pixels)
        return (made,)

    return run
