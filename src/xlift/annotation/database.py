"""What an annotation campaign stores, in SQLite or PostgreSQL.

    annotators    who rates; of a personal link only the hash of its secret, and when it ends; when they had read the
                  guidelines, and were let on by the coordinator
    tasks         one response to rate, with everything that identifies it; `expected` where it is a control
    assignments   who rates what, in which order, and how far that is
    judgements    append-only: every click with its time, once however often it is sent; the last one of a field counts
    imported      rating records that came from a file
    settings      how the campaign was sampled, what it asks (scheme.py), the coordinator's link, whether it is paused

Texts and values are stored as ASCII JSON, since responses may hold what a database refuses (NUL, lone surrogates).
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Column, Connection, Engine, ForeignKey, Integer, MetaData, String, Table, Text

from xlift.errors import ConfigError
from xlift.workspace import now

ASKED_FACETS = ("language", "fluency", "helpfulness", "accuracy", "coherence", "harmlessness")
BOUND_TO_FLUENCY = ("helpfulness", "accuracy", "coherence")
"""Facets that are 0 where fluency is 0 because the text makes no sense."""
WHOLE = "response"
NO_REASON = "no reason given"
COPY = "put back a copy: people's ratings are made once"
DAYS = 90
"""How long a personal link works where nobody says otherwise."""

metadata = MetaData()
annotators = Table(
    "annotators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(200), nullable=False, unique=True),
    Column("token", String(64), unique=True),
    Column("languages", Text, nullable=False),
    Column("interface", String(8), nullable=False),
    Column("created", String(32), nullable=False),
    Column("expires", String(32)),
    Column("read", String(32)),
    Column("admitted", String(32)),
)
tasks = Table(
    "tasks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("prompt", Text, nullable=False),
    Column("language", String(32), nullable=False),
    Column("reply_language", String(32), nullable=False),
    Column("run", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("response", String(32), nullable=False),
    Column("shown", Text, nullable=False),
    Column("expected", Text),
    sa.UniqueConstraint("run", "step", "prompt", "response"),
)
assignments = Table(
    "assignments",
    metadata,
    Column("annotator", Integer, ForeignKey("annotators.id"), primary_key=True),
    Column("task", String(16), ForeignKey("tasks.id"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("done", sa.Boolean, nullable=False),
    Column("skips", Integer, nullable=False),
    Column("opened", String(32)),
)
judgements = Table(
    "judgements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("annotator", Integer, ForeignKey("annotators.id"), nullable=False),
    Column("task", String(16), ForeignKey("tasks.id"), nullable=False),
    Column("field", String(16), nullable=False),
    Column("value", Text, nullable=False),
    Column("seconds", sa.Float, nullable=False),
    Column("guidelines", String(8), nullable=False),
    Column("interface", String(8), nullable=False),
    Column("time", String(32), nullable=False),
    Column("click", String(64)),
    sa.Index("judgements_of", "annotator", "task"),
    sa.Index("judgements_once", "annotator", "task", "click", unique=True),
)
imported = Table(
    "imported",
    metadata,
    Column("run", Text, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("prompt", Text, primary_key=True),
    Column("facet", String(32), primary_key=True),
    Column("rater", String(200), primary_key=True),
    Column("record", Text, nullable=False),
)
settings = Table(
    "settings", metadata, Column("name", String(32), primary_key=True), Column("value", Text, nullable=False)
)


class Database(NamedTuple):
    """Two views of one database: `write` takes SQLite's lock at the start of a transaction, `read` does not."""

    read: Engine
    write: Engine


class FacetVerdict(NamedTuple):
    """What counts for one facet: a value, or None with the reason; `raw` is the annotator's own value.

    `by_rule` says that the rule about fluency 0 replaced the raw value; both are None where nothing was said.
    """

    value: int | None
    reason: str | None
    raw: int | None = None
    by_rule: bool = False

    @property
    def given(self) -> bool:
        return self.value is not None or self.reason is not None


def connect(url: str) -> Database:
    """Open a database by SQLAlchemy URL, made or brought up to date where needed.

    Raises ConfigError for a URL that cannot be used, a damaged database and one of a later xlift; what is done with the
    database raises it where the disk, the file or the server fails.
    """
    engine = _engine(url)
    sa.event.listen(engine, "handle_error", _tell_failure)
    database = Database(engine, engine.execution_options(xlift_write=True))
    if engine.dialect.name == "sqlite":
        with database.read.begin() as connection:
            found = str(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar())
        if found != "ok":
            raise ConfigError(f"{_shown(engine)}: damaged: {found.splitlines()[-1]}", COPY)
    _migrate(database)
    return database


def _shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)


def _tell_failure(context: sa.ExceptionContext) -> None:
    """What the disk, the file or the server is to blame for is told as such; what was asked for wrongly is ours."""
    error = context.sqlalchemy_exception
    if context.engine is None or context.is_pre_ping or isinstance(error, sa.exc.IntegrityError | sa.exc.DataError):
        return
    if isinstance(error, sa.exc.OperationalError) or type(error) is sa.exc.DatabaseError:
        raise ConfigError(f"{_shown(context.engine)}: {context.original_exception}", f"check --database URL; {COPY}")


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file."""
    return str(sa.URL.create("sqlite", database=str(path)))


def _engine(url: str) -> Engine:
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        # What it says may hold a password, in whatever place.
        raise ConfigError("--database: not a database URL", "sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    if parsed.drivername in {"postgresql", "postgres"}:
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "postgresql+psycopg":
        return sa.create_engine(parsed, pool_size=10, max_overflow=10, pool_pre_ping=True)
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite"} or not parsed.database:
        raise ConfigError(f"'{parsed.drivername}' cannot hold annotations", "sqlite:///FILE or postgresql://…")
    Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(parsed, pool_size=10, max_overflow=10)
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    # The driver's own transactions would begin without the write lock; _begin_sqlite begins them instead.
    connection.isolation_level = None
    for pragma in ("busy_timeout = 30000", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get("xlift_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with database.write.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(4_077_014)))
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise ConfigError(f"the annotation database is of another xlift: {error}", "update xlift") from None


def hash_of(token: str) -> str:
    """What is stored of a secret token. It has 256 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def annotator_of(connection: Connection, token: str) -> Any:
    """The annotator with this secret token, None where there is none or the link has ended."""
    hashed = hash_of(token)
    found = connection.execute(sa.select(annotators).where(annotators.c.token == hashed)).one_or_none()
    # The index compares hashes, whose bytes a guesser cannot choose; what lets somebody in takes the same time always.
    if found is None or not hmac.compare_digest(found.token, hashed) or not works(found):
        return None
    return found


def works(annotator: Any) -> bool:
    """Whether the annotator's link still opens the page."""
    return annotator.token is not None and (annotator.expires is None or now() < annotator.expires)


def end_in(days: int) -> str:
    """When a link made now ends. Raises ConfigError for no days, or more than a hundred years of them."""
    if not 1 <= days <= 36_500:
        raise ConfigError("a link works for 1 to 36500 days", "--days 90")
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    return end.isoformat(timespec="seconds")


def annotator_named(connection: Connection, name: str) -> Any:
    """The annotator of this name. Raises ConfigError where there is none."""
    found = connection.execute(sa.select(annotators).where(annotators.c.name == name)).one_or_none()
    if found is None:
        known = connection.execute(sa.select(annotators.c.name).order_by(annotators.c.name)).scalars().all()
        raise ConfigError(f"no annotator '{name}'; there are: {', '.join(known) or 'none'}")
    return found


# e.g. [wrong_name(name) for name in ("Ana", "A\n")] → ["", "a name must be 1 to 100 printable characters"]
def wrong_name(name: str) -> str:
    """What is wrong with a person's name; nothing where a page, a table and every database can hold it."""
    good = name.strip() and len(name) <= 100 and name.isprintable()
    return "" if good else "a name must be 1 to 100 printable characters"


def add_annotator(connection: Connection, name: str, languages: Sequence[str], interface: str, days: int = DAYS) -> str:
    """A new annotator; the secret token of the personal link. Raises ConfigError where the name is taken."""
    if connection.execute(sa.select(annotators.c.id).where(annotators.c.name == name)).first():
        raise ConfigError(f"annotator '{name}' is there already", f"--renew '{name}' makes a new link")
    token = secrets.token_urlsafe(32)
    row = {"name": name, "token": hash_of(token), "languages": ",".join(languages), "interface": interface}
    connection.execute(annotators.insert().values(**row, created=now(), expires=end_in(days)))
    return token


def set_token(connection: Connection, annotator: int, token: str | None, days: int = DAYS) -> None:
    """Replace an annotator's secret; None locks them out."""
    values = {"token": hash_of(token), "expires": end_in(days)} if token else {"token": None, "expires": None}
    connection.execute(annotators.update().where(annotators.c.id == annotator).values(values))


def set_interface(connection: Connection, annotator: int, interface: str) -> None:
    connection.execute(annotators.update().where(annotators.c.id == annotator).values(interface=interface))


def mark_read(connection: Connection, annotator: int) -> None:
    """From now on the first page is no longer the guidelines."""
    first = sa.and_(annotators.c.id == annotator, annotators.c.read.is_(None))
    connection.execute(annotators.update().where(first).values(read=now()))


def admit(connection: Connection, annotator: int) -> None:
    """Let an annotator go on, however the practice went."""
    connection.execute(annotators.update().where(annotators.c.id == annotator).values(admitted=now()))


def completion_code(connection: Connection, annotator: int) -> str:
    """What an annotator who is done can show to a crowd platform; the same however often it is asked for."""
    secret = str(read_setting(connection, "secret"))
    return hmac.new(secret.encode(), str(annotator).encode(), hashlib.sha256).hexdigest()[:10].upper()


def is_task(task: str) -> bool:
    """Whether this could be the id of a task."""
    return task.isalnum() and task.isascii()


def assigned(connection: Connection, annotator: int, task: str) -> Any:
    """The assignment with its task, None where the task is not this annotator's."""
    if not is_task(task):  # which may hold what a database refuses, such as NUL
        return None
    joined = sa.select(assignments, tasks).join(tasks, tasks.c.id == assignments.c.task)
    return connection.execute(joined.where(_own(annotator, task))).one_or_none()


def _own(annotator: int, task: str) -> sa.ColumnElement[bool]:
    return sa.and_(assignments.c.annotator == annotator, assignments.c.task == task)


def mark_opened(connection: Connection, annotator: int, task: str) -> None:
    """From now on the task stays with this annotator."""
    fresh = sa.and_(_own(annotator, task), assignments.c.opened.is_(None))
    connection.execute(assignments.update().where(fresh).values(opened=now()))


def next_task(connection: Connection, annotator: int) -> str | None:
    """The first task in the annotator's order that is not done; skipped ones come after the others."""
    left = sa.and_(assignments.c.annotator == annotator, assignments.c.done.is_(False))
    order = (assignments.c.skips, assignments.c.position)
    return connection.execute(sa.select(assignments.c.task).where(left).order_by(*order).limit(1)).scalar()


def own_tasks(connection: Connection, annotator: int) -> list[Any]:
    """The annotator's assignments in order."""
    own = sa.select(assignments).where(assignments.c.annotator == annotator)
    return list(connection.execute(own.order_by(assignments.c.position)))


def skip(connection: Connection, annotator: int, task: str) -> None:
    """Put a task behind those skipped less often."""
    values = {"skips": assignments.c.skips + 1, "opened": sa.func.coalesce(assignments.c.opened, now())}
    connection.execute(assignments.update().where(_own(annotator, task)).values(values))


def save(
    connection: Connection,
    annotator: Any,
    task: str,
    field: str,
    value: Any,
    seconds: float = 0.0,
    guidelines: str = "",
    click: str | None = None,
) -> bool:
    """Append one judgement; whether the task is done with it. The task must be the annotator's.

    The assignment is locked first, so that two tabs of one annotator cannot miss each other's judgements. A `click`
    that is there already changes nothing: it was sent again because its answer was lost on the way.
    """
    connection.execute(sa.select(assignments.c.task).where(_own(annotator.id, task)).with_for_update()).one()
    rows = judged(connection, annotator.id, task)
    if click is not None and any(row.click == click for row in rows):
        return is_done(last_values(rows), asked(connection))
    row = {"annotator": annotator.id, "task": task, "field": field, "value": json.dumps(value), "seconds": seconds}
    extra = {"guidelines": guidelines, "interface": annotator.interface, "time": now(), "click": click}
    connection.execute(judgements.insert().values(**row, **extra))
    done = is_done({**last_values(rows), field: value}, asked(connection))
    changes = {"done": done, "opened": sa.func.coalesce(assignments.c.opened, now())}
    connection.execute(assignments.update().where(_own(annotator.id, task)).values(changes))
    return done


def judged(connection: Connection, annotator: int, task: str) -> list[Any]:
    """The judgements of one annotator on one task, oldest first."""
    own = sa.and_(judgements.c.annotator == annotator, judgements.c.task == task)
    return list(connection.execute(sa.select(judgements).where(own).order_by(judgements.c.id)))


def last_values(rows: Iterable[Any]) -> dict[str, Any]:
    """Per field the value that counts: the last one."""
    return {row.field: json.loads(row.value) for row in rows}


def asked(connection: Connection) -> tuple[str, ...]:
    """The facets that the campaign asks for."""
    stored = read_setting(connection, "scheme")
    return tuple(facet["name"] for facet in json.loads(stored)["facets"]) if stored else ASKED_FACETS


def verdicts(values: dict[str, Any], facets: Sequence[str] = ASKED_FACETS) -> dict[str, FacetVerdict]:
    """Per facet what counts, after "cannot judge" for the whole response and the rule about fluency 0."""
    own = {facet: _own_verdict(values.get(facet)) for facet in facets}
    if values.get(WHOLE) is not None:
        reason = _cannot(values[WHOLE])
        return {facet: FacetVerdict(None, reason, one.raw) for facet, one in own.items()}
    if "fluency" in own and own["fluency"].value == 0 and values.get("senseless", True):
        ruled = {facet: FacetVerdict(0, None, own[facet].raw, True) for facet in BOUND_TO_FLUENCY if facet in own}
        return own | ruled
    return own


def _own_verdict(value: Any) -> FacetVerdict:
    return FacetVerdict(None, _cannot(value)) if isinstance(value, dict) else FacetVerdict(value, None, value)


def _cannot(value: dict[str, str]) -> str:
    return f"cannot judge: {value['cannot'].strip() or NO_REASON}"


def is_done(values: dict[str, Any], facets: Sequence[str] = ASKED_FACETS) -> bool:
    """Whether every facet has a value or a reason for having none."""
    return all(verdict.given for verdict in verdicts(values, facets).values())


def read_setting(connection: Connection, name: str) -> Any:
    """A stored setting, None where there is none."""
    found = connection.execute(sa.select(settings.c.value).where(settings.c.name == name)).scalar()
    return None if found is None else json.loads(found)


def write_setting(connection: Connection, name: str, value: Any) -> None:
    connection.execute(settings.delete().where(settings.c.name == name))
    connection.execute(settings.insert().values(name=name, value=json.dumps(value)))
