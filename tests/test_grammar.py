"""Pairs of sentences, one with a rule broken: which does a model find likelier?"""

from __future__ import annotations

import json
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch

from xlift.checkpoint import checkpoints
from xlift.data.prompts import GrammarPair, grammar_pairs
from xlift.generation.grammar import grammar_margins, plain_text
from xlift.models import Placement, load_model, load_tokenizer
from xlift.stages import generate_stage, prepare
from xlift.study.loading import load_study
from xlift.tuning.templates import chat_format

CODES = ["en", "fr", "pt", "ru", "de", "es", "it", "nl", "tr", "ar", "hi", "zh", "ja", "ko", "id"]


@pytest.mark.parametrize("code", CODES)
def test_a_language_has_forty_pairs_of_eight_phenomena_that_differ_minimally(code: str) -> None:
    pairs = grammar_pairs(code)
    assert len(pairs) >= 40
    assert len({pair.phenomenon for pair in pairs}) == 8
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    assert len(set(texts)) == len(texts)
    assert len({pair.id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert pair.good[-1] == pair.bad[-1]
        assert SequenceMatcher(None, pair.good, pair.bad).ratio() > 0.5, pair
        assert abs(len(pair.good) - len(pair.bad)) <= 6, pair


def test_a_language_without_pairs_has_no_margin() -> None:
    assert grammar_pairs("sw") == []


def test_a_margin_equals_the_plain_computation_however_it_is_batched(tiny: Path) -> None:
    model = load_model(str(tiny), Placement("cpu", "float32", "test"))
    chat = chat_format(load_tokenizer(str(tiny)), "plain")
    pairs = {"fr": grammar_pairs("fr")[:12], "ru": grammar_pairs("ru")[:8]}

    def log_probability(text: str) -> float:
        ids = torch.tensor([plain_text(chat, text).ids])
        with torch.no_grad():
            scores = model(input_ids=ids).logits[0].log_softmax(dim=-1)
        return float(scores[:-1].gather(1, ids[0, 1:, None]).sum())

    for batch_tokens in (1, 60, 5000):
        found = {one.language: one.wins for one in grammar_margins(model, chat, pairs, batch_tokens)}
        for code, own in pairs.items():
            right = [log_probability(pair.good) > log_probability(pair.bad) for pair in own]
            assert (found[code].mean, found[code].rated) == (pytest.approx(sum(right) / len(right)), len(own))


def test_the_same_sentence_twice_is_never_told_right(tiny: Path) -> None:
    model = load_model(str(tiny), Placement("cpu", "float32", "test"))
    chat = chat_format(load_tokenizer(str(tiny)), "plain")
    (found,) = grammar_margins(model, chat, {"en": [GrammarPair("a-1", "a", "The sky is blue.", "The sky is blue.")]})
    assert found.wins.mean == 0


def test_a_study_measures_it_at_every_checkpoint_once_and_again_by_another_definition(
    tiny: Path, tmp_path: Path
) -> None:
    study = {
        "name": "grammar",
        "training": {"model": str(tiny), "adaptation": {"method": "none"}},
        "prompts": {"languages": ["en", "ru", "sw"]}
        | {split: {"source": str(tmp_path / "p.jsonl")} for split in ("validation", "test")},
        "decoding": {"max_new_tokens": 2},
        "device": "cpu",
        "dtype": "float32",
    }
    asked = [
        {
            "id": f"{split}.{code}",
            "language": code,
            "split": split,
            "messages": [{"role": "user", "content": split + code}],
        }
        for split in ("validation", "test")
        for code in ("en", "ru", "sw")
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    workspace = prepare(load_study(tmp_path / "study.yaml"), tmp_path / "out")
    generate_stage(workspace)
    (found,) = checkpoints(workspace)
    assert (list(found.grammar), list(found.margins), found.ungraded) == (["en", "ru"], ["ru"], [])
    path = found.run.margins(0)
    held = json.loads(path.read_text())
    assert held["grammar"][0]["signature"].startswith("grammar margin v1|")
    held["grammar"][0]["signature"] = "older"
    path.write_text(json.dumps(held))
    (again,) = checkpoints(workspace)
    assert (again.ungraded, again.unmeasured) == (["en"], [])
    generate_stage(workspace)
    (anew,) = checkpoints(workspace)
    assert (anew.grammar["en"]["wins"], anew.grammar["ru"]) == (found.grammar["en"]["wins"], found.grammar["ru"])
    off = prepare(load_study(tmp_path / "study.yaml", ["validation={grammar: false}"]), tmp_path / "off")
    assert checkpoints(off)[0].ungraded == []
