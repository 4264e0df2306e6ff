"""Responses that exist already become a study: by files' names or columns, told apart, missing where missing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from warm import run_xlift, start_xlift

import xlift
from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError, DataError
from xlift.export.dataset import export_data
from xlift.importing import Wanted, import_study
from xlift.rating.foreign import asked_for
from xlift.report.pass_rates import languages_table, means_table, pass_rates
from xlift.report.reading import material_of
from xlift.workspace import StudyFolder, alone, find_study

SAID = {
    "en": "The sky is blue because air scatters light.",
    "fr": "Le ciel est bleu parce que l'air diffuse la lumière.",
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows(language: str, count: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [{"id": i, "language": language, "output": SAID[language], **more} for i in range(count)]


def imported(source: Path, **wanted: Any) -> StudyFolder:
    return import_study(source, source.parent / "out", Wanted(**wanted))


def test_a_pattern_tells_model_language_and_factors_of_each_file(tmp_path: Path) -> None:
    for model, size in (("a", "7"), ("b", "70")):
        for language in ("en", "fr"):
            write(tmp_path / "in" / f"{model}-{size}" / f"{language}.jsonl", [{"id": 1, "output": SAID["fr"]}])
    workspace = imported(tmp_path / "in", pattern="{model}-{size}/{language}.jsonl")
    assert [run.label for run in workspace.runs] == ["a", "b"]
    ratings = done(workspace)
    assert ratings["factor.size"].unique().sort().to_list() == [7.0, 70.0]
    assert set(ratings["language"]) == {"en", "fr"}
    language = ratings.filter(ratings["rater"] == "language")
    assert dict(language.select("language", "value").unique().rows()) == {"en": 0.0, "fr": 2.0}


def done(workspace: StudyFolder) -> Any:
    from xlift.stages import rate_stage

    rate_stage(find_study(workspace.path))
    return xlift.load(workspace.path).ratings


def test_ids_that_stand_for_several_prompts_are_told_apart_by_the_fewest_columns(tmp_path: Path) -> None:
    told = [{"task": task, "source": source} for task in ("mono", "cross") for source in ("x", "y")]
    for model in ("a", "b"):
        write(tmp_path / "in" / f"{model}.jsonl", [row for more in told for row in rows("fr", **more, model=model)])
    workspace = imported(tmp_path / "in")
    (first, second) = checkpoints(find_study(workspace.path))
    assert [prompt["id"] for prompt in first.prompts][:2] == ["mono-x-0", "mono-x-1"]
    assert {one["category"] for one in first.responses} == {"mono", "cross"}
    assert len(first.responses) == len(second.responses) == 16


def test_what_a_model_has_not_answered_is_missing_and_not_zero(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", rows("fr"))
    write(tmp_path / "in" / "b.jsonl", [*rows("fr", 2), {"id": 2, "language": "fr"}])
    ratings = done(imported(tmp_path / "in"))
    lacking = ratings.filter((ratings["label"] == "b") & (ratings["rater"] == "language") & ratings["value"].is_null())
    assert sorted(lacking["reason"]) == [
        "no response: no response of this model has been imported",
        "no response: the imported file has no reply",
    ]


def test_imported_again_responses_are_replaced_and_another_study_is_not(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", rows("fr"))
    imported(tmp_path / "in")
    write(tmp_path / "in" / "a.jsonl", rows("fr", 6))
    (one,) = checkpoints(find_study(imported(tmp_path / "in").path))
    assert len(one.responses) == 6
    (tmp_path / "out" / "study.yaml").write_text("name: mine\ntraining: {steps: 4}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds a study that was not imported"):
        imported(tmp_path / "in")
    (tmp_path / "out" / "study.yaml").write_text("models: [5, {", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"out/study.yaml:1: not YAML"):
        imported(tmp_path / "in")


def test_half_a_character_in_a_reply_breaks_no_table_and_elsewhere_is_refused(tmp_path: Path) -> None:
    halved = [{"id": 1, "language": "fr", "output": "Le ciel \ud800 est bleu.", "prompt": "Pourquoi ?"}]
    write(tmp_path / "in" / "a.jsonl", halved)
    workspace = imported(tmp_path / "in")
    assert done(workspace)["value"].len() > 0
    (read,) = pl.read_parquet(export_data(workspace.path, tmp_path / "data") / "data" / "responses.parquet")["text"]
    assert read == "Le ciel \\ud800 est bleu."
    for field in ("id", "category", "parallel_id"):
        write(tmp_path / "in" / "a.jsonl", [halved[0] | {field: "\ud800"}])
        with pytest.raises(DataError, match=f"'{field}' holds half of a character"):
            imported(tmp_path / "in")


def test_an_import_touches_nothing_while_another_process_works_on_the_study(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", rows("fr"))
    workspace = imported(tmp_path / "in")
    before = files(workspace.path)
    write(tmp_path / "in" / "a.jsonl", rows("en", 6))
    with alone(workspace.path), pytest.raises(ConfigError, match="another xlift process"):
        imported(tmp_path / "in")
    assert files(workspace.path) == before


@pytest.mark.parametrize(
    ("files", "wanted", "message"),
    [
        ({"a.jsonl": rows("fr") + rows("fr")}, {}, "several responses to prompt '0'"),
        ({"a.jsonl": rows("fr")}, {"pattern": "{model}.csv"}, "is called as --pattern"),
        ({"a.jsonl": rows("fr")}, {"pattern": "{model}{model}"}, "stands there twice"),
        ({"a.jsonl": rows("fr")}, {"factors": ("size",)}, "no column 'size' for --factor"),
        (
            {"a.jsonl": rows("fr", size=1)[:1] + rows("en", size=2)},
            {"factors": ("size",)},
            "size of a is 2, and 1 before",
        ),
        ({"a.jsonl": rows("fr", prompt="Why?"), "b.jsonl": rows("fr", prompt="Who?")}, {}, "another messages"),
        ({"a.jsonl": [{"id": 1, "language": "xx", "output": "?"}]}, {}, "'language'"),
    ],
)
def test_files_that_cannot_be_meant_are_refused_and_nothing_is_written(
    tmp_path: Path, files: dict[str, Any], wanted: dict[str, Any], message: str
) -> None:
    for name, content in files.items():
        write(tmp_path / "in" / name, content)
    with pytest.raises((ConfigError, DataError)) as caught:
        imported(tmp_path / "in", **wanted)
    assert any(message in problem for problem in caught.value.problems)
    assert not (tmp_path / "out" / "study.yaml").exists()


def test_the_command_makes_a_study_that_other_commands_take(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", rows("fr", prompt="Pourquoi ?", text=SAID["fr"]))
    write(tmp_path / "in" / "b.jsonl", rows("fr", prompt="Pourquoi ?", text=SAID["en"]))
    done = run_xlift("import", "in", "--as", "out", "--text", "output", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 models: a, b" in done.stdout
    assert run_xlift("rate", "out", folder=tmp_path).returncode == 0
    shown = run_xlift("report", "out", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "report:" in shown.stdout


def test_columns_are_mapped_where_their_names_do_not_tell(tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [{"n": 1, "who": "a", "said": SAID["fr"], "tongue": "fr"}])
    asked = asked_for("said", "tongue", ["who=model", "n=id"])
    workspace = imported(tmp_path / "in.jsonl", asked=asked)
    assert [run.label for run in workspace.runs] == ["a"]


def test_pass_rates_are_those_of_the_benchmarks_rule_beside_the_published_ones_of_the_same_model(
    tmp_path: Path,
) -> None:
    arabic, mixed = "السماء زرقاء لأن الهواء يشتت الضوء كثيرا", "السماء زرقاء لأن الهواء يشتت light الضوء كثيرا"
    texts = {
        "ar": [arabic] * 40 + [mixed] * 10 + [SAID["en"]] * 50 + ["نعم"] * 5,
        "fr": [SAID["fr"]] * 3 + [SAID["en"]],
    }
    tasks = {"ar": "monolingual", "fr": "crosslingual"}
    told = [
        {"id": i, "language": code, "task": tasks[code], "model": model, "output": text}
        for model in ("llama-2-instruct", "mine")
        for code, own in texts.items()
        for i, text in enumerate(own)
    ]
    write(tmp_path / "in.jsonl", told)
    workspace = imported(tmp_path / "in.jsonl", raters=("language_lcb",))
    done(workspace)
    material = material_of(find_study(workspace.path))
    rates = pass_rates(material)["mine"]
    assert rates["monolingual", "ar"] == (100, 50, 50, 40)
    assert (rates["crosslingual", "fr"].lpr, rates["crosslingual", "fr"].wpr) == (0.75, None)
    table = languages_table(material)
    assert table is not None
    assert [value.note for value in table.lines[0]] == ["", "", "published 0.3", "", "", ""]
    assert [value.note for value in table.lines[1]] == [""] * 6
    means = means_table(material)
    assert means is not None
    assert [record["published_lpr"] for record in means.records] == [None] * 4


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.torture)])
def test_an_import_killed_at_random_and_given_again_ends_like_one_left_alone(kills: int, tmp_path: Path) -> None:
    for model in ("a", "b", "c"):
        write(tmp_path / "in" / f"{model}.jsonl", [*rows("en", 40 * kills), *rows("fr", 40 * kills)])

    def start(name: str) -> Any:
        with (tmp_path / "said").open("w+") as said:
            streams = [said.fileno()] * 3
            return start_xlift("import", "in", "--as", name, folder=tmp_path, streams=streams)

    for _ in range(2):  # the first time, what forks has still to load what it needs
        began = time.monotonic()
        assert start("whole").wait(300) == 0, (tmp_path / "said").read_text()
    needed, chance, met = time.monotonic() - began, random.Random(kills), 0
    while met < kills:
        process = start("killed")
        time.sleep(chance.uniform(0, needed))
        process.kill()
        met += process.wait(60) == -signal.SIGKILL
        if chance.random() < 0.3:
            assert start("killed").wait(300) == 0, (tmp_path / "said").read_text()
            assert files(tmp_path / "killed") == files(tmp_path / "whole")
            shutil.rmtree(tmp_path / "killed")
    assert start("killed").wait(300) == 0, (tmp_path / "said").read_text()
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, str]:
    """What stands in every file, but for times and the study's own name."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path for name, path in found.items() if path.name not in {"log.txt", "manifest.json"}}
    told = {name: path.read_text(encoding="utf-8") for name, path in kept.items()}
    return dict.fromkeys(found, "") | {
        name: text.replace(str(folder), "").replace(f"name: {folder.name}", "") for name, text in told.items()
    }
