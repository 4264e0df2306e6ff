"""Grammar margin: does this model find a right sentence likelier than the same sentence with a rule broken?

The pairs are built in, written for each language by phenomenon (data/builtin/grammar.LL.json): agreement, case,
gender, aspect, word order, particles. Each sentence is read as plain text behind the model's begin-of-text token,
without a chat format, which an untuned model has never seen, and without generating. The share of pairs in which the
right sentence has the higher log-probability is the margin of a language; 50 % is chance.

The log-probability is that of the whole sentence, as in BLiMP (Warstadt et al. 2020); benchmarks/grammar.py compares it
with the mean per token and per byte.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from xlift.data.prompts import GrammarPair
from xlift.generation.margin import token_log_probs
from xlift.intervals import Estimate, estimate
from xlift.tuning.templates import ChatFormat, Encoded


class GrammarSummary(NamedTuple):
    """One language: the share of its pairs in which the right sentence is the likelier one."""

    language: str
    wins: Estimate


def grammar_margins(
    model: Any, chat: ChatFormat, pairs: Mapping[str, Sequence[GrammarPair]], batch_tokens: int = 2048
) -> list[GrammarSummary]:
    """A summary of each language, in order; a tie counts for the wrong sentence. Intervals resample phenomena."""
    asked = [(language, pair) for language, own in pairs.items() for pair in own]
    texts = [text for _, pair in asked for text in _parting(plain_text(chat, pair.good), plain_text(chat, pair.bad))]
    sums = [math.fsum(values) for values in token_log_probs(model, chat, texts, batch_tokens)]
    wins: dict[str, list[float]] = {language: [] for language in pairs}
    for (language, _), good, bad in zip(asked, sums[::2], sums[1::2], strict=True):
        wins[language].append(float(good > bad))
    return [
        GrammarSummary(language, estimate(wins[language], [pair.phenomenon for pair in own], top=1.0))
        for language, own in pairs.items()
    ]


def plain_text(chat: ChatFormat, text: str) -> Encoded:
    """A sentence behind the begin-of-text token; behind that of the end of a text where a model has no other."""
    tokenizer = chat.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Encoded([start, *ids], [False] + [True] * len(ids))


# e.g. _parting(Encoded([0, 5, 6], []), Encoded([0, 5, 7], []))[0].mask → [False, False, True]
def _parting(good: Encoded, bad: Encoded) -> tuple[Encoded, Encoded]:
    """Both with only the tokens in the mask from the first on which they differ: those before count alike in both."""
    same = sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(good.ids, bad.ids, strict=False)))
    first, second = (Encoded(one.ids, [place >= same for place in range(len(one.ids))]) for one in (good, bad))
    return first, second
