"""An ETDump by ExecuTorch's own C++ writer, the class `executor_runner` hands to the runtime.

The wheel's library exports ETDumpGen, but no runtime in it calls it (the event tracer is not built
in), so the calls that Method::execute would make are made here. Names and layouts are those of
`executorch/runtime/core/event_tracer.h` in the pinned wheel.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOM = 1 << 16  # bytes, far more than an ETDumpGen has
CLASS = "_ZN10executorch6etdump9ETDumpGen"


class Span(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Entry(ctypes.Structure):
    _fields_ = (
        ("event_id", ctypes.c_int64),
        ("chain_id", ctypes.c_int32),
        ("debug_handle", ctypes.c_uint32),
        ("start_time", ctypes.c_uint64),
        ("delegate_event_id_type", ctypes.c_int),
    )


class Dump(ctypes.Structure):
    _fields_ = (("buffer", ctypes.c_void_p), ("size", ctypes.c_size_t))


def available() -> bool:
    """Whether the library is one whose calling convention is known here."""
    return sys.platform == "linux"


class Writer:
    """An ETDumpGen."""

    def __init__(self) -> None:
        from executorch.extension.pybindings import _portable_lib

        library = ctypes.CDLL(str(_portable_lib.__file__))
        pointer = ctypes.c_void_p
        self.block = getattr(library, f"{CLASS}18create_event_blockEPKc")
        self.block.argtypes, self.block.restype = (pointer, ctypes.c_char_p), None
        self.begin = getattr(library, f"{CLASS}15start_profilingEPKcij")
        self.begin.argtypes = (pointer, ctypes.c_char_p, ctypes.c_int32, ctypes.c_uint32)
        self.begin.restype = Entry
        self.end = getattr(library, f"{CLASS}13end_profilingENS_7runtime16EventTracerEntryE")
        self.end.argtypes, self.end.restype = (pointer, Entry), None
        self.data = getattr(library, f"{CLASS}15get_etdump_dataEv")
        self.data.argtypes, self.data.restype = (pointer,), Dump
        construct = getattr(library, f"{CLASS}C1ENS_7runtime4SpanIhEE")
        construct.argtypes, construct.restype = (pointer, Span), None
        self.memory = ctypes.create_string_buffer(ROOM + 64)
        self.self = (ctypes.addressof(self.memory) + 63) & ~63
        construct(self.self, Span(None, 0))

    @contextmanager
    def event(self, name: str) -> Iterator[None]:
        """An event that lasts as long as the block."""
        entry = self.begin(self.self, name.encode(), -1, 0)
        yield
        self.end(self.self, entry)

    def write(self, path: Path) -> None:
        """The file, as executor_runner writes it."""
        made = self.data(self.self)
        path.write_bytes(ctypes.string_at(made.buffer, made.size))


def write(path: Path, executions_ms: list[float]) -> None:
    """Load, then executions that each take at least so long, with one delegate call and one
    operator each."""
    writer = Writer()
    writer.block(writer.self, b"Default")
    with writer.event("Program::load_method"), writer.event("Method::init"):
        time.sleep(0.002)
    for ms in executions_ms:
        writer.block(writer.self, b"Execute")
        with writer.event("Method::execute"):
            with writer.event("DELEGATE_CALL"):
                time.sleep(ms / 1000)
            with writer.event("native_call_add.out"):
                pass
    writer.write(path)


if __name__ == "__main__":
    write(Path(sys.argv[1]), [float(ms) for ms in sys.argv[2:]])
