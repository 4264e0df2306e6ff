"""Which runs are worked on, where, and what happens when one fails.

A run that fails is reported and does not stop the others; its traceback stays in its folder.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from xlift.disk import write_atomic
from xlift.errors import ConfigError, UserError, os_problem, raise_together
from xlift.extras import require
from xlift.progress import or_told
from xlift.redaction import redacted
from xlift.study.study import Study
from xlift.workers import several_workers
from xlift.workspace import RunFolder, StudyFolder

RunWork = Callable[[StudyFolder, RunFolder, bool], None]
Ended = tuple[RunFolder, UserError | None]


def each_run(workspace: StudyFolder, runs: Iterable[RunFolder], stage: str, offline: bool, work: RunWork) -> None:
    """Do one stage's work on every run. Raises UserError with the problems of all runs that failed."""
    # Rating is quick and wants no GPU: it stays here.
    spread = workspace.study.executor == "ray" and stage in {"train", "generate"}
    outcomes = (_on_ray if spread else _here)(workspace, list(runs), stage, offline, work)
    failures: list[UserError] = []
    for run, error in outcomes:
        if error:
            or_told(partial(run.set_stage, stage, "failed", problems=error.problems), None)
            failures.append(UserError([f"{stage} {run.label}: {one}" for one in error.problems], error.hint))
    raise_together(failures)


def _here(workspace: StudyFolder, runs: list[RunFolder], stage: str, offline: bool, work: RunWork) -> Iterator[Ended]:
    for run in runs:
        yield run, _attempt(work, workspace, run, stage, offline)


def _attempt(work: RunWork, workspace: StudyFolder, run: RunFolder, stage: str, offline: bool) -> UserError | None:
    """Work on one run; what went wrong, if anything did."""
    log = run.path / f"error-{stage}.txt"
    try:
        work(workspace, run, offline)
    except UserError as error:
        return error
    except KeyboardInterrupt:
        or_told(partial(run.set_stage, stage, "interrupted"), None)
        raise
    except Exception as error:
        or_told(partial(write_atomic, log, redacted(traceback.format_exc())), None)
        if several_workers():
            # The others wait for this one: only its end ends them.
            raise
        found = os_problem(error) if isinstance(error, OSError) else UserError(f"{type(error).__name__}: {error}")
        hint = found.hint or "mend it and run again: the rest is kept"
        return UserError([f"{one} (in full: {log})" for one in found.problems], hint)
    log.unlink(missing_ok=True)
    return None


def _on_ray(workspace: StudyFolder, runs: list[RunFolder], stage: str, offline: bool, work: RunWork) -> Iterator[Ended]:
    """One task a run, each with the resources it asks for; yielded as they end."""
    ray = _connected(workspace)
    task = ray.remote(**task_resources(workspace.study, ray.cluster_resources()), max_retries=0)(_attempt)
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


def task_resources(study: Study, there: Mapping[str, float]) -> dict[str, float]:
    """What a run's task asks for, as Ray names it; `there` is what the cluster has."""
    gpus = study.ray.gpus
    if gpus is None:
        gpus = 1 if study.device in {"auto", "cuda"} and there.get("GPU") else 0
    return {"num_cpus": study.ray.cpus, "num_gpus": gpus}


def _absolute_run(run: RunFolder) -> RunFolder:
    return replace(run, path=run.path.resolve(), trained=run.trained.resolve())


def _connected(workspace: StudyFolder) -> Any:
    require("ray")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=workspace.study.ray.address, include_dashboard=False, log_to_driver=True)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(f"ray.address: {error}", "ray start --head starts a cluster on this machine") from None
    return ray
