"""A checkpoint whose first and last layers are another run's.

Bandarkar et al. 2024, "Layer swapping for zero-shot cross-lingual transfer in large language models" (arXiv
2410.01335): the layers next to words carry the language, those between carry what was learned in English. Of adapters
the layers are swapped as they are: both stand on one base, so that merged weights are swapped just so.
"""

from __future__ import annotations

import json
import re
import shutil

from safetensors.torch import load_file, save_file
from torch import Tensor

from xlift.disk import put_in_place, temporary_path, usual_modes, write_atomic
from xlift.errors import ConfigError, UserError
from xlift.integrity import FACTS_FILE, checkpoint_facts, hashes, refuse_damaged
from xlift.tuning.card import model_card
from xlift.workspace import RunFolder

_LAYER = re.compile(r"\.(\d+)\.")


def swap_layers(run: RunFolder, english: RunFolder, other: RunFolder) -> int:
    """Write the checkpoint of a run with `swap` from the last checkpoints of its parents; which step it has.

    Raises UserError for a parent without a checkpoint, ConfigError where the layers are fewer than those to swap.
    """
    for one in (english, other):
        if not one.checkpoint_steps():
            raise UserError(f"swap: {one.label} is not trained, whose layers it takes", "xlift train makes it")
    step = english.checkpoint_steps()[-1]
    first, second = english.checkpoint(step), other.checkpoint(other.checkpoint_steps()[-1])
    for folder in (first, second):
        refuse_damaged(folder)
    temporary, folder = temporary_path(run.checkpoint(step)), run.checkpoint(step)
    shutil.copytree(first, temporary)
    theirs = {name: value for path in sorted(second.glob("*.safetensors")) for name, value in load_file(path).items()}
    for path in sorted(temporary.glob("*.safetensors")):
        save_file(swapped(load_file(path), theirs, run.config.swap), path, {"format": "pt"})
    facts = checkpoint_facts(first) | {"sha256": hashes(temporary.iterdir())}
    facts.pop("training_state", None)
    write_atomic(temporary / FACTS_FILE, json.dumps(facts, indent=2))
    write_atomic(temporary / "README.md", model_card(run, step))
    usual_modes(*temporary.iterdir())
    shutil.rmtree(folder, ignore_errors=True)
    put_in_place(temporary, folder)
    return step


def swapped(own: dict[str, Tensor], theirs: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The tensors with those of the first and last `count` layers from `theirs`; what is in no layer stays."""
    layers = 1 + max((number for name in theirs if (number := layer_of(name)) is not None), default=-1)
    if 2 * count > layers:
        raise ConfigError(f"swap: {count} first and {count} last layers of a model that has {layers}", "lower swap")
    outer = {*range(count), *range(layers - count, layers)}
    return {name: theirs[name] if layer_of(name) in outer else value for name, value in own.items()}


# e.g. layer_of("base_model.model.model.layers.3.mlp.experts.5.up_proj.weight") → 3
# e.g. layer_of("model.embed_tokens.weight") → None
def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None for embeddings, norms and the output layer."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None
