"""The stages of a study in order: each reads files, writes files, and does only what is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

from xlift.data.instructions import load_instructions
from xlift.data.prompts import load_prompts, margin_languages
from xlift.errors import UserError
from xlift.progress import say
from xlift.rating import in_scope, rate, signature_of, text_fingerprint
from xlift.records import (
    JsonlWriter,
    Prompt,
    Rating,
    Response,
    read_records,
    response_signatures,
    write_jsonl,
)
from xlift.study import Study
from xlift.workspace import (
    RunFolder,
    StudyFolder,
    create_study,
    current_ratings,
    current_responses,
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
    workspace = prepare(study, folder)
    with locked(workspace.path):
        failures = [
            error for stage in (train_stage, generate_stage, rate_stage) if (error := _try(stage, workspace, offline))
        ]
        report_stage(workspace, offline)
        if failures:
            hints = [error.hint for error in failures if error.hint]
            raise UserError([problem for error in failures for problem in error.problems], hints[0] if hints else None)
    return workspace


def _try(stage: Callable[[StudyFolder, bool], None], workspace: StudyFolder, offline: bool) -> UserError | None:
    try:
        stage(workspace, offline)
    except UserError as error:
        return error
    return None


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
    _each_run(workspace, [run for run in workspace.runs if not run.config.untuned], "train", offline, _train)


def _train(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
    if run.stage("train")["state"] == "done" and run.checkpoint_steps():
        return
    train_set, heldout = load_instructions(run.config.instructions, offline)
    from xlift.models import locate, place
    from xlift.tuning.train import train

    base = locate(run.config.model, _revision(workspace, run), offline)
    placement = place(workspace.study.device, workspace.study.dtype)
    if first_worker():
        say(f"{run.label}: {placement.device} {placement.dtype} ({placement.why})")
    run.update_manifest(base=base.facts, device=placement.device, dtype=placement.dtype, **environment())
    run.set_stage("train", "running")
    train(run, base, placement, train_set, heldout)


def _revision(workspace: StudyFolder, run: RunFolder) -> str | None:
    """The revision of the base model: the commit that the study has begun with, so that a moving branch stays still."""
    asked = (run.config.model, run.config.revision)
    alike = [other for other in workspace.runs if (other.config.model, other.config.revision) == asked]
    pins = [one.pinned_revision for one in (run, *alike)]
    return next((pin for pin in pins if pin), run.config.revision)


def generate_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Let every run answer every prompt that it has not answered yet. Of several workers, the first does it."""
    if first_worker():
        _each_run(workspace, workspace.runs, "generate", offline, _generate)


def _generate(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
    decoding = workspace.study.decoding
    prompts = study_prompts(workspace)
    steps = run.evaluated_steps(decoding.checkpoints == "all")
    if run.stage("train")["state"] == "failed":
        return
    if not steps:
        raise UserError("no checkpoint to generate from", "xlift train makes it")
    languages = margin_languages(workspace.study.prompts.languages)
    unmeasured = [step for step in steps if languages and run.margins_of(step, languages) is None]
    if not unmeasured and all(len(responses_of(workspace, run, step)) == len(prompts) for step in steps):
        if run.stage("generate")["state"] != "done":
            run.set_stage("generate", "done")
        return
    from xlift.generation.responses import answer_prompts, measure_margins
    from xlift.models import locate, place

    base = locate(run.config.model, _revision(workspace, run), offline)
    placement = place(workspace.study.device, workspace.study.dtype)
    if run.config.untuned:
        run.update_manifest(base=base.facts, device=placement.device, dtype=placement.dtype, **environment())
    run.set_stage("generate", "running")
    started = time.monotonic()
    for step in unmeasured:
        measure_margins(run, step, base, placement, languages)
    made = sum(answer_prompts(run, step, base, placement, prompts, decoding) for step in steps)
    run.set_stage("generate", "done", responses=made, seconds=round(time.monotonic() - started, 1))


def rate_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Rate every response that has no rating with the rater's current signature. The first worker does it."""
    if first_worker():
        _each_run(workspace, workspace.runs, "rate", offline, _rate)


def _rate(workspace: StudyFolder, run: RunFolder, offline: bool) -> None:
    made = seen = 0
    for step in run.evaluated_steps(workspace.study.decoding.checkpoints == "all"):
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


def report_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Write the report from whatever responses and ratings there are. The first worker does it."""
    if first_worker():
        from xlift.report.page import write_report

        write_report(workspace)


def _each_run(
    workspace: StudyFolder,
    runs: Iterable[RunFolder],
    stage: str,
    offline: bool,
    work: Callable[[StudyFolder, RunFolder, bool], None],
) -> None:
    problems: list[str] = []
    hints: list[str] = []
    for run in runs:
        try:
            work(workspace, run, offline)
        except UserError as error:
            run.set_stage(stage, "failed", problems=error.problems)
            problems += [f"{stage} {run.label}: {problem}" for problem in error.problems]
            hints += [error.hint] if error.hint else []
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hints[0] if hints else None)


def study_prompts(workspace: StudyFolder) -> list[Prompt]:
    """The study's prompts as written down."""
    return [cast(Prompt, record) for record in read_records(workspace.prompts)]


def responses_of(workspace: StudyFolder, run: RunFolder, step: int) -> list[Response]:
    """Up-to-date responses of one checkpoint."""
    prompts = study_prompts(workspace)
    return current_responses(run, step, prompts, response_signatures(prompts, workspace.study.decoding.signature))


def rateable(workspace: StudyFolder, run: RunFolder, step: int) -> list[dict[str, Any]]:
    """The responses of one checkpoint as raters see them.

    A modified request ("…, in a few words") carries the same run's answer to the request that it modifies
    (`modifies`), which short and long are relative to.
    """
    responses = [cast(dict[str, Any], response) for response in responses_of(workspace, run, step)]
    texts = {response["id"]: response["text"] for response in responses}
    return [
        {**response, "unmodified": texts[response["modifies"]]} if response.get("modifies") in texts else response
        for response in responses
    ]


def ratings_of(workspace: StudyFolder, run: RunFolder, step: int) -> list[Rating]:
    """Up-to-date ratings of one checkpoint's responses, over all raters of the study."""
    keys = [(response["id"], text_fingerprint(response)) for response in rateable(workspace, run, step)]
    found = []
    for name in workspace.study.raters:
        ratings = current_ratings(run, step, name, signature_of(name))
        found += [ratings[key] for key in keys if key in ratings]
    return found
