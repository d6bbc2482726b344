"""The network that makes images of a photo's own size: without weights, so one file a target."""

from __future__ import annotations

import torch

from pocketfocus.export.network import Network
from pocketfocus.models.render import FIXED, LARGEST_APERTURE, PART, TILE, Feeds, Render
from pocketfocus.run.manifest import RENDER, Rendering, TensorSpec

UNIT, SIGNED = (0.0, 1.0), (-1.0, 1.0)
RANGES = (SIGNED, SIGNED, SIGNED, SIGNED, UNIT, (0.0, LARGEST_APERTURE), UNIT, UNIT)
REST = "zeros below and right"
GIVEN = {
    "photo": "rows top..end-1 of the photo at its own size, H rows, of which h were analysed: at "
    f"most min({TILE}, {PART - 2} * H // h) rows; {REST}. All of this likewise for columns",
    "small": "rows low..high-1 of the photo as it was analysed, low = max(0, floor((top + 0.5) * "
    f"h / H - 0.5)), high = min(h, floor((end - 0.5) * h / H - 0.5) + 2); {REST}",
    "images": f"outputs stack and then sharp of the student's file, the same rows; {REST}",
    "detail": f"output detail of the student's file, the same rows; {REST}",
    "focus": "weights of the nine focal positions from near to far, of sum 1",
    "aperture": "0 for sharp everywhere, 1 for the phone's own",
    "rows": "[0,n,m] = max(0, 1 - |c - low - m|) for row top + n, c = (top + n + 0.5) * h / H - "
    "0.5 kept within 0..h-1; zeros for rows that are no part",
    "columns": "[0,m,n], the same of columns",
}


def render_network() -> Network:
    """`Render` at the shapes of a tile."""
    return Network(
        RENDER,
        Render,
        tuple(
            TensorSpec(name, shape, "float32", span)
            for name, shape, span in zip(Feeds._fields, FIXED, RANGES, strict=True)
        ),
        (TensorSpec("image", FIXED[0], "float32", SIGNED),),
        lambda: [tuple(torch.zeros(shape) for shape in FIXED)],
        once=True,
    )


def rendering() -> Rendering:
    """What the manifest says of the files."""
    return Rendering((TILE, TILE), (PART, PART), given=GIVEN)
