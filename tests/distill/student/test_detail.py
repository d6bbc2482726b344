"""The gain of finer detail: what is compared is what is rendered, and nothing else learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketfocus.data.optics import one_hot
from pocketfocus.distill.student import detail
from pocketfocus.distill.student.detail import Detail, train_detail
from pocketfocus.distill.student.samples import Batch
from pocketfocus.distill.train.schedule import Schedule
from pocketfocus.models.render import Analysed, aperture_of, focus_weights
from pocketfocus.models.student import RefocusStudent, build_student, load_student
from pocketfocus.run.constants import FRAMES, IMAGES
from tests.distill.conftest import cached


@pytest.fixture
def student(small_student: Path) -> RefocusStudent:
    return load_student(small_student)


def test_it_compares_what_render_makes(student: RefocusStudent) -> None:
    photo = F.interpolate(torch.rand(1, 3, 32, 32) * 0.4 - 0.2, (128, 128), mode="bicubic")
    position = torch.tensor([3])
    batch = Batch(photo, position, photo[:, None].expand(1, IMAGES, -1, -1, -1), torch.empty(0))
    with torch.no_grad():
        found = Detail(student).rendered(batch)[0].clamp(-1, 1)
        small = F.interpolate(photo, (64, 64), mode="bicubic", antialias=True)
        analysed = Analysed(small, student.analyse(small, one_hot(3)), (64, 64))
        wanted = [analysed.render(photo, focus_weights(n), aperture_of(1)) for n in range(FRAMES)]
        wanted.append(analysed.render(photo, focus_weights(0), aperture_of(0)))
    gains = analysed.analysis.detail.abs().amax((0, 2, 3))
    assert gains[[n for n in range(IMAGES) if n != 3]].min() > 0.01  # something is rendered
    for n in set(range(IMAGES)) - {3}:  # its own frame is the photo, and does not count
        torch.testing.assert_close(found[n][None], wanted[n], atol=2e-5, rtol=1e-4)


def test_blur_takes_fine_detail_away_and_nothing_else_changes(tmp_path: Path) -> None:
    """Every other frame is blurred: of a photo that is not, these have no detail."""
    fine = np.random.default_rng(0).integers(0, 255, (6, 1, 3, 144, 144), np.uint8)
    frames = np.concatenate([np.full_like(fine, 127)] * FRAMES, 1)
    frames[:, ::2] = fine
    student = build_student("micro")
    before = {n: p.clone() for n, p in student.state_dict().items()}
    images = torch.from_numpy(cached(frames).images[:, ..., :128, :128].copy())
    batch = Batch(images[:, 4], torch.full((len(images),), 4), images, torch.empty(0))
    first = Detail(student).losses(*batch)
    train_detail(student, cached(frames), tmp_path, Schedule(steps=12), {})
    last = Detail(student).losses(*batch)
    assert float(last["loss"].detach()) < float(first["loss"].detach()) - 0.02
    with torch.no_grad():
        small = F.interpolate(batch.floats().photos, (64, 64), mode="bicubic", antialias=True)
        gains = student.analyse(small, batch.places).detail.mean((0, 2, 3))
    kept, blurred = gains[0:FRAMES:2], gains[1:FRAMES:2]
    assert float(blurred.max()) < min(0.0, float(kept.min()))
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("network.detail."), name


def test_a_layer_that_training_makes_worse_is_not_taken_over(
    student: RefocusStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(detail, "held_out_loss", lambda *_: next(losses))
    before = student.network.detail.weight.clone()
    noise = np.random.default_rng(0).integers(0, 255, (2, 9, 3, 64, 64), np.uint8)
    train_detail(student, cached(noise), tmp_path, Schedule(steps=2), {})
    assert torch.equal(student.network.detail.weight, before)
