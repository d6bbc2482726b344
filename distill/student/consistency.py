"""Consistency distillation: the reference's own UNet in 1 to 4 steps, with its guidance inside.

Song et al. (arXiv 2303.01469), algorithm 2: the estimate of the clean latents at noise level n is
trained to equal the EMA's estimate at level n + 1, which one Euler step of the reference reaches;
the step is guided, as in latent consistency models (Luo et al., arXiv 2310.04378). Pseudo-Huber of
arXiv 2310.14189, section 3.3. EDM's estimate is the identity where there is no noise, so the
network needs no other form and stays what the reference is: same classes, same export.

Legend: B batch, T = 9 frames, C latent channels, H, W photo size, h, w latent size.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pocketfocus.distill.reference.denoiser import Given, estimate, pixel_energy
from pocketfocus.distill.reference.phases import save_reference
from pocketfocus.distill.student.samples import Batch
from pocketfocus.distill.student.trainer import StudentTrainer
from pocketfocus.distill.train.distributed import process_state, wants_sharding
from pocketfocus.distill.train.edm import append_dims
from pocketfocus.models.autoencoder import latent_factor
from pocketfocus.models.places import SAMPLING_FILE
from pocketfocus.models.reference import ReferencePipeline, karras_sigmas
from pocketfocus.models.sampling import PUBLISHED, Sampling
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import write_json

FEW = Sampling(steps=4, guidance=1.0)  # how the result draws by default; `@N` asks for others
LEVELS = 40  # steps from pure noise to none; the levels of 1, 2 and 4 steps are among them
CURVE = 5.4e-4  # of the pseudo-Huber, for errors of latents


class Consistency(StudentTrainer):
    """A copy of the reference's UNet learns; the reference is frozen."""

    result: ClassVar[str] = "reference"
    sigmas: Tensor
    importance: Tensor
    unet: Any

    def __init__(self, reference: ReferencePipeline) -> None:
        super().__init__()
        if wants_sharding():
            raise UserError("consistency needs its EMA whole: launch without --use_fsdp")
        if reference.few_steps is not None:
            raise UserError(
                f"{reference.name} is distilled to {reference.few_steps.steps} steps already: name "
                "the reference that it was made of"
            )
        self.unet = copy.deepcopy(reference.unet).requires_grad_(True)
        if not reference.relative:  # full size
            self.unet.enable_gradient_checkpointing()
        frozen = [reference.unet, reference.vae, reference.image_encoder]
        self.frozen = nn.ModuleList(frozen).requires_grad_(False)
        self.reference = reference
        self.student = replace(reference, unet=self.unet, few_steps=FEW)
        ways = torch.linspace(0, 1, LEVELS + 1)
        self.register_buffer("sigmas", karras_sigmas(reference.scheduler.config, ways))
        energy = pixel_energy(reference) if reference.relative else torch.ones(())
        self.register_buffer("importance", energy / energy.mean())  # of channels

    def teacher_sampling(self, reference: ReferencePipeline) -> Sampling:
        """Ask for the ends of the guided trajectories that it learns to jump to."""
        return PUBLISHED

    def noise(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Draw a noise level [1] and unit noise [1,9,C,h,w]."""
        vae, factor = self.reference.vae, latent_factor(self.reference.vae)
        height, width = (side // factor for side in images.shape[-2:])
        shape = (1, FRAMES, vae.config.latent_channels, height, width)
        level = torch.randint(0, LEVELS, (1,), generator=generator)
        return level, torch.randn(shape, generator=generator)

    def losses(self, batch: Batch, *noise: Tensor, pool: int = 1) -> dict[str, Tensor]:
        """Compare the estimates at two neighbouring levels; `pool` is for pixels."""
        level, unit = noise
        high, low = self.sigmas[level], self.sigmas[level + 1]
        with torch.no_grad():
            given, clean = self.encoded(batch.photos, batch.positions, batch.stacks)
            noisy = clean + append_dims(high, 5) * unit
            nearer = self.guided_step(noisy, high, low, given)
            target = estimate(self.averaged(), nearer, low, given)
        error = estimate(self.student, noisy, high, given) - target
        squared = (error.square() * self.importance.reshape(-1, 1, 1)).mean((1, 2, 3, 4))
        loss = ((squared + CURVE**2).sqrt() - CURVE).mean()
        return {"loss": loss, "mse": squared.mean().detach()}

    def encoded(self, photos: Tensor, positions: Tensor, stacks: Tensor) -> tuple[Given, Tensor]:
        """Return what the UNet is given of photos [B,3,H,W], and clean scaled latents
        [B,9,C,h,w]."""
        reference, latent = self.reference, self.reference.encode(photos).float()
        clean = reference.encode(stacks.flatten(0, 1)).float()
        clean = clean.reshape(*stacks.shape[:2], *clean.shape[1:])
        if reference.relative:
            clean = clean - latent[:, None]
        given = Given(
            reference.condition(latent, positions), reference.embed(photos), reference.basis(photos)
        )
        return given, clean * reference.vae.config.scaling_factor

    def guided_step(self, noisy: Tensor, high: Tensor, low: Tensor, given: Given) -> Tensor:
        """Take one guided Euler step of the reference, from level `high` [B] to `low` [B]."""
        conditional = estimate(self.reference, noisy, high, given)
        unconditional = estimate(self.reference, noisy, high, given.dropped())
        guided = unconditional + PUBLISHED.guidance * (conditional - unconditional)
        return guided + append_dims(low / high, 5) * (noisy - guided)

    def averaged(self) -> ReferencePipeline:
        """Return the student with the EMA weights, which get no gradient."""
        weights = {n.removeprefix("unet."): p for n, p in self.average.items()}

        def unet(*inputs: Any, **options: Any) -> Any:
            return functional_call(self.unet, weights, inputs, options)

        return replace(self.student, unet=unet)

    def refocus(self, photo: Tensor, position: int, seed: int) -> Tensor:
        """Make it in `FEW` steps, from the noise that the teacher stack of this seed came from."""
        return self.student(photo, position, seed=seed)

    def save(self, folder: Path) -> None:
        """Write a reference in the layout of diffusers, and the way it draws."""
        self.unet.disable_gradient_checkpointing()
        save_reference(self.student, folder, {"method": "consistency", "of": self.reference.name})
        if process_state().is_main_process:
            write_json(folder / SAMPLING_FILE, asdict(FEW))
