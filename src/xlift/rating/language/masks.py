"""What of a text the language rater looks at: letters by script, with what no reader would blame blanked out.

`mask` blanks code, links, formulas, acronyms and JSON keys. Offsets never change.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from xlift.languages import get_language
from xlift.rating.text import FENCE, fenced


def _class(points: Iterable[int]) -> str:
    """The body of a character class that holds the given code points."""
    parts: list[str] = []
    for _, group in itertools.groupby(enumerate(points), key=lambda pair: pair[1] - pair[0]):
        run = [point for _, point in group]
        parts.append(re.escape(chr(run[0])) + (f"-{re.escape(chr(run[-1]))}" if len(run) > 1 else ""))
    return "".join(parts)


# Letters and marks of the basic plane; beyond it whole blocks, since many single ranges make a class slow.
_POINTS = [point for point in range(0x10000) if unicodedata.category(chr(point))[0] in "LM"]
_RARE, _RARE_HAN = "\U00010000-\U0001cfff", "\U00020000-\U000323af"
LETTERS = _class(_POINTS) + _RARE + _RARE_HAN
WORD = re.compile(f"[{LETTERS}]+")

_SCRIPTS = (
    ("Latn", 0x0041, 0x024F), ("Latn", 0x0250, 0x02BA), ("Grek", 0x0370, 0x03FF), ("Cyrl", 0x0400, 0x052F),
    ("Armn", 0x0530, 0x058F), ("Hebr", 0x0590, 0x05FF), ("Arab", 0x0600, 0x06FF), ("Arab", 0x08A0, 0x08FF),
    ("Deva", 0x0900, 0x097F), ("Beng", 0x0980, 0x09FF), ("Guru", 0x0A00, 0x0A7F), ("Gujr", 0x0A80, 0x0AFF),
    ("Taml", 0x0B80, 0x0BFF), ("Telu", 0x0C00, 0x0C7F), ("Knda", 0x0C80, 0x0CFF), ("Mlym", 0x0D00, 0x0D7F),
    ("Sinh", 0x0D80, 0x0DFF), ("Laoo", 0x0E80, 0x0EFF), ("Tibt", 0x0F00, 0x0FFF), ("Mymr", 0x1000, 0x109F),
    ("Ethi", 0x1200, 0x139F), ("Khmr", 0x1780, 0x17FF), ("Orya", 0x0B00, 0x0B7F), ("Mong", 0x1800, 0x18AF),
    ("Geor", 0x1C90, 0x1CBF), ("Thaa", 0x0780, 0x07BF), ("Syrc", 0x0700, 0x074F), ("Arab", 0x0750, 0x077F),
    ("Thai", 0x0E00, 0x0E7F), ("Geor", 0x10A0, 0x10FF), ("Hang", 0x1100, 0x11FF), ("Latn", 0x1E00, 0x1EFF),
    ("Grek", 0x1F00, 0x1FFF), ("Hani", 0x3005, 0x3007), ("Kana", 0x3041, 0x30FF), ("Hang", 0x3130, 0x318F),
    ("Kana", 0x31F0, 0x31FF), ("Hani", 0x3400, 0x9FFF), ("Hang", 0xA960, 0xA97F), ("Hang", 0xAC00, 0xD7FF),
    ("Hani", 0xF900, 0xFAFF), ("Arab", 0xFB50, 0xFDFF), ("Arab", 0xFE70, 0xFEFE), ("Latn", 0xFF21, 0xFF5A),
    ("Kana", 0xFF66, 0xFF9F), ("Hani", 0x20000, 0x323AF), ("Latn", 0x1D00, 0x1DBF), ("Latn", 0x2C60, 0x2C7F),
    ("Latn", 0xA720, 0xA7FF), ("Latn", 0xFB00, 0xFB06), ("Hebr", 0xFB1D, 0xFB4F), ("Cyrl", 0xA640, 0xA69F),
    ("Latn", 0x02BD, 0x02FF),
)  # fmt: skip
APOSTROPHES = "\u02bb\u02bc"
"""Letters of any script that are written as an apostrophe is."""
_WRITTEN_IN = {"Jpan": {"Hani", "Kana"}, "Kore": {"Hang"}}


# e.g. script("я") → "Cyrl"
# e.g. script("7") → ""
@lru_cache(maxsize=70_000)
def script(character: str) -> str:
    """ISO 15924 code of a letter's script; "" for marks and for scripts that xlift does not tell apart."""
    if not character.isalpha() or character in APOSTROPHES:
        return ""
    point = ord(character)
    return next((name for name, first, last in _SCRIPTS if first <= point <= last), "Zyyy")


@lru_cache(maxsize=128)
def scripts_of(code: str) -> frozenset[str]:
    """Scripts in which the words of a language are written."""
    name = get_language(code).script
    return frozenset(_WRITTEN_IN.get(name, {name}))


# An entry of a bibliography.
# e.g. de: "Mehr dazu steht in einem Buch:\nSmith, J. (2019). The Effects of Sleep on Memory. Springer." → 2
_REFERENCE = re.compile(
    r"\b[A-Z][\w'’-]{1,40}, (?:[A-Z]\.[ -]?){1,4}[^\n()]{0,200}\((?:19|20)\d\d[a-z]?\)\.[^\n]{1,400}"
)
# What spans several words, by a sign that must be there for it to be looked for.
_STRETCHES = {
    "`": re.compile(r"`[^`\n]{1,400}`"),
    "<": re.compile(
        r"<(?:start_of_turn|\|im_start\||\|start_header_id\|)>\s?(?:user|model|system|tool|assistant)\b"
        r"|<(?P<code>code|pre|script|style|tool_calls?|tool_response|function_calls?)\b[^<>]{0,200}>"
        r"(?:[^<]|<(?!/(?P=code)>)){0,20000}</(?P=code)>"
        r"|</?[A-Za-z!][^<>\n]{0,200}>"
    ),
    **dict.fromkeys(("(19", "(20"), _REFERENCE),
    "$": re.compile(r"\$\$[^$]{1,400}\$\$|\$[^$\n]{1,400}\$"),
    "\\": re.compile(r"\\\([^\n]{1,400}?\\\)|\\\[.{1,400}?\\\]|\\[A-Za-z]+(?:\{[^{}\n]{0,100}\})*", re.DOTALL),
    "{": re.compile(r"\{[:%#][A-Za-z_][\w.]{0,40}\}"),  # places for what a program puts there
    "ˈ": re.compile(r"[^\s/\[\]()]{0,40}ˈ[^\s/\[\]()]{0,40}"),  # pronunciation
    **{sign: re.compile(rf"(?<![\w/])/?{sign}\w{{2,30}}") for sign in ("r/", "u/")},  # forums and who writes there
    # JSON keys, literals and what stands for them
    '"': re.compile(
        r"(?<=\")[^\"\n]{1,40}(?=\"\s{0,4}:)|(?<=[:,\[\s])(?:true|false|null)(?=\s{0,9}[,}\]\n])"
        r"|(?:(?<=:\")|(?<=: \"))(?:(?:in)?active|pending|success|error|failed|done|open|closed|(?:en|dis)abled|admin"
        r"|user|positive|negative|neutral|high|medium|low|none|unknown|string|number|integer|boolean|object|array)(?=\")"
    ),
}
_WORDS_IN_CHUNK = (
    r"(?=[A-Za-z\d])(?:"
    r"\b[A-Za-z0-9]{0,64}[A-Za-z]_[A-Za-z0-9_]+|[A-Za-z]{0,64}\d[A-Za-z0-9]*"  # identifiers, words with digits
    r"|(?<![A-Za-z\d])(?:[a-z]+|[A-Z][a-z]+)[A-Z][A-Za-z\u00c0-\u024f\d]*"  # camel case, as in وmacOS, とiMacの
    r"|\b[IVXLCDM]+\b|\b[A-Z]{2,6}s?\b"  # Roman numerals, acronyms
    r")"
)
_IN_CHUNK = re.compile(_WORDS_IN_CHUNK)
# What must be in a chunk for any of it to be masked, by its first sign, which makes the search fast.
_ODD = re.compile(
    r"[\d_@#＠＃&:.A-Z](?:(?<=[\d_@#＠＃&])|(?<=:)[/\\]|(?<=\.)\w|(?<=www\.)\S"
    r"|(?<=[A-Z])[A-Z]|(?<=[a-z][A-Z])|(?<=\b[IVXLCDM])\b)"
)
_ADDRESS_SIGNS = re.compile(r"[@#＠＃&.:]")
_MARKS = "\u0300-\u036f\u0900-\u0963\u0966-\u0dff"  # which Python's \\w leaves out
# A name up to letters of another script.
_NICK = r"[A-Za-z\u00c0-\u024f\d_](?:[A-Za-z\u00c0-\u024f\d_.-]*[A-Za-z\u00c0-\u024f\d_])?"
# e.g. zh: "感谢@happytraveler分享的照片！#sunset#ocean" → 2
# e.g. ru: "Чудесный вечер у моря с друзьями! #sunset #bestfriends" → 2
# e.g. fr: "Merci à @the.weather_girl pour la photo de la plage." → 2
_IN_ADDRESS = re.compile(
    r"(?:https?:\\?/\\?/|www\.)\S+|[\w.+-]{1,64}@[\w-]{1,64}\.\w+"  # addresses
    r"|\b[\w-]{1,64}(?:\.[\w-]{1,64}){0,8}\.(?:com|org|net|io|edu|gov|html?|py|js|pdf|jpg|png|csv|txt)\b\S*"
    r"|(?<=\w)\.(?:tsv|csv|txt|pdf|docx?|xlsx?|pptx?|json|xml|html?|jpe?g|png|gif|mp[34]|zip)(?![A-Za-z])"  # of files
    rf"|&\w{{1,10}};|(?:\b\w{{1,64}}|(?<!\w))(?:[@#＠＃](?:{_NICK}|[\w{_MARKS}.-]*[\w{_MARKS}]))+"  # handles
    rf"|{_WORDS_IN_CHUNK}"
)
_FUNCTION = re.compile(r"[A-Za-z_][\w.]{0,60}\(\)")
_ROLE = re.compile(r"(?<![A-Za-z ])assistant(?=\s|\Z)")
_CODE_SIGNS = re.compile(r"[;{}()=<>$\[\]]|^[ \t]*(?:import|def|const|let|var|return|print)\b", re.MULTILINE)
# Lines of code outside fences: commands of a shell, queries, statements. Letters beyond ASCII stand in quotes alone.
_COMMANDS = frozenset(
    "git npm npx yarn pnpm pip pip3 python python3 conda brew apt apt-get yum dnf pacman docker docker-compose kubectl "
    "helm curl wget ssh scp tar unzip mkdir cd ls cp mv rm chmod chown grep systemctl cargo rustup mvn cmake adb "
    "ffmpeg composer php dotnet terraform gcloud psql mysql virtualenv poetry pytest uv sudo $ % >>>".split()
)
_KEYWORDS = frozenset(
    "for while if elif with async except def class try try: else else: import from return #include export alias".split()
)
_BEGIN_CODE = _COMMANDS | _KEYWORDS
_COMMAND = re.compile(r"\s*(?:(?:[$%]|>>>) [ -~]+|(?:sudo )?\S+ [!-~][ -~]*(?<![.?!,;:]))\s*")
_STATEMENT = re.compile(
    r"\s*(?:(?:from [\w.]+ )?import [\w.{}*, ]+(?: from ['\"][^'\"]+['\"])?(?: as \w+)?;?|#include ?[<\"]\S+"
    r"|(?:for \w+(?:, \w+)* in|(?:while|if|elif|with|async)(?=[^'\"]{0,99}[()<>=\[])|except|def|class|try|else)\b"
    r"[^\n]*:|(?:export|alias) \w+=\S[^\n]*|return\b(?:[^.!?]*;| \w+|[^.!?]*[+\"(\[][^!?]*))\s*"
)
# What a program says that failed.
_TRACE = re.compile(
    r"\s*(?:Traceback \(most recent call last\):|File \"[^\"]{1,200}\", line \d+(?:, in \S+)?|at [\w.$<>/]+\([\w.:]*\)"
    r"|[A-Z][\w.]*(?:Error|Exception|Warning): .{0,300})\s*"
)
# Prose that names a function: it ends as a sentence does, with words in a row before.
_SENTENCE_WITH_CODE = re.compile(r"(?!\s*(?:#|//))[^#\n]*[A-Za-z]{2,} [a-z]{2,} [a-z]{2,}[^#\n]*[a-z)][.!?]\s*")
_SIGN_OF_CODE = re.compile(
    r"[A-Za-z_]\((?:\)|[^()]{0,80}[=,.'\"\[(])|[A-Za-z_\])] (?:[-+*/]|[=!<>:])?= ?\S|=>|->|\w::\w|[\w)] ?\{\s*\Z"
    r"|\);\s*\Z"
)
_CODE_TEXT = re.compile(r"""(?:[^"'\x80-\U0010ffff]|"[^"]{0,300}"|'[^']{0,300}')*""")
LONGEST_CODE = 400
_QUERY = re.compile(
    r"\b(?:SELECT\b[^\n;]{1,300}?\s*\bFROM|INSERT INTO|UPDATE \w+\s+SET|DELETE FROM"
    r"|(?:CREATE|ALTER|DROP) (?:TABLE|VIEW|INDEX))\b[ -:<-~]*"
    r"(?:\n[ \t]*(?:FROM|WHERE|AND|OR|ON|SET|VALUES|GROUP BY|ORDER BY|HAVING|LIMIT|UNION|(?:[A-Z]{4,5} )?JOIN)\b"
    r"[ -:<-~]*){0,20};?"
)
PROSE_FENCES = {"", "json", "jsonc", "json5", "text", "txt", "markdown", "md", "plaintext", "plain"}


# Capitals that begin a word, in this order: the search then looks at capitals alone, which makes it fast.
_SHOUTED = re.compile(r"[A-Z][A-Z](?<=\b..)[A-Z]*(?: (?:[A-Z]{2,}|[AI]\b)){2,}")
_SHOUTED_SIGN = re.compile(r"\b(?:A|AND|FOR|HOW|IN|IS|OF|ON|THE|TO|WITH|YOUR)\b|[A-Z]{7}")


# e.g. vi: "Tiêu đề: BENEFITS OF REGULAR EXERCISE\n\nTập thể dục rất tốt cho sức khỏe của mọi người." → 1
def unshouted(text: str) -> str:
    """The text with headings in capitals in lower case, so that their words are no acronyms; offsets stay."""
    return _SHOUTED.sub(lambda found: found[0].lower() if _SHOUTED_SIGN.search(found[0]) else found[0], text)


# e.g. fr: "Le fichier est rangé dans `read_all_the_lines` par la fonction." → 2
# e.g. fr: "Photo de u/space_lover publiée sur r/space hier soir." → 2
# e.g. mask("de l'ADN") → "de l'   "
def mask(text: str) -> str:
    """The text with blameless parts as spaces; offsets stay."""
    if fenced(text):
        outside = FENCE.sub(_fence, text)
        text = outside if WORD.search(outside) else FENCE.sub(_page, text)
    for sign, pattern in _STRETCHES.items():
        if sign in text:
            text = pattern.sub(_blank, text)
    text = _without_statements(text)
    if "()" in text:
        text = _FUNCTION.sub(_blank, text)
    if "assistant" in text:
        text = _ROLE.sub(_blank, text)  # a role that leaked from the chat format
    pieces, position = [], 0
    while odd := _ODD.search(text, position):
        start = max(position, text.rfind(" ", position, odd.start()) + 1)
        end = text.find(" ", odd.start())
        end = len(text) if end < 0 else end
        pieces += [text[position:start], _chunks[text[start:end]]]
        position = end
    return "".join([*pieces, text[position:]]) if pieces else text


# e.g. tr: "Önce paketi kurun:\n\n$ sudo apt-get install python3-pip\n$ pip install numpy\n\nSonra başlatın." → 2
# e.g. pl: "Uruchom to zapytanie:\n\nSELECT name FROM users WHERE age > 30 ORDER BY name;\n\nZwróci ono nazwiska." → 2
# e.g. ru: "Напишите так:\n\nfor item in items:\n    print(item)\n\nПрограмма выведет весь список." → 2
def _without_statements(text: str) -> str:
    """The text without lines of code."""
    if "FROM" in text or "TABLE" in text or "INTO" in text or "SET" in text:
        text = _QUERY.sub(_blank, text)
    text = _SETTINGS.sub(_without_settings, text) if ":\n " in text else text
    signs = "(" in text or "=" in text or "{" in text or ";" in text or "->" in text or "::" in text
    if not signs and "Error: " not in text and _BEGIN_CODE.isdisjoint(text.split()):
        return text
    lines = text.split("\n")
    code = [i for i, line in enumerate(lines) if line and len(line) < LONGEST_CODE and _is_statement(line)]
    beside = {j for i in code for j in (i - 1, i + 1)} - set(code)
    code += [i for i in beside if 0 <= i < len(lines) and _COMMENT.match(lines[i])]
    for i in code:
        lines[i] = " " * len(lines[i])
    return "\n".join(lines) if code else text


# Lines of settings as in YAML: a key in small letters, and what belongs to it indented below.
_SETTING = r"[ \t]*(?:- )?[a-z_][\w./-]{0,40}:(?: [ -~]{1,80})?\n|[ \t]*- [!-~]{1,80}\n"
_SETTINGS = re.compile(
    rf"^(?=(?:{_SETTING}){{0,40}}?[ \t]*(?:- )?[a-z_][\w./-]{{0,40}}:\n {{1,8}}\S)(?:{_SETTING}){{3,400}}", re.MULTILINE
)
_SETTING_SAID = re.compile(r"(?<=: )[^\s\"'\[]+(?: [^\s]+){2,}$", re.MULTILINE)
_TECHNICAL = re.compile(
    r"[: -][ \n]{0,9}(?:\d+|true|false|null|\S*\w[:/_@.=-]\w\S*|\S*[\"'*$]\S*)$|^[ \t]*\w+[_-]\w+:", re.MULTILINE
)


# e.g. de: "So geht es:\n\nweb:\n  image: nginx\n  ports:\n    - 80:80\n\nDanach startet der Dienst von selbst." → 2
# e.g. de: "zutaten:\n  - flour\n  - sugar\n  - butter and a lot of milk for the children\n" → 0
def _without_settings(found: re.Match[str]) -> str:
    """Settings without what a program reads: all but values of several words, where some are technical."""
    if not _TECHNICAL.search(found[0]):
        return found[0]
    said = [value.span() for value in _SETTING_SAID.finditer(found[0])]
    return "".join(c if c == "\n" or any(a <= i < b for a, b in said) else " " for i, c in enumerate(found[0]))


# e.g. de: "So geht es:\n\n    total = add(1, 2)\n    # add the two numbers together\n\nDas ist die Summe." → 2
_COMMENT = re.compile(r"(?:[ \t]+#|[ \t]*//) ")


# e.g. _is_statement('  File "main.py", line 3, in <module>') → True
# e.g. _is_statement("git clone https://example.org/repo.git") → True
# e.g. _is_statement("console.log('Grüße');") → True
# e.g. _is_statement("if you like it: go home") → False
# e.g. _is_statement("Usa la funzione print() per mostrare il testo.") → False
def _is_statement(line: str) -> bool:
    first = line.split(None, 1)[:1]
    if first and first[0] in _COMMANDS:
        return _COMMAND.fullmatch(line) is not None
    if (first and first[0] in _KEYWORDS and _STATEMENT.fullmatch(line)) or _TRACE.fullmatch(line):
        return True
    signs = "(" in line or "=" in line or "{" in line or ";" in line or "->" in line or "::" in line
    code = signs and _SIGN_OF_CODE.search(line) is not None and _CODE_TEXT.fullmatch(line) is not None
    return code and not _SENTENCE_WITH_CODE.fullmatch(line)


# e.g. tr: "```\n$ git status\nOn branch main\nnothing to commit\n```\nBu çıktı her şeyin temiz olduğunu gösterir." → 2
# e.g. ru: "```json\n{\"город\": \"Москва\", \"дождь\": false}\n```" → 2
# e.g. fr: "~~~\nlet total = prices.reduce((a, b) => a + b);\n~~~\nCe code calcule le prix total." → 2
def _fence(found: re.Match[str]) -> str:
    """A fence without code, or, of what people read, without the name of its format."""
    if _is_code(found["tag"], found["inside"]):
        return _blank(found)
    head = found.start("inside") - found.start()
    return " " * head + found[0][head:]


# e.g. fr: "```html\n<html><body><h1>Our shop</h1><p>We sell fresh flowers every day.</p></body></html>\n```" → 0
# e.g. fr: "```html\n<html><body><h1>Notre magasin</h1><p>Nous vendons des fleurs.</p></body></html>\n```" → 2
def _page(found: re.Match[str]) -> str:
    """The same where the fence is all that there is: of a page, people read what stands between its tags."""
    if found["tag"].strip().lower() not in {"html", "xml", "svg"}:
        return _fence(found)
    head = found.start("inside") - found.start()
    return " " * head + found[0][head:]


def _blank(found: re.Match[str]) -> str:
    return " " * len(found[0])


class _Chunks(dict[str, str]):
    """What stands between two spaces, with what is no word blanked out; short ones are remembered."""

    REMEMBERED, LONGEST = 100_000, 32

    def __missing__(self, chunk: str) -> str:
        masked = (_IN_ADDRESS if _ADDRESS_SIGNS.search(chunk) else _IN_CHUNK).sub(_blank, chunk)
        if len(chunk) < self.LONGEST:
            if len(self) >= self.REMEMBERED:
                self.clear()
            self[chunk] = masked
        return masked


_chunks = _Chunks()


def blank_out(text: str, stretches: list[tuple[int, int]]) -> str:
    """The text with stretches as spaces; offsets stay."""
    pieces, position = [], 0
    for start, end in sorted(stretches):
        if end > position:
            start = max(start, position)
            pieces += [text[position:start], " " * (end - start)]
            position = end
    return "".join([*pieces, text[position:]])


# e.g. _is_code("python", "") → True
# e.g. _is_code("", "bonjour à tous") → False
# e.g. _is_code("", "$ git status\nnothing to commit") → True
def _is_code(tag: str, inside: str) -> bool:
    """Whether a fenced block is code; prose in a fence, and the values of JSON, are read by people."""
    if (tag.lower().split() or [""])[0] not in PROSE_FENCES:
        return True
    if inside.lstrip()[:1] in {"{", "["}:
        return False
    if re.match(r"\s*(?:\$|>>>|PS [A-Z]:\S*>) \S", inside) and "\n\n" not in inside.strip():
        return True  # a prompt, and what a program printed
    return len(_CODE_SIGNS.findall(inside)) > 0.02 * len(inside)


_LATIN_1 = [chr(i) for i in range(256)]
_TO_WORDS = bytes(ord(c.lower()) if WORD.match(c) else ord(" ") for c in _LATIN_1)


# e.g. words_of("L'Été, 12 jours", "fr") → ["l", "été", "jours"]
# e.g. words_of("Дом у реки", "ru") → ["дом", "у", "реки"]
def words_of(text: str, code: str) -> list[str]:
    """The words of a text in lower case: runs of letters and marks."""
    return _lower_words(text, code)[1]


def _lower_words(text: str, code: str) -> tuple[str, list[str]]:
    """A text in lower case, whose offsets are the same, and its words."""
    if code != "tr":
        try:  # by a table of bytes, which is twice as fast
            lower = text.encode("latin-1").translate(_TO_WORDS).decode("latin-1")
            return lower, lower.split()
        except UnicodeEncodeError:
            pass
    lower = lowered(text, code)
    return lower, WORD.findall(lower)


_WIDE = re.compile("[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3]")


# e.g. size("abc 日本") → 10
def size(text: str) -> int:
    """Characters, of which one of Chinese, Japanese or Korean says as much as three."""
    return len(text) + (0 if text.isascii() else 2 * len(_WIDE.findall(text)))


# e.g. size_of_words("L'Été, 12 日本") → 10
def size_of_words(text: str) -> int:
    """Letters of a text's words, of which one of Chinese, Japanese or Korean says as much as three."""
    try:
        known = text.encode("latin-1").translate(_TO_WORDS)
        return len(known) - known.count(b" ")
    except UnicodeEncodeError:
        return size("".join(WORD.findall(text)))


# e.g. words_with_places("L'été", "fr") → (["l", "été"], [(0, 1), (2, 5)])
def words_with_places(text: str, code: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text in lower case, and where each begins and ends."""
    lower, words = _lower_words(text, code)
    places, end = [], 0
    for word in words:
        start = lower.find(word, end)
        end = start + len(word)
        places.append((start, end))
    return words, places


def words_by_script(
    masked: str, words: list[str], places: list[tuple[int, int]]
) -> tuple[list[str], list[tuple[int, int]], list[str]]:
    """Words in lower case with their places, cut where the script changes, and their scripts."""
    scripts = [_script_of_word(word) if len(word) < 32 else "" for word in words]
    if "" not in scripts:
        return words, places, scripts
    cut = [
        (word[start - place[0] : end - place[0]], (start, end), name)
        for word, place, known in zip(words, places, scripts, strict=True)
        for start, end, name in ([(*place, known)] if known else _runs(masked, *place))
    ]
    return [one[0] for one in cut], [one[1] for one in cut], [one[2] for one in cut]


@lru_cache(maxsize=100_000)
def _script_of_word(word: str) -> str:
    """The script of a word that is written in one script; "" for others."""
    runs = _runs(word, 0, len(word))
    return runs[0][2] if len(runs) == 1 else ""


def _runs(text: str, start: int, end: int) -> list[tuple[int, int, str]]:
    runs: list[tuple[int, int, str]] = []
    for i in range(start, end):
        name = script(text[i])
        if runs and (not name or runs[-1][2] in {name, ""}):
            runs[-1] = (runs[-1][0], i + 1, runs[-1][2] or name)
        else:
            runs.append((i, i + 1, name))
    return runs


def _points_of(scripts: frozenset[str], inside: bool) -> set[int]:
    """Code points of the basic plane in the ranges of these scripts, or of the others."""
    ranges = [(a, b) for name, a, b in _SCRIPTS if (name in scripts) == inside and b < 0x10000]
    return {point for a, b in ranges for point in range(a, b + 1)}


@lru_cache(maxsize=64)
def letters_outside(scripts: frozenset[str]) -> re.Pattern[str]:
    """Matches a letter of another script than these, of those that xlift tells apart."""
    return re.compile(f"[{_class(p for p in sorted(_points_of(scripts, False)) if chr(p).isalpha())}]")


@lru_cache(maxsize=64)
def all_but_letters_outside(scripts: frozenset[str]) -> re.Pattern[str]:
    """Matches a letter or mark that `letters_outside` does not."""
    other = {point for point in _points_of(scripts, False) if chr(point).isalpha()}
    return re.compile(f"[{_class(p for p in _POINTS if p not in other)}{_RARE}{_RARE_HAN}]")


@lru_cache(maxsize=64)
def anything_outside(scripts: frozenset[str]) -> re.Pattern[str]:
    """Matches a letter or mark in no range of these scripts: without it, all words are written in them."""
    inside = _points_of(scripts, True)
    rare = _RARE if "Hani" in scripts else _RARE + _RARE_HAN
    return re.compile(f"[{_class(p for p in _POINTS if p not in inside)}{rare}]")


@lru_cache(maxsize=64)
def letters_of(scripts: frozenset[str], count: int) -> re.Pattern[str]:
    """Matches where a text has at least `count` letters of these scripts."""
    inside = sorted(point for name, a, b in _SCRIPTS if name in scripts for point in range(a, b + 1))
    one = _class(point for point in inside if chr(point).isalpha())
    return re.compile(rf"[{one}](?:[^{one}]*[{one}]){{{count - 1}}}")


# e.g. lowered("DIŞ", "tr") → "dış"
def lowered(text: str, code: str) -> str:
    source = text.replace("İ", "i").replace("I", "ı") if code == "tr" else text
    lower = source.lower()
    # A few letters change their length in lower case; then offsets would shift.
    return lower if len(lower) == len(text) else "".join(c if len(c.lower()) != 1 else c.lower() for c in source)
