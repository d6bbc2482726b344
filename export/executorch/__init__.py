"""`.pte` files: written, read back layer by layer, opened up."""

from pocketfocus.export.executorch.write import TARGET

__all__ = ["TARGET"]
