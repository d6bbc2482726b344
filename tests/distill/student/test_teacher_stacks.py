"""The reference's own stacks: sampled once, by one process or several, and kept on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.scenes import held_out_photos
from pocketfocus.distill.student import teacher_stacks
from pocketfocus.distill.student.options import Distillation
from pocketfocus.distill.student.samples import Sample
from pocketfocus.distill.student.stage import distill_run
from pocketfocus.distill.student.teacher_stacks import (
    SampleFiles,
    TeacherStacks,
    load_photos,
    load_sample,
    random_photo_crop,
    sample_teacher_stacks,
    save_sample,
)
from pocketfocus.models.reference import ReferencePipeline
from pocketfocus.models.sampling import PUBLISHED, Sampling
from pocketfocus.run.errors import UserError
from pocketfocus.run.files import sha256


def test_they_are_the_references_own_and_go_on(
    reference: ReferencePipeline, tmp_path: Path
) -> None:
    wanted, photos = TeacherStacks(tmp_path, 2, 9, 64, sampling=Sampling(1)), held_out_photos()
    first = sample_teacher_stacks(reference, photos, wanted)
    before = [sha256(path) for path in first]
    files = sample_teacher_stacks(reference, photos, replace(wanted, count=3))
    assert [sha256(path) for path in files[:2]] == before and len(files) == 3
    sample = load_sample(files[2])
    assert sample.position == 2
    expected = reference(sample.photo, 2, Sampling(1), 2)
    assert (sample.stack - expected).abs().max() < 0.05  # the photo was stored in 8 bits


def test_no_minutes_still_make_one(reference: ReferencePipeline, tmp_path: Path) -> None:
    wanted = TeacherStacks(tmp_path, 9, minutes=0, size=64, sampling=Sampling(1))
    assert len(sample_teacher_stacks(reference, held_out_photos(), wanted)) == 1


def test_processes_share_them(
    reference: ReferencePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Number k of two makes k, k + 2, …, and what they make is what one process makes."""
    photos = held_out_photos()
    wanted = TeacherStacks(tmp_path / "alone", 3, 9, 64, sampling=Sampling(1))
    alone = sample_teacher_stacks(reference, photos, wanted)
    for index, made in ((1, ["000001"]), (0, ["000000", "000001", "000002"])):
        state = SimpleNamespace(
            process_index=index,
            num_processes=2,
            device=torch.device("cpu"),
            is_main_process=index == 0,
            wait_for_everyone=lambda: None,
        )
        monkeypatch.setattr(teacher_stacks, "process_state", lambda state=state: state)
        sample_teacher_stacks(reference, photos, replace(wanted, folder=tmp_path / "shared"))
        assert sorted(path.stem for path in (tmp_path / "shared").iterdir()) == made
    for path in alone:
        assert sha256(path) == sha256(tmp_path / "shared" / path.name)


def test_a_saved_one_comes_back(tmp_path: Path) -> None:
    photo, stack = torch.rand(1, 3, 8, 8) * 2 - 1, torch.rand(9, 3, 8, 8) * 2 - 1
    save_sample(tmp_path / "t.safetensors", Sample(photo, 5, stack, 7))
    back = load_sample(tmp_path / "t.safetensors")
    assert (back.position, back.seed) == (5, 7)
    torch.testing.assert_close(back.photo, photo, atol=1 / 255, rtol=0)
    torch.testing.assert_close(back.stack, stack, atol=1 / 255, rtol=0)


def test_samples_in_files_are_read_as_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As numbers, 10,000 of them would fill 18 GB of memory in every process."""
    read: list[Path] = []

    def load(path: Path) -> Sample:
        read.append(path)
        return load_sample(path)

    monkeypatch.setattr(teacher_stacks, "load_sample", load)
    for n in range(5):
        grey = torch.full((1, 3, 8, 8), n / 4)
        save_sample(tmp_path / f"{n}", Sample(grey, n, grey.expand(9, -1, -1, -1), n))
    samples = SampleFiles([tmp_path / f"{n}" for n in range(5)])
    held_out, rest = samples[:2], samples[2:]
    assert (len(samples), len(held_out), len(rest)) == (5, 2, 3) and not read
    assert rest[0].seed == 2 and read == [tmp_path / "2"]
    assert [sample.position for sample in held_out] == [0, 1] and len(read) == 3


def test_photos_are_decoded_as_they_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """500 photos of 12 megapixels, decoded at once, would take 18 GB."""
    for grey in range(6):
        Image.new("RGB", (64, 48 + grey), (grey, grey, grey)).save(tmp_path / f"{grey}.png")
    Image.new("RGB", (64, 20)).save(tmp_path / "small.png")
    monkeypatch.setattr(teacher_stacks, "KEPT_BYTES", 2 * 3 * 64 * 53)
    photos = load_photos(sorted(tmp_path.glob("*.png")), 32)
    assert "1 photos are smaller than 32 pixels" in capfd.readouterr().err
    assert photos._load.cache_info().currsize == 0
    assert [photos[index].max() for index in range(len(photos))] == [0, 1, 2, 3, 4, 5]
    assert photos._load.cache_info().currsize == 2
    assert random_photo_crop(photos, 32, torch.Generator()).shape == (1, 3, 32, 32)


def test_photos_of_a_phone_are_scaled_down_before_crops_are_cut(tmp_path: Path) -> None:
    """A strip keeps what a crop needs; small photos stay as they are."""
    for name, sides in {"phone": (2000, 1500), "small": (320, 200), "strip": (2000, 200)}.items():
        Image.new("RGB", sides).save(tmp_path / f"{name}.png")
    files = [tmp_path / f"{name}.png" for name in ("phone", "small", "strip")]
    shapes = [photo.shape[:2] for photo in load_photos(files, 128)]
    assert shapes == [(480, 640), (200, 320), (128, 1280)]
    assert load_photos(files[:1], 256)[0].shape == (960, 1280, 3)


def test_small_photos_are_refused() -> None:
    with pytest.raises(UserError, match="40x30"):
        random_photo_crop([np.zeros((30, 40, 3), np.uint8)], 64, torch.Generator())


def test_they_hold_the_seed_that_made_them(
    reference: ReferencePipeline, options: Callable[..., Distillation], tmp_path: Path
) -> None:
    distill_run(tmp_path, options(method="consistency", steps=1, max_teacher_stacks=2))
    paths = sorted((tmp_path / "targets").glob("*/*.safetensors"))
    sample = load_sample(paths[1])
    expected = reference(sample.photo, sample.position, PUBLISHED, sample.seed)
    assert len(paths) == 2 and sample.position == 1
    assert (sample.stack - expected).abs().mean() < 0.03  # the photo was stored in 8 bits
