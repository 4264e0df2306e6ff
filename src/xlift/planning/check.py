"""`xlift check`: everything that can be wrong, and what it would take, found before anything is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xlift.checkpoint import grammar_languages, measured_languages
from xlift.data.instructions import Examples, load_examples
from xlift.data.prompts import grammar_pairs, load_prompts
from xlift.errors import ConfigError, UserError
from xlift.extras import require
from xlift.generation.responses import encoded_prompts, margin_pairs
from xlift.halving import idle_problems
from xlift.hub import locate
from xlift.memory import free_memory
from xlift.models import Placement, load_tokenizer, place
from xlift.pace import keep_forecast
from xlift.pins import pinned_data, pinned_revision
from xlift.planning.forecast import (
    CheckpointWork,
    Probed,
    Probing,
    Workload,
    answer_bytes,
    answering_bound,
    answering_checkpoints,
    cache_bytes,
    disk_of,
    model_size,
    run_probe,
    training_bound,
    training_seconds,
    work_of,
)
from xlift.planning.pending import grouped, pending, say_rows
from xlift.planning.plans import Planned, Takes, at_a_time, print_table, show_mask
from xlift.planning.proof import unfit_files, unreadable
from xlift.progress import byte_size, say
from xlift.records import Prompt, fingerprint
from xlift.servers.where import served_where
from xlift.study.runs import SPOKEN, RunConfig
from xlift.study.served import Model
from xlift.study.study import Study
from xlift.tuning.encoding import Data, encode_data
from xlift.tuning.fp8 import refuse_device
from xlift.tuning.limits import Limits
from xlift.tuning.templates import ChatFormat, chat_format
from xlift.watch import validation_prompts
from xlift.workspace import RunFolder, StudyFolder, open_study

MEMORY_HINT = (
    "lower training.micro_batch_tokens, set training.gradient_checkpointing: true, adapt with lora instead of full, or "
    "take a smaller model"
)
DISK_HINT = "raise training.checkpoint_every, adapt with lora instead of full, or put the study elsewhere with --out"
PROBED_BY = (
    *("model", "revision", *SPOKEN, "adaptation"),
    *("micro_batch_tokens", "max_length", "packing", "gradient_checkpointing", "offload", "optimizer", "fp8"),
)
"""Settings that decide how fast a run is and what memory it takes: runs that share them are measured once."""


NOWHERE = Placement("cpu", "float32", "nothing is computed here")


@dataclass
class Found:
    """Problems and hints, gathered until all are known."""

    told: list[tuple[str, str]] = field(default_factory=list)
    """Labels of runs, empty where it is the study's, and problems."""
    hints: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Each problem once, with the runs that share it."""
        return grouped(self.told)

    def add(self, *problems: str, label: str = "") -> None:
        self.told += [(label, problem) for problem in problems]

    def take(self, error: UserError, label: str = "") -> None:
        self.add(*error.problems, label=label)
        self.hints += [error.hint] if error.hint else []

    def refuse(self) -> None:
        """Raises ConfigError if there is any problem."""
        if self.problems:
            raise ConfigError(self.problems, "; ".join(dict.fromkeys(self.hints)) or None)


def check_study(study: Study, offline: bool = False, probe: bool = True, folder: Path | None = None) -> dict[str, Any]:
    """Print the grid with what each run takes, one example with its loss mask, and what is still to do.

    `probe` measures time and memory on this machine; without it they are bounds. Raises ConfigError with all problems,
    among them runs and studies that do not fit into memory or onto the disk. Returns what each run takes.
    """
    require(*study.extras)
    found = Found()
    workspace = open_study(study, folder)
    here, elsewhere = ([run for run in workspace.runs if run.config.remote == remote] for remote in (False, True))
    placement = place(study.device, study.dtype) if here else NOWHERE
    if here:
        print(f"{study.name}: {len(here)} runs on {placement.device} in {placement.dtype} ({placement.why})")
    if any(run.config.fp8 for run in here):
        try:
            refuse_device(placement)
        except ConfigError as error:
            found.take(error)
    prompts = _checked_prompts(study, found)
    _check_served([run.config.given for run in elsewhere if run.config.given], len(prompts), found)
    found.add(*idle_problems(study))
    plans = _plans(workspace, here, prompts, offline, found)
    _tell_of_data(study, plans, found)
    free = free_memory(placement) if here else 0
    takes = {plan.run.id: _bounds(study, plan, prompts, placement) for plan in plans}
    _refuse_memory(plans, takes, free, "needs at least", placement, found)
    _refuse_disk(plans, takes, workspace.path, found)
    to_do = pending(workspace) if workspace.path.exists() and not found.problems else None
    if probe and not found.problems and to_do != []:
        takes = _measured(study, plans, takes, placement, found)
        _refuse_memory(plans, takes, free, "needs", placement, found)
        _refuse_together(study, takes, free, placement, found)
        for plan in plans:
            took = takes[plan.run.id]
            if took.training is not None and took.answering is not None:
                keep_forecast(workspace, plan.run, took.training, took.answering)
    if here:
        print_table(study, plans, takes, placement)
    shown = next((plan for plan in plans if plan.data), None)
    if shown and shown.data:
        show_mask(shown.chat, shown.data.shortest)
    found.refuse()
    say_rows(to_do or [])
    runs = [{"run": plan.run.id, "label": plan.run.label, **_told(takes[plan.run.id])} for plan in plans]
    return {"study": study.name, "folder": str(workspace.path), "prompts": len(prompts), "runs": runs}


def _told(takes: Takes) -> dict[str, Any]:
    """What a run takes, for programs: seconds and bytes."""
    return {
        "training_seconds": takes.training,
        "answering_seconds": takes.answering,
        "memory_bytes": takes.memory,
        "disk_bytes": takes.disk.kept,
    }


def _check_served(models: Sequence[Model], prompts: int, found: Found) -> None:
    """Ask each server for the models that it has; one that does not list them is believed."""
    for model in models:
        try:
            if model.by == "openai":
                print(f"{model.label}: {prompts} prompts to {served_where(model)}")
        except UserError as error:
            found.take(error, model.label)


def _checked_prompts(study: Study, found: Found) -> list[Prompt]:
    prompts: list[Prompt] = []
    try:
        prompts = load_prompts(study.prompts, study.decoding.samples)
        print(f"prompts: {len(prompts)} in {', '.join(study.prompts.languages)}")
    except UserError as error:
        found.take(error)
    return prompts


def _plans(
    workspace: StudyFolder, runs: Sequence[RunFolder], prompts: list[Prompt], offline: bool, found: Found
) -> list[Planned]:
    """The runs that nothing is wrong with; the problems of the others go to `found`."""
    plans: list[Planned] = []
    once: dict[str, Any] = {}
    for run in runs:
        try:
            plan = _plan(workspace, run, prompts, offline, once)
        except UserError as error:
            found.take(error, run.label)
            continue
        plans.append(plan)
        for one in [*plan.unfit, *unreadable(plan.size.limits, plan.data, plan.asked, plan.watched)]:
            found.take(one, run.label)
    return plans


def _plan(
    workspace: StudyFolder, run: RunFolder, prompts: list[Prompt], offline: bool, once: dict[str, Any]
) -> Planned:
    """One run; what it has in common with others is made `once`."""
    study, config = workspace.study, run.config

    def shared(make: Callable[[], Any], *key: Any) -> Any:
        name = fingerprint(*key)
        if name not in once:
            try:
                once[name] = make()
            except UserError as error:  # a hub that does not answer is asked once
                once[name] = error
        if isinstance(once[name], UserError):
            raise once[name]
        return once[name]

    asked_for = (config.model, pinned_revision(workspace, run), offline, not config.untuned)
    base = shared(lambda: locate(*asked_for), "base", asked_for)
    tokenizer, spoken = (base.tokenizer, base.revision), config.spoken
    chat_key = (*tokenizer, *spoken)
    chat = shared(lambda: chat_format(load_tokenizer(*tokenizer), *spoken), "chat", chat_key)
    size = model_size(base, config.adaptation)
    asked, watched = shared(lambda: _asked(study, prompts, chat, size.limits), "asked", (base.path, *chat_key))
    data, work, examples = None, Workload(), None
    if not config.untuned:
        instructions = config.instructions
        settings = instructions.model_dump(mode="json")
        pinned = shared(lambda: pinned_data(workspace, instructions, offline)[0], "pinned", settings)
        told = (pinned, prompts, offline, study.skip_unfit)
        examples = shared(lambda: load_examples(*told), "examples", settings)
        data_key = (chat_key, settings, config.max_length)
        given = (config, chat, examples, study.skip_unfit)
        data = shared(lambda: _encoded(*given), "data", data_key)
        work = work_of(config, data, study.validation.every)
    count = answering_checkpoints(config, work, study.decoding)
    unfit = shared(lambda: unfit_files(base), "files", base.path)
    own = work if run.learns else Workload()
    return Planned(run, base, size, chat, data, own, count, asked, watched, unfit, examples, study.decoding.quantized)


def _encoded(config: RunConfig, chat: ChatFormat, examples: Examples, skip_unfit: bool) -> Data:
    """What `encode_data` gives, in files that are mapped into memory and stand in no folder any more."""
    with TemporaryDirectory(prefix="xlift-") as folder:
        return encode_data(config, chat, examples.train, examples.heldout, skip_unfit, Path(folder) / "tokens")


def _tell_of_data(study: Study, plans: Sequence[Planned], found: Found) -> None:
    """Records left out, and what training data, held-out conversations and prompts share, once for each set of data."""
    for examples in {id(plan.examples): plan.examples for plan in plans if plan.examples}.values():
        print("".join(f"{line}\n" for line in examples.lines), end="")
        try:
            if not study.prompts.allow_contamination:
                examples.overlaps.refuse()
        except UserError as error:
            found.take(error)


def _asked(
    study: Study, prompts: list[Prompt], chat: ChatFormat, limits: Limits
) -> tuple[CheckpointWork, CheckpointWork]:
    """What a checkpoint is asked once it is there, and what is asked each time while training."""
    ids = encoded_prompts(chat, prompts, study.decoding, limits)
    encoded = {prompt["id"]: own for prompt, own in zip(prompts, ids, strict=True)}
    validation = study.validation
    pairs = len(margin_pairs(measured_languages(study)))
    sentences = sum(len(grammar_pairs(code)) for code in grammar_languages(study))
    watched = [encoded[prompt["id"]] for prompt in validation_prompts(prompts).first(validation.responses)]
    return (
        CheckpointWork(list(encoded.values()), pairs + sentences, study.decoding.max_new_tokens),
        CheckpointWork(watched, pairs, validation.max_new_tokens),
    )


def _needs(plan: Planned, placement: Placement) -> dict[str, int]:
    """The memory that a run cannot do without, by what takes it: while training or while answering."""
    training = training_bound(plan.config, plan.size, plan.work, placement) if plan.work.steps else {}
    answering = answering_bound(plan.config, plan.size, placement, plan.bits)
    return max(training, answering, key=lambda one: sum(one.values()))


def _bounds(study: Study, plan: Planned, prompts: list[Prompt], placement: Placement) -> Takes:
    """What a run takes by its settings alone."""
    answers = plan.answering * answer_bytes(prompts, study.decoding, len(study.raters))
    disk = disk_of(plan.config, plan.size, plan.work, placement, plan.base, answers)
    return Takes(None, None, sum(_needs(plan, placement).values()), disk)


def _probe_key(config: RunConfig) -> str:
    return fingerprint(config.trained.model_dump(mode="json", include=set(PROBED_BY)))


def _measured(
    study: Study, plans: list[Planned], takes: dict[str, Takes], placement: Placement, found: Found
) -> dict[str, Takes]:
    """What each run takes by a measurement. Runs that are alike are measured once, by the one with the widest rows."""
    own: dict[str, Probed] = {}
    speeds: dict[str, Probed] = {}
    for key in dict.fromkeys(_probe_key(plan.config) for plan in plans):
        alike = [plan for plan in plans if _probe_key(plan.config) == key]
        plan = max(alike, key=lambda one: max(one.work.widths, default=0))
        model = fingerprint(plan.base.path, plan.base.revision)
        say(f"measuring {plan.run.label} on {placement.device} …")
        try:
            probed = run_probe(_job(study, plan, placement, answers=model not in speeds))
        except UserError as error:
            found.take(error, plan.run.label)
            continue
        if probed is None:
            for one in alike:
                found.add("memory ran out when it was tried", label=one.run.label)
            found.hints += [MEMORY_HINT]
            continue
        own[key] = probed
        speeds.setdefault(model, probed)
    return {plan.run.id: _takes(study, plan, takes[plan.run.id], own, speeds, placement) for plan in plans}


def _job(study: Study, plan: Planned, placement: Placement, answers: bool) -> Probing:
    """A probe of one run. It answers the longest prompts, a batch of them."""
    prompts = sorted(plan.asked.prompts, key=len)[-study.decoding.batch_size :]
    return Probing(
        plan.config.model_dump(mode="json"),
        (plan.base.path, plan.base.revision),
        (placement.device, placement.dtype, placement.why),
        study.decoding.model_dump(mode="json"),
        measured_languages(study),
        prompts if answers else [],
        [(example.ids, example.mask) for example in plan.work.widest],
    )


def _takes(
    study: Study, plan: Planned, bound: Takes, own: dict[str, Probed], speeds: dict[str, Probed], placement: Placement
) -> Takes:
    probed = own.get(_probe_key(plan.config))
    speed = speeds.get(fingerprint(plan.base.path, plan.base.revision))
    if probed is None or speed is None:
        return bound
    rows = min(study.decoding.batch_size, len(plan.asked.prompts))
    replies = cache_bytes(plan.size, rows, study.decoding.max_new_tokens, placement)
    memory = max(probed.memory, speed.memory + replies, probed.overhead + bound.memory)
    training = training_seconds(plan.work, plan.watched, probed, speed)
    answering = plan.answering * (probed.load + plan.asked.seconds(speed))
    return Takes(training, answering, memory, bound.disk)


def _refuse_memory(
    plans: list[Planned], takes: dict[str, Takes], free: int, needs: str, placement: Placement, found: Found
) -> None:
    for plan in plans:
        memory, parts = takes[plan.run.id].memory, _needs(plan, placement)
        if memory > free:
            shown = ", ".join(f"{name} {byte_size(count)}" for name, count in parts.items())
            problem = f"{needs} {byte_size(memory)} of memory ({shown}); {byte_size(free)} are free"
            found.add(problem, label=plan.run.label)
            found.hints.append(MEMORY_HINT)


def _refuse_together(study: Study, takes: dict[str, Takes], free: int, placement: Placement, found: Found) -> None:
    """Runs that Ray works on side by side on this machine share its memory."""
    if study.executor != "ray" or study.ray.address or placement.device == "cuda":
        return
    side_by_side = sorted((one.memory for one in takes.values()), reverse=True)[: at_a_time(study, placement)]
    if sum(side_by_side) > free and max(side_by_side, default=0) <= free:
        needed = byte_size(sum(side_by_side))
        found.add(f"{len(side_by_side)} runs at a time need {needed} of memory; {byte_size(free)} are free")
        found.hints.append("raise ray.cpus, so that fewer are worked on at a time")


def _refuse_disk(plans: list[Planned], takes: dict[str, Takes], folder: Path, found: Found) -> None:
    """What is not on the disk yet must find its place, and the newest checkpoint's state twice while it is replaced."""
    there = [sum(path.stat().st_size for path in plan.run.path.rglob("*") if path.is_file()) for plan in plans]
    disks = [takes[plan.run.id].disk for plan in plans]
    need = sum(max(0, disk.kept - done) for disk, done in zip(disks, there, strict=True))
    need += max((disk.spare for disk in disks), default=0)
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if need > free:
        found.add(f"the study needs {byte_size(need)} of disk; {byte_size(free)} are free at {folder}")
        found.hints.append(DISK_HINT)
