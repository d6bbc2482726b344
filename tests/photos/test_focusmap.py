"""Focus maps against numpy, halves of known focus, and the true depth of rendered scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from skimage.filters import gaussian
from torch import Tensor
from torch.nn import functional

from pocketfocus.data.optics import Camera, linear_to_srgb, render_stack
from pocketfocus.data.scenes import SENSOR_NOISE, bundled_photos, make_scene
from pocketfocus.photos.focusmap import all_in_focus, best_focus, box, focus_grid, guided, median
from pocketfocus.photos.images import to_tensor
from pocketfocus.run.metrics import psnr

LEFT, RIGHT = 2, 7  # the frames in which the halves of the test stack are sharp
H, W = 96, 144


def blurred(photo: Tensor, sigma: float) -> Tensor:
    """A photo [1, 3, H, W] under a Gaussian."""
    return torch.from_numpy(gaussian(photo.numpy(), (0, 0, sigma, sigma), mode="reflect"))


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(bundled_photos()["chelsea"]).crop((60, 20, 348, 212)).resize((W, H))


@pytest.fixture(scope="module")
def stack(photo: Image.Image) -> Tensor:
    """The photo, its left half sharp in frame LEFT and its right half in frame RIGHT."""
    sharp, frames = to_tensor(photo), []
    for t in range(9):
        near, far = (blurred(sharp, 0.8 * abs(t - at)) for at in (LEFT, RIGHT))
        frames.append(torch.cat([near[..., : W // 2], far[..., W // 2 :]], -1))
    return torch.cat(frames)


def test_box_and_median_are_those_of_the_window() -> None:
    image = torch.rand(12, 17, generator=torch.Generator().manual_seed(0))
    inside = sliding_window_view(image.numpy(), (5, 5))
    mean = box(image[None, None], 2)[0, 0]
    assert np.abs(mean[2:-2, 2:-2].numpy() - inside.mean((2, 3))).max() < 1e-6
    assert abs(mean[0, 0] - image[:3, :3].mean()) < 1e-6  # what is outside does not count
    repeated = sliding_window_view(np.pad(image.numpy(), 2, mode="edge"), (5, 5))
    assert np.array_equal(median(image, 2).numpy(), np.median(repeated, (2, 3)))


def test_guided_filter_keeps_its_guides_edges_and_smooths_elsewhere() -> None:
    step = torch.zeros(1, 1, 32, 32)
    step[..., 16:] = 1
    noisy = step + 0.1 * torch.randn(step.shape, generator=torch.Generator().manual_seed(0))
    filtered = guided(noisy, step, 4, 1e-6)
    assert (filtered - step).std() < 0.3 * (noisy - step).std()
    assert (filtered[..., 16] - filtered[..., 15]).min() > 0.9
    assert torch.allclose(guided(step, step, 4, 1e-9), step, atol=1e-4)
    plain = torch.full_like(step, 0.5)
    assert torch.allclose(guided(noisy, plain, 2, 1e-2), box(box(noisy, 2), 2), atol=1e-5)


def test_best_focus_finds_both_halves(stack: Tensor) -> None:
    focus = best_focus(stack)
    assert focus.shape == (H, W)
    margin = 12
    assert (focus[:, : W // 2 - margin] - LEFT).abs().max() <= 0.5
    assert (focus[:, W // 2 + margin :] - RIGHT).abs().max() <= 0.5


def test_best_focus_lies_between_frames(photo: Image.Image) -> None:
    sharp = to_tensor(photo)
    frames = torch.cat([blurred(sharp, abs(t - 3.5) + 0.5) for t in range(9)])
    assert (best_focus(frames).mean() - 3.5).abs() < 0.2
    frames = torch.cat([blurred(sharp, float(t)) for t in range(9)])
    assert best_focus(frames).abs().max() <= 0.5


@pytest.mark.parametrize("level", [-1.0, 0.3])
def test_plain_stack_has_a_map_and_stays_plain(level: float) -> None:
    plain = torch.full((9, 3, 32, 48), level)
    assert torch.equal(best_focus(plain), torch.zeros(32, 48))
    assert torch.allclose(all_in_focus(plain), plain[0], atol=1e-5)


def test_all_in_focus_beats_every_frame(stack: Tensor, photo: Image.Image) -> None:
    truth = to_tensor(photo)[0]
    fused = all_in_focus(stack)
    assert fused.shape == truth.shape
    best_frame = max(psnr(frame, truth) for frame in stack)
    assert psnr(fused, truth) > best_frame + 6
    assert psnr(fused, truth) > 34


def test_focus_grid() -> None:
    position = torch.zeros(100, 300)
    position[:, 150:] = 6.6
    position[10, 10] = 8.0  # one stray pixel
    grid = focus_grid(position, longest=60)
    assert grid.shape == (20, 60)
    assert set(grid[:, :30].unique().tolist()) == {0}
    assert set(grid[:, 30:].unique().tolist()) == {7}
    assert focus_grid(torch.zeros(3, 200), longest=50).shape == (1, 50)
    assert torch.equal(focus_grid(torch.tensor([[1.0, 5.0]])), torch.tensor([[1, 5]]))


@pytest.mark.parametrize(
    "seed", [2, 3, 6]
)  # of the first ten, those with the widest spread of depth
def test_focus_of_a_rendered_scene_is_its_depth(seed: int) -> None:
    """Thin lens and sensor noise: the true position is 8 (1 - D / 20), the truth a pinhole's."""
    layers = make_scene(seed, (128, 128), [bundled_photos()["coffee"]])
    stack = linear_to_srgb(render_stack(layers, Camera()))
    grain = torch.randn(stack.shape, generator=torch.Generator().manual_seed(seed))
    stack = (stack + SENSOR_NOISE * grain).clamp(0, 1) * 2 - 1
    pinhole = Camera(aperture_mm=1e-6)
    sharp = linear_to_srgb(render_stack(layers, pinhole, [8]))[0].clamp(0, 1) * 2 - 1
    depth = layers[0].dioptres
    for layer in layers[1:]:
        depth = torch.where(layer.alpha > 0.5, layer.dioptres, depth)
    wrong = (best_focus(stack) - (8 * (1 - depth / 20)).clamp(0, 8)).abs()
    assert wrong.median() < 0.15
    assert (wrong < 1).float().mean() > 0.87  # the rest: a few pixels about the edges of the layers
    best_frame = max(psnr(frame, sharp) for frame in stack)
    assert psnr(all_in_focus(stack), sharp) > best_frame + 8


@pytest.mark.parametrize(("shape", "radius"), [((9, 1, 40, 33), 3), ((1, 3, 12, 50), 16)])
def test_a_box_is_the_average_of_what_is_inside(shape: tuple[int, ...], radius: int) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    expected, side = images, 2 * radius + 1
    for window, padding in (((side, 1), (radius, 0)), ((1, side), (0, radius))):
        expected = functional.avg_pool2d(expected, window, 1, padding, count_include_pad=False)
    assert torch.equal(box(images, radius), expected)
