from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.datasets import TEST, TRAIN, scene_list
from pocketfocus.data.optics import Camera
from pocketfocus.data.photo_scenes import PHONE_WIDTH
from pocketfocus.data.stacks import FocalStack, StackFolder
from pocketfocus.photos.focusmap import sharpness
from pocketfocus.photos.images import to_uint8
from pocketfocus.research import real_stacks
from pocketfocus.research.focal_steps import resized
from pocketfocus.research.real_stacks import (
    APERTURES,
    OVERLAP,
    PHONE_STEP,
    copied,
    main,
    placed,
    windows,
)
from pocketfocus.run.constants import FRAMES, POSITIONS
from pocketfocus.run.files import read_json
from pocketfocus.run.metrics import psnr
from tests.research.test_focal_steps import SIDE, STEP_DIOPTRES, stairs

WriteStack = Callable[[str, torch.Tensor], Path]


@pytest.fixture
def write_stack(tmp_path: Path) -> WriteStack:
    """write_stack(name, frames): a folder of them, with positions.txt, in tmp_path/stacks."""

    def write(name: str, frames: torch.Tensor) -> Path:
        folder = tmp_path / "stacks" / name
        folder.mkdir(parents=True)
        for number, frame in enumerate(to_uint8(frames)):
            Image.fromarray(frame).save(folder / f"{number}.png")
        spread = np.linspace(0, FRAMES - 1, len(frames))
        (folder / "positions.txt").write_text("\n".join(f"{x:.3f}" for x in spread))
        return folder.parent

    return write


def aperture(step: float) -> float:
    """Of a lens that blurs by so many pixels a focal step in a picture SIDE wide."""
    return 1.9 * step / Camera().coc_radius_px(STEP_DIOPTRES, SIDE)


def test_a_phone_s_frames_stand_for_themselves() -> None:
    found = placed(PHONE_STEP * np.arange(9), 0.9, 1.2)
    assert found.frames == tuple(range(9)) and found.farthest < 0.05
    assert found.step == pytest.approx(PHONE_STEP, rel=0.02)


def test_of_many_frames_those_are_taken_that_lie_a_phone_s_step_apart() -> None:
    """Seventeen at half a step: every other one, whatever the scale."""
    found = placed(0.5 * PHONE_STEP * np.arange(17), 1.0, 1.0)
    assert np.diff(found.frames).tolist() == [2] * 8 and found.distinct == 9


def test_frames_too_far_apart_or_too_few_are_told() -> None:
    apart = placed(3 * PHONE_STEP * np.arange(9), 0.85, 2.0)
    assert apart.distinct < 8
    few = placed(PHONE_STEP * np.arange(5), 0.85, 2.0)
    assert few.distinct <= 5


def test_a_picture_that_is_scaled_down_may_have_blurred_more() -> None:
    wide = placed(1.3 * PHONE_STEP * np.arange(9), 0.5, 2.0)
    assert wide.frames == tuple(range(9))
    assert wide.step == pytest.approx(1.3 * PHONE_STEP, rel=0.05)


def test_windows_lie_in_the_picture_and_apart() -> None:
    found = windows((400, 640), (100, 150), (1.0, 1.25), np.random.default_rng(0))
    assert len(found) > 4
    for number, window in enumerate(found):
        left, top, right, bottom = window.box
        assert left >= 0 and top >= 0 and right <= 640 and bottom <= 400
        assert (right - left) * window.scale * PHONE_WIDTH / 400 == pytest.approx(150)
        assert (bottom - top) * window.scale * PHONE_WIDTH / 400 == pytest.approx(100)
        assert 1.0 <= window.scale <= 1.25
        assert all(window.overlap(other) < OVERLAP for other in found[:number])


def test_a_window_shows_its_part_scaled() -> None:
    frames = torch.full((2, 3, 64, 64), -1.0)
    frames[:, :, 16:48, 32:] = 1.0
    window = windows((64, 64), (64, 64), (0.2, 0.2), np.random.default_rng(0))[0]
    assert list(window.box) == [0, 0, 64, 64]
    half = resized(frames, (32, 32), window.box)
    assert half.shape == (2, 3, 32, 32)
    assert half[:, :, 10:22, 18:].min() > 0.9 > -0.9 > half[:, :, :6].max()


def test_copying_is_scored_by_distance_and_repeated_frames_do_not_count() -> None:
    frames = torch.linspace(0, 0.8, FRAMES)[:, None, None, None].expand(-1, 3, 4, 4).clone()
    exact = [10 * np.log10(4 / (0.1 * d) ** 2) for d in range(1, FRAMES)]
    assert copied(frames) == pytest.approx(exact, abs=1e-3)
    frames[1] = frames[0]
    assert copied(frames)[0] < exact[0]


def test_stacks_become_a_phone_s_and_those_that_cannot_are_named(
    tmp_path: Path,
    write_stack: WriteStack,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A phone, twice, once of a scene that is held out; a phone that shook, whose frames are moved
    back; one in a light that flickers; and a lens that blurs by three times as much."""
    monkeypatch.setattr(real_stacks, "PHONE_WIDTH", SIDE)
    phone = stairs([float(n) for n in range(9)], aperture(PHONE_STEP))
    shaken = torch.stack([frame.roll(3 * (n % 3), -1) for n, frame in enumerate(phone)])
    reason = real_stacks.converted(FocalStack("shaken", shaken, POSITIONS), (112, 112), 2).reason
    assert reason.startswith("pairs of frames differ from one line")
    write_stack("lfsd-lytro-010", phone)
    write_stack("plain", phone)
    write_stack("shaken", shaken)
    gains = torch.tensor([0.5, 1.0] * 4 + [0.5])[:, None, None, None]
    write_stack("flickering", (phone + 1) * gains - 1)
    folder = write_stack("wide", stairs([float(n) for n in range(9)], aperture(3 * PHONE_STEP)))
    out = tmp_path / "out"
    main([str(folder), str(out), "--size", "112x112", "--windows", "2"])
    said = capsys.readouterr()
    for name, reason in (
        ("flickering", "blur explains"),
        ("wide", "5 of its frames lie near the nine positions"),
    ):
        assert f"{name} left out: {reason}" in said.err
    assert said.out.splitlines()[-1].startswith("| 5 | 3 | ")
    rows = {row["name"]: row for row in read_json(out / "summary.json")["stacks"]}
    assert rows["plain"]["frames"] == list(range(9)) and rows["plain"]["left_out"] == ""
    scales = rows["plain"]["scales"]
    steps = [scale * rows["plain"]["step_px"] / PHONE_STEP for scale in scales]
    assert all(APERTURES[0] - 0.02 <= step <= APERTURES[1] + 0.02 for step in steps)
    assert scene_list(out, TEST) == {f"lfsd-lytro-010-{n}" for n in range(len(scales))}
    kept = StackFolder(out, only=scene_list(out, TRAIN))
    assert {name.rpartition("-")[0] for name in kept.names} == {"plain", "shaken"}
    steady, still = (StackFolder(out, only={f"{name}-0"}).load(0) for name in ("plain", "shaken"))
    assert steady is not None and still is not None
    assert psnr(still.frames[0], still.frames[1]) > psnr(steady.frames[0], steady.frames[1]) - 1
    made = kept.load(0)
    assert made is not None and made.frames.shape == (9, 3, 112, 112)
    sharp = sharpness(made.frames)  # walls at position 6 on the left, at 2 on the right
    assert int(sharp[..., 4:24].mean((1, 2)).argmax()) == 6
    assert int(sharp[..., -24:-4].mean((1, 2)).argmax()) == 2


def test_nothing_usable_and_wrong_options_are_one_line(
    tmp_path: Path, write_stack: WriteStack, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_stack("plain", torch.zeros(9, 3, SIDE, SIDE))
    for arguments, message in (
        (["--size", "112x112"], "none of the 1 stacks in"),
        (["--size", "272x272"], f"plain left out: it is {SIDE}x{SIDE}, smaller than"),
        (["--size", "12"], "too small"),
        (["--windows", "0"], "give 1 or more"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(folder), str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
