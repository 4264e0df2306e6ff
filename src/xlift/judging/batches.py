"""Judging through the Batch API of a server that offers one, in place of single calls: cheaper, answered within a day.

The replies of a batch go to the same ledger as those of single calls, under the same keys, and are read by the same
code. What a batch leaves open (failed lines, re-asks) goes into the next one. Beside the ledger lies a small file that
names the batch under way, written before the batch is made: a process killed at any time finds its batch again.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from xlift.disk import encode_record, write_atomic
from xlift.errors import DataError, UserError
from xlift.extras import require
from xlift.judging.questions import JudgeRequest
from xlift.progress import say
from xlift.records import Message, fingerprint, parse_line
from xlift.redaction import redacted
from xlift.servers.calls import Asked, ServedAnswer, ServedReply, text_of
from xlift.servers.client import Pace, RequestGroup, answer_groups, check_budget
from xlift.servers.completions import Features, read_completion, request_body, server_words
from xlift.servers.ledger import Ledger, estimated_tokens, most_tokens
from xlift.servers.where import api_key, server_address
from xlift.study.served import Judge

if TYPE_CHECKING:
    from openai import OpenAI

MOST_LINES = 50_000
MOST_BYTES = 190_000_000
"""Limits of one batch; the rest goes into the next one."""
PATIENCE = 8
"""How often a look at a batch is repeated when the connection fails."""

Made = TypeVar("Made")
BatchCall = tuple[JudgeRequest, int, list[Message]]
"""A request, its part (1, or 2 for the re-ask), and the messages to send."""


def answer_in_batches(
    requests: Callable[[], Iterable[JudgeRequest]],
    groups: Iterable[RequestGroup],
    settings: Judge,
    book: Ledger,
    poll_seconds: float,
) -> str | None:
    """Answer every request and finish every group, like `client.answer_groups`; waits until the batches are done.

    `requests` are all that `groups` ask, and are gone through for each batch. Killed and run again, it goes on with the
    batch under way. Returns why the budget stopped it, or None. Raises UserError where the server offers no batches,
    refuses one, or the key is wrong.
    """
    check_budget(settings)
    stopped = _send_all(requests, settings, book, poll_seconds)
    for group in groups:
        answers = [_answer(book, request) for request in group.requests]
        if not (stopped and any(answer.failure for answer in answers)):
            group.finish(answers)
    return stopped


def answer_as_set(
    requests: Callable[[], Iterable[JudgeRequest]],
    groups: Iterable[RequestGroup],
    settings: Judge,
    book: Ledger,
    pace: Pace,
) -> str | None:
    """By a model that is loaded here, by batches or call by call, as the judge is set."""
    if settings.here is not None:
        require("train")
        from xlift.judging.local import answer_here

        return answer_here(groups, settings, book)
    if settings.batch:
        return answer_in_batches(requests, groups, settings, book, pace.poll)
    return answer_groups(groups, settings, book, pace)


def _answer(book: Ledger, request: Asked) -> ServedAnswer:
    replies = book.replies(request.key)
    if not replies or request.follow_up(replies) is not None:
        return ServedAnswer(replies, failure="the batch brought no answer")
    return ServedAnswer(replies)


def _send_all(
    requests: Callable[[], Iterable[JudgeRequest]], settings: Judge, book: Ledger, poll_seconds: float
) -> str | None:
    """Batch after batch until nothing is open; returns why the budget stopped it, or None."""
    state = book.path.with_suffix(".batch.json")
    with _client(settings) as client:
        if state.is_file():
            _collect(client, state, book, settings, poll_seconds)
        while True:
            with tempfile.TemporaryFile() as file:
                count, limit = _write_lines(file, open_calls(requests(), book), settings, book)
                if not count:
                    return limit
                file.seek(0)
                _submit(client, state, file.read(), settings)
            say(f"judge {settings.label}: a batch of {count} requests is under way; it can be left and run again later")
            answered = book.answered
            _collect(client, state, book, settings, poll_seconds)
            if limit or book.answered == answered:
                return limit


def _client(settings: Judge) -> OpenAI:
    require("judge")
    from openai import OpenAI

    # Without retries of its own: a batch whose making seemed to fail must not be made and paid twice.
    address = server_address(settings)
    return OpenAI(api_key=api_key(settings), base_url=address, max_retries=0, timeout=settings.timeout)


def open_calls(requests: Iterable[JudgeRequest], book: Ledger) -> Iterator[BatchCall]:
    """Every call that has no reply yet, once: first calls, and re-asks of those whose first reply cannot be read."""
    seen: set[str] = set()
    for request in requests:
        if request.key in seen:
            continue
        seen.add(request.key)
        replies = book.replies(request.key)
        if not replies:
            yield request, 1, request.messages
        elif (more := request.follow_up(replies)) is not None:
            yield request, 2, more


def _write_lines(file: Any, calls: Iterable[BatchCall], settings: Judge, book: Ledger) -> tuple[int, str | None]:
    """Write the lines of one batch; returns how many, and why the budget allows no more, if so."""
    count = size = 0
    cost = book.cost
    for request, part, messages in calls:
        body = request_body(settings, request, messages, Features(schema=settings.json_schema))
        line = {"custom_id": f"{request.key}-{part}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        encoded = encode_record(line)
        cost += book.price(most_tokens(text_of(messages)), settings.max_new_tokens)
        if count >= MOST_LINES or size + len(encoded) > MOST_BYTES:
            break
        if settings.max_requests is not None and book.requests + count >= settings.max_requests:
            return count, f"max_requests {settings.max_requests} reached; what is done is kept"
        if settings.max_cost is not None and cost > settings.max_cost:
            return count, f"max_cost {settings.max_cost:g} could be exceeded; what is done is kept"
        file.write(encoded)
        count, size = count + 1, size + len(encoded)
    return count, None


def _submit(client: OpenAI, state: Path, lines: bytes, settings: Judge) -> None:
    """Upload the lines and make the batch; the state names it beforehand, so that it is found again."""
    from openai import OpenAIError

    mark = fingerprint(lines.decode("utf-8"), length=16)
    try:
        uploaded = client.files.create(file=("xlift.jsonl", lines), purpose="batch")
        write_atomic(state, json.dumps({"mark": mark, "file": uploaded.id}))
        batch = client.batches.create(
            input_file_id=uploaded.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"xlift": mark},
        )
    except OpenAIError as error:
        words = server_words(getattr(error, "body", None), str(error), client.api_key)
        raise UserError(
            f"judge '{settings.label}': no batch could be made: {words}", "batch: false sends single requests"
        ) from None
    write_atomic(state, json.dumps({"mark": mark, "file": uploaded.id, "batch": batch.id}))


def _collect(client: OpenAI, state: Path, book: Ledger, settings: Judge, poll_seconds: float) -> None:
    """Wait for the batch that the state names and move its replies to the ledger."""
    named = _state(state)
    batch_id = named.get("batch") or _find(client, named.get("mark", ""))
    if batch_id is None:
        # Killed between the upload and the making of the batch: nothing was paid.
        return state.unlink()
    batch = _wait(client, batch_id, settings, poll_seconds)
    failed: list[str] = []
    for file_id in (batch.output_file_id, batch.error_file_id):
        if file_id:
            content = _patiently(partial(client.files.content, file_id)).content
            failed += [why for raw in content.splitlines() if (why := _keep(raw, book, client.api_key))]
    if failed:
        say(f"judge {settings.label}: {len(failed)} requests of the batch failed, the first with: {failed[0]}")
    state.unlink()
    if batch.status == "failed":
        problems = [
            server_words({}, str(one.message), client.api_key) for one in (batch.errors and batch.errors.data) or []
        ]
        raise UserError(
            [f"judge '{settings.label}': the batch failed: {one}" for one in problems or ["no reason given"]]
        )


def _find(client: OpenAI, mark: str) -> str | None:
    batches = _patiently(lambda: list(client.batches.list(limit=100).data))
    return next((batch.id for batch in batches if (batch.metadata or {}).get("xlift") == mark), None)


def _wait(client: OpenAI, batch_id: str, settings: Judge, poll_seconds: float) -> Any:
    began, said = time.monotonic(), ""
    while True:
        batch = _patiently(lambda: client.batches.retrieve(batch_id))
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
        counts = batch.request_counts
        now = f"{batch.status}, {counts.completed} of {counts.total}" if counts else batch.status
        if now != said:
            said = now
            say(f"judge {settings.label}: batch {batch_id} {now} after {time.monotonic() - began:.0f} s")
        time.sleep(poll_seconds)


def _patiently(look: Callable[[], Made]) -> Made:
    """What a look at the server brings; only looks are repeated, never what costs money."""
    from openai import APIConnectionError, InternalServerError, RateLimitError

    for turn in range(PATIENCE):
        try:
            return look()
        except (APIConnectionError, InternalServerError, RateLimitError):
            if turn == PATIENCE - 1:
                raise UserError("the batch cannot be looked at: the server does not answer", "run it again") from None
            time.sleep(min(60.0, 2.0**turn))
    raise AssertionError


def _keep(raw: bytes, book: Ledger, secret: str) -> str | None:
    """Move one line of a batch's results to the ledger; returns why it holds no reply, if so."""
    try:
        line = parse_line(raw, "a line of the batch's results")
        key, _, number = str(line["custom_id"]).rpartition("-")
        part, _ = int(number), int(key, 16)
    except (DataError, KeyError, ValueError) as error:
        return redacted(f"a line of its results cannot be read: {error}"[:200], secret)
    response = line["response"] if isinstance(line.get("response"), dict) else {}
    result, usage = read_completion(response.get("body"), secret)
    if response.get("status_code") != 200 or not isinstance(result, ServedReply):
        why = server_words(line.get("error") or response.get("body"), f"status {response.get('status_code')}", secret)
        book.add_failure(key, part, why)
        return why
    if len(book.replies(key)) < part:
        book.add(key, part, result, usage or (0, round(estimated_tokens(result.text))), estimated=usage is None)
    return None


def _state(path: Path) -> dict[str, Any]:
    """The batch under way, by the small file that names it."""
    try:
        return parse_line(path.read_bytes(), str(path))
    except DataError as error:
        raise DataError(
            error.problems, "remove the file and run again: a batch that is under way is paid twice"
        ) from None
