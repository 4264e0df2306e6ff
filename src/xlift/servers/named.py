"""Served models as a command line names them: the address of a server, or a GGUF file that llama.cpp serves."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from xlift.errors import ConfigError
from xlift.hub import file_sha256
from xlift.servers.gguf import serving
from xlift.servers.where import listed
from xlift.study.served import Model


def is_served(name: str) -> bool:
    """Whether a model answers behind an address: a server's, or that of llama.cpp, which is started for a GGUF file."""
    return is_address(name) or name.endswith(".gguf")


# e.g. [is_address(name) for name in ("http://localhost:8000/v1", "google/gemma")] → [True, False]
def is_address(name: str) -> bool:
    """Whether a model is called by the address of its server."""
    return name.startswith(("http://", "https://"))


def served_model(name: str, model: str | None, api_key_env: str | None, servers: ExitStack) -> dict[str, Any]:
    """A served model as a study names it; `servers` ends those that are started for it.

    Raises ConfigError where the server has several models and none is named.
    """
    if is_address(name):
        at: dict[str, Any] = {"base_url": name, **({"api_key_env": api_key_env} if api_key_env else {})}
        model = model or _only_model(at)
        return {"model": model, "name": f"{model} at {name.partition('://')[2]}", **at}
    file = Path(name)
    # Named by its content, so that its answers are its own wherever it is served.
    called = f"{file.stem}-{file_sha256(file)[:8]}" if file.is_file() else file.stem
    return {"model": file.name, "name": called, "base_url": servers.enter_context(serving(file))}


def _only_model(at: dict[str, Any]) -> str:
    where, names = listed(Model(model="any", **at))
    if len(names) != 1:
        there = f"; there are: {', '.join(names)}" if names else ""
        raise ConfigError(f"{where}: which of its models?{there}", "--model NAME")
    return names[0]
