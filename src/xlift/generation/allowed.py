"""Which tokens an answer in a language can hold, by the scripts of the vocabulary and the lists of words.

Let through are letters of the language's own scripts, digits, signs, pieces of words, and whatever begins with a
capital in Latin script (names, abbreviations); left out are other scripts, and whole words that English uses, which
models fall back to, and the language does not. Where the script is not Latin, every word in small Latin letters is left
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xlift.rating.language.masks import letters_outside, scripts_of
from xlift.rating.language.wordlists import COMMON, listed, zipf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RARER = 2.0
"""How many powers of ten rarer a word must be than in English to be left out."""


def left_out(tokenizer: PreTrainedTokenizerBase, language: str, size: int) -> Tensor:
    """What may not come in an answer in this language, (size,) of bool; nor what the tokenizer has no token for."""
    written = letters_outside(scripts_of(language) | {"Latn"})
    latin = "Latn" in scripts_of(language)
    made = torch.ones(size, dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    for number, token in enumerate(_texts(tokenizer)[:size]):
        made[number] = number not in special and (bool(written.search(token)) or _is_foreign(token, language, latin))
    return made


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What every token writes; a blank before a word is kept by a letter in front of it, which is taken off."""
    mark = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]  # type: ignore[index]
    pairs = [[*mark, number] for number in range(len(tokenizer))]
    front = len(tokenizer.decode(mark))
    return [text[front:] for text in tokenizer.batch_decode(pairs, clean_up_tokenization_spaces=False)]


# e.g. [_is_foreign(token, "fr", True) for token in (" the", "the", " The", " stress")] → [True, False, False, False]
# e.g. [_is_foreign(token, "ru", False) for token in (" chien", " Paris", " дом")] → [True, False, False]
def _is_foreign(token: str, language: str, latin: bool) -> bool:
    word = token.strip()
    if not token.startswith(" ") or len(word) < 2 or not (word.isalpha() and word.isascii() and word.islower()):
        return False
    return not latin or (listed(language) and _is_english(word, language))


# e.g. [_is_english(word, "fr") for word in ("would", "question", "train")] → [True, False, False]
def _is_english(word: str, language: str) -> bool:
    english = zipf(word, "en") or 0.0
    return language != "en" and english >= COMMON and english - (zipf(word, language) or 0.0) >= RARER
