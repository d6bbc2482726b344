"""The autoencoder's start and its scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import TruncatedSVD
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from pocketfocus.distill.reference.autoencoder import initialise, scaling_factor
from pocketfocus.distill.reference.presets import SMALLEST, build_reference


def test_initialised_autoencoder_is_principal_component_analysis(ramps: np.ndarray) -> None:
    """Before training it reconstructs as scikit-learn's projection of the same patches does."""
    torch.manual_seed(0)
    vae = build_reference(SMALLEST).vae.eval()
    frames = torch.from_numpy(ramps[:, ::4].copy()).flatten(0, 1).float() / 127.5 - 1
    initialise(vae, frames)
    with torch.no_grad():
        made = vae.decode(vae.encode(frames).latent_dist.mode(), num_frames=len(frames)).sample
    colour = frames.mean(dim=(0, 2, 3), keepdim=True)
    patches = pixel_unshuffle(frames - colour, 8).permute(0, 2, 3, 1).reshape(-1, 192).numpy()
    model = TruncatedSVD(4, algorithm="arpack").fit(patches)
    expected = model.inverse_transform(model.transform(patches)).reshape(len(frames), 8, 8, 192)
    image = pixel_shuffle(torch.from_numpy(expected).permute(0, 3, 1, 2), 8) + colour
    torch.testing.assert_close(made, image.float(), atol=1e-3, rtol=1e-3)


def test_scaling_factor_gives_unit_latents(ramps: np.ndarray) -> None:
    torch.manual_seed(0)
    vae = build_reference(SMALLEST).vae.eval()
    frames = torch.from_numpy(ramps[:, 0].copy()).float() / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(frames).latent_dist.mode() * scaling_factor(vae, frames)
    assert latents.std().item() == pytest.approx(1.0, abs=1e-3)
