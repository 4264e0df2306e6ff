"""Published pairs of a better and a worse answer, on which a judge is examined; nothing of them ships with xlift.

mm:PATH             MM-Eval (arXiv 2410.17578): prompt, chosen, rejected, language, subset, id; each language has items
                    of its own, whatever their numbers
mrewardbench:PATH   M-RewardBench (arXiv 2410.15522): the same, with `category` and `source` in place of `subset`; a
                    folder a language (fra_Latn), and one of translations, in two languages, which are left out

Files as the hub has them (Parquet), or JSON, JSONL and CSV with these columns. Each pair is shown in both orders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from xlift.data.tabular import Row, files, rows
from xlift.errors import ConfigError, DataError, nearest, shortened
from xlift.intervals import wilson
from xlift.judging.across import ALL
from xlift.judging.pairs import Comparison, Pair, summarise_pairs
from xlift.languages import find_language
from xlift.progress import say
from xlift.rating.foreign import language_in, reply_text
from xlift.records import fingerprint
from xlift.terminal import paged, share_text

EXAMS = ("mm", "mrewardbench")
_FIELDS = ("prompt", "chosen", "rejected")


class Mark(NamedTuple):
    """How a judge did on some pairs: the better answer preferred in both orders, in one, in none; no verdict."""

    language: str
    subset: str
    both: int
    one: int
    none: int
    missing: int

    @property
    def judged(self) -> int:
        return self.both + self.one + self.none


def exam_pairs(source: str, languages: Sequence[str] | None = None, size: int | None = None) -> list[Pair]:
    """The pairs of a source, the better answer first; `size`: so many of each language, drawn by their ids.

    Raises ConfigError for a source of another kind and for languages that it does not have; DataError, all problems at
    once, for rows that are no pairs. Pairs in no language that is known are left out and told.
    """
    kind, colon, path = source.partition(":")
    if not colon or kind not in EXAMS:
        raise ConfigError(f"'{source}' is no exam: it begins with {' or '.join(f'{name}:' for name in EXAMS)}")
    problems: list[str] = []
    found: dict[str, Pair] = {}
    strange: Counter[str] = Counter()
    for row, folder in _rows(Path(path)):
        try:
            made = _pair(row, folder, strange, kind)
        except DataError as error:
            problems += error.problems
            continue
        if made:
            found.setdefault(made[0]["id"], made)
    if problems:
        raise DataError(shortened(problems), "a pair has prompt, chosen, rejected, language, subset and id")
    if strange:
        named = shortened([f"'{name}' ({count})" for name, count in strange.most_common()])
        told = f"pairs in no language that is known: {', '.join(named)}"
        if not found:
            raise DataError(f"{path}: {told}", "`language` is a code or a name, such as fr or fra_Latn")
        say(f"left out: {told}")
    there = sorted({pair[0]["language"] for pair in found.values()})
    if other := [code for code in languages or () if code not in there]:
        raise ConfigError([f"{path} has no '{code}'; {nearest(code, there)}" for code in other], "--languages of these")
    kept = [pair for pair in found.values() if not languages or pair[0]["language"] in languages]
    return kept if size is None else [pair for code in there for pair in _drawn(kept, code, size)]


def _drawn(pairs: Sequence[Pair], language: str, size: int) -> list[Pair]:
    own = [pair for pair in pairs if pair[0]["language"] == language]
    # By the item alone, so that languages that hold the same items have the same ones drawn.
    return sorted(own, key=lambda pair: fingerprint(pair[0]["parallel_id"]))[:size]


def _rows(path: Path) -> Iterator[tuple[Row, str]]:
    """The rows of a file or a folder, with the folder's name that each stands in."""
    shards = sorted(path.rglob("test-*-of-*.parquet")) if path.is_dir() else []
    for file in shards or files(path):
        for row in rows(file):
            yield row, file.parent.name


def _pair(row: Row, folder: str, strange: Counter[str], kind: str) -> Pair | None:
    """Both sides of a row; None where its language is not known, which is counted."""
    record, where = row.record, row.where
    if row.problem:
        raise DataError(row.problem)
    texts = {name: reply_text(record[name]) if record.get(name) else None for name in _FIELDS}
    if lacking := [name for name, text in texts.items() if not text]:
        raise DataError(f"{where}: {' and '.join(lacking)} wanted, found {', '.join(record) or 'nothing'}")
    told = str(record.get("language") or folder)
    known = find_language(told)
    code = known.code if known else language_in(told)
    if code is None:
        strange[told] += 1
        return None
    subset = str(record.get("subset") or record.get("category") or "")
    item = f"{subset}:{record.get('id', row.number)}"
    shared: dict[str, Any] = {
        "id": f"{code}:{item}:{fingerprint(texts, length=6)}",
        "parallel_id": item if kind == "mrewardbench" else f"{code}:{item}",
        "language": code,
    }
    shared |= {"subset": subset, "messages": [{"role": "user", "content": texts["prompt"]}]}
    return {**shared, "run": "chosen", "text": texts["chosen"]}, {
        **shared,
        "run": "rejected",
        "text": texts["rejected"],
    }


def marks(pairs: Sequence[Pair], records: Sequence[dict[str, Any]]) -> list[Mark]:
    """How a judge did: over all languages, by language, and by subset; `records` are those of `compare_pairs`."""
    subsets = {pair[0]["id"]: pair[0]["subset"] for pair in pairs}
    languages = sorted({record["language"] for record in records})
    groups = [(ALL, ALL, list(records))] if len(languages) > 1 else []
    groups += [(code, ALL, [one for one in records if one["language"] == code]) for code in languages]
    names = sorted({subsets[record["id"]] for record in records})
    groups += [(ALL, name, [one for one in records if subsets[one["id"]] == name]) for name in names if len(names) > 1]
    return [_mark(*group) for group in groups]


def _mark(language: str, subset: str, records: Sequence[dict[str, Any]]) -> Mark:
    judged = [record["orders"].count("first") for record in records if None not in record["orders"]]
    both, one, none = (judged.count(times) for times in (2, 1, 0))
    return Mark(language, subset, both, one, none, len(records) - len(judged))


def exam_table(found: Sequence[Mark], steady: Sequence[Comparison]) -> str:
    """Accuracy (the better answer preferred in both orders), and how steady the judge is."""
    places = {one.language: one for one in steady}
    lines = [["", "right in both orders", "in one", "in none", "missing", "shown first won"]]
    for one in found:
        name = one.language if one.subset == ALL else f"  {one.subset or '(no subset)'}"
        share = one.both / one.judged if one.judged else None
        right = "–" if share is None else share_text(share, *wilson(share, one.judged))
        place = places[one.language].shown_first if one.subset == ALL and one.language in places else None
        first = "" if one.subset != ALL else "–" if place is None else f"{place:.0%}"
        lines.append([name, right, str(one.one), str(one.none), str(one.missing), first])
    return paged(lines)


def exam_records(found: Sequence[Mark]) -> list[dict[str, Any]]:
    """The marks for other programs, with the share right in both orders and its interval."""
    made = []
    for one in found:
        share = one.both / one.judged if one.judged else None
        low, high = wilson(share, one.judged) if share is not None else (None, None)
        made.append({**one._asdict(), "accuracy": share, "low": low, "high": high})
    return made


def exam_of(pairs: Sequence[Pair], records: Sequence[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Both forms of an exam's results."""
    found, steady = marks(pairs, records), summarise_pairs(records)
    return exam_table(found, steady), {"marks": exam_records(found), "pairs": [asdict(one) for one in steady]}
