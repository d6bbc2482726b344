"""The gate of a `.pte` file's own: how much of it its backend executes."""

from __future__ import annotations

from collections import Counter

from pocketfocus.export.targets import Finding
from pocketfocus.quantize.recipes import Recipe
from pocketfocus.run.manifest import Artifact

GATE = "delegate coverage"


def coverage(artifact: Artifact, recipe: Recipe) -> Finding | None:
    """What the manifest says runs inside the backend, against the recipe's `min_delegated`."""
    found, floor = artifact.delegation, recipe.min_delegated
    if found is None:
        return None
    why = (
        f"{100 * found.share:.1f} % of {found.total_ops} operators are delegated in {found.calls} "
        f"call{'s' * (found.calls != 1)}, {100 * floor:g} % are needed"
    )
    if found.not_delegated:
        counts = Counter(found.not_delegated).most_common()
        why += "; not delegated: " + ", ".join(f"{count} {name}" for name, count in counts)
    return Finding(GATE, found.share >= floor, why)
