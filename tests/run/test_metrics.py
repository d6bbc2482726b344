"""PSNR and SSIM against scikit-image, VIF against torchmetrics, and what they do at the edges."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import visual_information_fidelity

from pocketfocus.run.metrics import CAP_DB, psnr, ssim, vif


def pair(noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """An image with structure and a noisy one, [1, 3, 48, 64] in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 9, 48), torch.linspace(0, 12, 64), indexing="ij")
    clean = torch.stack([torch.sin(x), torch.cos(y), torch.sin(x + y)])[None] * 0.8
    dirty = clean + noise * torch.randn(clean.shape, generator=generator)
    return clean, dirty.clamp(-1, 1)


@pytest.mark.parametrize("noise", [0.003, 0.05, 0.5])
def test_psnr_is_that_of_scikit_image(noise: float) -> None:
    a, b = pair(noise)
    expected = peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=2)
    assert psnr(a, b) == pytest.approx(expected, abs=1e-9)
    assert psnr(b, a) == psnr(a, b)


@pytest.mark.parametrize("noise", [0.003, 0.05, 0.5])
def test_ssim_is_that_of_scikit_image(noise: float) -> None:
    """On [0, 1], as the authors of Learn2Refocus take it; away from the border, which scikit-image
    leaves out of its mean: there nothing differs."""
    a, b = pair(noise)
    changed = a.clone()
    changed[..., 12:-12, 12:-12] = b[..., 12:-12, 12:-12]
    expected = structural_similarity(
        a[0].double().numpy() / 2 + 0.5,
        changed[0].double().numpy() / 2 + 0.5,
        data_range=1,
        channel_axis=0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    counted = (48 - 10) * (64 - 10) / (48 * 64)  # 5 pixels a side are left out
    assert 1 - ssim(a, changed) == pytest.approx((1 - expected) * counted, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("noise", [0.003, 0.05, 0.5])
def test_vif_is_that_of_torchmetrics(noise: float) -> None:
    """On [0, 255], which the variance of its noise is for, and which torchmetrics leaves to us."""
    a, b = pair(noise)
    made, truth = ((each.double() + 1) * 127.5 for each in (b, a))
    assert vif(b, a) == pytest.approx(float(visual_information_fidelity(made, truth)), rel=1e-4)
    assert vif(a, a) == pytest.approx(1, abs=1e-4)


def test_vif_is_none_where_there_is_no_information() -> None:
    a, b = pair(0.1)
    white = torch.ones_like(a)
    assert vif(b, white) is None
    assert vif(white, a) == 0
    assert vif(b[..., :40, :], a[..., :40, :]) is None
    assert vif(b[..., :41, :41], a[..., :41, :41]) is not None


def test_a_known_error_has_a_known_psnr() -> None:
    zeros = torch.zeros(1, 3, 16, 16)
    assert psnr(zeros, zeros + 0.2) == pytest.approx(20.0, abs=1e-5)
    assert psnr(zeros, zeros + 0.1, peak=1.0) == pytest.approx(20.0, abs=1e-5)


def test_identical_images_have_finite_figures() -> None:
    a, _ = pair(0.1)
    assert psnr(a, a) == CAP_DB
    assert ssim(a, a) == pytest.approx(1.0, abs=1e-6)


def test_a_single_nan_is_not_hidden() -> None:
    a, b = pair(0.1)
    b[0, 0, 0, 0] = math.nan
    assert psnr(a, b) == -math.inf


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\[1, 3, 4, 4\].*\[1, 3, 4, 5\]"):
        psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))


def test_ssim_over_a_batch_is_the_mean_of_its_images() -> None:
    (a, b), (c, d) = pair(0.02), pair(0.3, seed=1)
    both = ssim(torch.cat([a, c]), torch.cat([b, d]))
    assert both == pytest.approx((ssim(a, b) + ssim(c, d)) / 2, abs=1e-6)
