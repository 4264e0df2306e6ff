"""Instruction data: read it in any format, drop duplicates, take nested subsets, keep some out of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from xlift.data.overlap import Overlaps, overlaps
from xlift.data.pool import Chosen, Pool, PoolRows, rank
from xlift.data.readers import NO_FORMAT, is_oasst_row, messages_of, oasst_trees, reason_of, recognise, renamed
from xlift.data.tabular import Row, content_sha256, rows
from xlift.errors import DataError, shortened
from xlift.hub import hub_snapshot
from xlift.languages import find_language, language_code
from xlift.records import Conversation, Prompt, fingerprint, unique
from xlift.study.data import BUILTIN, Instructions, Source

InOrder = TypeVar("InOrder", list[Conversation], PoolRows)
Unfit = dict[str, list[str]]
"""Records that cannot be learned from and were left out: where they stand, by the reason."""


_ALIKE = 3
"""Records unfit for the same reason that are told one by one."""


class Examples(NamedTuple):
    """What a run learns from and is measured on, and what there is to tell about it."""

    train: Sequence[Conversation]
    heldout: Sequence[Conversation]
    unfit: Unfit
    overlaps: Overlaps

    @property
    def facts(self) -> dict[str, Any]:
        """Numbers for the manifest: records left out by reason, and overlaps."""
        return {"left_out": {reason: len(places) for reason, places in self.unfit.items()}, **self.overlaps.facts}

    @property
    def lines(self) -> list[str]:
        """The same in words; nothing where there is nothing to tell."""
        count = sum(map(len, self.unfit.values()))
        head = [f"records that cannot be learned from, left out: {count:,}"] if count else []
        reasons = [f"  {len(places):,} × {reason} (first: {places[0]})" for reason, places in self.unfit.items()]
        return [*head, *reasons, *self.overlaps.lines]


def load_examples(
    settings: Instructions, prompts: Sequence[Prompt], offline: bool = False, skip_unfit: bool = False
) -> Examples:
    """Training and held-out conversations, and what they share with each other and with the prompts.

    Raises DataError for records that cannot be learned from, unless these are left out.
    """
    unfit: Unfit = {}
    train, heldout = load_instructions(settings, offline, unfit if skip_unfit else None)
    return Examples(train, heldout, unfit, overlaps(train, heldout, prompts))


def load_source(source: Source, offline: bool = False, unfit: Unfit | None = None) -> list[Conversation]:
    """All conversations of one source, duplicates dropped.

    Records that cannot be learned from go to `unfit`. Raises DataError that lists them where it is not given.
    """
    return unique(_read(source, offline, unfit), key=lambda one: one["id"])


def _read(source: Source, offline: bool, unfit: Unfit | None) -> Iterator[Conversation]:
    """The same one by one as they are read, duplicates among them; what is wrong is told at the end."""
    problems: list[str] = []
    left_out: Unfit = {}
    fit = given = 0
    for row in _records(source, offline):
        try:
            if row.problem:
                raise DataError(row.problem.removeprefix(f"{row.where}: "))
            one = _conversation(row.record, source, row.where)
        except DataError as error:
            places = left_out.setdefault(reason_of(error.problems[0]), [])
            places.append(row.where)
            problems += [f"{row.where}: {problem}" for problem in error.problems] if len(places) <= _ALIKE else []
            continue
        fit += 1
        if _wanted(one, source):
            given += 1
            yield one
    if problems and (unfit is None or not fit):
        alike = [(reason, len(places) - _ALIKE) for reason, places in left_out.items()]
        more = [f"{source.path}: {count:,} more records: {reason}" for reason, count in alike if count > 0]
        hint = f"mend or remove these records of {source.path}, or leave them out with --skip-unfit"
        if not fit and list(left_out) == [NO_FORMAT]:
            hint = "say in a study file which columns hold what: columns: {prompt: COLUMN, completion: COLUMN}"
        raise DataError([*shortened(problems), *shortened(more)], hint)
    if unfit is not None:
        for reason, places in left_out.items():
            unfit.setdefault(reason, []).extend(places)
    if not given:
        chosen = [name for name in ("categories", "languages") if getattr(source, name) is not None]
        raise DataError(f"{source.path}: no conversations" + (f" of these {' and '.join(chosen)}" if chosen else ""))


def _wanted(one: Conversation, source: Source) -> bool:
    categories, languages = source.categories, source.languages
    return (categories is None or one.get("category") in categories) and (
        languages is None or one["language"] in languages
    )


def _conversation(record: dict[str, Any], source: Source, where: str) -> Conversation:
    if source.columns:
        record = renamed(record, source.columns)
    elif all(name[:1].isupper() for name in record):
        record = {name.lower(): value for name, value in record.items()}  # as spreadsheets have them: Prompt, Response
    name = source.format if source.format != "auto" else recognise(record)
    messages = messages_of(record, name, chosen=bool(source.columns))
    # The id is the content, so that a repeated conversation is one and subsets do not hang on line numbers.
    kept: dict[str, Any] = {"id": fingerprint(messages), "messages": messages, "where": where}
    kept["language"] = _language(record, source)
    if isinstance(record.get("category"), str):
        kept["category"] = record["category"]
    parallel = record.get("parallel_id") or (record.get("id") if source.path == BUILTIN else None)
    if isinstance(parallel, str):
        kept["parallel_id"] = parallel
    return cast(Conversation, kept)


_CALLED = ("lang", "lang_code", "locale")


def _language(record: dict[str, Any], source: Source) -> str:
    """The record's own language where it names one, else the source's."""
    root = record.get("prompt")
    named = (record.get("language_code"), record.get("language"), root.get("lang") if isinstance(root, dict) else None)
    given = next((one for one in named if one not in (None, "")), None)
    # Elsewhere `lang` may be the language of a program.
    other = (found for name in _CALLED if (found := find_language(record.get(name))) and found.name != found.code)
    if given is None and (one := next(other, None)):
        return one.code
    try:
        return source.language if given is None else language_code(given)
    except DataError as error:
        raise DataError(f"'language': {error}") from None


def _records(source: Source, offline: bool) -> Iterator[Row]:
    found = _hub_rows(source, offline) if source.path.startswith("hub:") else _file_rows(source)
    first = next(found, None)
    if first is None:
        return iter(())
    every = chain([first], found)
    flat = source.format in {"auto", "oasst"} and not source.columns and is_oasst_row(first.record)
    return oasst_trees(every) if flat else every


def _file_rows(source: Source) -> Iterator[Row]:
    path = source.file
    if source.sha256 and path.exists() and content_sha256(path) != source.sha256:
        hint = "put the old file back, or give the study's own file again: with other data it has other runs"
        raise DataError(f"{path}: no longer the data that this study was made with", hint)
    return rows(path, source.split)


def _hub_rows(source: Source, offline: bool) -> Iterator[Row]:
    from datasets import load_dataset

    name = source.path.removeprefix("hub:")
    # Read from the files of one commit: by name, datasets takes any cached revision when the hub is out of reach.
    folder = hub_snapshot(name, source.revision, offline, "dataset")
    try:
        found: Iterable[Any] = load_dataset(str(folder), split=source.split)
    except Exception as error:  # datasets raises many kinds for files or splits that it cannot read
        raise DataError(f"hub dataset '{name}' (split {source.split}) cannot be read: {error}") from None
    for number, row in enumerate(found, start=1):
        yield Row(f"{source.path} row {number}", number, {key: one for key, one in row.items() if one is not None})


# e.g. [one["id"] for one in nested_subset([{"id": "a"}, {"id": "b"}, {"id": "c"}], 2, 0)] → ["c", "a"]
# e.g. [one["id"] for one in nested_subset([{"id": "a"}, {"id": "b"}, {"id": "c"}], 1, 0)] → ["c"]
def nested_subset(conversations: Sequence[Conversation], size: int | None, seed: int) -> list[Conversation]:
    """`size` conversations in an order fixed by `seed` and content, so that a smaller subset lies in a larger one.

    Raises DataError if there are fewer.
    """
    return _first(sorted(conversations, key=lambda one: rank(seed, one["id"])), size)


def _first(ranked: InOrder, size: int | None) -> InOrder:
    if size is not None and size > len(ranked):
        raise DataError(f"{size} conversations are asked for and {len(ranked)} are there", "lower instructions.size")
    return ranked[:size]


def load_instructions(
    settings: Instructions, offline: bool = False, unfit: Unfit | None = None
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Training and held-out conversations. Records that cannot be learned from go to `unfit`, or are refused.

    The held-out ones are English where there is English, so that their loss is what English alone can tell; they are
    the same for every subset size and whatever other languages are mixed in. Raises DataError for too few.
    """
    pool, sources = Pool(settings.subset_seed), list[PoolRows]()
    for source in settings.sources:
        start = len(pool)
        for one in _read(source, offline, unfit):
            pool.add(one)
        sources.append(pool.distinct(np.arange(start, len(pool))))
    chosen = [_first(pool.ranked(rows), one.size) for one, rows in zip(settings.sources, sources, strict=True)]
    ranked = pool.ranked(pool.distinct(np.concatenate(chosen)))
    english = pool.spoken(ranked, "en")
    heldout = (english if len(english) else ranked)[: settings.heldout]
    rest = ranked[~np.isin(ranked, heldout)]
    if len(heldout) < settings.heldout or not len(rest):
        what = f"{len(english)} English conversations" if len(english) else f"{len(ranked)} conversations"
        problem = f"{what} cannot spare {settings.heldout} held-out ones"
        raise DataError(problem, "lower instructions.heldout, or add conversations")
    wrong = pool.wrong(np.concatenate(sources))
    return Chosen(pool, _first(rest, settings.size), wrong), Chosen(pool, heldout, wrong)
