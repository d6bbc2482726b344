"""Every distillation method's result beside what is free: one table.

    python -m pocketfocus.research.methods student consistency=reference:build/few/reference

The free ones are `copy`, `blur`, and the reference itself at several numbers of steps with guidance
and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pocketfocus.benchmarks.baselines import baselines
from pocketfocus.benchmarks.evaluate import Comparison, evaluate_models
from pocketfocus.benchmarks.tables import distance_table
from pocketfocus.benchmarks.truth import source_name, true_stacks
from pocketfocus.data.datasets import SYNTHETIC
from pocketfocus.export.open import open_model
from pocketfocus.models.loading import load_reference
from pocketfocus.models.model import Model, NamedModel
from pocketfocus.models.reference import PUBLISHED, ReferencePipeline, Sampling
from pocketfocus.run.errors import reported
from pocketfocus.run.rows import write_rows

STEPS = (1, 2, 4, 25)


def reference_models(spec: str) -> list[NamedModel]:
    """Return the reference in its own way, and at `STEPS` steps with guidance and without."""
    pipeline = load_reference(spec)
    ways = [Sampling(n, guidance) for n in STEPS for guidance in (PUBLISHED.guidance, 1.0)]
    named = {f"reference@{way.steps}/{way.guidance:g}": way for way in ways}
    return [_drawn("reference", pipeline), *(_drawn(n, pipeline, w) for n, w in named.items())]


def _drawn(name: str, pipeline: ReferencePipeline, how: Sampling | None = None) -> NamedModel:
    return NamedModel(name, None, lambda photo, position: pipeline(photo, position, how))


def open_named(text: str) -> NamedModel:
    """Open a model NAME=MODEL, or MODEL alone, which then is its name."""
    name, given, spec = text.partition("=")
    return replace(open_model(spec if given else text), name=name)


@reported("methods")
def main(arguments: Sequence[str] | None = None) -> None:
    """Score all models on all stacks and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m pocketfocus.research.methods", description=__doc__.splitlines()[0]
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL", help="as `evaluate` takes them")
    parser.add_argument("--reference", default="default", help="whose samplings are free")
    parser.add_argument("--stacks", action="append", help="a source; can be given several times")
    parser.add_argument("--scenes", type=int, default=8, help="of each source, at most")
    parser.add_argument("--inputs-per-scene", type=int, default=1, help="positions, in turn")
    parser.add_argument("--size", type=int, default=256, help="of the stacks, pixels")
    parser.add_argument("--out", type=Path, help="write the rows there, as JSON")
    options = parser.parse_args(arguments)
    if options.scenes < 1 or options.inputs_per_scene < 1 or options.size < 64:
        parser.error("--scenes and --inputs-per-scene are at least 1, --size at least 64")
    own = [open_named(text) for text in options.models]
    models: list[Model] = [*own, *reference_models(options.reference), *baselines()]
    found = []
    for source in options.stacks or [SYNTHETIC]:
        stacks, _ = true_stacks(source, options.scenes, (options.size, options.size))
        how = Comparison(per_scene=options.inputs_per_scene)
        found.append(evaluate_models(models, stacks, source_name(source), how))
    if options.out is not None:
        write_rows(options.out, [row for each in found for row in each.rows()])
    print(distance_table([row for each in found for row in each.means]))


if __name__ == "__main__":
    main()
