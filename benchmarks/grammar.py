"""Grammar margins of models by language, by three ways to compare the two sentences of a pair.

    python benchmarks/grammar.py MODEL [MODEL …] [--languages fr ru] [--wrong]

MODEL is a folder, or a run's checkpoint with its whole weights. --wrong prints the pairs that each model gets wrong by
the sum, the widest first, to be read: a pair that good models get wrong may be a bad pair.
"""

from __future__ import annotations

import argparse
import math
from statistics import fmean

from xlift.data.prompts import grammar_pairs
from xlift.generation.grammar import plain_text
from xlift.generation.margin import token_log_probs
from xlift.models import load_model, load_tokenizer, place
from xlift.study.data import builtin_path
from xlift.tuning.templates import chat_format


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    codes = [path.name.split(".")[1] for path in sorted(builtin_path("").glob("grammar.*.json"))]
    parser.add_argument("--languages", nargs="+", default=codes)
    parser.add_argument("--wrong", action="store_true")
    options = parser.parse_args()
    for name in options.models:
        model, chat = load_model(name, place("auto", "auto")), chat_format(load_tokenizer(name), "plain")
        print(f"{name}\nlanguage  sum    token  byte")
        for language in options.languages:
            pairs = grammar_pairs(language)
            texts = [text for pair in pairs for text in (pair.good, pair.bad)]
            values = token_log_probs(model, chat, [plain_text(chat, text) for text in texts])
            sums = [math.fsum(one) for one in values]
            scores = {
                "sum": sums,
                "token": [total / len(one) for total, one in zip(sums, values, strict=True)],
                "byte": [total / len(text.encode()) for total, text in zip(sums, texts, strict=True)],
            }
            gaps = {
                way: [good - bad for good, bad in zip(one[::2], one[1::2], strict=True)] for way, one in scores.items()
            }
            print(f"{language:8}", "".join(f"{fmean(gap > 0 for gap in own):6.1%} " for own in gaps.values()))
            for gap, pair in sorted(zip(gaps["sum"], pairs, strict=True)) if options.wrong else []:
                if gap <= 0:
                    print(f"    {gap:6.2f}  {pair.good}  |  {pair.bad}")


if __name__ == "__main__":
    main()
