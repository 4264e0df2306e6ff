"""What is told of a whole study while it runs, and what its work takes in energy: plain functions on study folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xlift import pace
from xlift.disk import write_jsonl
from xlift.energy import metered
from xlift.pace import STAGES, judging_pace, keep_forecast, keep_judging, study_pace
from xlift.stages import prepare
from xlift.study.loading import parse_study
from xlift.study.served import Judge
from xlift.workspace import StudyFolder


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyFolder:
    """Two runs of 40 steps, and four prompts in each of two languages."""
    monkeypatch.setenv("XLIFT_CACHE", str(tmp_path / "cache"))
    prompts = {"languages": ["en", "fr"], "validation": {"size": 2}, "test": {"size": 2}}
    raw = {"name": "s", "prompts": prompts, "training": {"learning_rate": [1e-4, 1e-3], "steps": 40}}
    return prepare(parse_study(raw | {"include_base": False}), tmp_path / "s")


def test_the_whole_study_s_rest_is_what_runs_now_what_comes_after_and_the_later_stages(study: StudyFolder) -> None:
    first, second = study.runs
    told = study_pace(study, [first], [second], "train", STAGES)
    assert told(2.0, 10) == "stage 1 of 5, run 1 of 2, study ETA over 1 min 40 s"  # 10 steps, 40 steps; answering?
    second.set_stage("generate", "done", responses=8, seconds=24.0)
    told = study_pace(study, [first], [second], "train", STAGES)
    assert told(2.0, 10) == "stage 1 of 5, run 1 of 2, study ETA 2 min 28 s"  # and 16 replies at 3 s


def test_a_study_that_goes_on_counts_what_is_left_alone(study: StudyFolder) -> None:
    first, second = study.runs
    first.set_stage("train", "done", seconds=80.0, steps=40)
    second.checkpoint(30).mkdir(parents=True)
    write_jsonl(first.responses(40), [{}] * 6)
    assert pace.units_left(study, first, "train") == 0
    assert pace.units_left(study, first, "generate") == 2
    assert pace.units_left(study, second, "generate") == 8
    second.set_stage("generate", "done", responses=8, seconds=8.0)
    told = study_pace(study, [second], [], "train", STAGES)
    assert told(0.0, 10) == "stage 1 of 5, run 2 of 2, study ETA 30 s"  # 10 steps at the first run's 2 s, 10 replies


def test_before_anything_is_measured_the_forecast_of_a_check_stands_and_without_one_nothing_is_said(
    study: StudyFolder,
) -> None:
    told = study_pace(study, study.runs[:1], study.runs[1:], "train", STAGES)
    assert told(0.0, 40) == "stage 1 of 5, run 1 of 2"
    for run in study.runs:
        keep_forecast(study, run, 60.0, 30.0)
    told = study_pace(study, study.runs[:1], study.runs[1:], "train", STAGES)
    assert told(0.0, 40) == "stage 1 of 5, run 1 of 2, study ETA 3 min 0 s"


def test_one_stage_alone_and_runs_trained_in_one_pass_are_named_so(study: StudyFolder) -> None:
    assert study_pace(study, study.runs, [], "train", ())(1.0, 80) == "2 of 2 runs at once, stage ETA 1 min 20 s"


JUDGES = [Judge(model=name) for name in ("first", "second")]


def test_a_judge_tells_its_stage_its_place_and_the_rest_with_the_judges_after_it(study: StudyFolder) -> None:
    told = judging_pace(0, JUDGES, 100, STAGES)
    assert told(0.0, 100) == "stage 4 of 5, judge 1 of 2"
    assert told(0.5, 20) == "stage 4 of 5, judge 1 of 2, study ETA 1 min 0 s"
    assert judging_pace(0, JUDGES[:1], 100, ())(0.5, 20) == "stage ETA 10 s"
    keep_judging(JUDGES[1], 40.0, 20)
    assert judging_pace(0, JUDGES, 100, STAGES)(0.5, 20) == "stage 4 of 5, judge 1 of 2, study ETA 3 min 30 s"
    assert judging_pace(1, JUDGES, 100, STAGES)(0.0, 30) == "stage 4 of 5, judge 2 of 2, study ETA 1 min 0 s"


def test_judges_that_have_judged_before_are_in_the_study_s_rest_and_others_make_it_a_least(
    tmp_path: Path, study: StudyFolder
) -> None:
    judged = prepare(study.study.model_copy(update={"judges": JUDGES}), tmp_path / "judged")
    for run in judged.runs:
        keep_forecast(judged, run, 60.0, 30.0)
        write_jsonl(run.ratings(40, "judge-second"), [{}] * 12)
    keep_judging(JUDGES[0], 30.0, 15)
    keep_judging(JUDGES[1], 9.0, 9)  # too few to tell
    runs = judged.runs

    def told() -> str:
        return study_pace(judged, runs[:1], runs[1:], "train", STAGES)(0.0, 40)

    assert told() == "stage 1 of 5, run 1 of 2, study ETA over 3 min 32 s"  # 16 responses at 2 s beside the forecasts
    keep_judging(JUDGES[1], 40.0, 10)
    assert told() == "stage 1 of 5, run 1 of 2, study ETA 4 min 20 s"  # and 12 at 4 s: two of each run are rated


def _counter(folder: Path, name: str, zone: str, microjoules: int, end: int = 1_000_000) -> Path:
    (folder / zone).mkdir(parents=True)
    (folder / zone / "name").write_text(f"{name}\n")
    (folder / zone / "max_energy_range_uj").write_text(f"{end}\n")
    (folder / zone / "energy_uj").write_text(f"{microjoules}\n")
    return folder / zone / "energy_uj"


def test_energy_is_what_the_counters_have_grown_also_where_one_began_anew(study: StudyFolder, tmp_path: Path) -> None:
    package = _counter(tmp_path / "cap", "package-0", "intel-rapl:0", 900_000)
    memory = _counter(tmp_path / "cap", "dram", "intel-rapl:0:1", 100_000)
    _counter(tmp_path / "cap", "psys", "intel-rapl:1", 0)
    for run in study.runs:
        run.update_manifest(device="cpu")
    with metered(study.runs, "train", tmp_path / "cap"):
        package.write_text("300000")  # 0.1 J to its end, 0.3 J from there
        memory.write_text("300000")
        for run in study.runs:
            run.set_stage("train", "done")
    stages = [run.stage("train") for run in study.runs]
    assert [stage["energy_joules"] for stage in stages] == [0.3, 0.3]
    assert stages[0]["energy_of"] == ["package-0 (intel-rapl:0)", "dram (intel-rapl:0:1)"]


def test_energy_that_nobody_counts_is_missing_with_the_reason_and_is_never_zero(
    study: StudyFolder, tmp_path: Path
) -> None:
    run = study.runs[0]
    run.update_manifest(device="cpu")
    with metered([run], "train", tmp_path / "none"):
        run.set_stage("train", "done")
    told = json.loads((run.path / "manifest.json").read_text())["stages"]["train"]
    assert told["energy_joules"] is None
    assert "no counter" in told["energy_missing"]
