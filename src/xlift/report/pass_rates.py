"""Line and word pass rates by the Language Confusion Benchmark's rule, beside published ones on the same prompts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from xlift.intervals import wilson
from xlift.languages import language_name
from xlift.rating.language.lcb import WORD_LANGUAGES
from xlift.records import Prompt, reply_language
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.reading import Material

RATER = "language_lcb"
TASKS = ("monolingual", "crosslingual")
"""The benchmark's: a request in the language, and one in English that asks for an answer in it."""
WHOLE_TASK = 90
"""Prompts of a task and language from which on they are the benchmark's, and published marks stand beside ours."""
MOST_MODELS = 6
"""Models that stand beside one another."""
SOURCE = "Marchisio et al. 2024, arXiv 2406.20052: monolingual by language table 6"
_LLAMA_2 = {
    "monolingual": {"all": 48.3, "ar": 0.3, "hi": 1.0, "ja": 7.0, "ko": 0.0, "vi": 17.0, "zh": 10.5},
    "crosslingual": {"all": 38.4},
}
_LLAMA_3 = {
    "monolingual": {"all": 46.0, "ar": 21.7, "hi": 23.0, "ja": 10.0, "ko": 0.0, "vi": 10.0, "zh": 8.0},
    "crosslingual": {"all": 30.3},
}
_COMMAND_R_BASE = {
    "monolingual": {"ar": 94.9, "hi": 81.0, "ja": 93.9, "ko": 94.2, "vi": 83.0, "zh": 68.1},
    "crosslingual": {"all": 1.1},
}
PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    **dict.fromkeys(("llama-2-instruct", "llama-2-70b-chat-hf"), _LLAMA_2),
    **dict.fromkeys(("llama-3-instruct", "meta-llama-3-70b-instruct"), _LLAMA_3),
    "command-r-base": _COMMAND_R_BASE,
}
"""Published line pass rates in per cent, by model, task and language; `all`: the mean over languages."""


class Rates(NamedTuple):
    """Of one model, task and language: answers with a line that could be judged, those without a line error, of these
    those in a language where words are looked at, and those without a word error."""

    judged: int
    lines: int
    looked: int
    words: int

    @property
    def lpr(self) -> float | None:
        return self.lines / self.judged if self.judged else None

    @property
    def wpr(self) -> float | None:
        return self.words / self.looked if self.looked else None


def pass_rates(material: Material) -> dict[str, dict[tuple[str, str], Rates]]:
    """By model, the rates of each task and language; {} where the study has no such rater."""
    prompts = {one["id"]: one for one in material.prompts if one["split"] == "test"}
    found: dict[str, dict[tuple[str, str], Rates]] = {}
    for one in material.answered:
        values: dict[tuple[str, str], list[Any]] = defaultdict(list)
        for rating in one.rated_by(RATER):
            if rating["id"] in prompts:
                prompt = prompts[rating["id"]]
                values[_task(prompt), reply_language(prompt)].append(rating["value"])
        if values:
            found[one.run.label] = {key: _rates(key[1], own) for key, own in values.items()}
    return found


def _rates(language: str, values: Sequence[Any]) -> Rates:
    passed = [one for one in values if one]
    looked = passed if language in WORD_LANGUAGES else []
    return Rates(sum(one is not None for one in values), len(passed), len(looked), sum(one == 2 for one in looked))


# e.g. _task({"id": "monolingual-okapi-fr-7", "category": "chat"}) → "monolingual"
def _task(prompt: Prompt) -> str:
    told = {prompt.get("category"), *prompt["id"].split("-")}
    return next((task for task in TASKS if task in told), "")


def published(model: str, task: str, language: str, prompts: int) -> float | None:
    """A published line pass rate on the same prompts, 0 to 1."""
    mark = PUBLISHED.get(model.split("/")[-1].lower(), {}).get(task, {}).get(language)
    return None if mark is None or prompts < WHOLE_TASK else mark / 100


def means_table(material: Material) -> ReportTable | None:
    """A row a task and model: means over languages, as the benchmark makes them, beside the published one."""
    rows = []
    found = pass_rates(material)
    for task in _tasks(found):
        for model, rates in found.items():
            own = {language: one for (name, language), one in rates.items() if name == task}
            least = min((one.judged for one in own.values()), default=0)
            told = published(model, task, "all", least if len(own) > 10 else 0)
            means = [_mean(one.lpr for one in own.values()), told, _mean(one.wpr for one in own.values())]
            # Per cent with decimals, as they are published.
            shown = [None if one is None else one * 100 for one in means]
            rows.append([task, model, len(own), sum(one.judged for one in own.values()), *shown])
    if not rows:
        return None
    names = ("task", "model", "languages", "judged", "lpr", "published_lpr", "wpr")
    columns = [Column("task"), Column("model"), Column("languages", "count"), Column("judged", "count")]
    columns += [Column("LPR, %", "number"), Column("published", "number"), Column("WPR, %", "number")]
    return ReportTable(
        "pass-rates",
        "Line and word pass rate, mean over languages",
        f"Judged: answers with a line of five tokens. Published: {SOURCE}; the means are quoted from its text.",
        columns,
        [[Value(value) for value in row] for row in rows],
        [dict(zip(names, row, strict=True)) for row in rows],
    )


def languages_table(material: Material) -> ReportTable | None:
    """A row a task and language, two columns a model; None where there are too many models, or only one language."""
    found = pass_rates(material)
    there = sorted({key for rates in found.values() for key in rates})
    keys = [key for task in _tasks(found) for key in there if key[0] == task]
    if not found or len(found) > MOST_MODELS or len(keys) < 2:
        return None
    percent = f"{material.workspace.study.report.confidence * 100:g} %"
    columns = [Column("task"), Column("language")]
    columns += [column for model in found for column in (Column(f"{model} LPR", "share"), Column("WPR", "share"))]
    lines, records = [], []
    for task, language in keys:
        line = [Value(task), Value(language_name(language))]
        for model, rates in found.items():
            one = rates.get((task, language), Rates(0, 0, 0, 0))
            told = published(model, task, language, one.judged)
            line += [*_values(one, told, material.workspace.study.report.confidence)]
            head = {"task": task, "language": language, "model": model}
            records.append({**head, **one._asdict(), "lpr": one.lpr, "published_lpr": told, "wpr": one.wpr})
        lines.append(line)
    note = f"Wilson's {percent} intervals. Words are looked at in Arabic, Hindi, Japanese, Korean, Russian and Chinese."
    return ReportTable("pass-rates-by-language", "Line and word pass rate by language", note, columns, lines, records)


def _values(one: Rates, told: float | None, confidence: float) -> tuple[Value, Value]:
    if one.lpr is None:
        return Value(), Value()
    note = "" if told is None else f"published {told * 100:.1f}"
    low, high = wilson(one.lpr, one.judged, confidence)
    return Value(one.lpr, low, high, note), Value(one.wpr)


def _tasks(found: dict[str, dict[tuple[str, str], Rates]]) -> list[str]:
    there = {task for rates in found.values() for task, _ in rates}
    return [task for task in (*TASKS, "") if task in there]


def _mean(values: Iterable[float | None]) -> float | None:
    told = [one for one in values if one is not None]
    return fmean(told) if told else None
