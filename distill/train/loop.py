"""One training loop for every model here: schedule, EMA, bf16, exact resume.

accelerate places the model and joins the processes. A step's random numbers are one seed per sample
of the global batch, so that B samples each on 2 processes, 2 accumulated batches of B on one, and
one batch of 2B are the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pocketfocus.distill.train.checkpoint import (
    FILE,
    Config,
    Counters,
    State,
    check_config,
    read_checkpoint,
    write_checkpoint,
)
from pocketfocus.distill.train.crops import Crops, current
from pocketfocus.distill.train.distributed import (
    computes_in_bf16,
    make_accelerator,
    reshard,
    whole,
)
from pocketfocus.distill.train.ema import EMA
from pocketfocus.distill.train.interruption import Interruption
from pocketfocus.distill.train.run_log import RunLog, Timer
from pocketfocus.distill.train.schedule import OPTIMIZERS, Schedule
from pocketfocus.run.errors import UserError
from pocketfocus.run.memory import keep_freed_memory
from pocketfocus.run.processes import cores
from pocketfocus.run.progress import console

LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Task:
    """Samples and their loss.

    Attributes:
        draw: makes a sample of crops of a size, tensors [1,...] on the CPU, with the generator that
            it is given and no other random numbers.
        losses: takes samples joined along the first dimension, on the model's device, and returns
            scalars that are means over samples: `loss` is minimised.
        crops: how many samples a process takes at a time, and of what size.
        pictures: makes named images [3,H,W] in [-1,1], with random numbers of its own.
    """

    draw: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    losses: Callable[..., dict[str, Tensor]]
    crops: Sequence[Crops]
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
    """Trains `model` in place, and keeps the average of its weights in `ema`.

    `config` is what the training depends on beside `schedule`: a checkpoint of another config is
    refused. Raises UserError for a model that cannot be sharded though launched with --use_fsdp.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: Schedule,
        folder: Path,
        seed: int = 0,
        config: Config | None = None,
    ) -> None:
        self.model, self.schedule, self.folder = model, schedule, folder
        self.accelerator = make_accelerator(model, schedule.accumulate)
        self.batches = schedule.accumulate * self.accelerator.num_processes  # of a step
        common = {**schedule.config, "seed": seed, "processes x accumulate": self.batches}
        self.config = {**common, **(config or {})}
        bf16 = schedule.bf16
        self.bf16 = computes_in_bf16(self.device) if bf16 is None else bf16
        self.objective = _Objective(model)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        optimizer = OPTIMIZERS[schedule.optimizer](trained, schedule)
        self.prepared, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.ema = EMA(self.named, schedule.ema_decay)
        self.generator = torch.Generator().manual_seed(seed)
        self.state = State(self.ema, self.optimizer, self.generator)
        self.step, self.minutes, self.saved_step = 0, 0.0, -1
        self.interruption, self.interrupted = Interruption(), False  # here; agreed on by all
        on_cpu = self.device.type == "cpu"  # else its cores have nothing else to do
        self.map = map if on_cpu else ThreadPoolExecutor(cores()).map
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return bool(self.accelerator.is_main_process)

    @property
    def path(self) -> Path:
        return self.folder / FILE

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return self.schedule.progress(self.step, self.minutes)

    @property
    def counters(self) -> Counters:
        """Where the training stands."""
        return Counters(self.step, self.minutes, self.config)

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
        saving = Timer(60 * self.schedule.checkpoint_minutes)
        picturing = Timer(60 * self.schedule.picture_minutes)
        with self.interruption, RunLog(self.folder, self.step, description, self.is_main) as log:
            while self.progress < 1.0 and not self.interrupted:
                crops = current(task.crops, self.progress)
                values = self._update(task, crops, began)
                ended = self.progress >= 1.0
                log.show(self.counters, self.progress, values["loss"], crops.batch * self.batches)
                if self.step % self.schedule.log_every == 0 or ended:
                    log.row(self.counters, values)
                if self._due(saving):
                    self.save()
                if self._due(picturing) or ended:
                    self._pictures(task, log)
        if self.saved_step != self.step:
            self.save()
        if self._any(self.interruption.requested):
            if self.is_main:
                console.print(
                    f"{description} stopped at step {self.step}, saved in {self.folder}: run the "
                    "same command again to go on"
                )
            self.interruption.heed()

    def _any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.accelerator.num_processes == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        return bool(self.accelerator.reduce(raised, "sum").item())

    def _due(self, timer: Timer) -> bool:
        """Whether it is time by the main process's clock, for all processes alike."""
        return self._any(self.is_main and timer.due())

    def _update(self, task: Task, crops: Crops, began: float) -> dict[str, float]:
        """Take one optimizer step, and return the terms, means over the global batch."""
        rate = self.schedule.rate(self.step, self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        parts = []
        for batch in self._drawn(task, crops):
            with self.accelerator.accumulate(self.prepared):
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                    terms = self.prepared(*batch)
                self.accelerator.backward(terms["loss"])
                parts.append({name: value.detach().float() for name, value in terms.items()})
        values = self._shared(parts, began)
        norm = self.accelerator.clip_grad_norm_(self.named.values(), self.schedule.clip_norm)
        gradient = whole(norm).item()
        self._check_finite(loss=values["loss"], gradient=gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.step)
        rounded = {name: round(value, 6) for name, value in values.items()}
        return {**rounded, "grad_norm": round(gradient, 4), "lr": rate}

    def _check_finite(self, **values: float) -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                good = f"the last good checkpoint, of step {max(self.saved_step, 0)}, stays in "
                good = good + str(self.path) if self.path.exists() else "there is no checkpoint yet"
                raise UserError(
                    f"the {name} is {value} at step {self.step}: train into another --out with a "
                    f"lower --learning-rate; {good}"
                )

    def _drawn(self, task: Task, crops: Crops) -> Iterator[list[Tensor]]:
        """Draw this process's share of the step's samples, one accumulated batch after the
        other."""
        count = crops.batch * self.batches
        seeds = torch.randint(0, LARGEST_SEED, (count,), generator=self.generator)
        own = seeds.reshape(-1, self.accelerator.num_processes, crops.batch)
        for chosen in own[:, self.accelerator.process_index].tolist():
            generators = [torch.Generator().manual_seed(seed) for seed in chosen]
            samples = self.map(partial(task.draw, crops.size), generators)
            yield [torch.cat(parts).to(self.device) for parts in zip(*samples, strict=True)]

    def _shared(self, parts: Sequence[Mapping[str, Tensor]], began: float) -> dict[str, float]:
        """Return means of the terms over batches and processes; they also agree on the clock and on
        whether to stop."""
        names, requested = list(parts[0]), self.interruption.requested
        means = torch.stack([torch.stack([part[n] for n in names]) for part in parts]).mean(0)
        minutes = (time.monotonic() - began) / 60
        if self.accelerator.num_processes == 1:
            self.minutes, self.interrupted = minutes, requested
        else:
            own = means.new_tensor([minutes if self.is_main else 0.0, float(requested)])
            *sums, minutes, stop = self.accelerator.reduce(torch.cat([means, own]), "sum").tolist()
            means = torch.tensor(sums) / self.accelerator.num_processes
            self.minutes, self.interrupted = minutes, stop > 0
        return dict(zip(names, means.tolist(), strict=True))

    def _pictures(self, task: Task, log: RunLog) -> None:
        """Log the task's pictures; all processes take part, as a sharded model needs them."""
        if task.pictures is None:
            return
        with self.ema.loaded(self.model), torch.no_grad():
            self.objective.compute = task.pictures
            log.pictures(self.step, self.prepared())
            reshard(self.objective)
        self.objective.compute = task.losses

    def weights(self) -> dict[str, Tensor]:
        """Gather the model's whole state with the EMA weights, on the CPU; every process calls
        this."""
        state = {**self.model.state_dict(), **self.ema.average}
        return {name: whole(tensor).cpu() for name, tensor in state.items()}

    def save(self) -> None:
        """Write the checkpoint, atomically; every process calls this, the main one writes."""
        tensors = self.state.tensors()
        if self.is_main:
            write_checkpoint(self.path, tensors, self.counters)
        self.saved_step = self.step
        self.accelerator.wait_for_everyone()

    def resume(self, description: str = "") -> bool:
        """Continue from the folder's checkpoint, saying so where there is a description; False when
        there is none.

        Raises UserError when it belongs to another model or config, or is broken.
        """
        if not self.path.exists():
            return False
        check_config(self.path, self.config)
        tensors, counters = read_checkpoint(self.path)
        self.state.load(tensors, self.path)
        self.step, self.minutes = counters.step, counters.minutes
        self.saved_step = self.step
        if description and self.is_main:
            console.print(f"{description}: resumed at step {self.step}")
        return True
