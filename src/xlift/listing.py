"""What `xlift ls` shows: the runs of studies, how far each is, and what it has come to."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from xlift.checkpoint import Checkpoint, checkpoints
from xlift.disk import is_locked
from xlift.errors import DataError
from xlift.languages import get_language
from xlift.progress import or_told
from xlift.records import Logged, counted, read_records
from xlift.report.formats import EMPTY_CELL
from xlift.terminal import middle, paged, terminal_room
from xlift.workspace import RunFolder, StudyFolder, manifest_of, unused_runs


def study_state(folder: StudyFolder) -> dict[str, Any]:
    """A study's runs, those that it no longer has too: the state of their stages, the step they have reached, and
    `result`: by language, the share of answers to test prompts that the study's first rater gives 2."""
    working = is_locked(folder.path / ".lock")
    last = {one.run.id: one for one in or_told(partial(checkpoints, folder), [])}
    runs = [
        {"run": run.id, "in_study": True, "stages": _stages(run.path, working), "step": _step(run)}
        | {"result": _shares(last[run.id]) if run.id in last else {}}
        for run in folder.runs
    ]
    left = [
        {"run": path.name, "in_study": False, "stages": _stages(path, working), "step": None, "result": {}}
        for path in unused_runs(folder)
    ]
    return {"study": folder.study.name, "folder": str(folder.path), "runs": [*runs, *left]}


def _stages(run: Path, working: bool) -> dict[str, str]:
    try:
        told = {name: stage["state"] for name, stage in manifest_of(run)["stages"].items()}
    except DataError as error:
        return {"manifest.json": error.problems[0]}
    # Nobody is at work: it was killed before it could say so.
    return {name: "interrupted" if state == "running" and not working else state for name, state in told.items()}


def _step(run: RunFolder) -> int | None:
    """The last step that was written down."""
    log = list(or_told(partial(read_records, run.train_log, Logged), [])) if run.trains else []
    return log[-1]["step"] if log else None


def _shares(one: Checkpoint) -> dict[str, float]:
    rater = one.study.raters[0]
    tests = {prompt["id"] for prompt in one.prompts if prompt["split"] == "test"}
    values: dict[str, list[bool]] = {}
    for rating in or_told(lambda: one.ratings, []):
        if rating["rater"] != rater or rating["id"] not in tests:
            continue
        if (value := counted(rating)) is not None:
            values.setdefault(rating["language"], []).append(value == 2)
    return {code: sum(own) / len(own) for code, own in values.items()}


def states_text(states: Sequence[dict[str, Any]]) -> str:
    """Studies as tables of their runs: how far they are, and the mean and the worst of the other languages."""
    if not states:
        return "nothing in results/; xlift run STUDY.yaml makes a study"
    return "\n".join(_state_text(state) for state in states)


def _state_text(state: dict[str, Any]) -> str:
    rows = [
        [one["run"], _stage_text(one), str(one["step"] or EMPTY_CELL), *_result(one["result"])] for one in state["runs"]
    ]
    head = ["run", "state", "step", "others", "worst"]
    others = sum(max(map(cell_len, column)) + 2 for column in list(zip(head, *rows, strict=True))[1:])
    room = max(10, terminal_room() - others)
    names = [[middle(row[0], room) if terminal_room() else row[0], *row[1:]] for row in rows]
    return f"{state['study']}  {state['folder']}\n" + paged([head, *names])


# e.g. _result({"en": 1.0, "fr": 0.5, "ru": 0.25}) → ["38%", "25% ru"]
# e.g. _result({}) → ["–", "–"]
def _result(shares: dict[str, float]) -> list[str]:
    """The mean over the languages other than English, and the worst of them."""
    others = {code: share for code, share in shares.items() if code != "en"} or shares
    if not others:
        return [EMPTY_CELL, EMPTY_CELL]
    worst = min(others, key=lambda code: others[code])
    return [f"{sum(others.values()) / len(others):.0%}", f"{others[worst]:.0%} {get_language(worst).code}"]


# e.g. _stage_text({"stages": {"manifest.json": "a/b: not JSON: …"}, "in_study": True}) → "manifest.json not JSON"
# e.g. _stage_text({"stages": {"train": "done", "generate": "interrupted"}, "in_study": True}) → "generate interrupted"
def _stage_text(run: dict[str, Any]) -> str:
    # Of a damaged manifest the reason alone, not where it is nor what a parser says: the table must stay one.
    states = {name: state.split(": ")[1] if ": " in state else state for name, state in run["stages"].items()}
    open_ones = [f"{name} {state}" for name, state in states.items() if state != "done"]
    whole = {"generate", "rate"} <= run["stages"].keys()
    there = "done" if whole else f"{list(run['stages'])[-1]} done" if run["stages"] else "not started"
    told = ", ".join(open_ones) or there
    return told if run["in_study"] else f"no longer in the study ({told})"
