"""Tables of the report beside numbers computed in another way, in every form that they are written in."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import GOOD, STEP, log_training, made_study, rated_by

from xlift.analysis.agreement import agreement_tables
from xlift.languages import language_name
from xlift.report import tables
from xlift.report.agreement import agreement_tables_of
from xlift.report.factors import level_names
from xlift.report.flips import flips_table
from xlift.report.formats import Column, ReportTable, Value, cells, to_latex, to_markdown, write_tables
from xlift.report.numbers import curve_points, findings_of, mean_rows
from xlift.report.reading import Material, Scale, share_rows
from xlift.report.rows import rows_of
from xlift.report.sections import sections_of
from xlift.report.summary import unknown_text

LANGUAGE = ("language", "language")
JUDGE = ("helpfulness", "judge:mistral")
ANA, BEN = ("helpfulness", "human:Ana"), ("helpfulness", "human:Ben")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Two learning rates × two amounts of data, and the untuned model; checks, a judge and two people, with gaps."""
    training = {"learning_rate": [1e-4, 1e-3], "instructions": [{"size": 32}, {"size": 128}], "steps": 40}
    study = {"prompts": {"validation": {"size": 6}, "test": {"size": 12}}, "training": training}
    workspace = made_study(
        tmp_path_factory.mktemp("grid") / "study", lambda _, prompt: GOOD[prompt["language"]], **study
    )
    generator = random.Random(7)

    def value(run: Any, prompt: Any) -> float | None:
        bad = 0.5 if prompt["language"] == "fr" and run.config.learning_rate > 5e-4 else 0.1
        return generator.choices([None, 0.0, 1.0, 2.0], [0.1, bad, 0.1, 0.8 - bad])[0]

    return rated_by(workspace, dict.fromkeys([LANGUAGE, JUDGE, ANA, BEN], value))


def answers_of(material: Material, rater: tuple[str, str], split: str = "test") -> dict[tuple[str, str, str], Any]:
    """By run's folder, language and prompt: the value."""
    splits = {prompt["id"]: prompt["split"] for prompt in material.prompts}
    return {
        (one.run.id, rating["language"], rating["id"]): rating["value"]
        for one in material.answered
        for rating in one.ratings
        if (rating["facet"], rating["rater"]) == rater and splits[rating["id"]] == split
    }


def test_shares_are_counts_with_the_score_interval(material: Material) -> None:
    from statsmodels.stats.proportion import proportion_confint

    values = answers_of(material, LANGUAGE)
    rows = rows_of(findings_of(material).shares, Scale(*LANGUAGE, "check"))
    assert len(rows) == 10
    for row in rows:
        own = [value for (run, code, _), value in values.items() if (run, code) == (row.id, row.language)]
        rated = [value for value in own if value is not None]
        assert (row.rated, row.missing) == (len(rated), len(own) - len(rated))
        assert row.mean == pytest.approx(rated.count(2.0) / len(rated))
        low, high = proportion_confint(rated.count(2.0), len(rated), method="wilson")
        assert (row.low, row.high) == (pytest.approx(max(0, low)), pytest.approx(min(1, high)))


def paired_mean(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, int]:
    """Mean difference of "is 2" over what both sides have, and how many that are."""
    both = [(first[key] == 2, second[key] == 2) for key in first if first[key] is not None and second[key] is not None]
    return sum(b - a for a, b in both) / len(both), len(both)


def test_differences_to_the_untuned_model_are_paired_by_prompt(material: Material) -> None:
    values = answers_of(material, LANGUAGE)
    base = next(one.run for one in material.answered if one.run.config.untuned)
    labels = {one.run.label: one.run.id for one in material.answered}
    rows = rows_of(findings_of(material).versus, Scale(*LANGUAGE, "check"))
    assert len(rows) == 8
    for row in rows:
        sides = [
            {id: value for (run, code, id), value in values.items() if (run, code) == (side, row.language)}
            for side in (base.id, labels[row.run])
        ]
        assert (row.difference, row.pairs) == (pytest.approx(paired_mean(*sides)[0]), paired_mean(*sides)[1])
        assert row.low <= row.difference <= row.high
        assert row.p_holm >= row.p


def test_the_gap_to_english_is_paired_by_request(material: Material) -> None:
    values = answers_of(material, LANGUAGE)
    labels = {one.run.label: one.run.id for one in material.answered}
    requests = {prompt["id"]: prompt["parallel_id"] for prompt in material.prompts}
    rows = rows_of(findings_of(material).gaps, Scale(*LANGUAGE, "check"))
    assert [row.language for row in rows] == ["fr"] * 5
    for row in rows:
        sides = [
            {requests[id]: value for (run, code, id), value in values.items() if (run, code) == (labels[row.run], side)}
            for side in ("en", "fr")
        ]
        assert (row.difference, row.pairs) == (pytest.approx(paired_mean(*sides)[0]), paired_mean(*sides)[1])


def test_curves_hold_all_else_equal(material: Material) -> None:
    means = findings_of(material).means
    for axis, panels in {"learning_rate": {"32", "128"}, "size": {"1e-4", "1e-3"}}.items():
        points = curve_points(rows_of(means, Scale(*LANGUAGE, "check")), axis)
        assert {re.sub(r"learning rate | conversations", "", point.panel) for point in points} == panels
        for panel in {point.panel for point in points}:
            own = [point.row for point in points if point.panel == panel and point.row.language == "fr"]
            assert [row.untuned for row in own] == [False, False, True]
            assert len({row.settings[axis] for row in own[:2]}) == 2


def test_models_of_one_name_and_revisions_of_one_model_are_told_apart(tmp_path: Path) -> None:
    """Two models whose names end alike, and two revisions: each with its own base, its own curve, its own level."""
    training = {"model": ["one/gemma", "two/gemma"], "revision": ["v1", "v2"], "learning_rate": [1e-4, 1e-3]}
    study = made_study(
        tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], training=training | {"steps": 40}
    )

    def value(run: Any, prompt: Any) -> float:
        return 2.0 if run.config.revision == "v2" else 0.0

    made = rated_by(study, {LANGUAGE: value})
    found = findings_of(made)
    assert {row.difference for row in found.versus} == {0.0}
    points = curve_points(found.on(Scale(*LANGUAGE, "check")).means, "learning_rate")
    assert len({point.panel for point in points}) == 4
    assert all(len([one for one in points if one.panel == point.panel]) == 2 * 3 for point in points)
    levels = level_names([row for row in found.effects if row.factor == "model"])
    assert sorted(levels.values()) == ["one/gemma", "two/gemma"]


def test_system_prompts_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    begin = "You are a helpful assistant and you answer "
    training = {"system": [begin + "in English.", begin + "in verse."], "learning_rate": [1e-4, 1e-3], "steps": 40}
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], training=training)
    made = rated_by(study, {LANGUAGE: lambda run, prompt: 2.0})
    points = curve_points(findings_of(made).on(Scale(*LANGUAGE, "check")).means, "learning_rate")
    assert len({point.panel for point in points}) == 2


def test_ranks_are_panels_of_their_own_and_never_one_line(tmp_path: Path) -> None:
    training = {"adaptation": [{"rank": 8}, {"rank": 16}], "learning_rate": [1e-4, 1e-3], "steps": 40}
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], training=training)
    means = mean_rows(rated_by(study, {LANGUAGE: lambda run, prompt: 2.0}))
    assert {one.panel for one in curve_points(means, "learning_rate")} == {"lora r8", "lora r16"}


def test_a_panel_beside_full_tuning_says_nothing_of_lora_that_does_not_vary(tmp_path: Path) -> None:
    training = {"adaptation": [{}, {"method": "full"}], "learning_rate": [1e-4, 1e-3], "steps": 40}
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], training=training)
    made = rated_by(study, {LANGUAGE: lambda run, prompt: 2.0})
    scale = Scale(*LANGUAGE, "check")
    found = findings_of(made).on(scale)
    assert {one.panel for one in curve_points(found.means, "learning_rate")} == {"lora r16", "full"}
    flips = flips_table(made, found.means, scale)
    assert flips is not None
    assert [[cell.value for cell in line] for line in flips.lines] == [
        ["lora r16", "> 1e-3", "> 1e-3"],
        ["full", "> 1e-3", "> 1e-3"],
    ]


def test_missing_ratings_are_counted_by_rater_and_reason(material: Material) -> None:
    counted = Counter(
        (rating["facet"], "people" if rating["rater"].startswith("human") else rating["rater"], rating["language"])
        for one in material.answered
        for rating in one.ratings
        if rating["value"] is None
    )
    rows = findings_of(material).missing
    assert {(row.facet, row.rater, row.language): row.count for row in rows} == counted
    assert {row.reason for row in rows} == {"could not tell"}
    asked = {row.rater: row.asked for row in rows}
    assert asked == {"language": 5 * 18, "judge:mistral": 5 * 18, "people": 2 * 5 * 18}


def test_people_are_one_scale_and_a_judge_another(material: Material) -> None:
    scales = [
        Scale("language", "language", "check"),
        Scale("helpfulness", "judge:mistral", "judge"),
        Scale("helpfulness", "people", "human"),
    ]
    assert material.scales == scales
    assert [scale.short for scale in material.scales] == ["language", "helpfulness (mistral)", "helpfulness (people)"]


def test_a_facet_with_a_scale_of_its_own_is_told_by_its_own_best_value(tmp_path: Path) -> None:
    workspace = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]])
    ana, ben = ("politeness", "human:Ana"), ("politeness", "human:Ben")
    generator = random.Random(3)
    raters = {one: lambda *_: float(generator.randint(3, 5)) for one in (ana, ben)} | {LANGUAGE: lambda *_: 2.0}
    own = rated_by(workspace, raters, {"politeness": [1, 5]})
    scale = next(scale for scale in own.scales if scale.facet == "politeness")
    assert scale.title == "Politeness 5 of 1 to 5, by people"
    rows = rows_of(share_rows(own, "test"), scale)
    fives: dict[tuple[str, str], list[bool]] = {}
    for name in (ana, ben):
        for (run, language, _), value in answers_of(own, name).items():
            fives.setdefault((run, language), []).append(value == 5)
    assert {(row.id, row.language): row.mean for row in rows} == pytest.approx(
        {key: sum(values) / len(values) for key, values in fives.items()}
    )
    for row in rows:
        bounds = (row.mean_value_low, row.mean_value, row.mean_value_high)
        assert sorted([1.0, *map(float, bounds), 5.0]) == [1.0, *bounds, 5.0]  # type: ignore[arg-type]
    shown = tables.share_table_of(own, rows, scale, "test")
    assert shown is not None
    assert "responses with the value 5" in shown.note
    together = agreement_tables(own.everyone.to_dicts(), resamples=10)["agreement"]
    assert {row["facet"] for row in together if row["between"] == "people"} == {"politeness 1–5"}


def test_agreement_and_calibration_are_shown_where_people_and_judges_have_rated(material: Material) -> None:
    found = findings_of(material)
    named = {table.name: table for table in agreement_tables_of(material, found)}
    assert set(named) == {"agreement-people", "agreement-judge-and-people", "people", "calibration"}
    rows = [row for row in material.everyone.to_dicts() if row["facet"] == "helpfulness"]
    alone = agreement_tables(rows, resamples=100)["agreement"]
    assert [row.kappa for row in found.agreement] == [row["kappa"] for row in alone]
    assert len(named["agreement-people"].records) == 3
    assert {row["calibrated_rated"] for row in named["calibration"].records} <= set(range(8, 25))


def test_long_tables_of_agreement_are_in_two_parts_that_hold_every_line(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings_of(material)
    whole = {table.name: table for table in agreement_tables_of(material, found)}
    monkeypatch.setattr("xlift.report.agreement.LONG_TABLE", 0)
    parts = {table.name: table for table in agreement_tables_of(material, found)}
    assert set(parts) == {name + end for name in whole for end in ("", "-languages")}
    for name, table in whole.items():
        shown = [parts[name].lines, parts[f"{name}-languages"].lines]
        assert sorted(map(repr, shown[0] + shown[1])) == sorted(map(repr, table.lines))
        assert [{line[1].value == "all" for line in part} for part in shown] == [{True}, {False}]
        assert parts[name].records == table.records
    blocks = [block for section in sections_of(material, found) for block in section.blocks]
    folded = {block.table.name for block in blocks if block.table and block.folded}
    assert {"people", "people-languages"} & folded == {"people-languages"}


def test_what_a_rule_picks_stands_above_what_it_is_worth_in_each_language(material: Material) -> None:
    rows = findings_of(material).selection
    score, cost = tables.selection_tables(material, rows)
    rules = list(dict.fromkeys(row.rule for row in rows))
    assert [column.heading.split(": ")[0] for column in score.columns[1:]] == rules
    assert [line[0].value for line in score.lines] == ["English", "French"]
    for row in rows:
        line = next(line for line in score.lines if line[0].value == language_name(row.language))
        assert line[1 + rules.index(row.rule)][:3] == tuple(row.scored)
    assert [line[0].value for line in cost.lines][-1] == "regret, worst language"


def test_without_judges_and_people_nothing_is_said_of_agreement(material: Material) -> None:
    only = rated_by(material.workspace, {LANGUAGE: lambda *_: 2.0, ("language", "language_lcb"): lambda *_: 2.0})
    assert agreement_tables_of(only, findings_of(only)) == []
    assert "agreement" not in {section.id for section in sections_of(only, findings_of(only))}


def all_tables(material: Material) -> list[ReportTable]:
    sections = sections_of(material, findings_of(material))
    return [block.table for section in sections for block in section.blocks if block.table]


def test_each_table_has_a_name_of_its_own_and_lines_of_one_length(material: Material) -> None:
    tables = all_tables(material)
    assert len({table.name for table in tables}) == len(tables)
    for table in tables:
        assert {len(line) for line in cells(table)} == {len(table.columns)}, table.name
        assert table.records


def test_csv_holds_every_record_unrounded(material: Material, tmp_path: Path) -> None:
    tables = all_tables(material)
    write_tables(tables, tmp_path)
    for table in tables:
        with (tmp_path / f"{table.name}.csv").open(encoding="utf-8", newline="") as file:
            read = list(csv.DictReader(file))
        assert len(read) == len(table.records), table.name
        for line, record in zip(read, table.records, strict=True):
            for name, value in record.items():
                assert line[name] == ("" if value is None else str(value)), (table.name, name)


def test_latex_is_balanced_and_every_line_has_as_many_cells_as_columns(material: Material) -> None:
    for table in all_tables(material):
        text = to_latex(table)
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
        assert [text.count(rf"\{rule}") for rule in ("toprule", "midrule", "bottomrule")] == [1, 1, 1]
        body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == len(table.lines) + 1
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(table.columns) - 1}


HOSTILE = "a & b_c 50% $x$ #1 {d} \\e ~f^ | `g` <h> [i](j)"


def test_hostile_names_stay_text_in_latex_and_markdown() -> None:
    table = ReportTable("t", HOSTILE, HOSTILE, [Column("run"), Column("n", "count")], [[Value(HOSTILE), Value(1)]], [])
    line = next(line for line in to_latex(table).splitlines() if line.startswith("a "))
    escaped = r"a \& b\_c 50\% \$x\$ \#1 \{d\} \textbackslash{}e \textasciitilde{}f\textasciicircum{}"
    assert line.startswith(escaped)
    row = to_markdown(table).splitlines()[2]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "<h" not in row
    assert "[i]" not in row


def test_a_missing_number_is_a_dash_and_never_zero() -> None:
    columns = [Column("run"), Column("share", "share")]
    table = ReportTable("t", "", "", columns, [[Value("a"), Value(note="no text")]], [])
    assert to_markdown(table).splitlines()[2] == "| a | – (no text) |"
    assert cells(table)[0][1].bar is None
    table.lines[0][1] = Value(0.0, 0.0, 0.49, "no text")
    assert to_markdown(table).splitlines()[2] == "| a | 0 % \\[0–49\\] (no text) |"


def test_the_studys_measure_decides_which_run_is_picked(tmp_path: Path) -> None:
    """By language the first run is better, by helpfulness the second; the report says by what it has chosen."""

    def value(facet: str) -> Any:
        def rate(run: Any, prompt: Any) -> float:
            first = run.config.learning_rate == 1e-4
            return 2.0 if first == (facet == "language") else 0.0

        return rate

    picked = {}
    for facet in ("language", "helpfulness"):
        report = {"bootstrap": 100, "measure": {facet: 1}}
        study = made_study(tmp_path / facet, lambda _, prompt: GOOD[prompt["language"]], report=report)
        made = rated_by(study, {LANGUAGE: value("language"), JUDGE: value("helpfulness")})
        rows = [row for row in findings_of(made).selection if row.rule == "mean over languages"]
        picked[facet] = next(run.label for run in study.runs if run.id == rows[0].run)
        table = tables.selection_tables(made, findings_of(made).selection)[0]
        assert f"({facet})" in table.note
    assert picked["language"] != picked["helpfulness"]
    assert picked["language"].endswith("lr1e-4")


def test_a_measure_that_nobody_has_rated_is_told_and_another_taken(tmp_path: Path) -> None:
    report = {"bootstrap": 100, "measure": {"helpfulness:human": 2, "language": 1}}
    study = made_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]], report=report)
    made = rated_by(study, {LANGUAGE: lambda run, prompt: 2.0, JUDGE: lambda run, prompt: 2.0})
    assert made.measure == {"language": 1.0}
    said = unknown_text(made, findings_of(made))
    assert "Nobody has rated 2 × helpfulness:human + language yet; runs are chosen by language meanwhile." in said


def test_a_run_that_halving_stopped_is_told_as_such_and_not_as_missing(tmp_path: Path) -> None:
    training = {"learning_rate": [1e-4, 1e-3, 1e-2], "weight": [0.5, 1.0], "steps": STEP}
    study = made_study(
        tmp_path / "study",
        lambda _, prompt: GOOD[prompt["language"]],
        training=training,
        halving={"first": STEP // 2, "factor": 3},
    )
    runs = [run for run in study.runs if run.trains]
    for place, run in enumerate(runs):
        # The language margin and English loss disagree.
        log_training(run, heldout_loss=2.0 - 0.1 * place, margins={"fr": 0.9 - 0.1 * place})
        run.update_manifest(planned_steps=STEP)
    made = rated_by(study, {LANGUAGE: lambda run, prompt: 2.0})
    assert made.stopped == {run.id: STEP // 2 for run in runs[1:]}
    states = {row["folder"]: row["state"] for row in tables.runs_table(made).records}
    # Those that are drawn back from a stopped run are stopped with it.
    out = [run for run in study.runs if run.trained in [one.path for one in runs[1:]]]
    assert len(out) == 4
    assert all(states[run.id] == f"stopped by halving at step {STEP // 2}" for run in out)
    said = unknown_text(made, findings_of(made))
    assert "No answers yet" not in said
    assert all(run.label in said.split("Stopped early by successive halving")[1] for run in out)
    left = STEP - STEP // 2
    assert f"saved {2 * left} of {3 * STEP} steps ({2 * left / (3 * STEP):.0%})" in said
    assert f"by the language margin. English loss alone would have kept {runs[-1].label}." in said
    assert {row.id for row in findings_of(made).shares}.isdisjoint({run.id for run in out})
