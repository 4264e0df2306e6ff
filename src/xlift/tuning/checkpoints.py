"""A run's checkpoints: weights in Hugging Face format, and for the newest what training needs to continue."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from xlift.disk import put_in_place, sync, temporary_path, usual_modes, write_atomic
from xlift.errors import DataError
from xlift.hub import file_sha256, quiet
from xlift.integrity import FACTS_FILE, hashes, refuse_other_state
from xlift.models import Placement
from xlift.tuning.card import model_card
from xlift.tuning.sharding import like, whole
from xlift.tuning.templates import ChatFormat
from xlift.workers import first_worker
from xlift.workspace import RunFolder

Write = Callable[[], None]
MOMENTS = {
    frozenset({"step", "exp_avg", "exp_avg_sq"}),
    frozenset({"step", "state1", "state2"}),
    frozenset({"step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2"}),
}
"""What AdamW keeps of a parameter; in 8 bits, of small parameters and of large ones."""
SHARD = "5GB"
"""Weights of more are written as several files with an index, in Hugging Face's way."""


def resume_step(run: RunFolder) -> int:
    """The last step that training can be continued from; 0 if there is none."""
    return max((step for step in run.checkpoint_steps() if run.training_state(step).is_file()), default=0)


def checkpoint_writer(
    run: RunFolder, step: int, model: Any, optimizer: torch.optim.Optimizer, chat: ChatFormat, placement: Placement
) -> Write:
    """A function that writes the checkpoint that is now; what it writes is copied here, so that training may go on.

    Hugging Face format, and beside it the state to continue from; both move into place whole. Only the newest
    checkpoint has that state; older ones keep their weights. The first worker writes; all of them must call this where
    the model is shared out among them.
    """
    tensors = _training_state(model, optimizer)
    full = run.config.adaptation.method == "full"
    weights = _whole_weights(model, tensors) if full else _adapters(model)
    if not first_worker():
        return lambda: None
    told = (run, step, tensors, chat)
    return partial(_write, *told, partial(_save_model if full else _save_adapters, run, model, weights, placement))


def _write(
    run: RunFolder, step: int, tensors: dict[str, Tensor], chat: ChatFormat, save_weights: Callable[[Path], None]
) -> None:
    folder, state = run.checkpoint(step), run.training_state(step)
    state.parent.mkdir(parents=True, exist_ok=True)
    # The state first: a checkpoint's folder that is there always has what training goes on from.
    unfinished = temporary_path(state)
    save_file(tensors, unfinished, {"step": str(step)})
    put_in_place(unfinished, state)
    temporary = temporary_path(folder)
    temporary.mkdir(parents=True)
    save_weights(temporary)
    chat.tokenizer.save_pretrained(temporary)
    facts: dict[str, Any] = {"step": step, "template": chat.name, "system": chat.system, "thinking": chat.thinking}
    facts |= {"chat_template_kwargs": dict(chat.arguments)} if chat.arguments else {}
    facts |= {"sha256": hashes(temporary.iterdir()), "training_state": file_sha256(state)}
    write_atomic(temporary / FACTS_FILE, json.dumps(facts, indent=2))
    write_atomic(temporary / "README.md", model_card(run, step))
    usual_modes(state, *temporary.iterdir())
    # Nor may a loss of power leave a checkpoint whose steps the log has not: they are not made again.
    sync(run.train_log)
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(temporary, folder)
    keep_state(run, step)


def keep_state(run: RunFolder, step: int) -> None:
    """Remove the training states of other steps, now that this one is safe on the disk."""
    state = run.training_state(step)
    for other in state.parent.glob("step-*.safetensors"):
        if other != state:
            other.unlink(missing_ok=True)


def _save_model(run: RunFolder, model: Any, weights: dict[str, Tensor], placement: Placement, folder: Path) -> None:
    # Without the model library's own bar: ours has the line.
    with quiet():
        model.save_pretrained(folder, state_dict=_cast(weights, placement.torch_dtype), max_shard_size=SHARD)


def _save_adapters(run: RunFolder, model: Any, weights: dict[str, Tensor], placement: Placement, folder: Path) -> None:
    """What PEFT's own save_pretrained writes, without a look at the model, which goes on learning."""
    lora = copy(model.peft_config["default"])
    lora.base_model_name_or_path, lora.revision = run.config.model, run.pinned_revision or run.config.revision
    lora.inference_mode = True
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    lora.save_pretrained(str(folder))


def _adapters(model: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    # The embeddings are the base's own; to find that out by itself, PEFT would ask the hub for the base.
    found = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: _copied(value) for name, value in found.items()}


def _copied(value: Tensor) -> Tensor:
    """A tensor's copy on the CPU, put together from its shares; all processes must ask for one that is shared out."""
    if isinstance(value, DTensor):
        return whole(value.detach()).contiguous()
    return torch.empty(value.shape, dtype=value.dtype).copy_(value.detach())


@contextmanager
def in_background() -> Iterator[Callable[[Callable[[], Write]], None]]:
    """A function that is given how to copy what is to be written, and lets it be written beside what goes on here.

    One at a time, so that no more than one copy is held. What writing raises is raised by the next call, or at the end,
    which waits for the last.
    """
    under_way: list[Future[None]] = []
    with ThreadPoolExecutor(1) as thread:

        def hand_over(copied: Callable[[], Write]) -> None:
            finish()
            under_way.append(thread.submit(copied()))

        def finish() -> None:
            while under_way:
                under_way.pop().result()

        yield hand_over
        finish()


def _cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights in another dtype; those that share their memory, as tied embeddings do, go on sharing it."""
    made: dict[tuple[int, torch.Size], Tensor] = {}
    return {name: made.setdefault((value.data_ptr(), value.shape), value.to(dtype)) for name, value in weights.items()}


def _trainable(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _training_state(model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, parameter in _trainable(model).items():
        for key, value in {"weight": parameter, **optimizer.state[parameter]}.items():
            # The moments in 8 bits count their steps by a number.
            together = _copied(torch.as_tensor(value))
            # The other workers help to put it together, and have no use for it.
            if first_worker():
                state[f"{key}/{name}"] = together
    return state


def _whole_weights(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A model's state dictionary by the copies in its training state; tied weights are one tensor."""
    found = {name: value for name, value in model.state_dict().items() if not isinstance(value, DTensor)}
    made: dict[int, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in made:
            known = tensors.get(f"weight/{name}")
            # What is not trained is in no training state. Trained weights are known to the first worker alone.
            made[id(parameter)] = known if known is not None else _frozen(parameter)
        found[name] = made[id(parameter)]
    return found


def _frozen(parameter: Tensor) -> Tensor:
    return parameter.detach() if parameter.requires_grad else whole(parameter.detach())


def restore(run: RunFolder, step: int, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Put the trained weights and the optimiser's state back, exactly as they were.

    Raises DataError for a state that is damaged or another run's.
    """
    state = run.training_state(step)
    refuse_other_state(run.checkpoint(step), state)
    try:
        _restore(state, model, optimizer)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        hint = "remove the file and run again: training begins anew"
        raise DataError(f"{state}: training cannot be continued from it: {error}", hint) from None


def _restore(state: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    with safe_open(state, framework="pt") as saved:
        kinds: dict[str, set[str]] = {}
        for key in saved.keys():  # noqa: SIM118
            kind, _, name = key.partition("/")
            kinds.setdefault(name, set()).add(kind)
        for name, parameter in _trainable(model).items():
            with torch.no_grad():
                parameter.copy_(like(_like(saved, f"weight/{name}", parameter), parameter))
            moments = kinds.get(name, set()) - {"weight"}
            if frozenset(moments) not in MOMENTS:
                raise ValueError(f"of the moments of {name} it holds {', '.join(sorted(moments)) or 'none'} alone")
            # In one order in all processes, which share each out together.
            optimizer.state[parameter] = {kind: _moment(saved, kind, name, parameter) for kind in sorted(moments)}


def _moment(saved: Any, kind: str, name: str, parameter: Tensor) -> Tensor | float:
    """A part of the optimiser's state of a parameter; in 8 bits moments have scales, and steps are no tensor."""
    key = f"{kind}/{name}"
    if kind == "step":
        steps = _like(saved, key, torch.zeros(()))
        return steps.to(parameter.device) if steps.is_floating_point() else int(steps)
    if kind.startswith(("qmap", "absmax")):
        scales: Tensor = saved.get_tensor(key)
        return scales.to(parameter.device)
    return like(_like(saved, key, parameter), parameter)


def _like(saved: Any, key: str, parameter: Tensor) -> Tensor:
    """A saved tensor. Raises ValueError where it has another shape than its parameter, or holds what is no number."""
    value: Tensor = saved.get_tensor(key)
    if value.shape != parameter.shape:
        raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    if not value.isfinite().all():
        raise ValueError(f"{key} holds values that are no numbers")
    return value
