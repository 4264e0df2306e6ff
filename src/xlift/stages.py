"""The stages of a study in order: each reads files, writes files, and does only what is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from xlift.data.instructions import load_instructions
from xlift.data.prompts import load_prompts, margin_languages
from xlift.errors import UserError, raise_together
from xlift.executors import each_run
from xlift.halving import surviving
from xlift.models import kept_base
from xlift.planning.pending import say_pending
from xlift.progress import say
from xlift.rating import in_scope, rate, signature_of, text_fingerprint
from xlift.records import Conversation, JsonlWriter, write_jsonl
from xlift.results import rateable, responses_of, study_prompts
from xlift.study.settings import Instructions, Judge
from xlift.study.study import Study
from xlift.watch import validation_prompts, watcher
from xlift.workspace import (
    RunFolder,
    StudyFolder,
    create_study,
    current_ratings,
    environment,
    first_worker,
    is_created,
    locked,
    open_study,
)


def run_study(study: Study, folder: Path | None = None, offline: bool = False) -> StudyFolder:
    """Every stage in order. Called again, it continues; what is done is left as it is.

    A run that fails is reported at the end (UserError) and does not stop the others.
    """
    if first_worker():
        say_pending(open_study(study, folder))
    workspace = prepare(study, folder)
    with locked(workspace.path):
        stages = (train_stage, generate_stage, rate_stage, judge_stage)
        failures = [error for stage in stages for error in _failures(stage, workspace, offline)]
        report_stage(workspace, offline)
        raise_together(failures)
    return workspace


def _failures(work: Callable[..., None], *arguments: Any) -> list[UserError]:
    """What went wrong, with the rest done."""
    try:
        work(*arguments)
    except UserError as error:
        return [error]
    return []


def prepare(study: Study, folder: Path | None = None) -> StudyFolder:
    """Check the prompts and write down what the study consists of, unless it is written down already.

    Raises ConfigError where that would change a study that another process is working on.
    """
    workspace = open_study(study, folder)
    prompts = load_prompts(study.prompts)
    if first_worker() and not is_created(workspace, prompts):
        with locked(workspace.path):
            write_jsonl(workspace.prompts, prompts)
            create_study(workspace)
    return workspace


def train_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Train every run of the grid that is not trained yet."""
    runs = [run for run in workspace.runs if run.trains]
    halving = workspace.study.halving
    failures: list[UserError] = []
    until = halving.first if halving else None
    while halving and until and len(going := _unfinished(surviving(workspace, runs))) > 1:
        failures += _failures(each_run, workspace, going, "train", offline, partial(_train, until=until))
        until *= halving.factor
    failures += _failures(each_run, workspace, _unfinished(surviving(workspace, runs)), "train", offline, _train)
    raise_together(failures)


def _unfinished(runs: list[RunFolder]) -> list[RunFolder]:
    return [run for run in runs if run.stage("train")["state"] != "done" or not run.checkpoint_steps()]


def _train(workspace: StudyFolder, run: RunFolder, offline: bool, until: int | None = None) -> None:
    from xlift.models import locate, place
    from xlift.tuning.train import Watching, train

    train_set, heldout = _instructions(run.config.instructions.model_dump_json(), offline)
    base = locate(run.config.model, _revision(workspace, run), offline)
    placement = place(workspace.study.device, workspace.study.dtype)
    if first_worker():
        say(f"{run.label}: {placement.device} {placement.dtype} ({placement.why})")
    run.update_manifest(base=base.facts, device=placement.device, dtype=placement.dtype, **environment())
    run.set_stage("train", "running")
    study = workspace.study
    languages = margin_languages(study.prompts.languages)
    watch = watcher(study.validation, study.decoding, validation_prompts(study_prompts(workspace)), languages)
    watching = Watching(watch, study.validation.every, study.tracking, study.name)
    train(run, base, placement, train_set, heldout, watching, until)


@lru_cache(maxsize=2)
def _instructions(settings: str, offline: bool) -> tuple[list[Conversation], list[Conversation]]:
    """Runs on the same data read it once."""
    return load_instructions(Instructions.model_validate_json(settings), offline)


def _revision(workspace: StudyFolder, run: RunFolder) -> str | None:
    """The revision of the base model: the commit that the study has begun with, so that a moving branch stays still."""
    asked = (run.config.model, run.config.revision)
    alike = [other for other in workspace.runs if (other.config.model, other.config.revision) == asked]
    pins = [one.pinned_revision for one in (run, *alike)]
    return next((pin for pin in pins if pin), run.config.revision)


def generate_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Let every run answer every prompt that it has not answered yet. Of several workers, the first does it."""
    if first_worker():
        try:
            each_run(workspace, surviving(workspace, workspace.runs), "generate", offline, _generate)
        finally:
            # What comes next, a judge on the same GPU for instance, may want the room.
            kept_base.cache_clear()


def _generate(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
    decoding = workspace.study.decoding
    prompts = study_prompts(workspace)
    steps = run.evaluated_steps(decoding.checkpoints)
    if _trained_by(workspace, run).stage("train")["state"] == "failed":
        return
    if not steps:
        there = ", ".join(map(str, run.checkpoint_steps()))
        problem = f"none of the steps of decoding.checkpoints has a checkpoint; there are: {there}"
        raise UserError(problem if there else "no checkpoint to generate from", "xlift train makes it")
    languages = margin_languages(workspace.study.prompts.languages)
    unmeasured = [step for step in steps if languages and run.margins_of(step, languages) is None]
    if not unmeasured and all(len(responses_of(workspace, run, step)) == len(prompts) for step in steps):
        if run.stage("generate")["state"] != "done":
            run.set_stage("generate", "done")
        return
    from xlift.generation.responses import answer_checkpoint
    from xlift.models import locate, place

    base = locate(run.config.model, _revision(workspace, run), offline)
    placement = place(workspace.study.device, workspace.study.dtype)
    if not run.trains:
        run.update_manifest(base=base.facts, device=placement.device, dtype=placement.dtype, **environment())
    run.set_stage("generate", "running")
    started = time.monotonic()
    made = sum(answer_checkpoint(run, step, base, placement, prompts, decoding, languages) for step in steps)
    run.set_stage("generate", "done", responses=made, seconds=round(time.monotonic() - started, 1))


def _trained_by(workspace: StudyFolder, run: RunFolder) -> RunFolder:
    return next(other for other in workspace.runs if other.path == run.trained)


def rate_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Rate every response that has no rating with the rater's current signature. The first worker does it."""
    if first_worker():
        each_run(workspace, surviving(workspace, workspace.runs), "rate", offline, _rate)


def _rate(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
    made = seen = 0
    for step in run.evaluated_steps(workspace.study.decoding.checkpoints):
        responses = rateable(workspace, run, step)
        seen += len(responses)
        for name in workspace.study.raters:
            done = current_ratings(run, step, name, signature_of(name))
            keys = [(response["id"], text_fingerprint(response)) for response in responses]
            wanted = [one for one, key in zip(responses, keys, strict=True) if key not in done and in_scope(one, name)]
            if not wanted:
                continue
            with JsonlWriter(run.ratings(step, name)) as log:
                for response in wanted:
                    log.write(rate(response, name))
            made += len(wanted)
    if made or (seen and run.stage("rate")["state"] != "done"):
        run.set_stage("rate", "done", ratings=made)


def judge_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Let the study's judges rate what they have not rated yet. The first worker does it."""
    if not workspace.study.judges or not first_worker():
        return
    failures = [error for judge in workspace.study.judges for error in _failures(_judge, workspace, judge)]
    raise_together(failures)


def _judge(workspace: StudyFolder, judge: Judge) -> None:
    from xlift.judging.command import judge_with
    from xlift.judging.ratings import outcome_text

    say(outcome_text(judge_with(workspace, judge), judge))


def report_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Write the report from whatever responses and ratings there are. The first worker does it."""
    if first_worker():
        from xlift.report.page import write_report

        write_report(workspace)
