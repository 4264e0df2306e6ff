"""Where a model is served: the address, the key, and whether the server has it."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import urlsplit

from xlift.errors import ConfigError, nearest
from xlift.extras import require
from xlift.redaction import redacted
from xlift.servers.completions import model_names, server_words
from xlift.study.served import Served, checked_address

# e.g. GET http://localhost:8000/version of vLLM answers {"version": "0.10.2"}
ENGINES = (
    ("vLLM", "/version", ("version",)),
    ("llama.cpp", "/props", ("build_info", "model_path")),
    ("TGI", "/info", ("version", "model_dtype", "model_sha")),
    ("SGLang", "/get_server_info", ("version", "dtype", "quantization")),
    ("Ollama", "/api/version", ("version",)),
)
"""Where servers say what they are, and in which fields: the first one must be there."""
LONGEST_TOLD = 1_000_000
"""Bytes that a server may say of itself."""


def api_key(settings: Served) -> str:
    """The key from the environment, without blanks around it; none is needed for a server without TLS (one's own).

    Raises ConfigError where it is missing, or holds what no header can.
    """
    key = os.environ.get(settings.api_key_env, "").strip()
    if not key and urlsplit(server_address(settings) or "https:").scheme != "http":
        raise ConfigError(
            f"{settings.title}: the environment variable {settings.api_key_env} holds no key",
            f"export {settings.api_key_env}=…, or name another variable with api_key_env",
        )
    if not re.fullmatch(r"[!-~]*", key):
        raise ConfigError(
            f"{settings.title}: what the environment variable {settings.api_key_env} holds is no key: "
            "a key has no blanks, line breaks or letters with accents",
            f"export {settings.api_key_env}=… again",
        )
    return key or "none"


def server_address(settings: Served) -> str | None:
    """Where the server is; None for the client's own default. Raises ConfigError for what is no address."""
    given = settings.base_url or os.environ.get("OPENAI_BASE_URL")
    try:
        return checked_address(given) if given else None
    except ValueError as error:
        raise ConfigError(f"OPENAI_BASE_URL: {error}") from None


def served_where(settings: Served) -> str:
    """The address of a server that answers and has the model.

    Raises ConfigError where it does not answer, refuses the key, or lists models and this is none of them.
    """
    where, names = listed(settings)
    if names and settings.model not in names:
        raise ConfigError(
            f"no model '{settings.model}' at {where}; {nearest(settings.model, names)}", "name one of them"
        )
    return where


def listed(settings: Served) -> tuple[str, list[str]]:
    """The address of a server that answers, and the models that it lists: [] of one that lists none.

    Raises ConfigError where it does not answer or refuses the key.
    """
    require("judge")
    from openai import APIStatusError, OpenAI, OpenAIError

    key, address = api_key(settings), server_address(settings)
    with OpenAI(base_url=address, api_key=key, max_retries=1, timeout=20.0) as client:
        where = str(client.base_url).rstrip("/")
        try:
            return where, model_names(client.get("/models", cast_to=object))
        except APIStatusError as error:
            why = server_words(error.body, error.message, key)
            if error.status_code in (401, 403):
                hint = f"is {settings.api_key_env} right?"
                raise ConfigError(f"the server at {where} refuses the key ({why})", hint) from None
            return where, []
        except (OpenAIError, ValueError) as error:
            why = redacted(f"{type(error).__name__}: {error}", key)
            raise ConfigError(f"{where} does not answer ({why})", "is the server running at this address?") from None


def engine_of(settings: Served) -> str:
    """What a server says that it is, with what it says of the model: "vLLM 0.10.2"; "" of one that tells nothing."""
    from httpx2 import Client, HTTPError

    address = settings.base_url or os.environ.get("OPENAI_BASE_URL")
    if not address:
        return ""
    root = address.rstrip("/").removesuffix("/v1")
    with Client(timeout=5.0) as client:
        for name, path, fields in ENGINES:
            try:
                with client.stream("GET", root + path) as answer:
                    told = _object(answer) if answer.status_code == 200 else {}
            except HTTPError:
                continue
            if isinstance(told.get(fields[0]), str):
                said = (str(told[field]).rpartition("/")[2] for field in fields if isinstance(told.get(field), str))
                return redacted(" ".join([name, *said]), api_key(settings))[:200]
    return ""


def _object(answer: Any) -> dict[str, Any]:
    """The JSON object that an answer is, as far as it is short; {} for anything else."""
    body = b""
    for part in answer.iter_bytes():
        body += part
        if len(body) > LONGEST_TOLD:
            return {}
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}
