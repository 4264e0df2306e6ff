"""`xlift` as a process of its own without the seconds of its imports: forked from a process that has made them.

Where the interpreter's start is what a test is about (the environment of the hub, light imports, other systems than
Linux), start sys.executable instead.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import selectors
import socket
import subprocess
import sys
import tempfile
import traceback
from functools import cache
from pathlib import Path
from typing import IO, Any

IMPORTED = [
    *("torch", "torch.distributed.tensor", "transformers.conversion_mapping", "transformers.models.auto.modeling_auto"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.llama.modeling_llama"),
    *("peft", "safetensors.torch", "polars", "scipy.stats", "jinja2", "pydantic", "yaml"),
    *("xlift.cli", "xlift.stages", "xlift.planning.check", "xlift.report.page", "xlift.annotation.campaign"),
]


class Warm:
    """A running `xlift`, with the methods of subprocess.Popen that the tests use."""

    def __init__(self, arguments: list[str], cwd: Path, streams: list[int], env: dict[str, str] | None) -> None:
        self.returncode: int | None = None
        self._wire = socket.socket(socket.AF_UNIX)
        self._wire.connect(_parent())
        request = json.dumps({"argv": arguments, "cwd": str(cwd), "env": dict(os.environ) if env is None else env})
        self._wire.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
        self._wire.sendall(request.encode() + b"\n")
        self._lines = self._wire.makefile("r")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not _readable(self._wire, timeout):
                raise subprocess.TimeoutExpired("xlift", timeout or 0)
            self.returncode = int(self._lines.readline())
            self._wire.close()
        return self.returncode

    def poll(self) -> int | None:
        return self.wait() if self.returncode is None and _readable(self._wire, 0) else self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)


def start_xlift(
    *arguments: str, folder: Path, streams: list[int], env: dict[str, str] | None = None
) -> Warm | subprocess.Popen[bytes]:
    """Starts `xlift` in a folder with its three streams; only Linux forks a process that has loaded all this."""
    if sys.platform == "linux":
        return Warm(list(arguments), folder, streams, env)
    source, out, err = streams
    line = [sys.executable, "-m", "xlift", *arguments]
    return subprocess.Popen(line, cwd=folder, env=env, stdin=source, stdout=out, stderr=err)


def run_xlift(
    *arguments: str, folder: Path, input: str = "", stdin: int | None = None, timeout: float = 300, **settings: Any
) -> subprocess.CompletedProcess[str]:
    """Runs `xlift` to its end in a folder, as subprocess.run(..., capture_output=True, text=True) does."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err, _input(input) as given:
        source = given.fileno() if stdin is None or stdin == subprocess.DEVNULL else stdin
        process = start_xlift(*arguments, folder=folder, streams=[source, out.fileno(), err.fileno()], **settings)
        try:
            process.wait(timeout)
        finally:
            process.kill()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, process.wait(), out.read(), err.read())


def _input(text: str) -> IO[str]:
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115
    file.write(text)
    file.seek(0)
    return file


def _readable(wire: socket.socket, timeout: float | None) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(wire, selectors.EVENT_READ)
        return bool(selector.select(timeout))


@cache
def _parent() -> str:
    """The address of the process that has imported everything; it ends with this one."""
    address = Path(tempfile.mkdtemp(prefix="warm")) / "s"
    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    line, env = [sys.executable, __file__, str(address)], os.environ | one_thread
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    atexit.register(process.kill)
    return str(address)


# --- the parent -------------------------------------------------------------------------------------------------


def _serve(address: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select(0.01 if running else None)]
            if sys.stdin in ready:
                return
            if listener in ready:
                wire, _ = listener.accept()
                pid = _start(wire, [listener, *running.values()])
                wire.sendall(f"{pid}\n".encode())
                running[pid] = wire
            _tell_ends(running)


def _tell_ends(running: dict[int, socket.socket]) -> None:
    for pid in list(running):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            wire = running.pop(pid)
            with contextlib.suppress(OSError):
                wire.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            wire.close()


def _start(wire: socket.socket, others: list[socket.socket]) -> int:
    size = array.array("i").itemsize
    _, sent, _, _ = wire.recvmsg(1, socket.CMSG_SPACE(3 * size))
    streams = array.array("i", sent[0][2])
    request = json.loads(wire.makefile("r").readline())
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        return pid
    for one in [wire, *others]:
        one.close()
    _become(request, list(streams))
    return 0


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """The child: takes over streams, folder and environment, runs `python -m xlift`, and ends."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["xlift", *request["argv"]]
    code = 0
    try:
        runpy.run_module("xlift", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
