"""`train-reference` from the command line, on sources of several kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfocus.cli import main
from pocketfocus.distill.reference.training import denoiser_crops
from pocketfocus.run.files import alone_in

SIDE = 128
ODD = 104  # holds crops of 96


@pytest.fixture
def stacks(tmp_path: Path) -> Path:
    """A usable scene of nine noise images, and one of eight."""
    rng = np.random.default_rng(0)
    for name, count in (("desk", 9), ("short", 8)):
        folder = tmp_path / "stacks" / name
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 255, (SIDE, SIDE + 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "stacks"


def test_trains_on_a_folder_and_rendered_scenes(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["train-reference", "--scenes", "8", "--size", str(ODD), "--steps", "2"]
    words += ["--out", str(out), "--stacks", str(stacks)]
    assert main([*words, "--stacks", "synthetic"]) == 0
    assert "short skipped: 8 images instead of 9" in " ".join(capsys.readouterr().err.split())
    about = json.loads((out / "stacks" / "stacks.json").read_text(encoding="utf-8"))
    assert about["names"] == ["desk", *(f"synthetic-{seed}" for seed in range(8))]
    assert (out / "unet" / "config.json").exists()
    assert main(words) == 2
    assert "stacks" in capsys.readouterr().err
    Image.new("RGB", (SIDE, SIDE)).save(stacks / "desk" / "0.png")
    before = (out / "stacks" / "stacks.json").read_bytes()
    assert main([*words, "--stacks", "synthetic"]) == 2
    assert "content of stacks was " in capsys.readouterr().err
    assert (out / "stacks" / "stacks.json").read_bytes() == before, "nothing is gathered anew"


@pytest.mark.parametrize("size", [100, 250, 300, 500, 64, 88])
def test_a_size_that_the_small_reference_does_not_take_is_refused_before_anything_is_rendered(
    size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train-reference", "--size", str(size), "--steps", "2", "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    below = size // 8 * 8
    said = "crops need 96" if size < 96 else f"{size}: take --size {below} or {below + 8}"
    assert said in line
    assert not list(out.rglob("*"))


@pytest.mark.parametrize("sources", [["rgbd"], ["STACKS"], ["rgbd", "STACKS"]])
def test_photos_that_would_be_no_textures_are_refused(
    sources: list[str], stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["train-reference", "--photos", str(stacks / "desk"), "--out", str(out)]
    for source in sources:
        words += ["--stacks", source.replace("STACKS", str(stacks))]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--photos changes nothing without procedural scenes among --stacks" in line
    assert not list(out.rglob("*"))


@pytest.mark.parametrize("side", range(96, 264, 8))
def test_crops_fit_the_networks_and_the_stacks(side: int) -> None:
    for crops in denoiser_crops((side, side)):
        assert crops.size <= side and crops.size % 16 == 0


def test_a_second_training_in_the_folder_is_one_line(
    stacks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both would save the checkpoint, each in the place of the other's."""
    out = tmp_path / "out"
    for words, held in (
        (["train-reference", "--stacks", str(stacks), "--size", str(SIDE), "--steps", "2"], out),
        (["distill", "--photos", str(stacks / "desk")], out / "training"),
    ):
        with alone_in(held, "train"):
            assert main([*words, "--out", str(out)]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"{held} is being written to by another process: " in line
            assert not [path for path in out.rglob("*") if path != held]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere", "no focal stacks at nowhere"),
        ("rgbd:nowhere", "nowhere is not a folder"),
        ("photos:nowhere", "nowhere is not a folder"),
    ],
)
def test_a_missing_source_is_refused_before_anything_is_made(
    source: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train-reference", "--stacks", source, "--out", str(out)]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 1
    assert expected in err[0]
    assert not list(out.rglob("*"))
