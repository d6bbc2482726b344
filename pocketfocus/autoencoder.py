"""The temporal autoencoder of Stable Video Diffusion with fewer groups in its GroupNorms.

diffusers fixes 32 groups. At 32 channels that is one channel a group: the last norm then removes
every channel's mean, and with it brightness and colour, so a narrow decoder cannot learn them
(measured here: 15.8 dB after 200 steps against 16.8 dB with 8 groups).
"""

from __future__ import annotations

from diffusers import AutoencoderKLTemporalDecoder
from diffusers.configuration_utils import register_to_config
from torch import nn

DOWN = "DownEncoderBlock2D"


class CompactAutoencoder(AutoencoderKLTemporalDecoder):  # type: ignore[misc]
    """`AutoencoderKLTemporalDecoder` whose GroupNorms have `norm_num_groups` groups.

    Same arguments and contract otherwise: encode [B,3,H,W] -> posterior [B,C,H/f,W/f],
    decode [T,C,h,w] -> [T,3,H,W].
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = (DOWN, DOWN, DOWN, DOWN),
        block_out_channels: tuple[int, ...] = (32, 32, 64, 64),
        layers_per_block: int = 1,
        latent_channels: int = 16,
        sample_size: int = 256,
        scaling_factor: float = 1.0,
        force_upcast: bool = False,
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            force_upcast=force_upcast,
        )
        for module in self.modules():
            if isinstance(module, nn.GroupNorm):
                module.num_groups = norm_num_groups
