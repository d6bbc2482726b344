"""Regression with a GAN term: the frozen encoder of the reference's autoencoder judges.

Hinge loss (Lim and Ye, arXiv 1705.02894) of small heads on features of a frozen network at several
depths, as in adversarial diffusion distillation (Sauer et al., arXiv 2311.17042); pseudo-Huber
(arXiv 2310.14189) for the pixels. A head sees the frame's features beside those of the photo.

One optimizer takes both sides: the student's term goes through heads that are constants there, the
heads' term through frames that are.

Legend: B batch, T = 9 frames, C channels of a depth of the encoder, h, w their size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from pocketfocus.distill.student.regression import OneStepTrainer, compared, pooled
from pocketfocus.distill.student.samples import Batch
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.student import RefocusStudent
from pocketfocus.run.constants import FRAMES

WIDTH = 64  # channels of a head
PIXEL_CURVE = 0.01  # errors in [-1,1] below this count squared, above by their size
GAN_WEIGHT = 0.002  # against the pixels' pseudo-Huber


class Head(nn.Module):
    """Judges features of one depth: [N,C,h,w] of frames, of their photos, and who is where [N,2T]
    become logits [N,1,h,w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(2 * channels, WIDTH, 3, padding=1)
        self.places = nn.Linear(2 * FRAMES, WIDTH, bias=False)
        self.act = nn.SiLU()
        self.judge = nn.Conv2d(WIDTH, 1, 3, padding=1)

    def forward(self, frames: Tensor, photos: Tensor, places: Tensor) -> Tensor:
        x = self.features(torch.cat([frames, photos], 1)) + self.places(places)[:, :, None, None]
        logits: Tensor = self.judge(self.act(x))
        return logits


class Heads(nn.Module):
    """A head for every depth: lists of features become the mean logit of each frame [N]."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(map(Head, channels))

    def forward(self, frames: list[Tensor], photos: list[Tensor], places: Tensor) -> Tensor:
        logits = [
            head(*features, places).mean((1, 2, 3))
            for head, *features in zip(self.heads, frames, photos, strict=True)
        ]
        return torch.stack(logits).mean(0)


def encoder_features(vae: Any, images: Tensor) -> list[Tensor]:
    """Return what a reference's encoder sees of images [N,3,H,W] in [-1,1]: after its first layer,
    every level and the middle, normalised over channels, [N,C,h,w] each."""
    encoder, patch = vae.encoder, vae.config.get("patch", 1)
    x = encoder.conv_in(F.pixel_unshuffle(images, patch) if patch > 1 else images)
    found = [x]
    for block in (*encoder.down_blocks, encoder.mid_block):
        x = block(x)
        found.append(x)
    return [F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1) for x in found]


class Adversarial(OneStepTrainer):
    """The student and the heads learn; the trunk is frozen."""

    def __init__(self, reference: ReferencePipeline, student: RefocusStudent) -> None:
        super().__init__(reference, student)
        self.vae = reference.vae.requires_grad_(False)
        with torch.no_grad():
            seen = encoder_features(self.vae, torch.zeros(1, 3, 64, 64))
        self.heads = Heads([features.shape[1] for features in seen])

    def losses(self, batch: Batch, *noise: Tensor, pool: int = 1) -> dict[str, Tensor]:
        """Compare pixels, and judge both sides unless `pool` leaves no detail to judge."""
        made = self.made(batch.photos, batch.places, *noise)
        stacks = made.images[:, :FRAMES]
        common = compared(made, batch, batch.places, pool)
        pixels = pseudo_huber(pooled(stacks - batch.stacks, pool))
        all_used = 0.0 * common["loss"]  # or DDP would wait for layers that nothing here trains
        terms = {**{n: common[n] for n in ("gain_db", "psnr_db")}, "loss": pixels + all_used}
        if pool > 1:
            return terms
        fool, judge = self.judged(stacks, batch)
        return {
            **terms,
            "loss": terms["loss"] + GAN_WEIGHT * fool + judge,
            "pixels": pixels.detach(),
            "generator": fool.detach(),
            "discriminator": judge.detach(),
        }

    def judged(self, made: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the generator's and the discriminator's term for stacks [B,9,3,H,W] that were
        made and the true ones. The frame at the photo's own position is the photo in both, and does
        not count."""
        one_hot, photos, positions = batch.places, batch.photos, batch.positions
        frame = torch.eye(FRAMES).to(made).repeat(len(positions), 1)
        places = torch.cat([frame, one_hot.repeat_interleave(FRAMES, 0)], 1)
        counted = 1 - one_hot.flatten()
        with torch.no_grad():
            given = encoder_features(self.vae, photos)
            given = [features.repeat_interleave(FRAMES, 0) for features in given]
            real = encoder_features(self.vae, batch.stacks.flatten(0, 1))
        fake = encoder_features(self.vae, made.flatten(0, 1))
        constant = {name: p.detach() for name, p in self.heads.named_parameters()}
        fooled = functional_call(self.heads, constant, (fake, given, places))
        on_real = self.heads(real, given, places)
        on_fake = self.heads([features.detach() for features in fake], given, places)
        hinge = F.relu(1 - on_real) + F.relu(1 + on_fake)
        total = counted.sum()
        return -(fooled * counted).sum() / total, (hinge * counted).sum() / total


def pseudo_huber(error: Tensor, curve: float = PIXEL_CURVE) -> Tensor:
    """Average sqrt(error^2 + curve^2) - curve, a scalar."""
    return ((error.square() + curve**2).sqrt() - curve).mean()
