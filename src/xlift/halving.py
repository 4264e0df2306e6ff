"""Successive halving: which runs go on. Read from the training logs alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xlift.records import read_records
from xlift.study.settings import Halving
from xlift.workspace import RunFolder, StudyFolder


def surviving(workspace: StudyFolder, runs: Sequence[RunFolder]) -> list[RunFolder]:
    """The runs that successive halving has not stopped; all of them where it is off.

    Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization". Read from the
    training logs alone, so that a study that was killed goes on with the same runs.
    """
    halving = workspace.study.halving
    if halving is None:
        return list(runs)
    alive = {run.path for run in _alive(halving, [run for run in workspace.runs if run.trains])}
    return [run for run in runs if run.config.untuned or run.trained in alive]


def _alive(halving: Halving, trained: list[RunFolder]) -> list[RunFolder]:
    alive, rung = [run for run in trained if run.stage("train")["state"] != "failed"], halving.first
    while len(alive) > 1:
        scores = {run.id: score_at(run, rung) for run in alive}
        known = {run: score for run, score in scores.items() if score is not None}
        if len(known) < len(alive) or all(_finished_by(run, rung) for run in alive):
            break
        alive = sorted(alive, key=lambda run: (-known[run.id], run.id))[: math.ceil(len(alive) / halving.factor)]
        rung *= halving.factor
    return alive


def score_at(run: RunFolder, step: int) -> float | None:
    """The validation measure of a run at a step (or at its end, where that came earlier); None before it is there.

    The mean over languages of the share of replies in the right language, else of the language margins, else the
    negative loss on held-out replies.
    """
    records = [record for record in read_records(run.train_log) if "heldout_loss" in record or "validation" in record]
    reached = [record for record in records if record["step"] == step]
    if not reached and _finished_by(run, step):
        reached = records[-1:]
    if not reached:
        return None
    watched = reached[0].get("validation", {})
    for name in ("language", "margins"):
        shares = [value for value in watched.get(name, {}).values() if value is not None]
        if shares:
            return float(sum(shares) / len(shares))
    loss = reached[0].get("heldout_loss")
    return None if loss is None else -float(loss)


def _finished_by(run: RunFolder, step: int) -> bool:
    return run.stage("train")["state"] == "done" and max(run.checkpoint_steps(), default=0) <= step
