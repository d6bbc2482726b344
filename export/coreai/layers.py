"""Core AI assets: what their layers give is not laid open."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from pocketfocus.export.targets import Layer
from pocketfocus.run.errors import UserError


def layers(path: Path, feeds: Mapping[str, Tensor]) -> tuple[list[Layer], Tensor]:
    """See `Target.layers`; UserError, as coreai-core gives the outputs of an asset only."""
    raise UserError(
        f"{path} does not show what its layers give, coreai-core executes an asset as a whole: "
        "locate the fault in the same precision of another target"
    )
