"""The practice round: control items that show after each how it was meant to be rated, and who may go on after them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from xlift.annotation import database as db

FEEDBACK = "feedback"
"""The field of the judgement that says that the feedback was seen: from then on the values stand."""


class Standing(NamedTuple):
    """How an annotator's practice went: items done and given, expected values met, and of how many."""

    done: int
    items: int
    met: int
    values: int
    needed: float | None
    admitted: bool

    @property
    def over(self) -> bool:
        """Whether there is no practice, or no more of it."""
        return self.done == self.items

    @property
    def qualified(self) -> bool:
        """Whether the rest may be rated: always where the campaign asks for no share of expected values."""
        if self.admitted or self.needed is None or not self.items:
            return True
        return self.over and self.met >= self.needed * self.values


def is_practice(task: Any) -> bool:
    """Whether a task's row (with `shown`) is a practice item."""
    return task.expected is not None and bool(json.loads(task.shown).get("practice"))


def standing(connection: Connection, annotator: Any) -> Standing:
    """How the practice of an annotator went so far."""
    plan = db.read_setting(connection, "plan") or {}
    joined = sa.select(db.assignments, db.tasks).join(db.tasks, db.tasks.c.id == db.assignments.c.task)
    own = sa.and_(db.assignments.c.annotator == annotator.id, db.tasks.c.expected.is_not(None))
    items = [row for row in connection.execute(joined.where(own)) if is_practice(row)]
    facets = db.asked(connection)
    met = values = 0
    for item in items:
        given = db.verdicts(db.last_values(db.judged(connection, annotator.id, item.task)), facets)
        for facet, right in expected_values(item).items():
            # "Cannot judge" where a value is expected is a value missed: else saying so to all would qualify.
            said = facet in given and given[facet].given
            values += said
            met += said and given[facet].value in right
    done = sum(item.done for item in items)
    return Standing(done, len(items), met, values, plan.get("qualify"), annotator.admitted is not None)


def expected_values(task: Any) -> dict[str, list[int]]:
    """Per facet the values that are right for a control."""
    expected = json.loads(task.expected or "{}")
    return {facet: value if isinstance(value, list) else [value] for facet, value in expected.items()}


def may_open(task: Any, found: Standing) -> bool:
    """Whether an annotator may see a task: practice always, all else after it."""
    return is_practice(task) or found.qualified
