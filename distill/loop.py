"""One training loop for every model here: AdamW, EMA, cosine decay, JSONL log, checkpoints.

Weights and optimizer state are kept in safetensors, so nothing that is loaded can run code.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketfocus.errors import UserError
from pocketfocus.files import write_atomic
from pocketfocus.progress import progress_bar

StepFunction = Callable[[torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the budget ends at `steps` or `minutes`, whichever first."""

    minutes: float = math.inf
    steps: int = 10**9
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    checkpoint_minutes: float = 5.0
    log_every: int = 10


class Trainer:
    """Trains `model` in place; `average` holds the EMA weights."""

    def __init__(self, model: nn.Module, schedule: Schedule, folder: Path, seed: int = 0) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.named.values(),
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            betas=(0.9, 0.99),
        )
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.minutes = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return min(1.0, max(self.step / self.schedule.steps, self.minutes / self.schedule.minutes))

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to one hundredth, over the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        warmup = min(1.0, (self.step + 1) / self.schedule.warmup_steps)
        return self.schedule.learning_rate * warmup * (0.01 + 0.99 * cosine)

    def run(self, losses: StepFunction, description: str) -> None:
        """Step until the budget is spent. `losses` returns named scalars; `loss` is minimised.

        Raises UserError when the loss is not finite; the last checkpoint stays.
        """
        started, saved = time.monotonic() - 60 * self.minutes, time.monotonic()
        with progress_bar() as bar, open(self.folder / "train.jsonl", "a", encoding="utf-8") as log:
            task = bar.add_task(description, total=1000)
            while self.progress < 1.0:
                values = self._update(losses(self.generator))
                self.minutes = (time.monotonic() - started) / 60
                bar.update(task, completed=int(1000 * self.progress))
                if self.step % self.schedule.log_every == 0 or self.progress >= 1.0:
                    row = {"step": self.step, "minutes": round(self.minutes, 3), **values}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                if time.monotonic() - saved > 60 * self.schedule.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()

    def _update(self, terms: dict[str, Tensor]) -> dict[str, float]:
        loss = terms["loss"]
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.step}: lower the learning rate and "
                f"resume from the last checkpoint in {self.folder}"
            )
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.named.values(), self.schedule.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._average()
        values = {name: round(value.item(), 6) for name, value in terms.items()}
        return {**values, "grad_norm": round(norm.item(), 4), "lr": rate}

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.named.items():
            self.average[name].lerp_(parameter, 1 - decay)

    def load_average(self) -> None:
        """Put the EMA weights into the model."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(self.average[name])

    def save(self) -> None:
        """Write weights, EMA, Adam moments, random state and counters, atomically."""
        tensors = {f"model.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"ema.{n}": p for n, p in self.average.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["random"] = self.generator.get_state()
        counters = {"step": str(self.step), "minutes": str(self.minutes)}
        with write_atomic(self.folder / "checkpoint.safetensors") as scratch:
            save_file({n: t.contiguous() for n, t in tensors.items()}, scratch, metadata=counters)

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False when there is none.

        Raises UserError when it belongs to another model.
        """
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return False
        tensors = load_file(path)
        stored = {n.removeprefix("model.") for n in tensors if n.startswith("model.")}
        different = sorted(stored ^ self.named.keys()) or sorted(
            n for n in stored if tensors[f"model.{n}"].shape != self.named[n].shape
        )
        if different:
            raise UserError(
                f"{path} is of another model ({different[0]} differs): choose another --out or "
                "delete it"
            )
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name] = tensors[f"ema.{name}"]
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in tensors
                }
        self.generator.set_state(tensors["random"])
        self.step, self.minutes = _counters(path)
        return True


def _counters(path: Path) -> tuple[int, float]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as handle:
        metadata = handle.metadata()
    return int(metadata["step"]), float(metadata["minutes"])
