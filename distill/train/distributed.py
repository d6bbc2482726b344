"""One process or many, by accelerate: devices, DDP, and FSDP for the full-size UNet.

`accelerate launch --multi_gpu --num_processes N -m pocketfocus train-reference …` runs DDP, without
GPUs on the CPU (`--cpu` would start one process); `--use_fsdp` instead of `--multi_gpu` runs FSDP2
(`fully_shard`). accelerate shards on accelerators only, so a test makes it believe that two CPU
processes are two GPUs; on real GPUs sharding is not-run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from pocketfocus.run.errors import UserError
from pocketfocus.run.files import alone_in

WAIT = timedelta(hours=12)  # the main process may render or encode stacks while the others wait
# The blocks of SVD's UNet that are gathered one at a time: at most 61 M parameters each.
SHARDED = ("BasicTransformerBlock", "TemporalBasicTransformerBlock", "SpatioTemporalResBlock")


def wants_sharding() -> bool:
    """Say whether `accelerate launch --use_fsdp` started this process."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def sharding_plugin(model: nn.Module) -> FullyShardedDataParallelPlugin:
    """Plan FSDP2 of a model with SVD's UNet in it, gathered a block at a time, resharded after each
    use; UserError when `model` has none of SVD's blocks.

    Zhao et al., arXiv 2304.11277. Weights stay fp32, autocast computes in bf16: FSDP's own mixed
    precision would also round the noise levels, which are inputs.
    """
    found = {type(module).__name__ for module in model.modules()}
    missing = [name for name in SHARDED if name not in found]
    if missing:
        raise UserError(
            f"sharding is for SVD's UNet, this model has no {missing[0]}: launch without --use_fsdp"
        )
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(SHARDED),
        cpu_ram_efficient_loading=False,
        state_dict_type="FULL_STATE_DICT",
    )


def computes_in_bf16(device: torch.device) -> bool:
    """Say whether a device has instructions for bf16; a CPU without them emulates it 10 to 60 times
    slower than fp32 (measured on one with AVX2)."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def can_compile() -> bool:
    """Say whether PyTorch finds what it compiles with, by trying; TORCH_COMPILE_DISABLE=1 lets it
    compile nothing."""
    try:
        torch.compile(torch.square)(torch.zeros(8, device=process_state().device))
    except Exception:  # a compiler's absence has many
        return False
    return True


def process_state() -> PartialState:
    """Say which process this is, and start the process group when launched with several."""
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=WAIT)


def make_accelerator(model: nn.Module, accumulate: int = 1) -> Accelerator:
    """Make the accelerator that trains `model`, sharded when launched with --use_fsdp.

    Raises UserError when it cannot be sharded, see `sharding_plugin`.
    """
    process_state()
    return Accelerator(
        mixed_precision="no",  # the training loop says where it is bf16
        gradient_accumulation_steps=accumulate,
        fsdp_plugin=sharding_plugin(model) if wants_sharding() else None,
    )


@contextmanager
def main_process_first() -> Iterator[bool]:
    """Let the main process write the files that the others then only read.

    Yields whether this is the main process.
    """
    state = process_state()
    with state.main_process_first():
        yield bool(state.is_main_process)


@contextmanager
def alone_together(folder: Path, what: str) -> Iterator[None]:
    """Let these processes, and no others, train in a folder; UserError naming `what` is done when
    others still do."""
    with ExitStack() as held:
        with main_process_first() as is_main:
            if is_main:
                held.enter_context(alone_in(folder, what))
        yield


def whole(tensor: Tensor) -> Tensor:
    """Gather all of a tensor that may be sharded; every process has to call it."""
    tensor = tensor.detach()
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def placed_like(value: Tensor, like: Tensor) -> Tensor:
    """Put `value` on the device of `like`, sharded and laid out in memory as it is: that changes
    how sums round."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    if value.shape == like.shape:
        return torch.empty_like(like).copy_(value)
    return value.to(like.device)


def reshard(model: nn.Module) -> None:
    """Drop the gathered weights of a sharded model, so that a change of the shards is seen."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
