"""FID's Inception against what torch-fidelity's own network says with the same random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.benchmarks.baselines import COPIES
from pocketfocus.benchmarks.evaluate import Comparison, evaluate_models
from pocketfocus.benchmarks.inception import Inception, features, load_inception
from pocketfocus.benchmarks.metric_networks import open_networks
from pocketfocus.benchmarks.metric_weights import INCEPTION_FILE
from pocketfocus.data.stacks import FocalStack
from pocketfocus.run.errors import UserError

THEIRS = [
    [0.0, 1.0076, 0.0, 0.0067, 4.0332, 1.5473, 1.5641, 1.2179],
    [0.0, 0.9706, 0.0, 0.0078, 4.0129, 1.5157, 1.5393, 1.1874],
]
"""Of torchmetrics 1.9's `NoTrainInceptionV3` over torch-fidelity 0.4, for `images` and the weights
of `folder`: every 256th feature, and the mean of all."""
THEIR_MEAN = 0.66877


def layer(random: np.random.RandomState, name: str, shape: torch.Size) -> Tensor:
    """A random tensor of its kind."""
    values = torch.from_numpy(random.standard_normal(tuple(shape)).astype(np.float32))
    if name.endswith("conv.weight"):
        return values * (2 / values[0].numel()) ** 0.5
    scaled = 0.1 * values.clamp(-3, 3)
    return scaled + 1 if name.endswith(("bn.weight", "running_var")) else scaled


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a file in the layout of the published one, with its classifier."""
    random, found = np.random.RandomState(0), tmp_path_factory.mktemp("metrics")
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception().state_dict().items()}
    names = sorted(name for name in shapes if not name.endswith("num_batches_tracked"))
    tensors = {name: layer(random, name, shapes[name]) for name in names}
    save_file(tensors | {"fc.bias": torch.zeros(1008)}, found / INCEPTION_FILE)
    return found


def images(count: int) -> Tensor:
    random = np.random.RandomState(1)
    return torch.from_numpy(random.uniform(-1, 1, (count, 3, 48, 70)).astype(np.float32))


def test_features_are_those_of_torch_fidelity(folder: Path) -> None:
    found = features(load_inception(folder / INCEPTION_FILE), images(2))
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found[:, ::256], torch.tensor(THEIRS), atol=1e-3, rtol=1e-3)
    assert found.mean().item() == pytest.approx(THEIR_MEAN, rel=1e-4)


def test_evaluation_has_fid_where_there_are_weights(folder: Path) -> None:
    stack = FocalStack("pair", images(2), (0.0, 8.0))
    networks = open_networks(folder)
    assert networks.perceptual is None  # VGG16's file is not there
    how = Comparison(inputs=(0, 8), **networks._asdict())
    (mean,) = evaluate_models([COPIES], [stack], "pair", how).means
    assert mean.fid == pytest.approx(0, abs=1e-3)  # the same two images, changed places
    assert mean.fid_images == 2 and mean.mean_lpips_off_diagonal is None
    without = evaluate_models([COPIES], [stack], "pair", Comparison(inputs=(0, 8))).means[0]
    assert not {"fid", "fid_images"} & set(without.as_json())


def emptied(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def of_torchvision(path: Path) -> None:
    """Its network has another count of channels there."""
    tensors = load_file(path)
    name = "Mixed_7c.branch_pool.conv.weight"
    save_file(tensors | {name: tensors[name][:, :1280].contiguous()}, path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (emptied, rf"has neither vgg16-397923af\.safetensors .* nor {INCEPTION_FILE} \(for FID\)"),
        (cut, rf"{INCEPTION_FILE} cannot be read"),
        (
            of_torchvision,
            r"Mixed_7c\.branch_pool\.conv\.weight is \[192, 1280, 1, 1\], FID's Inception's is "
            r"\[192, 2048, 1, 1\]: docs/scores\.md",
        ),
    ],
)
def test_weights_that_are_not_there_are_one_line(
    damage: Callable[[Path], None], said: str, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / INCEPTION_FILE).write_bytes((folder / INCEPTION_FILE).read_bytes())
    damage(tmp_path / INCEPTION_FILE)
    with pytest.raises(UserError, match=said):
        open_networks(tmp_path)
