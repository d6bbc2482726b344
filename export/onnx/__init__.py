"""`.onnx` files: written, read back layer by layer, opened up."""

from pocketfocus.export.onnx.write import TARGET

__all__ = ["TARGET"]
