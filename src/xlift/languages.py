"""Languages: one reading of every code and name that comes in; names, script, direction, and how words are cut.

Whatever names a language, in a study file, a record, an option or a file name, is read by `get_language`, and what
xlift writes and groups by is the `code` of what it returns: ISO 639-1 (639-3 where there is none), without the region,
and with the script only where it is not the one that the language is usually written in (sr-Latn, hi-Latn).
"""

from __future__ import annotations

import difflib
import importlib.util
import re
import unicodedata
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from xlift.errors import DataError

WordCut = Literal["spaces", "characters"]


@dataclass(frozen=True)
class Language:
    """One language.

    `code` is what xlift calls it, `script` ISO 15924, `region` ISO 3166 where one was given. `words` says whether words
    are separated by spaces or have to be counted by characters, and `rated` whether surface checks have what they
    need for it, lists of words first of all: without, it is a language all the same, and such ratings are missing.
    """

    code: str
    name: str
    native_name: str
    script: str = "Latn"
    words: WordCut = "spaces"
    region: str | None = None
    rated: bool = True

    @property
    def right_to_left(self) -> bool:
        return self.script in {"Arab", "Hebr", "Thaa", "Nkoo", "Syrc", "Adlm", "Rohg"}

    @property
    def tag(self) -> str:
        """The code with the region, where one was given: pt-BR."""
        return f"{self.code}-{self.region}" if self.region else self.code


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
    Language("am", "Amharic", "አማርኛ", "Ethi"),
    Language("cy", "Welsh", "Cymraeg"),
    Language("et", "Estonian", "eesti"),
    Language("fil", "Filipino", "Filipino"),
    Language("ga", "Irish", "Gaeilge"),
    Language("gu", "Gujarati", "ગુજરાતી", "Gujr"),
    Language("hy", "Armenian", "հայերեն", "Armn"),
    Language("is", "Icelandic", "íslenska"),
    Language("ka", "Georgian", "ქართული", "Geor"),
    Language("km", "Khmer", "ខ្មែរ", "Khmr", "characters"),
    Language("kn", "Kannada", "ಕನ್ನಡ", "Knda"),
    Language("lo", "Lao", "ລາວ", "Laoo", "characters"),
    Language("lt", "Lithuanian", "lietuvių"),
    Language("lv", "Latvian", "latviešu"),
    Language("mk", "Macedonian", "македонски", "Cyrl"),
    Language("ml", "Malayalam", "മലയാളം", "Mlym"),
    Language("my", "Burmese", "မြန်မာ", "Mymr", "characters"),
    Language("pa", "Punjabi", "ਪੰਜਾਬੀ", "Guru"),
    Language("si", "Sinhala", "සිංහල", "Sinh"),
    Language("sl", "Slovenian", "slovenščina"),
    Language("sq", "Albanian", "shqip"),
]

LANGUAGES: dict[str, Language] = {language.code: language for language in _TABLE}
"""The languages that surface checks rate."""

# Names alone: these languages can be tuned on and asked in.
_OTHERS = """
af Afrikaans Afrikaans|az Azerbaijani azərbaycan|be Belarusian беларуская|bs Bosnian bosanski|eo Esperanto esperanto
eu Basque euskara|ha Hausa Hausa|ig Igbo Igbo|jv Javanese Jawa|kk Kazakh қазақ|ku Kurdish Kurdî|ky Kyrgyz кыргызча
la Latin Latina|lb Luxembourgish Lëtzebuergesch|mg Malagasy Malagasy|mi Maori Māori|mn Mongolian монгол
mt Maltese Malti|ne Nepali नेपाली|ps Pashto پښتو|rw Kinyarwanda Ikinyarwanda|sd Sindhi سنڌي|sn Shona chiShona
so Somali Soomaali|su Sundanese Sunda|tg Tajik тоҷикӣ|tk Turkmen türkmen|tt Tatar татар|ug Uyghur ئۇيغۇرچە
uz Uzbek oʻzbek|xh Xhosa isiXhosa|yi Yiddish ייִדיש|yo Yoruba Yorùbá|yue Cantonese 粵語|zu Zulu isiZulu
as Assamese অসমীয়া|or Odia ଓଡ଼ିଆ|sa Sanskrit संस्कृतम्|mai Maithili मैथिली|bho Bhojpuri भोजपुरी|ks Kashmiri कॉशुर
ceb Cebuano Cebuano|ilo Ilocano Ilokano|war Waray Winaray|ht Haitian_Creole Kreyòl_ayisyen|ny Nyanja Chinyanja
st Southern_Sotho Sesotho|nso Northern_Sotho Sepedi|tn Tswana Setswana|ss Swati siSwati|ts Tsonga Xitsonga
om Oromo Oromoo|ti Tigrinya ትግርኛ|wo Wolof Wolof|ln Lingala Lingála|lg Ganda Luganda|ak Twi Akan|ee Ewe Eʋegbe
bm Bambara Bamanankan|ff Fulah Fulfulde|rn Rundi Kirundi|bem Bemba IciBemba|gn Guarani Avañeʼẽ|qu Quechua Runasimi
ay Aymara Aymar|bo Tibetan བོད་སྐད།|fy Frisian Frysk|fo Faroese føroyskt|gd Scottish_Gaelic Gàidhlig|br Breton brezhoneg
oc Occitan occitan|ast Asturian asturianu|co Corsican corsu|sc Sardinian sardu|scn Sicilian sicilianu
ckb Central_Kurdish سۆرانی|azb South_Azerbaijani تۆرکجه|gsw Swiss_German Schwiizertüütsch|nds Low_German Plattdüütsch
arz Egyptian_Arabic مصرى|ary Moroccan_Arabic الدارجة|apc Levantine_Arabic شامي|acm Iraqi_Arabic عراقي
pcm Nigerian_Pidgin Naijá|tpi Tok_Pisin Tok_Pisin|haw Hawaiian ʻŌlelo_Hawaiʻi|sm Samoan Sāmoa|wuu Wu_Chinese 吴语
"""
# Other names, and varieties as lists of languages name them: Iranian Persian, Northern Uzbek.
_ALIASES = """
zh: mandarin, mandarin chinese, 汉语, 漢語, 普通话, 国语, 华语
zh-Hans: simplified chinese, 简体中文, 简体, 中文简体, 中文 (简体)
zh-Hant: traditional chinese, 繁體中文, 繁体中文, 正體中文, 中文繁體, 中文 (繁體); yue: 粤语, 广东话, 廣東話
fa: farsi, iranian persian; fa-AF: dari; es: castilian, castellano; es-419: latin american spanish
es-MX: mexican spanish; es-ES: european spanish; ar: standard arabic, modern standard arabic; en-GB: british english
en-US: american english; en-AU: australian english; fr-CA: canadian french; de-AT: austrian german
fil: tagalog, pilipino; no: bokmal, norsk bokmal, norwegian bokmal, nynorsk, norsk nynorsk, norwegian nynorsk
pt-BR: brazilian portuguese; pt-PT: european portuguese; el: modern greek; ca: valencian; sh: serbo-croatian
ro: moldavian; nl-BE: flemish; sl: slovene; bn: bangla; pa: panjabi; si: sinhalese; my: myanmar; or: oriya
ckb: sorani; ku: kurmanji, northern kurdish; ny: chichewa; st: sesotho; lg: luganda; ht: haitian; ga: irish gaelic
gd: scots gaelic; uz: northern uzbek; ms: standard malay; lv: standard latvian; et: standard estonian
bo: standard tibetan; mg: plateau malagasy; mn: halh mongolian; sq: tosk albanian; az: north azerbaijani
km: central khmer; yi: eastern yiddish; ps: southern pashto, northern pashto; om: west central oromo
fy: western frisian
"""
_VARIETY = re.compile(r"(?P<base>[^(]+?) ?(?:\((?P<inside>.*)\)|(?<= )(?P<script>latin|cyrillic))")
_AROUND_NAME = re.compile(
    r"\A__label__|\.utf-?8\Z|@\w+\Z| (?:language|язык|мова|език|jezik|język|jazyk)\Z", re.IGNORECASE
)
_STANDS_FOR = {"Hani": ("Hani", "Hans", "Hant"), "Jpan": ("Jpan", "Hira", "Kana", "Hrkt"), "Kore": ("Kore", "Hang")}
_UNSPACED = {"Hani", "Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt"}
_SCRIPT_NAMES = {"Latn": "Latin", "Cyrl": "Cyrillic", "Arab": "Arabic", "Deva": "Devanagari", "Grek": "Greek"}
_WHOLE = {"nb": "no", "nn": "no"}
# Undetermined, several, none, private use; and Allar, whose code is the name of the mean over languages.
_NO_LANGUAGE = re.compile(r"und|mul|mis|zxx|all|q[a-t][a-z]")
_LONGEST = 80


# e.g. get_language("pt-BR").tag → "pt-BR"
# e.g. get_language("Brazilian Portuguese").tag → "pt-BR"
def get_language(text: Any) -> Language:
    """The language that a code or a name stands for.

    Read are ISO 639 codes of two and three letters, with script and region, replaced codes (iw, sh), members that stand
    for the whole (cmn, nb), and the names of the languages above, English or their own.

    Raises DataError, naming the nearest, where it is no language.
    """
    found = find_language(text)
    if found is None:
        raise DataError(language_problem(text))
    return found


# e.g. [language_name(code) for code in ("fr", "all")] → ["French", "all"]
def language_name(code: str) -> str:
    """The English name of a language; "all" stays."""
    return "all" if code == "all" else get_language(code).name


def find_language(text: Any) -> Language | None:
    """The same, but None where it is no language."""
    return _read(text) if isinstance(text, str) and len(text) <= _LONGEST else None


def language_code(text: Any) -> str:
    """The code by which xlift knows a language; raises DataError where it is none."""
    return get_language(text).code


# e.g. language_codes("fr, Portuguese,fr") → ["fr", "pt"]
def language_codes(text: str) -> list[str]:
    """The codes of languages that are separated by commas, each once. Raises DataError with all that are none."""
    told = [one.strip() for one in text.split(",") if one.strip()]
    problems = [language_problem(one) for one in told if find_language(one) is None]
    if problems or not told:
        raise DataError(problems or "no language is named", "codes or names, separated by commas: fr,pt,ru")
    return list(dict.fromkeys(map(language_code, told)))


# e.g. [known_code(text) for text in ("iw", "cmn", "nb", "French", "klingon")] → ["he", "zh", "no", "fr", ""]
def known_code(text: Any) -> str:
    """The same, but "" where it is no language."""
    found = find_language(text)
    return found.code if found else ""


def language_problem(text: Any) -> str:
    """What to say of what is no language."""
    if isinstance(text, bool):
        return "unknown language: YAML reads a bare no as false; for Norwegian write 'no', in quotes"
    if not isinstance(text, str):
        return f"unknown language: expected a code or a name, found {text!r:.60}"
    if _NO_LANGUAGE.fullmatch(text.strip().lower()):
        return f"'{text}' names no single language; leave it out, or say which, for instance fr, pt-BR, Hindi"
    meant = _meant(text[:_LONGEST])
    return (
        f"unknown language '{text:.60}'; {meant}choices: ISO 639 codes and English names, for instance fr, pt-BR, Hindi"
    )


# e.g. rated_language("sr-Latn") → ("sr-Latn", "no word lists of Serbian (Latin) (sr-Latn)")
def rated_language(text: Any) -> tuple[str, str | None]:
    """The code of a language, and the reason why surface checks cannot rate it, where they cannot."""
    found = find_language(text)
    if found is None:
        return "", f"unknown language '{text!s:.60}'"
    return found.code, None if found.rated else f"no word lists of {found.name} ({found.code})"


@lru_cache(maxsize=4_096)
def _read(text: str) -> Language | None:
    if text in LANGUAGES:
        return LANGUAGES[text]
    import langcodes

    text = _AROUND_NAME.sub("", text.strip())
    tag = _tag_of_name(_folded(text)) or text
    try:
        found = langcodes.Language.get(langcodes.standardize_tag(tag, macro=True))
    except ValueError:  # of every kind that langcodes raises for what is no tag
        return None
    base = _WHOLE.get(found.language or "", found.language or "")
    if not re.fullmatch("[a-z]{2,3}", base) or _NO_LANGUAGE.fullmatch(base) or not found.is_valid():
        return None
    own = LANGUAGES.get(base) or _unrated(base)
    script = found.maximize().script or own.script
    if script in _STANDS_FOR.get(own.script, (own.script,)):
        return replace(own, region=found.territory)
    return Language(
        f"{base}-{script}",
        f"{own.name} ({_SCRIPT_NAMES.get(script, script)})",
        own.native_name,
        script,
        _cut(script),
        found.territory,
        rated=False,
    )


# e.g. list(map(_tag_of_name, ("serbian (latin)", "chinese (cantonese)", "french (fr)"))) → ["sr-Latn", "yue", "fr"]
def _tag_of_name(name: str) -> str | None:
    """The tag of a folded name, behind which a script or a variety may stand; None where it is none."""
    tags, told = _tags_of_names(), _VARIETY.fullmatch(name)
    if name in tags or not told:
        return tags.get(name)
    base, inside = told["base"], told["inside"] or told["script"] or ""
    script = next((code for code, script in _SCRIPT_NAMES.items() if script.lower() == inside), None)
    if script:
        return f"{tags[base]}-{script}" if base in tags else None
    return next((tags[one] for one in (inside, f"{inside} {base}", base) if one in tags), None)


def _unrated(base: str) -> Language:
    import langcodes

    tag = langcodes.Language.get(base)
    names = _other_names().get(base, (base, base))
    # This package holds the names of all languages; langcodes prints advice where it is not there.
    if names == (base, base) and importlib.util.find_spec("language_data"):
        names = tag.display_name(), tag.autonym()
    script = tag.maximize().script or "Latn"
    return Language(base, *names, script, _cut(script), rated=False)


def _cut(script: str) -> WordCut:
    return "characters" if script in _UNSPACED else "spaces"


@lru_cache(maxsize=1)
def _other_names() -> dict[str, tuple[str, str]]:
    rows = [row.split(" ") for row in _OTHERS.replace("\n", "|").split("|") if row]
    return {code: (name.replace("_", " "), native.replace("_", " ")) for code, name, native in rows}


@lru_cache(maxsize=1)
def _tags_of_names() -> dict[str, str]:
    named = [(one.code, name) for one in LANGUAGES.values() for name in (one.name, one.native_name)]
    named += [(code, name) for code, names in _other_names().items() for name in names]
    rows = [row.split(": ") for row in _ALIASES.strip().replace("\n", "; ").split("; ")]
    named += [(code, name) for code, names in rows for name in names.split(", ")]
    return {_folded(name): code for code, name in named}


# e.g. _folded("  Français ") → "francais"
def _folded(text: str) -> str:
    """For comparing names: small letters, without accents, spaces evened out."""
    return without_accents(unicodedata.normalize("NFKC", " ".join(text.split()).casefold()))


# e.g. without_accents("árbol") → "arbol"
def without_accents(text: str) -> str:
    """The text, decomposed (NFD), without what combines with a letter."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


# e.g. _meant("jp") → "did you mean 'ja' (Japanese)? "
# e.g. _meant("Frensh") → "did you mean 'fr' (French)? "
def _meant(text: str) -> str:
    import langcodes

    country = re.fullmatch("[A-Za-z]{2}", text.strip())
    spoken = _read(langcodes.Language.get(f"und-{country[0]}").maximize().language or "") if country else None
    if spoken is None or spoken.code == "en":  # English stands for countries that langcodes does not know
        names = _tags_of_names()
        close = difflib.get_close_matches(_folded(text), names, n=1, cutoff=0.6)
        spoken = _read(names[close[0]]) if close else None
    return f"did you mean '{spoken.code}' ({spoken.name})? " if spoken else ""
