"""The true stacks that models are scored on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from pocketfocus.benchmarks.truth import FirstStacks, true_stacks, validation_stacks
from pocketfocus.data.scenes import VALIDATION_SEED, held_out_photos, render_scene
from pocketfocus.data.stacks import FocalStack, StackFolder
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in
from pocketfocus.run.telemetry import cache_home
from tests.data.test_stacks import greys, write_scene


def test_validation_scenes_are_rendered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    rendered = validation_stacks(2, (32, 32))
    assert [stack.name for stack in rendered] == [
        f"synthetic-{VALIDATION_SEED}",
        f"synthetic-{VALIDATION_SEED + 1}",
    ]
    expected = render_scene(VALIDATION_SEED + 1, (32, 32), held_out_photos())
    assert float((rendered[1].frames - expected).abs().max()) <= 1.01 / 255
    monkeypatch.setattr("pocketfocus.data.stacks.render_scene", None)  # would fail if it rendered
    started = time.perf_counter()
    again = validation_stacks(2, (32, 32))
    assert time.perf_counter() - started < 5
    assert torch.equal(again[0].frames, rendered[0].frames)


def test_a_cache_that_cannot_be_written_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pocketfocus").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"set XDG_CACHE_HOME.*0 MB free"):
        validation_stacks(1, (16, 16))


def test_another_evaluation_that_renders_the_same_scenes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pocketfocus.data.stacks.GATHERING_S", 0.1)
    with (
        alone_in(cache_home() / "validation-16-1", "render"),
        pytest.raises(UserError, match="is being written to by another process: gather stacks"),
    ):
        validation_stacks(1, (16, 16))
    assert len(validation_stacks(1, (16, 16))) == 1


def test_stacks_of_a_folder_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four of a phone's own frames took more memory than a computer has."""
    for name in "abc":
        write_scene(tmp_path / name, greys(9))
    read: list[int] = []
    load = StackFolder.load

    def counted(folder: StackFolder, index: int) -> FocalStack | None:
        read.append(index)
        return load(folder, index)

    monkeypatch.setattr(StackFolder, "load", counted)
    found, _ = true_stacks(str(tmp_path), 2, None)
    assert not read and isinstance(found, FirstStacks) and len(found) == 2
    next(iter(found))
    assert read == [0]
    assert [stack.name for stack in found] == [stack.name for stack in found] == ["a", "b"]
