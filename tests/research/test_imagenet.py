"""ImageNet's weights in a prior: kernels with their batch norms in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfocus.models.prior import BLOCKS, STEM, Prior
from pocketfocus.models.student import SHIPPED_WEIGHTS, load_student
from pocketfocus.research.imagenet import EPSILON, fill, main
from pocketfocus.run.errors import UserError


def lite0() -> dict[str, Tensor]:
    """Random weights by the names that the package gives them."""
    found: dict[str, Tensor] = {}

    def layer(name: str, norm: str, shape: tuple[int, ...]) -> None:
        found[f"{name}.weight"] = torch.randn(shape) / 10
        for part in ("weight", "bias", "running_mean", "running_var"):
            found[f"{norm}.{part}"] = torch.rand(shape[0]) + 0.5

    layer("_conv_stem", "_bn0", (STEM, 3, 3, 3))
    channels = STEM
    for number, (size, _, expansion, out) in enumerate(BLOCKS):
        name, wide = f"_blocks.{number}", channels * expansion
        if expansion > 1:
            layer(f"{name}._expand_conv", f"{name}._bn0", (wide, channels, 1, 1))
        layer(f"{name}._depthwise_conv", f"{name}._bn1", (wide, 1, size, size))
        layer(f"{name}._project_conv", f"{name}._bn2", (out, wide, 1, 1))
        channels = out
    return found


def test_its_stem_and_blocks_compute_what_lite0s_do() -> None:
    torch.manual_seed(0)
    weights, prior, photo = lite0(), Prior(4, 8), torch.randn(1, 3, 64, 64)
    fill(prior, weights)

    def normed(
        x: Tensor, layer: str, norm: str, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        x = F.conv2d(x, weights[f"{layer}.weight"], None, stride, padding, groups=groups)
        mean, variance = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
        scale, shift = weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        return F.batch_norm(x, mean, variance, scale, shift, eps=EPSILON)

    x = F.relu6(normed(F.avg_pool2d(photo, 2), "_conv_stem", "_bn0", stride=2, padding=1))
    mine = F.relu6(prior.stem(photo))
    assert torch.allclose(mine, x, atol=1e-4)
    for number, block in enumerate(prior.blocks[:3]):
        name, (size, stride, expansion, _) = f"_blocks.{number}", BLOCKS[number]
        wide = x if expansion == 1 else F.relu6(normed(x, f"{name}._expand_conv", f"{name}._bn0"))
        names = f"{name}._depthwise_conv", f"{name}._bn1"
        wide = F.relu6(normed(wide, *names, stride, size // 2, wide.shape[1]))
        made = normed(wide, f"{name}._project_conv", f"{name}._bn2")
        x = x + made if number == 2 else made
        mine = block(mine)
        assert torch.allclose(mine, x, rtol=1e-3, atol=1e-3)


def test_other_weights_are_refused() -> None:
    with pytest.raises(UserError, match="not the weights of EfficientNet-Lite0"):
        fill(Prior(4, 8), {"conv1.weight": torch.zeros(1)})


def test_the_rest_is_the_shipped_students_or_random(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "lite0.pth"
    torch.save(lite0(), weights)
    main([str(weights), str(tmp_path / "kept")])
    main([str(weights), str(tmp_path / "random"), "--preset", "tiny"])
    folders = (SHIPPED_WEIGHTS, tmp_path / "kept", tmp_path / "random")
    shipped, kept, random = (load_student(each).network.state_dict() for each in folders)
    blocks = {name for name in kept if name.startswith(("prior.stem", "prior.blocks"))}
    assert all(torch.equal(kept[name], random[name]) for name in blocks)
    rest = [name for name in kept.keys() - blocks if kept[name].dim() == 4]
    assert all(torch.equal(kept[name], shipped[name]) for name in rest)
    assert not any(torch.equal(kept[name], random[name]) for name in rest if random[name].any())
