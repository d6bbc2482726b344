"""FID's distance against torchmetrics' own, and what is kept while an evaluation runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from pocketfocus.benchmarks import evaluate as evaluate_module
from pocketfocus.benchmarks.evaluate import Scoring, evaluate_scoring
from pocketfocus.benchmarks.frechet import Seen, frechet_distance
from pocketfocus.benchmarks.metric_networks import Networks

FEATURES = 12


class Means(nn.Module):
    """Images of 8 bits to the means of 2x2 parts of each colour."""

    num_features = FEATURES

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def two_sets(made: int, true: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    dark = torch.randint(0, 180, (made, 3, 16, 20), dtype=torch.uint8)
    return dark, torch.randint(0, 256, (true, 3, 16, 20), dtype=torch.uint8)


@pytest.mark.parametrize(("made", "true"), [(40, 60), (5, 7)], ids=["many", "fewer than features"])
def test_the_distance_is_that_of_torchmetrics(made: int, true: int) -> None:
    theirs = FrechetInceptionDistance(feature=Means())
    sets = two_sets(made, true)
    for images, real in zip(sets, (False, True), strict=True):
        theirs.update(images, real=real)
    found = frechet_distance(*(Means()(images) for images in sets))
    expected = theirs.compute().item()
    assert expected > 100 and found == pytest.approx(expected, rel=1e-3)


def test_the_same_images_have_no_distance_and_one_has_none() -> None:
    values = torch.randn(9, 30, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(values, values.flip(0)) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(values[:1], values) is None


class Extract:
    """Stands in for Inception: it counts what it was given, and can be interrupted."""

    def __init__(self, most: float = float("inf")) -> None:
        self.images, self.most = 0, most

    def __call__(self, images: Tensor) -> Tensor:
        self.images += len(images)
        if self.images > self.most:
            raise KeyboardInterrupt
        return nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)


SCORING = Scoring(["copy"], scenes=2, size=(64, 64))


def scored(
    out: Path | None, extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[float | None, int | None]]:
    """The FID of each model on two scenes, and of how many images."""

    def networks(_: Path | None, kept: Path | None) -> Networks:
        return Networks(seen=Seen(extract, kept))

    monkeypatch.setattr(evaluate_module, "open_networks", networks)
    found = evaluate_scoring(SCORING, out, lambda line: None).means
    return {mean.model: (mean.fid, mean.fid_images) for mean in found}


def test_an_interrupted_evaluation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, out = Extract(), tmp_path / "evaluate.json"
    expected = scored(None, whole, monkeypatch)
    per_model = 2 * 9 * 8  # scenes, positions, others
    assert whole.images == per_model * (len(expected) + 1)  # and the true ones
    assert {found[1] for found in expected.values()} == {per_model}
    with pytest.raises(KeyboardInterrupt):
        scored(out, Extract(most=per_model + 1), monkeypatch)
    assert len([*tmp_path.glob("evaluate.json.features/*")]) == per_model // 8
    rest = Extract()
    assert scored(out, rest, monkeypatch) == expected
    assert rest.images == whole.images - per_model
    assert {path.name for path in tmp_path.iterdir()} == {out.name, "evaluate.samples.json"}
