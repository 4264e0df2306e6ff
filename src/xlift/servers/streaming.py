"""One answer of a served model, piece by piece as it comes: for a conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from xlift.errors import TooLongError, UserError
from xlift.records import Message
from xlift.redaction import redacted
from xlift.servers.bounds import LONGEST_ANSWER
from xlift.servers.completions import Features, adapted, server_words, too_long
from xlift.servers.where import api_key, server_address
from xlift.study.served import Model

if TYPE_CHECKING:
    from openai import OpenAI


def streamed(model: Model, messages: Sequence[Message], on_piece: Callable[[str], None]) -> str:
    """The whole reply, told to `on_piece` as it comes.

    Raises TooLongError for a conversation that the server cannot read, UserError where no reply comes that can be read,
    and where it is cut off: what had come is told by then.
    """
    from openai import OpenAI

    key, features = api_key(model), Features(schema=False)
    client = OpenAI(base_url=server_address(model), api_key=key, max_retries=2, timeout=model.timeout)
    with client, _in_words(client, model, key):
        while True:
            found = _asked(client, model, messages, features)
            if not isinstance(found, Features):
                return _read(found, key, on_piece)
            features = found


def _asked(client: OpenAI, model: Model, messages: Sequence[Message], features: Features) -> Any:
    """The answer as it comes; or, where the server does not know a parameter, the features without it."""
    from openai import BadRequestError

    left_out = {name for name in ("temperature", "seed") if not getattr(features, name)}
    body = {name: value for name, value in model.parameters.items() if name not in left_out}
    body |= {features.tokens: model.reply_tokens}
    create: Any = client.chat.completions.create
    try:
        return create(model=model.model, messages=list(messages), stream=True, extra_body=body)
    except BadRequestError as error:
        if (less := adapted(features, server_words(error.body, error.message, ""))) is None:
            raise
        return less


def _read(chunks: Any, key: str, on_piece: Callable[[str], None]) -> str:
    text, ended = "", False
    for piece, end in _pieces(chunks):
        if len(text) + len(piece) > LONGEST_ANSWER:
            raise UserError(f"the answer is longer than {LONGEST_ANSWER:,} characters")
        text += redacted(piece, key)
        on_piece(redacted(piece, key))
        ended = ended or end
    if not ended:
        raise UserError("the answer was cut off" if text else "no answer that can be read came")
    return text


def _pieces(chunks: Any) -> Iterator[tuple[str, bool]]:
    """The text of each chunk, whatever shape a server gives it, and whether it is the last."""
    for chunk in chunks:
        choices = getattr(chunk, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        content = getattr(getattr(choice, "delta", None), "content", None)
        yield content if isinstance(content, str) else "", bool(getattr(choice, "finish_reason", None))


@contextmanager
def _in_words(client: OpenAI, model: Model, key: str) -> Iterator[None]:
    """Whatever goes wrong with a server is told in a sentence."""
    from httpx2 import HTTPError
    from openai import APIStatusError, OpenAIError

    where = f"{model.model} at {str(client.base_url).rstrip('/')}"
    try:
        yield
    except APIStatusError as error:
        words = server_words(error.body, error.message, key)
        kind = TooLongError if too_long(words) else UserError
        raise kind(f"{where}: {error.status_code}: {words}") from None
    except (OpenAIError, HTTPError, ValueError, RecursionError, AttributeError) as error:
        cause = error.__cause__ or error  # "Connection error." alone says little
        raise UserError(f"{where}: {redacted(f'{type(cause).__name__}: {cause}', key)[:300]}") from None
