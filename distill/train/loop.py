"""One training loop for every model here: AdamW, EMA, cosine decay, bf16, exact resume.

accelerate places the model and joins the processes. A step's random numbers are one seed per sample
of the global batch, so that B samples each on 2 processes, 2 accumulated batches of B on one, and
one batch of 2B are the same step.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketfocus.distill.train.checkpoint import (
    FILE,
    Config,
    Counters,
    check_config,
    read_checkpoint,
    write_checkpoint,
)
from pocketfocus.distill.train.distributed import (
    computes_in_bf16,
    make_accelerator,
    placed_like,
    reshard,
    whole,
)
from pocketfocus.distill.train.run_log import Journal
from pocketfocus.run.errors import UserError
from pocketfocus.run.memory import keep_freed_memory
from pocketfocus.run.progress import console, progress_bar

LARGEST_SEED = 2**63 - 1
REPORT_SECONDS = 60.0  # between lines where the progress bar cannot be shown
PATIENCE_SECONDS = 3.0  # a second Ctrl-C after this stops without saving


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train; the budget ends at `steps` or `minutes`, whichever first.

    With `steps` alone nothing depends on the clock, so an interrupted training ends bit for bit
    where an uninterrupted one does.
    """

    minutes: float = math.inf
    steps: int = 10**9
    learning_rate: float = 3e-4
    warmup_steps: int = 50
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    accumulate: int = 1
    bf16: bool | None = None  # None: where the device has instructions for it
    checkpoint_minutes: float = 5.0
    picture_minutes: float = 10.0
    log_every: int = 10


# What may differ between the sittings of one training: how long it is, how often it saves, and
# the precision, since a checkpoint holds fp32.
BUDGET = (
    *("minutes", "steps", "checkpoint_minutes", "picture_minutes", "log_every", "accumulate"),
    "bf16",
)


@dataclass(frozen=True)
class Task:
    """Samples and their loss.

    `draw(generator)` makes one sample, tensors [1,...] on the CPU, with no other random numbers;
    `losses(*batch)` takes `batch()` samples, joined along the first dimension, on the model's
    device, and returns scalars that are means over samples: `loss` is minimised. `pictures()`
    returns named images [3,H,W] in [-1,1], with random numbers of its own.
    """

    draw: Callable[[torch.Generator], tuple[Tensor, ...]]
    losses: Callable[..., dict[str, Tensor]]
    batch: Callable[[], int]
    pictures: Callable[[], Mapping[str, Tensor]] | None = None


class _Objective(nn.Module):
    """A model and what is computed with it, the loss or pictures: what DDP and FSDP wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.compute: Callable[..., Mapping[str, Tensor]] = dict

    def forward(self, *batch: Tensor) -> Mapping[str, Tensor]:
        return self.compute(*batch)


class Trainer:
    """Trains `model` in place; `average` holds the EMA weights.

    `config` is what the training depends on beside `schedule`: a checkpoint of another config is
    refused. When not `resumable`, train.jsonl is all that is written. Raises UserError for a model
    that cannot be sharded though launched with --use_fsdp.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        folder: Path,
        seed: int = 0,
        config: Config | None = None,
        resumable: bool = True,
    ) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.resumable = resumable
        self.accelerator = make_accelerator(model, schedule.accumulate)
        self.config = {
            **{k: v for k, v in vars(schedule).items() if k not in BUDGET},
            "seed": seed,
            "processes x accumulate": schedule.accumulate * self.accelerator.num_processes,
            **(config or {}),
        }
        bf16 = schedule.bf16
        self.bf16 = computes_in_bf16(self.device) if bf16 is None else bf16
        self.objective = _Objective(model)
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            betas=(0.9, 0.99),
        )
        self.prepared, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.named.items()}
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.minutes, self.saved_step = 0, 0.0, -1
        self.asked = self.interrupted = False  # to stop: here, and agreed on by all processes
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.folder / FILE

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        spent = ((self.step, self.schedule.steps), (self.minutes, self.schedule.minutes))
        return min(1.0, max(done / budget if budget else 1.0 for done, budget in spent))

    @property
    def minutes_left(self) -> float:
        """Expected minutes to the end of the budget, from the pace so far."""
        return self.minutes * (1 - self.progress) / self.progress if self.progress else math.inf

    def learning_rate(self) -> float:
        """Linear warm-up, then a cosine to one hundredth, over the budget."""
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        warmup = min(1.0, (self.step + 1) / self.schedule.warmup_steps)
        return self.schedule.learning_rate * warmup * (0.01 + 0.99 * cosine)

    def run(self, task: Task, description: str) -> None:
        """Step until the budget is spent, then save; nothing when it is spent already.

        Raises UserError when the loss is not finite; the last checkpoint stays. Ctrl-C or a request
        to terminate ends the step, saves, and raises KeyboardInterrupt.
        """
        if self.progress >= 1.0:
            return
        keep_freed_memory()
        self.objective.compute = task.losses
        began = time.monotonic() - 60 * self.minutes
        saved = pictured = reported = logged = time.monotonic()
        samples = 0
        with (
            self._interruptible(),
            progress_bar() as bar,
            Journal(self.folder, self.step, self.resumable, self.is_main) as journal,
        ):
            line = bar.add_task(description, total=1000, visible=self.is_main)
            while self.progress < 1.0 and not self.interrupted:
                samples += self._global_batch(task)
                values = self._update(task, began)
                now, end = time.monotonic(), self.progress >= 1.0
                rate = samples / max(now - logged, 1e-9)
                text = f"{description}: {rate:.3g} samples/s"
                bar.update(line, completed=int(1000 * self.progress), description=text)
                if self.step % self.schedule.log_every == 0 or end:
                    row = {"step": self.step, "minutes": round(self.minutes, 3), **values}
                    journal.row({**row, "samples_per_s": round(rate, 3)})
                    samples, logged = 0, now
                if bar.disable and now - reported > REPORT_SECONDS and self.is_main:
                    self._report(text, values["loss"])
                    reported = now
                if self._due(now - saved, self.schedule.checkpoint_minutes) and self.resumable:
                    self.save()
                    saved = now
                if self._due(now - pictured, self.schedule.picture_minutes) or end:
                    self._pictures(task, journal)
                    pictured = now
        if self.resumable and self.saved_step != self.step:
            self.save()
        if self._any(self.asked):
            if self.resumable and self.is_main:
                console.print(
                    f"{description} stopped at step {self.step}, saved in {self.folder}: run the "
                    "same command again to go on"
                )
            raise KeyboardInterrupt

    def _any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.accelerator.num_processes == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        return bool(self.accelerator.reduce(raised, "sum").item())

    def _due(self, seconds: float, minutes: float) -> bool:
        """Whether it is time by the main process's clock, for all processes alike."""
        return self._any(self.is_main and seconds > 60 * minutes)

    def _report(self, text: str, loss: float) -> None:
        left = self.minutes_left
        shown = f"{left:.0f} minutes" if left >= 1 else f"{60 * left:.0f} seconds"
        console.print(f"{text}, step {self.step}, loss {loss:.4g}, {shown} left")

    def _global_batch(self, task: Task) -> int:
        return task.batch() * self.accelerator.num_processes * self.schedule.accumulate

    def _update(self, task: Task, began: float) -> dict[str, float]:
        """One optimizer step; returns the terms, means over the global batch."""
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = []
        for batch in self._batches(task):
            with self.accelerator.accumulate(self.prepared):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    terms = self.prepared(*batch)
                self.accelerator.backward(terms["loss"])
                parts.append({name: value.detach().float() for name, value in terms.items()})
        values = self._shared(parts, began)
        norm = self.accelerator.clip_grad_norm_(self.named.values(), self.schedule.clip_norm)
        gradient = whole(norm).item()
        for name, value in (("loss", values["loss"]), ("gradient", gradient)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} is {value} at step {self.step}: train into another --out with a "
                    f"lower --learning-rate; {self._last_good()}"
                )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._average()
        rounded = {name: round(value, 6) for name, value in values.items()}
        return {**rounded, "grad_norm": round(gradient, 4), "lr": rate}

    def _last_good(self) -> str:
        if not self.path.exists():
            return "there is no checkpoint yet"
        return f"the last good checkpoint, of step {max(self.saved_step, 0)}, stays in {self.path}"

    def _batches(self, task: Task) -> Iterator[list[Tensor]]:
        """This process's share of the step's samples, one accumulated batch after the other."""
        batch, world = task.batch(), self.accelerator.num_processes
        seeds = torch.randint(
            0, LARGEST_SEED, (self._global_batch(task),), generator=self.generator
        )
        own = seeds.reshape(-1, world, batch)[:, self.accelerator.process_index]
        for chosen in own.tolist():
            samples = [task.draw(torch.Generator().manual_seed(seed)) for seed in chosen]
            yield [torch.cat(parts).to(self.device) for parts in zip(*samples, strict=True)]

    def _shared(self, parts: Sequence[Mapping[str, Tensor]], began: float) -> dict[str, float]:
        """Means of the terms over batches and processes; also agrees on clock and interruption."""
        names = list(parts[0])
        means = torch.stack([torch.stack([part[n] for n in names]) for part in parts]).mean(0)
        minutes = (time.monotonic() - began) / 60
        if self.accelerator.num_processes == 1:
            self.minutes, self.interrupted = minutes, self.asked
        else:
            own = means.new_tensor([minutes if self.is_main else 0.0, float(self.asked)])
            *sums, minutes, stop = self.accelerator.reduce(torch.cat([means, own]), "sum").tolist()
            means = torch.tensor(sums) / self.accelerator.num_processes
            self.minutes, self.interrupted = minutes, stop > 0
        return dict(zip(names, means.tolist(), strict=True))

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.schedule.ema_decay, (1 + self.step) / (10 + self.step))
        for name, parameter in self.named.items():
            self.average[name].lerp_(parameter.detach(), 1 - decay)

    def _pictures(self, task: Task, journal: Journal) -> None:
        """All processes take part (a sharded model needs them); only the main one has a board."""
        if task.pictures is None or not self.resumable:
            return
        with self.averaged(), torch.no_grad():
            self.objective.compute = task.pictures
            journal.pictures(self.step, self.prepared())
            reshard(self.objective)
        self.objective.compute = task.losses

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The EMA weights in the model, for a while."""
        kept = {name: p.detach().clone() for name, p in self.named.items()}
        modes = {module: module.training for module in self.model.modules()}
        self.load_average()
        self.model.eval()
        try:
            yield
        finally:
            self._set(kept)
            for module, training in modes.items():
                module.training = training

    def load_average(self) -> None:
        """Put the EMA weights into the model."""
        self._set(self.average)

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self.named.items():
            parameter.copy_(values[name])

    def weights(self) -> dict[str, Tensor]:
        """The model's whole state with the EMA weights, on the CPU; every process calls this."""
        state = {**self.model.state_dict(), **self.average}
        return {name: whole(tensor).cpu() for name, tensor in state.items()}

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM only note themselves, so that the step they hit is finished."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        first = math.inf

        def note(number: int, _: Any) -> None:
            nonlocal first
            if time.monotonic() - first > PATIENCE_SECONDS:
                raise KeyboardInterrupt
            first = min(first, time.monotonic())
            self.asked = True

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def save(self) -> None:
        """Write weights, EMA, Adam moments, random state and counters, atomically.

        Every process calls this, the main one writes.
        """
        tensors: dict[str, Tensor] = {f"model.{n}": p for n, p in self.named.items()}
        tensors |= {f"ema.{n}": p for n, p in self.average.items()}
        for name, parameter in self.named.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        gathered = {n: whole(t).cpu() for n, t in tensors.items()}
        if self.is_main:
            gathered["random"] = self.generator.get_state()
            counters = Counters(self.step, self.minutes, self.config)
            write_checkpoint(self.path, gathered, counters)
        self.saved_step = self.step
        self.accelerator.wait_for_everyone()

    def resume(self) -> bool:
        """Continue from the folder's checkpoint; False when there is none.

        Raises UserError when it belongs to another model or config, or is broken.
        """
        if self.is_main:
            for scratch in self.folder.glob(f".{FILE}.*"):  # of a sitting killed while it saved
                shutil.rmtree(scratch, ignore_errors=True)
        if not self.path.exists():
            return False
        check_config(self.path, self.config)
        tensors, counters = read_checkpoint(self.path)
        stored = {n.removeprefix("model.") for n in tensors if n.startswith("model.")}
        different = sorted(stored ^ self.named.keys()) or sorted(
            n for n in stored if tensors[f"model.{n}"].shape != self.named[n].shape
        )
        if different:
            raise UserError(
                f"{self.path} is of another model ({different[0]} differs): choose another --out "
                "or delete it"
            )
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(placed_like(tensors[f"model.{name}"], parameter))
                average = tensors[f"ema.{name}"].clone()  # aligned: that changes how sums round
                self.average[name] = placed_like(average, parameter.detach())
                self.optimizer.state[parameter] = {
                    key: tensors[f"adam.{key}.{name}"]
                    if key == "step"  # Adam counts on the CPU
                    else placed_like(tensors[f"adam.{key}.{name}"], parameter.detach())
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in tensors
                }
        self.generator.set_state(tensors["random"])
        self.step, self.minutes = counters.step, counters.minutes
        self.saved_step = self.step
        return True
