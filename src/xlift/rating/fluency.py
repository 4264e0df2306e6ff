"""Fluency facet: signals on the surface of a response that go with reduced fluency.

A signal, not a verdict: 2 says that nothing was found, not that the text is natural. Grammar and style need a judge.

| signal, as in `detail` | what | 1 from | 0 from |
|---|---|---|---|
| unknown | share of words in neither the frequency list nor the lexicon of the language | usual + 4 % | |
| unknown_plain | the same, without capitalised words and long ones, which may be names and terms | | usual + 29 % |
| loop | share of the text that is a sequence of words in immediate repetition | 10 words, 3 times; 20, twice | 50 % |
| repeated_lines | share of the lines that occurred before | 50 % | 75 % |
| repeated_ngrams | share of word 4-grams (unspaced scripts: of 8 characters) that occurred before | 50 % | 75 % |
| broken | share of characters that are no text: U+FFFD, controls, mojibake, two scripts in a word | any | 5 % |
| leaked | tokens and role names of chat templates | any | |
| placeholders | English placeholders in a text that is not English; "XXXX", "Lorem ipsum" | any | |

`cut` in `detail` says whether the token limit (finish_reason "length") fell within a sentence. That is no sign of
reduced fluency: the limit ended the text, not the writer. What such a text repeats counts as in any other.

Missing where the language is unknown, and where no signal fired in fewer than three words. `unknown` is None where no
list is good enough (NO_LIST) and where there are too few words; words of other languages are words, since which one it
must be is the language facet. Code is left out. Of any text, 100,000 characters are read (10,000 for `unknown`), so
that no text takes long.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from xlift.languages import LANGUAGES, rated_language
from xlift.rating.language.masks import mask, script, scripts_of
from xlift.rating.language.scripts import said_in
from xlift.rating.language.spans import foreign_spans
from xlift.rating.language.wordlists import WORDFREQ_CODES, evidence, in_lexicon, wordlists_version, zipf
from xlift.rating.reasoning import without_reasoning
from xlift.rating.text import FENCE, ends_fenced, fenced, spaced, visible
from xlift.records import Rated, reply_language

VERSION = 9
MIN_WORDS, MIN_JUDGED, READ, READ_FOR_WORDS = 3, 8, 100_000, 10_000
TERM = 11
"""Letters from which on an unknown word may be a term: such words, and German names, make no text unreadable."""
MANY_JUDGED = 25
"""Words of a text in a script without capitals for a 0: in a short one the unknown words may all be names."""
MIN_UNKNOWN, NAMES = 3, 5
"""Different unknown words: two may be terms; up to four may be names where no capitals tell them apart, or for a 0."""
SOME_UNKNOWN, MANY_UNKNOWN = 0.04, 0.29
"""Above what is usual. One typing error in every tenth word gives 7 %, in every fourth 18 %, in every second 37 %."""
USUAL = {"ar": 0.02, "bg": 0.03, "bn": 0.07, "cs": 0.05, "el": 0.03, "fa": 0.06, "fi": 0.05, "gl": 0.08, "he": 0.06}
USUAL |= {"hi": 0.08, "hr": 0.03, "hu": 0.07, "ms": 0.03, "sk": 0.1, "sr": 0.03, "cy": 0.03, "et": 0.03}
USUAL |= {"fil": 0.04, "ga": 0.07, "is": 0.04, "lt": 0.03, "lv": 0.07, "mk": 0.03, "sl": 0.03}
USUALLY = 0.01
"""Share of unknown words in clean text."""
NO_LIST = frozenset("zh ja ko th mr te ta sw am gu hy ka km kn lo ml my pa si sq".split())
"""No spaces (zh, ja, th, …), no lists (mr, te, …), or lists that lack 13 to 70 % of the words of clean text."""
LARGE_LIST = {"ar": 2.0, "he": 2.0}
"""Articles and pronouns are attached in these languages: rare forms are needed, from this Zipf frequency on."""
LOOP = 10
"""Words in a loop before it is one: "ha ha ha" is laughter."""
DOUBLED, MANY_DOUBLED, MOST_DOUBLED = 4, 0.25, 0.45
"""Different words said twice in a row, and their share of all, from which on that is a loop; and their share where
doubling a word is grammar."""
REDUPLICATING = frozenset("bn fil gu hi id kn mr ms my pa ta te tr ur vi".split())
MOSTLY_LOOPED, SOME_REPEATED, MANY_REPEATED = 0.5, 0.5, 0.75
"""Refrains, and lists whose items open alike, repeat up to 40 % of their lines and 4-grams."""
MANY_BROKEN = 0.05
"""One character in twenty: every fourth word."""


def signature() -> str:
    """How the number came about: rater version, resources."""
    return f"fluency v{VERSION}|{wordlists_version()}"


# e.g. de: "Der der der Mann Mann ging ging in in das das Haus Haus und und schlief schlief ein ein." → 1
# e.g. fr: "Le train part à neuf heures du premier quai." → 2
# e.g. tr: "Yavaş yavaş, sık sık, zaman zaman, teker teker geldiler." → 2
# e.g. ru: "Котка спит на дивнеа а собкаа игаерт в сдау сейчсса." → 0
# e.g. de: "Herr Otrevan Dalok und Frau Jimra Yontel trafen in Kebbo Rasmon Hojlin und Mannuo." → 1
# e.g. en: "Install numpy, scipy, pandas, matplotlib, seaborn, xgboost, statsmodels and lightgbm." → 1
# e.g. fr: "Le trian prat de la gaer à nuef hueres du permier quia tuos les jorus." → 0
def rate_fluency(record: dict[str, Any]) -> Rated:
    """Value 2 / 1 / 0 or None, detail, and the reason where it is None, of a record with `text` and `language`."""
    code, unrated = rated_language(reply_language(record))
    if unrated:
        return None, {}, unrated
    whole = without_reasoning(str(record["text"]))
    text = visible(whole[:READ])
    prose = prose_of(text)
    tokens = tokens_of(prose)
    detail: dict[str, Any] = {
        **out_of_lexicon(prose, code),
        **repetition(prose, tokens, MANY_DOUBLED if code not in REDUPLICATING else MOST_DOUBLED),
        **broken(whole[:READ]),
        "leaked": leaked(prose),
        "placeholders": placeholders(prose, code),
        "cut": record.get("finish_reason") == "length" and cut(whole, code),
    }
    fired, severe = _fired(detail, code)
    if not fired and len(tokens) < MIN_WORDS * (1 if spaced(code) else 2):
        return None, detail, "too few words to tell" if text.strip() else "empty response"
    return (0 if severe else 1 if fired else 2), detail | {"signals": fired}, None


def _fired(detail: dict[str, Any], code: str) -> tuple[list[str], bool]:
    """The signals that fired, and whether one of them makes the text hardly understandable."""
    usual, unknown = USUAL.get(code, USUALLY), len(detail.get("unknown_words", ()))
    enough = unknown >= (MIN_UNKNOWN if LANGUAGES[code].script in {"Latn", "Cyrl", "Grek"} else NAMES)
    limits = {
        "unknown": (usual + SOME_UNKNOWN if enough else 1.0, usual + MANY_UNKNOWN if unknown >= NAMES else 1.0),
        "loop": (0.0, MOSTLY_LOOPED),
        "repeated_lines": (SOME_REPEATED, MANY_REPEATED),
        "repeated_ngrams": (SOME_REPEATED, MANY_REPEATED),
        "broken": (0.0, MANY_BROKEN),
    }
    fired = [name for name, (some, _) in limits.items() if (detail[name] or 0.0) > some]
    severe = any(detail[name] > limits[name][1] for name in fired if name != "unknown")
    cased = LANGUAGES[code].script in {"Latn", "Cyrl", "Grek"}
    severe |= (
        "unknown" in fired
        and (detail["unknown_plain"] or 0.0) > limits["unknown"][1]
        and (cased or detail["judged"] >= MANY_JUDGED)
    )
    return fired + [name for name in ("leaked", "placeholders") if detail[name]], severe


# Points and vowel signs, which Python's \w leaves out.
_SIGNS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff"
_TOKEN = re.compile(rf"\w[\w{_SIGNS}]*(?:['’ʼ]\w[\w{_SIGNS}]*)*")
_DENSE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff"
_UNSPACED = re.compile(f"[{_DENSE}]")
_LETTERS = re.compile(r"[^\W\d_]+")
_BLOB = re.compile(rf"[^\s{_DENSE}]{{100,}}")
_CODE = re.compile(r"`[^`\n]{1,200}`")
_ENDINGS = {"id": ("nya", "lah", "kah"), "ms": ("nya", "lah", "kah"), "es": ("me", "se", "lo", "la", "los", "las")}
_ENDINGS["fi"] = ("ni", "si", "mme", "nne", "nsa", "nsä", "kin", "kaan", "kään", "ko", "kö")
# Single words between commas: names of programs, plants, medicines.
_ROW = re.compile(r"(?:\b[\w.-]{1,40}, ){3,40}[\w.-]{1,40}")
_LONGEST = 40  # letters of a word; a longer one is taken letter by letter


def prose_of(text: str) -> str:
    """The text without code; fences that hold most of it count where they do not look like code."""
    if "`" not in text and not fenced(text):
        return text
    outside = _CODE.sub(" ", FENCE.sub(" ", text))
    return outside if 2 * len(outside) > len(text) else _sample(text)


def _sample(text: str) -> str:
    """The beginning of a text without code, links, acronyms, and chunks of a hundred signs, which make `mask` slow."""
    return mask(_BLOB.sub(" ", text[:READ_FOR_WORDS]))


def tokens_of(text: str) -> list[str]:
    """Words and numbers; the single characters of unspaced scripts and of what is too long for a word."""
    found = _TOKEN.findall(_UNSPACED.sub(r" \g<0> ", text))
    return [part for token in found for part in (token if len(token) > _LONGEST else (token,))]


def out_of_lexicon(text: str, code: str) -> dict[str, Any]:
    """The share of words that no list knows, and the first of them.

    Whether a word is English, or of another language that the text goes over to, is asked only where enough words are
    unknown: it takes ten times as long.
    """
    if code in NO_LIST:
        return {"unknown": None, "unknown_plain": None, "judged": 0}
    found, judged = _unknown(text[:READ_FOR_WORDS], [code])
    listed: set[str] = set()
    if len({word.lower() for word in found}) >= MIN_UNKNOWN:
        # What stands in brackets explains: a Latin name, a transcription.
        masked = re.sub(r"[(（][^()（）\n]{1,200}[)）]", " ", _sample(text))
        others = {span.language for span in foreign_spans(said_in(masked, masked, code))} | {"en"}
        found, judged = _unknown(masked, [code, *sorted(others & LANGUAGES.keys() - NO_LIST)])
        listed = {word for row in _ROW.findall(masked) for word in _TOKEN.findall(row)}
    plain = [word for word in found if not word[0].isupper() and len(word) < TERM and word not in listed]
    enough = judged >= MIN_JUDGED or len(set(plain)) >= NAMES
    shares = [round(len(some) / judged, 4) if enough else None for some in (found, plain)]
    words = list(dict.fromkeys(word.lower() for word in found))[:NAMES]
    return {"unknown": shares[0], "unknown_plain": shares[1], "judged": judged, "unknown_words": words}


def _unknown(text: str, codes: Sequence[str]) -> tuple[list[str], int]:
    """The words that are in none of the languages, and how many were judged."""
    tokens = _TOKEN.findall(text)
    if text[-1:].isalnum():
        tokens = tokens[:-1]  # perhaps cut within the word
    verdicts = [(token, known) for token in tokens if (known := is_word(token, codes[0])) is not None]
    found = [token for token, known in verdicts if not known]
    return [word for word in found if not any(is_word(word.lower(), code) for code in codes[1:])], len(verdicts)


# e.g. is_word("Donaudampfer", "de") → True
# e.g. is_word("hauskatze", "de") → True
# e.g. is_word("Xyzzy", "fr") → None
@lru_cache(maxsize=200_000)
def is_word(token: str, code: str) -> bool | None:
    """Whether a token is in the lists or made of words that are; None for numbers, names and another script."""
    word = token.replace("’", "'").replace("ʼ", "'")
    name = word[0].isupper() and (code != "de" or word.isupper())
    if name or len(word) < 2 or "_" in word or any(map(str.isdigit, word)) or script(word[0]) not in scripts_of(code):
        return None
    parts = word.split("'")
    # What an apostrophe cuts off is short: l', dell', 's, 'ın.
    if _listed(word, code) or (len(parts) > 1 and all(len(part) <= 3 or _listed(part, code) for part in parts)):
        return True
    stems = [word.removesuffix(ending) for ending in _ENDINGS.get(code, ()) if word.endswith(ending)]
    if any(_listed(stem, code) for stem in stems if len(stem) >= 4):
        return True
    return len(word) <= _LONGEST and any(_compound(word, end, code) for end in range(4, len(word) - 3))


# e.g. _compound("hausboot", 4, "de") → True
def _compound(word: str, end: int, code: str) -> bool:
    """Whether a word is a common one up to `end` and then another."""
    if not _common(word[:end], code):
        return False
    rests = [word[end + len(link) :] for link in ("", "s", "n", "e", "es", "en", "er") if word.startswith(link, end)]
    return any(len(rest) >= 4 and _listed(rest, code) for rest in rests)


def _listed(word: str, code: str) -> bool:
    return _common(word, code) or bool(in_lexicon(word, code) or in_lexicon(_spelled(word, code) or word, code))


def _common(word: str, code: str) -> bool:
    frequency = zipf(_spelled(word, code), code, "best" if code in LARGE_LIST else "small")
    return frequency is not None and frequency >= LARGE_LIST.get(code, 0.0)


def _spelled(word: str, code: str) -> str:
    from wordfreq.preprocess import preprocess_text

    return preprocess_text(word, WORDFREQ_CODES.get(code, code))  # type: ignore[arg-type]


_SYMBOLS = re.compile(r"(?:[^\w\s]\s*+){30,}+")
_RULES = frozenset("._-=*#|:+…~ \n")


def repetition(text: str, tokens: Sequence[str], doubling: float = MANY_DOUBLED) -> dict[str, Any]:
    """Shares of the text in a loop, and of lines and n-grams that occurred before; words said twice in a row are a loop
    from the share `doubling` on."""
    # Single characters carry less than words: twice as many make a phrase.
    scale = 2 if sum(map(len, tokens)) < 2 * len(tokens) else 1
    loop, ngrams = repeated_ngrams([token.lower() for token in tokens], 4 * scale, LOOP * scale)
    runs = [run for run in _SYMBOLS.findall(text) if len(set(run)) < 6 and (len(run) > 200 or set(run) - _RULES)]
    symbols = sum(map(len, runs)) / max(1, len(text))
    loop = symbols if symbols > max(loop, MOSTLY_LOOPED) else loop
    pairs = pairwise(map(str.lower, tokens)) if scale == 1 else ()
    doubled = [one for one, other in pairs if one == other]
    if len(set(doubled)) >= DOUBLED and len(doubled) > doubling * len(tokens):
        loop = max(loop, min(len(doubled) / len(tokens), MOSTLY_LOOPED))  # it can still be understood
    shares = {"loop": loop, "repeated_lines": repeated_lines(text), "repeated_ngrams": ngrams}
    return {name: round(share, 4) for name, share in shares.items()}


# e.g. repeated_ngrams(["a", "b", "c", "d"], 4, 10) → (0.0, 0.0)
def repeated_ngrams(tokens: Sequence[str], size: int, shortest: int) -> tuple[float, float]:
    """The share of tokens in the longest loop, and the share of n-grams that occurred before.

    In a loop every n-gram lies as far behind its last occurrence as the loop is long, so one pass finds it.
    """
    last: dict[tuple[str, ...], int] = {}
    repeated = twice = thrice = run = distance = 0
    for place, gram in enumerate(zip(*(tokens[i:] for i in range(size)), strict=False)):
        before = last.get(gram, place)
        last[gram] = place
        repeated += before < place
        run = run + 1 if place - before == distance else 1
        distance = place - before
        length = run + size - 1 + distance if distance else 0
        if length >= shortest and length >= 3 * distance:
            thrice = max(thrice, length)
        elif distance >= shortest and length >= 2 * distance:
            twice = max(twice, length)
    share = repeated / (len(tokens) - size + 1) if len(tokens) >= 5 * size else 0.0
    # What is said only twice can still be understood.
    return max(thrice, min(twice, MOSTLY_LOOPED * len(tokens))) / max(1, len(tokens)), share


# e.g. repeated_lines("one line is\none line is\ntwo lines are\nthree lines") → 0.25
def repeated_lines(text: str) -> float:
    """The share of lines that occurred before; short ones, rules and markup do not count."""
    lines = [line.strip(" \t-=_*|.:#") for line in re.sub(r"<[^<>\n]{1,200}>", "", text).lower().split("\n")]
    lines = [line for line in lines if len(line) >= 10]
    return 1.0 - len(set(lines)) / len(lines) if len(lines) >= 4 else 0.0


_NO_TEXT = re.compile("[\ufffd\x00-\x08\x0e-\x1a\x7f-\x84\x86-\x9f\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\uffff]")
# Continuation bytes of UTF-8 read as Windows-1252, or as Latin-1; without quotes and dashes for the commonest leads.
_REST = "\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
_NARROW = "\x80-\xbaœžŸ¼-\xbf€ƒ†‡ˆ‰Š™"
_MOJIBAKE = re.compile(
    rf"[ÂÃ][{_NARROW}]|â€[{_REST}]?|ðŸ[{_REST}]{{2}}|(?:[Ã-ß][{_REST}]){{2}}|(?:[à-ï][{_REST}]{{2}}){{2}}"
    r"|(?:[РС][ЂЃѓЉЊЌЋЏђљњќћџЎўЈҐҐЁЄЇІіґёєјЅѕї°±µ·№»«\xa0¤¦§©¬®¶]){3}"  # UTF-8 read as Windows-1251
    r"|<0x[0-9A-F]{2}>|▁(?=\w)|Ġ(?=\w)|\\n\\n|\\u[0-9a-f]{4}"  # bytes and marks of tokenizers, escapes
)
# Scripts that do not share a word with another; Han, Kana, Hangul and Thai stand next to any.
_APART = frozenset("Latn Grek Cyrl Armn Hebr Arab Deva Beng Guru Gujr Taml Telu Knda Mlym Geor".split())


# e.g. broken("schön") → {"broken": 0.0}
def broken(text: str) -> dict[str, Any]:
    """The share of characters that are no text, and examples."""
    text = re.sub("\ufffd{1,4}\\Z", "", text)  # the token limit may fall within a character
    if text.isascii() and not _NO_TEXT.search(text) and "\\" not in text and "<0x" not in text:
        return {"broken": 0.0}
    signs = _NO_TEXT.findall(text)
    garbled = _MOJIBAKE.findall(text)
    words = _LETTERS.findall(text) if len(_APART.intersection(map(script, set(text)))) > 1 else []
    mixed = [word for word in words if not word.isascii() and _is_mixed(word)]
    # Two or more characters of mojibake stand for one; a mixed word is readable but for one letter.
    count = len(signs) + sum(map(len, garbled)) / 2 + len(mixed)
    examples = [f"U+{ord(sign):04X}" for sign in signs[:3]] + garbled[:3] + mixed[:3]
    return {"broken": round(count / max(100, len(text)), 4)} | ({"examples": examples} if examples else {})


# e.g. _is_mixed("приветhello") → True
# e.g. _is_mixed("SMSка") → False
def _is_mixed(word: str) -> bool:
    """Whether two scripts make one word that is none: "μm", "SMSка" and "الAPI" are."""
    scripts = Counter(map(script, word))
    found, latin = _APART & scripts.keys(), scripts["Latn"]
    if latin and len(found) > 1 and found <= {"Latn", "Grek", "Arab", "Hebr"}:
        return len(word) - latin > 3
    return len(found) > 1 and not (latin > 1 and word[:latin].isascii() and word[:latin].isupper())


_STOPS = ".!?…‽。！？｡．؟۔।॥։"
_CLOSERS = " \t\n\"'”’»›)]}」』）】》*_`~"


# e.g. cut("Er ging nach", "de") → True
# e.g. cut("是的。", "zh") → False
def cut(text: str, code: str) -> bool:
    """Whether a text that the token limit ended stops within a sentence; False where sentences have no stop."""
    if code == "th" or ends_fenced(text):
        return code != "th"
    end = text[-200:].rstrip(_CLOSERS)[-1:] or "."
    ended = end in _STOPS or (end == ";" and code == "el") or unicodedata.category(end) == "So"
    return not (ended or text.rstrip().endswith(("```", "~~~")))


_TEMPLATE = re.compile(
    r"<\|[\w ]{1,40}\|>|<｜[\w▁ ]{1,40}｜>|\[\|\w{1,20}\|\]"
    r"|</?(?:start_of_turn|end_of_turn|start_of_image|bos|eos|pad|unk|unused\d+|extra_id_\d+|im_start|im_end)>"
    r"|\[/?INST\]|<</?SYS>>|\[/?(?:UNK|PAD|CLS|SEP|MASK|BOS|EOS|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|</s>|^<s>"
    r"|^#{1,4} ?(?:Response|Instruction|Input|Assistant|User|Human|System) ?:|Below is an instruction that describes"
    r"|^(?:assistant|user)[ \t]*$|(?<=[^\W\d_])assistant$|(?<=[.!?。！？؟।)»”])assistant$",
    re.MULTILINE,
)
# A turn after other text: a dialogue that was asked for begins with one.
_TURN = re.compile(r"\n(?:\*\*)?(?:User|Human|Assistant|AI|Bot)(?:\*\*)? ?:", re.MULTILINE)


# e.g. leaked("Fine.<|im_end|>") → ["<|im_end|>"]
def leaked(text: str) -> list[str]:
    """Tokens and role names of chat templates that stand in the text."""
    found: list[str] = _TEMPLATE.findall(re.sub(r"<s>[^<>\n]{1,200}</s>", " ", text))
    if not _TURN.match("\n" + text.lstrip()):
        found += _TURN.findall(text)
    return [part.strip() for part in found[:5]]


_PLACEHOLDER = re.compile(
    r"\[\w[^\[\]\n]{1,60}\](?!\()|<(?:insert|your|enter|add)\b[^<>\n]{0,60}>"
    r"|(?<![\\\w}^_$])\{{1,2} ?[a-z_][\w .-]{1,40}\}",
    re.IGNORECASE,
)
_CUE = re.compile(
    r"\b(?:your?|insert|name|date|address|company|recipient|sender|city|country|state|number|phone|amount|title|"
    r"position|department|product|here|placeholder|specific|signature|time|place|location|topic|website|add)\b"
)
_DUMMY = re.compile(r"(?i:lorem ipsum)|(?<!\w)X{3,}(?!\w)")


# e.g. placeholders("Cher [Insert Name],", "fr") → ["[Insert Name]"]
def placeholders(text: str, code: str) -> list[str]:
    """English placeholders in a text in another language, and those in no language.

    A placeholder in the language of the text is apt where the request is generic.
    """
    found: list[str] = _DUMMY.findall(text)
    found = [] if found == ["XXX"] else found  # may be thirty in Roman numerals
    if code != "en" and ("[" in text or "{" in text or "<" in text):
        cues = {part: _CUE.findall(part.lower().replace("_", " ")) for part in _PLACEHOLDER.findall(text)}
        english = [part for part in cues if any(evidence(word, code, "en") >= 1.0 for word in cues[part])]
        found += english if english and not _in_english(text, code) else []
    return found[:5]


def _in_english(text: str, code: str) -> bool:
    sample = _sample(text)
    spans = [span for span in foreign_spans(said_in(sample, sample, code)) if span.language == "en"]
    return sum(span.end - span.start for span in spans) > 0.5 * len(sample)
