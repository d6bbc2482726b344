"""Train an analyser on rendered scenes of real photos with depth, on a CPU or one GPU.

`python -m pocketfocus.distill.student.analyser_training --photos RGBD_DIR --minutes 60 --out DIR`
goes on from DIR where it holds a checkpoint, and from `--start` otherwise. A GPU renders as well:
`--device cuda --workers 14 --batch 256 --scenes 12000 --endless`.

The loss of a frame is the log of its squared error, which is the mean PSNR of frames; so are the
terms of its edges and of the difference between neighbours (see `regression.stack_losses`). Beside
them the network learns the distance of every place.

Legend: B batch, I = 10 images, S crop size.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from pocketfocus.data.photo_scenes import PhotoScenes
from pocketfocus.data.scene_pool import Batch, PoolOptions, ScenePool
from pocketfocus.distill.train.muon import Muon
from pocketfocus.models.analyser import (
    PRESETS,
    Analyser,
    Analysis,
    change_of,
    load_analyser,
    one_hots,
    save_analyser,
    stack_of,
)
from pocketfocus.photos.images import from_uint8
from pocketfocus.run.constants import FRAMES
from pocketfocus.run.errors import UserError, reported
from pocketfocus.run.files import write_atomic
from pocketfocus.run.memory import keep_freed_memory

FLOOR = 4e-4  # squared error in [-1,1], 40 dB: better frames need not get better still
EDGE_WEIGHT = ADJACENT_WEIGHT = 0.1
WARMUP_STEPS = 100
LAST_RATE = 0.01  # of the learning rate, at the end
BETAS = (0.9, 0.99)
CLIP, USUAL = 2.0, 0.98  # of a gradient's usual norm, and how slowly that changes
DECIBELS = 10 / math.log(10)
CHECKPOINT, ANALYSER, LOG = "checkpoint.safetensors", "analyser", "train.jsonl"
TERMS = ("loss", "gain_db", "sharp_db", "nearness_error", "position_error")
UNKNOWN, POSITION_WEIGHT = 0.2, 0.2  # share of samples whose position is not told
ENDING = ("code", "dioptres", "position")  # layers whose outputs are values, not features: AdamW's


@dataclass(frozen=True)
class Training:
    """How to train.

    Attributes:
        out: folder of checkpoint, log and weights.
        minutes: of this sitting; the learning rate falls over its last `decay`.
        preset: of `models.analyser.PRESETS`.
        start: an analyser's folder to begin from, None for random weights.
        batch, crop: samples of a step, and their side in pixels.
        rate: the peak learning rate.
        ema: of the weights that are saved, a step.
        compiled: whether PyTorch compiles losses (CPU) or everything (GPU).
    """

    out: Path
    minutes: float
    preset: str = "tiny"
    start: Path | None = None
    batch: int = 16
    crop: int = 128
    rate: float = 1.5e-3
    decay: float = 0.35
    ema: float = 0.9995
    log_every: int = 20
    checkpoint_minutes: float = 5.0
    compiled: bool = True
    seed: int = 0


def log_error(error: Tensor, counted: Tensor) -> Tensor:
    """Mean of log(1 + squared error / FLOOR) over the images [B,I,3,S,S] that count [B,I]."""
    squared = error.square().mean((-1, -2, -3))
    return ((squared / FLOOR).log1p() * counted).sum() / counted.sum()


def losses_of(found: Analysis, told: Tensor, batch: Batch, bands: int) -> Tensor:
    """[5]: loss, mean gain over copying of frames and of the sharp image (dB), errors of nearness
    and, where the position was not told [B], of the position.

    The frame at the photo's own position is the photo already, and does not count.
    """
    own = F.one_hot(batch.positions, FRAMES).to(batch.photos)
    counted = F.pad(1 - own, (0, 1), value=1.0)
    change, _ = change_of(found.code.float(), batch.photos, bands)
    target = batch.images - batch.photos[:, None]
    error = change * counted[:, :, None, None, None] - target
    pixel = log_error(error, counted)
    edge = log_error(error.diff(dim=-1), counted) + log_error(error.diff(dim=-2), counted)
    steps = error[:, :FRAMES].diff(dim=1)
    adjacent = log_error(steps, torch.ones_like(counted[:, 1:FRAMES]))
    apart = (found.dioptres.float() - batch.nearness).abs().mean()
    asked = 1 - told
    logits = found.position.float()
    guess = F.cross_entropy(logits, batch.positions, reduction="none")
    count = asked.sum().clamp(min=1)
    expected = logits.detach().softmax(-1) @ torch.arange(FRAMES).to(logits)
    missed = ((expected - batch.positions).abs() * asked).sum() / count
    loss = pixel + EDGE_WEIGHT * edge + ADJACENT_WEIGHT * adjacent + apart
    loss = loss + POSITION_WEIGHT * (guess * asked).sum() / count
    squared = [e.detach().square().mean((-1, -2, -3)) + 1e-6 for e in (target, error)]
    gain = DECIBELS * (squared[0] / squared[1]).log() * counted
    frames = gain[:, :FRAMES].sum() / counted[:, :FRAMES].sum()
    return torch.stack([loss, frames, gain[:, FRAMES].mean(), apart.detach(), missed])


class Trainer:
    """An analyser in training: steps, the average of its weights, and the checkpoint of both."""

    def __init__(self, training: Training, device: str) -> None:
        self.training, self.device = training, torch.device(device)
        torch.manual_seed(training.seed)
        start = training.start
        analyser = Analyser(PRESETS[training.preset]) if start is None else load_analyser(start)
        analyser = analyser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.analyser = analyser.to(self.device).train()
        named = dict(self.analyser.named_parameters())
        matrices = {
            n: p for n, p in named.items() if p.ndim == 4 and n.partition(".")[0] not in ENDING
        }
        rest = [p for n, p in named.items() if n not in matrices]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices.values(), lr=training.rate),
            torch.optim.AdamW(rest, lr=training.rate, betas=BETAS, weight_decay=0.01),
        )
        self.named = named
        self.usual_norm = torch.ones((), device=self.device)
        self.average = {name: p.detach().clone() for name, p in named.items()}
        self.step, self.samples = 0, 0
        self.losses = self._compiled()

    def _compiled(self) -> Callable[[Batch], Tensor]:
        bands = self.analyser.config.bands
        tail: Callable[..., Tensor] = losses_of
        network: Callable[..., Any] = self.analyser
        if self.training.compiled:
            tail = torch.compile(losses_of, dynamic=False)
            if self.device.type == "cuda":
                network = torch.compile(self.analyser, dynamic=False)

        def losses(batch: Batch) -> Tensor:
            with torch.autocast(self.device.type, torch.bfloat16):
                photos = batch.photos.contiguous(memory_format=torch.channels_last)
                told = (torch.rand(len(photos), device=self.device) >= UNKNOWN).to(photos)
                found = network(photos, F.one_hot(batch.positions, FRAMES) * told[:, None])
            return tail(found, told, batch, bands)

        return losses

    def update(self, batch: Batch, rate: float) -> Tensor:
        """One step at a learning rate; the terms of its loss, [4]."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        terms = self.losses(batch)
        torch.autograd.backward(terms[0])
        self._clip()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.samples += len(batch.photos)
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        averages, current = list(self.average.values()), list(self.named.values())
        with torch.no_grad():
            torch._foreach_lerp_(averages, current, 1 - decay)
        return terms.detach()

    def _clip(self) -> None:
        """Limit the gradient to `CLIP` times its usual norm, so that no outlier leads Muon."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.named.values()])
        usual = self.usual_norm if self.step else norm
        limit = CLIP * usual
        torch.nn.utils.clip_grads_with_norm_(self.named.values(), float(limit), norm)
        self.usual_norm = usual.lerp(norm.minimum(limit), 1 - USUAL)

    def averaged(self) -> Analyser:
        """A copy with the averaged weights, on the CPU."""
        made = Analyser(self.analyser.config)
        made.load_state_dict({name: tensor.cpu() for name, tensor in self.average.items()})
        return made.eval()

    def save(self) -> None:
        """Write the checkpoint and the averaged weights, each all or nothing."""
        tensors = {f"model.{n}": p.detach() for n, p in self.named.items()}
        tensors |= {f"ema.{n}": p for n, p in self.average.items()}
        for name, parameter in self.named.items():
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        kept = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        kept["usual_norm"] = self.usual_norm.cpu()
        counters = {"step": str(self.step), "samples": str(self.samples)}
        with write_atomic(self.training.out / CHECKPOINT) as scratch:
            save_file(kept, scratch, metadata=counters)
        save_analyser(self.averaged(), self.training.out / ANALYSER)

    def resume(self) -> bool:
        """Go on from the checkpoint, if there is one."""
        path = self.training.out / CHECKPOINT
        if not path.exists():
            return False
        from safetensors import safe_open

        with safe_open(path, framework="pt") as handle:
            counters = handle.metadata()
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"ema.{name}"])
                for optimizer in self.optimizers:
                    if any(parameter is p for g in optimizer.param_groups for p in g["params"]):
                        end = f".{name}"
                        optimizer.state[parameter] = {
                            key.removeprefix("optimizer.").removesuffix(end): value.clone()
                            if key.startswith("optimizer.step.")  # Adam counts on the CPU
                            else value.to(parameter)
                            for key, value in tensors.items()
                            if key.startswith("optimizer.")
                            and key.endswith(end)
                            and key.split(".", 2)[2] == name
                        }
        self.usual_norm = tensors["usual_norm"].to(self.device)
        self.step, self.samples = int(counters["step"]), int(counters["samples"])
        return True


def rate_at(training: Training, step: int, progress: float) -> float:
    """Linear warm-up, constant, then linear to `LAST_RATE` over the last `decay` of the sitting."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    left = min(1.0, (1 - progress) / training.decay)
    return training.rate * warm * max(LAST_RATE, left)


def train(training: Training, pool_options: PoolOptions) -> Trainer:
    """Train for the sitting's minutes; Ctrl-C or a request to terminate saves and ends it."""
    keep_freed_memory()
    trainer = Trainer(training, pool_options.device)
    training.out.mkdir(parents=True, exist_ok=True)
    trainer.resume()
    first = trainer.step
    ended = []
    before = {
        s: signal.signal(s, lambda *_: ended.append(1)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    generator = torch.Generator().manual_seed(training.seed + trainer.step)
    try:
        with (
            ScenePool(pool_options) as pool,
            open(training.out / LOG, "a", encoding="utf-8") as log,
        ):
            pool.take(wait=True)
            began = saved = logged = time.monotonic()
            rows: list[Tensor] = []
            while (
                not ended and (progress := (time.monotonic() - began) / 60 / training.minutes) < 1
            ):
                pool.take()
                batch = pool.batch(training.batch, training.crop, generator)
                rate = rate_at(training, trainer.step - first, progress)
                rows.append(trainer.update(batch, rate))
                if len(rows) == training.log_every:
                    now = time.monotonic()
                    pace = training.batch * len(rows) / (now - logged)
                    values = torch.stack(rows).mean(0).tolist()
                    if not math.isfinite(values[0]):
                        raise UserError(
                            f"the loss is {values[0]} at step {trainer.step}: lower --learning-rate"
                        )
                    row = {
                        "step": trainer.step,
                        "samples": trainer.samples,
                        "minutes": round((now - began) / 60, 2),
                        **{name: round(v, 4) for name, v in zip(TERMS, values, strict=True)},
                        "rate": round(rate, 7),
                        "samples_per_s": round(pace, 1),
                        "scenes": pool.rendered,
                    }
                    line = json.dumps(row)
                    print(line, file=log, flush=True)
                    print(line, flush=True)
                    rows, logged = [], now
                if time.monotonic() - saved > 60 * training.checkpoint_minutes:
                    trainer.save()
                    saved = time.monotonic()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    trainer.save()
    return trainer


@torch.inference_mode()
def gain_on(analyser: Analyser, scenes: PhotoScenes, count: int, positions: Sequence[int]) -> float:
    """Mean gain over copying, dB, on so many held-out scenes from these positions."""
    gains = []
    for seed in range(count):
        scene = scenes.render(seed)
        images = from_uint8(scene.images, planar=True)
        for position in positions:
            made, _ = stack_of(analyser, images[position][None], one_hots([position]))
            error = (made[0, :FRAMES] - images[:FRAMES]).square().mean((1, 2, 3)) + 1e-6
            copied = (images[position] - images[:FRAMES]).square().mean((1, 2, 3)) + 1e-6
            gain = DECIBELS * (copied / error).log()
            gains += [float(gain[n]) for n in range(FRAMES) if n != position]
    return sum(gains) / len(gains)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True, help="NAME.jpg beside NAME.depth.png")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--start", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--scenes", type=int, default=3000)
    parser.add_argument("--endless", action="store_true", help="render on, replacing the oldest")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with reported("analyser_training"):
        torch.set_num_threads(options.threads)
        training = Training(
            out=options.out,
            minutes=options.minutes,
            preset=options.preset,
            start=options.start,
            batch=options.batch,
            crop=options.crop,
            rate=options.learning_rate,
            compiled=not options.eager,
            seed=options.seed,
        )
        pool = PoolOptions(
            options.photos,
            options.workers,
            options.scenes,
            options.endless,
            device=options.device,
            seed=options.seed,
        )
        trainer = train(training, pool)
        validation = PhotoScenes(options.photos, validation=True)
        gain = gain_on(trainer.averaged(), validation, 24, (0, 4, 8))
        summary = {"samples": trainer.samples, "validation_gain_db": round(gain, 3)}
        text = json.dumps({**summary, **{k: str(v) for k, v in asdict(training).items()}}, indent=1)
        (options.out / "summary.json").write_text(text + "\n", encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
