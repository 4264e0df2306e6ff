"""Ratings of people, out and in.

Out: the rating records of every rater, as JSONL or as CSV with the columns of COLUMNS.
In: CSV with these columns, a Label Studio JSON export, or potato's annotated_instances.jsonl (docs/annotation.md).
A file comes in whole or not at all; all that is wrong with it is reported together, with line numbers.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import sqlalchemy as sa
from sqlalchemy import Connection

from xlift.annotation import database as db
from xlift.annotation.sampling import LEVELS
from xlift.annotation.scheme import Scheme, scheme_of
from xlift.data.tabular import delimiter_of, rows
from xlift.disk import encode_record, write_atomic, write_jsonl
from xlift.errors import ConfigError, DataError, nearest, shortened
from xlift.languages import find_language, known_code, language_problem
from xlift.rating import text_fingerprint
from xlift.records import Rating, scale_fields
from xlift.workspace import StudyFolder

HUMAN_SIGNATURE = "human v1"
NEEDED = ("id", "language", "run", "step", "facet", "rater", "value")
_FORMULA, _SHIELDED = re.compile(r"\A['=+\-@\t\r]"), re.compile(r"\A'(?=['=+\-@\t\r])")
"""A comment that a spreadsheet would compute is written behind an apostrophe, which reading takes away."""
COLUMNS = (*NEEDED, "reason", "comment", "seconds", "raw", "response", "signature")


class Judged(NamedTuple):
    """What one annotator says of one task: per facet the verdict, and the last judgement of each field."""

    name: str
    task: Any
    verdicts: dict[str, db.FacetVerdict]
    last: dict[str, Any]
    seconds: float


class Given(NamedTuple):
    """One value read from a file: where it stood, what identifies the response, and what was said of it."""

    where: str
    id: str
    run: str
    step: str
    facet: str
    rater: str
    value: str
    reason: str = ""
    detail: dict[str, Any] = {}  # noqa: RUF012
    signature: str = ""
    language: str = ""


def judged_tasks(connection: Connection) -> Iterator[Judged]:
    """Everything judged so far, by annotator and task in the order of their names."""
    names = {row.id: row.name for row in connection.execute(sa.select(db.annotators))}
    tasks = {row.id: row for row in connection.execute(sa.select(db.tasks))}
    rows = defaultdict(list)
    facets = db.asked(connection)
    for row in connection.execute(sa.select(db.judgements).order_by(db.judgements.c.id)):
        rows[names[row.annotator], row.task].append(row)
    for (name, task), own in sorted(rows.items(), key=lambda item: item[0]):
        seconds = sum(row.seconds for row in own)
        last = {row.field: row for row in own}
        yield Judged(name, tasks[task], db.verdicts(db.last_values(own), facets), last, seconds)


def rating_records(connection: Connection) -> list[Rating]:
    """The ratings of people without those of control items, and the imported ones."""
    scheme = scheme_of(connection)
    judged = [one for one in judged_tasks(connection) if one.task.expected is None]
    own = [record for one in judged for record in _records(one, scheme)]
    taken = connection.execute(sa.select(db.imported.c.record).order_by(*db.imported.primary_key))
    return own + [cast(Rating, json.loads(row.record)) for row in taken]


def control_records(connection: Connection) -> list[Rating]:
    """The ratings of control items."""
    judged = [one for one in judged_tasks(connection) if one.task.expected is not None]
    return [record for one in judged for record in _records(one, scheme_of(connection))]


def _records(one: Judged, scheme: Scheme) -> Iterator[Rating]:
    spans, levels = {span.name: span.of for span in scheme.spans}, scheme.levels
    shared: dict[str, Any] = {"seconds": round(one.seconds, 1)} if one.seconds else {}
    comment = json.loads(one.last["comment"].value) if "comment" in one.last else ""
    if comment:
        shared["comment"] = comment
    if "answers" in one.last and (answers := json.loads(one.last["answers"].value)):
        shared["answers"] = answers
    for facet, verdict in one.verdicts.items():
        if not verdict.given:
            continue
        source = one.last[db.WHOLE if verdict.reason and _whole(one) else "fluency" if verdict.by_rule else facet]
        raw = {"raw": verdict.raw} if verdict.by_rule or (verdict.raw != verdict.value) else {}
        detail = {**raw, **shared, **_marked(one, facet, spans)}
        record: Rating = {
            "id": one.task.prompt,
            "language": one.task.language,
            "run": one.task.run,
            "step": one.task.step,
            "facet": facet,
            "rater": f"human:{one.name}",
            # The rule about fluency 0 gives the lowest value that there is.
            "value": levels[facet][-1] if verdict.by_rule else verdict.value,
            "response": one.task.response,
            "signature": f"{HUMAN_SIGNATURE}|guidelines {source.guidelines}|{source.interface}",
        }
        record = cast(Rating, record | scale_fields(levels[facet]))
        if (shown := json.loads(one.task.shown)).get("other"):
            record = cast(Rating, record | {"other": shown["other"]["run"], "other_step": shown["other"]["step"]})
        if verdict.reason:
            record["reason"] = verdict.reason
        if detail:
            record["detail"] = detail
        yield record


def _marked(one: Judged, facet: str, spans: dict[str, str]) -> dict[str, Any]:
    """The spans that were marked of a facet, in characters of the response, with their text."""
    text = json.loads(one.task.shown)["text"]
    marked = json.loads(one.last["spans"].value) if "spans" in one.last else []
    own = [span | {"text": text[span["start"] : span["end"]]} for span in marked if spans.get(span["label"]) == facet]
    return {"spans": own} if own else {}


def _whole(one: Judged) -> bool:
    return db.WHOLE in one.last and json.loads(one.last[db.WHOLE].value) is not None


def check_target(target: Path) -> None:
    """Raises ConfigError unless ratings can be written under this name."""
    if target.suffix not in {".jsonl", ".csv"}:
        raise ConfigError(f"{target}: ratings are written as .jsonl or .csv", "--export ratings.jsonl")


def write_ratings(target: Path, records: Sequence[Rating]) -> None:
    """Write records as JSONL or CSV, by the name's ending, atomically."""
    check_target(target)
    if target.suffix == ".jsonl":
        write_jsonl(target, records)
        return
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS)
    table.writeheader()
    for record in records:
        detail = record.get("detail", {})
        flat: dict[str, Any] = {**{key: detail.get(key) for key in ("seconds", "raw")}, **record}
        flat["comment"] = _FORMULA.sub(r"'\g<0>", detail.get("comment") or "")
        table.writerow({key: flat.get(key) for key in COLUMNS})
    # Comments may hold lone surrogates, which UTF-8 cannot.
    write_atomic(target, text.getvalue().encode("utf-8", "replace"))


def save_study_ratings(workspace: StudyFolder, records: Iterable[Rating]) -> int:
    """Write people's ratings to runs/<run>/ratings/step-<n>.human.jsonl, whole files; how many were written.

    Records of runs that are not in the study are left out.
    """
    runs = {run.id: run for run in workspace.runs}
    groups = defaultdict(list)
    for record in records:
        # A comparison is of two runs: the exported file alone has it.
        if record["run"] in runs and "other" not in record:
            groups[record["run"], record["step"]].append(record)
    for (run, step), group in groups.items():
        write_atomic(runs[run].ratings(step, "human"), b"".join(map(encode_record, group)))
    return len(groups)


def store_imported(connection: Connection, records: Iterable[Rating]) -> None:
    """Keep imported records; the same rater's earlier value for the same facet of a response is replaced."""
    for record in records:
        columns = {"run": record["run"], "step": record["step"], "prompt": record["id"]}
        key = {**columns, "facet": record["facet"], "rater": record["rater"]}
        same = sa.and_(*[db.imported.c[name] == value for name, value in key.items()])
        connection.execute(db.imported.delete().where(same))
        connection.execute(db.imported.insert().values(**key, record=json.dumps(record)))


def read_ratings(
    path: Path, responses: Sequence[dict[str, Any]], labels: dict[str, str], taken: set[str], scheme: Scheme
) -> list[Rating]:
    """The rating records of a CSV (.csv), Label Studio (.json) or potato (.jsonl) file.

    `labels` map the runs' labels to their folder names, `taken` are names of annotators of this campaign; what `scheme`
    asks may be rated beside the built-in facets. Raises DataError with every value that does not fit.
    """
    readers = {".csv": _from_csv, ".json": _from_label_studio, ".jsonl": _from_potato}
    if path.suffix not in readers:
        raise ConfigError(f"{path}: choices: .csv, Label Studio's .json, potato's annotated_instances.jsonl")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    problems: list[str] = []
    given = list(readers[path.suffix](path, problems))
    levels = LEVELS | scheme.levels
    index = {(r.get("run", ""), r.get("step", 0), r["id"]): r for r in responses}
    records, seen = [], set()
    for one in given:
        one = one._replace(run=labels.get(one.run, one.run))
        wrong = _given_problems(one, index, taken, levels)
        key = (one.run, one.step, one.id, one.facet, one.rater)
        if not wrong and key in seen:
            wrong = [f"{one.where}: {one.rater} gives {one.facet} of '{one.id}' a second time"]
        seen.add(key)
        problems += wrong
        records += [] if wrong else [_to_record(one, index, levels)]
    if not given and not problems:
        problems = [f"{path}: holds no ratings"]
    if problems:
        raise DataError(shortened(problems), "nothing was taken in; mend these and import again")
    return records


def _given_problems(
    one: Given,
    index: dict[tuple[str, int, str], dict[str, Any]],
    taken: set[str],
    facets: Mapping[str, tuple[int, ...]],
) -> list[str]:
    problems = []
    if one.facet not in facets:
        problems.append(f"{one.where}: unknown facet '{one.facet}'; {nearest(one.facet, facets)}")
    values = [str(value) for value in sorted(facets.get(one.facet, LEVELS["fluency"]))]
    if one.value not in {"", *values}:
        told = ", ".join(values)
        problems.append(f"{one.where}: value must be {told} or empty (could not be judged), found '{one.value}'")
    if not one.rater:
        problems.append(f"{one.where}: no rater")
    elif wrong := db.wrong_name(one.rater):
        problems.append(f"{one.where}: rater '{one.rater:.40}': {wrong}")
    elif one.rater in taken:
        problems.append(f"{one.where}: '{one.rater}' annotates in this campaign; give the imported rater another name")
    if not re.fullmatch(r"\d{1,18}", one.step):
        return [*problems, f"{one.where}: step must be a whole number, found '{one.step:.40}'"]
    response = index.get((one.run, int(one.step), one.id))
    if response is None:
        return [*problems, f"{one.where}: {_nothing_like(one, index)}"]
    if one.language and not find_language(one.language):
        problems.append(f"{one.where}: {language_problem(one.language)}")
    elif one.language and known_code(one.language) != response["language"]:
        problems.append(f"{one.where}: '{one.id}' is in {response['language']}, not in {one.language}")
    return problems


def _nothing_like(one: Given, index: dict[tuple[str, int, str], dict[str, Any]]) -> str:
    runs = sorted({run for run, _, _ in index})
    if one.run not in runs:
        return f"no responses by run '{one.run}'; {nearest(one.run, runs)}"
    steps = sorted({step for run, step, _ in index if run == one.run})
    if int(one.step) not in steps:
        return f"no responses by run '{one.run}' at step {one.step}; steps: {', '.join(map(str, steps))}"
    return f"no response to prompt '{one.id}' by run '{one.run}' at step {one.step}"


def _to_record(
    one: Given, index: dict[tuple[str, int, str], dict[str, Any]], facets: Mapping[str, tuple[int, ...]]
) -> Rating:
    response = index[one.run, int(one.step), one.id]
    record: Rating = {
        "id": one.id,
        "language": response["language"],
        "run": one.run,
        "step": int(one.step),
        "facet": one.facet,
        "rater": f"human:{one.rater}",
        "value": int(one.value) if one.value else None,
        "response": text_fingerprint(response),
        "signature": one.signature,
    }
    record = cast(Rating, record | scale_fields(facets[one.facet]))
    if not one.value:
        record["reason"] = one.reason or f"cannot judge: {db.NO_REASON}"
    if one.detail:
        record["detail"] = one.detail
    return record


def _from_csv(path: Path, problems: list[str]) -> Iterator[Given]:
    text = _text_of(path)
    delimiter = delimiter_of(text.partition("\n")[0])
    rows = csv.DictReader(io.StringIO(text, newline=""), restkey="?", restval="", strict=True, delimiter=delimiter)
    try:
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or []]
        missing = [name for name in NEEDED if name not in (rows.fieldnames or [])]
    except csv.Error as error:
        problems.append(f"{path}:1: {error}")
        return
    if missing:
        problems.append(f"{path}:1: columns are missing: {', '.join(missing)}; needed: {', '.join(NEEDED)}")
        return
    ended = 1
    try:
        for row in rows:
            line, ended = ended + 1, rows.line_num
            yield from _csv_row(dict(row), f"{path}:{line}", problems)
    except csv.Error as error:
        problems.append(f"{path}:{rows.line_num}: {error}")


def _csv_row(row: dict[str, Any], where: str, problems: list[str]) -> Iterator[Given]:
    if row.pop("?", None):
        problems.append(f"{where}: more values than columns")
        return
    told = {key: row.get(key, "").strip() for key in COLUMNS if key != "comment"}
    detail: dict[str, Any] = {}
    for name, number in (("raw", int), ("seconds", float)):
        try:
            detail |= {name: _counted(number(told[name].replace(",", ".")))} if told[name] else {}
        except ValueError:
            problems.append(f"{where}: {name} must be a number, found '{told[name]:.40}'")
    if row.get("comment"):
        detail["comment"] = _SHIELDED.sub("", row["comment"])
    plain = {key: told[key] for key in ("id", "run", "step", "facet", "reason", "language")}
    value = re.sub(r"[.,]0+$", "", told["value"])
    signature = told["signature"] or f"{HUMAN_SIGNATURE}|from CSV"
    rater = told["rater"].removeprefix("human:")
    yield Given(where, **plain, rater=rater, value=value, detail=detail, signature=signature)


# e.g. _counted(2.5) → 2.5
def _counted(number: Any) -> Any:
    """A number as it is. Raises ValueError for NaN, and for what no time and no rating can be."""
    if not isinstance(number, int | float) or not 0 <= number < 1e9:
        raise ValueError("neither a time nor a rating")
    return number


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig", errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})", "save it as UTF-8 and import again") from None


def _from_label_studio(path: Path, problems: list[str]) -> Iterator[Given]:
    for where, task in _exported(path, problems):
        data = task.get("data")
        if not isinstance(data, dict) or any(name not in data for name in ("id", "run", "step")):
            problems.append(f"{where}: the task's data must hold id, run and step of the response")
            continue
        place = {name: str(data[name]) for name in ("id", "run", "step")}
        annotations = task.get("annotations")
        for annotation in annotations if isinstance(annotations, list) else []:
            if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
                yield from _label_studio_annotation(annotation, place, where)


def _label_studio_annotation(annotation: dict[str, Any], place: dict[str, str], where: str) -> Iterator[Given]:
    who = annotation.get("completed_by", "")
    rater = str((who.get("email") or who.get("id") or "") if isinstance(who, dict) else "" if who is None else who)
    results = annotation.get("result")
    marked = [one for one in results if isinstance(one, dict)] if isinstance(results, list) else []
    told = {str(one.get("from_name")): one.get("value") for one in marked}
    detail: dict[str, Any] = {}
    with suppress(ValueError):
        detail["seconds"] = round(_counted(annotation.get("lead_time")), 1)
    comment = told.pop("comment", None)
    if isinstance(comment, dict) and comment.get("text"):
        lines = comment["text"] if isinstance(comment["text"], list) else [comment["text"]]
        detail["comment"] = "\n".join(map(str, lines))
    for facet, value in told.items():
        options = value if isinstance(value, dict) else {}
        choices = options.get("choices")
        rated = [options.get("rating", options.get("number", ""))]
        chosen = choices if isinstance(choices, list) and choices else rated
        yield _labelled(where, place, str(facet), rater, chosen, detail, "Label Studio")


# e.g. _labelled("", {"id": "", "run": "", "step": ""}, "fluency", "Ana", ["2: natural"], {}, "").value → "2"
# e.g. _labelled("", {"id": "", "run": "", "step": ""}, "fluency", "Ana", ["cannot judge"], {}, "").value → ""
def _labelled(
    where: str, place: dict[str, str], facet: str, rater: str, chosen: list[Any], detail: dict[str, Any], source: str
) -> Given:
    """A value from the labels that were chosen: "2", "2: natural", "scale_2", or "cannot judge"."""
    label = str(chosen[0]) if len(chosen) == 1 else ", ".join(map(str, chosen))
    digits = re.findall(r"(?<![0-9])[0-9]+(?![0-9])", label)
    cannot = label.lower().startswith("cannot judge")
    value = "" if cannot else digits[0] if len(digits) == 1 else label or "nothing"
    reason = label if cannot and ":" in label else ""
    return Given(where, **place, facet=facet, rater=rater, value=value, reason=reason, detail=detail,
                 signature=f"{HUMAN_SIGNATURE}|from {source}")  # fmt: skip


def _exported(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of an export, each with the line where it begins."""
    try:
        for row in rows(path):
            if row.problem:
                problems.append(row.problem)
            else:
                yield row.where, row.record
    except DataError as error:
        problems += error.problems


def _from_potato(path: Path, problems: list[str]) -> Iterator[Given]:
    rater = path.resolve().parent.name
    for where, record in _exported(path, problems):
        place = _potato_place(record.get("id", record.get("instance_id")))
        labels = record.get("label_annotations")
        if place is None or not isinstance(labels, dict):
            problems.append(f"{where}: expected an id of the form RUN/step-N/PROMPT and label_annotations")
            continue
        yield from _potato_labels(labels, place, str(record.get("user_id") or rater), where, record)


def _potato_labels(
    labels: dict[str, Any], place: dict[str, str], rater: str, where: str, record: dict[str, Any]
) -> Iterator[Given]:
    detail: dict[str, Any] = {}
    spent = record.get("behavioral_data")
    told = str(spent.get("time_string", "")) if isinstance(spent, dict) else ""
    units = dict(zip("dhms", (86400, 3600, 60, 1), strict=True))
    if seconds := sum(int(count) * units[unit] for count, unit in re.findall(r"(?<!\d)(\d{1,9})([dhms])", told)):
        detail["seconds"] = float(seconds)
    comment = labels.get("comment")
    if isinstance(comment, dict) and comment:
        detail["comment"] = str(next(iter(comment.values())))
    for facet, options in labels.items():
        if facet != "comment":
            marked = options if isinstance(options, dict) else {str(options): True}
            chosen = [label for label, value in marked.items() if value not in (False, None, "", "false")]
            yield _labelled(where, place, facet, rater, chosen, detail, "potato")


# e.g. _potato_place("lora-r16/step-4/open-1.fr") → {"run": "lora-r16", "step": "4", "id": "open-1.fr"}
def _potato_place(identity: Any) -> dict[str, str] | None:
    found = re.fullmatch(r"(.*?)/step-(\d+)/(.+)", identity, re.DOTALL) if isinstance(identity, str) else None
    return {"run": found[1], "step": found[2], "id": found[3]} if found else None
