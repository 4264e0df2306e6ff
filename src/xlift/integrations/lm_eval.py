"""A metric and a filter for lm-evaluation-harness; a task's own Python file imports what it uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from xlift.integrations import value_of
from xlift.rating.foreign import COLUMN_NAMES, reply_text


def process_results(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """For `process_results`: `xlift_language` is 1 for a reply wholly in its language, else 0; `xlift_missing` is 1,
    and the other not there, for one that cannot be rated.

    The language is the document's column `language`, or one of its usual names (`lang`, `locale`, …).
    """
    value, _ = value_of("language", reply_text(results[0]) or "", _known(doc))
    return {"xlift_missing": 1.0} if value is None else {"xlift_language": float(value == 2), "xlift_missing": 0.0}


@register_filter("xlift_language")
class LanguageFilter(Filter):  # type: ignore[misc]
    """Puts "" in the place of every reply that is not wholly in its language, so that only the others can be right."""

    def __init__(self, language: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.language = language

    def apply(self, resps: Iterable[Sequence[str]], docs: Sequence[dict[str, Any]]) -> list[list[str]]:
        """The replies, those in another language empty; one that cannot be rated stays."""
        return [
            [
                reply if value_of("language", reply, _known(doc, self.language))[0] in (2, None) else ""
                for reply in replies
            ]
            for replies, doc in zip(resps, docs, strict=True)
        ]


def _known(doc: dict[str, Any], language: str | None = None) -> dict[str, Any]:
    own = next((doc[name] for name in COLUMN_NAMES["language"] if doc.get(name)), language)
    return {**doc, "language": own}
