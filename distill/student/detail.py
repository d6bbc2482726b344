"""The gain of detail that is finer than the analysis: the last thing a student learns.

A crop at twice the size is analysed at half of it, rendered at its own, and compared there. Only
the layer of the network that gives these gains learns; all else stays.

Legend: B batch, h, w size of the analysis, H = 2h, W = 2w.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.data.stacks import StackCache
from pocketfocus.distill.student.regression import gain, log_error
from pocketfocus.distill.student.samples import HELD_OUT_SHARE, Batch, true_batch
from pocketfocus.distill.train.checkpoint import Config
from pocketfocus.distill.train.crops import Crops
from pocketfocus.distill.train.loop import Task, Trainer
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.student import CELL, COLOURS, RefocusStudent, enlarged
from pocketfocus.run.constants import FRAMES, IMAGES

FACTOR = 2
BATCH = 4
HELD_OUT_BATCHES = 4
SCHEDULE = Schedule(
    learning_rate=1e-2, warmup_steps=20, decay=1.0, weight_decay=0.0, ema_decay=0.99, log_every=1
)


class Detail(nn.Module):
    """The layer of a student that gives the gains of finer detail, on its own."""

    def __init__(self, student: RefocusStudent) -> None:
        super().__init__()
        self.student = student.eval().requires_grad_(False)
        self.layer = copy.deepcopy(student.network.detail).requires_grad_(True)

    def losses(self, *drawn: Tensor) -> dict[str, Tensor]:
        """Compare what is rendered of photos with their images, at twice the analysis's size."""
        batch = Batch(*drawn).floats()
        counted = F.pad(1 - batch.places, (0, 1), value=1.0)
        rendered, mask = self.rendered(batch), counted[:, :, None, None, None]
        error = (rendered - batch.images) * mask
        copied = (batch.photos[:, None] - batch.images) * mask
        gains = (gain(copied, error.detach()) * counted)[:, :FRAMES]
        return {
            "loss": log_error(error, counted),
            "gain_db": gains.sum() / counted[:, :FRAMES].sum(),
        }

    def rendered(self, batch: Batch) -> Tensor:
        """The ten images [B,10,3,H,W] that `models.render` makes of photos, but for clipping."""
        photos, places, seen = batch.photos, batch.places, []
        small = F.interpolate(photos, scale_factor=1 / FACTOR, mode="bicubic", antialias=True)
        small = small.clamp(-1, 1)
        network = self.student.network
        hook = network.detail.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        with hook, torch.no_grad():
            found = network(small, places)
        with torch.autocast(photos.device.type, enabled=False):
            with torch.no_grad():
                change, _ = self.student.compose(small, found.floats(), places)
                copies = small.repeat(1, IMAGES, 1, 1)
                change = (copies + change).clamp(-1, 1) - copies
            gains = enlarged(self.layer(seen[0].float()), float(CELL))
            lost = gains.repeat_interleave(COLOURS, 1) * copies
            wide, fine = enlarged(change - lost, float(FACTOR)), enlarged(gains, float(FACTOR))
            photos = photos[:, None]
            return photos + wide.reshape(-1, IMAGES, *photos.shape[2:]) + photos * fine[:, :, None]

    @torch.no_grad()
    def give_back(self) -> None:
        """Put the layer into the student."""
        self.student.network.detail.load_state_dict(self.layer.state_dict())


def train_detail(
    student: RefocusStudent,
    stacks: StackCache,
    folder: Path,
    budget: Schedule,
    config: Config,
) -> None:
    """Train this layer in place, on true stacks at twice the analysis's size, for the minutes and
    steps of a schedule; goes on from the checkpoint in `folder`. It stays as it was where training
    does not lower the loss on held-out stacks."""
    detail, size = Detail(student), min(stacks.images.shape[-2:]) // 64 * 64
    count = max(1, int(HELD_OUT_SHARE * len(stacks)))
    held_out, rest = stacks.part(slice(count)), stacks.part(slice(count, None))
    before = held_out_loss(detail, held_out, size)
    schedule = replace(SCHEDULE, minutes=budget.minutes, steps=budget.steps)
    trainer = Trainer(detail, schedule, folder, config=config)
    trainer.resume("finer detail")
    crops, learned = (Crops(1.0, BATCH, size),), [rest or stacks]
    trainer.run(Task(partial(true_batch, learned, 1), detail.losses, crops), "finer detail")
    trainer.ema.load()
    if held_out_loss(detail.cpu(), held_out, size) < before:
        detail.give_back()


@torch.no_grad()
def held_out_loss(detail: Detail, stacks: StackCache, size: int) -> float:
    """The mean loss of crops that are always the same."""
    generator = torch.Generator().manual_seed(0)
    batches = [true_batch([stacks], BATCH, size, generator) for _ in range(HELD_OUT_BATCHES)]
    return sum(float(detail.losses(*batch)["loss"]) for batch in batches) / len(batches)
