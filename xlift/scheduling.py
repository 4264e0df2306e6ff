"""Which runs are worked on, where, and what happens when one fails.

A run that fails is reported and does not stop the others; its traceback stays in its folder.
"""

from __future__ import annotations

import importlib.util
import math
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from xlift.errors import ConfigError, UserError, raise_together
from xlift.records import read_records, write_atomic
from xlift.settings import Halving
from xlift.workspace import RunFolder, StudyFolder

Work = Callable[[StudyFolder, RunFolder, bool], None]
Outcome = tuple[RunFolder, UserError | None]


def each_run(workspace: StudyFolder, runs: Iterable[RunFolder], stage: str, offline: bool, work: Work) -> None:
    """Do one stage's work on every run. Raises UserError with the problems of all runs that failed."""
    # Rating is quick and wants no GPU: it stays here.
    spread = workspace.study.executor == "ray" and stage in {"train", "generate"}
    outcomes = (_on_ray if spread else _here)(workspace, list(runs), stage, offline, work)
    failures: list[UserError] = []
    for run, error in outcomes:
        if error:
            run.set_stage(stage, "failed", problems=error.problems)
            failures.append(UserError([f"{stage} {run.label}: {one}" for one in error.problems], error.hint))
    raise_together(failures)


def _here(workspace: StudyFolder, runs: list[RunFolder], stage: str, offline: bool, work: Work) -> Iterator[Outcome]:
    for run in runs:
        yield run, _attempt(work, workspace, run, stage, offline)


def _attempt(work: Work, workspace: StudyFolder, run: RunFolder, stage: str, offline: bool) -> UserError | None:
    """Work on one run; what went wrong, if anything did."""
    log = run.path / f"error-{stage}.txt"
    try:
        work(workspace, run, offline)
    except UserError as error:
        return error
    except Exception as error:
        write_atomic(log, traceback.format_exc())
        return UserError(f"{type(error).__name__}: {error} (in full: {log})", "mend it and run again: the rest is kept")
    log.unlink(missing_ok=True)
    return None


def _on_ray(workspace: StudyFolder, runs: list[RunFolder], stage: str, offline: bool, work: Work) -> Iterator[Outcome]:
    """One task a run, each with the resources it asks for; yielded as they end."""
    ray = _connected(workspace)
    settings = workspace.study.ray
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if workspace.study.device in {"auto", "cuda"} and ray.cluster_resources().get("GPU") else 0
    task = ray.remote(num_cpus=settings.cpus, num_gpus=gpus, max_retries=0)(_attempt)
    # Workers have a working directory of their own.
    absolute = {run.path: _absolute_run(run) for run in workspace.runs}
    whole = replace(workspace, path=workspace.path.resolve(), runs=tuple(absolute.values()))
    waiting = {task.remote(work, whole, absolute[run.path], stage, offline): run for run in runs}
    while waiting:
        ended, _ = ray.wait(list(waiting), num_returns=1)
        run = waiting.pop(ended[0])
        try:
            yield run, ray.get(ended[0])
        except ray.exceptions.RayError as error:
            yield run, UserError(f"the Ray task was lost: {error}", "run again: what is done is kept")


def _absolute_run(run: RunFolder) -> RunFolder:
    return replace(run, path=run.path.resolve(), trained=run.trained.resolve())


def _connected(workspace: StudyFolder) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("executor: ray is not installed", "pip install 'xlift[ray]', or set executor to local")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=workspace.study.ray.address, include_dashboard=False, log_to_driver=True)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"ray.address: {error}", "ray start --head starts a cluster on this machine") from None
    return ray


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
