"""What `xlift annotate` does: sample and assign, make and withdraw links, serve, show progress, export, import."""

from __future__ import annotations

import json
import secrets
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from xlift.annotation import database as db
from xlift.annotation import people, practice, sampling, transfer
from xlift.annotation.scheme import Scheme, read_scheme, scheme_of
from xlift.annotation.words import INTERFACES
from xlift.disk import exclusive
from xlift.errors import ConfigError, DataError
from xlift.languages import find_language, language_code, language_problem
from xlift.progress import say
from xlift.rating.files import is_study
from xlift.terminal import paged, terminal_room, wrapped
from xlift.workspace import StudyFolder, find_study

ADDRESS = "http://127.0.0.1:8765"


class Plan(NamedTuple):
    """How a campaign is sampled; None means as before, or the default where it is the first time."""

    per_response: int | None = None
    per_cell: int | None = None
    total: int | None = None
    seed: int | None = None
    split: str | None = None
    qualify: float | None = None
    """Share of expected values that a person must meet in practice to go on."""


DEFAULTS = {"per_response": 2, "per_cell": 10, "total": None, "seed": 0, "split": "test", "qualify": None}


class Campaign(NamedTuple):
    """A source of responses (a study, or a file where `workspace` is None) and the database of its ratings."""

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

    Raises ConfigError where there is no such study, DataError where there is no such file, or none of responses.
    """
    if not source.is_dir() and not is_study(source):
        if not source.is_file():
            raise DataError(f"{source}: no such file")
        beside, workspace = source.with_suffix(".annotations.sqlite"), None
        # What cannot be rated leaves no database behind.
        if database is None and not beside.exists() and not sampling.file_responses(source):
            raise DataError(f"{source}: no responses to rate")
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
    scheme: Path | None = None,
) -> str:
    """Add an annotator, sample and assign; the text with the personal link, which is shown this once.

    `scheme` is what the campaign asks (scheme.py); it cannot change once anything is rated.

    Raises ConfigError for a wrong or taken name, an unknown language, a changed seed or an impossible number of `days`
    that the link works, DataError where no response can be sampled.
    """
    codes = _checked_person(name, languages)
    responses = campaign.responses()
    given = read_scheme(scheme) if scheme else None
    with campaign.database.write.begin() as connection:
        asked = _settle_scheme(connection, given)
        known = sampling.read_controls(controls, asked.levels) if controls else []
        settled = _settle(connection, plan or Plan())
        eligible = [r for r in responses if settled["split"] in (None, "all", r.get("split", settled["split"]))]
        if not eligible:
            raise DataError(f"{campaign.path}: no responses to rate", f"xlift run {campaign.path}")
        chosen = _chosen(eligible, settled, asked)
        _add_tasks(connection, chosen + known)
        interface = next((code for code in codes if code in INTERFACES), "en")
        token = db.add_annotator(connection, name, codes, interface, days)
        people.share_again(connection)
        lines = [_link(name, token, address, days), *_summary(connection, name, settled["per_response"], asked)]
        lines += _unread(connection, codes, codes)
        if settled["qualify"] and not any(map(practice.is_practice, connection.execute(sa.select(db.tasks)))):
            lines.append('warning: everybody goes on without practice; give --controls with "practice": true')
    return "\n".join(lines)


def _checked_person(name: str, languages: Sequence[str]) -> list[str]:
    given = [text.strip() for text in languages if text.strip()]
    problems = [language_problem(text) for text in given if not find_language(text)]
    problems += [wrong] if (wrong := db.wrong_name(name)) else []
    if not given:
        problems.append("which languages does this person read?")
    if problems:
        raise ConfigError(problems, "xlift annotate STUDY --add NAME --languages fr,pt")
    return list(dict.fromkeys(map(language_code, given)))


def _settle_scheme(connection: Connection, given: Scheme | None) -> Scheme:
    """The campaign's scheme, stored for the next time. Raises ConfigError where another one is in use."""
    if given is None:
        return scheme_of(connection)
    began = connection.execute(sa.select(db.judgements.c.id).limit(1)).first()
    if began and given != scheme_of(connection):
        raise ConfigError(
            "ratings by another scheme are there already", "leave out --scheme, or name another --database"
        )
    db.write_setting(connection, "scheme", given.model_dump_json())
    return given


def _chosen(responses: Sequence[dict[str, Any]], settled: dict[str, Any], scheme: Scheme) -> list[dict[str, Any]]:
    if not scheme.pairs:
        return sampling.sample(responses, settled["per_cell"], settled["total"], settled["seed"])
    cells = sampling.sample(responses, settled["per_cell"], None, settled["seed"])
    found = sampling.blind_pairs(cells, settled["total"], settled["seed"])
    if not found:
        raise DataError("no two responses answer the same prompt, so there is nothing to compare")
    return found


def _settle(connection: Connection, plan: Plan) -> dict[str, Any]:
    """The plan with what it leaves open taken from before, or from the defaults; stored for the next time."""
    before = db.read_setting(connection, "plan") or {}
    given = {key: value for key, value in plan._asdict().items() if value is not None}
    low = [f"{key} must be at least 1" for key in ("per_response", "per_cell", "total") if given.get(key, 1) < 1]
    if given.get("seed", before.get("seed")) != before.get("seed") and before:
        low.append(f"this campaign was begun with seed {before['seed']}, which cannot be changed")
    if not 0 < given.get("qualify", 1) <= 1:
        low.append("qualify must be a share of expected values, such as 0.7")
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


def _link(name: str, token: str, address: str, days: int) -> str:
    told = f"keep it secret; it is shown only now, and works until {db.end_in(days)[:10]}"
    first = wrapped(f"personal link of {name} ({told}):", terminal_room())
    return f"{first}\n{address.rstrip('/')}/enter/{token}"


def _summary(connection: Connection, name: str, per_response: int, scheme: Scheme) -> list[str]:
    person = db.annotator_named(connection, name)
    own = len(db.own_tasks(connection, person.id))
    counts = sa.select(db.assignments.c.task, sa.func.count().label("people")).group_by(db.assignments.c.task)
    readers = {row.task: row.people for row in connection.execute(counts)}
    sampled = connection.execute(sa.select(db.tasks).where(db.tasks.c.expected.is_(None))).all()
    short = Counter(task.language for task in sampled if readers.get(task.id, 0) < per_response)
    shown = "pairs of responses" if scheme.pairs else "responses"
    lines = [f"{own} {shown} for {name}; {len(sampled)} in the sample; readers wanted for each: {per_response}"]
    if short:
        waiting = ", ".join(f"{language} {count}" for language, count in sorted(short.items()))
        lines.append(f"still too few readers: {waiting}")
    return [wrapped(line, terminal_room()) for line in lines]


def revoke(campaign: Campaign, name: str) -> str:
    """Withdraw a personal link. Ratings stay; what the annotator has not opened goes to the others."""
    with campaign.database.write.begin() as connection:
        people.revoke(connection, name)
    return f"{name}'s link no longer opens the page; the ratings made so far stay"


def renew(campaign: Campaign, name: str, address: str = ADDRESS, days: int = db.DAYS) -> str:
    """A new personal link in place of the old one, for instance when it was lost, withdrawn or has ended."""
    token = secrets.token_urlsafe(32)
    with campaign.database.write.begin() as connection:
        db.set_token(connection, db.annotator_named(connection, name).id, token, days)
        people.share_again(connection)
    return _link(name, token, address, days)


def progress(campaign: Campaign) -> dict[str, list[dict[str, Any]]]:
    """The tables of `status`, for programs; counts are numbers."""
    tables, _ = _status_tables(campaign)
    return {
        name: [dict(zip(head, map(_number, row), strict=True)) for row in rows]
        for name, (head, *rows) in tables.items()
    }


# e.g. [_number(cell) for cell in ("2", "x")] → [2, "x"]
def _number(cell: str) -> int | str:
    return int(cell) if cell.isdecimal() else cell


def _status_tables(campaign: Campaign) -> tuple[dict[str, list[list[str]]], bool]:
    """Rows below their heads: progress, controls, practice, pace; and whether the page is closed."""
    with campaign.database.read.begin() as connection:
        rows = people.progress_rows(connection)
        results, trials, pace = (
            made(connection) for made in (people.control_rows, people.practice_rows, people.pace_rows)
        )
        paused = bool(db.read_setting(connection, "paused"))
    tables = {
        "progress": [["annotator", "language", "rated", "skipped", "of", "link"], *rows],
        "controls": [["annotator", "facet", "as expected", "of"], *results],
        "practice": [["annotator", "practice", "as expected", "goes on"], *trials],
        "pace": [["annotator", "seconds each", "completion code"], *pace],
    }
    return tables, paused


def status(campaign: Campaign) -> str:
    """Progress by annotator and language, and how often each annotator met the expected values of the controls."""
    tables, paused = _status_tables(campaign)
    if len(tables["progress"]) == 1:
        return "no annotator has responses yet; xlift annotate STUDY --add NAME --languages fr,pt"
    text = "\n\n".join(paged(rows) for name, rows in tables.items() if len(rows) > 1 or name == "pace")
    return text + ("\n\npaused; xlift annotate STUDY --resume opens the page again" if paused else "")


def extend(campaign: Campaign, name: str, languages: Sequence[str]) -> str:
    """Give a person more languages to read; which theirs are now, and what is not to be read."""
    codes = _checked_person(name, languages)
    with campaign.database.write.begin() as connection:
        all_codes = people.extend(connection, name, codes)
        return "\n".join([f"{name} reads {', '.join(all_codes)}", *_unread(connection, codes, all_codes)])


def pause(campaign: Campaign, paused: bool) -> str:
    """Close the page to annotators, or open it again."""
    with campaign.database.write.begin() as connection:
        people.pause(connection, paused)
    return "paused: the page is closed to annotators until --resume" if paused else "the page is open again"


def admit(campaign: Campaign, name: str) -> str:
    """Let a person go on whose practice went badly."""
    with campaign.database.write.begin() as connection:
        people.admit(connection, name)
    return f"{name} may go on after practice"


def coordinate(campaign: Campaign, address: str = ADDRESS, days: int = db.DAYS) -> str:
    """A link to the coordinator's page, in place of the one before."""
    token = secrets.token_urlsafe(32)
    with campaign.database.write.begin() as connection:
        db.write_setting(connection, "coordinator", {"token": db.hash_of(token), "expires": db.end_in(days)})
    told = f"keep it secret; it is shown only now, and works until {db.end_in(days)[:10]}"
    first = wrapped(f"link to the coordinator's page ({told}):", terminal_room())
    return f"{first}\n{address.rstrip('/')}/coordinate/{token}"


def _unread(connection: Connection, codes: Sequence[str], readable: Sequence[str]) -> list[str]:
    nothing = [code for code in people.unread(connection, readable) if code in codes]
    if not nothing:
        return []
    there = ", ".join(people.languages_of(connection))
    return [f"warning: there is nothing to read in {', '.join(nothing)}; the responses are in {there}"]


def export(campaign: Campaign, target: Path, controls: bool = False) -> str:
    """Write all ratings to a .jsonl or .csv file and into the study; what was written, in words.

    `controls` adds the ratings of control items to the file, never to the study.
    """
    transfer.check_target(target)
    with _alone(campaign):
        with campaign.database.read.begin() as connection:
            records = transfer.rating_records(connection)
            extra = transfer.control_records(connection) if controls else []
        transfer.write_ratings(target, records + extra)
        lines = [f"{len(records) + len(extra)} ratings written to {target}"]
        if campaign.workspace is not None:
            files = transfer.save_study_ratings(campaign.workspace, records)
            lines.append(f"{files} ratings files written in {campaign.workspace.path}")
    return "\n".join(lines)


def _alone(campaign: Campaign) -> AbstractContextManager[None]:
    """One process at a time brings people's ratings from the database into the study: the last has seen all."""
    if campaign.workspace is None:
        return nullcontext()
    folder = campaign.workspace.path
    return exclusive(folder / ".annotations.lock", f"{folder}: another xlift process is writing people's ratings", 60)


def import_file(campaign: Campaign, path: Path) -> str:
    """Take in the ratings of a CSV, Label Studio or potato file, all of them or none; what came in, in words."""
    labels = {run.label: run.id for run in campaign.workspace.runs} if campaign.workspace else {}
    with campaign.database.read.begin() as connection:
        taken = set(connection.execute(sa.select(db.annotators.c.name)).scalars().all())
        asked = scheme_of(connection)
    records = transfer.read_ratings(path, campaign.responses(), labels, taken, asked)
    with _alone(campaign):
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
        count = connection.execute(sa.select(sa.func.count()).select_from(db.annotators)).scalar()
    if not count:
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
