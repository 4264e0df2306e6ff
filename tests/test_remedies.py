"""Remedies that any study can have as axes: examples in other languages, preference, swapped layers, a reminder."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xlift.checkpoint import checkpoints_of
from xlift.data.instructions import load_instructions, load_source
from xlift.data.prompts import load_prompts, with_reminder
from xlift.errors import ConfigError, DataError, UserError
from xlift.halving import idle_problems
from xlift.hub import locate
from xlift.models import KeptBase, Placement, load_model, load_tokenizer
from xlift.rating.language.detection import identify
from xlift.records import Prompt
from xlift.stages import generate_stage, prepare, train_stage
from xlift.study.data import Instructions, Prompts, Source, builtin_path
from xlift.study.loading import parse_study
from xlift.study.runs import RunConfig
from xlift.study.sections import Halving
from xlift.study.study import Study
from xlift.tuning.encoding import encode_data
from xlift.tuning.optimizer import make_optimizer
from xlift.tuning.packing import pad
from xlift.tuning.preference import mean_log_probs, odds_ratio_loss, preference_loss, preferred_pairs
from xlift.tuning.swap import layer_of, swapped
from xlift.tuning.templates import chat_format
from xlift.tuning.train import prepared_model, train_step
from xlift.verifying import verify
from xlift.workspace import StudyFolder

CPU = Placement("cpu", "float32", "test")
OTHERS = sorted(
    path.name.split(".")[1] for path in builtin_path("").glob("instructions.*.jsonl") if ".en." not in path.name
)
MIXED = [{"path": "builtin", "size": 6}, {"path": "builtin", "language": "fr", "size": 4}]


def study_of(tiny: Path, **training: Any) -> Study:
    settings = {"model": str(tiny), "adaptation": {"rank": 4}, "learning_rate": 1e-2, "steps": 2, "batch_tokens": 400}
    settings |= {"micro_batch_tokens": 400, "instructions": {"sources": MIXED, "heldout": 2}, **training}
    return parse_study(
        {
            "name": "remedies",
            "training": settings,
            "prompts": {"languages": ["en", "fr"], "validation": {"size": 1}, "test": {"size": 2}},
            "decoding": {"max_new_tokens": 4},
            "validation": {"margins": False, "grammar": False},
            **{"device": "cpu", "dtype": "float32"},
        }
    )


# --- examples in other languages --------------------------------------------------------------------------------


@pytest.mark.parametrize("code", OTHERS)
def test_built_in_examples_are_parallel_to_english_ones_and_in_their_language(code: str) -> None:
    english = {one["parallel_id"]: one for one in load_source(Source())}
    found = load_source(Source(language=code))
    assert len(found) == 40
    assert {one["language"] for one in found} == {code}
    assert len({one["parallel_id"] for one in found} & english.keys()) == 40
    assert all(one["category"] == english[one["parallel_id"]]["category"] for one in found)
    whole = " ".join(message["content"] for one in found for message in one["messages"])
    assert identify(whole)[0] == code
    script = {"ru": "Ѐ-ӿ", "ar": "؀-ۿ", "hi": "ऀ-ॿ"}.get(code)
    assert script is None or sum(one.isascii() and one.isalpha() for one in whole) < 0.02 * len(whole)


def test_a_language_without_built_in_examples_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no built-in instructions in 'sw'; there are: .*fr"):
        parse_study({"name": "x", "training": {"instructions": {"sources": [{"path": "builtin", "language": "sw"}]}}})


def test_a_mix_leaves_the_english_examples_and_those_held_out_as_they_are() -> None:
    alone, out = load_instructions(Instructions(sources=[Source(size=20)], heldout=4))
    mixed, same = load_instructions(Instructions(sources=[Source(size=20), Source(language="fr", size=5)], heldout=4))
    assert [one["id"] for one in same] == [one["id"] for one in out]
    assert {one["id"] for one in mixed if one["language"] == "en"} == {one["id"] for one in alone}
    assert sum(one["language"] == "fr" for one in mixed) == 5


# --- preference for the right language --------------------------------------------------------------------------


def test_negatives_are_the_replies_of_parallel_conversations_english_where_there_is() -> None:
    english = {one["parallel_id"]: one["messages"][-1]["content"] for one in load_source(Source())}
    sources = [Source(size=1), Source(language="fr", size=5), Source(language="ru", size=5)]
    mixed, _ = load_instructions(Instructions(sources=sources, heldout=0))
    others = [one for one in mixed if one["language"] != "en"]
    assert len(others) == 10
    assert all(one["wrong"] == english[one["parallel_id"]] != one["messages"][-1]["content"] for one in others)


@pytest.fixture(scope="module")
def pairs(tiny: Path) -> tuple[Any, Any, Any]:
    """The tiny model's configuration, its chat format and data with negatives."""
    config = study_of(tiny, preference=0.5).tuned_runs()[0]
    chat = chat_format(load_tokenizer(str(tiny)))
    return config, chat, encode_data(config, chat, *load_instructions(config.instructions))


def test_the_preference_loss_is_trls_on_the_same_logits(
    tiny: Path, pairs: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.orpo import ORPOTrainer

    config, chat, data = pairs
    model = load_model(str(tiny), CPU)
    beside: Any = SimpleNamespace(beta=1.0, accelerator=SimpleNamespace(device="cpu"))
    found = preferred_pairs(data.train, data.wrong)
    assert len(found) >= 4
    for pair in found:
        batch = pad(pair, chat.end_of_turn_id)
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        theirs = ORPOTrainer.get_batch_logps(logits, batch["labels"], average_log_prob=True)
        torch.testing.assert_close(mean_log_probs(model, batch), theirs, atol=1e-5, rtol=1e-5)
        losses, *_ = ORPOTrainer.odds_ratio_loss(beside, theirs[:1], theirs[1:])
        torch.testing.assert_close(preference_loss(model, batch, config), -losses[0], atol=1e-5, rtol=1e-5)


def test_the_loss_of_dpo_is_trls_on_the_same_logits_with_the_base_as_reference(
    tiny: Path, pairs: tuple[Any, Any, Any]
) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    config, chat, data = pairs
    settings = config.model_copy(update={"preference_loss": "dpo", "preference_beta": 0.3})

    def told(model: Any) -> Any:
        """What TRL asks of a model: the log-probability of each token of the replies."""

        def passed(input_ids: Any, attention_mask: Any, labels: Any, **_: Any) -> Any:
            logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
            told = labels[:, 1:, None]
            own = logits.gather(2, told.clamp(min=0)).masked_fill(told == -100, 0.0)[..., 0]
            return SimpleNamespace(log_probs=own, entropy=own, mean_logits=own, is_top1=own > 0)

        return passed

    beside: Any = SimpleNamespace(
        model=SimpleNamespace(training=True), loss_types=["sigmoid"], loss_weights=[1.0], beta=0.3,
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda one: one, gather=lambda one: one),
        f_divergence_type="reverse_kl",
        ld_alpha=None, aux_loss_enabled=False, precompute_ref_logps=True, use_weighting=False, _total_train_tokens=0,
        _tp_size=1, _metrics={"train": defaultdict(list)},
    )  # fmt: skip
    reference = told(load_model(str(tiny), CPU))
    with prepared_model(settings, locate(str(tiny)), CPU, KeptBase()) as model:
        optimizer = make_optimizer(settings, model)
        train_step(model, optimizer, data.train, settings, chat, CPU, 0, 2)
        for pair in preferred_pairs(data.train, data.wrong)[:2]:
            batch = pad(pair, chat.end_of_turn_id)
            given = {name: batch[name] for name in ("input_ids", "attention_mask")}
            before = reference(**given, labels=batch["labels"]).log_probs.sum(dim=1)
            given |= {"completion_mask": (batch["labels"] != -100).long()}
            given |= {"ref_chosen_logps": before[:1], "ref_rejected_logps": before[1:]}
            theirs = DPOTrainer._compute_loss(beside, told(model), given, False)
            ours = preference_loss(model, batch, settings)
            assert abs(float(ours.detach()) - 0.6931) > 1e-4
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_dpo_is_for_lora_whose_base_is_the_reference() -> None:
    with pytest.raises(ValueError, match="the base under it is the reference"):
        RunConfig(preference=0.5, preference_loss="dpo", adaptation={"method": "full"})


def test_odds_of_what_is_certain_stay_numbers() -> None:
    sure = torch.zeros((), requires_grad=True)
    loss = odds_ratio_loss(sure, torch.tensor(-1.0))
    loss.backward()
    assert loss.isfinite()
    assert sure.grad is not None
    assert sure.grad.isfinite()


@pytest.mark.parametrize("loss", ["orpo", "dpo"])
def test_preference_widens_the_distance_to_replies_in_the_wrong_language(
    loss: str, tiny: Path, pairs: tuple[Any, Any, Any]
) -> None:
    config, chat, data = pairs
    kept, found = KeptBase(), {}
    for weight in (0.0, 2.0):
        settings = config.model_copy(update={"preference": weight, "preference_loss": loss, "preference_beta": 1.0})
        with prepared_model(settings, locate(str(tiny)), CPU, kept) as model:
            optimizer = make_optimizer(settings, model)
            wrong = data.wrong if weight else {}
            for step in range(4):
                train_step(model, optimizer, data.train, settings, chat, CPU, step, 4, wrong)
            with torch.no_grad():
                rows = [mean_log_probs(model, pad(pair, 0)) for pair in preferred_pairs(data.train, data.wrong)]
        found[weight] = float(torch.stack(rows).diff(dim=1).mean())
    assert found[2.0] < found[0.0]


def test_preference_without_parallel_conversations_is_refused(tiny: Path) -> None:
    config = RunConfig(model=str(tiny), preference=0.5, instructions={"sources": MIXED[:1], "heldout": 2})
    chat = chat_format(load_tokenizer(str(tiny)))
    with pytest.raises(DataError, match=r"none of .* conversations has a parallel in another language"):
        encode_data(config, chat, *load_instructions(config.instructions))


# --- swapped layers ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swap(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study of a run with swapped layers, trained, and of the same data mixed, reminded."""
    study = study_of(tiny, swap=1)
    study = study.model_copy(update={"include": [{**study.training, "swap": 0, "remind": True}]})
    folder = prepare(study, tmp_path_factory.mktemp("swap") / "study")
    train_stage(folder)
    return folder


def weights_of(run: Any) -> dict[str, torch.Tensor]:
    return load_file(run.checkpoint(run.checkpoint_steps()[-1]) / "adapter_model.safetensors")


def test_layers_come_from_both_parents_which_are_runs_of_the_study(swap: StudyFolder) -> None:
    mixed = next(run for run in swap.runs if run.config.swap)
    english, other = (
        next(run for run in swap.runs if run.config.content_hash == parent.content_hash)
        for parent in mixed.config.parents
    )
    assert {source.language for source in english.config.instructions.sources} == {"en"}
    assert {source.language for source in other.config.instructions.sources} == {"fr"}
    assert all(one.train_log.is_file() for one in (english, other))
    own, first, second = map(weights_of, (mixed, english, other))
    # Both layers of the model are outer ones.
    assert all(torch.equal(value, second[name]) for name, value in own.items())
    assert any(not torch.equal(value, first[name]) for name, value in own.items())
    told = mixed.stage("train")
    assert (told["state"], told["swapped"]) == ("done", [english.id, other.id])
    for name in ("examples", "heldout", "too_long"):
        assert told[name] == sum(one.stage("train")[name] for one in (english, other))
    assert verify(swap.path)[1] == []


def test_only_the_outer_layers_are_swapped_and_what_is_in_none_stays() -> None:
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.experts.9.w" for i in range(6)), "model.norm.weight"]
    own, theirs = ({name: torch.full((1,), value) for name in names} for value in (0.0, 1.0))
    found = [int(value) for value in swapped(own, theirs, 2).values()]
    assert found == [0, 1, 1, 0, 0, 1, 1, 0]
    assert [layer_of(name) for name in names] == [None, 0, 1, 2, 3, 4, 5, None]
    with pytest.raises(ConfigError, match="4 first and 4 last layers of a model that has 6"):
        swapped(own, theirs, 4)


def test_swap_wants_english_and_other_sources_of_their_own_size(tiny: Path) -> None:
    for instructions in ({"sources": MIXED[:1]}, {"sources": MIXED[1:]}, {"sources": MIXED, "size": 5}):
        with pytest.raises(ConfigError, match="swap: wants English sources and others"):
            study_of(tiny, swap=1, instructions=instructions)
    study = study_of(tiny, swap=1)
    halved = study.model_copy(update={"halving": Halving(first=1)})
    assert any("swap" in problem for problem in idle_problems(halved))


def test_a_parent_that_failed_is_named(tiny: Path, tmp_path: Path) -> None:
    from xlift.tuning.swap import swap_layers

    folder = prepare(study_of(tiny, swap=1), tmp_path / "study")
    mixed, english, other = folder.runs[1:]
    with pytest.raises(UserError, match=f"swap: {english.label} is not trained"):
        swap_layers(mixed, english, other)


# --- a reminder in the user's language ---------------------------------------------------------------------------


def prompt(language: str, **more: Any) -> Prompt:
    return {**Prompt(id="a", language=language, split="test", messages=[{"role": "user", "content": "?"}]), **more}  # type: ignore[typeddict-item]


def test_a_reminder_is_in_the_reply_language_after_the_system_prompt() -> None:
    assert with_reminder(prompt("fr")) == [
        {"role": "system", "content": "Réponds en français."},
        {"role": "user", "content": "?"},
    ]
    assert with_reminder(prompt("fr", reply_language="de"))[0]["content"] == "Antworte auf Deutsch."
    assert with_reminder(prompt("sw"), "Be brief.")[0]["content"] == "Be brief.\n\nAnswer in Swahili."
    own = prompt("fr", messages=[{"role": "system", "content": "Sois bref."}, {"role": "user", "content": "?"}])
    said = with_reminder(own, "Be brief.")
    assert [one["content"] for one in said] == ["Sois bref.\n\nRéponds en français.", "?"]


def test_every_reminder_is_of_a_language_with_built_in_prompts() -> None:
    texts = json.loads(builtin_path("reminders.json").read_text(encoding="utf-8"))
    assert texts.keys() == {path.name.split(".")[2] for path in builtin_path("").glob("prompts.open.*.jsonl")}


def test_a_reminded_run_answers_with_the_weights_of_the_one_that_is_not(swap: StudyFolder) -> None:
    reminded = next(run for run in swap.runs if run.config.remind)
    plain = next(run for run in swap.runs if run.path == reminded.trained)
    assert not reminded.trains
    assert not plain.config.remind
    generate_stage(swap)
    for run in (reminded, plain):
        made = [one for checkpoint in checkpoints_of(swap, run) for one in checkpoint.responses]
        assert len(made) == len(load_prompts(swap.study.prompts))
        asked = {one["language"]: one["messages"][0]["content"] for one in made}
        assert (asked["fr"] == "Réponds en français.") == run.config.remind


def test_settings_of_answering_alone_share_one_training_and_none_is_a_base_of_its_own(tiny: Path) -> None:
    study = study_of(tiny, remind=[False, True], weight=[0.5, 1.0])
    assert len({run.trained.content_hash for run in study.tuned_runs()}) == 1
    assert [run.remind for run in study.runs() if run.untuned] == [False]
    assert RunConfig(adaptation={"method": "none"}, remind=True).content_hash != (
        RunConfig(adaptation={"method": "none"}).content_hash
    )


def test_prompts_of_a_study_are_not_among_the_built_in_examples() -> None:
    words = {one["messages"][0]["content"] for code in OTHERS for one in load_source(Source(language=code))}
    asked = load_prompts(
        Prompts.model_validate({"languages": OTHERS, "test": {"source": ["builtin:open", "builtin:facts"]}})
    )
    assert not words & {one["messages"][-1]["content"] for one in asked}
