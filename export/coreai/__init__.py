"""`.aimodel` folders for Core AI, the successor of Core ML: written and checked anywhere."""

from pocketfocus.export.coreai import write
from pocketfocus.export.phases import MAKE
from pocketfocus.export.targets import Target, in_order, later

TARGET = Target(
    name="coreai",
    suffix=".aimodel",
    colour="#8c6bb1",
    toolchain="coreai",
    packages=("coreai_torch",),  # which pins coreai-core
    runtime="coreai-core",
    notes={
        32: "float32 throughout",
        16: "float16 weights and operators, inputs and output stay float32",
        8: "int8 activations from a PT2E graph; the operators between quantize and dequantize, and "
        "what no layer follows, in float32",
        4: "activations and operators of layers with weights alone compressed stay in floating "
        "point: float32 beside int8 activations, else float16",
    },
    phases={MAKE: 0.1, "capture": 0.4, "convert": 0.4, "save": 0.1},
    write=write.write,
    open=write.open_file,
    input_shapes=later("pocketfocus.export.coreai.read", "input_shapes"),
    sizes=later("pocketfocus.export.coreai.read", "sizes"),
    read=in_order("pocketfocus.export.coreai.read", "the asset"),
    lint=later("pocketfocus.export.coreai.lint", "lint"),
    cannot_run=write.cannot_run,
    cannot_write=write.cannot_write,
    extra=write.EXTRA,
    fallback="coreai-check",
    hardware="Apple",
    writes_references=False,  # tried with students only
)
