"""What realism is worth: measures of stacks, variants, the table, going on where it stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.optics import Camera, linear_to_srgb
from pocketfocus.data.scenes import FULL
from pocketfocus.data.stacks import FocalStack, RenderedScenes
from pocketfocus.models.model import NamedModel
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.research import realism
from pocketfocus.research.realism import (
    BANDS,
    VARIANTS,
    WHOLE,
    Variant,
    blur_slope,
    brightening,
    contrast,
    gains,
    main,
    realism_table,
    sources,
)

POSITIONS = tuple(map(float, range(9)))


@pytest.mark.parametrize("factor", [1.5, 3.0])
def test_blur_measured_in_a_rendered_stack_is_the_cameras(factor: float) -> None:
    plain = replace(FULL, body=False, aperture=factor)
    stack = RenderedScenes([3], (128, 128), (), plain).load(0)
    wanted = factor * Camera().coc_radius_px(2.5, 128)
    assert blur_slope(stack) == pytest.approx(wanted, rel=0.2)


def test_brightening_is_of_linear_light() -> None:
    light = torch.linspace(0.2, 0.22, 9).reshape(9, 1, 1, 1).expand(9, 3, 16, 16)
    stack = FocalStack("flat", linear_to_srgb(light) * 2 - 1, POSITIONS)
    assert brightening(stack) == pytest.approx(10, abs=0.1)


def test_contrast_is_found_in_its_octave() -> None:
    wave = torch.cos(torch.arange(128) * 2 * torch.pi * 12 / 128).expand(128, 128)
    stack = FocalStack("wave", (0.2 * wave).expand(9, 3, 128, 128), POSITIONS)
    found = contrast(stack)
    assert BANDS[int(np.argmax(found))] == 8
    assert max(found) == pytest.approx(100 * 0.1 / 2**0.5, rel=0.1)
    assert sum(found) < 1.1 * max(found)


def test_gains_are_over_copy_and_by_scene() -> None:
    frames = torch.linspace(-0.5, 0.5, 9).reshape(9, 1, 1, 1).expand(9, 3, 64, 64)
    stacks = [FocalStack(name, frames, POSITIONS) for name in "ab"]

    found = gains(NamedModel("half", None, lambda photo, _: (frames + photo) / 2), stacks)
    assert set(found) == {"a", "b"}
    assert found["a"] == pytest.approx(20 * np.log10(2), abs=0.01)


def test_variants_change_the_stacks() -> None:
    keys = {
        name: tuple(source.key for source in sources(variant, 8, [np.zeros((64, 64, 3), np.uint8)]))
        for name, variant in VARIANTS.items()
    }
    assert len(set(keys.values())) == len(VARIANTS)
    assert len(keys["an eighth from an RGB-D pair"]) == 2


def test_the_table_pairs_scenes() -> None:
    rows = [
        {"variant": WHOLE, "real": {"a": 1.0, "b": 3.0}},
        {"variant": "less", "real": {"a": 0.5, "b": 2.3}},
    ]
    table = realism_table(rows, ["real"]).splitlines()
    assert table[2] == f"| {WHOLE} | +2.00 | – |"
    assert table[3] == "| less | +1.40 | -0.60 ± 0.10 |"


def test_it_measures_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = (128, 128)
    monkeypatch.setattr(realism, "SIZE", size)
    monkeypatch.setattr(realism, "SLOPES", (0.1, 0.2, 0.3))
    held_out = RenderedScenes([1_000_000], size).load(0)
    monkeypatch.setattr(realism, "validation_stacks", lambda: [held_out])
    variants = {WHOLE: Variant(), "bundled photos only": Variant(photos="bundled")}
    monkeypatch.setattr(realism, "VARIANTS", variants)
    scene = tmp_path / "real" / "scene"
    scene.mkdir(parents=True)
    for n, frame in enumerate(RenderedScenes([9], size).load(0).frames):
        pixels = ((frame + 1) * 127.5).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(scene / f"{n}.png")
    command = [str(tmp_path / "real"), "--scenes", "2", "--steps", "1"]
    command += ["--out", str(tmp_path / "out")]
    main(command)
    first = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert f"| {WHOLE} |" in first
    assert "| rendered | 1 |" in first

    def never(*_: Any) -> ReferencePipeline:
        raise AssertionError("trained again")

    monkeypatch.setattr(realism, "train", never)
    main(command)
    assert (tmp_path / "out" / "tables.md").read_text(encoding="utf-8") == first
    assert first in capsys.readouterr().out


def test_a_missing_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "none is not a folder" in capsys.readouterr().err
