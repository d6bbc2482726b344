"""Optics against formulas: blur radii, energy, occlusion, the sRGB curve."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pocketfocus.data.optics import (
    Camera,
    Layer,
    Shoulder,
    dioptres,
    disc_kernel,
    linear_to_srgb,
    one_hot,
    render_stack,
    srgb_to_linear,
)
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError

SIZE = 96
CAMERA = Camera(sensor_side_mm=5.6 * SIZE / 256)  # radii in pixels as at 256 pixels width


def plane(value: float, depth: float, alpha: torch.Tensor | None = None) -> Layer:
    whole = torch.ones(SIZE, SIZE)
    cover = whole if alpha is None else alpha
    return Layer(torch.full((3, SIZE, SIZE), value), cover, depth * whole)


def left_half() -> torch.Tensor:
    alpha = torch.zeros(SIZE, SIZE)
    alpha[:, : SIZE // 2] = 1
    return alpha


def second_moment(image: torch.Tensor) -> float:
    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64) for n in image.shape), indexing="ij"
    )
    weight = image.double() / image.double().sum()
    y, x = (rows * weight).sum(), (columns * weight).sum()
    return float((((rows - y) ** 2 + (columns - x) ** 2) * weight).sum())


def test_positions_are_linear_in_dioptres_from_5_cm_to_infinity() -> None:
    assert dioptres(0) == pytest.approx(1 / 0.05)
    assert dioptres(FRAMES - 1) == 0
    steps = [dioptres(p) - dioptres(p + 1) for p in range(FRAMES - 1)]
    assert steps == pytest.approx([2.5] * 8)


def test_one_hot_marks_its_position_and_refuses_others() -> None:
    assert one_hot(3).tolist() == [[0, 0, 0, 1, 0, 0, 0, 0, 0]]
    for position in (-1, FRAMES):
        with pytest.raises(UserError, match=str(position)):
            one_hot(position)


def test_radius_follows_the_exact_thin_lens() -> None:
    """The lens equation with the sensor at the focused image distance, where f·D is small."""
    camera, f, aperture = Camera(), 4.2e-3, 1.9e-3
    focus, depth = 1.0, 4.0
    sensor = 1 / (1 / f - focus)
    image = 1 / (1 / f - depth)
    diameter = aperture * abs(sensor - image) / image
    exact = diameter / 2 / 5.6e-3 * 256
    assert camera.coc_radius_px(depth - focus, 256) == pytest.approx(exact, rel=0.01)
    assert camera.coc_radius_px(-3, 512) == 2 * camera.coc_radius_px(3, 256)


@given(st.floats(0, 9), st.sampled_from([0, 5, 6]))
def test_disc_has_energy_one_and_the_second_moment_of_a_disc(radius: float, blades: int) -> None:
    kernel = disc_kernel(radius, blades)
    assert kernel.min() >= 0
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
    assert second_moment(kernel) == pytest.approx(radius**2 / 2, rel=0.01, abs=2e-3)


def test_disc_is_flat_inside_nothing_outside_and_a_delta_at_zero() -> None:
    kernel = disc_kernel(6.0)
    half = kernel.shape[0] // 2
    distance = torch.hypot(*torch.meshgrid(*[torch.arange(-half, half + 1.0)] * 2, indexing="ij"))
    flat = kernel[distance < 5]
    assert torch.allclose(flat, torch.full_like(flat, 1 / (math.pi * 36)), rtol=0.03)
    assert float(kernel[distance > 7].sum()) == 0
    assert float(disc_kernel(0.2).max()) > 0.97


def test_disc_changes_continuously_with_its_radius() -> None:
    def padded(radius: float) -> torch.Tensor:
        kernel = disc_kernel(radius)
        pad = 6 - kernel.shape[0] // 2
        return torch.nn.functional.pad(kernel, (pad,) * 4)

    radii = [0.02 * n for n in range(150)]
    steps = [float((padded(a) - padded(b)).abs().sum()) for a, b in pairwise(radii)]
    assert max(steps) < 0.05


@pytest.mark.parametrize("depth", [0.0, 2.5, 8.75, 20.0])
def test_a_point_spreads_by_the_formula_and_keeps_its_energy(depth: float) -> None:
    layer = plane(0.0, depth)
    layer.rgb[:, SIZE // 2, SIZE // 2] = 1.0
    stack = render_stack([layer], CAMERA)
    for position in range(FRAMES):
        radius = CAMERA.coc_radius_px(depth - dioptres(position), SIZE)
        point = stack[position, 0]
        assert float(point.sum()) == pytest.approx(1, abs=1e-3)
        near = point[SIZE // 2 - 10 : SIZE // 2 + 11, SIZE // 2 - 10 : SIZE // 2 + 11]
        assert second_moment(near) == pytest.approx(radius**2 / 2, rel=0.02, abs=0.02)


def test_a_plane_in_focus_is_unchanged_and_out_of_focus_is_not() -> None:
    layer = plane(0.0, dioptres(3))
    layer.rgb = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    stack = render_stack([layer], CAMERA)
    assert torch.allclose(stack[3], layer.rgb, atol=1e-5)
    assert all(float((stack[p] - layer.rgb).abs().mean()) > 0.01 for p in range(FRAMES) if p != 3)


def test_borders_and_slanted_surfaces_keep_a_constant_colour() -> None:
    ramp = torch.linspace(0, 19, SIZE)[:, None].expand(SIZE, SIZE)
    whole = Layer(torch.full((3, SIZE, SIZE), 0.5), torch.ones(SIZE, SIZE), ramp)
    assert torch.allclose(render_stack([whole], CAMERA), torch.tensor(0.5), atol=1e-4)
    # the same surface in front of black: no seam lets the background through
    stack = render_stack([plane(0.0, 0.0), whole], CAMERA)
    inside = stack[..., 20:-20, 20:-20]
    assert float(inside.min()) > 0.499
    assert float(inside.max()) < 0.501


def test_a_blurred_near_object_is_seen_through_and_its_edge_is_the_disc_integral() -> None:
    near = plane(1.0, 15.0, left_half())
    frame = render_stack([plane(0.0, 0.0), near], CAMERA, [8])[0, 0, SIZE // 2]
    radius = CAMERA.coc_radius_px(15, SIZE)
    for column in range(SIZE // 2 - 6, SIZE // 2 + 6):
        s = max(-1.0, min(1.0, (column - SIZE / 2 + 0.5) / radius))
        covered = 0.5 - (s * math.sqrt(1 - s * s) + math.asin(s)) / math.pi
        assert float(frame[column]) == pytest.approx(covered, abs=0.03)


def test_in_focus_background_detail_survives_through_a_blurred_near_edge() -> None:
    back = plane(0.0, 0.0)
    back.rgb[:, ::2] = 1.0
    frame = render_stack([back, plane(0.0, 15.0, left_half())], CAMERA, [8])[0, 0]
    column = SIZE // 2 + 1
    detail = float(frame[40, column] - frame[41, column])
    covered = render_stack([plane(0.0, 0.0), plane(1.0, 15.0, left_half())], CAMERA, [8])
    see_through = 1 - float(covered[0, 0, 40, column])
    assert 0.4 < see_through < 0.9
    assert detail == pytest.approx(see_through, abs=1e-3)


def test_a_blurred_background_never_bleeds_over_a_sharp_near_edge() -> None:
    near = plane(0.0, dioptres(2), left_half())
    frame = render_stack([plane(1.0, 0.0), near], CAMERA, [2])[0, 0]
    assert float(frame[:, : SIZE // 2].abs().max()) < 1e-4
    assert float((frame[:, SIZE // 2 :] - 1).abs().max()) < 1e-4


def test_a_triangular_aperture_is_turned_on_the_other_side_of_the_focus() -> None:
    camera = replace(CAMERA, blades=3)

    def point(depth: float) -> torch.Tensor:
        layer = plane(0.0, depth)
        layer.rgb[:, SIZE // 2, SIZE // 2] = 1.0
        spread = render_stack([layer], camera, [4])[0, 0]
        return spread[SIZE // 2 - 10 : SIZE // 2 + 11, SIZE // 2 - 10 : SIZE // 2 + 11]

    near, far = (point(dioptres(4) + side) for side in (6.25, -6.25))
    assert torch.allclose(near, far.flip(0, 1), atol=1e-5)
    assert float((near - far).abs().sum()) > 0.2


def test_srgb_round_trip_and_known_values() -> None:
    values = torch.linspace(0, 1, 1001)
    assert torch.allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-5)
    assert float(srgb_to_linear(torch.tensor(0.5))) == pytest.approx(0.21404, abs=1e-5)
    assert float(linear_to_srgb(torch.tensor(7.0))) == pytest.approx(1)


def test_a_tone_curves_shoulder_is_undone_and_applied() -> None:
    values = torch.linspace(0, 1, 999)
    for shoulder in (Shoulder(), Shoulder(0.5, 4.0), Shoulder(2.0, 12.0)):
        light = shoulder.undone(values)
        assert bool((light.diff() > 0).all())
        assert float(light[-1]) == pytest.approx(1 + shoulder.strength)
        assert torch.allclose(shoulder.applied(light), values, atol=2e-6)
        assert shoulder.applied(torch.tensor([0.0, 9.0])).tolist() == [0.0, 1.0]


def test_bad_scenes_are_refused_with_both_sides() -> None:
    with pytest.raises(UserError, match="at least one layer"):
        render_stack([], CAMERA)
    with pytest.raises(UserError, match="opaque"):
        render_stack([plane(1.0, 0.0, left_half())], CAMERA)
    small = Layer(torch.zeros(3, 8, 8), torch.ones(8, 8), torch.ones(8, 8))
    with pytest.raises(UserError, match="96x96"):
        render_stack([plane(1.0, 0.0), small], CAMERA)
