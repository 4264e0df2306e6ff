"""A run's checkpoints: weights in Hugging Face format, and beside the newest what training needs to continue."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from xlift.models import Placement
from xlift.records import temporary_path, write_atomic
from xlift.tuning.templates import ChatFormat
from xlift.workspace import TRAINING_STATE, RunFolder


def resume_step(run: RunFolder) -> int:
    """The last step that training can be continued from; 0 if there is none."""
    whole = [step for step in run.checkpoint_steps() if (run.checkpoint(step) / TRAINING_STATE).is_file()]
    return max(whole, default=0)


def save_checkpoint(
    run: RunFolder, step: int, model: Any, optimizer: torch.optim.AdamW, chat: ChatFormat, placement: Placement
) -> None:
    """Write a checkpoint in Hugging Face format with the state to continue from, then move it into place.

    Only the newest checkpoint keeps that state; older ones keep their weights.
    """
    folder = run.checkpoint(step)
    temporary = temporary_path(folder)
    temporary.mkdir(parents=True)
    if run.config.adaptation.method == "full":
        weights = {name: value.to(placement.torch_dtype) for name, value in model.state_dict().items()}
        model.save_pretrained(temporary, state_dict=weights)
    else:
        model.save_pretrained(temporary)
    chat.tokenizer.save_pretrained(temporary)
    save_file(_training_state(model, optimizer, placement), temporary / TRAINING_STATE, {"step": str(step)})
    facts = {"step": step, "template": chat.name, "system": chat.system}
    write_atomic(temporary / "xlift.json", json.dumps(facts, indent=2))
    shutil.rmtree(folder, ignore_errors=True)
    os.rename(temporary, folder)
    for older in run.checkpoint_steps():
        if older < step:
            (run.checkpoint(older) / TRAINING_STATE).unlink(missing_ok=True)


def _trainable(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _training_state(model: Any, optimizer: torch.optim.AdamW, placement: Placement) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, parameter in _trainable(model).items():
        state[f"weight/{name}"] = parameter.detach().contiguous()
        for key, value in optimizer.state[parameter].items():
            state[f"{key}/{name}"] = value.detach().contiguous()
    return state


def restore(checkpoint: Path, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Put the trained weights and the optimiser's state of a checkpoint back, exactly as they were."""
    with safe_open(checkpoint / TRAINING_STATE, framework="pt") as saved:
        keys = set(saved.keys())
        for name, parameter in _trainable(model).items():
            with torch.no_grad():
                parameter.copy_(saved.get_tensor(f"weight/{name}"))
            optimizer.state[parameter] = {
                key: saved.get_tensor(f"{key}/{name}").to(parameter.device if key != "step" else "cpu")
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{key}/{name}" in keys
            }
