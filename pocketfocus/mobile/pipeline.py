"""The reference's pipeline through the rewritten networks: same inputs, same sampler, same output.

Legend: T = 9 frames, C latent channels, H, W photo size, h, w latent size, E CLIP features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pocketfocus.mobile.autoencoder import mobile_autoencoder
from pocketfocus.mobile.conditioning import Conditioning, run
from pocketfocus.mobile.unet import mobile_unet
from pocketfocus.reference import DECODE_CHUNK, ReferencePipeline


@dataclass
class MobilePipeline(ReferencePipeline):
    """`ReferencePipeline` with `vae` a MobileAutoencoder and `unet` a MobileUNet.

    One photo at a time, for the networks hold no batch but the frames.
    """

    conditioning: Conditioning | None = None

    def denoise(
        self, scaled: Tensor, t: Tensor, condition: Tensor, embedding: Tensor, ids: Tensor
    ) -> Tensor:
        """One UNet evaluation: v-prediction [1,T,C,h,w] from scaled noisy latents [1,T,C,h,w], its
        condition [1,T,C',h,w], CLIP embedding [1,1,E] and added time ids [1,3]."""
        if self.conditioning is None:
            raise ValueError("a MobilePipeline needs the conditioning of its UNet: see `rewritten`")
        if len(scaled) != 1:
            raise ValueError(f"a MobilePipeline denoises one stack at a time, got {len(scaled)}")
        biases = self.conditioning.step(t, ids[0]) | self.conditioning.photo(embedding[0, 0])
        return run(self.unet, biases, torch.cat([scaled, condition], dim=2)[0])[None]

    def encode(self, photos: Tensor) -> Tensor:
        """Mode of the latents, *not* multiplied by the scaling factor: [N,3,H,W] in [-1,1] ->
        [N,C,h,w]."""
        mode: Tensor = self.vae.encoder(photos)
        return mode

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents [1,T,C,h,w] -> stack [T,3,H,W], in chunks of 8 frames."""
        unscaled = latents[0] / self.vae.config.scaling_factor
        return torch.cat([self.vae.decoder(chunk) for chunk in unscaled.split(DECODE_CHUNK)])


def rewritten(reference: ReferencePipeline) -> MobilePipeline:
    """A loaded reference, rewritten; the weights stay where they are."""
    tensors = reference.unet.state_dict()
    unet = mobile_unet(reference.unet.config, tensors)
    return MobilePipeline(
        vae=mobile_autoencoder(reference.vae.config, reference.vae.state_dict()),
        unet=unet,
        image_encoder=reference.image_encoder,
        scheduler=reference.scheduler,
        name=reference.name,
        conditioning=Conditioning.of(unet, tensors),
    )
