"""Forms of a word by its endings, for words that are looked for in a text; all words are folded (`text.fold`)."""

from __future__ import annotations

import re
import unicodedata

from xlift.rating.text import spaced

_EAST = (
    "а|я|у|ю|ом|ем|ой|ей|ою|ею|ы|и|е|ов|ев|ам|ям|ами|ями|ах|ях|ья|ьев|ьям|ьями|ьях|ий|ый|ая|яя|ое|ее|ого|его|ому|ему|ым|им|ых|их|ую|юю|"
    "ь|ью|ию|ия|ии|ием|ией|ие|ям|ые|і|ї|ові|єю|ією|ам|ему"
)
_SOUTH = "a|e|i|o|u|om|em|ama|ima|oj|og|ega|im|ih|ome|omu|ovi|ova|ove|ovima|evi|eva|eve|evima"
_CZECH = "a|u|ovi|em|e|ě|y|i|í|o|ou|ám|ům|ami|ách|ích|ů|é|á|ého|ému|ém|ým|ých|ej|om|och|ov|ím|ie|iu|ia"
TURKISH = "(?:l[ae]r)?(?:[sy]?[ıiuü]n?)?(?:y?l[ae]|[dt][ae]n?|[ny]?[ae]|[ny]?[ıiuü]n)?(?:[dt][ıiuü]r?)?"
_ROMANCE = "s|es|a|o|as|os|e"
_NORDIC = "s|en|et|er|ar|or|n|t|e|na|ne|ene|erna|arna|orna|erne"
# What a word may lose at its end, and what may then stand there. In the first group that is the case of a noun: the
# same answer; elsewhere number, gender or person.
_CASES: dict[str, tuple[str, str]] = {
    "ru": ("(?:[аяыи][яй]|[ое][ей]|[аяоеийьы])", _EAST),
    "uk": ("(?:ий|[аяоеиійьї])", _EAST),
    "bg": ("[аяоеий]", _EAST + "|ът|ят|та|то|те|ове|овете|еве|евете|ите|ища|ищата|ата|ята|ото|ето"),
    "mk": ("[аоеи]", _EAST + "|от|та|то|те|ата|ото|ето|ите"),
    "sr": ("[aeiou]", _SOUTH),
    "hr": ("[aeiou]", _SOUTH),
    "pl": ("[aeoyięą]", "a|u|owi|em|iem|ie|e|y|i|ę|ą|o|om|ami|ach|ów|ej|ego|emu|ym|im|ych|ich|ii|ię|ią"),
    "cs": ("[aeoyiěíýáé]", _CZECH),
    "sk": ("[aeoyiíýáé]", _CZECH),
    "sl": ("[aeio]", _SOUTH + "|ov|em|ih|ah"),
    "be": ("(?:[аяыі][яй]|[аяоеіыь])", _EAST + "|ы|ам|аў|яў"),
    "lt": ("(?:[iy]a|[aiuėy]s|as|ius|a|ė|is)", r"\w{0,6}"),
    "lv": ("[aseišu]", "a|e|s|i|u|ā|ē|ī|as|es|is|us|am|em|im|ai|ei|ij|ij[aā]|iem|os|ās|ēs|īs|ām|ēm|u"),
    "et": ("", r"\w{0,6}"),
    "fi": ("", r"\w{0,6}"),
    "ka": ("[იაეო]", r"\w{1,7}"),
    "sq": ("[aëeiu]", "a|ë|ën|ës|e|i|it|in|u|ut|un"),
    "de": ("", "e?s"),
    "ro": ("[aăe]?", "a|ă|e|ei|i|ul|ului|lui|le|lor|ii"),
    "el": ("(?:ασ|ησ|οσ|εσ|[αηοιε])", "α|ασ|αν|ησ|η|ην|ο|ου|οσ|ον|οι|ων|ουσ|ε|εσ|ι|ιου|ια|ιων"),
}
_FORMS: dict[str, tuple[str, str]] = _CASES | {
    "en": ("[ey]?", "s|es|d|ed|ing|ies|ied|ren"),
    "tr": ("", TURKISH),
    "is": ("(?:ur|r|inn|i|a)?", r"\w{0,5}"),
    "fr": ("e?", "s|x|e|es|ent|ons|ez|er|é|ée|és|ées"),
    "es": ("[aeo]?", _ROMANCE + "|an|en"),
    "pt": ("(?:[aeo]|ão|m)?", _ROMANCE + "|am|em|ões|ães|ãos|ns"),
    "gl": ("[aeo]?", _ROMANCE),
    "ca": ("[aeo]?", _ROMANCE),
    "it": ("[aeio]", "a|e|i|o"),
    "he": ("(?:[הת]|יה)?", "ים|ות|ה|ת|י|ו|ם|ן|נו|כם|יו|יה|יהם|ית|יות"),
    "ro": ("[aeăiu]?", "a|e|i|ă|u|ul|ului|le|lor|ii|iii|ilor|ei|ele|elor|uri|urile|ea|ua"),
    "de": ("e?", "e|en|er|es|s|n|em|ern|te|ten|t|st"),
    "nl": ("e?", "s|en|e|n|t|eren|ers"),
    "sv": ("[ae]?", _NORDIC + "|ern"),
    "da": ("e?", _NORDIC),
    "no": ("e?", _NORDIC),
}
# The same for infinitives.
_VERBS: dict[str, tuple[str, str]] = {
    "fr": (
        "(?:er|ir|re)",
        "e?(?:ons|ez|ait|ais|aient|ant|a|as|ai|èrent)|e|es|ent|ée?s?|e?r(?:ai?|as|ons|ez|ont)|is?|it|s|t",
    ),
    "es": ("[aei]r", "[aei]mos|[aeo]|[aei][ns]|ó|é|aron|[ai]d[oa]s?|ando|iendo|[aí]a[ns]?"),
    "pt": ("[aei]r", "[aei]mos|[aeo]|[ae]m|[aei]s|ou|[aei]u|[aei]ram|[ai]d[oa]s?|[aei]ndo"),
    "it": ("[aei]re", "[aei]te|iamo|[aeio]|[aeo]no|[aui]t[oaie]|[ae]ndo|ò|ai"),
    "de": ("e?n", "e|st|t|te|ten|end"),
    "nl": ("en", "t|te|ten|de|den|end"),
    "ru": ("[аеиыя]?ть", "[юуеи]|[еиё]шь|[еиё]т|[еиё]м|[еиё]те|[уюая]т|[аиыея]л[аои]?|[аеия]й|[аеия]йте"),
    "uk": ("[аеиія]?ти", "[юуеи]|[еиє]ш|[еиє]|[еиє]мо|[еиє]те|[уюая]ть|[аиіея]в|[аиіея]л[аои]"),
    "pl": ("[aeiyoó]?[wn]?[aeiy]?ć", r"\w{1,5}"),
}


# What a stem may become before an ending.
_STEMS: dict[str, list[tuple[str, str]]] = {
    "pl": [
        ("ó(.)$", r"[óo]\1"),
        ("ź$", "(?:ź|zi)"),
        ("ie(.)$", r"(?:ie)?\1"),
        ("k$", "[kc]"),
        ("g$", "(?:g|dz)"),
        ("r$", "rz?"),
    ],
    "cs": [("h$", "[hz]"), ("k$", "[kc]"), ("g$", "[gz]"), ("r$", "[rř]"), ("e(.)$", r"e?\1")],
    "hr": [("k$", "[kc]"), ("g$", "[gz]"), ("a(.)$", r"a?\1")],
    "uk": [("[іи]([^і])$", r"[іиоеє]\1"), ("ї([^і])$", r"[їєо]\1"), ("г$", "[гз]"), ("к$", "[кц]")],
    "ru": [("[ео]([цк])$", r"[еоь]?\1"), ("г$", "[гз]")],
    "fi": [
        ("nen$", "(?:nen|se)"),
        (r"([kpt])\1(?=[^kpt]{1,2}$)", r"\1\1?"),
        ("nk(?=[^k]{1,2}$)", "n[kg]"),
        ("(?<![nk])k(?=[^k?]{1,2}$)", "k?"),
        ("(?<!t)t(?=[^t?]{1,2}$)", "[td]"),
        ("(?<!p)p(?=[^p?]{1,2}$)", "[pv]"),
        ("i$", "[ie]"),
    ],
    "tr": [("p$", "[pb]"), ("k$", "[kğ]"), ("ç$", "[çc]")],
    "de": [("au(?=[^aou]*$)", "[aä]u"), ("([ou])(?=[^aou]*$)", r"[\1öü]"), ("(?<!\\[)a(?=[^aouä]*$)", "[aä]")],
    "nl": [("s$", "[sz]"), ("f$", "[fv]"), ("([aeou])\\1(?=.$)", r"\1{1,2}"), ("([bdfgklmnprst])$", r"\1{1,2}")],
    "fr": [("(al|ail)$", r"(?:\1|au)"), ("f$", "[fv]")],
    "pt": [("l$", "[li]"), ("ão$", "(?:ão|ãe|õe)")],
    "ro": [("l$", "[li]")],
    "es": [("z$", "[zc]"), *((f"{long}(?=[ns]$)", f"[{long}{short}]") for long, short in ("áa", "ée", "íi", "óo"))],
    "it": [("([cg])$", r"\1h?"), ("^uom$", "uom(?:in)?")],
    "en": [("([bdgklmnprt])$", r"\1{1,2}"), ("f$", "[fv]"), ("a(n.*)$", r"[ae]\1"), ("oo", "(?:oo|ee)")],
    "sv": [("k$", "[ck]?k"), ("([bdgprst])$", r"\1{1,2}"), ("(?<!\\[)([ao])(?=[^aeiouyåäö]*$)", r"[\1äö]")],
}
_STEMS |= {"no": [("(?<!\\[)([ao])(?=[^aeiouyæøå]*$)", r"[\1eæø]")]}
_STEMS |= {"da": _STEMS["no"], "sk": _STEMS["cs"], "sl": _STEMS["cs"], "sr": _STEMS["hr"]}
# What may stand before a word of these.
_BEFORE = {
    "he": "[ושהכלבמ]{0,3}",
    "id": r"\w{0,4}",
    "ms": r"\w{0,4}",
    "fil": r"\w{0,4}",
    "sw": r"\w{0,4}",
    "zu": r"\w{0,4}",
}
_MORE = {"hi": 3} | dict.fromkeys("ta te kn ml".split(), 10)
_CLASSES = re.compile("^(?:ki|m[wt]?|n|ma|u)(?=[^aeiou])")
_MARKS = "\u0300-\u036f\u0900-\u0963\u0966-\u0dff"
# Verbs and adjectives of Japanese: characters, and the kana that changes.
_JAPANESE = re.compile("([\u4e00-\u9fff]+[\u3041-\u309f]?)[うくぐすつぬぶむるい]")


def _inflected(word: str, table: dict[str, tuple[str, str]], code: str) -> str | None:
    """A pattern for the forms of a word; None where it has none, or is too short to tell."""
    if code not in table or len(word) < (2 if code == "tr" else 3) or not word.replace("'", "").isalpha():
        return None
    lost, endings = table[code]
    stem = re.sub(f"{lost}$", "", word) if len(word) > 3 else word
    if len(stem) < 3:
        stem = word
    changed = re.escape(stem)
    for old, new in _STEMS.get(code, ()):
        if code != "de" or table is not _CASES:  # only its plurals have umlauts
            changed = re.sub(old, new, changed)
    return rf"{changed}(?:{endings}|{re.escape(word[len(stem) :])})?"


def _any_inflection(word: str, code: str) -> str | None:
    found = [_inflected(word, _FORMS, code)]
    if code in _VERBS and re.search(f"{_VERBS[code][0]}$", word):
        found.append(_inflected(word, _VERBS, code))
    patterns = [one for one in found if one]
    return f"(?:{'|'.join(patterns)})" if patterns else None


def case_forms(word: str, code: str) -> str | None:
    """A pattern for a noun in any case; None in languages without, and for short words."""
    return _inflected(word, _CASES, code)


# e.g. _without_last("புத்தகம்") → "புத்தக"
def _without_last(word: str) -> str:
    """A word without its last letter and the signs that go with it; without one character where little would stay."""
    end = len(word) - 1
    while end > 3 and unicodedata.category(word[end])[0] == "M":
        end -= 1
    return word[:end]


def _any_form(word: str, code: str) -> str | None:
    """Where no endings are listed: the word, or all but its last letter, and some letters more; None for short ones."""
    if len(word) < 3 and not (word.isalpha() and "\u0980" <= word[:1] <= "\u0dff"):
        return None
    bare = _CLASSES.sub("", word) if code == "sw" and len(word) > 5 else word
    stem = _without_last(bare) if len(bare) > 4 or not bare[-1].isalnum() else bare
    beginning = f"{stem[0]}(?:um|in)?" if code == "fil" else re.escape(stem[0])
    return rf"{_BEFORE.get(code, '')}{beginning}{re.escape(stem[1:])}[\w{_MARKS}]{{0,{_MORE.get(code, 5)}}}"


# e.g. other_forms("les labels indépendants.", "label", "fr") → ["labels"]
# e.g. other_forms("о новых законах", "закон", "ru") → ["законах"]
# e.g. other_forms("nous mangeons bien.", "manger", "fr") → ["mangeons"]
# e.g. other_forms("las mujeres", "mujer", "es") → ["mujeres"]
# e.g. other_forms("las canciones", "canción", "es") → ["canciones"]
# e.g. other_forms("公園を走って", "走る", "ja") → ["走っ"]
# e.g. other_forms("ケーキを食べました", "食べる", "ja") → ["食べま"]
# e.g. other_forms("böckerna ligger där", "bok", "sv") → ["böckerna"]
# e.g. other_forms("a category", "cat", "en") → []
def other_forms(folded: str, phrase: str, code: str) -> list[str]:
    """What in a folded text may be a form of a folded word or phrase."""
    if verb := _JAPANESE.fullmatch(phrase):
        return re.findall(rf"{verb[1]}[\u3041-\u309f]", folded)
    words = re.split("[ \u200c-]+", phrase)
    known = code in _FORMS or not spaced(code) or code in {"ko", "ar", "he"}
    patterns = [(_any_inflection(word, code) if known else _any_form(word, code)) or re.escape(word) for word in words]
    pattern = (_BEFORE["he"] if code == "he" else "") + "[ \u200c-]?".join(patterns)
    return re.findall(rf"(?<!\w){pattern}(?![\w{_MARKS}])", folded) if phrase else []
