"""The people of a campaign: what each is given to rate, how far they are, and what the coordinator may change."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from xlift.annotation import database as db
from xlift.annotation import practice, sampling, transfer
from xlift.annotation.words import COORDINATION
from xlift.errors import ConfigError

PageWords = Mapping[str, str]
"""Words of the coordinator's page in one language: `coordination` of texts.json."""


def reassign(connection: Connection, per_response: int, seed: int) -> None:
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
    trial = {task.id for task in tasks if task.practice}
    new = defaultdict(list)
    for annotator, task in sampling.assign(tasks, readers, kept, per_response, seed):
        new[annotator].append(task)
    for annotator in readers:
        _place(connection, annotator, [task for who, task in kept if who == annotator], new[annotator], seed, trial)


def _task(row: Any) -> sampling.Task:
    languages = frozenset({row.language, row.reply_language})
    return sampling.Task(row.id, languages, row.expected is not None, practice.is_practice(row))


def _place(connection: Connection, annotator: int, kept: list[str], new: list[str], seed: int, trial: set[str]) -> None:
    ordered = sampling.in_order(kept, new, annotator, seed, trial)
    fresh = {"annotator": annotator, "done": False, "skips": 0}
    rows = [{**fresh, "task": task, "position": at} for at, task in enumerate(ordered) if at >= len(kept)]
    for at, task in enumerate(kept):
        own = sa.and_(db.assignments.c.annotator == annotator, db.assignments.c.task == task)
        connection.execute(db.assignments.update().where(own).values(position=at))
    if rows:
        connection.execute(db.assignments.insert(), rows)


def share_again(connection: Connection) -> None:
    """Share what nobody has opened, as the campaign was planned."""
    plan = db.read_setting(connection, "plan")
    reassign(connection, plan["per_response"], plan["seed"])


def revoke(connection: Connection, name: str) -> None:
    """Withdraw a personal link; what the annotator has not opened goes to the others."""
    db.set_token(connection, db.annotator_named(connection, name).id, None)
    share_again(connection)


def extend(connection: Connection, name: str, codes: Sequence[str]) -> list[str]:
    """Let an annotator rate in more languages; all of theirs. Raises ConfigError for a name that is not there."""
    person = db.annotator_named(connection, name)
    languages = list(dict.fromkeys([*person.languages.split(","), *codes]))
    mine = db.annotators.c.id == person.id
    connection.execute(db.annotators.update().where(mine).values(languages=",".join(languages)))
    share_again(connection)
    return languages


def admit(connection: Connection, name: str) -> None:
    """Let an annotator go on whose practice went badly."""
    db.admit(connection, db.annotator_named(connection, name).id)


def pause(connection: Connection, paused: bool) -> None:
    """Close the page to all annotators, or open it again. Raises ConfigError where there is no campaign yet."""
    if db.read_setting(connection, "plan") is None:
        raise ConfigError("nobody can enter yet", "xlift annotate STUDY --add NAME --languages fr,pt")
    db.write_setting(connection, "paused", paused)


def unread(connection: Connection, codes: Sequence[str]) -> list[str]:
    """Languages in which there is nothing to read for somebody who reads all of these."""
    readable = [
        {row.language, row.reply_language}
        for row in connection.execute(sa.select(db.tasks.c.language, db.tasks.c.reply_language))
    ]
    used = set().union(*(needed for needed in readable if needed <= set(codes))) if readable else set()
    return [code for code in codes if code not in used]


def languages_of(connection: Connection) -> list[str]:
    """The languages of the sample."""
    return sorted(connection.execute(sa.select(db.tasks.c.language).distinct()).scalars())


def progress_rows(connection: Connection, said: PageWords = COORDINATION) -> list[list[str]]:
    """Per person, language and link: what is rated, skipped, there in all, and how the link stands, in words."""
    joined = (
        sa.select(
            db.annotators.c.name, db.annotators.c.token, db.annotators.c.expires, db.tasks.c.language, db.assignments
        )
        .join(db.annotators, db.annotators.c.id == db.assignments.c.annotator)
        .join(db.tasks, db.tasks.c.id == db.assignments.c.task)
    )
    cells: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in connection.execute(joined):
        cell = cells[row.name, row.language, _link_state(row, said)]
        cell[0] += row.done
        cell[1] += bool(row.skips and not row.done)
        cell[2] += 1
    return [[name, language, *map(str, counts), link] for (name, language, link), counts in sorted(cells.items())]


def _link_state(annotator: Any, said: PageWords) -> str:
    if annotator.token is None:
        return said["withdrawn"]
    if annotator.expires is None:
        return said["link_open"]
    return said["until" if db.works(annotator) else "ended"].format(day=annotator.expires[:10])


def control_rows(connection: Connection) -> list[list[str]]:
    cells: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for one in transfer.judged_tasks(connection):
        expected = json.loads(one.task.expected or "{}")
        for facet, verdict in one.verdicts.items():
            if facet in expected and verdict.given:
                right = expected[facet] if isinstance(expected[facet], list) else [expected[facet]]
                cells[one.name, facet][0] += verdict.value in right
                cells[one.name, facet][1] += 1
    return [[name, facet, str(met), str(of)] for (name, facet), (met, of) in sorted(cells.items())]


def practice_rows(connection: Connection, said: PageWords = COORDINATION) -> list[list[str]]:
    """Per person with practice items: how many are done, expected values met, and whether they may go on."""
    rows = []
    for person in connection.execute(sa.select(db.annotators).order_by(db.annotators.c.name)):
        found = practice.standing(connection, person)
        if found.items:
            state = "yes" if found.qualified else "no" if found.over else "not_yet"
            shares = [(found.done, found.items), (found.met, found.values)]
            told = [said["share"].format(done=done, total=total) for done, total in shares]
            rows.append([person.name, *told, said[state]])
    return rows


def pace_rows(connection: Connection) -> list[list[str]]:
    """Per person: the median of the seconds that a finished response took, and the completion code once all is done."""
    seconds = defaultdict(list)
    for one in transfer.judged_tasks(connection):
        if one.seconds and all(verdict.given for verdict in one.verdicts.values()):
            seconds[one.name].append(one.seconds)
    rows = []
    for person in connection.execute(sa.select(db.annotators).order_by(db.annotators.c.name)):
        own = db.own_tasks(connection, person.id)
        done = bool(own) and all(task.done for task in own)
        taken = f"{median(seconds[person.name]):.0f}" if seconds[person.name] else "–"
        rows.append([person.name, taken, db.completion_code(connection, person.id) if done else "–"])
    return rows
