"""How stacks are drawn from a reference, apart from it: diffusers takes seconds to import."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pocketfocus.run.errors import UserError

MOST_STEPS = 1000


@dataclass(frozen=True)
class Sampling:
    """How stacks are drawn: Euler steps, classifier-free guidance (1.0: none), and the temperature,
    the factor of the initial noise. At 0 one step gives the mean of all stacks that fit the photo,
    which has the least squared error."""

    steps: int = 25
    guidance: float = 1.5
    temperature: float = 1.0

    def changed(self, text: str) -> Sampling:
        """Return the sampling with what STEPS[/GUIDANCE[/TEMPERATURE]] says; UserError for other
        text."""
        parts = text.split("/")
        try:
            steps, *rest = int(parts[0]), *map(float, parts[1:])
        except ValueError:
            steps, rest = 0, []
        finite = all(math.isfinite(value) and value >= 0 for value in rest)
        if not 1 <= steps <= MOST_STEPS or len(rest) > 2 or not finite:
            raise UserError(
                f"'{text}' is no way to sample: write STEPS[/GUIDANCE[/TEMPERATURE]], 1 to "
                f"{MOST_STEPS} steps and numbers from 0 up, such as 25/1.5/1"
            )
        names = ("guidance", "temperature")
        return replace(self, steps=steps, **dict(zip(names, rest, strict=False)))


PUBLISHED = Sampling()
MEAN = Sampling(steps=1, guidance=1.0, temperature=0.0)


def own_sampling(few_steps: Sampling | None, relative: bool) -> Sampling:
    """Return the default way of a reference: its own `few_steps`, else as published, and the mean
    where latents are `relative`."""
    if few_steps is not None:
        return few_steps
    return MEAN if relative else PUBLISHED
