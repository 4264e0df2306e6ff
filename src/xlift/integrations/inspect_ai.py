"""A scorer for inspect_ai: `Task(…, scorer=xlift_scorer())`."""

from __future__ import annotations

from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState

from xlift.integrations import value_of
from xlift.rating import checked_raters, signature_of
from xlift.records import EMPTY, LIMITED


@scorer(metrics=[mean(), stderr()])  # type: ignore[untyped-decorator]
def xlift_scorer(rater: str = "language", language: str | None = None) -> Scorer:
    """1 where a rater gives a reply its best value, else 0; unscored, with the reason, where it cannot rate.

    A sample's metadata `language`, or `language` for all, says in which language a reply must be; `reply_language`,
    `constraint` and `answers` of its metadata are used, too. Raises ConfigError for an unknown rater.
    """
    checked_raters([rater])

    async def score(state: TaskState, target: Target) -> Score:
        finish = "length" if state.output.stop_reason in LIMITED else "stop"
        known = {"language": language, **state.metadata, "finish_reason": finish, "prompt": state.input_text}
        text = state.output.completion
        value, reason = value_of(rater, text, known)
        about = {"rater": rater, "value": value, "signature": signature_of(rater)}
        if value is None:
            return Score.unscored(reason="scoring_failed", answer=text, explanation=reason, metadata=about)
        silent = "no_response" if reason == EMPTY else None
        return Score(value=float(value == 2), answer=text, reason=silent, metadata=about)

    return score
