"""Every architecture, as a tiny real model: what the study relies on holds, or is refused by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, build
from conftest import build_tokenizer
from safetensors.torch import load_file, save_file

from xlift.errors import ModelError
from xlift.generation.engine import Reply, decode
from xlift.generation.proof import prove_answering
from xlift.hub import Located
from xlift.models import KeptBase, Placement, empty_model, load_model, loaded_checkpoint
from xlift.study.runs import Adaptation, RunConfig
from xlift.study.served import Decoding
from xlift.tuning.adapters import with_adapters
from xlift.tuning.limits import Limits, limits_of
from xlift.tuning.loss import response_loss
from xlift.tuning.packing import pack, pad
from xlift.tuning.proof import mostly_equal, prove_training
from xlift.tuning.templates import ChatFormat, Encoded, chat_format

CPU = Placement("cpu", "float32", "test")
READERS = {"t5", "bart"}
"""Architectures with an encoder."""
NOT_CAUSAL = {"bert"}
PADDED_ONLY = {
    *("opt", "bloom", "falcon", "mpt", "gpt_oss", "biogpt", "xglm", "lfm2", "mamba", "mamba2", "falcon_mamba"),
    *("recurrent_gemma", "jamba", "bamba", "qwen3_next", "minimax", "granitemoehybrid"),
}
"""Architectures whose packed examples see each other: they train with packing: false."""
NO_CACHE = {"mamba", "falcon_mamba", "recurrent_gemma"}
"""Architectures whose answers cannot be made token by token."""
ONE_BY_ONE = {"minimax"}
"""Architectures that answer one prompt at a time."""
NO_ADAPTERS = {"mamba", "mamba2", "falcon_mamba", "llama4_text", "phimoe"}
"""Architectures that PEFT cannot adapt by targets: all-linear."""
NOT_MERGED = {"jamba"}
"""Architectures whose adapters on all linear layers are not merged: they answer beside the weights."""
DECODERS = sorted(set(ARCHITECTURES) - READERS - NOT_CAUSAL)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return chat_format(build_tokenizer(), "plain")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Models by name, each saved and loaded again as a user's would be."""
    made: dict[str, Any] = {}

    def model(name: str) -> Any:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            build(name).save_pretrained(folder)
            made[name] = load_model(str(folder), CPU)
        return made[name]

    return model


def refused(call: Any) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("name", DECODERS)
def test_a_loaded_model_is_the_saved_one(name: str, loaded: Any) -> None:
    ids = torch.randint(5, 390, (1, 12), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(name)(input_ids=ids).logits, build(name)(input_ids=ids).logits, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", DECODERS)
def test_training_is_proved_or_refused_with_what_to_change(name: str, loaded: Any) -> None:
    prove_training(loaded(name), packing=False)
    if name in PADDED_ONLY:
        assert "set training.packing to false" in refused(lambda: prove_training(loaded(name), packing=True))
    else:
        prove_training(loaded(name), packing=True)


@pytest.mark.parametrize("name", DECODERS)
def test_the_loss_is_the_models_own_packed_and_padded(name: str, loaded: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    examples = [
        Encoded(torch.randint(5, 390, (n,), generator=generator).tolist(), [i > n // 2 for i in range(n)])
        for n in (9, 13, 6)
    ]
    model, batch = loaded(name), pad(examples, 0)
    with torch.no_grad():
        theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        wanted = torch.nn.functional.cross_entropy(theirs.transpose(1, 2), batch["labels"][:, 1:], reduction="sum")
        torch.testing.assert_close(response_loss(model, batch), wanted, rtol=1e-4, atol=1e-3)
        if name not in PADDED_ONLY:
            torch.testing.assert_close(response_loss(model, pack(examples)), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", DECODERS)
def test_answering_is_proved_or_refused(name: str, loaded: Any) -> None:
    if name in NO_CACHE:
        assert "token by token" in refused(lambda: prove_answering(loaded(name), 4))
        return
    prove_answering(loaded(name), 1)
    if name in ONE_BY_ONE:
        assert "set decoding.batch_size to 1" in refused(lambda: prove_answering(loaded(name), 4))
    else:
        prove_answering(loaded(name), 4)


@pytest.mark.parametrize("name", sorted(set(DECODERS) - NO_CACHE))
def test_replies_are_those_of_generate_alone_and_together(name: str, loaded: Any, chat: ChatFormat) -> None:
    model = loaded(name)
    model.generation_config.eos_token_id = None
    texts = ("Why?", "Why is the sky blue, light? " * 2, "light")
    prompts = [chat.encode_prompt([{"role": "user", "content": text}]) for text in texts]
    settings = Decoding(max_new_tokens=6, repetition_penalty=1.0)

    def answers(batch_size: int) -> list[str]:
        found: dict[int, Reply] = {}
        brief = settings.model_copy(update={"batch_size": batch_size})
        decode(model, chat, prompts, list(texts), brief, lambda index, reply: found.update({index: reply}))
        return [found[i].text for i in range(len(prompts))]

    theirs = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=sorted(chat.stop_ids),
            pad_token_id=0,
        )
        theirs.append(chat.tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True).strip())
    assert answers(1) == theirs
    if name not in ONE_BY_ONE:
        assert answers(3) == theirs


def adapter_of(name: str, folder: Path) -> tuple[torch.Tensor, Any]:
    """An adapter on all linear layers that changes something, saved; what it gives beside the weights."""
    adapted = with_adapters(build(name), RunConfig(adaptation=Adaptation(rank=4))).eval()
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 390, (1, 12), generator=generator)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.1, generator=generator)
        found = adapted(input_ids=ids).logits
    adapted.save_pretrained(folder)
    return found, ids


@pytest.mark.parametrize("name", sorted(set(DECODERS) - NO_ADAPTERS))
def test_an_adapter_does_what_it_did_in_training_merged_or_beside_the_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(name).save_pretrained(tmp_path / "model")
    expected, ids = adapter_of(name, tmp_path / "adapter")
    base = Located(str(tmp_path / "model"), None, {})
    kept = KeptBase()
    with torch.no_grad():
        with loaded_checkpoint(base, tmp_path / "adapter", CPU, kept=kept) as model:
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-3, atol=1e-3)
            prove_answering(model, 1 if name in ONE_BY_ONE else 4) if name not in NO_CACHE else None
        assert ("answers beside them" in capsys.readouterr().err) == (name in NOT_MERGED)
        with kept.lent(base, CPU) as model:
            assert torch.equal(model(input_ids=ids).logits, load_model(base.path, CPU)(input_ids=ids).logits)


@pytest.mark.parametrize("name", sorted(READERS))
def test_a_model_with_an_encoder_is_refused_in_words(name: str, tmp_path: Path) -> None:
    build(name).save_pretrained(tmp_path)
    assert "reads with an encoder" in refused(lambda: load_model(str(tmp_path), CPU))


def test_a_model_that_looks_ahead_is_refused_in_words(tmp_path: Path) -> None:
    build("bert").save_pretrained(tmp_path)
    told = refused(lambda: prove_training(load_model(str(tmp_path), CPU), packing=False))
    assert "see those that come after" in told


@pytest.mark.parametrize("prefix", ["base_model.model.", "_orig_mod.", "module."])
def test_weights_under_other_names_are_refused_and_the_prefix_is_told(prefix: str, tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({prefix + key: value for key, value in load_file(file).items()}, file, {"format": "pt"})
    told = refused(lambda: load_model(str(tmp_path), CPU))
    assert told == refused(lambda: empty_model(str(tmp_path)))
    assert f"prefix '{prefix}'" in told
    assert "lack" in told


def test_a_missing_layer_a_strange_tensor_and_a_wrong_shape_are_named(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    gone = "model.layers.1.mlp.up_proj.weight"
    save_file({key: value for key, value in whole.items() if key != gone}, file, {"format": "pt"})
    assert gone in refused(lambda: load_model(str(tmp_path), CPU))
    save_file(whole | {"model.layers.7.strange": torch.zeros(3)}, file, {"format": "pt"})
    assert "model.layers.7.strange" in refused(lambda: empty_model(str(tmp_path)))
    save_file(whole | {gone: whole[gone][:5].clone()}, file, {"format": "pt"})
    assert gone in refused(lambda: load_model(str(tmp_path), CPU))
    build("mixtral").save_pretrained(tmp_path / "experts")
    apart = load_file(tmp_path / "experts" / "model.safetensors")
    one = next(key for key in apart if "experts.0" in key)
    save_file(apart | {one: apart[one][:5].clone()}, tmp_path / "experts" / "model.safetensors", {"format": "pt"})
    assert "do not fit each other" in refused(lambda: load_model(str(tmp_path / "experts"), CPU))
    file.write_bytes(file.read_bytes()[: os.path.getsize(file) // 2])
    assert "cannot be read" in refused(lambda: load_model(str(tmp_path), CPU))


@pytest.mark.parametrize("name", DECODERS)
def test_where_positions_end_is_known(name: str, loaded: Any) -> None:
    """A longer text fails exactly where a limit is told; without their weights the limits are the same."""
    model, ids = loaded(name), torch.full((1, 257), 5)
    limits = limits_of(model)
    assert limits == limits_of(empty_model(model.name_or_path)) == Limits(400, limits.positions, limits.made_for)
    with torch.no_grad():
        if limits.positions is None:
            model(input_ids=ids, use_cache=False)
        else:
            assert limits.positions == 256
            model(input_ids=ids[:, :256], use_cache=False)
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=ids, use_cache=False)


def test_the_table_in_the_docs_says_what_is_tested_here() -> None:
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    rows.pop("architecture")
    assert set(rows) == set(ARCHITECTURES)
    assert {name for name, row in rows.items() if "`packing: false`" in row} == PADDED_ONLY
    assert {name for name, row in rows.items() if "no usable cache" in row} == NO_CACHE
    assert {name for name, row in rows.items() if "`batch_size: 1`" in row} == ONE_BY_ONE
    assert {name for name, row in rows.items() if "refused: it" in row} == READERS | NOT_CAUSAL
    assert {name for name, row in rows.items() if "not all linear layers" in row} == NO_ADAPTERS
    assert {name for name, row in rows.items() if "beside the weights" in row} == NOT_MERGED


def test_a_rounding_that_tips_one_token_is_no_fault_in_half_precision_and_a_wrong_cache_is_one_in_any() -> None:
    wanted = torch.randn(5, 100, generator=torch.Generator().manual_seed(0))
    tipped, stale = wanted.clone(), wanted.clone()
    tipped[2] *= 0.7
    stale[2:] = stale[1:-1].clone()
    assert mostly_equal(tipped.bfloat16(), wanted.bfloat16())
    assert not mostly_equal(tipped, wanted)
    assert not mostly_equal(stale.bfloat16(), wanted.bfloat16())
    assert not mostly_equal(stale, wanted)
