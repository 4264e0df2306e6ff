"""`xlift mend`: the study of remedies that it writes, and what is told of them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from report_fixtures import made_study, rated_by
from rich.cells import cell_len
from safetensors.torch import load_file, save_file
from warm import run_xlift

from xlift.disk import write_jsonl
from xlift.errors import ConfigError, ModelError
from xlift.mending import AILING, EXAMPLES, drawn_back, mending_study
from xlift.report.formats import cells, to_markdown, value_text
from xlift.report.numbers import findings_of
from xlift.report.reading import Material
from xlift.report.remedies import remedies_of, remedies_table, remedies_text, remedy_name
from xlift.report.sections import sections_of
from xlift.study.labels import run_settings
from xlift.study.loading import load_study, parse_study
from xlift.study.runs import RunConfig
from xlift.workspace import create_study, open_study

STUDIES = Path(__file__).parent.parent / "studies"


def test_the_published_study_is_what_mend_writes_for_its_model() -> None:
    published = load_study(STUDIES / "remedies.yaml").model_dump(exclude={"name", "question"})
    written = parse_study(mending_study("embedded:gemma-3-270m", ["fr", "pt", "ru"]))
    assert written.model_dump(exclude={"name", "question"}) == published


@pytest.mark.parametrize(
    "training", [{"steps": 8, "weight": 0.5}, {"epochs": 2, "remind": True}, {"learning_rate": 1e-5}]
)
def test_a_run_is_the_first_run_of_its_study_and_each_remedy_differs_from_it(
    training: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    given = {"model": str(tiny), "instructions": {"sources": [{"path": "builtin", "size": 20}]}, "warmup_steps": 1}
    folder = open_study(parse_study({"name": "mine", "training": given | training}), tmp_path / "mine")
    create_study(folder)
    ailing = next(run for run in folder.runs if run.trains)
    study = parse_study(mending_study(str(ailing.path), ["fr", "de"][:1]))
    first, *others = study.tuned_runs()
    assert first.content_hash == ailing.config.content_hash
    assert len({run.content_hash for run in others} - {first.content_hash}) == len(others) >= 7
    told = [remedy_name(run_settings(first), run_settings(run)) for run in others]
    assert len(set(told)) == len(told)
    assert f"builtin+{EXAMPLES[1]}, preference 0.5" in told or f"english+{EXAMPLES[1]}, preference 0.5" in told


def test_tuned_weights_without_their_run_are_given_what_needs_none_of_its_settings(tiny: Path, tmp_path: Path) -> None:
    first, *others = parse_study(mending_study(str(tiny), ["fr"], base="embedded:gemma-3-270m")).tuned_runs()
    told = [remedy_name(run_settings(first), run_settings(run)) for run in others]
    assert (first.untuned, told) == (True, ["remind", "allow", "steer 1.0", "english+30"])
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    assert mending_study(str(adapter), ["fr"], base="b")["include"] == [
        {"remind": True},
        {"allow": True},
        {"steer": 1.0},
    ]


def test_weights_drawn_back_lie_half_way_to_the_base_that_is_named(tiny: Path, tmp_path: Path) -> None:
    start = load_file(tiny / "model.safetensors")
    shutil.copytree(tiny, tmp_path / "tuned")
    save_file(
        {name: value + 1 for name, value in start.items()}, tmp_path / "tuned" / "model.safetensors", {"format": "pt"}
    )
    drawn_back(str(tmp_path / "tuned"), str(tiny), tmp_path / "half")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert all(torch.allclose(half[name].float(), value.float() + 0.5, atol=1e-2) for name, value in start.items())
    with pytest.raises(ModelError, match="no such folder"):
        drawn_back(str(tmp_path / "tuned"), "./nowhere", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_size_of_all_data_does_not_leave_out_what_a_remedy_adds(tiny: Path, tmp_path: Path) -> None:
    data = {"sources": [{"path": "builtin"}], "size": 30, "heldout": 4}
    given = {"name": "mine", "training": {"model": str(tiny), "steps": 4, "instructions": data}}
    folder = open_study(parse_study(given), tmp_path / "mine")
    create_study(folder)
    first, *others = parse_study(mending_study(str(folder.runs[1].path), ["ru"])).tuned_runs()
    assert [(one.language, one.size) for one in first.instructions.sources] == [("en", 34)]
    mixes = {tuple(one.size for one in run.instructions.sources) for run in others}
    assert {(34, 9), (34, 30), (34, 40)} <= mixes
    assert all(run.instructions.size is None for run in others)


def test_languages_without_built_in_examples_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--languages: name one other than English"):
        mending_study("m", ["en"])
    done = run_xlift("mend", "embedded:gemma-3-270m", "--languages", "sw,fr,yo", folder=tmp_path)
    assert done.returncode == 2
    assert "--languages sw: no built-in examples; there are: " in done.stderr
    assert "--languages yo" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_study_is_printed_as_a_file_that_can_be_run(tiny: Path, tmp_path: Path) -> None:
    done = run_xlift(*("mend", str(tiny), "training.steps=7", "--languages", "fr", "--dry-run"), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "mine.yaml").write_text(done.stdout)
    study = load_study(tmp_path / "mine.yaml")
    assert study.training["steps"] == 7
    assert yaml.safe_load(done.stdout)["report"] == {"remedies": True}
    assert {run.model for run in study.tuned_runs()} == {str(tiny)}
    assert not (tmp_path / "results").exists()


# --- what is told -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """An ailing run that is never right in French and Russian; half the weight mends both and costs English facts."""
    many = {"sources": [{"path": "builtin", "size": 40}, {"path": "builtin", "language": "fr", "size": 9}]}
    folder = made_study(
        tmp_path_factory.mktemp("mended") / "study",
        lambda run, prompt: "Oui.",
        training={
            "learning_rate": 1e-2,
            "instructions": {"name": "english", "sources": [{"path": "builtin", "size": 40}]},
        },
        include=[{"weight": 0.5}, {"instructions": {"name": "english+9", **many}}],
        prompts={"languages": ["en", "fr", "ru"], "test": {"source": ["builtin:open", "builtin:facts"], "size": 12}},
        report={"bootstrap": 200, "remedies": True},
    )
    for run in folder.runs:
        if run.trains:
            write_jsonl(run.train_log, [{"step": i, "loss": 1.0, "tokens": 100} for i in (1, 2)])
            run.set_stage("train", "done", seconds=3.2, examples=40, heldout=0, too_long=0)

    def language(run: Any, prompt: Any) -> float:
        return 2.0 if run.config.weight < 1 or run.config.untuned or prompt["language"] == "en" else 0.0

    def answers(run: Any, prompt: Any) -> float | None:
        if prompt["category"] == "open" or "answers" not in prompt:
            return None
        return 0.0 if run.config.weight < 1 and prompt["language"] == "en" else 2.0

    return rated_by(folder, {("language", "language"): language, ("accuracy", "answers"): answers})


def test_gains_losses_and_costs_are_those_of_the_ratings(material: Material) -> None:
    weight, mixed = remedies_of(material)
    assert (weight.name, mixed.name) == ("weight 0.5", "english+9")
    gains = {key: row.difference for key, row in weight.rows.items() if key[0] == "language"}
    assert gains == {("language", "en"): 0, ("language", "fr"): 1, ("language", "ru"): 1, ("language", "all"): 1}
    assert weight.rows["facts", "en"].difference == -1
    assert weight.rows["facts", "all"].difference == 0
    assert {row.difference for row in mixed.rows.values()} == {0}
    assert (weight.tokens, weight.seconds) == (None, None)
    assert (mixed.tokens, mixed.seconds) == (200, 3.2)


def test_p_is_corrected_over_all_remedies_and_languages_of_a_measure(material: Material) -> None:
    for measure, count in (("language", 8), ("facts", 8)):
        rows = [row for one in remedies_of(material) for key, row in one.rows.items() if key[0] == measure]
        assert len(rows) == count
        least = min(rows, key=lambda row: row.p or 0)
        assert least.p is not None
        assert least.p_holm == pytest.approx(min(1, least.p * count))


def test_the_terminal_table_fits_80_columns_and_has_the_best_first(material: Material) -> None:
    lines = remedies_text(material).splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert lines[1].startswith("weight 0.5")
    assert "+100" in lines[1]
    assert any(line.startswith("by language") and "fr" in line and "ru" in line for line in lines)


def test_the_report_has_the_table_where_the_study_asks_for_it(material: Material) -> None:
    section = next(one for one in sections_of(material, findings_of(material)) if one.id == "remedies")
    table = remedies_table(material)
    assert table is not None
    assert [block.table.title for block in section.blocks if block.table] == ["What mends it"]
    assert [line[0].text for line in cells(table)] == ["weight 0.5", "english+9"]
    assert "| weight 0.5 | +100" in to_markdown(table)
    silent = material.workspace.study.report.model_copy(update={"remedies": False})
    study = material.workspace.study.model_copy(update={"report": silent})
    workspace = type(material.workspace)(material.workspace.path, study, material.workspace.runs)
    quiet = Material(
        workspace, material.prompts, material.answered, material.everyone, material.axes, material.training
    )
    assert remedies_table(quiet) is None
    assert remedies_text(quiet) == ""


def test_a_remedy_is_called_by_what_differs() -> None:
    first = run_settings(RunConfig.model_validate({**AILING, "instructions": {"name": "english"}}))
    for change, name in (
        ({"learning_rate": 3e-4}, "learning_rate 3e-4"),
        ({"remind": True}, "remind"),
        ({"steps": 4, "seed": 3}, "steps 4"),
        ({}, "the same"),
    ):
        settings = {**AILING, "instructions": {"name": "english"}, **change}
        assert remedy_name(first, run_settings(RunConfig.model_validate(settings))) == name


def test_the_published_figures_are_those_of_the_data_behind_them() -> None:
    docs = STUDIES.parent / "docs"
    told = (docs / "remedies.md").read_text(encoding="utf-8")
    with (docs / "remedies.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({row["remedy"] for row in rows}) == 13
    for row in (one for one in rows if one["measure"] == "language" and one["language"] != "en"):
        value, low, high = (value_text(float(row[name]), "points") for name in ("difference", "low", "high"))
        shown = f"{value} [{low}, {high}]"
        assert any(line.strip().startswith(row["remedy"]) and shown in line for line in told.splitlines()), row
