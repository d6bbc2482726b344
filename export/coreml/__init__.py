"""`.mlpackage` files: written, read back layer by layer, opened up; the MIL check."""

from pocketfocus.export.coreml.write import TARGET

__all__ = ["TARGET"]
