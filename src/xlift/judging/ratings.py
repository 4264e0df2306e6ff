"""Responses in, a judge's ratings out: questions.py asks, a server brings replies, here they are kept.

Ratings are appended response by response; the ledger holds every reply. Killed and run again, what is rated
is left as it is, what has been answered is read from the ledger, and only the rest is sent. A rating is bound to its
request (model, decoding and every character shown), so an edited rubric rates again and an unedited one does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from xlift.disk import JsonlWriter, encode_record
from xlift.judging.batches import answer_as_set
from xlift.judging.current import judge_records, mark_of
from xlift.judging.questions import (
    JudgeRequest,
    Texts,
    judge_signature,
    load_texts,
    missing_ratings,
    ratings_for,
    requests_for,
)
from xlift.pace import keep_judging
from xlift.progress import Progress, progress
from xlift.rating import unreadable_record
from xlift.records import Rating
from xlift.servers.calls import ServedAnswer, text_of
from xlift.servers.client import PACE, Pace, RequestGroup, check_budget
from xlift.servers.ledger import Ledger, estimated_tokens, mean_tokens, open_ledger, read_ledger
from xlift.study.served import Judge
from xlift.terminal import terminal_room, wrapped

Part = tuple[Iterable[dict[str, Any]], Path]
"""Response records, and the file that their ratings go to."""
_OUTPUT_TOKENS = {"all": 60.0, "each": 45.0}


@dataclass
class JudgingOutcome:
    """What came of judging: responses rated now, ratings written and how many of them are missing, requests sent now,
    tokens and cost of the study so far (earlier runs included), why it stopped early, if it did, and why the first of
    those that the judge did not answer was not."""

    responses: int = 0
    made: int = 0
    missing: int = 0
    unanswered: int = 0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    stopped: str | None = None
    why_unanswered: str | None = None
    unreadable: int = 0
    problems: list[str] = field(default_factory=list)

    def count(self, ledger: Ledger, before: int) -> None:
        """Take over what the ledger says; it held `before` requests when judging began."""
        self.requests = ledger.requests - before
        self.input_tokens, self.output_tokens, self.cost = ledger.input, ledger.output, ledger.cost


@dataclass(frozen=True)
class CallEstimate:
    """What judging so many responses, or pairs, would take. Tokens are estimates unless `measured`: then they are the
    mean of the calls so far."""

    items: int
    calls: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    spent: float
    measured: bool


def ledger_path(folder: Path, settings: Judge) -> Path:
    """Where a study keeps the ledger of a judge."""
    return folder / f"judge-{settings.label}.jsonl"


def judge_responses(
    items: Iterable[dict[str, Any]],
    settings: Judge,
    output: Path,
    ledger: Path,
    total: int | None = None,
    pace: Pace = PACE,
) -> JudgingOutcome:
    """Append the judge's ratings of response records to `output`; see `judge_parts`.

    Items without a length need `total`, for the progress display.
    """
    known = len(cast(Sized, items)) if total is None else total
    return judge_parts([(items, output)], settings, ledger, known, pace)


def judge_parts(parts: Iterable[Part], settings: Judge, ledger: Path, total: int, pace: Pace = PACE) -> JudgingOutcome:
    """Judge the responses of several files (checkpoints), one stream over all of them, or by batches.

    Items are taken as they are needed, so memory does not grow with their number; batches take them repeatedly. `total`
    is for the progress display.
    Raises UserError where the server makes it impossible to go on; what is done is kept. The budget's end is told in
    `JudgingOutcome.stopped`.
    """
    texts = load_texts(settings)
    outcome = JudgingOutcome()
    with open_ledger(ledger, settings) as book, progress(f"judge {settings.label}", total) as bar:
        before, began = book.requests, time.monotonic()
        seen = Display(bar, book, settings, outcome)
        try:
            groups = rating_groups(parts, settings, texts, seen)
            outcome.stopped = answer_as_set(partial(_requests, parts, settings, texts), groups, settings, book, pace)
        finally:
            outcome.count(book, before)
            keep_judging(settings, time.monotonic() - began, outcome.responses)
    return outcome


class Display:
    """Counts what comes of judging and shows it: responses, spend, what is missing."""

    def __init__(self, bar: Progress, ledger: Ledger, settings: Judge, outcome: JudgingOutcome) -> None:
        self.bar, self.ledger, self.settings, self.outcome = bar, ledger, settings, outcome

    def kept(self) -> None:
        """A response whose ratings are there already."""
        self.bar.advance(1, self.note())

    def rated(self, ratings: Sequence[Rating], unanswered: bool) -> None:
        outcome = self.outcome
        outcome.responses += 1
        outcome.made += len(ratings)
        outcome.missing += sum(rating["value"] is None for rating in ratings)
        outcome.unanswered += unanswered
        if unanswered and not outcome.why_unanswered:
            outcome.why_unanswered = next((rating.get("reason") for rating in ratings), None)
        self.bar.advance(1, self.note())

    def note(self) -> str:
        ledger, settings = self.ledger, self.settings
        spent = f"{ledger.input + ledger.output} tokens"
        if settings.price_input is not None or settings.price_output is not None:
            spent = f"spent {ledger.cost:.4f}" + (f" of {settings.max_cost:g}" if settings.max_cost is not None else "")
        return f"{spent}, {self.outcome.missing} missing"


class Unrated(NamedTuple):
    """A response without current ratings: the requests that rate it, or the reason why none can."""

    record: dict[str, Any]
    path: Path
    requests: list[JudgeRequest]
    reason: str | None


def unrated(
    parts: Iterable[Part], settings: Judge, texts: dict[str, Texts], kept: Callable[[], None] = lambda: None
) -> Iterator[Unrated]:
    """The responses that lack ratings, each once however often it comes; `kept` is called for the others."""
    for records, path in parts:
        done = answered_marks(path, settings)
        for record in records:
            reason = unreadable_record(record)
            requests = [] if reason else requests_for(record, settings, texts)
            keys = [request.key for request in requests] or [""]
            if _new(done, [mark_of(record, key) for key in keys]):
                yield Unrated(record, path, requests, reason)
            else:
                kept()


def _requests(parts: Iterable[Part], settings: Judge, texts: dict[str, Texts]) -> Iterator[JudgeRequest]:
    return (request for one in unrated(parts, settings, texts) for request in one.requests)


def rating_groups(
    parts: Iterable[Part], settings: Judge, texts: dict[str, Texts], seen: Display
) -> Iterator[RequestGroup]:
    """The requests about each response without current ratings."""
    signed = judge_signature(settings, texts)
    for one in unrated(_mended(parts), settings, texts, seen.kept):
        if one.reason:
            _append(one.path, missing_ratings(one.record, settings, signed, one.reason), seen, False)
            continue

        def finish(answers: list[ServedAnswer], one: Unrated = one) -> None:
            ratings = ratings_for(one.record, settings, signed, one.requests, answers)
            _append(one.path, ratings, seen, any(answer.failure for answer in answers))

        yield RequestGroup(one.requests, finish)


def _mended(parts: Iterable[Part]) -> Iterator[Part]:
    for records, path in parts:
        if path.is_file():
            JsonlWriter(path).close()  # drops a torn last line
        yield records, path


def _new(done: set[int], marks: list[int]) -> bool:
    """Whether any of the marks is new; all are noted."""
    before = len(done)
    done.update(marks)
    return len(done) > before


def _append(path: Path, ratings: list[Rating], seen: Display, unanswered: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # One write for all facets of a response, so that a killed process leaves all of them or none.
    with path.open("ab") as file:
        file.write(b"".join(encode_record(rating) for rating in ratings))
    seen.rated(ratings, unanswered)


def answered_marks(path: Path, settings: Judge) -> set[int]:
    """Marks of what the file holds whole answers to; ratings that lack an answer do not count."""
    last = {"all": list(dict.fromkeys(settings.facets))[-1:], "each": settings.facets}[settings.calls]
    return {
        mark_of(record, record["request"])
        for record in judge_records(path, settings)
        if record["facet"] in last and not (record.get("detail") or {}).get("incomplete")
    }


def estimate_ratings(parts: Iterable[Part], settings: Judge, ledger: Path) -> CallEstimate:
    """What judging these responses would take; nothing is sent or written."""
    asked = (one.requests for one in unrated(parts, settings, load_texts(settings)))
    return estimate_calls(asked, settings, ledger, _OUTPUT_TOKENS[settings.calls])


def estimate_calls(
    asked: Iterable[Sequence[JudgeRequest]], settings: Judge, ledger: Path, output_tokens: float, measured: bool = True
) -> CallEstimate:
    """What the requests of each item would take; nothing is sent or written.

    `output_tokens` are guessed of a reply; with `measured`, the mean of the calls in the ledger counts once it can.
    """
    check_budget(settings)
    items = calls = 0
    guessed = 0.0
    with read_ledger(ledger, settings) as book:
        for requests in asked:
            unpaid = [request for request in requests if not book.replies(request.key)]
            items += 1
            calls += len(unpaid)
            guessed += sum(estimated_tokens(text_of(request.messages)) for request in unpaid)
        known = mean_tokens(book) if measured else None
        read = calls * known[0] if known else guessed
        written = calls * (known[1] if known else output_tokens)
        priced = settings.price_input is not None or settings.price_output is not None
        cost = book.price(read, written) if priced else None
        return CallEstimate(items, calls, round(read), round(written), cost, book.cost, known is not None)


def estimate_text(estimate: CallEstimate, settings: Judge, what: str = "responses") -> str:
    """An estimate in words; `what` is what so many of are judged."""
    how = "mean of the calls so far" if estimate.measured else "estimated from the characters, within a factor of two"
    unknown = "none: it is loaded here" if settings.here is not None else "set price_input and price_output to see it"
    price = unknown if estimate.cost is None else f"{estimate.cost:.4f}"
    lines = [
        f"judge {settings.label} ({settings.model}), {settings.calls}: {estimate.items} {what}, {estimate.calls} calls",
        f"tokens: {estimate.input_tokens} to read, {estimate.output_tokens} to write ({how}; re-asks come on top)",
        f"price: {price}",
    ]
    lines += [f"spent so far: {estimate.spent:.4f}"] if estimate.spent else []
    return "\n".join(wrapped(line, terminal_room()) for line in lines)


def outcome_text(outcome: JudgingOutcome) -> str:
    """An outcome in words."""
    lines = [
        f"{outcome.made} ratings of {outcome.responses} responses added, {outcome.missing} missing with a reason",
        f"{outcome.requests} requests now; in all {outcome.input_tokens} tokens read, {outcome.output_tokens} written"
        + (f", cost {outcome.cost:.4f}" if outcome.cost else ""),
    ]
    if outcome.unanswered:
        lines.append(f"{outcome.unanswered} responses without an answer are tried again by the next run")
        lines += [f"the first: {outcome.why_unanswered}"] if outcome.why_unanswered else []
    if outcome.stopped:
        lines.append(f"stopped: {outcome.stopped}")
    return "\n".join(lines)
