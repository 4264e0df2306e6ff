"""Base models and checkpoints in memory: device and dtype, loading with tensors checked, a kept base, adapters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from xlift.errors import ModelError, UserError, out_of_memory
from xlift.hub import ADAPTER_CONFIG, Located, quiet
from xlift.integrity import refuse_damaged
from xlift.progress import say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_LOST = 0.3
"""How much of what an adapter changes may be lost to rounding when it is merged."""


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


@contextmanager
def reading(what: str, hint: str = "take a whole copy of the model, saved by save_pretrained") -> Iterator[None]:
    """Reads a model's files quietly; ModelError that `what` cannot be read, for whatever the library raises on them."""
    try:
        with quiet():
            yield
    except UserError:
        raise
    except Exception as error:  # files that somebody else wrote may hold anything, on which it may raise anything
        if out_of_memory(error):
            raise
        kind = "" if isinstance(error, OSError | ValueError | RuntimeError) else f"{type(error).__name__}: "
        problem = f"{what} cannot be read: {kind}{' '.join(str(error).split())[:300]}"
        raise ModelError(problem, hint) from error


def load_tokenizer(path: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or checkpoint, with a padding token set. Raises ModelError where there is none."""
    from transformers import AutoTokenizer

    with reading(f"{path}: its tokenizer or configuration"):
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

    model = _proved(path, revision, dtype=torch.float32 if fp32 else placement.torch_dtype)
    if odd := [name for name, value in model.named_parameters() if not value.isfinite().all()]:
        raise ModelError(f"{path}: tensors hold values that are no numbers: {_first_names(odd)}", "take a whole copy")
    return model.to(placement.device).eval()  # type: ignore[arg-type]


def empty_model(path: str, revision: str | None = None) -> PreTrainedModel:
    """A causal language model without its weights, on torch's device `meta`: of its files the headers alone are read.

    Raises ModelError as `load_model` does.
    """
    return _proved(path, revision, device_map="meta")


def _proved(path: str, revision: str | None, **how: Any) -> PreTrainedModel:
    """A model whose files hold what it wants and nothing else."""
    with quiet():
        how["config"] = _without_noise(causal_config(path, revision))
        try:
            model, told = _loaded(path, revision, attn_implementation="sdpa", **how)
        except ModelError as error:
            if "scaled_dot_product_attention" not in str(error.__cause__):
                raise
            model, told = _loaded(path, revision, attn_implementation="eager", **how)
    problems = _unfit_tensors(told)
    if problems:
        raise ModelError([f"{path}: {problem}" for problem in problems], _prefix_hint(told))
    return model


def _loaded(path: str, revision: str | None, **how: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    try:
        with reading(f"{path}: its weights"):
            found: Any = AutoModelForCausalLM.from_pretrained(
                path,
                revision=revision,
                output_loading_info=True,
                # Told with the others instead of raised without a name.
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                trust_remote_code=False,
                **how,
            )
    except ModelError as error:
        why = error.__cause__
        if isinstance(why, ValueError):
            raise ModelError(f"{path}: cannot be loaded as a causal language model: {why}") from why
        # Tensors that are put together while they are loaded, such as those of experts, raise where one does not fit.
        if not isinstance(why, RuntimeError) or "conversion" not in str(why):
            raise
        problem = f"{path}: tensors that the model puts together (of its experts, say) do not fit each other"
        raise ModelError(problem, "take a whole copy of the model, saved by save_pretrained") from None
    return cast("tuple[PreTrainedModel, dict[str, Any]]", found)


def causal_config(path: str, revision: str | None = None) -> Any:
    """The configuration of a causal language model. Raises ModelError for a model of another kind."""
    from transformers import AutoConfig

    with reading(f"{path}: its configuration"):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if config.is_encoder_decoder:
        problem = f"{path}: {config.model_type} reads with an encoder and writes with a decoder"
        raise ModelError(problem, "xlift tunes models that only write, such as Llama, Qwen, Gemma or Mistral")
    return config


def _without_noise(config: Any) -> Any:
    """A model's configuration with its own dropout off (`attn_pdrop` of GPT-2, `layerdrop` of OPT, jitter of experts).

    It is drawn for each forward pass, so that how many examples share one would decide the weights.
    """
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            _without_noise(value)
        elif isinstance(value, float) and any(word in name for word in ("drop", "jitter")):
            setattr(config, name, 0.0)
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


# e.g. _first_names(["a", "b", "c", "d", "e"]) → "a, b, c and 2 more"
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
    """A model ready to answer: the base, a full checkpoint, or the base with an adapter, merged where that is exact.

    With `weight` below 1 the weights lie on the line from the base to the checkpoint, base + weight · (tuned − base):
    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models". Sums are made in float32, so that the rounding to
    the computing dtype happens once. The base comes from `kept`, which lets it go beside a full checkpoint that needs
    none of it. A base that is an adapter itself answers with it.
    """
    kept = kept or KeptBase()
    checkpoint = Path(base.adapter) if checkpoint is None and base.adapter else checkpoint
    if checkpoint:
        refuse_damaged(checkpoint)
    if checkpoint is None:
        with kept.lent(base, placement) as model:
            yield model
    elif (checkpoint / ADAPTER_CONFIG).is_file():
        with kept.lent(base.base, placement) as model, _with_adapter(model, checkpoint, weight):
            yield model
    elif weight == 1:
        kept.let_go()
        yield load_model(str(checkpoint), placement)
    else:
        with kept.lent(base, placement) as model:
            yield _draw_back(load_model(str(checkpoint), placement), model, weight)


@contextmanager
def _with_adapter(model: PreTrainedModel, adapter: Path, weight: float) -> Iterator[None]:
    """Adds an adapter to a model for as long as the context lasts: to its weights, or where that is not exact beside
    them."""
    import torch

    from xlift.tuning.proof import probe_ids

    wrapped = _wrapped(model, adapter)
    before: list[tuple[torch.Tensor, torch.Tensor]] = []

    def take_back() -> None:
        for target, value in before:
            target.copy_(value)
        before.clear()

    try:
        with torch.no_grad():
            ids, layers = probe_ids(model, 12), _adapted(wrapped)
            # What is no plain LoRA has no scale to lower: its weights are drawn back themselves.
            drawn = weight < 1 and _beyond_lora(wrapped, layers)
            plain, apart = _scores(wrapped, layers, ids, 1 if drawn else weight)
            for target, merged_weight in _merged_weights(wrapped, layers):
                before.append((target, target.to("cpu", copy=True)))
                target.copy_(torch.lerp(target.float(), merged_weight.float(), weight) if drawn else merged_weight)
            with wrapped.disable_adapter():
                merged = wrapped(input_ids=ids, use_cache=False).logits
        if drawn or _same(merged, plain, apart):
            unwrapped(wrapped)
        else:
            say(f"{adapter}: merged into the weights it gives other scores; it answers beside them, more slowly")
            take_back()
        yield
    finally:
        take_back()
        unwrapped(wrapped)


def _wrapped(model: PreTrainedModel, adapter: Path) -> Any:
    """A model with an adapter beside its weights. Raises ModelError for an adapter that is not whole."""
    from peft import PeftModel

    refuse_damaged(adapter)
    with reading(f"{adapter}: the adapter", "remove the checkpoint and run again: it is made anew"):
        wrapped = PeftModel.from_pretrained(model, str(adapter))
        _check_adapter(wrapped, adapter)
    return wrapped


def adapter_layers(model: PreTrainedModel, adapter: Path) -> dict[str, Any] | None:
    """PEFT's layers of an adapter by the names of the layers that they stand for; the model is as before.

    None for one that trains modules whole or adapts none but by LoRA. Raises ModelError as `loaded_checkpoint` does.
    """
    from peft.tuners.lora import LoraLayer

    wrapped = _wrapped(model, adapter)
    try:
        named = list(wrapped.base_model.model.named_modules())
        whole = wrapped.peft_config["default"].modules_to_save or wrapped.peft_config["default"].peft_type != "LORA"
        return None if whole else {name: one for name, one in named if isinstance(one, LoraLayer)}
    finally:
        unwrapped(wrapped)


def unwrapped(wrapped: Any) -> Any:
    """Takes an adapter off: the base with its own modules, where PEFT would leave those that were trained whole."""
    from peft.utils import ModulesToSaveWrapper

    named = wrapped.base_model.model.named_modules()
    own = {name: one.original_module for name, one in named if isinstance(one, ModulesToSaveWrapper)}
    bare = wrapped.unload()
    for name, module in own.items():
        bare.set_submodule(name, module)
    return bare


def _check_adapter(wrapped: Any, folder: Path) -> None:
    """Raises ValueError where an adapter's file holds other tensors than the adapted model, or what is no number.

    PEFT itself leaves a tensor that is not there as it was drawn.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    there = load_file(folder / "adapter_model.safetensors")
    if missing := sorted(wanted.keys() - there.keys()):
        raise ValueError(f"it lacks tensors: {_first_names(missing)}")
    if odd := [name for name, value in there.items() if not value.isfinite().all()]:
        raise ValueError(f"tensors hold values that are no numbers: {_first_names(odd)}")


def _adapted(model: Any) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _beyond_lora(wrapped: Any, layers: list[Any]) -> bool:
    """Whether an adapter changes more than by a sum of products: DoRA, modules trained whole."""
    return any(getattr(layer, "lora_variant", None) for layer in layers) or bool(
        wrapped.peft_config["default"].modules_to_save
    )


def _merged_weights(wrapped: Any, layers: list[Any]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Each weight that an adapter changes and what it becomes, in float32; one after the other, to spare memory."""
    from peft.utils import ModulesToSaveWrapper

    for layer in layers:
        target = _adapted_weight(layer)
        changed = target.float()
        for name in layer.active_adapters:
            variant = getattr(layer, "lora_variant", {}).get(name)
            # DoRA measures the length of the base's rows, which are still as they were.
            changed = variant.merge_safe(layer, name, changed) if variant else changed + layer.get_delta_weight(name)
        yield target, changed
    for wrapper in wrapped.modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            saved = wrapper.modules_to_save[wrapper.active_adapters[0]]
            pairs = zip(wrapper.original_module.parameters(), saved.parameters(), strict=True)
            yield from ((target.detach(), value.detach()) for target, value in pairs)


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


def _same(merged: torch.Tensor, plain: torch.Tensor, apart: torch.Tensor) -> bool:
    """Whether a merged adapter does what it does beside the weights, up to what rounding them loses."""
    from xlift.tuning.proof import equal

    off, moved = (merged.float() - apart.float()).norm(), (apart.float() - plain.float()).norm()
    return equal(merged, apart) or bool(off <= MOST_LOST * moved)


def _draw_back(tuned: PreTrainedModel, base: PreTrainedModel, weight: float) -> PreTrainedModel:
    import torch

    start = dict(base.named_parameters())
    shapes = {name: value.shape for name, value in tuned.named_parameters()}
    if shapes != {name: value.shape for name, value in start.items()}:
        raise ModelError("the tuned model and its base are not of one shape: one is not tuned from the other")
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            value.copy_(torch.lerp(start[name].float(), value.float(), weight))
    return tuned
