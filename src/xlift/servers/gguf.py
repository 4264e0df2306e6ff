"""A GGUF file as a served model: llama.cpp answers on this machine as long as it is asked.

    python -m xlift.servers.gguf FILE.gguf

prints its address and serves until its input ends.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlift.errors import ModelError
from xlift.extras import require

CONTEXT = 2048
"""Tokens of a request and its answer."""


@contextmanager
def serving(path: Path) -> Iterator[str]:
    """The address of a server that answers by this file until the block ends.

    Raises ConfigError where llama.cpp is not installed, ModelError where it cannot read the file.
    """
    require("llama")
    if not path.is_file():
        raise ModelError(f"model '{path}': no such file")
    line = [sys.executable, "-m", "xlift.servers.gguf", str(path)]
    # What llama.cpp says is about itself; a file that it cannot read ends it.
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            address = _address(server)
            if not address:
                raise ModelError(f"model '{path}': llama.cpp cannot read it", "is it whole, and a GGUF file?")
            yield address
        finally:
            server.kill()


def _address(server: subprocess.Popen[str]) -> str:
    assert server.stdout
    return next((line.strip() for line in server.stdout if line.startswith("http")), "")


def main() -> None:
    """Serve the file that is named until the input ends, which it does with the process that started this one."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = sys.argv[1]
    settings.model_alias = {Path(sys.argv[1]).name}
    settings.n_ctx = CONTEXT
    # Its threads wait for each other spinning, so that on busy cores one is far faster than two.
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.verbosity = 0
    settings.warmup = False
    server = xllamacpp.Server(settings)
    print(f"{server.listening_address}/v1", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
