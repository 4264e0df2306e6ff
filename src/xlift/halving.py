"""Successive halving: after a number of steps the worse runs are stopped, and the better ones go on.

Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization". Read from the
training logs alone, so that a study that was killed goes on with the same runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from xlift.data.prompts import margin_languages
from xlift.records import Logged, read_records
from xlift.study.runs import DEFAULT_STEPS
from xlift.study.study import Study
from xlift.workspace import RunFolder, StudyFolder


def idle_problems(study: Study) -> list[str]:
    """Why halving could not stop any of several runs: nothing is measured, or all have ended before; [] if it could."""
    tuned = [run for run in study.runs() if not run.untuned]
    if study.halving is None or len(tuned) < 2:
        return []
    swaps = any(run.swap for run in tuned)
    problems = ["halving cannot stop a run with swap, which others are trained for"] if swaps else []
    watched = study.validation.margins and margin_languages(study.prompts.languages)
    if not (watched or study.validation.responses or all(run.instructions.heldout for run in tuned)):
        problems.append("halving has nothing to compare runs by: no margins, no validation responses, no held-out data")
    last = max(math.inf if run.epochs else run.steps or DEFAULT_STEPS for run in tuned)
    if study.halving.first >= last:
        problems.append(f"halving.first ({study.halving.first}) is no earlier than the last step of all runs ({last})")
    return problems


COMPARED_BY = ("language", "margins", "heldout_loss")
"""What runs are compared by: the first that all of them have."""


def surviving(workspace: StudyFolder, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs that successive halving has not stopped; all of them where it is off."""
    out = stopped(workspace)
    return [run for run in runs if run.trained.name not in out]


def stopped(workspace: StudyFolder) -> dict[str, int]:
    """The trained runs that halving has stopped, by id, each with the step at which it was compared and lost.

    A run that failed is not among them, since it is tried again, nor is it compared when it is, and neither is one that
    was trained to its end.
    """
    halving = workspace.study.halving
    if halving is None:
        return {}
    trained = [run for run in workspace.runs if run.trains]
    going, rung = [run for run in trained if not run.has_failed("train")], halving.first
    out: dict[str, int] = {}
    while len(going) > 1:
        measured = {run.id: found for run in going if (found := measures_at(run, rung)) is not None}
        # Nobody is stopped before all have come as far: who is slow must not win by waiting.
        if len(measured) < len(going) or all(_finished_by(run, rung) for run in going):
            break
        scores = _scores(measured)
        # Of equal ones the id decides, so that the same runs survive whenever and wherever it is asked.
        ranked = sorted(going, key=lambda run: (-scores[run.id], run.id))
        best = math.ceil(len(going) / halving.factor)
        # One that is trained to its end already has cost all that it could: to stop it would spare nothing.
        out |= {run.id: rung for run in ranked[best:] if run.stage("train")["state"] != "done"}
        going, rung = ranked[:best], rung * halving.factor
    return out


class Saved(NamedTuple):
    """What halving has spared, and what it went by."""

    steps: int
    """Optimiser steps that were not made, of `planned`."""
    planned: int
    seconds: float
    """What these steps would have taken, each at the speed of its run."""
    measure: str
    """What the runs were compared by at first: one of COMPARED_BY."""
    kept_by_loss: list[str]
    """The runs, by id, that the first comparison has stopped and that held-out English loss alone would have kept."""


def saved(workspace: StudyFolder) -> Saved | None:
    """What halving has spared so far; None where it has stopped nothing."""
    halving, out = workspace.study.halving, stopped(workspace)
    trained = [run for run in workspace.runs if run.trains]
    planned = {run.id: int(run.manifest().get("planned_steps", 0)) for run in trained}
    if halving is None or not out:
        return None
    spared = {run.id: planned[run.id] - out[run.id] for run in trained if run.id in out}
    seconds = sum(spared[run.id] * _step_seconds(run) for run in trained if run.id in out)
    measured = {run.id: found for run in trained if (found := measures_at(run, halving.first)) is not None}
    losses = sorted(measured, key=lambda run: (-measured[run].get("heldout_loss", -math.inf), run))
    best = losses[: math.ceil(len(losses) / halving.factor)]
    first_out = [run for run, step in out.items() if step == halving.first]
    by_loss = [run for run in best if run in first_out and "heldout_loss" in measured[run]]
    return Saved(sum(spared.values()), sum(planned.values()), seconds, _measure(measured), by_loss)


def _step_seconds(run: RunFolder) -> float:
    """Seconds of a step, as those that the run has made took on average."""
    made = [record for record in read_records(run.train_log, Logged) if "tokens_per_second" in record]
    seconds = [one["tokens"] / one["tokens_per_second"] for one in cast("list[dict[str, float]]", made)]
    return sum(seconds) / len(seconds) if seconds else 0.0


# e.g. _measure({"a": {"margins": 0.4, "heldout_loss": -2.0}, "b": {"heldout_loss": -1.9}}) → "heldout_loss"
def _measure(measured: Mapping[str, Mapping[str, float]]) -> str:
    """The first of COMPARED_BY that all runs have that have any; "" where there is none."""
    sound = [found for found in measured.values() if found]
    return next((name for name in COMPARED_BY if all(name in found for found in sound)), "")


def _scores(measured: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By run, what all are compared by; minus infinity for runs without any measure, which never win."""
    shared = _measure(measured)
    return {run: found.get(shared, -math.inf) for run, found in measured.items()}


def measures_at(run: RunFolder, step: int) -> dict[str, float] | None:
    """What validation said of a run at a step (or at its end, where that came earlier); None before it is there.

    Means over languages of the share of replies in the right language and of the language margins, and the negative
    loss on held-out replies; {} where that loss is no number.
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
    loss = reached[0].get("heldout_loss", 0.0)
    if not _is_number(loss):
        return {}
    shares = {name: [one for one in watched.get(name, {}).values() if _is_number(one)] for name in COMPARED_BY[:2]}
    found = {name: float(sum(values) / len(values)) for name, values in shares.items() if values}
    found |= {"heldout_loss": -float(loss)} if "heldout_loss" in reached[0] else {}
    return found or None


# e.g. [_is_number(value) for value in (0.5, float("nan"), None)] → [True, False, False]
def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _finished_by(run: RunFolder, step: int) -> bool:
    return run.stage("train")["state"] == "done" and max(run.checkpoint_steps(), default=0) <= step
