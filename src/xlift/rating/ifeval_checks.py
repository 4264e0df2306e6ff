"""What IFEval and M-IFEval ask of a reply that is not counted: yes or no, in any script, or why that is open.

All checks take the visible text, the language that the reply must be in, and the instruction with its parameters.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable

from xlift.languages import known_code, rated_language, without_accents
from xlift.rating.endings import other_forms
from xlift.rating.ifeval_counts import KANJI, Instruction, ja_sentences
from xlift.rating.language.detection import MIN_LINE, SURE, identify
from xlift.rating.language.rater import rate_text
from xlift.rating.text import FENCE, at_boundary, cased_words, fold, occurrences, paragraphs

Verdict = bool | str
InstructionCheck = Callable[[str, str, Instruction], Verdict]


def _keywords(text: str, language: str, instruction: Instruction) -> Verdict:
    absent = [word for word in instruction["keywords"] if not _holds(text, word, language)]
    open_ones = [word for word in absent if _other_forms(text, [word], language)]
    return _other_forms(text, absent, language) if len(open_ones) == len(absent) > 0 else not absent


# e.g. _holds("Les labels.", "label", "fr") → True
def _holds(text: str, word: str, language: str) -> bool:
    """Whether a keyword is there, as it is or as the beginning of another form of it."""
    if occurrences(text, word, language):
        return True
    folded = fold(word, language)
    return any(form.startswith(folded) for form in other_forms(fold(text, language), folded, language))


def _forbidden(text: str, language: str, instruction: Instruction) -> Verdict:
    words = instruction["forbidden_words"]
    if any(occurrences(text, word, language) for word in words):
        return False
    return _other_forms(text, words, language) or True


def _other_forms(text: str, words: list[str], language: str) -> str:
    """The reason why it is open whether absent words occur: all of them may, in another form."""
    folded = fold(text, language)
    forms = [other_forms(folded, fold(word, language), language) for word in words]
    said = ", ".join(dict.fromkeys(form for some in forms for form in some[:3]))
    return f"only other forms occur: {said}" if said else ""


# e.g. _in_language("Il fait beau. Le weekend, je fais du shopping.", "fr", {}) → True
# e.g. _in_language("Il fait beau aujourd'hui.\nThe weather is very nice today.", "fr", {}) → False
def _in_language(text: str, language: str, instruction: Instruction) -> Verdict:
    value, detail, reason = rate_text(text, language)
    if value is not None:
        return value == 2 or bool(value and detail.get("line_pass"))
    found, confidence = identify(text[:2000]) if sum(map(str.isalpha, text)) >= MIN_LINE else ("und", 0.0)
    if confidence >= SURE and (known_code(found) == language or rated_language(language)[1]):
        return known_code(found) == language
    return reason or "the language cannot be told"


def _first_word(text: str, language: str, instruction: Instruction) -> Verdict:
    wanted, place = instruction.get("num_paragraphs"), instruction.get("nth_paragraph")
    if not isinstance(wanted, int) or not isinstance(place, int) or place < 1:
        return "'num_paragraphs' and 'nth_paragraph' must be whole numbers"
    blocks = [block.strip() for block in re.split(r"\n[ \t]*\n", text) if block.strip()]
    untitled = [block for block in blocks if paragraphs(block)]
    told = {_begins(some, wanted, place, instruction, language) for some in (blocks, untitled)}
    return told.pop() if len(told) == 1 else "a heading may be a paragraph or not"


def _begins(blocks: list[str], wanted: int, place: int, instruction: Instruction, language: str) -> bool:
    if len(blocks) != wanted or place > wanted:
        return False
    first = fold(instruction["first_word"], language)
    start = re.sub(r"^(?:[\W_]+|\d+[.)]\s+)+", "", fold(blocks[place - 1], language))
    return start.startswith(first) and at_boundary(start, len(first))


def _postscript(text: str, language: str, instruction: Instruction) -> Verdict:
    marker = str(instruction["postscript_marker"]).strip()
    letters = re.sub(r"[\s.-]", "", marker)
    if (len(letters) <= 3 and "." in marker) or marker.isupper():
        spelled = r"(?<![\w.-])" + r"[.\s-]{0,3}".join(map(re.escape, letters)) + r"(?!\w)"
    else:  # a word of the language, such as "Nota", is a postscript only where it begins something
        spelled = rf"(?:^|[.!?…。！？:)\"”»]\s)[ \t*_#>`(\[-]{{0,12}}{re.escape(marker)}(?!\w)"
    return bool(re.search(spelled, text, re.IGNORECASE | re.MULTILINE))


_OPTIONS = {
    "en": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
    "fr": ["Oui.", "Non.", "Peut-être."],
    "es": ["Sí.", "No.", "Quizás."],
    "ja": ["はい、そうです。", "いいえ、違います。", "どちらとも言えません。"],
    "ru": ["Мой ответ — да", "Мой ответ — нет", "Мой ответ — возможно"],
}


def _choice(text: str, language: str, instruction: Instruction) -> Verdict:
    usual = _OPTIONS.get(language, [])
    offered = instruction.get("options")
    options = [str(option) for option in offered] if isinstance(offered, list) and offered else usual
    if not options:
        return "the choices are not known"
    named = {fold(option, language): option for option in options}
    if any(fold(option, language) in named for option in usual):
        named |= {fold(option, language): option for option in usual}
    chosen = [option for option in named.values() if occurrences(text, option, language)]
    return len(chosen) == 1 if len(chosen) < 2 else f"several of the choices occur: {', '.join(chosen)}"


def _json(text: str, language: str, instruction: Instruction) -> Verdict:
    fence = FENCE.fullmatch(text.strip())
    try:
        json.loads((fence["inside"] if fence else text).strip())
    except (ValueError, RecursionError):
        return False
    return True


_ANGLED = [r"<<[^<>\n]{0,300}\w[^<>\n]{0,300}>>", r"[≪‹]{1,2}[^≪≫‹›\n]{0,300}\w[^≪≫‹›\n]{0,300}[≫›]{1,2}"]
_TITLES = {
    "fr": [r"##[^#\n]{0,300}\w[^#\n]{0,300}##"],
    "ja": ["『[^『』\n]{0,300}\\w[^『』\n]{0,300}』"],
    "": [*_ANGLED, "《[^《》\n]{0,300}\\w[^《》\n]{0,300}》"],
}


def _title(text: str, language: str, instruction: Instruction) -> Verdict:
    patterns = _TITLES.get(instruction["id"].split(":")[0], _TITLES[""] if language in ("zh", "ja", "ko") else _ANGLED)
    return any(re.search(pattern, text) for pattern in patterns)


def _two_responses(text: str, language: str, instruction: Instruction) -> Verdict:
    parts = [part.strip() for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    filled = [part for part in parts if part]
    return len(filled) == 2 and filled[0] != filled[1] and all(parts[1:-1])


def _repeats(text: str, language: str, instruction: Instruction) -> Verdict:
    return fold(text, language).startswith(fold(instruction["prompt_to_repeat"], language))


_AFTER_END = " \t\n\"'”’»›」』）)]}*_`~.。!！?？…"


def _ends(text: str, language: str, instruction: Instruction) -> Verdict:
    said, phrase = (fold(part, language).rstrip(_AFTER_END) for part in (text, instruction["end_phrase"]))
    return said.endswith(phrase) and at_boundary(said, len(said) - len(phrase))


def _has_capital(character: str) -> bool:
    # º and ª have no capital, and ß stands among capitals.
    return character.islower() and character != "ß" and character.upper() != character


def _capital(text: str, language: str, instruction: Instruction) -> Verdict:
    if cased_words(text) is None:
        return "the reply is in a script without capital letters"
    return False if any(map(_has_capital, text)) else _named_language(text, language, instruction)


def _lowercase(text: str, language: str, instruction: Instruction) -> Verdict:
    if cased_words(text) is None:
        return "the reply is in a script without capital letters"
    return False if any(c.isupper() or c.istitle() for c in text) else _named_language(text, language, instruction)


def _named_language(text: str, language: str, instruction: Instruction) -> Verdict:
    """Whether the text is in the language of its case: the reply's, or English where a translated set names that."""
    codes = dict.fromkeys([language, *(["en"] if "english" in instruction["id"] else [])])
    told = [_in_language(text.lower(), code, instruction) for code in codes]
    return True if True in told else next((one for one in told if isinstance(one, str)), False)


def _no_comma(text: str, language: str, instruction: Instruction) -> Verdict:
    return not any(comma in text for comma in (",，،՝፣﹐、" if language == "ja" else ",，،՝፣﹐"))


_WRAPPERS = {'"': '"', "“": "”", "„": "“”", "«": "»", "»": "«", "”": "”", "「": "」", "『": "』", "＂": "＂", "‟": "”"}


def _quoted(text: str, language: str, instruction: Instruction) -> Verdict:
    bare = text.strip()
    closing = _WRAPPERS.get(bare[:1], "'" if bare[:1] == "'" and language == "fr" else "")
    return len(bare) > 1 and bool(closing) and bare[-1] in closing


def _contains(pattern: str) -> InstructionCheck:
    def check(text: str, language: str, instruction: Instruction) -> Verdict:
        return bool(re.search(pattern, text))

    return check


def _lacks(pattern: str) -> InstructionCheck:
    def check(text: str, language: str, instruction: Instruction) -> Verdict:
        return not re.search(pattern, text)

    return check


def _no_character(text: str, language: str, instruction: Instruction) -> Verdict:
    return str(instruction["forbidden_char"]).casefold() not in text.casefold()


def _no_accents(text: str, language: str, instruction: Instruction) -> Verdict:
    return not any(unicodedata.combining(c) for c in unicodedata.normalize("NFD", text))


def _accents(text: str, language: str, instruction: Instruction) -> Verdict:
    right = {str(bare).casefold(): str(word).casefold() for bare, word in instruction["word_to_accentuate"].items()}
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return all(right.get(without_accents(word), word) == word for word in words)


_TU = re.compile(r"(?<!\w)(?:tu|te|toi|tes|ta|tien|tienne|tiens|tiennes|t['’]\w+)(?!\w)", re.IGNORECASE)


def _informal(text: str, language: str, instruction: Instruction) -> Verdict:
    if _TU.search(text):
        return True
    if re.search(r"(?<!\w)ton(?!\w)", text, re.IGNORECASE):
        return "'ton' may address someone or not"
    formal = re.search(r"(?<!\w)(?:vous|votre|vos|vôtre|vôtres)(?!\w)", text, re.IGNORECASE)
    return False if formal else "nobody is addressed by a pronoun"


_READING = f"(?<![{KANJI}])[{KANJI}]+"


def _furigana(text: str, language: str, instruction: Instruction) -> Verdict:
    return not re.search(f"[{KANJI}]", re.sub(rf"{_READING}（[ぁ-ゖァ-ヺー]+）", "", text))


def _only(letters: str) -> InstructionCheck:
    def check(text: str, language: str, instruction: Instruction) -> Verdict:
        return all(re.match(f"[{letters}ー・]", c) or not c.isalpha() for c in text)

    return check


def _one_ending(text: str, language: str, instruction: Instruction) -> Verdict:
    closed, loose = ja_sentences(text)
    if not all(sentence.endswith(str(instruction["ending"])) for sentence in closed):
        return False
    left = all(piece.endswith(str(instruction["ending"])) for piece in loose)
    return left or "a line without a full stop may be a sentence or not"


INSTRUCTION_CHECKS: dict[str, tuple[InstructionCheck, str, tuple[str, ...]]] = {
    "keywords:existence": (_keywords, "holds", ("keywords",)),
    "keywords:forbidden_words": (_forbidden, "forbids", ("forbidden_words",)),
    "language:response_language": (_in_language, "forbids", ("language",)),
    "length_constraints:nth_paragraph_first_word": (_first_word, "ends", ("first_word",)),
    "detectable_content:postscript": (_postscript, "holds", ("postscript_marker",)),
    "detectable_content:informal_address": (_informal, "holds", ()),
    "detectable_content:no_digits": (_lacks(r"\d"), "forbids", ()),
    "detectable_format:constrained_response": (_choice, "holds", ()),
    "detectable_format:json_format": (_json, "ends", ()),
    "detectable_format:title": (_title, "holds", ()),
    "combination:two_responses": (_two_responses, "ends", ()),
    "combination:repeat_prompt": (_repeats, "starts", ("prompt_to_repeat",)),
    "startend:end_checker": (_ends, "ends", ("end_phrase",)),
    "startend:quotation": (_quoted, "ends", ()),
    "startend:sentence_unified_end": (_one_ending, "forbids", ("ending",)),
    "change_case:capital": (_capital, "forbids", ()),
    "change_case:lowercase": (_lowercase, "forbids", ()),
    "punctuation:no_comma": (_no_comma, "forbids", ()),
    "punctuation:no_period": (_lacks("[。｡]"), "forbids", ()),
    "punctuation:question_marks": (_contains(r"¿[^?¿]{0,500}\w[^?¿]{0,500}\?"), "holds", ()),
    "punctuation:exclamation_marks": (_contains(r"¡[^!¡]{0,500}\w[^!¡]{0,500}!"), "holds", ()),
    "special_character:ethel_or_cedilla": (_no_character, "forbids", ("forbidden_char",)),
    "special_character:no_accents": (_no_accents, "forbids", ()),
    "special_character:accents": (_accents, "forbids", ("word_to_accentuate",)),
    "letters:furigana": (_furigana, "forbids", ()),
    "letters:kansuuji": (_lacks(r"\d"), "forbids", ()),
    "letters:no_katakana": (_lacks("[ァ-ヺｦ-ﾝ]"), "forbids", ()),
    "letters:katakana_only": (_only("ァ-ヺｦ-ﾟ"), "forbids", ()),
    "letters:no_hiragana": (_lacks("[ぁ-ゖ]"), "forbids", ()),
    "letters:hiragana_only": (_only("ぁ-ゖ"), "forbids", ()),
}
"""Per instruction: the check, what a cut reply leaves open, and the parameters that it needs.

A cut reply `starts` as it does and what it `forbids` it has or has not; what it `holds` stays; how it `ends` is open.
"""
