"""Several judges as one rater: what they say together, who was silent, and how far they disagree."""

from __future__ import annotations

import json
from typing import Any

import pytest
from judge_server import Act, Script, asked_facets, serving
from report_fixtures import made_study
from test_judging import QUICK

from xlift.analysis.agreement import agreement_tables
from xlift.disk import write_jsonl
from xlift.errors import ConfigError
from xlift.judging.judges import judge_study
from xlift.judging.panel import panel_ratings, together, unity
from xlift.judging.probe import probe, probe_cases
from xlift.records import kind_of
from xlift.report.judges import judge_tables
from xlift.report.reading import material_of, share_rows
from xlift.results import load
from xlift.study.loading import parse_study
from xlift.study.sections import Panel
from xlift.study.served import Judge
from xlift.study.study import Study
from xlift.workspace import StudyFolder

JUDGES = [Judge(model=name) for name in ("a", "b", "c")]


def rating(rater: str, value: float | None, name: str = "p1", facet: str = "fluency") -> Any:
    own = {"id": name, "language": "fr", "run": "r", "step": 1, "facet": facet, "rater": f"judge:{rater}"}
    own |= {"value": value, "response": "f", "signature": rater}
    return own | ({"reason": "refused"} if value is None else {})


def test_the_mean_and_the_majority_of_what_judges_say() -> None:
    said = [rating("a", 2.0), rating("b", 1.0), rating("c", 1.0)]
    (mean,) = panel_ratings(Panel(name="we"), JUDGES, said)
    assert (mean["value"], mean["rater"], mean["id"], mean["step"]) == (pytest.approx(4 / 3), "panel:we", "p1", 1)
    assert mean["detail"]["values"] == {"judge:a": 2.0, "judge:b": 1.0, "judge:c": 1.0}
    (most,) = panel_ratings(Panel(take="majority"), JUDGES, said)
    assert most["value"] == 1.0
    (two,) = panel_ratings(Panel(judges=["a", "b"]), JUDGES, said)
    assert two["value"] == 1.5
    assert together([0.0, 1.0, 2.0], Panel(take="majority")) == (None, "no majority: 0, 1, 2")


def test_a_judge_without_a_value_stays_without_one_and_never_counts_as_zero() -> None:
    (found,) = panel_ratings(Panel(), JUDGES, [rating("a", 2.0), rating("b", None), rating("c", 2.0)])
    assert found["value"] == 2.0
    assert found["detail"]["missing"] == {"judge:b": "refused"}
    (alone,) = panel_ratings(Panel(), JUDGES, [rating("a", 2.0), rating("b", None)])
    assert (alone["value"], alone["reason"]) == (None, "1 of the 2 values that a panel needs")
    assert alone["detail"]["missing"] == {"judge:b": "refused", "judge:c": "not asked yet"}


def test_how_far_a_panel_agrees_is_counted_by_facet_and_language() -> None:
    said = [rating("a", 2.0), rating("b", 0.0), rating("a", 1.0, "p2"), rating("b", 1.0, "p2"), rating("c", 1.0, "p2")]
    own, everywhere = unity(panel_ratings(Panel(), JUDGES, said))
    assert (own.facet, own.language, own.rated, own.alike, own.spread) == ("fluency", "fr", 2, 1, 1.0)
    assert (own.missing, own.incomplete, everywhere.language) == (0, 1, "all")


def test_agreement_leaves_a_panel_out_whose_judges_are_compared_themselves() -> None:
    said = [rating(name, float(i % 3), f"p{i}") for name in "ab" for i in range(6)]
    both = [*said, *panel_ratings(Panel(), JUDGES, said)]
    assert agreement_tables(both) == agreement_tables(said)
    assert kind_of("panel:we") == "judge"


@pytest.mark.parametrize(
    ("panel", "message"),
    [({"judges": ["a", "z"]}, "unknown judge 'z'"), ({"least": 4}, "4 judges are wanted, 3 are there")],
)
def test_a_panel_that_cannot_sit_is_refused(panel: dict[str, Any], message: str) -> None:
    judges = [{"model": one.model} for one in JUDGES]
    with pytest.raises(ConfigError, match=message):
        parse_study({"name": "s", "training": {"model": "m"}, "judges": judges, "panel": panel}, "study")


def test_the_measure_may_be_a_facet_that_a_judge_or_people_alone_rate() -> None:
    own = {"model": "a", "facets": ["tact"], "rubrics": "own"}

    def measured(**measure: float) -> Study:
        asked = {"measure": {name.replace("_by_", ":"): weight for name, weight in measure.items()}}
        return parse_study({"name": "s", "training": {"model": "m"}, "judges": [own], "report": asked}, "study")

    assert measured(tact=1, tact_by_judge=1, kindness_by_human=2).report.measure["kindness:human"] == 2
    with pytest.raises(ConfigError, match="unknown facet 'tackt'; did you mean 'tact'"):
        measured(tackt=1)
    with pytest.raises(ConfigError, match="'tact:friends' is none of FACET, FACET:human"):
        measured(tact_by_friends=1)


def giving(value: int) -> Script:
    return lambda body, seen: Act(json.dumps(dict.fromkeys(asked_facets(body), value)))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    """A study that two judges have rated, one of them probed in two languages; and what the command said."""
    folder = tmp_path_factory.mktemp("judged")
    own = tmp_path_factory.mktemp("rubrics")
    (own / "tact.md").write_text("5: considerate throughout … 1: rude.", encoding="utf-8")
    asked = {"facets": ["fluency", "accuracy", "tact"], "scales": {"tact": [1, 5]}, "rubrics": str(own)}
    with serving(giving(2)) as one, serving(giving(1)) as other:
        judges = [{"model": "kind", "base_url": one.url, **asked}, {"model": "stern", "base_url": other.url, **asked}]
        workspace = made_study(folder, lambda run, prompt: "Voilà une réponse.", judges=judges, panel={"name": "both"})
        told = judge_study(workspace.path, None, {}, dry=False)
        cases = [case for case in probe_cases(["en", "fr"]) if "parallel_id" in case]
        probe(workspace.study.judges[0], workspace.path / "probes", cases, QUICK)
    return workspace, told.text


def test_a_study_has_its_panel_as_a_rater_and_says_how_far_it_agrees(judged: tuple[StudyFolder, str]) -> None:
    workspace, told = judged
    assert "both: mean of kind, stern" in told
    ratings = load(workspace.path).ratings
    panel = ratings.filter(ratings["rater"] == "panel:both")
    assert set(panel["value"]) == {1.5}
    assert set(panel["kind"]) == {"judge"}
    assert len(panel) == (ratings["rater"] == "judge:kind").sum()
    # A mean of 1.5 is not the best value, and a value all the same.
    rows = [row for row in share_rows(material_of(workspace), "test") if row.rater == "panel:both"]
    assert {(row.mean, row.mean_value, row.missing) for row in rows} == {(0.0, 1.5, 0)}
    assert "by panel both" in {scale.title[-13:] for scale in material_of(workspace).scales}


def test_a_facet_of_ones_own_on_its_own_scale_is_asked_read_kept_and_shown(judged: tuple[StudyFolder, str]) -> None:
    workspace, told = judged
    assert "tact" in told
    ratings = load(workspace.path).ratings
    own = ratings.filter(ratings["facet"] == "tact")
    ends = {(row["rater"], row["value"], row["lowest"], row["best"]) for row in own.iter_rows(named=True)}
    assert ends == {("judge:kind", 2.0, 1, 5), ("judge:stern", 1.0, 1, 5), ("panel:both", 1.5, 1, 5)}
    titles = [scale.title for scale in material_of(workspace).scales]
    assert {"Tact 5 of 1 to 5, by judge kind", "Tact 5 of 1 to 5, by panel both"} <= {*titles}
    assert {row["facet"] for row in agreement_tables(own.to_dicts())["agreement"]} == {"tact 1–5"}


def test_the_report_shows_probe_consistency_and_panel(judged: tuple[StudyFolder, str]) -> None:
    tables = {table.name: table for table in judge_tables(material_of(judged[0]))}
    assert list(tables) == ["judge-probe", "judge-consistency", "judge-shift", "panel"]
    assert [line[1].value for line in tables["judge-probe"].lines] == ["English", "French", "all"]
    assert {line[2].note for line in tables["judge-consistency"].lines[1:]} == {"every value is the same"}
    assert {line[2].value for line in tables["judge-shift"].lines} == {0.0}
    assert {line[2].value for line in tables["panel"].lines} == {0.0}
    assert {line[3].value for line in tables["panel"].lines} == {1.0}


def test_the_report_shows_which_run_a_judge_prefers_by_its_latest_rubrics(judged: tuple[StudyFolder, str]) -> None:
    workspace, _ = judged
    first, second, *_ = (run.id for run in workspace.runs)
    shared = {"first": first, "second": second, "rater": "judge:kind", "responses": [], "reason": None}
    rows = [
        {"id": f"{code}-{i}", "language": code, "cluster": str(i), "request": f"{code}{i}", "signature": "new"}
        | {"verdict": "first", "orders": ["first", "first"], "consistent": True}
        for code in ("en", "fr")
        for i in range(2)
    ]
    old = {**rows[0], "request": "old", "signature": "old", "verdict": "second", "orders": ["second", "second"]}
    path = workspace.path / "comparisons" / f"{first}.{second}.judge-kind.jsonl"
    write_jsonl(path, [shared | row for row in (old, *rows)])
    table = next(one for one in judge_tables(material_of(workspace)) if one.name == "judge-pairs")
    assert [line[3].value for line in table.lines] == ["all", "English", "French"]
    assert {line[4].value for line in table.lines} == {1.0}
    assert {line[6].value for line in table.lines} == {1.0}
