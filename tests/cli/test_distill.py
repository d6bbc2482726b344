"""`distill` from the command line: what it refuses before anything is made, and photos alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers.utils import logging

from pocketfocus.cli import main, train
from pocketfocus.distill.reference.phases import save_reference
from pocketfocus.distill.reference.presets import SMALLEST, build_reference
from pocketfocus.distill.student.methods import METHODS
from pocketfocus.models.student import build_student, load_student, save_student
from pocketfocus.run.files import read_json, sha256

Words = list[str]
SIDE = 64


@pytest.fixture(autouse=True)
def no_bars() -> Iterator[None]:
    """As the command line has it, which says so before transformers is imported."""
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def folder_of_stacks(folder: Path, widths: tuple[int, ...]) -> Path:
    """A scene of nine noise images for each width."""
    rng = np.random.default_rng(0)
    for width in widths:
        (folder / f"scene-{width}").mkdir(parents=True)
        for index in range(9):
            pixels = rng.integers(0, 255, (SIDE, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"scene-{width}" / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of_stacks(tmp_path_factory.mktemp("stacks"), (SIDE,))


@pytest.fixture
def words(small_reference: Path, stacks: Path, small_student: Path, tmp_path: Path) -> Words:
    """A distillation of one step into tmp_path/out."""
    asked = ["distill", "--steps", "1", "--teacher-stacks", "2", "--crop", str(SIDE)]
    asked += ["--reference", str(small_reference), "--student", str(small_student)]
    return [*asked, "--stacks", str(stacks), "--out", str(tmp_path / "out")]


def changed(words: Words, option: str, value: object) -> Words:
    """The same with another value of an option."""
    made = list(words)
    made[made.index(option) + 1] = str(value)
    return made


def files(folder: Path) -> dict[str, str]:
    """Hashes of all that is in a folder."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in found}


def refused(words: Words, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with, and that nothing was written."""
    out = Path(words[words.index("--out") + 1])
    before = files(out)
    capsys.readouterr()
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert files(out) == before
    return lines[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_frames": 14}, "a focal stack has 9 frames, "),
        ({"block_out_channels": [32, 64]}, "expected shape torch.Size([64])"),
        ({"in_channels": 12}, "conv_in.weight expected shape torch.Size([32, 12"),
    ],
    ids=["frames", "widths", "channels"],
)
def test_a_teacher_of_other_frames_or_widths(
    change: dict[str, object],
    said: str,
    small_reference: Path,
    words: Words,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    shutil.copytree(small_reference, other)
    config = other / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    line = refused(changed(words, "--reference", other), capsys)
    assert str(other) in line and said in line
    assert "num_frames" not in change or "makes 14 (num_frames in its unet/config.json)" in line


def test_stacks_of_mixed_sizes(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = folder_of_stacks(tmp_path / "mixed", (64, 96))
    line = refused(changed(words, "--stacks", mixed), capsys)
    assert "scene-64/0.png is 64x64, scene-96/0.png is 96x64" in line


@pytest.mark.parametrize("how", ["--photos {}", "--stacks photos:{}", "--stacks {}"])
def test_an_empty_folder(
    how: str, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    option, value = how.format(empty).split(" ")
    line = refused([*words, option, value], capsys)
    assert str(empty) in line and "no " in line


def test_photos_and_students_smaller_than_the_crops(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "small").mkdir()
    Image.new("RGB", (40, 90)).save(tmp_path / "small" / "photo.png")
    line = refused([*words, "--photos", str(tmp_path / "small")], capsys)
    assert "no photo is at least 64 pixels on both sides" in line
    line = refused(changed(words, "--crop", 128), capsys)
    assert "photos are 64x64 pixels, crops need 128" in line and "64 at most" in line


def test_another_preset_or_source(words: Words, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused([*words, "--learn-from", "books"], capsys)
    assert "nothing to learn from books: choose both, reference, stacks" in line
    line = refused([*words, "--preset", "phone"], capsys)
    assert "no student of preset phone (its " in line and "leave out --preset" in line


def test_what_differs_from_the_checkpoint(
    small_reference: Path, words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A resume with another student, reference, photos, stacks or option names both sides."""
    own = folder_of_stacks(tmp_path / "own", (SIDE,))
    words = changed(words, "--stacks", own)
    assert main(words) == 0
    assert main(changed(words, "--steps", 2)) == 0, "a longer one goes on"
    assert read_json(tmp_path / "out" / "distill.json")["steps"] == 2

    def student() -> Words:
        save_student(build_student("micro"), tmp_path / "wider", half=False)
        return changed(words, "--student", tmp_path / "wider")

    def reference() -> Words:
        torch.manual_seed(1)
        save_reference(build_reference(SMALLEST), tmp_path / "other", {})
        return changed(words, "--reference", tmp_path / "other")

    def scene() -> Words:
        Image.new("RGB", (SIDE, SIDE)).save(own / f"scene-{SIDE}" / "0.png")
        return words

    def photos() -> Words:
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (SIDE, SIDE)).save(tmp_path / "photos" / "grey.png")
        return [*words, "--photos", str(tmp_path / "photos")]

    cases: list[tuple[Callable[[], Words], str]] = [
        (student, "student's channels was [16, 32], is [8, 16]"),
        (reference, f"reference was {sha256(small_reference)}, is "),
        (photos, "photos was bundled, is 1 ("),
        (lambda: changed(words, "--stacks", "synthetic"), "stacks was ["),
        (lambda: [*words, "--seed", "5"], "seed was 0, is 5"),
        (lambda: [*words, "--method", "adversarial"], "method was regression, is adversarial"),
        (lambda: [*words, "--learning-rate", "0.5"], "rate was 2e-05, is 0.5"),
        (lambda: [*words, "--qat", "int4"], "qat was None, is {"),
        (lambda: [*words, "--learn-from", "stacks"], "learn from was both, is stacks"),
        (scene, "content of stacks was "),
    ]
    for change, said in cases:
        line = refused(change(), capsys)
        assert said in line and "choose another --out" in line, line


def test_photos_alone_are_enough(words: Words, tmp_path: Path) -> None:
    """The reference refocuses them, and they are textures of rendered stacks."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (80, 70), (255, 0, 0)).save(folder / "red.png")
    asked = changed(words, "--stacks", f"photos:{folder}")
    assert main([*asked, "--photos", str(folder), "--scenes", "1"]) == 0
    out = tmp_path / "out"
    assert load_student(out / "student").photo_size == (SIDE, SIDE)
    kept = read_json(out / "targets" / f"true-{SIDE}x{SIDE}" / "stacks.json")
    assert kept["names"] == ["synthetic-0"]
    for path in (out / "targets").glob("*/*.safetensors"):
        photo = load_file(path)["photo"].flatten(0, -2)
        assert torch.equal(photo, torch.tensor([[255, 0, 0]], dtype=torch.uint8).expand_as(photo))


def test_help_names_every_method() -> None:
    told = train.METHODS_HELP
    (option,) = (each for each in get_args(train.Method) if hasattr(each, "metavar"))
    assert option.metavar.split("|") == list(METHODS)
    assert [part.partition(":")[0].strip() for part in told.split(";")] == list(METHODS)
