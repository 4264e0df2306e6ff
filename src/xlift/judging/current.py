"""Which of a judge's ratings count: those of these responses by the judge as it is now."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from xlift.judging.questions import load_texts, rater, requests_for
from xlift.rating import identity, unreadable_record
from xlift.records import Rating, on_scale, parse_line
from xlift.study.served import Judge


def mark_of(record: dict[str, Any], key: str) -> int:
    """A number for one request about one response of one checkpoint."""
    digest = hashlib.blake2b(repr((identity(record), key)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def judge_records(path: Path, settings: Judge) -> Iterator[dict[str, Any]]:
    """The ratings that this judge has made in a file, by whatever rubric; none where there is no file."""
    if not path.is_file():
        return
    name = rater(settings)
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, start=1):
            record = parse_line(raw, f"{path}:{number}") if raw.endswith(b"\n") and raw.strip() else {}
            # One that lacks what it answers is made again, from the ledger.
            if record.get("rater") == name and all(isinstance(record.get(key), str) for key in ("request", "facet")):
                yield on_scale(record)


def current_judge_ratings(path: Path, responses: Iterable[dict[str, Any]], settings: Judge) -> list[Rating]:
    """The ratings in a file that fit these responses and the judge as it is now: one for each facet, the latest.

    Those made with other rubrics, another model or other texts stay in the file and are not returned. A response that
    has not been judged has none here.
    """
    texts = load_texts(settings)
    wanted: dict[int, int] = {}
    for record in responses:
        keys = [""] if unreadable_record(record) else [one.key for one in requests_for(record, settings, texts)]
        for key in keys:
            wanted.setdefault(mark_of(record, key), len(wanted))
    found: dict[tuple[int, str], Rating] = {}
    for rating in judge_records(path, settings):
        place = wanted.get(mark_of(rating, rating["request"]))
        if place is not None and rating["facet"] in settings.facets:
            found[place, rating["facet"]] = cast(Rating, rating)
    return [found[key] for key in sorted(found, key=lambda key: key[0])]
