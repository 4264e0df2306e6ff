"""How long the rest of a study takes: by the speed of what runs now, of what is done, or else by `xlift check`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from xlift.disk import write_atomic
from xlift.hub import cache_dir
from xlift.progress import duration
from xlift.records import fingerprint
from xlift.study.runs import DEFAULT_STEPS
from xlift.study.served import Judge
from xlift.workspace import RunFolder, StudyFolder

STAGES = ("train", "generate", "rate", "judge", "report")
UNHURRIED = ("train", "generate")
"""Stages whose time `xlift check` measures; rating and the report take seconds, a judge as long as it has before."""
JUDGED_ENOUGH = 10
"""Responses that tell how quick a judge is."""
WholeTold = Callable[[float, float], str]
"""What is told of the whole, from the seconds that a unit (a step, a reply) takes now and the units left on the bar."""


# e.g. place_of("rate", STAGES) → "stage 3 of 5"
def place_of(stage: str, stages: Sequence[str]) -> str:
    return f"stage {stages.index(stage) + 1} of {len(stages)}"


def study_pace(
    workspace: StudyFolder, group: Sequence[RunFolder], after: Sequence[RunFolder], stage: str, stages: Sequence[str]
) -> WholeTold:
    """What stands beside the progress of a group of runs, with `after` still to come in this stage."""
    runs = workspace.runs
    places = [place_of(stage, stages)] if stages else []
    if len(runs) > 1:
        of = f"of {len(runs)}"
        places.append(f"run {runs.index(group[0]) + 1} {of}" if len(group) == 1 else f"{len(group)} {of} runs at once")
    later = [name for name in stages[stages.index(stage) + 1 :] if name in UNHURRIED] if stages else []
    whole = ", ".join(places)

    @cache
    def ahead() -> tuple[float | None, list[tuple[RunFolder, float | None]], list[float | None]]:
        units = [(run, units_left(workspace, run, stage)) for run in after]
        judging = [_judging_seconds(workspace, judge) for judge in workspace.study.judges if stages]
        return _speed(workspace, stage), units, [*(_stage_seconds(workspace, name) for name in later), *judging]

    def told(unit_seconds: float, left: float) -> str:
        before, others, then = ahead()
        speed = unit_seconds or before
        # Of a run's checkpoints the bar shows one.
        own = sum(units_left(workspace, run, stage) or 0 for run in group) if stage == "generate" else left
        now = [own * speed] if speed else [_forecast_of(workspace, run, stage) for run in group]
        seconds = [*now, *(_seconds(workspace, run, stage, units, speed) for run, units in others), *then]
        # Of a single run alone the bar itself says when it ends.
        known = sum(one for one in seconds if one is not None) if places else 0.0
        least = "over " if None in seconds else ""
        return f"{whole}, {'study' if stages else 'stage'} ETA {least}{duration(known)}" if known else whole

    return told


def judging_pace(place: int, judges: Sequence[Judge], each: int, stages: Sequence[str]) -> WholeTold:
    """What stands beside a judge's progress; those that come after it, with `each` responses, are taken to be as quick
    as they were before, or else as this one.

    The report takes seconds.
    """
    places = [place_of("judge", stages)] if stages else []
    whole = ", ".join([*places, *([f"judge {place + 1} of {len(judges)}"] if len(judges) > 1 else [])])
    before = [judged_before(judge) for judge in judges[place:]]

    def told(unit_seconds: float, left: float) -> str:
        speed = unit_seconds or before[0] or 0.0
        seconds = speed * left + sum(each * (one or speed) for one in before[1:]) if speed else 0.0
        parts = [whole, f"{'study' if stages else 'stage'} ETA {duration(seconds)}" if seconds else ""]
        return ", ".join(part for part in parts if part)

    return told


def _stage_seconds(workspace: StudyFolder, stage: str) -> float | None:
    speed = _speed(workspace, stage)
    each = [_seconds(workspace, run, stage, units_left(workspace, run, stage), speed) for run in workspace.runs]
    return None if None in each else sum(one for one in each if one is not None)


def _seconds(
    workspace: StudyFolder, run: RunFolder, stage: str, units: float | None, speed: float | None
) -> float | None:
    """Seconds that a run still takes in a stage; None where nobody knows."""
    if units == 0:
        return 0.0
    if speed is not None and units is not None:
        return units * speed
    return _forecast_of(workspace, run, stage)


def units_left(workspace: StudyFolder, run: RunFolder, stage: str) -> float | None:
    """Steps or replies that a run still has to make; None where its steps hang on data that nobody has looked at."""
    if stage == "train":
        if not run.trains or run.config.swap or run.stage("train")["state"] == "done":
            return 0
        steps = _steps(workspace, run)
        return None if steps is None else max(0, steps - max(run.checkpoint_steps(), default=0))
    asked = _lines(workspace.prompts) * _answering(workspace, run)
    return max(0, asked - answers_there([run]))


def answers_there(runs: Sequence[RunFolder]) -> int:
    """How many replies some runs have made."""
    return sum(_lines(path) for run in runs for path in (run.path / "responses").glob("step-*.jsonl"))


def _steps(workspace: StudyFolder, run: RunFolder) -> int | None:
    """Steps of a run: as set, as planned, or as another run with the same data has planned."""
    config = run.config
    if not config.epochs:
        return config.steps or DEFAULT_STEPS
    alike = [one for one in workspace.runs if _pass(one) == _pass(run)]
    return next((found for one in (run, *alike) if (found := one.manifest().get("planned_steps"))), None)


def _pass(run: RunFolder) -> tuple[Any, ...]:
    config = run.config
    return config.instructions.model_dump_json(), config.epochs, config.max_length, config.batch_tokens


def _answering(workspace: StudyFolder, run: RunFolder) -> int:
    """How many checkpoints of a run answer the prompts."""
    wanted = workspace.study.decoding.checkpoints
    if run.config.untuned or wanted == "last":
        return 1
    steps = _steps(workspace, run) or 1
    return -(-steps // run.config.checkpoint_every) if wanted == "all" else len([one for one in wanted if one <= steps])


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _speed(workspace: StudyFolder, stage: str) -> float | None:
    """Seconds a unit, over the runs of a study that have come through a stage."""
    stages = [run.stage(stage) for run in workspace.runs]
    made = [(one["seconds"], one.get("steps") or one.get("responses")) for one in stages if one.get("seconds")]
    units = sum(count for _, count in made if count)
    return sum(seconds for seconds, count in made if count) / units if units else None


def keep_forecast(workspace: StudyFolder, run: RunFolder, training: float, answering: float) -> None:
    """Keep what `xlift check` has measured, for the first minutes of the study."""
    path = _forecast_file(workspace, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({"train": training, "generate": answering}))


def keep_judging(judge: Judge, seconds: float, responses: int) -> None:
    """Keep how quick a judge was, for what it judges next; not of few responses, nor of a batch, which waits."""
    if responses >= JUDGED_ENOUGH and not judge.batch:
        path = _judging_file(judge)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"seconds": seconds / responses}))


def judged_before(judge: Judge) -> float | None:
    """Seconds that a response has taken a judge; None where it has not judged yet."""
    path = _judging_file(judge)
    return float(json.loads(path.read_text(encoding="utf-8"))["seconds"]) if path.is_file() else None


def _judging_seconds(workspace: StudyFolder, judge: Judge) -> float | None:
    speed, asked = judged_before(judge), _lines(workspace.prompts)
    files = (one for run in workspace.runs for one in run.path.glob(f"ratings/step-*.judge-{judge.label}.jsonl"))
    made = sum(map(_lines, files))
    left = sum(asked * _answering(workspace, run) for run in workspace.runs) - made // len(judge.facets)
    return None if speed is None else speed * max(0, left)


def _judging_file(judge: Judge) -> Path:
    asked = (judge.model, judge.base_url, judge.calls, judge.facets, judge.concurrency)
    return cache_dir() / "forecasts" / fingerprint("judge", *asked, length=32)


def _forecast_of(workspace: StudyFolder, run: RunFolder, stage: str) -> float | None:
    path = _forecast_file(workspace, run)
    return float(json.loads(path.read_text(encoding="utf-8"))[stage]) if path.is_file() else None


def _forecast_file(workspace: StudyFolder, run: RunFolder) -> Path:
    study = workspace.study
    asked = (study.prompts.model_dump_json(), study.decoding.model_dump_json(), study.device, study.dtype)
    return cache_dir() / "forecasts" / fingerprint(run.config.content_hash, *asked, length=32)
