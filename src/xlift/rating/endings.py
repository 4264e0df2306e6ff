"""Forms of a word by its endings, for words that are looked for in a text; all words are folded (`text.fold`)."""

from __future__ import annotations

import re

_EAST = (
    "а|я|у|ю|ом|ем|ой|ей|ою|ею|ы|и|е|ов|ев|ам|ям|ами|ями|ах|ях|ий|ый|ая|яя|ое|ее|ого|его|ому|ему|ым|им|ых|их|ую|юю|"
    "ь|ью|ию|ия|ии|ием|ией|ие|ям|ые|і|ї|ові|єю|ією|ам|ему"
)
_SOUTH = "a|e|i|o|u|om|em|ama|ima|oj|og|ega|im|ih|ome|omu"
_CZECH = "a|u|ovi|em|e|ě|y|i|í|o|ou|ám|ům|ami|ách|ích|ů|é|á|ého|ému|ém|ým|ých|ej|om|och|ov|ím|ie|iu|ia"
_ROMANCE = "s|es|a|o|as|os|e"
_NORDIC = "s|en|et|er|ar|or|n|t|e|na|ne|ene|erna|arna|orna|erne"
# What a word may lose at its end, and what may then stand there. In the first group that is the case of a noun: the
# same answer; elsewhere number, gender or person.
_CASES: dict[str, tuple[str, str]] = {
    "ru": ("(?:[аяыи][яй]|[ое][ей]|[аяоеийьы])", _EAST),
    "uk": ("(?:ий|[аяоеиійьї])", _EAST),
    "bg": ("[аяоеий]", _EAST + "|ът|ят|та|то|те"),
    "mk": ("[аоеи]", _EAST + "|от|та|то|те"),
    "sr": ("[aeiou]", _SOUTH),
    "hr": ("[aeiou]", _SOUTH),
    "pl": ("[aeoyięą]", "a|u|owi|em|iem|ie|e|y|i|ę|ą|o|om|ami|ach|ów|ej|ego|emu|ym|im|ych|ich|ii|ię|ią"),
    "cs": ("[aeoyiěíýáé]", _CZECH),
    "sk": ("[aeoyiíýáé]", _CZECH),
    "el": ("(?:ασ|ησ|οσ|εσ|[αηοιε])", "α|ασ|αν|ησ|η|ην|ο|ου|οσ|ον|οι|ων|ουσ|ε|εσ|ι|ιου|ια|ιων"),
}
_FORMS: dict[str, tuple[str, str]] = _CASES | {
    "en": ("[ey]?", "s|es|d|ed|ing|ies|ied"),
    "fr": ("e?", "s|x|e|es|ent|ons|ez|er|é|ée|és|ées"),
    "es": ("[aeo]?", _ROMANCE + "|an|en"),
    "pt": ("[aeo]?", _ROMANCE + "|am|em"),
    "gl": ("[aeo]?", _ROMANCE),
    "ca": ("[aeo]?", _ROMANCE),
    "it": ("[aeio]", "a|e|i|o"),
    "ro": ("[aeăiu]?", "a|e|i|ă|u|ul|ului|le|lor|ii|ilor|ei|ele|elor|uri|urile|ea|ua"),
    "de": ("e?", "e|en|er|es|s|n|em|ern|te|ten|t|st"),
    "nl": ("e?", "s|en|e|n|t"),
    "sv": ("[ae]?", _NORDIC),
    "da": ("e?", _NORDIC),
    "no": ("e?", _NORDIC),
}


def _inflected(word: str, table: dict[str, tuple[str, str]], code: str) -> str | None:
    """A pattern for the forms of a word; None where it has none, or is too short to tell."""
    if code not in table or len(word) < 3 or not word.isalpha():
        return None
    lost, endings = table[code]
    stem = re.sub(f"{lost}$", "", word) if len(word) > 3 else word
    if len(stem) < 3:
        stem = word
    return rf"{re.escape(stem)}(?:{endings}|{re.escape(word[len(stem) :])})?"


def case_forms(word: str, code: str) -> str | None:
    """A pattern for a noun in any case; None in languages without, and for short words."""
    return _inflected(word, _CASES, code)


# e.g. other_forms("les labels indépendants.", "label", "fr") → ["labels"]
# e.g. other_forms("о новых законах", "закон", "ru") → ["законах"]
# e.g. other_forms("a category", "cat", "en") → []
def other_forms(folded: str, phrase: str, code: str) -> list[str]:
    """What in a folded text may be a form of a folded word or phrase."""
    patterns = [_inflected(word, _FORMS, code) or re.escape(word) for word in phrase.split()]
    return re.findall(rf"(?<!\w){'[ -]'.join(patterns)}(?!\w)", folded) if patterns else []
