"""What `xlift annotate` does: sample and assign, make and withdraw links, serve, show progress, export, import."""

from __future__ import annotations

import json
import secrets
import socket
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from xlift.annotation import database as db
from xlift.annotation import sampling, transfer
from xlift.annotation.words import INTERFACES
from xlift.errors import ConfigError, DataError
from xlift.languages import find_language, language_code, language_problem
from xlift.progress import say
from xlift.terminal import aligned
from xlift.workspace import StudyFolder, find_study

ADDRESS = "http://127.0.0.1:8765"


class Plan(NamedTuple):
    """How a campaign is sampled; None means as before, or the default where it is the first time."""

    per_response: int | None = None
    per_cell: int | None = None
    total: int | None = None
    seed: int | None = None
    split: str | None = None


DEFAULTS = {"per_response": 2, "per_cell": 10, "total": None, "seed": 0, "split": "test"}


class Campaign(NamedTuple):
    """A source of responses (a study, or a JSONL file where `workspace` is None) and the database of its ratings."""

    path: Path
    workspace: StudyFolder | None
    database: db.Database

    def responses(self, split: str | None = None) -> list[dict[str, Any]]:
        """The responses that may be rated."""
        if self.workspace is None:
            return sampling.file_responses(self.path)
        return sampling.study_responses(self.workspace, split)


def open_campaign(source: Path, database: str | None = None) -> Campaign:
    """The campaign of a study (file or folder) or a responses file; by default its database lies beside the responses.

    Raises ConfigError where there is no such study, DataError where there is no such file.
    """
    if source.suffix == ".jsonl":
        if not source.is_file():
            raise DataError(f"{source}: no such file")
        beside, workspace = source.with_suffix(".annotations.sqlite"), None
    else:
        workspace = find_study(source)
        beside = workspace.path / "annotations.sqlite"
        if not workspace.path.is_dir():
            raise DataError(f"{workspace.path}: this study has no responses yet", f"xlift run {source}")
    return Campaign(source, workspace, db.connect(database or db.sqlite_url(beside)))


def add(
    campaign: Campaign,
    name: str,
    languages: Sequence[str],
    plan: Plan | None = None,
    controls: Path | None = None,
    address: str = ADDRESS,
    days: int = db.DAYS,
) -> str:
    """Add an annotator, sample and assign; the text with the personal link, which is shown this once.

    Raises ConfigError for a wrong or taken name, an unknown language, a changed seed or an impossible number of `days`
    that the link works, DataError where no response can be sampled.
    """
    codes = _checked_person(name, languages)
    responses = campaign.responses()
    known = sampling.read_controls(controls) if controls else []
    with campaign.database.write.begin() as connection:
        settled = _settle(connection, plan or Plan())
        eligible = [r for r in responses if settled["split"] in (None, "all", r.get("split", settled["split"]))]
        if not eligible:
            raise DataError(f"{campaign.path}: no responses to rate", f"xlift run {campaign.path}")
        chosen = sampling.sample(eligible, settled["per_cell"], settled["total"], settled["seed"])
        _add_tasks(connection, chosen + known)
        interface = next((code for code in codes if code in INTERFACES), "en")
        token = db.add_annotator(connection, name, codes, interface, days)
        _reassign(connection, settled["per_response"], settled["seed"])
        lines = [_link(name, token, address, days), *_summary(connection, name, settled["per_response"])]
    return "\n".join(lines)


def _checked_person(name: str, languages: Sequence[str]) -> list[str]:
    given = [text.strip() for text in languages if text.strip()]
    problems = [language_problem(text) for text in given if not find_language(text)]
    if not name.strip() or len(name) > 100 or not name.isprintable():
        problems.append("a name must be 1 to 100 printable characters")
    if not given:
        problems.append("which languages does this person read?")
    if problems:
        raise ConfigError(problems, "xlift annotate STUDY --add NAME --languages fr,pt")
    return list(dict.fromkeys(map(language_code, given)))


def _settle(connection: Connection, plan: Plan) -> dict[str, Any]:
    """The plan with what it leaves open taken from before, or from the defaults; stored for the next time."""
    before = db.read_setting(connection, "plan") or {}
    given = {key: value for key, value in plan._asdict().items() if value is not None}
    low = [f"{key} must be at least 1" for key in ("per_response", "per_cell", "total") if given.get(key, 1) < 1]
    if given.get("seed", before.get("seed")) != before.get("seed") and before:
        low.append(f"this campaign was begun with seed {before['seed']}, which cannot be changed")
    if low:
        raise ConfigError(low)
    settled = DEFAULTS | before | given
    if plan.total is not None and plan.per_cell is None:
        settled["per_cell"] = None
    db.write_setting(connection, "plan", settled)
    return settled


def _add_tasks(connection: Connection, responses: Sequence[dict[str, Any]]) -> None:
    columns = (db.tasks.c.run, db.tasks.c.step, db.tasks.c.prompt, db.tasks.c.response)
    there = {tuple(row) for row in connection.execute(sa.select(*columns))}
    rows = []
    for response in responses:
        row = sampling.task_row(response, secrets.token_hex(8))
        if (key := (row["run"], row["step"], row["prompt"], row["response"])) not in there:
            there.add(key)
            expected = json.dumps(response["expected"]) if "expected" in response else None
            rows.append({**row, "shown": json.dumps(sampling.shown_of(response)), "expected": expected})
    if rows:
        connection.execute(db.tasks.insert(), rows)


def _reassign(connection: Connection, per_response: int, seed: int) -> None:
    """Share all tasks that nobody has opened yet among the annotators as they are now."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE assignments IN EXCLUSIVE MODE")
    columns = db.assignments.c
    connection.execute(db.assignments.delete().where(columns.opened.is_(None)))
    held = connection.execute(sa.select(columns.annotator, columns.task).order_by(columns.position))
    kept = [(row.annotator, row.task) for row in held]
    people = connection.execute(sa.select(db.annotators))
    readers = {one.id: frozenset(one.languages.split(",")) for one in people if db.works(one)}
    tasks = [_task(row) for row in connection.execute(sa.select(db.tasks).order_by(db.tasks.c.id))]
    new = defaultdict(list)
    for annotator, task in sampling.assign(tasks, readers, kept, per_response, seed):
        new[annotator].append(task)
    for annotator in readers:
        _place(connection, annotator, [task for who, task in kept if who == annotator], new[annotator], seed)


def _task(row: Any) -> sampling.Task:
    languages = frozenset({row.language, row.reply_language})
    return sampling.Task(row.id, languages, row.expected is not None)


def _place(connection: Connection, annotator: int, kept: list[str], new: list[str], seed: int) -> None:
    ordered = sampling.in_order(kept, new, annotator, seed)
    fresh = {"annotator": annotator, "done": False, "skips": 0}
    rows = [{**fresh, "task": task, "position": at} for at, task in enumerate(ordered) if at >= len(kept)]
    for at, task in enumerate(kept):
        own = sa.and_(db.assignments.c.annotator == annotator, db.assignments.c.task == task)
        connection.execute(db.assignments.update().where(own).values(position=at))
    if rows:
        connection.execute(db.assignments.insert(), rows)


def _link(name: str, token: str, address: str, days: int) -> str:
    told = f"keep it secret; it is shown only now, and works until {db.end_in(days)[:10]}"
    return f"personal link of {name} ({told}):\n{address.rstrip('/')}/enter/{token}"


def _summary(connection: Connection, name: str, per_response: int) -> list[str]:
    person = db.annotator_named(connection, name)
    own = len(db.own_tasks(connection, person.id))
    counts = sa.select(db.assignments.c.task, sa.func.count().label("people")).group_by(db.assignments.c.task)
    people = {row.task: row.people for row in connection.execute(counts)}
    sampled = connection.execute(sa.select(db.tasks).where(db.tasks.c.expected.is_(None))).all()
    short = Counter(task.language for task in sampled if people.get(task.id, 0) < per_response)
    lines = [f"{own} responses for {name}; {len(sampled)} in the sample; readers wanted for each: {per_response}"]
    if short:
        waiting = ", ".join(f"{language} {count}" for language, count in sorted(short.items()))
        lines.append(f"still too few readers: {waiting}")
    return lines


def revoke(campaign: Campaign, name: str) -> str:
    """Withdraw a personal link. Ratings stay; what the annotator has not opened goes to the others."""
    with campaign.database.write.begin() as connection:
        db.set_token(connection, db.annotator_named(connection, name).id, None)
        _reassign(connection, *_plan(connection))
    return f"{name}'s link no longer opens the page; the ratings made so far stay"


def renew(campaign: Campaign, name: str, address: str = ADDRESS, days: int = db.DAYS) -> str:
    """A new personal link in place of the old one, for instance when it was lost, withdrawn or has ended."""
    token = secrets.token_urlsafe(32)
    with campaign.database.write.begin() as connection:
        db.set_token(connection, db.annotator_named(connection, name).id, token, days)
        _reassign(connection, *_plan(connection))
    return _link(name, token, address, days)


def _plan(connection: Connection) -> tuple[int, int]:
    plan = db.read_setting(connection, "plan")
    return plan["per_response"], plan["seed"]


def status(campaign: Campaign) -> str:
    """Progress by annotator and language, and how often each annotator met the expected values of the controls."""
    with campaign.database.read.begin() as connection:
        rows = _progress_rows(connection)
        results = _control_rows(connection)
    if not rows:
        return "no annotator has responses yet; xlift annotate STUDY --add NAME --languages fr,pt"
    text = aligned([["annotator", "language", "rated", "skipped", "of", "link"], *rows])
    if results:
        text += "\n\n" + aligned([["annotator", "facet", "as expected", "of"], *results])
    return text


def _progress_rows(connection: Connection) -> list[list[str]]:
    joined = (
        sa.select(
            db.annotators.c.name, db.annotators.c.token, db.annotators.c.expires, db.tasks.c.language, db.assignments
        )
        .join(db.annotators, db.annotators.c.id == db.assignments.c.annotator)
        .join(db.tasks, db.tasks.c.id == db.assignments.c.task)
    )
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in connection.execute(joined):
        cell = cells[row.name, row.language, _link_state(row)]
        cell[0] += row.done
        cell[1] += bool(row.skips and not row.done)
        cell[2] += 1
    return [[name, language, *map(str, counts), link] for (name, language, link), counts in sorted(cells.items())]


def _link_state(annotator: Any) -> str:
    if annotator.token is None:
        return "withdrawn"
    if annotator.expires is None:
        return "open"
    return f"{'open until' if db.works(annotator) else 'ended'} {annotator.expires[:10]}"


def _control_rows(connection: Connection) -> list[list[str]]:
    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for one in transfer.judged_tasks(connection):
        expected = json.loads(one.task.expected or "{}")
        for facet, verdict in one.verdicts.items():
            if facet in expected and verdict.given:
                right = expected[facet] if isinstance(expected[facet], list) else [expected[facet]]
                cells[one.name, facet][0] += verdict.value in right
                cells[one.name, facet][1] += 1
    return [[name, facet, str(met), str(of)] for (name, facet), (met, of) in sorted(cells.items())]


def export(campaign: Campaign, target: Path, controls: bool = False) -> str:
    """Write all ratings to a .jsonl or .csv file and into the study; what was written, in words.

    `controls` adds the ratings of control items to the file, never to the study.
    """
    transfer.check_target(target)
    with campaign.database.read.begin() as connection:
        records = transfer.rating_records(connection)
        extra = transfer.control_records(connection) if controls else []
    transfer.write_ratings(target, records + extra)
    lines = [f"{len(records) + len(extra)} ratings written to {target}"]
    if campaign.workspace is not None:
        files = transfer.save_study_ratings(campaign.workspace, records)
        lines.append(f"{files} ratings files written in {campaign.workspace.path}")
    return "\n".join(lines)


def import_file(campaign: Campaign, path: Path) -> str:
    """Take in the ratings of a CSV, Label Studio or potato file, all of them or none; what came in, in words."""
    labels = {run.label: run.id for run in campaign.workspace.runs} if campaign.workspace else {}
    with campaign.database.read.begin() as connection:
        taken = connection.execute(sa.select(db.annotators.c.name)).scalars().all()
    records = transfer.read_ratings(path, campaign.responses(), labels, set(taken))
    with campaign.database.write.begin() as connection:
        transfer.store_imported(connection, records)
        everything = transfer.rating_records(connection)
    if campaign.workspace is not None:
        transfer.save_study_ratings(campaign.workspace, everything)
    raters = ", ".join(sorted({record["rater"] for record in records}))
    return f"{len(records)} ratings of {raters} taken in from {path}"


def serve(
    campaign: Campaign, host: str = "127.0.0.1", port: int = 8765, address: str | None = None, proxy: str = ""
) -> None:
    """Serve the page until stopped. `address` is what annotators type, where a proxy stands in front (https://…).

    `proxy` is the address of that proxy, whose word on who asks is then believed. Raises ConfigError where the port
    cannot be had, or `proxy` is no address.
    """
    from xlift.annotation import server
    from xlift.annotation.app import build_app

    server.trusted(proxy)
    with campaign.database.read.begin() as connection:
        people = connection.execute(sa.select(sa.func.count()).select_from(db.annotators)).scalar()
    if not people:
        say("nobody can enter yet; make personal links: xlift annotate STUDY --add NAME --languages fr,pt")
    try:
        listener = socket.create_server((host, port), backlog=100)
    except OSError as error:
        raise ConfigError(f"{host}:{port} cannot be used: {error.strerror}", "choose another --port") from None
    shown = address or f"http://{host}:{listener.getsockname()[1]}"
    print(f"annotation page: {shown} (each annotator opens it with a personal link; Ctrl-C stops)", flush=True)
    server.run(build_app(campaign.database, shown), listener, proxy)
    campaign.database.read.dispose()
    say(f"stopped; every saved rating is kept. The same command goes on: xlift annotate {campaign.path} …")
