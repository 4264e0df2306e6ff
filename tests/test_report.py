"""What the report says and writes: sentences that are true of constructed studies, and the files of every format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import GOOD, chances, log_training, made_study, rated_by, rated_study

from xlift.checkpoint import written_prompts
from xlift.disk import write_jsonl
from xlift.errors import ConfigError
from xlift.records import response_signature
from xlift.report.methods import data_facts
from xlift.report.numbers import consistency_rows, findings_of
from xlift.report.page import result_text, write_report
from xlift.report.reading import Material, Scale, material_of, share_rows
from xlift.report.rows import rows_of
from xlift.report.summary import summary_points, unknown_text
from xlift.stages import prepare, rate_stage, report_stage
from xlift.study.loading import parse_study

LANGUAGE = ("language", "language")


def said(material: Material) -> tuple[str, str]:
    found = findings_of(material)
    return " ".join(point.text for point in summary_points(material, found)), unknown_text(material, found)


def high_rate(run: Any) -> bool:
    return not run.config.untuned and run.config.learning_rate > 5e-4


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two tuned runs beside the untuned model, and enough prompts to tell large differences."""
    study = {"prompts": {"validation": {"size": 12}, "test": {"size": 24}}}
    return made_study(tmp_path_factory.mktemp("many") / "study", lambda _, prompt: GOOD[prompt["language"]], **study)


def test_a_study_of_models_that_nobody_tuned_is_told_as_such(tmp_path: Path) -> None:
    training = {"model": ["a/one", "b/two"], "adaptation": {"method": "none"}}
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], training=training)
    summary, _ = said(rated_by(study, {LANGUAGE: lambda run, prompt: 2.0}))
    assert "This study asks 4 test requests in English and French of one and two." in summary


def test_a_difference_that_chance_explains_is_never_called_one(many: Any) -> None:
    for seed in range(8):
        summary, _ = said(rated_by(many, {LANGUAGE: chances(lambda run, prompt: 0.5, seed)}))
        bounds = re.findall(r"points \[([+−]?\d+), ([+−]?\d+)\]", summary)
        assert all((low[0] == "−") == (high[0] == "−") or "0" in (low, high) for low, high in bounds), summary
        assert summary.count("points [") == len(bounds) == summary.count(" points")


def test_no_number_is_said_without_its_interval(many: Any) -> None:
    for seed in range(4):
        value = chances(lambda run, prompt: 0.2 if high_rate(run) else 0.9, seed)
        summary, _ = said(rated_by(many, {LANGUAGE: value}))
        assert re.findall(r"\d %", summary)
        assert len(re.findall(r"\d %", summary)) == len(re.findall(r"\d % \[\d+–\d+\]", summary))


def test_a_learning_rate_that_buries_a_language_is_named(many: Any) -> None:
    def value(run: Any, prompt: Any) -> float:
        return 0.0 if high_rate(run) and prompt["language"] == "fr" else 2.0

    summary, unknown = said(rated_by(many, {LANGUAGE: value}))
    assert "lora-r16-lr1e-4 is +100 points" in summary
    assert "above lora-r16-lr1e-3" in summary
    assert "fewer such answers in 1 of 4 cases (setting and language; most, lora-r16-lr1e-3 in French: −100" in summary
    assert "behind English beyond chance in 1 of 2 cases, at most French in lora-r16-lr1e-3" in summary
    assert "more such answers" not in summary
    assert "one seed only" in unknown
    assert "No rating is missing." in unknown
    assert "Neither people nor a judge model have read the answers" in unknown


def test_what_data_and_prompts_share_is_said_with_the_numbers_of_the_data(tmp_path: Path) -> None:
    workspace = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]])
    assert "stand in the training data" not in said(material_of(workspace))[1]
    for run in workspace.runs:
        if run.trains:
            run.set_stage("train", "done", examples=900, too_long=7, heldout=16)
            run.update_manifest(data={"left_out": {"no text": 3}, "test_prompts_in_training": 2, "near_duplicates": 0})
    material = material_of(workspace)
    assert data_facts(material) == [
        ("Data builtin", "trained on 900; held out 16; too long 7; left out: no text 3; test prompts in training 2")
    ]
    assert "Test prompts stand in the training data (2 as a whole, 0 in part)" in said(material)[1]


def test_runs_that_are_alike_are_not_told_apart(many: Any) -> None:
    summary, _ = said(rated_by(many, {LANGUAGE: lambda run, prompt: 2.0}))
    assert "No two tuned settings can be told apart" in summary
    assert "no difference in any one language is beyond chance" in summary
    assert "In no tuned setting can a language be told to be behind English" in summary
    assert "points" not in summary


def test_what_choosing_by_english_costs_is_said(many: Any) -> None:
    for run in many.runs:
        if run.trains:
            # English loss prefers the run that has lost French.
            log_training(run, 1.0 if high_rate(run) else 2.0, {"fr": 0.1 if high_rate(run) else 0.9})

    def value(run: Any, prompt: Any) -> float:
        return 0.0 if high_rate(run) and prompt["language"] == "fr" else 2.0

    summary, _ = said(rated_by(many, {LANGUAGE: value}))
    assert "Choosing by English loss picks lora-r16-lr1e-3, by the mean over languages" in summary
    assert "lora-r16-lr1e-4; the former costs French 100 points" in summary


def test_missing_ratings_and_runs_without_answers_are_said(many: Any) -> None:
    def value(run: Any, prompt: Any) -> float | None:
        return None if prompt["language"] == "fr" else 2.0

    material = rated_by(many, {LANGUAGE: value})
    _, unknown = said(material)
    assert "108 of 216 ratings (50 %) are missing, most often because: could not tell." in unknown
    _, unknown = said(material_of(many, material.answered[:2]))
    assert "No answers yet from 1 run: lora-r16-lr1e-3." in unknown


def test_a_judge_without_people_is_said_to_be_unchecked(many: Any) -> None:
    judge = ("helpfulness", "judge:mistral")
    summary, unknown = said(rated_by(many, {judge: lambda run, prompt: 2.0}))
    assert "the share of correct and sufficient answers, by judge mistral is" in summary
    assert "No person has rated these answers" in unknown
    person = ("helpfulness", "human:Ana")
    assert "No person" not in said(rated_by(many, {judge: lambda *_: 2.0, person: lambda *_: 1.0}))[1]


def test_a_study_without_ratings_says_that_nothing_can_be_said(many: Any) -> None:
    summary, _ = said(rated_by(many, {}))
    assert summary.endswith("Nothing has been rated yet, so nothing can be said.")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def text(run: Any, prompt: Any) -> str:
        return GOOD["en"] if high_rate(run) else GOOD[prompt["language"]]

    return rated_study(tmp_path_factory.mktemp("small") / "study", text)


def test_the_table_counts_what_was_answered_in_the_users_language(small: Any) -> None:
    material = material_of(small)
    rows = rows_of(share_rows(material, "test"), material.scales[0])
    assert {(row.run, row.language): row.mean for row in rows} == {
        ("base", "en"): 1.0,
        ("base", "fr"): 1.0,
        ("lora-r16-lr1e-4", "en"): 1.0,
        ("lora-r16-lr1e-4", "fr"): 1.0,
        ("lora-r16-lr1e-3", "en"): 1.0,
        ("lora-r16-lr1e-3", "fr"): 0.0,
    }
    assert re.search(r"lora-r16-lr1e-3 +100% \[51–100\] +0% \[0–49\]", result_text(material))


def test_what_a_rater_has_not_seen_is_no_row_of_zeros(small: Any) -> None:
    material = material_of(small)
    assert "constraint" not in {scale.rater for scale in material.scales}
    assert rows_of(share_rows(material, "test"), Scale("constraint", "constraint", "check")) == []


def written(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_each_format_writes_its_files(small: Any) -> None:
    assert write_report(small, "csv") == small.report / "tables"
    tables = {"tables/runs.csv", "tables/shares-language.csv", "tables/versus-base-language.csv"}
    assert tables < written(small.report)
    assert {Path(name).suffix for name in written(small.report)} == {".csv"}
    write_report(small, "latex")
    assert {name.replace(".csv", ".tex") for name in tables} < written(small.report)
    page = write_report(small, "md")
    assert page == small.report / "report.md"
    assert {Path(name).suffix for name in written(small.report)} == {".csv", ".tex", ".md", ".svg", ".png"}


def test_the_markdown_links_only_to_what_is_there_and_holds_the_summary(small: Any) -> None:
    text = write_report(small, "md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert "figures/heat-map-language.svg" in links
    assert all((small.report / link).is_file() for link in links)
    assert text.startswith("# made\n\n- This study compares 2 tuned runs of gemma-3-270m beside the untuned model")
    assert "| lora-r16-lr1e-3 | 100 % \\[51–100\\] (of 4) | 0 % \\[0–49\\] (of 4) |" in text


def test_an_unknown_format_is_refused_with_the_choices(small: Any) -> None:
    with pytest.raises(ConfigError, match="choices: csv, html, latex, md"):
        write_report(small, "pdf")


def test_a_study_that_has_no_answers_yet_still_has_a_report(tmp_path: Path) -> None:
    workspace = prepare(parse_study({"name": "fresh", "training": {"learning_rate": [1e-4, 1e-3]}}), tmp_path / "study")
    report_stage(workspace)
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    assert "Nothing has been rated yet" in page
    assert "not answered yet" in page


def test_facts_are_compared_over_languages(tmp_path: Path) -> None:
    source = {"source": "builtin:facts", "size": 3}
    settings = {"languages": ["en", "fr"], "validation": source, "test": source}
    study = parse_study({"name": "facts", "prompts": settings, "training": {}, "raters": ["answers"]})
    folder = prepare(study, tmp_path / "study")
    base, prompts = folder.runs[0], written_prompts(folder)
    signatures = {one["id"]: response_signature(study.decoding.signature, one["messages"]) for one in prompts}
    facts = {"run": base.id, "step": 0, "finish_reason": "stop", "prompt_tokens": 5, "new_tokens": 9}
    first = next(prompt["parallel_id"] for prompt in prompts if prompt["split"] == "test")
    made = []
    for prompt in prompts:
        right = prompt["language"] == "en" or prompt["parallel_id"] == first
        text = prompt["reference"] if right else "Je ne sais pas."
        made.append({**prompt, **facts, "text": text, "signature": signatures[prompt["id"]]})
    write_jsonl(base.responses(0), made)
    rate_stage(folder)
    report_stage(folder)
    (row,) = [row for row in consistency_rows(material_of(folder)) if row.rated]
    assert (row.first, row.second, row.rated) == ("en", "fr", 3)
    assert [row.alike, row.first_only, row.lost] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    page = (folder.report / "index.html").read_text(encoding="utf-8")
    assert "right in English, wrong here" in page
    assert (folder.report / "tables" / "facts.csv").is_file()
