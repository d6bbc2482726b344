"""Widths and shapes of blur are found again where they are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from pocketfocus.data.optics import linear_to_srgb
from pocketfocus.data.stacks import FocalStack
from pocketfocus.research.blur import APART, SIDE, as_seen, main, rows, study
from pocketfocus.run.constants import POSITIONS


def stack(high: float, wide: float, noise: float = 0.0, seed: int = 0) -> Tensor:
    """Random grain, sharpest in frame 4, whose blur grows by so many pixels a position."""
    generator = np.random.default_rng(seed)
    grain = ndimage.gaussian_filter(generator.random((160, 160)), 0.7)
    grain = np.clip(0.5 + 2 * (grain - 0.5), 0.02, 0.98)
    frames = [
        ndimage.gaussian_filter(grain, (high * abs(at - 4), wide * abs(at - 4)))
        + noise * generator.standard_normal(grain.shape)
        for at in range(9)
    ]
    light = torch.from_numpy(np.stack(frames)).float()[:, None].expand(-1, 3, -1, -1)
    return linear_to_srgb(light) * 2 - 1


@pytest.mark.parametrize(("high", "wide"), [(0.35, 0.35), (0.3, 0.4)])
def test_width_and_shape_are_found(high: float, wide: float) -> None:
    found = [each for each in study(stack(high, wide)) if each.apart <= 4]
    assert len(found) > 20
    for each in found:
        assert each.high / each.apart == pytest.approx(high, rel=0.06)
        assert each.wide / each.apart == pytest.approx(wide, rel=0.06)


def test_what_blur_does_not_explain_lowers_coherence() -> None:
    exact, noisy = (rows("x", study(stack(0.3, 0.3, noise))) for noise in (0.0, 0.05))
    last = [float(lines[0].split("|")[-2].split()[-1]) for lines in (exact, noisy)]
    assert last[0] > 0.97
    assert last[1] < last[0] - 0.02
    assert exact[0].startswith(f"| x | {APART[0]} |")


def test_frames_are_measured_as_the_lens_saw_them() -> None:
    frames = torch.zeros(9, 3, 896, 640)
    assert as_seen(FocalStack("a", frames, POSITIONS, aspect=3 / 4)).shape[-2:] == (427, SIDE)
    assert as_seen(FocalStack("a", frames.mT, POSITIONS)).shape[-2:] == (SIDE, 448)


def test_rendered_scenes_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    main(["synthetic", "--scenes", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(APART)
    assert all(0.2 < float(line.split("|")[4]) < 0.5 for line in lines[2:])
