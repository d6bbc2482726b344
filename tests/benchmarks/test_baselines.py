"""The baselines, on stacks whose best filter is known because it made them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketfocus.benchmarks.baselines import (
    AMOUNTS,
    CANDIDATES,
    COPIES,
    MASK_SIGMAS_PX,
    SIGMAS_PX,
    Filter,
    _errors,
    baselines,
    blur,
    fit_blur,
    load_table,
    main,
    save_table,
)
from pocketfocus.data.scenes import VALIDATION_SEED, held_out_photos, render_scene, train_photos
from pocketfocus.data.stacks import FocalStack, RenderedScenes
from pocketfocus.run.errors import UserError
from pocketfocus.run.metrics import psnr

WHOLE = tuple(map(float, range(9)))


def noise_photo(seed: int = 0, size: int = 256, height: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(1, 3, height or size, size, generator=generator) * 0.25).clamp(-1, 1)


def test_copy_repeats_the_photo() -> None:
    photo = noise_photo(size=32)
    stack = COPIES(photo, 3)
    assert stack.shape == (9, 3, 32, 32)
    assert all(torch.equal(frame[None], photo) for frame in stack)


def test_a_blur_has_the_stated_standard_deviation() -> None:
    """An impulse becomes a Gaussian: unit mass, and a variance of sigma²."""
    impulse = torch.zeros(1, 3, 256, 256)
    impulse[..., 128, 128] = 1
    made = Filter(sigma_px=3.0)(impulse)[0, 0].double()
    away = torch.arange(256) - 128.0
    assert made.sum().item() == pytest.approx(1, abs=1e-5)
    assert (made.sum(0) * away**2).sum().item() == pytest.approx(9, rel=0.01)
    assert (made.sum(1) * away**2).sum().item() == pytest.approx(9, rel=0.01)


def test_a_blur_grows_with_the_photo() -> None:
    impulse = torch.zeros(1, 3, 128, 512)
    impulse[..., 64, 256] = 1
    made = Filter(sigma_px=2.0)(impulse)[0, 0].double()
    away = torch.arange(512) - 256.0
    assert (made.sum(0) * away**2).sum().item() == pytest.approx(16, rel=0.01)


def test_an_unsharp_mask_adds_what_a_blur_takes_away() -> None:
    photo = noise_photo() * 0.3
    for sigma in (1.0, 4.0):
        blurred = Filter(sigma)(photo)
        torch.testing.assert_close(Filter(sigma, 0.7)(photo), photo + 0.7 * (photo - blurred))


@pytest.mark.parametrize(
    "values", [(-1.0, 0.0), (1.0, -0.1), (float("nan"), 0.0), (1.0, float("inf")), (0.0, 0.5)]
)
def test_filters_that_make_no_sense_are_refused(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="sigma_px"):
        Filter(*values)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CANDIDATES), st.integers(0, 1000))
def test_filters_keep_shape_range_and_flat_photos(candidate: Filter, seed: int) -> None:
    made = candidate(noise_photo(seed, 24))
    assert made.shape == (1, 3, 24, 24)
    assert made.abs().max() <= 1.0001
    flat = torch.full((1, 3, 24, 24), 0.3)
    torch.testing.assert_close(candidate(flat), flat)


def test_the_fit_finds_the_filters_that_made_a_stack() -> None:
    sigmas = [SIGMAS_PX[2 * n] for n in range(8)]
    sharp = noise_photo(height=48)
    frames = torch.cat([sharp, *(Filter(sigma_px=sigma)(sharp) for sigma in sigmas)])
    table = fit_blur([FocalStack("made", frames, WHOLE)])
    assert all(table[n, n] == Filter() for n in range(9))
    assert [table[0, n + 1].sigma_px for n in range(8)] == sigmas
    # a Gaussian after a Gaussian: variances add up
    wanted = (sigmas[7] ** 2 - sigmas[5] ** 2) ** 0.5
    nearest = min(SIGMAS_PX, key=lambda sigma: abs(sigma - wanted))
    assert table[6, 8].sigma_px == nearest


def test_the_fit_finds_an_unsharp_mask() -> None:
    """Both its sigma and its amount."""
    soft = Filter(1.442)(noise_photo(height=48))
    masks = [Filter(MASK_SIGMAS_PX[1 + n % 4], AMOUNTS[2 + n]) for n in range(8)]
    frames = torch.cat([soft, *(mask(soft) for mask in masks)])
    table = fit_blur([FocalStack("made", frames, WHOLE)])
    assert [table[0, n + 1] for n in range(8)] == masks


def test_on_its_training_stacks_no_pair_is_worse_than_copy() -> None:
    """By what is fitted, the squared error pooled over stacks; measured through the model."""
    stacks = list(RenderedScenes(range(2), (64, 64), train_photos()))
    models = COPIES, blur(fit_blur(stacks))
    errors: dict[str, np.ndarray] = {model.name: np.zeros((9, 9)) for model in models}
    for stack in stacks:
        for position in range(9):
            for model in models:
                made = model(stack.frames[position : position + 1], position)
                squares = ((made - stack.frames).double() ** 2).mean((1, 2, 3))
                errors[model.name][position] += squares.numpy()
    assert (errors["blur"] <= errors["copy"] * (1 + 1e-9)).all()
    far = np.abs(np.subtract.outer(range(9), range(9))) >= 3
    assert (errors["blur"] < 0.9 * errors["copy"])[far].mean() > 0.5


def test_errors_are_mean_squares() -> None:
    frames = torch.cat([noise_photo(seed, 32) for seed in range(9)])
    tried = (Filter(), Filter(4.0), Filter(1.0, 1.5), Filter(4.0, 0.3))
    found = _errors(frames, 2, tried)
    expected = [
        [float(((candidate(frames[2:3])[0] - frame).double() ** 2).mean()) for candidate in tried]
        for frame in frames
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_the_fit_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="no stack"):
        fit_blur([])
    with pytest.raises(ValueError, match="has positions"):
        fit_blur([FocalStack("two", torch.zeros(2, 3, 16, 16), (0.0, 8.0))])


def test_the_shipped_table_helps_on_a_scene_it_was_not_fitted_on() -> None:
    """Off the diagonal, over the pairs far apart, it beats repeating the photo."""
    copy, blur = baselines()
    assert (copy.name, blur.name) == ("copy", "blur")
    frames = render_scene(VALIDATION_SEED, (128, 128), held_out_photos())
    gains = []
    for position in (0, 4, 8):
        photo = frames[position : position + 1]
        made = blur(photo, position)
        assert made.shape == frames.shape
        assert torch.equal(made[position], photo[0])
        gains += [
            psnr(made[o], frames[o]) - psnr(photo[0], frames[o])
            for o in range(9)
            if abs(o - position) >= 3
        ]
    assert sum(gains) / len(gains) > 0.1


def test_the_shipped_table_says_how_it_was_made(root: Path) -> None:
    about = json.loads((root / "pocketfocus/weights/blur_baseline.json").read_text())
    assert about["schema_version"] == 1
    assert about["made"]["seeds"][1] < VALIDATION_SEED
    assert about["made"]["command"].startswith("python -m pocketfocus.benchmarks.baselines")
    table = load_table()
    assert set(table.values()) <= set(CANDIDATES), "fitted with another grid: fit it anew"
    assert all(found.sigma_px < max(MASK_SIGMAS_PX) for found in table.values()), "grid too small"


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    table = {(i, o): CANDIDATES[(9 * i + o) % len(CANDIDATES)] for i in range(9) for o in range(9)}
    save_table(tmp_path / "t.json", table, {"seeds": [0, 1]})
    assert load_table(tmp_path / "t.json") == table


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema_version": 1}', "no blur table"),
        ('{"schema_version": 1, "rows": [{"input_position": 0}]}', "no blur table"),
        ('{"schema_version": 1, "rows": []}', "81 are needed"),
        (
            '{"schema_version": 1, "rows": [{"input_position": 0, "output_position": 1, '
            '"sigma_px": 0.0, "amount": 0.5}]}',
            "but sigma_px is 0",
        ),
        ("{", "cannot be read"),
    ],
)
def test_broken_tables_are_refused(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=reason):
        load_table(tmp_path / "t.json")
    with pytest.raises(UserError, match="missing"):
        load_table(tmp_path / "absent.json")


def test_the_command_fits_and_writes(tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    main(["--scenes", "1", "--size", "32", "--out", str(out)])
    table = load_table(out)
    assert all(table[n, n] == Filter() for n in range(9))
    assert blur(table)(noise_photo(size=32), 0).shape == (9, 3, 32, 32)
    with pytest.raises(SystemExit):
        main(["--scenes", "0", "--out", str(out)])
