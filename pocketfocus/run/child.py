"""The child's side of `processes`: it takes work from standard input until that ends.

Executed as a module, or by its path in a Python that has numpy and no pocketfocus. Both streams are
kept for the protocol: what the work itself prints goes to standard error.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from numpy.typing import NDArray

WATCH_S = 1.0
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NUMBER = re.compile(r"\(os error (\d+)\)")  # in the errors of Rust, such as safetensors
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")  # numpy's error of a full disk
Say = Callable[[str], None]
if TYPE_CHECKING:
    Arrays = Mapping[str, NDArray[Any]]
    Function = Callable[[Mapping[str, Any], Arrays, Say], tuple[Mapping[str, Any], Arrays]]


def main() -> None:
    """Answer every order, a line of JSON, with lines of progress and one that ends it."""
    end_with_parent()
    orders, answers = private_streams()

    def send(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    for line in orders:
        send(perform(json.loads(line), lambda text: send({"progress": text})))


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, however that ends.

    A parent that was killed can tell nobody; whoever has lost its parent is given another.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def private_streams() -> tuple[TextIO, TextIO]:
    """Move standard input and output, so that no library reads or writes there.

    Descriptor 0 becomes empty, and 1 the same as standard error.
    """
    orders, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return orders, answers


def perform(order: Mapping[str, Any], say: Say) -> dict[str, Any]:
    """Call the function that an order names; its message tells what it gave or how it failed."""
    import numpy as np

    folder = Path(order["folder"])
    try:
        arrays = {
            name: np.load(folder / f"in-{number}.npy", mmap_mode="r")
            for number, name in enumerate(order["arrays"])
        }
        fields, made = function(order["call"])(order["arguments"], arrays, say)
        for number, array in enumerate(made.values()):
            np.save(folder / f"out-{number}.npy", array)
    except Exception as error:
        if is_full(error):
            return {"user_error": full(folder.parent, error)}
        # By its name: in a Python without the package there is no class to compare with.
        if any(kind.__name__ == "UserError" for kind in type(error).__mro__):
            return {"user_error": str(error)}
        line = next(iter(str(error).strip().splitlines()), "no message")
        return {
            "error": f"{type(error).__name__}: {line}",
            "traceback": traceback.format_exc(),
        }
    return {"fields": dict(fields), "arrays": list(made)}


def os_error(error: BaseException) -> OSError | None:
    """Return the system's error that an exception is or tells of; None for any other."""
    number = NUMBER.search(str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if isinstance(error, OSError) and CUT_SHORT.fullmatch(str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return error if isinstance(error, OSError) else None


def is_full(error: BaseException) -> bool:
    """Return whether an error says that a disk is full."""
    found = os_error(error)
    return found is not None and found.errno in FULL


def full(folder: Path, error: BaseException) -> str:
    """Return the one line for a folder of temporary files, or whatever an error names, that is
    full."""
    where = getattr(error, "filename", None) or f"{folder}, the folder for temporary files,"
    return f"{where} is full: free some space there, or name another folder in TMPDIR"


def function(call: str) -> Function:
    """Return what `package.module:name` or `path/to/module.py:name` stands for; imported once."""
    place, _, name = call.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    if place not in sys.modules:
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        sys.modules[place] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[place])
    return getattr(sys.modules[place], name)


if __name__ == "__main__":
    main()
