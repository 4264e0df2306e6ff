"""A reward for TRL's GRPOTrainer: `reward_funcs=[rater_reward("language")]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xlift.integrations import value_of
from xlift.rating import checked_raters
from xlift.rating.foreign import reply_text


def rater_reward(rater: str = "language", language: str | None = None) -> Callable[..., list[float | None]]:
    """A reward function: 1, 0.5 or 0 for a rater's 2, 1 or 0, and None, which TRL leaves out, where it cannot rate.

    The data set's column `language`, or `language` for all, says in which language a reply must be; columns such as
    `reply_language` and `constraint` are used, too. An empty reply has 0. Raises ConfigError for an unknown rater.
    """
    checked_raters([rater])

    def reward(completions: Sequence[Any], **columns: Any) -> list[float | None]:
        rows = {name: values for name, values in columns.items() if _is_column(values, len(completions))}
        found: list[float | None] = []
        for place, completion in enumerate(completions):
            known = {"language": language} | {name: values[place] for name, values in rows.items()}
            value, _ = value_of(rater, reply_text(completion) or "", known)
            found.append(None if value is None else value / 2)
        return found

    reward.__name__ = f"{rater}_reward"  # the name under which TRL logs it
    return reward


def _is_column(values: Any, count: int) -> bool:
    return isinstance(values, list | tuple) and len(values) == count
