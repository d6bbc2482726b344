import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pocketfocus.data.scene_pool import Batch, PoolOptions
from pocketfocus.distill.student.analyser_training import (
    Trainer,
    Training,
    losses_of,
    rate_at,
    train,
)
from pocketfocus.models.analyser import PIXELS, PRESETS, load_analyser
from pocketfocus.run.constants import IMAGES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    found = tmp_path / "rgbd"
    found.mkdir()
    Image.fromarray(rng.integers(0, 255, (64, 96, 3), np.uint8)).save(found / "a.jpg")
    Image.fromarray(np.full((64, 96), 300, np.uint16)).save(found / "a.depth.png")
    return found


def random_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, IMAGES, 3, 32, 32, generator=generator) - 0.5
    positions = torch.tensor([0, 3, 7, 8])
    nearness = torch.rand(4, 1, 8, 8, generator=generator)
    return Batch(images[torch.arange(4), positions], positions, images, nearness)


def test_a_code_of_zeros_gains_nothing_over_copying() -> None:
    bands = PRESETS["micro"].bands
    code = torch.zeros(4, IMAGES * (1 + bands + PIXELS), 8, 8)
    batch = random_batch()
    loss, gain, sharp, apart = losses_of(code, batch.nearness, batch, bands)
    assert loss > 0
    assert gain.abs() < 1e-4 and sharp.abs() < 1e-4 and apart == 0


def test_training_lowers_the_loss_and_goes_on_exactly(tmp_path: Path) -> None:
    training = Training(tmp_path / "out", 1, "micro", compiled=False)
    trainer, batch = Trainer(training, "cpu"), random_batch()
    first = [trainer.update(batch, 1e-3)[0].item() for _ in range(8)]
    assert first[-1] < first[0]
    trainer.save()
    on = [trainer.update(batch, 1e-3)[0].item() for _ in range(3)]
    again = Trainer(training, "cpu")
    assert again.resume()
    assert (again.step, again.samples) == (8, 32)
    assert [again.update(batch, 1e-3)[0].item() for _ in range(3)] == pytest.approx(on, abs=2e-3)


def test_a_sitting_leaves_weights_log_and_checkpoint(tmp_path: Path, folder: Path) -> None:
    training = Training(
        tmp_path / "out", 0.05, "micro", batch=2, crop=32, compiled=False, log_every=1
    )
    trainer = train(training, PoolOptions(folder, scenes=4, short=48, long=64))
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, trainer.step + 1))
    assert load_analyser(tmp_path / "out" / "analyser").config == PRESETS["micro"]
    assert Trainer(training, "cpu").resume()


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    training = Training(Path(), 10, rate=1.0, decay=0.25)
    assert rate_at(training, 0, 0.0) == pytest.approx(0.01)
    assert rate_at(training, 500, 0.5) == 1.0
    assert rate_at(training, 500, 0.875) == pytest.approx(0.5)
    assert rate_at(training, 500, 1.0) == pytest.approx(0.01)
