"""`.onnx` files for onnxruntime on Android, iOS and in a phone's browser."""

from pocketfocus.export.onnx import write
from pocketfocus.export.phases import MAKE
from pocketfocus.export.targets import Target, later

TARGET = Target(
    name="onnx",
    suffix=".onnx",
    colour="#3d7ea6",
    toolchain="onnx",
    packages=("onnx", "onnxscript", "onnxruntime"),
    runtime="onnxruntime",
    notes={
        32: "float32 throughout",
        16: "inputs and output stay float32; onnxruntime's CPU kernels compute in float32 where "
        "they have no float16 form",
        8: "unsigned int8 activations (QDQ); activation functions, and what no layer follows, "
        "float32",
        4: "what is no layer stays float32",
    },
    phases={MAKE: 0.1, "convert": 0.4, "quantize": 0.5},
    write=write.write,
    open=write.open_file,
    input_shapes=write.input_shapes,
    sizes=write.sizes,
    read=later("pocketfocus.export.onnx.read", "layer_schemes"),
    layers=later("pocketfocus.export.onnx.layers", "layers"),
    cannot_run=write.cannot_run,
    cannot_write=write.cannot_write,
    writes_references=False,  # a file of more than 2 GB keeps its weights beside itself
    compatibility=write.compatibility,
    lint=later("pocketfocus.export.onnx.lint", "lint"),
)
