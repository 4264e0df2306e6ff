"""Which runs are worked on, where, and what happens when one fails.

A run that fails is reported and does not stop the others; its traceback stays in its folder.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from xlift.disk import write_atomic
from xlift.errors import ConfigError, UserError, os_problem, raise_together
from xlift.extras import require
from xlift.hub import base_named
from xlift.pace import study_pace
from xlift.progress import around, or_told
from xlift.redaction import redacted
from xlift.study.runs import RunConfig
from xlift.study.study import Study
from xlift.workers import several_workers
from xlift.workspace import RunFolder, StudyFolder

RunWork = Callable[[StudyFolder, RunFolder, bool], None]
SharedWork = Callable[[StudyFolder, list[RunFolder], bool], Mapping[str, UserError]]
"""Work on several runs in one; by run, what went wrong."""
RETRIES = 2
"""How often Ray begins a task again whose process or machine was lost; it goes on from the run's last checkpoint."""
Ended = tuple[RunFolder, UserError | None]
Alike = Callable[[RunConfig], object]


def each_run(
    workspace: StudyFolder,
    runs: Iterable[RunFolder],
    stage: str,
    offline: bool,
    work: RunWork,
    shared: SharedWork | None = None,
    alike: Alike | None = None,
    stages: Sequence[str] = (),
) -> None:
    """Do one stage's work on every run, by `shared` on those for which `alike` is the same and not None (where it is
    not given: those that can be trained together); `stages` are all that are gone through, where they are several.

    Raises UserError with the problems of all runs that failed.
    """
    # Rating is quick and wants no GPU: it stays here.
    spread = workspace.study.executor == "ray" and stage in {"train", "generate"}
    given = (workspace, list(runs), stage, offline, work)
    together = None if several_workers() else shared
    outcomes = _on_ray(*given) if spread else _here(*given, together, alike or _alike, stages)
    failures: list[UserError] = []
    for run, error in outcomes:
        if error:
            or_told(partial(run.set_stage, stage, "failed", problems=error.problems), None)
            failures.append(UserError([f"{stage} {run.label}: {one}" for one in error.problems], error.hint))
    raise_together(failures)


def _here(
    workspace: StudyFolder,
    runs: list[RunFolder],
    stage: str,
    offline: bool,
    work: RunWork,
    shared: SharedWork | None,
    alike: Alike,
    stages: Sequence[str],
) -> Iterator[Ended]:
    groups = groups_of(runs, alike) if shared else [[run] for run in runs]
    for number, group in enumerate(groups):
        after = [run for others in groups[number + 1 :] for run in others]
        with around(study_pace(workspace, group, after, stage, stages)):
            if shared and len(group) > 1:
                ended = _shared(shared, workspace, group, stage, offline)
            else:
                ended = [(group[0], _attempt(work, workspace, group[0], stage, offline))]
        yield from ended


def groups_of(runs: Iterable[RunFolder], alike: Alike | None = None) -> list[list[RunFolder]]:
    """Runs in groups that are alike, that can be trained in one pass for instance, in the order of their first."""
    found: dict[object, list[RunFolder]] = {}
    for run in runs:
        found.setdefault((alike or _alike)(run.config) or run.id, []).append(run)
    return list(found.values())


def of_one_base(config: RunConfig) -> tuple[object, ...] | None:
    """Runs of the same value answer with the weights of one base; None for one that answers with its own."""
    if config.untuned and not config.remote:
        return base_named(Path(config.model))
    if config.adaptation.method != "lora" or config.swap:
        return None
    return config.model, config.revision, config.model_sha256


# e.g. _alike(RunConfig(seed=1, learning_rate=1e-3)) == _alike(RunConfig()) → True
# e.g. _alike(RunConfig(packing=False)) → None
def _alike(config: RunConfig) -> tuple[object, ...] | None:
    """Runs of the same value can be trained together; None for one that is trained alone."""
    own = config.adaptation
    apart = config.gradient_checkpointing or config.preference or config.swap or own.quantized or config.fp8
    if own.method != "lora" or not config.packing or apart:
        return None
    targets = own.targets if isinstance(own.targets, str) else tuple(own.targets)
    base = (config.model, config.revision, config.model_sha256)
    return *base, own.rank, targets, config.micro_batch_tokens


def _shared(work: SharedWork, workspace: StudyFolder, group: list[RunFolder], stage: str, offline: bool) -> list[Ended]:
    """Work on several runs in one; what is wrong with all of them is told of each that has not come to its end."""
    failed: dict[str, UserError] = {}

    def all_of_them(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
        failed.update(work(workspace, group, offline))

    try:
        whole = _attempt(all_of_them, workspace, group[0], stage, offline)
    except KeyboardInterrupt:
        for run in group[1:]:
            or_told(partial(run.set_stage, stage, "interrupted"), None)
        raise
    return [
        (run, None if whole and run.stage(stage)["state"] == "done" else failed.get(run.id, whole)) for run in group
    ]


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
    task = ray.remote(**task_resources(workspace.study, ray.cluster_resources()), max_retries=RETRIES)(_attempt)
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


# e.g. task_resources(Study(name="s"), {"GPU": 4}) → {"num_cpus": 1, "num_gpus": 1}
# e.g. task_resources(Study(name="s", device="cpu"), {"GPU": 4}) → {"num_cpus": 1, "num_gpus": 0}
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
