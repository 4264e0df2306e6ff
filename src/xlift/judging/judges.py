"""Which judges are meant, and what they are set to: the responses of a study or a file, two runs, or the probe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from xlift.checkpoint import checkpoints, readable
from xlift.errors import MAX_PROBLEMS, ConfigError, DataError, nearest
from xlift.judging.across import across_records, across_text, items_of
from xlift.judging.panel import panel_text, unity
from xlift.judging.probe import (
    estimate_probe,
    parallel_answers,
    probe,
    probe_cases,
    probe_records,
    probe_table,
    probed_before,
)
from xlift.judging.ratings import (
    CallEstimate,
    JudgingOutcome,
    Part,
    estimate_ratings,
    estimate_text,
    judge_parts,
    ledger_path,
    outcome_text,
)
from xlift.languages import language_codes
from xlift.progress import say
from xlift.rating.files import check_files, count_rows, read_responses
from xlift.rating.foreign import ReadingOptions
from xlift.servers.client import PACE, Pace
from xlift.study.data import builtin_languages
from xlift.study.loading import problems_of
from xlift.study.served import Judge
from xlift.workspace import RunFolder, StudyFolder, find_study, locked

PROBES = Path("results") / "probes"
_ASKS = ("model", "calls", "facets", "scales", "rubrics")
"""Settings with an option that decide what is asked, and so which ratings belong to a judge."""


def settings_of(given: dict[str, Any], base: Judge | None = None) -> Judge:
    """A judge from options, in place of those of `base`. Raises ConfigError that lists what is wrong."""
    known = base.model_dump() if base else {}
    if "model" not in given and base is None:
        raise ConfigError("which model is the judge?", "--model NAME --base-url http://localhost:8000/v1")
    problems = problems_of(Judge, known | given)
    if problems:
        raise ConfigError(problems, "xlift judge --help")
    return Judge.model_validate(known | given)


# e.g. read_scale(" politeness=1-5") → ("politeness", [1, 5])
def read_scale(text: str) -> tuple[str, list[int]]:
    """A scale as an option says it. Raises ConfigError for what is none."""
    found = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+)\s*-\s*(\d+)\s*", text)
    if not found:
        raise ConfigError(f"--scales: '{text.strip()}' is not FACET=LOWEST-BEST", "--scales politeness=1-5,tact=0-3")
    return found[1], [int(found[2]), int(found[3])]


def judges_of(workspace: StudyFolder, name: str | None, given: dict[str, Any]) -> list[Judge]:
    """The study's judges, or the one named, with options in place of their settings; or one made of options alone.

    Raises ConfigError where there is none.
    """
    there = {judge.label: judge for judge in workspace.study.judges}
    if name is not None and name not in there:
        raise ConfigError(f"unknown judge '{name}'; {nearest(name, there)}" if there else "the study has no judges")
    chosen = [there[name]] if name else list(there.values())
    if not chosen and "model" not in given:
        raise ConfigError("the study has no judges", "add `judges:` to the study file, or --model NAME --base-url URL")
    return [settings_of(given, judge) for judge in chosen] or [settings_of(given)]


def one_of_study(source: Path, name: str | None, given: dict[str, Any]) -> Judge:
    """The one judge that is meant. Raises ConfigError where the study has several and none is named."""
    found = judges_of(find_study(source), name, given)
    if len(found) > 1:
        raise ConfigError(f"which judge? {', '.join(judge.label for judge in found)}", "--judge NAME")
    return found[0]


class Told(NamedTuple):
    """What came of a command: as text, and for other programs."""

    text: str
    data: dict[str, Any]


def _told(made: CallEstimate | JudgingOutcome, judge: Judge, what: str = "responses") -> Told:
    text = estimate_text(made, judge, what) if isinstance(made, CallEstimate) else outcome_text(made)
    return Told(text, {"judge": judge.label, "model": judge.model, **asdict(made)})


def judge_study(source: Path, name: str | None, given: dict[str, Any], dry: bool) -> Told:
    """Let judges rate all responses of a study, or say what that would take."""
    workspace = find_study(source)
    found = judges_of(workspace, name, given)
    if dry:
        told = [_told(_estimate(workspace, judge), judge) for judge in found]
    else:
        _refuse_others(workspace, found)
        with locked(workspace.path):
            told = [_told(judge_with(workspace, judge), judge) for judge in found]
        told += _told_panel(workspace)
    return Told("\n\n".join(one.text for one in told), {"judges": [one.data for one in told]})


def _told_panel(workspace: StudyFolder) -> list[Told]:
    """How far the study's panel agrees, where it has one."""
    panel, judges = workspace.study.panel, workspace.study.judges
    found = unity(rating for one in readable(checkpoints(workspace)) for rating in one.ratings) if panel else []
    if not panel or not found:
        return []
    data = {"panel": panel.name, "agreement": [one._asdict() for one in found]}
    return [Told(panel_text(panel, judges, found), data)]


def _estimate(workspace: StudyFolder, judge: Judge) -> CallEstimate:
    return estimate_ratings(judged_parts(workspace, judge), judge, ledger_path(workspace.path, judge))


def _refuse_others(workspace: StudyFolder, judges: Sequence[Judge]) -> None:
    """Raises ConfigError for judges whose ratings would not be found again: the report reads those of the study."""
    there = {judge.label: judge for judge in workspace.study.judges}
    problems = [f"not a judge of this study: {judge.label}" for judge in judges if judge.label not in there]
    for judge in judges:
        own = there.get(judge.label, judge)
        changed = [key for key in _ASKS if getattr(judge, key) != getattr(own, key)]
        problems += [f"judge '{judge.label}' of this study has {key}: {getattr(own, key)}" for key in changed]
    if problems:
        raise ConfigError(problems, "write it under `judges:` in the study file; only a --dry-run may differ from it")


def judge_with(workspace: StudyFolder, judge: Judge) -> JudgingOutcome:
    """Let one judge rate every response of a study that it has not rated yet."""
    parts = judged_parts(workspace, judge)
    return judge_parts(parts, judge, ledger_path(workspace.path, judge), sum(len(items) for items, _ in parts))


def judged_parts(workspace: StudyFolder, judge: Judge) -> list[tuple[list[dict[str, Any]], Path]]:
    """The responses of every checkpoint that counts, with the file for the judge's ratings of them."""
    return [(one.rateable, one.judge_file(judge)) for one in readable(checkpoints(workspace))]


def judge_responses_file(
    source: Path, output: Path | None, judge: Judge, dry: bool, asked: ReadingOptions | None = None
) -> Told:
    """Let a judge rate any file of responses. Raises DataError for rows that cannot be read; the rest is judged."""
    if output is None:
        raise ConfigError("where should the ratings go?", f"xlift judge {source} -o RATINGS.jsonl --model …")
    if dry:
        check_files(source, output)
        unreadable: list[str] = []
        part: Part = (read_responses(source, unreadable, asked), output)
        found = _told(estimate_ratings([part], judge, output.with_suffix(".ledger.jsonl")), judge)
        if unreadable:
            say(found.text)
            raise DataError(unreadable, f"mend these lines of {source}; the rest would be judged")
        return found
    outcome = judge_file(source, output, judge, asked=asked)
    if outcome.problems:
        say(outcome_text(outcome))
        raise DataError(outcome.problems, f"mend these lines of {source} and run again; the rest is judged")
    return _told(outcome, judge)


def judge_file(
    source: Path,
    output: Path,
    settings: Judge,
    ledger: Path | None = None,
    pace: Pace = PACE,
    asked: ReadingOptions | None = None,
) -> JudgingOutcome:
    """Judge every response of a file of any kind; the ledger lies beside the ratings where it is not given.

    Lines that cannot be read are reported in the outcome and the rest is judged. Raises DataError (`check_files`).
    """
    check_files(source, output)
    unreadable: list[str] = []
    items = read_responses(source, unreadable, asked)
    # Batches go through the responses repeatedly.
    part: Part = (list(items) if settings.batch else items, output)
    kept = ledger or output.with_suffix(".ledger.jsonl")
    outcome = judge_parts([part], settings, kept, count_rows(source), pace)
    outcome.unreadable, outcome.problems = len(unreadable), unreadable[:MAX_PROBLEMS]
    return outcome


def judge_pair(source: Path, judge: Judge, first: str, second: str, dry: bool) -> Told:
    """Ask a judge which of two runs answers better, or say what that would take."""
    from xlift.judging import pairs as compared

    workspace = find_study(source)
    one, other = (_run_named(workspace, name) for name in (first, second))
    if one == other:
        raise ConfigError(f"--pair {first} {second}: one run, not two", "xlift ls STUDY shows the runs")
    pairs = compared.pairs_of(*(_answers(workspace, run) for run in (one, other)))
    if not pairs:
        raise DataError(f"{first} and {second} have not answered the same prompts", "xlift generate STUDY")
    target = workspace.path / "comparisons" / f"{one.id}.{other.id}.judge-{judge.label}.jsonl"
    ledger = ledger_path(workspace.path, judge)
    if dry:
        return _told(compared.estimate_pairs(pairs, judge, target, ledger), judge, "pairs")
    with locked(workspace.path):
        stopped = compared.compare_pairs(pairs, judge, target, ledger)
    if stopped:
        say(f"stopped: {stopped}")
    found = compared.summarise_pairs(compared.current_comparisons(target, pairs, judge))
    data = {
        "judge": judge.label,
        "first": one.label,
        "second": other.label,
        "languages": [asdict(row) for row in found],
    }
    return Told(compared.comparison_table(found, one.label, other.label), data | {"stopped": stopped})


def _run_named(workspace: StudyFolder, name: str) -> RunFolder:
    found = [run for run in workspace.runs if Path(name).name in {run.id, run.label}]
    if not found:
        labels = [run.label for run in workspace.runs]
        raise ConfigError(f"unknown run '{name}'; {nearest(name, labels)}", "xlift ls STUDY")
    return found[0]


def _answers(workspace: StudyFolder, run: RunFolder) -> list[dict[str, Any]]:
    found = [one for one in checkpoints(workspace) if one.run.id == run.id]
    return [one for one in found[-1].rateable if one["split"] == "test"] if found else []


def probe_languages(source: Path | None, given: str | None) -> list[str] | None:
    """The languages of a probe: those given, else the study's as far as they are built in, else all (None)."""
    if given is not None:
        return language_codes(given)
    if source is None:
        return None
    asked = find_study(source).study.prompts.languages
    return [code for code in asked if code in builtin_languages()]


def probe_folder(source: Path | None) -> Path:
    """Where probes are kept: with a study's results, or here, so that what is answered is not paid again."""
    return PROBES if source is None else find_study(source).path / "probes"


def probe_judge(judge: Judge, folder: Path, languages: Sequence[str] | None, dry: bool) -> Told:
    """Test a judge on responses with known faults, and on the same answers in several languages, or say what it takes.

    What is answered is kept in `folder` and not paid again.
    """
    if dry:
        return _told(estimate_probe(judge, folder, languages), judge)
    cases = probe_cases(languages)
    found, outcome = probe(judge, folder, cases)
    ratings = [one for one in probed_before(judge, folder) if one["language"] in {case["language"] for case in cases}]
    items = items_of(parallel_answers(), ratings)
    parts = [probe_table(found), across_text(items), outcome_text(outcome)]
    data = {"judge": judge.label, "probe": probe_records(found), "across": across_records(items)}
    return Told("\n\n".join(part for part in parts if part), data | {"outcome": asdict(outcome)})


def examine_judge(judge: Judge, folder: Path, source: str, languages: str | None, size: int | None, dry: bool) -> Told:
    """Examine a judge on published pairs of a better and a worse answer, or say what it takes; kept as a probe is."""
    from xlift.judging import pairs as compared
    from xlift.judging.exams import exam_of, exam_pairs

    pairs = exam_pairs(source, None if languages is None else language_codes(languages), size)
    target, ledger = folder / f"exam-{source.partition(':')[0]}-{judge.label}.jsonl", ledger_path(folder, judge)
    if dry:
        return _told(compared.estimate_pairs(pairs, judge, target, ledger), judge, "pairs")
    stopped = compared.compare_pairs(pairs, judge, target, ledger)
    if stopped:
        say(f"stopped: {stopped}")
    text, data = exam_of(pairs, compared.current_comparisons(target, pairs, judge))
    return Told(
        f"{judge.label} on {source}\n\n{text}", {"judge": judge.label, "source": source, **data, "stopped": stopped}
    )
