"""A language's direction in a model's hidden states, added to them so that answers come in that language.

The direction at a layer is the difference of mean hidden states between replies in the language and replies in English
to the same questions, over the built-in factual questions for validation: what tells the two apart is the language they
are in, not what they say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor

from xlift.data.prompts import fact_prompts, margin_languages
from xlift.errors import ConfigError
from xlift.generation.margin import FactPair, fact_pairs, reply_message
from xlift.tuning.loss import decoder_of
from xlift.tuning.packing import pad, split_micro_batches
from xlift.tuning.templates import ChatFormat, Encoded


@torch.inference_mode()
def language_vectors(
    model: Any, chat: ChatFormat, languages: Sequence[str], layers: Sequence[int] | None
) -> dict[int, Tensor]:
    """By layer, the directions of these languages, (languages, dimension) in float32: zeros for one without built-in
    questions, English among them. Where no layers are named, the middle third of them.

    Raises ConfigError for a layer that the model does not have.
    """
    count = len(_layers(model))
    chosen = list(range(count // 3, count - count // 3)) if layers is None else list(layers)
    if beyond := [layer for layer in chosen if layer >= count]:
        raise ConfigError(f"decoding.steer_layers: no layer {beyond[0]}; this model has layers 0 to {count - 1}")
    made = []
    for code in languages:
        pairs = fact_pairs(fact_prompts([code])) if margin_languages([code]) else []
        made.append(_means(model, chat, pairs, True, chosen) - _means(model, chat, pairs, False, chosen))
    return dict(zip(chosen, torch.stack(made, dim=1), strict=True))


def _means(model: Any, chat: ChatFormat, pairs: Sequence[FactPair], own: bool, chosen: Sequence[int]) -> Tensor:
    """Mean states of the replies' tokens behind these layers, (layers, dimension); zeros without any."""
    sums = torch.zeros(len(chosen), model.config.get_text_config().hidden_size, device=model.device)
    examples = [chat.encode([*pair.question, reply_message(pair.reply if own else pair.english)]) for pair in pairs]
    for group in split_micro_batches(range(len(examples)), [len(e) for e in examples], 2048, padded=True):
        sums += _summed(model, [examples[i] for i in group], chat.end_of_turn_id, chosen)
    return sums / max(1, sum(sum(example.mask) for example in examples))


def _summed(model: Any, examples: list[Encoded], pad_id: int, chosen: Sequence[int]) -> Tensor:
    batch = {name: rows.to(model.device) for name, rows in pad(examples, pad_id).items()}
    told = batch.pop("labels") >= 0
    sums: dict[int, Tensor] = {}

    def look(layer: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            sums[layer] = _states(output)[told].float().sum(dim=0)

        return hook

    # Own hooks: those of the library's output_hidden_states would stay.
    hooks = [_layers(model)[layer].register_forward_hook(look(layer)) for layer in chosen]
    decoder_of(model)(**batch, use_cache=False)
    for hook in hooks:
        hook.remove()
    return torch.stack([sums[layer] for layer in chosen])


def _states(output: Any) -> Tensor:
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


@contextmanager
def steered(model: Any, vectors: dict[int, Tensor], strength: float, owners: Callable[[], Tensor]) -> Iterator[None]:
    """While it lasts, each token's states at a layer are moved along its language's direction.

    `owners()` tells the language of every token of a forward pass by its place in `vectors`, of the shape of the
    token's ids.
    """

    def push(moves: Tensor) -> Callable[..., Any]:
        def hook(module: Any, inputs: Any, output: Any) -> Any:
            moved = _states(output) + moves[owners()]
            return (moved, *output[1:]) if isinstance(output, tuple) else moved

        return hook

    layers, share = _layers(model), strength / max(1, len(vectors))
    # What one layer adds the next ones hand on: each adds its share, so that 1 comes to the whole difference.
    hooks = [
        layers[layer].register_forward_hook(push((share * rows).to(model.dtype))) for layer, rows in vectors.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _layers(model: Any) -> Any:
    """The model's layers, one after the other."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [one for one in decoder_of(model).modules() if isinstance(one, torch.nn.ModuleList) and len(one) == count]
    return lists[0]
