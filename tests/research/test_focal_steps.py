import numpy as np
import pytest
import torch

from pocketfocus.data.optics import Camera, Layer, blurred, linear_to_srgb, render_stack
from pocketfocus.research.focal_steps import crispness, focal_steps, resized

SIDE = 128
STEP_DIOPTRES = 2.5


def noisy(seed: int) -> torch.Tensor:
    """Fine texture in linear light [3, H, W]."""
    drawn = np.random.default_rng(seed).random((1, SIDE, SIDE), np.float32)
    return torch.from_numpy(drawn).expand(3, -1, -1).contiguous()


def stairs(positions: list[float], aperture: float) -> torch.Tensor:
    """Frames [T, 3, H, W] of three walls side by side, 5, 10 and 15 dioptres near."""
    background = Layer(noisy(0), torch.ones(SIDE, SIDE), torch.full((SIDE, SIDE), 5.0))
    layers = [background]
    for number, dioptres in enumerate((10.0, 15.0)):
        alpha = torch.zeros(SIDE, SIDE)
        alpha[:, 40 * (number + 1) :] = 1
        layers.append(Layer(noisy(number + 1), alpha, torch.full((SIDE, SIDE), dioptres)))
    linear = render_stack(layers, Camera(aperture_mm=aperture), positions)
    return linear_to_srgb(linear) * 2 - 1


@pytest.mark.parametrize("radius", [0.6, 1.0])
def test_a_rendered_stack_blurs_as_its_lens_says(radius: float) -> None:
    """Of places at positions 2, 4 and 6 the renderer says the radius; steps are not even."""
    aperture = 1.9 * radius / Camera().coc_radius_px(STEP_DIOPTRES, SIDE)
    positions = [1.0, 2.0, 3.5, 4.0, 5.0, 6.0, 7.0]
    found = focal_steps(stairs(positions, aperture))
    assert found is not None
    expected = radius * (np.array(positions) - positions[0])
    assert np.abs(found.blur - expected).max() < 0.35 * radius
    assert found.blur[-1] == pytest.approx(expected[-1], rel=0.1)
    assert found.explained > 0.6 and found.misfit < 0.1
    assert found.sharpest[[1, 3, 5]].sum() > 0.9


def test_frames_that_are_no_blur_of_each_other_are_explained_by_none() -> None:
    frames = stairs([2.0, 4.0, 6.0], 1.9)
    moved = torch.stack([frame.roll(7 * n, -1) for n, frame in enumerate(frames)])
    found = focal_steps(moved)
    assert found is None or found.explained < 0.5


def test_a_plain_stack_tells_nothing() -> None:
    assert focal_steps(torch.zeros(4, 3, SIDE, SIDE)) is None


def test_soft_pictures_are_less_crisp_and_scaling_down_makes_them_crisper() -> None:
    sharp = noisy(3)[None]
    soft = blurred(sharp, 2.0)
    assert crispness(soft) < 0.5 < 0.9 < crispness(sharp)
    assert crispness(resized(soft * 2 - 1, (SIDE // 4, SIDE // 4))) > 1.5 * crispness(soft)
