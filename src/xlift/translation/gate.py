"""Which translations are good enough to learn from: what is checked of each, and why one is left out.

The checks see what goes wrong most often with machine translation of instructions: an answer in the wrong language, one
that was copied, cut off, or loops, and figures, links or code that were changed. They do not see a wrong meaning.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from xlift.rating.fluency import rate_fluency
from xlift.rating.language.rater import rate_text
from xlift.rating.text import fold, without_code
from xlift.translation.pieces import KEPT, kept_in

LEAST_RATIO, MOST_RATIO = 0.4, 2.5
"""How long a translation may be beside its source, both counted as `_size` does."""
SMALL = 20
"""Letters of a source under which its translation may have any length: of "OK." it may be "D'accord."."""
COPIED_WORDS = 4
"""Words from which on a text that comes back as it was counts as not translated."""
_DENSE = 2.5
"""Letters of a language with an alphabet that one of Chinese or Japanese stands for."""
_NUMBER = re.compile(r"\d(?:[\d.,'’ \u00a0\u202f٫٬]*\d)?")


# e.g. fault("See https://a.org.", "Voir https://b.org.", "fr") → "a link, code or placeholder was changed"
# e.g. fault("It costs 1,500 euros.", "Cela coûte 1 500 euros.", "fr") → None
def fault(source: str, translation: str, target: str) -> str | None:
    """Why a translated text is not fit to learn from; None where nothing is found."""
    if not translation.strip():
        return "nothing came back"
    if Counter(kept_in(without_code(source))) != Counter(kept_in(without_code(translation))):
        return "a link, code or placeholder was changed"
    if lost_numbers(source, translation):
        return "a number was changed"
    if copied(source, translation):
        return "not translated"
    if not _size_fits(source, translation):
        return "much shorter or longer than its source"
    return _unsound(source, translation, target)


def _unsound(source: str, translation: str, target: str) -> str | None:
    value, _, _ = rate_text(translation, target)
    if value is not None and value < 2:
        return "not in the language" if value == 0 else "partly in another language"
    fluency, detail, _ = rate_fluency({"text": translation, "language": target})
    if fluency == 0:
        return f"hardly readable ({', '.join(detail['signals'])})"
    return None


# e.g. lost_numbers("Add 12 and 3.", "Ajoutez douze et 3.") → ["12"]
# e.g. lost_numbers("3 eggs", "trois œufs") → []
def lost_numbers(source: str, translation: str) -> list[str]:
    """Numbers of the source that the translation does not have, however they are grouped; of one digit, words do."""
    lost = Counter(_numbers(source)) - Counter(_numbers(translation))
    return [number for number in lost.elements() if len(number) > 1]


# e.g. _numbers("1,200 eggs in 3 boxes") → ["1200", "3"]
def _numbers(text: str) -> list[str]:
    found = _NUMBER.findall(KEPT.sub(" ", without_code(text)))
    return ["".join(str(unicodedata.digit(one)) for one in number if one.isdigit()) for number in found]


# e.g. copied("Why is the sky blue?", "Why is the sky blue?") → True
def copied(source: str, translation: str) -> bool:
    """Whether a text came back as it was: prose that is code or a name as a whole may."""
    words = KEPT.sub(" ", without_code(source)).split()
    return len(words) >= COPIED_WORDS and fold(source) == fold(translation)


def _size_fits(source: str, translation: str) -> bool:
    size = _size(source)
    return size < SMALL or LEAST_RATIO <= _size(translation) / size <= MOST_RATIO


# e.g. _size("Bonjour à tous") → 12.0
def _size(text: str) -> float:
    """Letters outside code, those of scripts that write a word in one or two counted as more."""
    letters = [one for one in KEPT.sub(" ", without_code(text)) if one.isalpha()]
    return sum(_DENSE if "\u3040" <= one <= "\u9fff" or "\uac00" <= one <= "\ud7a3" else 1.0 for one in letters)
