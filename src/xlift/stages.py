"""The stages of a study in order: each reads files, writes files, and does only what is not done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from xlift.checkpoint import Checkpoint, checkpoints_of, is_trained, written_prompts
from xlift.data.instructions import Examples
from xlift.data.kept import kept_examples
from xlift.data.prompts import load_prompts
from xlift.disk import JsonlWriter, write_jsonl
from xlift.energy import metered
from xlift.errors import ConfigError, UserError, raise_together
from xlift.executors import each_run, of_one_base
from xlift.extras import require
from xlift.halving import idle_problems, surviving
from xlift.hub import Located, locate
from xlift.integrity import refuse_other_base, say_changed
from xlift.models import KeptBase, Placement, place
from xlift.pace import STAGES, answers_there, judging_pace, place_of
from xlift.pins import pinned_data, pinned_revision
from xlift.planning.pending import say_pending
from xlift.progress import around, say
from xlift.rating import rate
from xlift.records import fingerprint
from xlift.study.data import Instructions
from xlift.study.runs import RunConfig
from xlift.study.served import Judge
from xlift.study.study import Study
from xlift.workers import agreed, first_worker, one_after_another
from xlift.workspace import (
    RunFolder,
    StudyFolder,
    create_study,
    environment,
    is_created,
    locked,
    open_study,
    refuse_foreign,
    refuse_other_study,
)

if TYPE_CHECKING:
    from xlift.tuning.encoding import Tokenised
    from xlift.tuning.train import Watching


Answering = Callable[[Sequence[tuple[Checkpoint, Any]]], dict[str, UserError]]
"""Lets checkpoints answer; tells by run what went wrong."""


def run_study(study: Study, folder: Path | None = None, offline: bool = False) -> StudyFolder:
    """Every stage in order. Called again, it continues; what is done is left as it is.

    A run that fails is reported at the end (UserError) and does not stop the others.
    """
    require(*study.extras)
    if first_worker():
        refuse_other_study(pending := open_study(study, folder))
        say_pending(pending)
    workspace, kept = prepare(study, folder), ProcessWork(STAGES)
    with locked(workspace.path):
        failures: list[UserError] = []
        for stage in (train_stage, generate_stage, rate_stage, judge_stage):
            failures += _in_place(stage, workspace, offline, kept)
        failures += _in_place(report_stage, workspace, offline)
        raise_together(failures)
    return workspace


def _in_place(stage: Callable[..., None], workspace: StudyFolder, *arguments: Any) -> list[UserError]:
    """Do a stage of the whole, its number told and shown beside its progress; what went wrong, with the rest done."""
    name = stage.__name__.removesuffix("_stage")
    if first_worker():
        say(f"{place_of(name, STAGES)}: {name}")
    with around(lambda *_: place_of(name, STAGES)):
        return _failures(stage, workspace, *arguments)


class ProcessWork:
    """What the runs of one process share and do once: a base model, instruction data, prompts looked at."""

    def __init__(self, stages: Sequence[str] = ()) -> None:
        self.stages = tuple(stages)
        """The stages that this process goes through, where they are several."""
        self.base = KeptBase()
        self._data: dict[str, Examples] = {}
        self.revisions: dict[str, str] = {}
        """Of the data that is kept, the commit of each hub dataset, by `path@revision` as the study names it."""
        self._readable: set[str] = set()

    @cached_property
    def tokenised(self) -> Tokenised:
        """What the conversations that are kept were tokenised to."""
        from xlift.tuning.encoding import Tokenised

        return Tokenised()

    def refuse_unreadable(self, workspace: StudyFolder, config: RunConfig, base: Located) -> None:
        """Raises UserError where a run's model could not be asked the prompts of its study once it is trained."""
        from xlift.generation.responses import refuse_unreadable

        key = fingerprint(base.path, base.revision, config.spoken)
        if key not in self._readable:
            refuse_unreadable(workspace.study, config, base, written_prompts(workspace))
            self._readable.add(key)

    def examples(self, workspace: StudyFolder, settings: Instructions, offline: bool) -> Examples:
        """Training and held-out conversations; those asked for last are kept.

        Raises DataError where test prompts are among them, unless the study allows that.
        """
        key, study = settings.model_dump_json(), workspace.study
        if key not in self._data:
            pinned, self.revisions = pinned_data(workspace, settings, offline)
            told = (pinned, written_prompts(workspace), offline, study.skip_unfit)
            self._data = {key: kept_examples(workspace.path / "data", *told)}
            for line in self._data[key].lines if first_worker() else ():
                say(line)
        if not study.prompts.allow_contamination:
            self._data[key].overlaps.refuse()
        return self._data[key]

    def __reduce__(self) -> tuple[type[ProcessWork], tuple[()]]:
        # Another process begins with nothing.
        return ProcessWork, ()


def _failures(work: Callable[..., None], *arguments: Any) -> list[UserError]:
    """What went wrong, with the rest done."""
    try:
        work(*arguments)
    except UserError as error:
        return [error]
    return []


def prepare(study: Study, folder: Path | None = None, held: bool = False) -> StudyFolder:
    """Check the prompts and write down what the study consists of, unless it is written down already.

    `held` says that the caller holds the folder's lock.

    Raises ConfigError where that would change a study that another process is working on, and for idle halving.
    """
    if problems := idle_problems(study):
        raise ConfigError(problems, "leave halving out, or measure and stop earlier")
    workspace = open_study(study, folder)
    refuse_foreign(workspace.path)
    refuse_other_study(workspace)
    prompts = load_prompts(study.prompts, study.decoding.samples)
    if first_worker() and not is_created(workspace, prompts):
        with nullcontext() if held else locked(workspace.path):
            write_jsonl(workspace.prompts, prompts)
            create_study(workspace)
    # The others read what the first has written.
    agreed(lambda: None, study.device)
    return workspace


def train_stage(workspace: StudyFolder, offline: bool = False, kept: ProcessWork | None = None) -> None:
    """Train every run of the grid that is not trained yet; one that failed before is tried again, once."""
    if not any(run.trains for run in workspace.runs):
        return
    require("train")
    study, kept = workspace.study, kept or ProcessWork()
    failures: list[UserError] = []
    failed: set[str] = set()

    def left() -> list[RunFolder]:
        runs = [run for run in workspace.runs if run.trains and run.id not in failed]
        going = agreed(
            lambda: [run.id for run in surviving(workspace, runs) if not is_trained(workspace, run)], study.device
        )
        return [run for run in runs if run.id in going]

    def train_all(runs: list[RunFolder], until: int | None) -> None:
        work, most = partial(_train, kept=kept, until=until), runs_at_once(study)
        shared = partial(_train_together, kept=kept, until=until, most=most) if most else None
        failures.extend(_failures(each_run, workspace, runs, "train", offline, work, shared, None, kept.stages))
        ended = agreed(lambda: [run.id for run in runs if run.stage("train")["state"] == "failed"], study.device)
        failed.update(ended)

    until = study.halving.first if study.halving else 0
    # A rung a round: all that are left are trained to its step, and who goes on is then asked anew.
    while study.halving and len(runs := left()) > 1:
        train_all(runs, until)
        until *= study.halving.factor
    train_all([run for run in left() if run.learns], None)
    # Their layers come from the others.
    train_all([run for run in left() if not run.learns], None)
    raise_together(failures)


def runs_at_once(study: Study) -> int | Literal["auto"] | None:
    """How many runs may be trained in one pass; None where all are trained one after another."""
    if study.together is None:
        return "auto" if place(study.device, study.dtype).device == "cuda" else None
    return study.together if study.together != 1 else None


def _train(workspace: StudyFolder, run: RunFolder, offline: bool, kept: ProcessWork, until: int | None = None) -> None:
    from xlift.tuning.train import train

    examples, base, placement = _ready(workspace, run, offline, kept)
    if run.config.swap:
        agreed(lambda: _swap(workspace, run), placement.device)
        return
    told = (examples.train, examples.heldout, _watching(workspace))
    with metered([run], "train"):
        train(run, base, placement, *told, until, kept.base, workspace.study.skip_unfit, kept.tokenised)


def _train_together(
    workspace: StudyFolder,
    runs: list[RunFolder],
    offline: bool,
    kept: ProcessWork,
    until: int | None,
    most: int | Literal["auto"],
) -> dict[str, UserError]:
    """Train runs that are alike in one pass, or one after another where adapters or memory do not allow that."""
    import torch

    from xlift.tuning.together import CannotShareError, Choice, train_together
    from xlift.tuning.train import read_ahead

    failed: dict[str, UserError] = {}
    aheads, places = [], []
    for run in runs:
        try:
            examples, base, placement = _ready(workspace, run, offline, kept)
            told = (base, placement, examples.train, examples.heldout, until, workspace.study.skip_unfit)
            aheads.append(read_ahead(run, *told, kept.tokenised))
            places.append((base.path, base.revision, placement))
        except UserError as error:
            failed[run.id] = error
    choice = Choice(len(runs), True) if most == "auto" else Choice(most, False)
    try:
        if len(set(places)) != 1:
            raise CannotShareError
        with metered([ahead.run for ahead in aheads], "train"):
            return failed | train_together(aheads, base, placement, _watching(workspace), kept.base, choice)
    except (CannotShareError, torch.OutOfMemoryError):
        say(f"{len(runs)} runs are trained one after another: they cannot share a pass here")
    for ahead in aheads:
        failed |= zip([ahead.run.id], _failures(_train, workspace, ahead.run, offline, kept, until), strict=False)
    return failed


def _watching(workspace: StudyFolder) -> Watching:
    from xlift.tuning.train import Watching
    from xlift.watch import validation_prompts, watcher

    study = workspace.study
    watch = watcher(study, validation_prompts(written_prompts(workspace)))
    return Watching(watch, study.validation.every, study.tracking, study.name)


def _ready(
    workspace: StudyFolder, run: RunFolder, offline: bool, kept: ProcessWork
) -> tuple[Examples, Located, Placement]:
    """The data of a run, its base and where it is computed, written down; the run is running now."""
    study = workspace.study
    settings = run.config.instructions
    examples = one_after_another(lambda: kept.examples(workspace, settings, offline), study.device)
    base, placement = one_after_another(lambda: _base(workspace, run, offline), study.device)
    if first_worker():
        say(f"{run.label}: {placement.device} {placement.dtype} ({placement.why})")
    facts = {"base": base.facts, "data": examples.facts, "data_revisions": kept.revisions, **environment()}
    run.update_manifest(device=placement.device, dtype=placement.dtype, **facts)
    run.set_stage("train", "running")
    kept.refuse_unreadable(workspace, run.config, base)
    return examples, base, placement


def _swap(workspace: StudyFolder, run: RunFolder) -> None:
    from xlift.tuning.swap import swap_layers

    if first_worker():
        by_hash = {other.config.content_hash: other for other in workspace.runs}
        parents = [by_hash[parent.content_hash] for parent in run.config.parents]
        swap_layers(run, *parents)
        names = ("examples", "too_long", "heldout", "heldout_too_long", "refused")
        facts = {name: sum(parent.stage("train").get(name, 0) for parent in parents) for name in names}
        run.set_stage("train", "done", **facts, swapped=[parent.id for parent in parents])


def _base(workspace: StudyFolder, run: RunFolder, offline: bool) -> tuple[Located, Placement]:
    """A run's base model, and where it is computed.

    Raises ConfigError where the model is another than the one that the run was begun with.
    """
    study = workspace.study
    base = locate(run.config.model, pinned_revision(workspace, run), offline, not run.config.untuned)
    refuse_other_base(run, base)
    # What was begun goes on as it was begun, also on a machine where another dtype is faster.
    begun = _trained_by(workspace, run).manifest().get("dtype") if study.dtype == "auto" else None
    return base, place(study.device, begun or study.dtype)


def generate_stage(workspace: StudyFolder, offline: bool = False, kept: ProcessWork | None = None) -> None:
    """Let every run answer every prompt that it has not answered yet. Of several workers, the first does it."""
    require(*(name for name in workspace.study.extras if name in ("train", "judge")))
    kept = kept or ProcessWork()
    if first_worker():
        try:
            work, shared = partial(_generate, kept=kept), partial(_generate_together, kept=kept)
            runs = surviving(workspace, workspace.runs)
            apart = workspace.study.together == 1
            each_run(workspace, runs, "generate", offline, work, None if apart else shared, of_one_base, kept.stages)
        finally:
            # What comes next, a judge on the same GPU for instance, may want the room.
            kept.base.let_go()


def _generate(workspace: StudyFolder, run: RunFolder, offline: bool, kept: ProcessWork) -> None:
    for error in _generate_together(workspace, [run], offline, kept).values():
        raise error


def _generate_together(
    workspace: StudyFolder, runs: list[RunFolder], offline: bool, kept: ProcessWork
) -> dict[str, UserError]:
    """Let runs answer that have a base in common, or one alone; what went wrong, by run."""
    failed: dict[str, UserError] = {}
    ready: dict[str, list[tuple[RunFolder, list[Checkpoint], Located | None, Answering]]] = {}
    for run in runs:
        try:
            if found := _left_to_answer(workspace, run):
                where, base, answer = _answering(workspace, run, offline, kept)
                ready.setdefault(where, []).append((run, found, base, answer))
                run.set_stage("generate", "running")
        except UserError as error:
            failed[run.id] = error
    for group in ready.values():
        left = {run.id: sum(len(one.unanswered) for one in found) for run, found, _, _ in group}
        started, answer = time.monotonic(), group[0][3]
        with metered([run for run, _, _, _ in group], "generate"):
            failed |= answer([(one, base) for _, found, base, _ in group for one in found])
            seconds = round((time.monotonic() - started) / len(group), 1)
            for run, found, _, _ in group:
                run.keep_hashes(*(path for one in found for path in (run.responses(one.step), run.margins(one.step))))
                if run.id not in failed:
                    run.set_stage("generate", "done", responses=left[run.id], seconds=seconds)
    return failed


def _left_to_answer(workspace: StudyFolder, run: RunFolder) -> list[Checkpoint]:
    """A run's checkpoints, where one of them has something left to do. Raises UserError where none counts."""
    if _trained_by(workspace, run).stage("train")["state"] == "failed":
        return []
    found = checkpoints_of(workspace, run)
    if not found:
        there = ", ".join(map(str, run.checkpoint_steps()))
        problem = f"none of the steps of decoding.checkpoints has a checkpoint; there are: {there}"
        raise UserError(problem if there else "no checkpoint to generate from", "xlift train makes it")
    if not any(one.unanswered or one.lost or one.unmeasured or one.ungraded for one in found):
        if run.stage("generate")["state"] != "done":
            run.set_stage("generate", "done")
        return []
    if any(one.weights and not one.weights.is_dir() for one in found):
        raise UserError("its answers are here, its weights are not", "xlift train makes them anew")
    say_changed(run)
    return found


def _answering(
    workspace: StudyFolder, run: RunFolder, offline: bool, kept: ProcessWork
) -> tuple[str, Located | None, Answering]:
    """What lets a run's checkpoints answer, the model, loaded here, or its server; before it, what is the same for runs
    that can answer with it, and the run's own base."""
    if run.config.remote:
        from xlift.generation.served import answer_served

        run.update_manifest(**environment())

        def ask(found: Sequence[tuple[Checkpoint, Located | None]]) -> dict[str, UserError]:
            for one, _ in found:
                answer_served(one)
            return {}

        return run.id, None, ask
    from xlift.generation.responses import answer_checkpoints
    from xlift.generation.vllm import answer_by_vllm

    base, placement = _base(workspace, run, offline)
    if not run.trains:
        run.update_manifest(base=base.facts, device=placement.device, dtype=placement.dtype, **environment())
    engine = checkpoints_of(workspace, run)[0].decoding.engine
    answer = answer_by_vllm if engine == "vllm" else answer_checkpoints
    where = fingerprint(base.path, base.revision, placement.device, placement.dtype, engine)
    return where, base, partial(answer, placement=placement, kept=kept.base)


def _trained_by(workspace: StudyFolder, run: RunFolder) -> RunFolder:
    return next(other for other in workspace.runs if other.path == run.trained)


def rate_stage(
    workspace: StudyFolder, offline: bool = False, kept: ProcessWork | None = None, raters: Sequence[str] | None = None
) -> None:
    """Rate every response that has no rating with the rater's current signature, by all of the study's raters or some.

    The first worker does it. Raises ConfigError for raters that are not the study's.
    """
    there = workspace.study.raters
    if other := [name for name in raters or () if name not in there]:
        problems = [f"not a rater of this study: {name}; it has {', '.join(there)}" for name in other]
        raise ConfigError(problems, "add it to `raters:` in the study file")
    if first_worker():
        work = partial(_rate, raters=raters or there)
        each_run(workspace, surviving(workspace, workspace.runs), "rate", offline, work)


def _rate(workspace: StudyFolder, run: RunFolder, offline: bool, raters: Sequence[str]) -> None:
    found = checkpoints_of(workspace, run)
    say_changed(run)
    made = sum(_rate_by(one, name) for one in found for name in raters)
    others = [name for name in workspace.study.raters if name not in raters]
    if any(one.unrated_by(name) for one in found for name in others):
        return
    if made:
        run.keep_hashes(*(run.ratings(one.step, name) for one in found for name in raters))
    if made or (any(one.responses for one in found) and run.stage("rate")["state"] != "done"):
        run.set_stage("rate", "done", ratings=made)


def _rate_by(checkpoint: Checkpoint, rater: str) -> int:
    """Rate what a rater has not rated yet; how many that were."""
    wanted = checkpoint.unrated_by(rater)
    if wanted:
        with JsonlWriter(checkpoint.run.ratings(checkpoint.step, rater)) as log:
            for response in wanted:
                log.write(rate(response, rater))
    return len(wanted)


def judge_stage(workspace: StudyFolder, offline: bool = False, kept: ProcessWork | None = None) -> None:
    """Let the study's judges rate what they have not rated yet. The first worker does it."""
    if not workspace.study.judges or not first_worker():
        return
    judges, failures = workspace.study.judges, []
    each = answers_there(workspace.runs)
    for number, judge in enumerate(judges):
        with around(judging_pace(number, judges, each, kept.stages if kept else ())):
            failures += _failures(_judge, workspace, judge)
    raise_together(failures)


def _judge(workspace: StudyFolder, judge: Judge) -> None:
    from xlift.judging.judges import judge_with
    from xlift.judging.ratings import outcome_text

    say(outcome_text(judge_with(workspace, judge)))


def report_stage(workspace: StudyFolder, offline: bool = False) -> None:
    """Write the report from whatever responses and ratings there are. The first worker does it."""
    if first_worker():
        from xlift.report.page import write_report

        write_report(workspace)
