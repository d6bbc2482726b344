"""The reference's pipeline through the rewritten networks: same inputs, same sampler, same output.

The rewritten networks answer the same calls as diffusers', so `ReferencePipeline` drives either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pocketfocus.mobile.autoencoder import mobile_autoencoder
from pocketfocus.mobile.conditioning import Conditioning, run
from pocketfocus.mobile.unet import mobile_unet
from pocketfocus.models.reference import ReferencePipeline


class MobileDenoiser(nn.Module):
    """A rewritten UNet that is called as UNetSpatioTemporalConditionModel is, one stack at a time.

    Args:
        config: of the diffusers UNet.
        tensors: of the diffusers UNet; they are not copied.
    """

    def __init__(self, config: Any, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = config
        self.network = mobile_unet(config, tensors)
        self.conditioning = Conditioning.of(self.network, tensors)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        added_time_ids: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """The output [1,T,C,h,w], in a tuple.

        Args:
            sample: scaled noisy latents and condition [1,T,I,h,w].
            timestep: a scalar.
            encoder_hidden_states: the CLIP embedding, a single token [1,1,E].
            added_time_ids: [1,3].
            return_dict: False is the only form there is.

        Raises:
            ValueError: more than one stack or token, or the other form is asked for.
        """
        if return_dict or len(sample) != 1 or encoder_hidden_states.shape[:2] != (1, 1):
            raise ValueError(
                "this UNet takes one stack [1,T,I,h,w] and one token [1,1,E] and returns a tuple, "
                f"got {list(sample.shape)}, {list(encoder_hidden_states.shape)}, "
                f"return_dict={return_dict}"
            )
        step = self.conditioning.step(timestep, added_time_ids[0])
        photo = self.conditioning.photo(encoder_hidden_states[0, 0])
        return (run(self.network, step | photo, sample[0])[None],)


def rewritten(reference: ReferencePipeline) -> ReferencePipeline:
    """A loaded reference with its networks rewritten; the weights stay where they are."""
    with torch.no_grad():
        return replace(
            reference,
            vae=mobile_autoencoder(reference.vae.config, reference.vae.state_dict()),
            unet=MobileDenoiser(reference.unet.config, reference.unet.state_dict()),
        )
