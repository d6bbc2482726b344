"""`.pte` files, whose graph XNNPACK executes on the CPU of any phone."""

from pocketfocus.export.executorch import write
from pocketfocus.export.phases import MAKE
from pocketfocus.export.targets import Target, in_order, later

TARGET = Target(
    name="executorch",
    suffix=".pte",
    colour="#d1603d",
    toolchain="executorch",
    packages=("torchao", "executorch"),
    runtime="executorch",
    notes={
        32: "float32 throughout",
        16: "float16 arithmetic between casts, inputs and output stay float32",
        8: "additions between layers int8; what no layer follows, float32",
        4: "what is no layer stays float32",
    },
    phases={MAKE: 0.05, "quantize": 0.1, "capture": 0.05, "lower": 0.8},
    write=write.write,
    open=write.open_file,
    lend=write.lend_file,
    input_shapes=write.input_shapes,
    sizes=write.sizes,
    read=in_order("pocketfocus.export.executorch.read", "XNNPACK's graph"),
    layers=later("pocketfocus.export.executorch.layers", "layers"),
    cannot_run=write.cannot_run,
    cannot_write=write.cannot_write,
    own_gate=later("pocketfocus.export.executorch.coverage", "coverage"),
    compatibility=write.compatibility,
    lint=later("pocketfocus.export.executorch.lint", "lint"),
)
