"""Languages: code, names, script, direction, and how words are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from xlift.errors import DataError, nearest

WordCut = Literal["spaces", "characters"]


@dataclass(frozen=True)
class Language:
    """One language as xlift knows it.

    `code` is ISO 639-1 (639-3 where there is none), `script` ISO 15924, and `words` says whether words are
    separated by spaces or have to be counted by characters.
    """

    code: str
    name: str
    native_name: str
    script: str = "Latn"
    words: WordCut = "spaces"

    @property
    def right_to_left(self) -> bool:
        return self.script in {"Arab", "Hebr"}


_TABLE = [
    Language("en", "English", "English"),
    Language("fr", "French", "français"),
    Language("pt", "Portuguese", "português"),
    Language("ru", "Russian", "русский", "Cyrl"),
    Language("de", "German", "Deutsch"),
    Language("es", "Spanish", "español"),
    Language("it", "Italian", "italiano"),
    Language("nl", "Dutch", "Nederlands"),
    Language("tr", "Turkish", "Türkçe"),
    Language("ar", "Arabic", "العربية", "Arab"),
    Language("hi", "Hindi", "हिन्दी", "Deva"),
    Language("zh", "Chinese", "中文", "Hani", "characters"),
    Language("ja", "Japanese", "日本語", "Jpan", "characters"),
    Language("ko", "Korean", "한국어", "Kore"),
    Language("id", "Indonesian", "bahasa Indonesia"),
    Language("bg", "Bulgarian", "български", "Cyrl"),
    Language("bn", "Bengali", "বাংলা", "Beng"),
    Language("ca", "Catalan", "català"),
    Language("cs", "Czech", "čeština"),
    Language("da", "Danish", "dansk"),
    Language("el", "Greek", "ελληνικά", "Grek"),
    Language("fa", "Persian", "فارسی", "Arab"),
    Language("fi", "Finnish", "suomi"),
    Language("gl", "Galician", "galego"),
    Language("he", "Hebrew", "עברית", "Hebr"),
    Language("hr", "Croatian", "hrvatski"),
    Language("hu", "Hungarian", "magyar"),
    Language("mr", "Marathi", "मराठी", "Deva"),
    Language("ms", "Malay", "bahasa Melayu"),
    Language("no", "Norwegian", "norsk"),
    Language("pl", "Polish", "polski"),
    Language("ro", "Romanian", "română"),
    Language("sk", "Slovak", "slovenčina"),
    Language("sr", "Serbian", "српски", "Cyrl"),
    Language("sv", "Swedish", "svenska"),
    Language("sw", "Swahili", "Kiswahili"),
    Language("ta", "Tamil", "தமிழ்", "Taml"),
    Language("te", "Telugu", "తెలుగు", "Telu"),
    Language("th", "Thai", "ไทย", "Thai", "characters"),
    Language("uk", "Ukrainian", "українська", "Cyrl"),
    Language("ur", "Urdu", "اردو", "Arab"),
    Language("vi", "Vietnamese", "Tiếng Việt"),
]

LANGUAGES: dict[str, Language] = {language.code: language for language in _TABLE}


def base_code(code: str) -> str:
    """The bare language of a code with region or script: "pt-BR" → "pt", "zh_Hans" → "zh"."""
    return code.replace("_", "-").split("-")[0].lower()


def get_language(code: str) -> Language:
    """The language of `code` (region and script subtags allowed).

    Raises DataError, naming the nearest known code, if the language is unknown.
    """
    found = LANGUAGES.get(base_code(code))
    if found is None:
        raise DataError(f"unknown language code '{code}'; {nearest(code, LANGUAGES)}")
    return found
