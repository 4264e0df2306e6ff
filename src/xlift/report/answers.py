"""One page to browse responses of any files in, with their ratings: the report's browser, alone and self-contained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from markupsafe import Markup

from xlift.disk import write_atomic
from xlift.languages import language_name
from xlift.rating import unreadable_record
from xlift.rating.files import KeptResponse
from xlift.records import Prompt, Rating, Response
from xlift.report.browser import TEMPLATES, Answers, packed_answers, policy, rendered


def write_answers(path: Path, kept: Sequence[KeptResponse], title: str, left_out: int = 0) -> Path:
    """Write the page. Responses to prompts of one id stand side by side, one column a name.

    What has no text or no language is counted, and not shown; how many were `left_out` before is told.
    """
    prompts, answers, shown = _columns(kept)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    languages = sorted({prompt["language"] for prompt in prompts})
    page = rendered(
        "answers.html",
        title=title,
        counts=_counts(shown, len(kept), left_out),
        languages=[(code, language_name(code)) for code in languages],
        packed=packed_answers(prompts, answers),
        splits=False,
        script=Markup(script),
        policy=policy(script),
    )
    write_atomic(path, page)
    return path


# e.g. _counts(3, 4, 0) → "3 responses; 1 without a text or a language are not shown."
# e.g. _counts(3, 4, 7).partition(";")[0] → "3 of 11 responses, whole requests from all over"
def _counts(shown: int, kept: int, left_out: int) -> str:
    of = f"{shown} of {kept + left_out} responses, whole requests from all over" if left_out else f"{shown} responses"
    return f"{of}; {kept - shown} without a text or a language are not shown."


def _columns(kept: Sequence[KeptResponse]) -> tuple[list[Prompt], list[Answers], int]:
    """The prompts by id and language, and the responses of each name; a second one of a name is a prompt of its own."""
    prompts: dict[str, Prompt] = {}
    columns: dict[str, tuple[list[Response], list[Rating]]] = {}
    times: Counter[tuple[str, str]] = Counter()
    shown = 0
    for name, record, ratings in kept:
        if unreadable_record(record):
            continue
        shown += 1
        own = f"{record['id']} {record['language']}"
        times[name, own] += 1
        ident = own if times[name, own] == 1 else f"{own} #{times[name, own]}"
        prompts.setdefault(ident, _prompt(record, ident))
        responses, rated = columns.setdefault(name, ([], []))
        finish = record.get("finish_reason", "")
        responses.append(cast(Response, {"id": ident, "text": record["text"], "finish_reason": finish}))
        rated += [rating | {"id": ident} for rating in ratings]
    answers = [Answers(name, name, 0, *column) for name, column in columns.items()]
    return list(prompts.values()), answers, shown


def _prompt(record: dict[str, Any], ident: str) -> Prompt:
    asked = record.get("messages") if isinstance(record.get("messages"), list) else None
    turns = [one for one in asked or [] if isinstance(one, dict) and isinstance(one.get("content"), str)]
    if asked and turns and turns[-1].get("role") == "assistant":
        turns = turns[:-1]
    said = [{"role": str(one.get("role")), "content": one["content"]} for one in turns]
    constraint = record.get("constraint") if isinstance(record.get("constraint"), dict) else None
    fields = {"id": ident, "language": record["language"], "split": "", "category": str(record.get("category") or "")}
    fields |= {"reply_language": record["reply_language"]} if record.get("reply_language") else {}
    fields |= {"constraint": constraint} if constraint else {}
    return cast(Prompt, fields | {"messages": said or [{"role": "user", "content": str(record.get("prompt") or "")}]})
