"""Two runs' responses to the same prompts compared by a judge, from question to table; each pair asked in both orders.

A judge that prefers whatever it reads first gives itself away: its two verdicts disagree, the pair counts as a tie, and
the share of such pairs is told beside the result. Records, one a pair:

    {"id", "language", "cluster", "first", "second", "responses": [fingerprint, fingerprint], "rater", "signature",
     "request", "verdict": "first"|"second"|"tie"|null, "orders": [verdict, verdict], "consistent": bool|null,
     "identical"?: true, "reason"?}

`first` and `second` name the runs; `orders` are the verdicts with the first run shown first, and shown second, both in
terms of the runs. Two responses with the same text are a tie that no judge is asked about; they are counted apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlift.disk import JsonlWriter, encode_record
from xlift.intervals import Estimate, estimate
from xlift.judging.batches import answer_as_set
from xlift.judging.questions import (
    KEPT_CHARACTERS,
    JudgeRequest,
    Texts,
    context_blocks,
    frame_language,
    item_message,
    judge_signature,
    load_texts,
    make_request,
    rater,
    shown,
)
from xlift.judging.ratings import CallEstimate, estimate_calls
from xlift.judging.replies import PREFERENCES, read_preference, refuses
from xlift.progress import progress
from xlift.rating import text_fingerprint, unreadable_record
from xlift.records import fingerprint, read_records
from xlift.servers.calls import ServedAnswer
from xlift.servers.client import PACE, Pace, RequestGroup
from xlift.servers.ledger import open_ledger
from xlift.study.served import Judge
from xlift.terminal import paged, share_text

Pair = tuple[dict[str, Any], dict[str, Any]]
"""Two response records to the same prompt."""
_SWAPPED = {"first": "second", "second": "first", "tie": "tie"}
_OUTPUT_TOKENS = 10.0
_POINTS = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass(frozen=True)
class Comparison:
    """One language (or all): how often the first run is preferred (ties count half), and how steady the judge is."""

    language: str
    wins: Estimate
    first: int
    tie: int
    second: int
    identical: int
    """Pairs with the same text on both sides, which no judge was asked about; for `wins` they are ties, too."""
    consistent: float | None
    """Share of the judged pairs in which both orders brought the same verdict."""
    shown_first: float | None
    """Share of all verdicts for one side that went to the response shown first; 0.5 is unbiased."""


# e.g. len(pairs_of([{"id": "a"}, {"id": "b"}], [{"id": "b"}, {"id": "c"}])) → 1
def pairs_of(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> list[Pair]:
    """The responses of two runs that answer the same prompt (same id and messages), in the first run's order."""
    others = {record["id"]: record for record in second}
    found = ((record, others.get(record["id"])) for record in first)
    return [(one, other) for one, other in found if other and one.get("messages") == other.get("messages")]


def compare_pairs(pairs: Sequence[Pair], settings: Judge, output: Path, ledger: Path, pace: Pace = PACE) -> str | None:
    """Append a record for each pair that `output` does not hold yet. Returns why the budget stopped it, or None.

    Interrupted and run again, it goes on like judging does, and by batches where the judge is set so. Raises UserError
    as `answer_groups` does.
    """
    texts = load_texts(settings)
    done = _compared(output)
    with (
        open_ledger(ledger, settings) as book,
        JsonlWriter(output) as log,
        progress(f"compare by {settings.label}", len(pairs)) as bar,
    ):

        def groups() -> Iterator[RequestGroup]:
            signed = judge_signature(settings, texts)
            for pair in pairs:
                requests = pair_requests(pair, settings, texts)
                if _key(requests, pair) in done:
                    bar.advance(1)
                    continue

                def finish(answers: list[ServedAnswer], pair: Pair = pair, requests: Any = requests) -> None:
                    log.write_encoded(encode_record(pair_record(pair, settings, signed, requests, answers)))
                    bar.advance(1, f"{book.input + book.output} tokens")

                yield RequestGroup(requests, finish)

        def open_requests() -> Iterator[JudgeRequest]:
            return (request for requests in _open_pairs(pairs, settings, texts, done) for request in requests)

        return answer_as_set(open_requests, groups(), settings, book, pace)


def estimate_pairs(pairs: Sequence[Pair], settings: Judge, output: Path, ledger: Path) -> CallEstimate:
    """What comparing these pairs would take; nothing is sent or written."""
    asked = _open_pairs(pairs, settings, load_texts(settings), _compared(output))
    # The ledger holds ratings as well, whose calls are longer: their mean says nothing here.
    return estimate_calls(asked, settings, ledger, _OUTPUT_TOKENS, measured=False)


def _compared(output: Path) -> set[str]:
    return {record.get("request", "") for record in read_records(output) if not record.get("incomplete")}


def _open_pairs(
    pairs: Sequence[Pair], settings: Judge, texts: dict[str, Texts], done: set[str]
) -> Iterator[list[JudgeRequest]]:
    for pair in pairs:
        requests = pair_requests(pair, settings, texts)
        if requests and _key(requests, pair) not in done:
            yield requests


def _key(requests: Sequence[JudgeRequest], pair: Pair) -> str:
    runs = [str(record.get("run", "")) for record in pair]
    asked = [request.key for request in requests] or [text_fingerprint(record) for record in pair]
    return fingerprint(asked, runs, pair[0].get("id"), length=16)


def pair_requests(pair: Pair, settings: Judge, texts: dict[str, Texts]) -> list[JudgeRequest]:
    """The same question in both orders; none where a record has no text, or both have the same."""
    if any(unreadable_record(record) for record in pair) or _same(pair):
        return []
    return [_pair_request(pair, order, settings, texts) for order in ((0, 1), (1, 0))]


def _same(pair: Pair) -> bool:
    return pair[0].get("text") == pair[1].get("text")


def _pair_request(pair: Pair, order: tuple[int, int], settings: Judge, texts: dict[str, Texts]) -> JudgeRequest:
    own = texts[frame_language(pair[0], texts)]
    blocks, notes = context_blocks(pair[0], settings)
    for name, place in zip(("FIRST", "SECOND"), order, strict=True):
        seen, changed = shown(pair[place]["text"], name.lower())
        blocks.append((name, seen))
        notes += changed
    user = item_message("pair item", pair[0], blocks, own, {})

    def readable(text: str) -> bool:
        return read_preference(text) is not None

    kinds = {"better": {"type": "string", "enum": list(PREFERENCES)}}
    frame = own.frame
    return make_request(frame["pair system"], user, frame["pair again"], kinds, (), tuple(notes), readable, settings)


def pair_record(
    pair: Pair, settings: Judge, signed: str, requests: Sequence[JudgeRequest], answers: Sequence[ServedAnswer]
) -> dict[str, Any]:
    """What both orders say together: their verdict where they agree, a tie where they do not."""
    identical = not answers and not any(unreadable_record(one) for one in pair)
    orders: list[str | None] = [_preference(answer) for answer in answers] or [None, None]
    if orders[1]:
        orders[1] = _SWAPPED[orders[1]]
    known = None not in orders
    consistent = orders[0] == orders[1] if known else None
    verdict = (orders[0] if consistent else "tie") if known or identical else None
    record: dict[str, Any] = {
        "id": str(pair[0].get("id", "")),
        "language": str(pair[0].get("language", "")),
        "cluster": str(pair[0].get("parallel_id") or pair[0].get("id", "")),
        "first": str(pair[0].get("run", "")),
        "second": str(pair[1].get("run", "")),
        "responses": [text_fingerprint(one) for one in pair],
        "rater": rater(settings),
        "signature": signed,
        "request": _key(requests, pair),
        "verdict": verdict,
        "orders": orders,
        "consistent": consistent,
    }
    if verdict is None:
        record |= _why_missing(answers)
    return record | ({"identical": True} if identical else {})


def _preference(answer: ServedAnswer) -> str | None:
    read = [read_preference(reply.text) for reply in answer.replies] if not answer.failure else []
    return next((one for one in read if one), None)


def _why_missing(answers: Sequence[ServedAnswer]) -> dict[str, Any]:
    if not answers:
        return {"reason": "a response has no text"}
    lost = next((answer for answer in answers if answer.failure), None)
    if lost:
        return {"reason": lost.failure, "incomplete": True}
    last = next(answer.replies[-1] for answer in answers if not _preference(answer))
    reason = "the judge refused to compare" if refuses(last) else "the judge's reply holds no preference"
    return {"reason": reason, "reply": (last.refusal or last.text)[:KEPT_CHARACTERS]}


def current_comparisons(path: Path, pairs: Sequence[Pair], settings: Judge) -> list[dict[str, Any]]:
    """The records of a file that fit these pairs and the judge as it is now: the latest of each, in order."""
    texts = load_texts(settings)
    made = {record.get("request", ""): record for record in read_records(path)}
    keys = [_key(pair_requests(pair, settings, texts), pair) for pair in pairs]
    return [made[key] for key in keys if key in made]


def summarise_pairs(records: Sequence[dict[str, Any]]) -> list[Comparison]:
    """All languages together ("all") and each alone; intervals resample translations of a prompt together."""
    languages = sorted({record["language"] for record in records})
    groups = [("all", list(records))] if len(languages) > 1 else []
    groups += [(code, [one for one in records if one["language"] == code]) for code in languages]
    return [_comparison(code, group) for code, group in groups]


def _comparison(language: str, records: list[dict[str, Any]]) -> Comparison:
    verdicts = [record["verdict"] for record in records]
    identical = sum(record.get("identical", False) for record in records)
    points = [_POINTS[verdict] if verdict else None for verdict in verdicts]
    wins = estimate(points, [record["cluster"] for record in records], 1.0)
    steady = [record["consistent"] for record in records if record["consistent"] is not None]
    # Shown first: the first run in the first order, the second run in the second.
    sides = [
        (verdict == "first") == (place == 0)
        for record in records
        for place, verdict in enumerate(record["orders"])
        if verdict in ("first", "second")
    ]
    first, second, tie = (verdicts.count(name) for name in PREFERENCES)
    return Comparison(language, wins, first, tie - identical, second, identical, _share(steady), _share(sides))


# e.g. _share([True, True, False, True]) → 0.75
# e.g. _share([]) → None
def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def comparison_table(found: Sequence[Comparison], first: str, second: str) -> str:
    """A summary in words, one line a language; what is said of the judge below, so that both fit a terminal."""
    counts = [["", "first preferred", "wins", "ties", "losses", "identical", "missing"], *map(_counts, found)]
    steady = [["", "orders agree", "the one shown first won"], *map(_steadiness, found)]
    return f"first: {first}\nsecond: {second}\n\n{paged(counts)}\n\n{paged(steady)}"


def _counts(one: Comparison) -> list[str]:
    wins = one.wins
    mean = "–" if wins.mean is None else share_text(wins.mean, wins.low or 0, wins.high or 0)
    return [one.language, mean, *map(str, (one.first, one.tie, one.second, one.identical, wins.missing))]


def _steadiness(one: Comparison) -> list[str]:
    return [one.language, *("–" if share is None else f"{share:.0%}" for share in (one.consistent, one.shown_first))]
