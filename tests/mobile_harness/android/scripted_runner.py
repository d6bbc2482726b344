"""What a scripted phone's `executor_runner` does, in processes forked from one that has imported
PyTorch and ExecuTorch: the imports take three seconds, what it does a tenth of one.

The phone's program, `CLIENT`, hands its arguments and its streams to that process, waits for its
end, and takes the forked one with it when it is killed.
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from functools import cache
from pathlib import Path
from typing import Any

BYTES = 1 << 16  # of a call, at most
CLIENT = """#!{python} -IS
import json, os, socket, sys, time
held = b"x" * (16 << 20)  # what a runner takes, to be seen by who asks the phone
time.sleep({sleeps})
with socket.socket(socket.AF_UNIX) as server:
    server.connect({server!r})
    call = {script} | {{"arguments": sys.argv[1:], "folder": os.getcwd()}}
    socket.send_fds(server, [json.dumps(call).encode()], [1, 2])
    sys.exit(int(server.recv(16) or 137))
"""


@cache
def server() -> str:
    """Where the process listens that runs all calls of this one; it ends with it."""
    folder = tempfile.TemporaryDirectory(prefix="phone-")
    path = f"{folder.name}/runner"
    process = subprocess.Popen([sys.executable, __file__, path], stdout=subprocess.PIPE, text=True)
    atexit.register(folder.cleanup)
    atexit.register(process.terminate)
    assert process.stdout and process.stdout.readline() == "listening\n"
    return path


def client(script: dict[str, Any]) -> str:
    """The text of the program, of a phone of this `script` (`scripted_adb.install`)."""
    known = {key: script[key] for key in ("tracer", "methods", "drift") if key in script}
    return CLIENT.format(
        python=sys.executable, sleeps=script.get("sleeps", 0), server=server(), script=known
    )


class Handler(socketserver.BaseRequestHandler):
    """One call, in a process of its own."""

    request: socket.socket

    def handle(self) -> None:
        """Run it with the caller's streams, until it ends or the caller does."""
        said, streams, _, _ = socket.recv_fds(self.request, BYTES, 2)
        for number, stream in enumerate(streams, start=1):
            os.dup2(stream, number)
        threading.Thread(target=self._follow, daemon=True).start()
        call = json.loads(said)
        os.chdir(call["folder"])
        code = 1
        try:
            run(call, call["arguments"])
            code = 0
        except SystemExit as end:
            print(end.code, file=sys.stderr)
        except Exception:
            traceback.print_exc()
        self.request.sendall(str(code).encode())

    def _follow(self) -> None:
        if not self.request.recv(1):
            os._exit(137)


class Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    """Forks for every call; ends when the process that started it does, even if that is killed."""

    started_by = os.getppid()

    def service_actions(self) -> None:
        """Is called twice a second."""
        super().service_actions()
        if os.getppid() != self.started_by:
            os._exit(0)


def run(script: dict[str, Any], arguments: list[str]) -> None:
    """Execute a .pte as ExecuTorch's runner does; SystemExit for a flag that it lacks."""
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    known = {"model_path", "inputs", "output_file", "num_executions", "cpu_threads"}
    known |= {"etdump_path"} if script.get("tracer", True) else set()
    known |= {"method_name"} if script.get("methods", True) else set()
    if unknown := sorted(flags.keys() - known):
        sys.exit(f"ERROR: unknown command line flag '{unknown[0]}'")
    start = time.perf_counter_ns()
    module = _portable_lib._load_for_executorch(flags["model_path"])
    method = flags.get("method_name", "forward")
    meta = module.method_meta(method)
    loaded = event("Program::load_method", start, time.perf_counter_ns())
    inputs = [
        torch.from_numpy(np.fromfile(path, "<f4")).reshape(meta.input_tensor_meta(i).sizes())
        for i, path in enumerate(flags["inputs"].split(","))
    ]
    runs = [schema.RunData("Default", -1, [], [loaded])]
    for _ in range(int(flags["num_executions"])):
        begun = time.perf_counter_ns()
        outputs = module.run_method(method, inputs)
        ended = time.perf_counter_ns()
        events = [event(name, begun, ended) for name in ("DELEGATE_CALL", "Method::execute")]
        runs.append(schema.RunData("Execute", -1, [], events))
    if "output_file" in flags:
        for i, output in enumerate(outputs):
            drifted = output + script.get("drift", 0) * (len(runs) - 2)
            drifted.numpy().tofile(f"{flags['output_file']}-{i}.bin")
    if "etdump_path" in flags:
        made = serialize_to_etdump_flatcc(schema.ETDumpFlatCC(0, runs))
        Path(flags["etdump_path"]).write_bytes(len(made).to_bytes(4, "little") + made)


def event(name: str, begun: int, ended: int) -> Any:
    """An event of an ETDump, from and to when, in nanoseconds."""
    return schema.Event(schema.ProfileEvent(name, -1, -1, -1, "", b"", begun, ended), None, None)


if __name__ == "__main__":
    import executorch
    import numpy as np
    import torch

    for part in ("devtools", "exir"):  # which import the whole exporter: most of the time
        bare = sys.modules[f"executorch.{part}"] = types.ModuleType(part)
        bare.__path__ = [f"{place}/{part}" for place in executorch.__path__]
    from executorch.devtools.etdump import schema_flatcc as schema
    from executorch.devtools.etdump.serialize import serialize_to_etdump_flatcc
    from executorch.extension.pybindings import _portable_lib

    with Server(sys.argv[1], Handler) as listening:
        print("listening", flush=True)
        listening.serve_forever()
