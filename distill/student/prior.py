"""A student's prior of depth learns alone: where things lie, and at what position the photo was.

What refocuses stays as it is. The encoder is called without gradients, and the prior is small, so
a step costs a tenth of one of the whole student, and whole layouts can be shown.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfocus.distill.student.regression import OneStepTrainer
from pocketfocus.distill.student.samples import Batch
from pocketfocus.models.analyse import median_position
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import JOINED, RefocusStudent
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

GIVEN_SHARE = 0.3  # of samples, whose position is told, as it mostly is in the student's training
LAST = FRAMES - 1


class PriorTrainer(OneStepTrainer):
    """The prior and the layer of positions learn; two more numbers of each place help them to.

    Where the decoder reads the prior already, it stays too, and that layer alone learns: pictures
    from a given position are never changed.

    These are, in focal positions, where the place lies and how far behind it the photo was focused:
    what is blurred says the second's size, and only what is there says its sign.
    """

    def __init__(self, reference: ReferencePipeline, student: RefocusStudent) -> None:
        super().__init__(reference, student)
        network = student.network
        if network.prior is None:
            raise UserError("this student has no prior to train: take one of --preset tiny")
        student.requires_grad_(False)
        assert network.joined is not None
        read = any(bool(parameter.any()) for parameter in network.joined.parameters())
        network.prior.requires_grad_(not read)
        network.position.requires_grad_(True)
        self.lies = nn.Conv2d(network.position.in_channels, 2, 1)

    def keep_known(self) -> None:
        """Keep nothing more: what learns here is the prior."""

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw whether the position is given [1]."""
        return ((torch.rand(1, generator=generator) < GIVEN_SHARE).float(),)

    def losses(self, batch: Batch, *noise: Tensor, pool: int = 1) -> dict[str, Tensor]:
        """Compute the cross entropy of positions that were not given, and the errors of where
        places lie; means over samples of what each of them has."""
        (given,) = noise
        network, unknown = self.student.network, 1 - given
        assert network.prior is not None
        with torch.no_grad():
            skips = network.encoded(batch.photos, batch.places * given[:, None])
        said = network.prior(batch.photos, skips[JOINED])
        logits = network.position(said).float().mean((-2, -1))
        surprise = F.cross_entropy(logits, batch.positions, reduction="none")
        nearness = F.adaptive_avg_pool2d(batch.nearness, said.shape[-2:])
        lies = LAST * (1 - nearness)
        truth = torch.cat([lies, batch.positions[:, None, None, None] - lies], 1)
        missed = torch.where(truth.isfinite(), self.lies(said).float() - truth.nan_to_num(), 0.0)
        surprised = (surprise * unknown).mean() / (1 - GIVEN_SHARE)
        error = (median_position(logits.softmax(-1)) - batch.positions).abs()
        off = (error * unknown).mean() / (1 - GIVEN_SHARE)
        return {
            "loss": surprised + missed.abs().mean(),
            "surprise": surprised.detach(),
            "lies_error": missed[:, 0].abs().mean().detach(),
            "defocus_error": missed[:, 1].abs().mean().detach(),
            "position_error": off,
        }
