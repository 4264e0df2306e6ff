"""What is sent to an OpenAI-compatible server and what its answers mean; client.py and judging/batches.py send.

Whatever a server answers is data: what is no completion, or no text, is told apart here and never trusted to have a
shape.
"""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

from xlift.records import Message
from xlift.redaction import redacted
from xlift.servers.calls import Asked, ServedReply, text_of
from xlift.study.served import Served

LONGEST_SAID = 200
"""Characters of a server's own words that are shown and kept."""
MOST_TOKENS = 10**9
"""A count of tokens above this is none."""

# What each parameter that can be left out is called in complaints, the exact names before what may mean anything.
_COMPLAINTS = (
    ("schema", r"response_format|json_schema|guided_"),
    ("tokens", r"\bmax_tokens\b"),
    ("temperature", r"\btemperature\b"),
    ("seed", r"\bseed\b"),
    ("system", r"['\"`]system['\"`]|\bsystem (?:role|message|prompt|instruction)|\broles?\b"),
    ("schema", r"json|schema|grammar|structured"),
)
_PARAMETERS = re.compile(r"parameter|endpoint", re.IGNORECASE)


class Features(NamedTuple):
    """What the server understands; taken back one by one where it says that it does not."""

    schema: bool
    tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True
    seed: bool = True
    system: bool = True


class Trouble(NamedTuple):
    """What came of a call instead of a reply; `all_calls` where it may not be this request's fault alone."""

    kind: Literal["again", "refused", "left out", "stop"]
    why: str
    wait: float | None = None
    hint: str | None = None
    unreachable: bool = False
    all_calls: str | None = None
    """What is wrong, where a harmless request fails as well."""
    nonsense: bool = False
    """Whether an answer came that is none of a chat model's."""


def request_body(settings: Served, request: Asked, messages: list[Message], features: Features) -> dict[str, Any]:
    """The JSON of one chat completion request, as far as the server understands it."""
    if not features.system:
        messages = [{"role": "user", "content": text_of(messages[:2])}, *messages[2:]]
    body: dict[str, Any] = {
        "model": settings.model,
        **request.content(messages),
        features.tokens: settings.reply_tokens,
    }
    left_out = {name for name in ("temperature", "seed") if not getattr(features, name)}
    body |= {name: value for name, value in settings.parameters.items() if name not in left_out}
    if features.schema and request.schema is not None:
        shape = {"name": "reply", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": shape}
    return body


# e.g. read_completion({"choices": [{"message": {"content": "Yes."}}]})[0].text → "Yes."
# e.g. read_completion({"error": "busy"})[0].why → "the answer is not a chat completion: busy"
def read_completion(data: Any, secret: str = "") -> tuple[ServedReply | Trouble, tuple[int, int] | None]:
    """The reply in a chat completion and its (input, output) tokens, None where the server does not tell them.

    What is no text is kept as JSON, to be seen: it holds no rating unless it says one. `secret` is in none of it.
    """
    choices = data.get("choices") if isinstance(data, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if isinstance(choice, dict) and isinstance(choice.get("text"), str):
        message = {"content": choice["text"]}  # a completion of plain text
    if not isinstance(choice, dict) or not isinstance(message, dict):
        said = server_words(data, data if isinstance(data, str) else "", secret)
        return Trouble("again", "the answer is not a chat completion" + (said and f": {said}"), nonsense=True), None
    finish = choice.get("finish_reason")
    text, refusal = (redacted(_text(message.get(name)), secret) for name in ("content", "refusal"))
    ended = redacted(finish, secret)[:40] if isinstance(finish, str) and finish else "stop"
    print_ = data.get("system_fingerprint")
    engine = redacted(print_, secret)[:80] if isinstance(print_, str) and print_ else None
    reply = ServedReply(text, ended, refusal or None, engine)
    return reply, _counted(data.get("usage"))


# e.g. _text([{"type": "text", "text": "Yes"}, {"type": "text", "text": "."}]) → "Yes."
def _text(content: Any) -> str:
    """The text of a message: as it is, joined where it comes in parts; anything else as JSON."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return json.dumps(content, ensure_ascii=False)


# e.g. _counted({"prompt_tokens": 12, "completion_tokens": 3}) → (12, 3)
# e.g. _counted({"prompt_tokens": -1, "completion_tokens": 3}) → None
def _counted(usage: Any) -> tuple[int, int] | None:
    found = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")] if isinstance(usage, dict) else []
    counts = [one for one in found if type(one) is int and 0 <= one <= MOST_TOKENS]
    return (counts[0], counts[1]) if len(counts) == 2 else None


# e.g. too_long("400: the request exceeds the available context size") → True
def too_long(words: str) -> bool:
    """Whether a server says that a conversation is longer than its model's context, as vLLM, llama.cpp, TGI and OpenAI
    do."""
    told = r"context[ _](length|size|window)|max_model_len|max_input_length|too (many tokens|long)"
    return re.search(told, words, re.IGNORECASE) is not None


# e.g. server_words({"error": {"message": "Too many\nrequests"}}, "status 429", "") → "Too many requests"
def server_words(body: Any, otherwise: str, secret: str) -> str:
    """A server's own words, short, on one line, and without the key that some servers repeat."""
    inner = body.get("error", body) if isinstance(body, dict) else {}
    words = (inner.get("message") or inner.get("detail")) if isinstance(inner, dict) else inner
    text = redacted(str(words or otherwise)[:50_000], secret)
    return "".join(one if one.isprintable() else " " for one in text)[:LONGEST_SAID]


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds to wait by a Retry-After header, which gives seconds or a date; None without a usable one."""
    if not value:
        return None
    # Stripped first: a float takes fewer characters for blanks than a string does.
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", seconds := value.strip()):
        return float(seconds)
    try:
        then = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return max(0.0, (then.replace(tzinfo=then.tzinfo or timezone.utc) - now).total_seconds())


# e.g. a complaint about "seed" that also speaks of JSON takes back the seed alone
def adapted(features: Features, complaint: str) -> Features | None:
    """The features without the one that a server complains of; None where nothing is left to take back.

    The first that it names; where it names none, the schema, and where it speaks of parameters one after the other.
    """
    text = complaint.lower()
    named = [name for name, pattern in _COMPLAINTS if re.search(pattern, text)]
    unnamed = ["schema", "seed", "temperature"] if _PARAMETERS.search(text) and not named else ["schema"]
    return next((less for name in [*named, *unnamed] if (less := _without(features, name)) != features), None)


def _without(features: Features, name: str) -> Features:
    return features._replace(**{name: "max_completion_tokens" if name == "tokens" else False})  # type: ignore[arg-type]


# e.g. model_names({"data": [{"id": "a"}, {"id": 5}]}) → ["a"]
def model_names(listing: Any, most: int = 20) -> list[str]:
    """The names in a server's list of models."""
    rows = listing.get("data") if isinstance(listing, dict) else None
    names = [row.get("id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [name[:100] for name in names if isinstance(name, str) and name.isprintable()][:most]
