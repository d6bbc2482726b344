"""What a person sees of a training while it runs: a bar or lines, and rows of its log."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pocketfocus.distill.train.checkpoint import Counters
from pocketfocus.distill.train.run_log import RunLog
from pocketfocus.run.progress import console, progress_bar

REPORT_SECONDS = 60.0  # between lines where the progress bar cannot be shown


class Timer:
    """Says once every so many seconds that it is time."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, time.monotonic()

    def due(self) -> bool:
        """Return whether the time has come, and if so count anew."""
        now = time.monotonic()
        if now - self._last <= self.seconds:
            return False
        self._last = now
        return True


class Reporter:
    """Reports the steps of a training; processes whose log is not enabled say nothing."""

    def __init__(self, description: str, log: RunLog, log_every: int) -> None:
        self.description, self.log, self.log_every = description, log, log_every
        self._bar, self._lines = progress_bar(), Timer(REPORT_SECONDS)
        self._samples, self._logged = 0, time.monotonic()  # since the last row, and when it was

    def __enter__(self) -> Reporter:
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=1000, visible=self.log.enabled)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(
        self, counters: Counters, progress: float, samples: int, values: Mapping[str, float]
    ) -> None:
        """Report a step that took so many samples, after which `progress` of the budget is spent;
        the last step always makes a row."""
        self._samples += samples
        pace = self._samples / max(time.monotonic() - self._logged, 1e-9)
        text = f"{self.description}: {pace:.3g} samples/s"
        self._bar.update(self._task, completed=int(1000 * progress), description=text)
        if counters.step % self.log_every == 0 or progress >= 1.0:
            row = {"minutes": round(counters.minutes, 3), **values}
            self.log.row(counters.step, {**row, "samples_per_s": round(pace, 3)})
            self._samples, self._logged = 0, time.monotonic()
        if self._bar.disable and self.log.enabled and self._lines.due():
            left = counters.minutes * (1 - progress) / progress
            shown = f"{left:.0f} minutes" if left >= 1 else f"{60 * left:.0f} seconds"
            console.print(f"{text}, step {counters.step}, loss {values['loss']:.4g}, {shown} left")
