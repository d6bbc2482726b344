"""Weights of the networks that metrics look through, from files in a folder that the user names."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from pocketfocus.models.checkpoints import Checkpoint
from pocketfocus.run.errors import UserError

VGG16_FILE = "vgg16-397923af.safetensors"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.safetensors"
METRICS = {VGG16_FILE: "LPIPS and DISTS", INCEPTION_FILE: "FID"}
NOT_KEPT = "num_batches_tracked"  # counts of a training, which no file has to have


def weights_in(folder: Path) -> dict[str, Path]:
    """Return the files of networks that a folder has, by their names; UserError for none."""
    found = {name: folder / name for name in METRICS if (folder / name).is_file()}
    if not found:
        wanted = " nor ".join(f"{name} (for {metrics})" for name, metrics in METRICS.items())
        raise UserError(f"{folder} has neither {wanted}: docs/scores.md says how they are made")
    return found


def fill(network: nn.Module, path: Path, of: str, prefix: str = "") -> None:
    """Take a network's tensors from a file, in which they are named with a prefix.

    UserError for a file that is damaged, or of another network than the one that `of` names.
    """
    found, tensors = Checkpoint((path,)), network.state_dict()
    for name in [name for name in tensors if name.endswith(NOT_KEPT)]:
        del tensors[name]
    for name, value in tensors.items():
        has = list(found.shape(prefix + name)) if prefix + name in found else "absent"
        if has != list(value.shape):
            raise UserError(
                f"{path}: {prefix}{name} is {has}, {of}'s is {list(value.shape)}: docs/scores.md "
                "says how the file is made"
            )
    network.load_state_dict({name: found[prefix + name] for name in tensors}, strict=False)
