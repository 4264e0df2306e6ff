"""Successive halving: after a number of steps the worse runs are stopped, and the better ones go on.

Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization". Read from the
training logs alone, so that a study that was killed goes on with the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from xlift.data.prompts import margin_languages
from xlift.records import Logged, read_records
from xlift.study.settings import DEFAULT_STEPS
from xlift.study.study import Study
from xlift.workspace import RunFolder, StudyFolder


def idle_problems(study: Study) -> list[str]:
    """Why halving could not stop any of several runs: nothing is measured, or all have ended before; [] if it could."""
    tuned = [run for run in study.runs() if not run.untuned]
    if study.halving is None or len(tuned) < 2:
        return []
    problems = []
    watched = study.validation.margins and margin_languages(study.prompts.languages)
    if not (watched or study.validation.responses or all(run.instructions.heldout for run in tuned)):
        problems.append("halving has nothing to compare runs by: no margins, no validation responses, no held-out data")
    last = max(math.inf if run.epochs else run.steps or DEFAULT_STEPS for run in tuned)
    if study.halving.first >= last:
        problems.append(f"halving.first ({study.halving.first}) is no earlier than the last step of all runs ({last})")
    return problems


def surviving(workspace: StudyFolder, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs that successive halving has not stopped; all of them where it is off."""
    out = stopped(workspace)
    return [run for run in runs if run.trained.name not in out]


def stopped(workspace: StudyFolder) -> dict[str, int]:
    """The trained runs that halving has stopped, by id, each with the step at which it was compared and lost.

    A run that failed is not among them, since it is tried again, and neither is one that was trained to its end.
    """
    halving = workspace.study.halving
    if halving is None:
        return {}
    trained = [run for run in workspace.runs if run.trains]
    going, rung = [run for run in trained if run.stage("train")["state"] != "failed"], halving.first
    out: dict[str, int] = {}
    while len(going) > 1:
        scores = {run.id: score for run in going if (score := score_at(run, rung)) is not None}
        if len(scores) < len(going) or all(_finished_by(run, rung) for run in going):
            break
        ranked = sorted(going, key=lambda run: (-scores[run.id], run.id))
        best = math.ceil(len(going) / halving.factor)
        out |= {run.id: rung for run in ranked[best:] if run.stage("train")["state"] != "done"}
        going, rung = ranked[:best], rung * halving.factor
    return out


def score_at(run: RunFolder, step: int) -> float | None:
    """The validation measure of a run at a step (or at its end, where that came earlier); None before it is there.

    The mean over languages of the share of replies in the right language, else of the language margins, else the
    negative loss on held-out replies; minus infinity where that loss is no number, so that a broken run never wins.
    """
    records = [
        record for record in read_records(run.train_log, Logged) if "heldout_loss" in record or "validation" in record
    ]
    reached = [record for record in records if record["step"] == step]
    if not reached and _finished_by(run, step):
        reached = records[-1:]
    if not reached:
        return None
    watched = reached[0].get("validation", {})
    if "heldout_loss" in reached[0] and not _is_number(reached[0]["heldout_loss"]):
        return -math.inf
    for name in ("language", "margins"):
        shares = [value for value in watched.get(name, {}).values() if _is_number(value)]
        if shares:
            return float(sum(shares) / len(shares))
    return -float(reached[0]["heldout_loss"]) if "heldout_loss" in reached[0] else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _finished_by(run: RunFolder, step: int) -> bool:
    return run.stage("train")["state"] == "done" and max(run.checkpoint_steps(), default=0) <= step
