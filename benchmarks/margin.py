"""Which reading of a model's own probabilities foretells the language that it will answer in?

    python benchmarks/margin.py --out results/margin

Tunes the embedded base model on built-in English instructions at several learning rates. Every checkpoint answers
validation prompts in several languages (greedy), the language rater judges the answers, and the log-probabilities of
the fact questions' reference replies are kept, so that all candidate measures come from one file a checkpoint. Every
stage continues where it stopped; the table alone takes seconds. xlift keeps the one in KEPT.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from xlift.checkpoint import Checkpoint, checkpoints
from xlift.data.prompts import read_prompt_file
from xlift.disk import write_atomic
from xlift.rating.language.rater import rate_text
from xlift.records import Message, Prompt
from xlift.stages import train_stage
from xlift.study.data import builtin_path
from xlift.study.loading import parse_study
from xlift.study.served import Decoding
from xlift.study.study import Study
from xlift.workspace import create_study, open_study

KEPT_TOKENS = 300
"""Likeliest first tokens that are kept of each question."""
LISTED_WORDS = 5000
"""Words of each language's frequency list that tell which language a first token opens."""
STARTS = (1, 2, 3, 4, 5, 8)
KEPT = "start 3, probability"


def study(arguments: argparse.Namespace) -> Study:
    training = {
        "model": arguments.model,
        "instructions": {"sources": [{"path": "builtin"}], "size": arguments.size, "heldout": 16},
        "learning_rate": arguments.learning_rates,
        "seed": arguments.seeds,
        "epochs": arguments.epochs,
        "max_length": 96,
        "batch_tokens": 320,
        "micro_batch_tokens": 320,
        "checkpoint_every": arguments.checkpoint_every,
    }
    return parse_study({"name": "margin", "training": training, "decoding": {"checkpoints": "all"}})


def prompts(folder: Path, name: str, language: str, size: int) -> list[Prompt]:
    """The first validation prompts of a set: the definition is chosen without test prompts."""
    records = read_prompt_file(folder / f"prompts.{name}.{language}.jsonl")
    return [record for record in records if record["split"] == "validation"][:size]


# --- what is measured of a checkpoint


def measured(arguments: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Replies and log-probabilities of one checkpoint, read from its file or measured and written to it."""
    path = Path(arguments.out) / "measured" / f"{checkpoint.run.id}.step-{checkpoint.step}.json"
    if not path.is_file():
        write_atomic(path, json.dumps(measure(arguments, checkpoint), ensure_ascii=False))
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measure(arguments: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    from xlift.hub import locate
    from xlift.models import loaded_checkpoint, place

    base = locate(checkpoint.run.config.model)
    with loaded_checkpoint(base, checkpoint.weights, place(), checkpoint.run.config.weight) as model:
        return measure_model(arguments, checkpoint, model, base)


def measure_model(arguments: argparse.Namespace, checkpoint: Checkpoint, model: Any, base: Any) -> dict[str, Any]:
    from xlift.generation.margin import fact_pairs, language_margins
    from xlift.generation.responses import checkpoint_chat

    run, step = checkpoint.run, checkpoint.step
    chat = checkpoint_chat(checkpoint, base)
    facts = {code: prompts(arguments.data, "facts", code, arguments.facts) for code in ["en", *arguments.languages]}
    times = [time.monotonic()]
    language_margins(model, chat, fact_pairs(facts))  # for its time: the table computes it from the whole replies
    times.append(time.monotonic())
    record = {
        "run": run.id,
        "learning_rate": run.config.learning_rate if step else 0.0,
        "seed": run.config.seed,
        "step": step,
        "pairs": log_probs(model, chat, facts),
        "first": first_tokens(model, chat, facts),
    }
    times.append(time.monotonic())
    record["replies"] = replies(model, chat, arguments)
    times.append(time.monotonic())
    seconds = dict(zip(("margins", "candidates", "replies"), np.diff(times).round(1).tolist(), strict=True))
    print(f"{run.id} step {step}: seconds {seconds}", flush=True)
    return {**record, "seconds": seconds}


def log_probs(model: Any, chat: Any, facts: dict[str, list[Prompt]]) -> list[dict[str, Any]]:
    """Token log-probabilities of whole replies: each question, in its language and in English, with either reply."""
    from xlift.generation.margin import token_log_probs

    rows: list[dict[str, Any]] = []
    examples = []
    for asked, told in sorted({(a, t) for x in facts for a, t in ((x, x), (x, "en"), ("en", x))}):
        for question, reply in zip(facts[asked], facts[told], strict=True):
            text = reply["reference"]
            answer: Message = {"role": "assistant", "content": text}
            example = chat.encode([*question["messages"], answer])
            ids = [token for token, learned in zip(example.ids, example.mask, strict=True) if learned]
            rows.append({"asked": asked, "told": told, "parallel_id": question["parallel_id"], "ids": ids})
            rows[-1]["bytes"] = len(text.encode())
            examples.append(example)
    values = token_log_probs(model, chat, examples)
    return [{**row, "log_probs": [round(v, 4) for v in found]} for row, found in zip(rows, values, strict=True)]


def first_tokens(model: Any, chat: Any, facts: dict[str, list[Prompt]]) -> list[dict[str, Any]]:
    """The likeliest first tokens of a reply to each fact question, with their probabilities."""
    import torch

    found = []
    for language, question in [(code, question) for code, questions in facts.items() for question in questions]:
        ids = torch.tensor([chat.encode_prompt(question["messages"])], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, logits_to_keep=1).logits[0, -1].float()
        mass, tokens = logits.softmax(-1).topk(min(KEPT_TOKENS, len(logits)))
        found.append({"language": language, "tokens": tokens.tolist(), "mass": [round(v, 6) for v in mass.tolist()]})
    return found


def replies(model: Any, chat: Any, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Greedy replies to open and fact questions."""
    from xlift.generation.engine import Reply, decode

    sizes = {"open": arguments.open_prompts, "facts": arguments.fact_prompts}
    asked = [
        (code, prompt)
        for code in arguments.languages
        for name, size in sizes.items()
        for prompt in prompts(arguments.data, name, code, size)
    ]
    found: dict[int, str] = {}

    def keep(index: int, reply: Reply) -> None:
        found[index] = reply.text

    encoded = [chat.encode_prompt(prompt["messages"]) for _, prompt in asked]
    names = [prompt["id"] for _, prompt in asked]
    decode(model, chat, encoded, names, Decoding(max_new_tokens=arguments.new_tokens), keep)
    return [{"language": code, "id": prompt["id"], "text": found[i]} for i, (code, prompt) in enumerate(asked)]


# --- candidate measures of one checkpoint in one language


@dataclass(frozen=True)
class Fact:
    """Token log-probabilities of one fact's replies in X and in English, asked in X (`_en`: asked in English)."""

    own: list[float]
    english: list[float]
    own_en: list[float]
    english_en: list[float]
    own_bytes: int
    english_bytes: int
    shared: int
    """Tokens that the two replies open with in common."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint in one language."""

    facts: list[Fact]
    untuned: list[Fact]
    first: list[tuple[float, float, float, float]]
    """Mass of first tokens that open the language and English, by the references and by word lists."""


Length = Callable[[list[float], int, int], float]


def start(tokens: int) -> Length:
    return lambda values, size, shared: sum(values[shared : shared + tokens])


LENGTHS: dict[str, Length] = {
    **{f"start {tokens}": start(tokens) for tokens in STARTS},
    "whole, sum": lambda values, size, shared: sum(values),
    "whole, per token": lambda values, size, shared: fmean(values),
    "from the parting, per token": lambda values, size, shared: fmean(values[shared:]),
    "whole, per byte": lambda values, size, shared: sum(values) / size,
}


def margins(facts: list[Fact], length: Length) -> list[float]:
    return [length(f.own, f.own_bytes, f.shared) - length(f.english, f.english_bytes, f.shared) for f in facts]


def asked_in_english(facts: list[Fact], length: Length) -> list[float]:
    return [length(f.own_en, f.own_bytes, f.shared) - length(f.english_en, f.english_bytes, f.shared) for f in facts]


def own_gain(facts: list[Fact], length: Length) -> list[float]:
    """Log-probability that the reply in X gains by being asked in X."""
    return [length(f.own, f.own_bytes, f.shared) - length(f.own_en, f.own_bytes, f.shared) for f in facts]


def logistic(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(value / 2.0))


def wins(values: Sequence[float]) -> float:
    return fmean(float(value > 0) for value in values)


READINGS: dict[str, tuple[Callable[[Cell, Length], float], float]] = {
    "mean": (lambda c, n: fmean(margins(c.facts, n)), 0.0),
    "probability": (lambda c, n: fmean(map(logistic, margins(c.facts, n))), 0.5),
    "share of wins": (lambda c, n: wins(margins(c.facts, n)), 0.5),
    "minus untuned": (lambda c, n: fmean(margins(c.facts, n)) - fmean(margins(c.untuned, n)), 0.0),
    "minus asked in English": (lambda c, n: fmean(margins(c.facts, n)) - fmean(asked_in_english(c.facts, n)), 0.0),
    "reply in X, gain of asking in X": (lambda c, n: fmean(own_gain(c.facts, n)), 0.0),
}


def candidates() -> dict[str, tuple[Callable[[Cell], float], float]]:
    """By name: the measure, and the value at which it says that either language is as likely."""

    def bind(reading: Callable[[Cell, Length], float], length: Length) -> Callable[[Cell], float]:
        return lambda cell: reading(cell, length)

    found = {
        f"{name}, {how}": (bind(reading, length), even)
        for name, length in LENGTHS.items()
        for how, (reading, even) in READINGS.items()
    }
    found["reply in X alone, per token"] = (lambda cell: fmean(fmean(f.own) for f in cell.facts), 0.0)
    for name, place in (("references", 0), ("word lists", 2)):
        found |= {f"first token by {name}, {how}": value for how, value in mass_readings(place).items()}
    return found


def mass_readings(place: int) -> dict[str, tuple[Callable[[Cell], float], float]]:
    def odds(cell: Cell) -> list[float]:
        return [math.log((row[place] + 1e-6) / (row[place + 1] + 1e-6)) for row in cell.first]

    return {
        "log-odds": (lambda cell: fmean(odds(cell)), 0.0),
        "probability": (lambda cell: fmean(map(logistic, odds(cell))), 0.5),
        "share of wins": (lambda cell: wins(odds(cell)), 0.5),
    }


def facts_of(record: dict[str, Any], language: str) -> list[Fact]:
    rows = {(row["asked"], row["told"], row["parallel_id"]): row for row in record["pairs"]}
    found = []
    for name in [row["parallel_id"] for row in record["pairs"] if row["asked"] == row["told"] == language]:
        own, english = rows[language, language, name], rows[language, "en", name]
        own_en, english_en = rows["en", language, name], rows["en", "en", name]
        same = [a == b for a, b in zip(own["ids"], english["ids"], strict=False)]
        shared = [*same, False].index(False)
        found.append(
            Fact(
                own=own["log_probs"],
                english=english["log_probs"],
                own_en=own_en["log_probs"],
                english_en=english_en["log_probs"],
                own_bytes=own["bytes"],
                english_bytes=english["bytes"],
                shared=shared,
            )
        )
    return found


def first_mass(record: dict[str, Any], language: str, model: str) -> list[tuple[float, float, float, float]]:
    opens = {
        code: {row["ids"][0] for row in record["pairs"] if row["asked"] == row["told"] == code}
        for code in (language, "en")
    }
    listed, listed_en = word_starts(language, model), word_starts("en", model)
    found = []
    for row in record["first"]:
        if row["language"] == language:
            sums = np.zeros(4)
            for token, mass in zip(row["tokens"], row["mass"], strict=True):
                own, english = listed.get(token, 0.0), listed_en.get(token, 0.0)
                share = own / (own + english) if own + english else 0.0
                by_reference = (token in opens[language] - opens["en"], token in opens["en"] - opens[language])
                sums += mass * np.array([*by_reference, share, 1.0 - share if own + english else 0.0])
            found.append((float(sums[0]), float(sums[1]), float(sums[2]), float(sums[3])))
    return found


@lru_cache(maxsize=32)
def word_starts(language: str, model: str) -> dict[int, float]:
    """First tokens of a language's commonest words at the start of a sentence, with how often they occur."""
    import wordfreq

    from xlift.hub import locate
    from xlift.models import load_tokenizer

    words = wordfreq.top_n_list(language, LISTED_WORDS)
    encoded = load_tokenizer(locate(model).path)([word.capitalize() for word in words], add_special_tokens=False)
    found: dict[int, float] = {}
    for word, ids in zip(words, encoded["input_ids"], strict=True):
        found[ids[0]] = found.get(ids[0], 0.0) + wordfreq.word_frequency(word, language)
    return found


# --- the table


@dataclass(frozen=True)
class Points:
    """All (checkpoint, language) points: what was generated, and what each candidate said before."""

    checkpoints: np.ndarray
    """Place of the checkpoint among the records."""
    languages: np.ndarray
    rates: np.ndarray
    right: np.ndarray
    """Share of the rated replies that are in the user's language."""
    values: dict[str, np.ndarray]


def points(records: list[dict[str, Any]], languages: list[str], model: str) -> Points:
    untuned = next(record for record in records if record["step"] == 0)
    rows: list[tuple[int, str, float]] = []
    cells: list[Cell] = []
    for place, record in enumerate(records):
        for language in languages:
            values = [rate_text(one["text"], language)[0] for one in record["replies"] if one["language"] == language]
            rated = [value == 2 for value in values if value is not None]
            if rated:
                rows.append((place, language, fmean(rated)))
                mass = first_mass(record, language, model)
                cells.append(Cell(facts_of(record, language), facts_of(untuned, language), mass))
    return Points(
        checkpoints=np.array([place for place, _, _ in rows]),
        languages=np.array([language for _, language, _ in rows]),
        rates=np.array([records[place]["learning_rate"] for place, _, _ in rows]),
        right=np.array([right for _, _, right in rows]),
        values={name: np.array([measure(cell) for cell in cells]) for name, (measure, _) in candidates().items()},
    )


def split_at(values: np.ndarray, truth: np.ndarray) -> float:
    """The threshold that tells the known points best; the middle one of equals."""
    ordered = np.unique(values)
    cuts = np.concatenate([[ordered[0] - 1], (ordered[1:] + ordered[:-1]) / 2, [ordered[-1] + 1]])
    hits = [float(np.mean((values > cut) == truth)) for cut in cuts]
    return float(np.median(cuts[np.array(hits) == max(hits)]))


def left_out(values: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> float:
    """Share predicted right when each group's threshold comes from the other groups."""
    hits = np.zeros(len(values), dtype=bool)
    for group in np.unique(groups):
        inside = groups == group
        threshold = split_at(values[~inside], truth[~inside]) if not inside.all() else math.nan
        hits[inside] = (values[inside] > threshold) == truth[inside]
    return float(hits.mean())


def correlations(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Spearman and Pearson; not a number where either side is constant."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return math.nan, math.nan
    return float(spearmanr(one, other)[0]), float(pearsonr(one, other)[0])


def scores(data: Points, name: str, even: float) -> list[float]:
    values, truth = data.values[name], data.right > 0.5
    inside = [data.languages == language for language in np.unique(data.languages)]
    within = [correlations(values[rows], data.right[rows]) for rows in inside]
    return [
        *correlations(values, data.right),
        fmean(spearman for spearman, _ in within),
        fmean(pearson for _, pearson in within),
        float(np.mean((values > even) == truth)),
        left_out(values, truth, data.languages),
        left_out(values, truth, data.rates),
    ]


def print_generated(records: list[dict[str, Any]], languages: list[str], data: Points) -> None:
    told = data.values[KEPT]
    print(f"\nshare of generated replies in the user's language / {KEPT}")
    print(f"{'learning rate':>13} {'seed':>4} {'step':>4}  " + "  ".join(f"{code:>11}" for code in languages))
    for place, record in enumerate(records):
        shown = {
            data.languages[i]: f"{data.right[i]:5.2f} /{told[i]:5.2f}"
            for i in np.flatnonzero(data.checkpoints == place)
        }
        cells = "  ".join(f"{shown.get(code, 'not rated'):>11}" for code in languages)
        print(f"{record['learning_rate']:13g} {record['seed']:4} {record['step']:4}  {cells}")


def print_candidates(data: Points) -> None:
    print(f"\n{len(data.right)} points; more than half of the replies right in {np.mean(data.right > 0.5):.0%} of them")
    print("half: whether more than half are right, told by the candidate's own even point, and by a threshold that is")
    print("fitted to the other languages, or to the other learning rates")
    heads = ["spearman", "pearson", "sp. in l.", "pe. in l.", "half:even", "languages", "rates"]
    print(f"{'candidate':60}" + "".join(f"{head:>10}" for head in heads))
    rows = [(name, scores(data, name, even)) for name, (_, even) in candidates().items()]
    for name, found in sorted(rows, key=lambda row: -np.nan_to_num([*row[1][:3], *row[1][4:6]]).mean()):
        print(f"{name:60}" + "".join(f"{value:10.3f}" for value in found))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="results/margin")
    parser.add_argument("--model", default="embedded:gemma-3-270m")
    parser.add_argument("--data", type=Path, default=builtin_path(""), help="folder of prompts.{open,facts}.*.jsonl")
    parser.add_argument("--languages", nargs="+", default=["fr", "pt", "ru", "de", "hi"])
    parser.add_argument("--learning-rates", nargs="+", type=float, default=[5e-5, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--size", type=int, default=64, help="English training examples")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--checkpoint-every", type=int, default=6)
    parser.add_argument("--facts", type=int, default=20, help="fact questions whose references are weighed")
    parser.add_argument("--open-prompts", type=int, default=12, help="open questions that are answered")
    parser.add_argument("--fact-prompts", type=int, default=8, help="fact questions that are answered")
    parser.add_argument("--new-tokens", type=int, default=24)
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    workspace = open_study(study(arguments), Path(arguments.out))
    create_study(workspace)
    train_stage(workspace)
    records = [measured(arguments, one) for one in checkpoints(workspace)]
    data = points(records, arguments.languages, arguments.model)
    print_generated(records, arguments.languages, data)
    print_candidates(data)


if __name__ == "__main__":
    main()
