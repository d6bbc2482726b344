"""LPIPS and DISTS against torchmetrics' own, of one random VGG16 in the layout of the real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchmetrics.functional.image import dists as torchmetrics_dists
from torchmetrics.functional.image import lpips as torchmetrics_lpips

from pocketfocus.benchmarks.baselines import COPIES
from pocketfocus.benchmarks.evaluate import Comparison, evaluate_models
from pocketfocus.benchmarks.metric_networks import open_networks
from pocketfocus.benchmarks.metric_weights import VGG16_FILE
from pocketfocus.benchmarks.perceptual import Perceptual
from pocketfocus.data.stacks import FocalStack
from pocketfocus.run.errors import UserError

WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


@pytest.fixture(scope="module")
def features() -> nn.Sequential:
    """As torchvision's `vgg16().features`: 0 is a pooling layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    before = 3
    for width in WIDTHS:
        if not width:
            layers.append(nn.MaxPool2d(2))
            continue
        layer = nn.Conv2d(before, width, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight)
        layers += [layer, nn.ReLU(inplace=True)]
        before = width
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def weights(features: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("metrics")
    tensors = {f"features.{name}": value for name, value in features.state_dict().items()}
    save_file(tensors | {"classifier.6.bias": torch.zeros(1000)}, folder / VGG16_FILE)
    return folder


def two_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(1, 3, 48, 70, generator=generator) * 2 - 1
    noise = torch.randn(truth.shape, generator=generator)
    return (truth + 0.2 * noise).clamp(-1, 1), truth


def test_lpips_is_that_of_torchmetrics(
    features: nn.Sequential, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchmetrics_lpips, "_get_tv_model_features", lambda *_: features)
    theirs = torchmetrics_lpips._LPIPS(net="vgg")
    made, truth = two_images()
    found = Perceptual(weights / VGG16_FILE).lpips(made, truth)
    assert found == pytest.approx(float(theirs(made, truth)), rel=1e-4) and found > 0.01


def test_dists_is_that_of_torchmetrics(
    features: nn.Sequential, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches: dict[str, object] = {
        "_TORCHVISION_AVAILABLE": True,
        "VGG16_Weights": SimpleNamespace(DEFAULT=None),
        "vgg16": lambda weights: SimpleNamespace(features=features),
    }
    for name, value in patches.items():
        monkeypatch.setattr(torchmetrics_dists, name, value, raising=False)
    made, truth = two_images()
    theirs = torchmetrics_dists.DISTSNetwork()((made + 1) / 2, (truth + 1) / 2)
    found = Perceptual(weights / VGG16_FILE).dists(made, truth)
    assert found == pytest.approx(theirs.item(), rel=1e-4) and found > 0.001


def test_evaluation_has_both_where_there_are_weights(weights: Path) -> None:
    stack = FocalStack("pair", torch.cat(two_images()), (0.0, 8.0))
    found = evaluate_models(
        [COPIES], [stack], "pair", Comparison(**open_networks(weights)._asdict())
    )
    (mean,) = found.means
    cells = {(cell.input_position, cell.output_position): cell for cell in found.cells}
    for name in ("lpips", "dists"):
        off = [getattr(cells[pair], name) for pair in ((0, 8), (8, 0))]
        assert getattr(mean, f"mean_{name}_off_diagonal") == pytest.approx(sum(off) / 2)
        assert getattr(cells[0, 0], name) == pytest.approx(0, abs=1e-5)
    without = evaluate_models([COPIES], [stack], "pair").means[0].as_json()
    assert not {"mean_lpips_off_diagonal", "mean_dists_off_diagonal"} & set(without)


def emptied(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def narrower(path: Path) -> None:
    save_file({"features.0.weight": torch.zeros(32, 3, 3, 3)}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (emptied, rf"has neither {VGG16_FILE} \(for LPIPS and DISTS\) nor .*docs/scores\.md"),
        (cut, rf"{VGG16_FILE} cannot be read"),
        (narrower, r"features\.0\.weight is \[32, 3, 3, 3\], VGG16's is \[64, 3, 3, 3\]"),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    damage: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / VGG16_FILE)
    damage(tmp_path / VGG16_FILE)
    with pytest.raises(UserError, match=said):
        open_networks(tmp_path)
