"""Where sentences end, in many languages."""

from __future__ import annotations

import re

from xlift.languages import known_code
from xlift.rating.language.wordlists import zipf
from xlift.rating.text import UNSPACED, parse_lines

_CLOSERS = r"(?:[\"'”’»›)\]}」』）】》*_`]| »)*"
_STOP = re.compile(rf"([.!?…‽。．！？｡؟۔।॥።။։\u17d4]+)({_CLOSERS})")
# Armenian's full stop is often typed as a colon.
_ARMENIAN_STOP = re.compile(rf"([.!?…։:]+)({_CLOSERS})")
_GREEK_STOP = re.compile(rf"([.!?…;]+)({_CLOSERS})")
_STOP_IN = {"el": _GREEK_STOP, "hy": _ARMENIAN_STOP}
_OPENERS = "\"'“‘„«‹([{「『（【《*_`¿¡ "
_ABBREVIATION = re.compile(
    "co|cia|bros|dr|mr|mrs|ms|prof|st|sr|sra|srta|dra|mme|mlle|mmes|mm|vs|cf|eg|ie|approx|dept|gen|col|capt|lt|sen|rep|gov|rev|hon|"
    "ex|env|éd|réf|av|avda|aprox|tel|sig|dott|avv|ing|bzw|ca|ggf|evtl|inkl|vgl|sog|bspw|hrsg|geb|str|bijv|dhr|mevr|örn|"
    "англ|нем|фр|лат|исп|итал|греч|яп|кит|род|им|ул|обл|проф|акад|тов|гр|ср|напр|см|тыс|डॉ|प्रो|पं|श्री"
)
# These stand before a number; elsewhere they are words ("No.") or end the sentence.
_BEFORE_NUMBER = re.compile(
    "no|n°|nº|sec|eqs?|figs|núm|num|nr|vol|fig|art|pp|p|bd|kap|chap|cap|abb|págs?|pag|рис|стр|гл|ст|п|rp|rs|kr|kč|zł|eur|usd|tk|руб|hal|"
    "blz|ek|obr|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|janv|févr|avr|juil|déc|ene|abr|ago|dic|fev|out|dez|gen|mag|"
    "giu|lug|ott|mrt|okt|mär|янв|февр|авг|сент|окт|нояб|дек|"
    "tab|rys|str|č|čl|art|kl|tgl|эт|кв|д|रु|सं|पृ"
)
_ABBREVIATION_IN = {
    "id": re.compile("drs|ir|pt|cv|hj|bpk|jl|tn|ny|yth|tsb|kec|kab"),
    "ms": re.compile("hj|jln|tn|pn|en"),
    "vi": re.compile("tp|ths|ts|pgs|gs|bs|ks|tx|q"),
    "tr": re.compile("doç|yrd|sn|bkz|mah|cad|sok|apt|öğr|gör|alb|yy|hz"),
    "pl": re.compile("np|tzn|tj|tzw|mgr|inż|hab|ul|al|os|godz|tys|mln|mld|im|św|ks|zob|por|pt"),
    "cs": re.compile("např|tzv|tj|mj|ing|mgr|bc|doc|ul|nám|tř|sv|hod|tis|resp"),
    "sk": re.compile("napr|tzv|tj|ing|mgr|bc|doc|ul|nám|sv|hod|tis|resp"),
    "hu": re.compile("pl|kb|ill|ún|ifj|özv|u|krt|tc"),
    "ro": re.compile("d-l|d-na|dl|dna|nr|str|bd|sf|ing"),
    "nl": re.compile("drs|ir|mr|mw|ds|o\\.a|d\\.w\\.z|nl|resp"),
    "sv": re.compile("bl\\.a|t\\.ex|dvs|kl|resp|civ|s\\.k"),
    "da": re.compile("bl\\.a|f\\.eks|dvs|kl|hr|fr|ang"),
    "no": re.compile("bl\\.a|f\\.eks|dvs|kl|hr|fr|ang"),
    "fi": re.compile("esim|mm|ym|ns|nk|klo|hlö|puh|os"),
    "it": re.compile("sig\\.ra|sig\\.na|prof\\.ssa|dott\\.ssa|geom|rag|on|sec|ss|gent|egr|pag"),
    "pt": re.compile("profa|exmo|exma|ilmo|eng|pág|tel|av|ltda|jr"),
    "es": re.compile("ee|lic|ud|uds|dña|excmo|pág|tel|fdo|admón"),
    "fr": re.compile("mgr|me|dr|pr|bd|fg|tél|apr|jr|vol"),
    "de": re.compile("nr|tel|zzgl|abzgl|exkl|mwst|mio|mrd|max|min|allg|insb|bes|verh|gest|st"),
    "el": re.compile("κ|κα|κος|δρ|καθ|λεωφ|αρ|σελ|τηλ|δηλ|βλ|πρβλ"),
    "uk": re.compile("вул|пл|проф|акад|ім|див|напр|тис|млн|грн|р|с|м"),
    "bg": re.compile("ул|бул|проф|акад|инж|напр|вж|хил|млн|лв|гр"),
    "sr": re.compile("ул|бул|проф|инж|нпр|тзв|тј|др|г|гђа|стр"),
    "hr": re.compile("ul|prof|ing|npr|tzv|tj|sv|g|gđa|str|god"),
    "et": re.compile("nt|hr|pr|tn|mnt|lk|jt|jne|tel|dots"),
    "lt": re.compile("gyd|g|pr|prof|pvz|tel|kun|inž|vad"),
    "lv": re.compile("piem|utt|tālr|kungs|inž|g"),
    "is": re.compile("hr|fr|sr|t\\.d|þ\\.e|u\\.þ\\.b|kl|bls"),
    "fil": re.compile("g|gng|bb|sto|sta|atty|engr"),
    "sw": re.compile("bw|bi|dkt|mh|k\\.m|n\\.k|taz"),
    "sl": re.compile("g|ga|npr|oz|tj|ul|sv|inž|mag|mr|dipl"),
    "ca": re.compile("sra|c|pl|av|pàg|tel|p\\.ex"),
    "gl": re.compile("sra|dna|rúa|páx|tel"),
    "af": re.compile("mnr|mev|mej|bv|nl|asb"),
    "bn": re.compile("ডা|ড|মো|প্রো|শ্রী|লি"),
    "hi": re.compile("डा|कु|सुश्री|मो|रु|मी"),
}
_CAN_END = re.compile(
    r"(?:т\. ?[дпк]|и др|и пр|\b(?:etc|usw|ecc|vb|dll|dsb|osv|stb|atd|itd|itp|κλπ|[ap]\. ?m|[ap]m)|"
    r"\d ?(?!vs)[^\W\d_]{1,4}|\b[IVX]+ вв?)$"
)
# e.g. split_sentences("P.-S. : Pense au pain. J.-P. Roy", "fr") → ["P.-S. : Pense au pain.", "J.-P. Roy"]
_DOTTED = re.compile(r"(?:[^\W\d_]{1,3}\.-?)+[^\W\d_]{1,3}")
# What opens a sentence with a date: its abbreviation ends nothing.
# e.g. split_sentences("W 1990 r. Wałęsa wygrał.", "pl") → ["W 1990 r. Wałęsa wygrał."]
_DATE = re.compile(r"(?:[^\W\d_]{1,5} )?\d{1,4}(?: ?[-–] ?\d{1,4})? ?[^\W\d_]{1,2}")
DATE_WORDS = 3
_GERMAN_ORDINAL = re.compile(
    r"\s(?:Jan|Feb|März|Apr|Mai|Jun|Jul|Aug|Sep|Okt|Nov|Dez|Jahrhundert|Jh|Jahrtausend|Klasse|Platz|Weltkrieg)"
)


# e.g. split_sentences("他说：“我不去。你呢？”然后走了。", "zh") → ["他说：“我不去。你呢？”然后走了。"]
# e.g. split_sentences("Harganya Rp. 5.000. Murah.", "id") → ["Harganya Rp. 5.000.", "Murah."]
# e.g. split_sentences("Il y a env. 5 m. Voilà !", "fr") → ["Il y a env. 5 m.", "Voilà !"]
def split_sentences(text: str, language: str) -> list[str]:
    """The sentences of the text; a line or list item without a stop is one, fenced code is none.

    A stop ends a sentence unless what follows goes on in lower case, or it belongs to a number, an initial, an
    abbreviation or an enumerator. In Chinese and Japanese a stop inside quotes ends one only at the end of a line.
    """
    found = [sentence for block in _blocks(text) for sentence in split_block(block, known_code(language))]
    return [sentence for sentence in found if any(map(str.isalnum, sentence))]


def _blocks(text: str) -> list[str]:
    blocks: list[list[str]] = []
    for line in parse_lines(text):
        content = " ".join((line.raw if line.kind == "label" else line.text).replace("**", "").split())
        # A line that goes on in lower case directly below another is wrapped.
        if blocks and not line.kind and not line.after_blank and content[:1].islower():
            blocks[-1].append(content)
        elif content:
            blocks.append([content])
    return [" ".join(block) for block in blocks]


def split_block(block: str, language: str) -> list[str]:
    """The sentences of a text without lists and line breaks, as they stand there."""
    sentences, start = [], 0
    quoted = _quotations(block)[::-1] if language == "ko" or UNSPACED.search(block) else []
    # In text that is all in lower case, a lower-case letter does not say that the sentence goes on.
    following = block.upper() if block.islower() and len(block.upper()) == len(block) else block
    for stop in _STOP_IN.get(language, _STOP).finditer(block):
        while quoted and quoted[-1][1] <= stop.start():
            quoted.pop()
        if quoted and quoted[-1][0] < stop.start() and stop.end() < quoted[-1][1]:
            continue
        before, after = block[max(start, stop.start() - 24) : stop.start()], following[stop.end() : stop.end() + 40]
        if not after.strip() or _ends(before, stop[1], stop[2], after, language):
            sentences.append(block[start : stop.end()].strip())
            start = stop.end()
    return [*sentences, block[start:].strip()]


_QUOTE_PAIRS = {"“": "”", "「": "」", "『": "』", "《": "》", "（": "）", "‘": "’", '"': '"'}


# e.g. _quotations("他说：“好。走吧。”然后走了。") → [(3, 10)]
# e.g. _quotations("「好。走吧。」") → []
def _quotations(block: str) -> list[tuple[int, int]]:
    """Where what Chinese, Japanese or Korean quotes begins and ends; a quotation that is the whole block is none."""
    found: list[tuple[int, int]] = []
    waiting: list[tuple[str, int]] = []
    for i, character in enumerate(block):
        if waiting and character == waiting[-1][0]:
            start = waiting.pop()[1]
            if not waiting and (start > 0 or i < len(block.rstrip()) - 1):
                found.append((start, i + 1))
        elif character in _QUOTE_PAIRS:
            waiting.append((_QUOTE_PAIRS[character], i))
    return found


def _ends(before: str, stop: str, closers: str, after: str, language: str) -> bool:
    """Whether a stop in the middle of a line ends the sentence."""
    if stop[-1] in "。｡！？．":
        return not closers or after[0] in _OPENERS
    if stop[-1] in "।॥۔؟\u17d4":
        return True
    following = after.lstrip(f"{_OPENERS}—–")[:1]
    if stop == "." and following and following in ":;,":
        return False
    if stop[0] == "…" or stop.startswith(".."):
        # Without case nothing tells a pause from an end.
        return following.isupper()
    if after[0] != " " or following.islower():
        return not closers and bool(UNSPACED.match(after))
    return stop != "." or _full_stop_ends(before, following, after, language)


_APOSTROPHES = re.compile("['’]")


def _full_stop_ends(before: str, following: str, after: str, language: str) -> bool:
    words = before.split()
    if not words:
        return True
    token = words[-1].lstrip(_OPENERS)
    if len(words) == 1 and (token.isdecimal() and len(token) <= 3):
        return False
    if language == "de" and token.isdecimal() and len(token) <= 2 and _GERMAN_ORDINAL.match(after):
        return False
    if len(words) <= DATE_WORDS and _DATE.fullmatch(before.strip()):
        return False
    if _CAN_END.search(before):
        return True
    name = _APOSTROPHES.split(token.casefold())[-1]
    own = _ABBREVIATION_IN.get(language)
    if own and own.fullmatch(name):
        return False
    initial = len(token) == 1 and token.isalpha() and not UNSPACED.match(token) and (token, language) != ("I", "en")
    if _BEFORE_NUMBER.fullmatch(name) and not token.isupper():
        return not following.isdecimal()
    if _DOTTED.fullmatch(token) and token.isupper():
        return _begins_sentence(after, language)
    return not (_ABBREVIATION.fullmatch(name) or initial or _DOTTED.fullmatch(token))


STARTER = 6.0
"""Zipf frequency from which on a word with a capital begins a sentence: it is no name."""


# e.g. split_sentences("He lives in the U.S. He likes it.", "en") → ["He lives in the U.S.", "He likes it."]
# e.g. split_sentences("He is in the U.S. Army.", "en") → ["He is in the U.S. Army."]
def _begins_sentence(after: str, language: str) -> bool:
    """Whether the next word is one of the commonest of the language, behind an abbreviation in capitals."""
    word = re.match(r"[^\w]*([^\W\d_]+)", after)
    return bool(word) and (zipf(word[1].lower(), language) or 0.0) >= STARTER  # type: ignore[index]
