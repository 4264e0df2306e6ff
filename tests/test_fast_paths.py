"""Every fast path of training against the plain computation: PEFT's layers, padded rows with masks, whole logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from architectures import build
from peft import LoraConfig, get_peft_model
from torch import Tensor

from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.adapters import adapted_product, with_adapters
from xlift.tuning.attention import (
    TILE,
    TILED_TOKENS,
    _by_kernel,
    attends_by_lengths,
    attention,
    by_lengths,
    forget_lengths,
    starts_mask,
)
from xlift.tuning.embeddings import gradient_by_rows
from xlift.tuning.loss import Scores, linear_losses, response_loss
from xlift.tuning.norms import fast_norms
from xlift.tuning.packing import pack, pad
from xlift.tuning.proof import prove_training
from xlift.tuning.templates import Encoded

FAMILIES = ["llama", "qwen3", "mistral", "gemma3_text", "gpt2", "qwen3_moe", "mixtral"]
OTHERS = ["gemma2", "cohere2", "granite", "gpt_neo", "bloom", "lfm2", "gpt_oss", "falcon", "phi3"]
SETTINGS = RunConfig(adaptation=Adaptation(rank=4, alpha=8.0))


def examples(count: int = 3) -> list[Encoded]:
    """Conversations longer and shorter than the sliding window of 8, each with its prompt."""
    generator = torch.Generator().manual_seed(3)
    lengths = [21, 5, 13][:count]
    ids = [torch.randint(3, 400, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(one, [i >= 2 for i in range(len(one))]) for one in ids]


def quiet(name: str, dtype: torch.dtype) -> Any:
    """The family's model, frozen and without its own dropout, as models are loaded for training."""
    model = build(name).to(dtype).requires_grad_(False)
    for one in model.modules():
        if isinstance(one, torch.nn.Dropout):
            one.p = 0.0
    return model


def plain_model(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(SETTINGS.seed)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(quiet(name, dtype), lora).train()


KEPT = ExitStack()
"""What holds for as long as these tests last."""


@pytest.fixture(scope="module", autouse=True)
def _ends() -> Iterator[None]:
    yield
    KEPT.close()


def fast_model(name: str, dtype: torch.dtype) -> Any:
    base = quiet(name, dtype)
    KEPT.enter_context(by_lengths(base))
    model = with_adapters(base, SETTINGS).train()
    KEPT.enter_context(fast_norms(model))
    return model


def fast_and_full(name: str) -> Any:
    model = quiet(name, torch.float32).requires_grad_(True).train()
    KEPT.enter_context(by_lengths(model))
    KEPT.enter_context(fast_norms(model))
    KEPT.enter_context(gradient_by_rows(model))
    return model


def plain_loss(model: Any, batch: list[Encoded]) -> Tensor:
    padded = pad(batch, 0)
    logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, :-1].float()
    return F.cross_entropy(logits.flatten(0, 1), padded["labels"][:, 1:].flatten(), reduction="sum")


def trained(model: Any) -> dict[str, Tensor]:
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def steps(model: Any, loss_of: Any, count: int, batch: list[Encoded]) -> list[float]:
    optimizer = torch.optim.AdamW(trained(model).values(), lr=2e-3)
    losses = []
    for _ in range(count):
        loss = loss_of(model, batch) / 30
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def fast_loss(model: Any, batch: list[Encoded]) -> Tensor:
    return response_loss(model, pack(batch))


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_gradients_and_weights_after_twenty_steps_equal_the_plain_ones(name: str) -> None:
    plain, fast = plain_model(name, torch.float32), fast_model(name, torch.float32)
    assert attends_by_lengths(fast)
    for model in (plain, fast):  # B begins at zero, and would let no gradient through to A
        torch.manual_seed(1)
        for one_name, one in trained(model).items():
            if "lora_B" in one_name:
                torch.nn.init.normal_(one, std=0.1)
    wanted, found = plain_loss(plain, examples()), fast_loss(fast, examples())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    wanted.backward()
    found.backward()
    for (one_name, mine), theirs in zip(trained(fast).items(), trained(plain).values(), strict=True):
        assert (mine.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, one_name
    for model in (plain, fast):
        model.zero_grad()
    assert steps(fast, fast_loss, 20, examples()) == pytest.approx(steps(plain, plain_loss, 20, examples()), rel=1e-4)
    for (one_name, mine), theirs in zip(trained(fast).items(), trained(plain).values(), strict=True):
        assert (mine - theirs).norm() <= 1e-3 * theirs.norm(), one_name


@pytest.mark.parametrize("name", FAMILIES)
def test_with_all_weights_trained_loss_gradients_and_weights_equal_the_plain_ones(name: str) -> None:
    plain, fast = quiet(name, torch.float32).requires_grad_(True).train(), fast_and_full(name)
    plain_loss(plain, examples()).backward()
    fast_loss(fast, examples()).backward()
    for (one_name, mine), theirs in zip(trained(fast).items(), trained(plain).values(), strict=True):
        assert (mine.grad - theirs.grad).norm() <= 1e-4 * theirs.grad.norm() + 1e-6, one_name
    for model in (plain, fast):
        model.zero_grad()
    assert steps(fast, fast_loss, 20, examples()) == pytest.approx(steps(plain, plain_loss, 20, examples()), rel=1e-3)
    # All together: a bias of keys alone moves by rounding, since no score depends on it.
    mine, theirs = (torch.cat([one.detach().flatten() for one in trained(model).values()]) for model in (fast, plain))
    assert (mine - theirs).norm() <= 1e-3 * theirs.norm()


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_the_loss_stays_within_two_percent_of_float32(name: str, method: str) -> None:
    if method == "lora":
        plain, fast = plain_model(name, torch.float32), fast_model(name, torch.bfloat16)
    else:  # weights in float32, products in bfloat16
        plain, fast = quiet(name, torch.float32).requires_grad_(True).train(), fast_and_full(name)

    def mixed_loss(model: Any, batch: list[Encoded]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=method == "full"):
            return fast_loss(model, batch)

    exact = steps(plain, plain_loss, 12, examples())
    assert steps(fast, mixed_loss, 12, examples()) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("name", FAMILIES + OTHERS)
def test_a_family_attends_by_lengths_where_it_computes_the_same_and_by_masks_where_not(name: str) -> None:
    model = fast_model(name, torch.float32)
    try:
        prove_training(model, packing=True)
    except Exception:
        assert not attends_by_lengths(model)
        return
    lengths = attends_by_lengths(model)
    assert lengths or name not in FAMILIES
    with torch.no_grad():
        found = response_loss(model, pack(examples()))
        if lengths:
            forget_lengths(model)
        torch.testing.assert_close(response_loss(model, pack(examples())), found, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("scores", [Scores(), Scores(0.5), Scores(2.0, 3.0)])
def test_the_loss_by_pieces_of_the_vocabulary_equals_the_plain_one(
    method: str, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlift.tuning.loss.PIECES", {"cpu": (3, 4)})
    torch.manual_seed(1)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5, requires_grad=method == "full")
    targets, rows = torch.randint(11, (7,)), torch.zeros(7, dtype=torch.long)
    logits = hidden @ weight.T * scores.factor
    logits = logits if scores.cap is None else torch.tanh(logits / scores.cap) * scores.cap
    plain = F.cross_entropy(logits, targets, reduction="sum") / 7
    sought = [hidden, weight] if method == "full" else [hidden]
    expected = torch.autograd.grad(plain, sought)
    pieces = linear_losses(hidden, weight, targets, rows, 1, scores)[0] / 7
    torch.testing.assert_close(torch.autograd.grad(pieces, sought), expected)
    torch.testing.assert_close(pieces, plain)
    with torch.no_grad():
        torch.testing.assert_close(linear_losses(hidden, weight, targets, rows, 1, scores)[0] / 7, plain)


def test_losses_by_row_are_those_of_each_row_alone_with_their_gradients() -> None:
    torch.manual_seed(1)
    hidden, weight = torch.randn(7, 5, requires_grad=True), torch.randn(11, 5)
    targets, rows, pull = torch.randint(11, (7,)), torch.tensor([0, 0, 2, 2, 2, 1, 1]), torch.tensor([1.0, 2.0, 3.0])
    each = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    wanted = torch.zeros(3).index_add(0, rows, each)
    found = linear_losses(hidden, weight, targets, rows, 3, Scores())
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(torch.autograd.grad(found, hidden, pull), torch.autograd.grad(wanted, hidden, pull))


def test_no_response_token_gives_a_loss_of_zero() -> None:
    hidden, none = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, dtype=torch.long)
    loss = linear_losses(hidden, torch.randn(11, 5), none, none, 1, Scores())
    loss.sum().backward()
    assert loss.item() == 0


def test_an_adapted_product_is_the_sum_of_both_products_in_value_and_gradient() -> None:
    torch.manual_seed(2)
    x, weight, bias = torch.randn(2, 3, 5, requires_grad=True), torch.randn(7, 5), torch.randn(7)
    down, up = torch.randn(2, 5, requires_grad=True), torch.randn(7, 2, requires_grad=True)
    wanted = F.linear(x, weight, bias) + F.linear(F.linear(x, down), up) * 0.5
    found = adapted_product(x, weight, bias, down, up, 0.5)
    torch.testing.assert_close(found, wanted)
    pull = torch.randn_like(wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found, [x, down, up], pull), torch.autograd.grad(wanted, [x, down, up], pull)
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_what_the_layer_does_not_know_is_left_to_peft(dropout: float) -> None:
    settings = RunConfig(adaptation=Adaptation(rank=4, dropout=dropout))
    model = with_adapters(build("llama").requires_grad_(False), settings).train()
    ids = torch.arange(5, 25)[None]
    for name, one in trained(model).items():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.1)
    torch.manual_seed(0)
    found = model(ids).logits
    for layer in model.modules():
        layer.__dict__.pop("forward", None)
    torch.manual_seed(0)
    torch.testing.assert_close(model(ids).logits, found)
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, build("llama")(ids).logits)


def varlen(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, _: Tensor, longest: int, __: int, **how: Any
) -> Tensor:
    """What torch documents of its kernel, in plain products: (tokens, heads, d), a window of (left, 0), -1 for all."""
    assert longest >= int(starts.diff().max())
    assert how["enable_gqa"] == (query.shape[1] != key.shape[1])
    key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], 1) for each in (key, value))
    tokens, (left, right) = torch.arange(len(query)), how["window_size"]
    example = torch.bucketize(tokens, starts[1:].long(), right=True)
    back = tokens[:, None] - tokens[None]
    seen = (example[:, None] == example[None]) & (back >= -right) & (back <= (left if left >= 0 else len(query)))
    scores = torch.einsum("qhd,khd->hqk", query, key) * how["scale"]
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("window", [None, 3, 50])
@pytest.mark.parametrize("rows", [1, 2])
def test_the_kernel_for_gpus_is_asked_for_what_the_pieces_compute(
    window: int | None, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen)
    torch.manual_seed(4)
    query, key, value = (torch.randn(rows, heads, 11, 8) for heads in (4, 2, 2))
    mask = starts_mask(torch.tensor([0, 4, 5, 11], dtype=torch.int32), 6)
    wanted, _ = attention(None, query, key, value, mask, sliding_window=window, scaling=0.3)
    reach = window if window is not None and window < 6 else None
    torch.testing.assert_close(_by_kernel(query, key, value, mask[0, 0, 0], 6, reach, 0.3), wanted)


@pytest.mark.parametrize("window", [None, 60, 129, 1500])
def test_examples_of_any_length_attend_in_tiles_to_what_a_whole_mask_lets_them_see(window: int | None) -> None:
    lengths = [1, TILE, TILE + 1, 3 * TILE + 5, TILED_TOKENS + 9]
    starts = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
    torch.manual_seed(4)
    query, key, value = parts = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (4, 2, 2)]
    found, _ = attention(None, query, key, value, starts_mask(starts, max(lengths)), sliding_window=window, scaling=0.3)
    tokens = torch.arange(sum(lengths))
    back, example = tokens[:, None] - tokens[None], torch.bucketize(tokens, starts[1:].long(), right=True)
    seen = (back >= 0) & (back < (window or len(tokens))) & (example[:, None] == example[None])
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True).transpose(
        1, 2
    )
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    pull = torch.randn_like(wanted)
    for mine, theirs in zip(*(torch.autograd.grad(one, parts, pull) for one in (found, wanted)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text", "qwen3"])
def test_on_a_gpu_the_fast_paths_in_bfloat16_are_the_plain_ones_in_float32(name: str) -> None:
    exact = steps(plain_model(name, torch.float32), plain_loss, 12, examples())
    fast = fast_model(name, torch.bfloat16).cuda()

    def loss_of(model: Any, batch: list[Encoded]) -> Tensor:
        return response_loss(model, {key: value.cuda() for key, value in pack(batch).items()})

    assert steps(fast, loss_of, 12, examples()) == pytest.approx(exact, rel=0.03)
