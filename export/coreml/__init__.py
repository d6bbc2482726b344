"""`.mlpackage` folders: ML programs for iOS 17 or 18, written anywhere, run on macOS."""

from pocketfocus.export.coreml import write
from pocketfocus.export.phases import MAKE
from pocketfocus.export.targets import Target, in_order, later

TARGET = Target(
    name="coreml",
    suffix=".mlpackage",
    colour="#7a9e4e",
    toolchain="coreml",
    packages=("coremltools",),
    runtime="coremltools",
    notes={
        32: "float32 throughout, on CPU or GPU: the Neural Engine computes in float16",
        16: "float16 weights and operators, inputs and output stay float32",
        8: "int8 activations from a PT2E graph; the operators between quantize and dequantize, and "
        "what no layer follows, in float16",
        4: "activations and operators of layers with weights alone compressed stay float16",
    },
    phases={MAKE: 0.05, "capture": 0.15, "convert": 0.5, "compress": 0.3},
    plain="fp16",  # all that the Neural Engine computes in
    write=write.write,
    open=write.open_file,
    input_shapes=write.input_shapes,
    sizes=write.sizes,
    read=in_order("pocketfocus.export.coreml.read", "the package"),
    layers=later("pocketfocus.export.coreml.layers", "layers"),
    cannot_run=write.cannot_run,
    cannot_write=write.cannot_write,
    fallback="mil-check",
    hardware="Apple",
    reference_options={"ios": 18, "form": "blocks"},  # palettes by k-means take hours at full size
    adapted=later("pocketfocus.quantize.toolchains.coreml", "adapted"),
    compatibility=write.compatibility,
    lint=later("pocketfocus.export.coreml.lint", "lint"),
    units=("all", "cpuAndGPU", "cpuOnly"),
)
