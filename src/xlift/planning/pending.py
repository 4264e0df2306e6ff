"""What a study would do if it were run now, and why; nothing where all is done. Reads files only."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from xlift.checkpoint import Checkpoint, checkpoints, checkpoints_of, is_trained, readable, written_prompts
from xlift.data.prompts import load_prompts
from xlift.errors import DataError
from xlift.halving import surviving
from xlift.judging.current import judge_records
from xlift.judging.questions import load_texts
from xlift.judging.ratings import unrated
from xlift.progress import say
from xlift.rating import in_scope, signature_of, text_fingerprint
from xlift.records import Prompt, read_records
from xlift.study.runs import DEFAULT_STEPS
from xlift.study.served import Judge
from xlift.study.settings import flat
from xlift.terminal import terminal_room, wrapped
from xlift.workspace import RunFolder, StudyFolder, unused_runs

RUNS_NAMED = 3
"""Runs that a row names before it only counts them."""


def pending(workspace: StudyFolder) -> list[str]:
    """A row for each thing that running the study would do, with its reason; [] where all is done.

    Meant to be asked before the study is written down, since it compares with the study.yaml and prompts.jsonl of last
    time. Raises DataError for prompts that cannot be read.
    """
    prompts = load_prompts(workspace.study.prompts, workspace.study.decoding.samples)
    going = surviving(workspace, workspace.runs)
    work = [(run.label, text) for run in going for text in _readable_work(workspace, run, prompts)]
    judging = [row for judge in workspace.study.judges for row in _judging(workspace, judge, prompts)]
    rows = changed_settings(workspace) + _changed_prompts(workspace, prompts) + grouped(work) + judging
    return rows + no_longer_used(workspace) if rows else []


def say_pending(workspace: StudyFolder) -> None:
    """Say what is pending, if anything is."""
    say_rows(pending(workspace))


def say_rows(rows: Sequence[str]) -> None:
    """Say what `pending` has found."""
    for row in ["to do:", *(f"  {row}" for row in rows)] if rows else []:
        say(wrapped(row, terminal_room(sys.stderr)))


# e.g. grouped([("a", "train: new run"), ("b", "train: new run")]) → ["a, b: train: new run"]
# e.g. grouped([("", "no room"), ("", "no room")]) → ["no room"]
def grouped(said: Sequence[tuple[str, str]]) -> list[str]:
    """One row for runs, by their labels, of which the same is to be said; without a label for what is of none."""
    labels: dict[str, list[str]] = {}
    for label, text in said:
        labels.setdefault(text, []).extend([label] if label else [])
    return [f"{_named(found)}: {text}" if found else text for text, found in labels.items()]


# e.g. _named(["a", "b", "c", "d", "e"]) → "a, b, c and 2 more"
def _named(labels: list[str]) -> str:
    more = f" and {len(labels) - RUNS_NAMED} more" if len(labels) > RUNS_NAMED else ""
    return ", ".join(labels[:RUNS_NAMED]) + more


def changed_settings(workspace: StudyFolder) -> list[str]:
    """The settings that differ from those of last time, old and new."""
    path = workspace.path / "study.yaml"
    if not path.is_file():
        return []
    before = flat(yaml.safe_load(path.read_text(encoding="utf-8")), numbered=True)
    after = flat(workspace.study.model_dump(mode="json"), numbered=True)
    return [
        f"setting {key}: {_shown(before, key)} → {_shown(after, key)}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key)
    ]


def _shown(settings: dict[str, Any], key: str) -> str:
    text = str(settings[key]) if key in settings else "not there"
    return text if len(text) <= 60 else text[:59] + "…"


def _changed_prompts(workspace: StudyFolder, prompts: Sequence[Prompt]) -> list[str]:
    """How many prompts came, went or read otherwise since last time."""
    before = {prompt["id"]: prompt for prompt in written_prompts(workspace)}
    after = {prompt["id"]: prompt for prompt in prompts}
    if not before:
        return []
    counts = {
        "added": len(after.keys() - before.keys()),
        "changed": sum(before[name] != after[name] for name in before.keys() & after.keys()),
        "no longer asked": len(before.keys() - after.keys()),
    }
    told = [f"{count} {what}" for what, count in counts.items() if count]
    return [f"prompts: {', '.join(told)}"] if told else []


def no_longer_used(workspace: StudyFolder) -> list[str]:
    """Runs on the disk that the grid no longer has."""
    names = [folder.name for folder in unused_runs(workspace)]
    return [f"no longer in the study, kept and not used: {_named(names)}"] if names else []


def _readable_work(workspace: StudyFolder, run: RunFolder, prompts: list[Prompt]) -> list[str]:
    try:
        return _work(workspace, run, prompts)
    except DataError as error:
        return [f"cannot go on: {error.problems[0]}"]


def _work(workspace: StudyFolder, run: RunFolder, prompts: list[Prompt]) -> list[str]:
    source = next((other for other in workspace.runs if other.path == run.trained), run)
    untrained = None if run.config.untuned else _training(workspace, source)
    if untrained is None:
        return _answering(workspace, run, prompts)
    first = [f"train: {untrained}"] if run.trains else []
    when = "then" if run.trains else f"once {source.label} is trained,"
    left = _left_to_answer(workspace, run, prompts)
    raters = [name for name in workspace.study.raters if any(in_scope({**prompt}, name) for prompt in prompts)]
    return [*first, f"{when} answer {left} prompts and rate the replies by {', '.join(raters)}"] if left else first


def _left_to_answer(workspace: StudyFolder, run: RunFolder, prompts: list[Prompt]) -> int:
    """Prompts that a run has not answered at its last step, as far as that is known before it is trained again."""
    answered = [int(path.stem.removeprefix("step-")) for path in (run.path / "responses").glob("step-*.jsonl")]
    last = _total_steps(run) or max(answered, default=0)
    return len(Checkpoint(workspace.study, run, last, tuple(prompts)).unanswered)


def _training(workspace: StudyFolder, run: RunFolder) -> str | None:
    """Why a run must be trained, and from which step; None where it need not be."""
    state, steps = run.stage("train"), run.checkpoint_steps()
    if state["state"] == "done":
        return None if is_trained(workspace, run) else "its checkpoints are gone"
    whole = [step for step in steps if run.training_state(step).is_file()]
    of = f" of {_total_steps(run)}" if _total_steps(run) else ""
    start = f"from step {max(whole)}{of}" if whole else "from the start"
    if state["state"] == "failed":
        first = str(state["problems"][0]).splitlines()[0]
        return f"failed before ({first}); again {start}"
    return f"unfinished, {start}" if state["state"] in ("running", "interrupted") or whole else "new run"


def _total_steps(run: RunFolder) -> int | None:
    """Steps of a run, None where they hang on its data."""
    return run.config.steps or (None if run.config.epochs else DEFAULT_STEPS)


def _answering(workspace: StudyFolder, run: RunFolder, prompts: list[Prompt]) -> list[str]:
    """What the checkpoints of a trained run have still to answer, and which ratings are missing."""
    found = checkpoints_of(workspace, run, prompts)
    if not found:
        return [f"cannot answer: no checkpoint of decoding.checkpoints {workspace.study.decoding.checkpoints}"]
    where = {one.step: f" at step {one.step}" if len(found) > 1 else "" for one in found}
    return [f"{text}{where[one.step]}" for one in found for text in _step_work(one)]


def _step_work(checkpoint: Checkpoint) -> list[str]:
    rows = []
    if checkpoint.unmeasured:
        rows.append(f"measure the language margin (not measured in {', '.join(checkpoint.unmeasured)})")
    if checkpoint.ungraded:
        rows.append(f"measure the grammar margin (not measured in {', '.join(checkpoint.ungraded)})")
    if checkpoint.unanswered:
        reasons = _reasons(_unanswered(checkpoint))
        rows.append(f"answer {len(checkpoint.unanswered)} of {len(checkpoint.prompts)} prompts ({reasons})")
    by_reason: dict[str, list[str]] = {}
    for name in checkpoint.study.raters:
        if unrated := _unrated(checkpoint, name):
            text = f"rate {unrated.total()} replies by RATER ({_reasons(unrated)})"
            by_reason.setdefault(text, []).append(name)
    return rows + [text.replace("RATER", ", ".join(names), 1) for text, names in by_reason.items()]


# e.g. _reasons(Counter({"not made yet": 4})) → "not made yet"
# e.g. _reasons(Counter({"not made yet": 4, "prompt changed": 1})) → "4 not made yet, 1 prompt changed"
def _reasons(reasons: Counter[str]) -> str:
    """The reasons, each with its number where there are several."""
    if len(reasons) == 1:
        return next(iter(reasons))
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items())


def _unanswered(checkpoint: Checkpoint) -> Counter[str]:
    """Why a checkpoint's prompts have no up-to-date response."""
    finished = checkpoint.run.stage("generate")["state"] == "done" and bool(checkpoint.made)
    absent = "prompt added" if finished else "not made yet"
    made, signatures = checkpoint.made, checkpoint.signatures
    names = [prompt["id"] for prompt in checkpoint.unanswered]
    return Counter(
        _outdated(str(made[name].get("signature")), signatures[name]) if name in made else absent for name in names
    )


# e.g. _outdated("greedy|max48|aa.bb", "greedy|max64|aa.bb") → "decoding changed: greedy|max48 → greedy|max64"
# e.g. _outdated("greedy|rp1.2|max48|aaaa.bbbb", "greedy|rp1.2|max48|aaaa.cccc") → "chat template or tokenizer changed"
# e.g. _outdated("greedy|rp1.2|max48|aaaa.bbbb", "greedy|rp1.2|max48|dddd.bbbb") → "prompt changed"
def _outdated(old: str, new: str) -> str:
    """What of a response's signature (decoding|hash of the prompt.hash of how it is written) has changed."""
    (old_decoding, _, before), (new_decoding, _, now) = old.rpartition("|"), new.rpartition("|")
    if old_decoding != new_decoding:
        return f"decoding changed: {old_decoding} → {new_decoding}"
    same_words = before.partition(".")[0] == now.partition(".")[0]
    return "chat template or tokenizer changed" if same_words else "prompt changed"


def _unrated(checkpoint: Checkpoint, name: str) -> Counter[str]:
    """How many of a checkpoint's replies, those to be made too, a rater has still to rate, by reason."""
    why = Counter("not made yet" for prompt in checkpoint.unanswered if in_scope({**prompt}, name))
    missing = [(one["id"], text_fingerprint(one)) for one in checkpoint.unrated_by(name)]
    records = read_records(checkpoint.run.ratings(checkpoint.step, name)) if missing else []
    old = {(record["id"], record["response"]): str(record["signature"]) for record in records}
    rated = {prompt for prompt, _ in old}
    for key in missing:
        if key in old:
            why[f"rater changed: {old[key]} → {signature_of(name)}"] += 1
        else:
            why["response changed" if key[0] in rated else "not rated yet"] += 1
    return why


def _judging(workspace: StudyFolder, judge: Judge, prompts: list[Prompt]) -> list[str]:
    """How many replies, those that are still to be made too, a judge has to rate, and why."""
    found = list(readable(checkpoints(workspace, prompts)))
    untrained = len(surviving(workspace, workspace.runs)) - len({one.run.id for one in found})
    made = sum(len(one.responses) for one in found)
    why = Counter({"not made yet": len(prompts) * (len(found) + untrained) - made})
    before: dict[Path, set[str]] = {}
    for one in unrated(((one.rateable, one.judge_file(judge)) for one in found), judge, load_texts(judge)):
        if one.path not in before:
            before[one.path] = {str(record["id"]) for record in judge_records(one.path, judge)}
        why["judge, rubric or reply changed" if one.record["id"] in before[one.path] else "not rated yet"] += 1
    why += Counter()  # without the zeros
    return [f"judge {judge.label}: rate {why.total()} replies ({_reasons(why)})"] if why else []
