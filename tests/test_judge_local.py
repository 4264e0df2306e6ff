"""A judge that is loaded here: the same ratings, ledger and resumption as behind a server, without a network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from test_judging import records
from test_pairwise import PAIRS
from warm import run_xlift

from xlift.errors import ConfigError
from xlift.generation.engine import answering
from xlift.generation.padded import Padded
from xlift.judging.judges import settings_of
from xlift.judging.local import Form, common, fill_in, form_in
from xlift.judging.pairs import compare_pairs, current_comparisons
from xlift.judging.ratings import judge_responses
from xlift.models import load_model, place
from xlift.records import read_records
from xlift.results import load
from xlift.stages import generate_stage, prepare
from xlift.study.loading import load_study
from xlift.study.served import Judge

SHORT = {
    "system": "Rate it.\n{{rubrics}}\n{{format}}",
    "item": "{{code}} {{language}}{{note}}\n{{material}}\n{{format}}",
    "no request": "None.",
    "reference": "See it.",
    "again": "Again: {{format}}",
    "pair system": "Compare.",
    "pair item": "{{code}} {{language}}{{note}}\n{{material}}",
    "pair again": "Again.",
}


@pytest.fixture(scope="module")
def rubrics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge's texts short enough for the tiny model."""
    folder = tmp_path_factory.mktemp("rubrics")
    text = "\n\n".join(f"# {name}\n{body}" for name, body in SHORT.items())
    (folder / "instructions.en.md").write_text(text, encoding="utf-8")
    for facet in ("language", "fluency", "harmlessness"):
        (folder / f"{facet}.md").write_text(f"How is its {facet}?", encoding="utf-8")
    return folder


def judge_of(tiny: Path, rubrics: Path, **more: Any) -> Judge:
    facets = ["language", "fluency", "harmlessness"]
    return settings_of({"model": f"local:{tiny}", "rubrics": str(rubrics), "facets": facets, **more})


def judged(settings: Judge, folder: Path, count: int = 5) -> list[dict[str, Any]]:
    judge_responses(records(count), settings, folder / "ratings.jsonl", folder / "ledger.jsonl")
    return read_records(folder / "ratings.jsonl")


def test_every_facet_gets_a_value_without_a_network_and_an_answered_one_is_not_asked_again(
    tiny: Path, rubrics: Path, tmp_path: Path
) -> None:
    settings = judge_of(tiny, rubrics, name="here", concurrency=2)
    first = judged(settings, tmp_path)
    assert [one["value"] in (0.0, 1.0, 2.0) for one in first] == [True] * 15
    assert {one["rater"] for one in first} == {"judge:here"}
    asked = read_records(tmp_path / "ledger.jsonl")
    assert len(asked) == 5
    assert all(one["input"] > one["output"] > 0 for one in asked)
    (tmp_path / "ratings.jsonl").unlink()
    assert judged(settings, tmp_path) == first
    assert len(read_records(tmp_path / "ledger.jsonl")) == 5


def test_values_depend_on_the_response_alone_not_on_what_is_judged_beside_it(
    tiny: Path, rubrics: Path, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    one = judged(judge_of(tiny, rubrics, concurrency=1), alone)
    five = judged(judge_of(tiny, rubrics, concurrency=5), together)
    assert [rating["value"] for rating in one] == [rating["value"] for rating in five]


def test_a_reply_that_is_written_freely_is_read_or_missing_with_a_reason(
    tiny: Path, rubrics: Path, tmp_path: Path
) -> None:
    found = judged(judge_of(tiny, rubrics, json_schema=False, max_new_tokens=4), tmp_path, 2)
    assert {one["value"] for one in found} == {None}
    assert all(one["reason"] for one in found)
    # Asked once more, as a server's model is.
    assert [one["part"] for one in read_records(tmp_path / "ledger.jsonl")] == [1, 1, 2, 2]


def test_a_budget_of_requests_stops_it_and_the_next_run_goes_on(tiny: Path, rubrics: Path, tmp_path: Path) -> None:
    outcome = judge_responses(
        records(5),
        judge_of(tiny, rubrics, max_requests=2),
        tmp_path / "ratings.jsonl",
        tmp_path / "ledger.jsonl",
    )
    assert "max_requests 2 reached" in str(outcome.stopped)
    assert len(read_records(tmp_path / "ratings.jsonl")) == 6
    assert len(judged(judge_of(tiny, rubrics), tmp_path)) == 15


def test_two_runs_are_compared_here_in_both_orders(tiny: Path, rubrics: Path, tmp_path: Path) -> None:
    settings = judge_of(tiny, rubrics)
    compare_pairs(PAIRS[:2], settings, tmp_path / "pairs.jsonl", tmp_path / "ledger.jsonl")
    made = current_comparisons(tmp_path / "pairs.jsonl", PAIRS[:2], settings)
    assert all(one["verdict"] in ("first", "second", "tie") and None not in one["orders"] for one in made)


def test_the_form_is_filled_in_by_the_likeliest_token_with_and_without_slots(tiny: Path) -> None:
    import torch

    model = load_model(str(tiny), place("cpu", "float32"))
    prompts, form = [[5, 9, 30, 31], [5, 9, 77], [5, 9, 8, 8, 8]], Form([40, 41, 42, 43], [1, 4], [[60, 61, 62]] * 2)

    def by_hand(prompt: list[int]) -> list[int]:
        row, picks = [*prompt, 40], []
        for more in ([42, 43], []):
            with torch.inference_mode():
                scores = model(input_ids=torch.tensor([row])).logits[0, -1, 60:63]
            picks.append(int(scores.argmax()))
            row += [60 + picks[-1], *more]
        return picks

    wanted = [by_hand(prompt) for prompt in prompts]
    form = Form([40, 0, 42, 43], [1, 4], [[60, 61, 62]] * 2)
    with answering(model) as batch_of:
        batch = batch_of(common(prompts))
        assert fill_in(batch, prompts, form, model.device) == wanted
        batch.keep([])
        assert fill_in(batch, prompts[::-1], form, model.device) == wanted[::-1]
    assert fill_in(Padded(model), prompts, form, model.device) == wanted


def test_values_that_no_single_token_tells_apart_have_no_form() -> None:
    assert form_in([[[1, 5, 2, 5, 9], [1, 6, 2, 5, 9]], [[1, 5, 2, 5, 9], [1, 5, 2, 7, 9]]]) == Form(
        [1, 5, 2], [1, 3], [[5, 6], [5, 7]]
    )
    assert form_in([[[1, 5, 2, 5, 9], [1, 4, 4, 2, 5, 9]], [[1, 5, 2, 5, 9], [1, 5, 2, 6, 9]]]) is None
    assert form_in([[[1, 5, 9], [1, 6, 7, 9], [1, 8, 9]]]) == Form([1], [1], [[5, 6, 8]])
    assert form_in([[[1, 5, 9], [1, 5, 7, 9], [1, 8, 9]]]) is None


def test_what_belongs_to_servers_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="loaded here has no base_url, max_cost"):
        settings_of({"model": f"local:{tiny}", "base_url": "http://localhost:1/v1", "max_cost": 1})


def test_a_study_is_judged_without_a_server(tiny: Path, rubrics: Path, tmp_path: Path) -> None:
    judge = {"model": f"local:{tiny}", "name": "here", "rubrics": str(rubrics), "facets": ["language", "fluency"]}
    study = {
        "name": "s",
        "models": [str(tiny)],
        "judges": [judge],
        "prompts": {
            "languages": ["fr"],
            "test": {"source": "builtin:open", "size": 2},
            "validation": {"source": "none"},
        },
        "validation": {"margins": False, "grammar": False},
        "decoding": {"max_new_tokens": 4},
        "device": "cpu",
        "dtype": "float32",
    }
    (tmp_path / "study.yaml").write_text(json.dumps(study), encoding="utf-8")
    workspace = prepare(load_study(tmp_path / "study.yaml"), tmp_path / "out")
    generate_stage(workspace)
    done = run_xlift("judge", "out", folder=tmp_path, env=dict(os.environ) | {"OPENAI_BASE_URL": "http://127.0.0.1:1"})
    assert done.returncode == 0, done.stderr
    assert "4 ratings of 2 responses added, 0 missing" in done.stdout
    assert set(load(tmp_path / "out").ratings["rater"]) == {"judge:here"}
