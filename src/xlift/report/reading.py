"""What the report is made from: responses and ratings read once, as tidy rows, and the names that people read.

One measure runs through the whole report: the share of responses that a rater gives the best value, 2 or the end of a
scale of its own. A rater and the facet it rates make a scale; all people who rate a facet are one scale, "people".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import polars as pl

from xlift.analysis.estimates import SETTINGS, best_given, last_steps, summary, with_conditions, with_silence
from xlift.checkpoint import checkpoints, readable, written_prompts
from xlift.halving import stopped
from xlift.rating import RATERS
from xlift.records import FACETS, PANEL, Prompt, Rating
from xlift.report.answered import Answered, Pile, TellsAnswers, kept
from xlift.report.rows import ShareRow, read
from xlift.results import Results, beside, narrow_table
from xlift.study.labels import learning_rate_text, model_text
from xlift.study.runs import FILLED_IN
from xlift.workspace import RunFolder, StudyFolder

# What a value of 2 says, by rater.
TITLES = {name: rater.title for name, rater in RATERS.items()}
BEST = {
    "language": "Answers wholly in the right language",
    "fluency": "Fluent answers",
    "helpfulness": "Correct and sufficient answers",
    "accuracy": "Answers in which all is true",
    "coherence": "Logically sound answers",
    "harmlessness": "Fully acceptable answers",
    "constraint": "Constraints followed",
}
"""What a value of 2 says, by facet, where a judge or a person has given it."""
PEOPLE = "people"


@dataclass(frozen=True)
class Scale:
    """A facet as one rater sees it, and the ends of its values."""

    facet: str
    rater: str
    kind: str
    lowest: int = 0
    best: int = 2

    @cached_property
    def title(self) -> str:
        if self.kind == "check":
            return TITLES[self.rater]
        who = "panel" if self.rater.startswith(PANEL) else "judge"
        by = PEOPLE if self.kind == "human" else f"{who} {rater_name(self.rater)}"
        own = f"{self.facet.replace('_', ' ').capitalize()} {self.best}"
        told = f"{own} of {self.lowest} to {self.best}" if (self.lowest, self.best) != (0, 2) else own
        return f"{BEST[self.facet] if self.facet in BEST and told == own else told}, by {by}"

    @property
    def short(self) -> str:
        named = rater_name(self.rater)
        return self.facet if named == self.facet else f"{self.facet} ({named})"

    @cached_property
    def slug(self) -> str:
        """Name in file names."""
        return slug(self.rater if self.kind == "check" else f"{self.facet}-{self.rater}")


class Condition(NamedTuple):
    """Runs that differ only in their seed: a name, how `compare` finds them, and how they were trained."""

    name: str
    runs: list[str]
    chosen: dict[str, Any]
    settings: dict[str, Any]
    untuned: bool


@dataclass(frozen=True)
class Material:
    """A study's findings, read once. `everyone` has raters by name; in `ratings` all people are one rater,
    and an empty answer has 0 for its language. How runs were trained stands in `axes`, one row a run: at every rating
    it would take most of a large study's memory."""

    workspace: StudyFolder
    prompts: list[Prompt]
    answered: list[Answered]
    everyone: pl.DataFrame
    axes: pl.DataFrame
    training: pl.DataFrame
    unread: Sequence[tuple[RunFolder, int]] = ()
    """Checkpoints whose files cannot be read, by run and step."""

    @cached_property
    def ratings(self) -> pl.DataFrame:
        person = pl.col("kind") == "human"
        named = with_silence(self.everyone).with_columns(rater=pl.when(person).then(pl.lit(PEOPLE)).otherwise("rater"))
        return self._with_conditions(named)

    @cached_property
    def tested(self) -> pl.DataFrame:
        """Ratings of test prompts at the last checkpoint of each run."""
        return self._with_conditions(last_steps(self.ratings.filter(pl.col("split") == "test")))

    def parts(self, frame: pl.DataFrame, **chosen: str | bool) -> Iterator[pl.DataFrame]:
        """The `chosen` rows on one scale after another: of a large study, a copy of all at once is too much."""
        for scale in self.scales:
            yield frame.filter(facet=scale.facet, rater=scale.rater, **chosen)

    def _with_conditions(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with the `condition` of each run, called after one of those that are in it."""
        there = with_conditions(self.axes.filter(pl.col("run").is_in(frame["run"].unique().to_list())))
        return beside(frame, there.select("run", "condition"))

    @cached_property
    def test(self) -> pl.DataFrame:
        """The same with `value` 1 where it was the best, else 0, so that means are shares; missing stays missing."""
        return self.tested.with_columns(value=best_given(self.tested))

    @cached_property
    def scales(self) -> list[Scale]:
        """The scales that there are ratings on: surface checks in the study's order, judges, people."""
        ends = pl.col("lowest").min(), pl.col("best").max()
        found = self.ratings.group_by("facet", "rater", "kind").agg(*ends).rows()
        checks = [*self.workspace.study.raters, *sorted(TITLES)]
        return sorted(
            (Scale(*row) for row in found),
            key=lambda scale: (
                ("check", "judge", "human").index(scale.kind),
                checks.index(scale.rater) if scale.kind == "check" else 0,
                scale.rater,
                FACETS.index(scale.facet) if scale.facet in FACETS else len(FACETS),
            ),
        )

    @cached_property
    def conditions(self) -> list[Condition]:
        """What was compared on test prompts, in the order of the study."""
        told_once = self.test.unique("run", keep="first", maintain_order=True)
        return conditions_of(beside(told_once, self.axes), [one.run.id for one in self.answered])

    @cached_property
    def measure(self) -> dict[str, float]:
        """What makes a response good when runs are selected: the study's measure, or, where somebody it believes has
        not rated yet, language or else the first facet that was rated; {} without ratings."""
        asked = self.workspace.study.report.measure
        rated = {name for scale in self.scales for name in (scale.facet, f"{scale.facet}:{scale.kind}")}
        if rated.issuperset(asked):
            return asked
        facets = [scale.facet for scale in self.scales]
        return {"language" if "language" in facets else facets[0]: 1.0} if facets else {}

    @cached_property
    def stopped(self) -> dict[str, int]:
        """The runs that successive halving has stopped, by id, with the step at which it did."""
        return stopped(self.workspace)

    @cached_property
    def languages(self) -> list[str]:
        return self.workspace.study.prompts.languages

    @cached_property
    def confidence(self) -> str:
        """The confidence of all intervals: 95 %."""
        return f"{self.workspace.study.report.confidence * 100:g} %"

    @cached_property
    def resampling(self) -> dict[str, Any]:
        """Settings of every interval in the report."""
        study = self.workspace.study
        return {
            "resamples": study.report.bootstrap, "confidence": study.report.confidence, "seed": study.decoding.seed
        }  # fmt: skip

    def name(self, run: str, step: int) -> str:
        """How tables and figures call a checkpoint: the run's label, and the step where several have answered."""
        steps = {one.step: one.run.label for one in self.answered if one.run.id == run}
        return f"{steps[step]} step {step}" if len(steps) > 1 else steps[step]


def material_of(workspace: StudyFolder, answered: Iterable[TellsAnswers] | None = None) -> Material:
    """All that the report is made from, its files read once for all tables; `answered` where it is read already."""
    prompts, found, pile = written_prompts(workspace), list[Answered](), Pile()
    there = checkpoints(workspace, prompts) if answered is None else []
    unread = {(one.run.id, one.step): (one.run, one.step) for one in there}

    def read_one_by_one() -> Iterator[tuple[RunFolder, Iterable[Rating]]]:
        for one in readable(there) if answered is None else answered:
            found.append(kept(one, pile))
            unread.pop((one.run.id, one.step), None)
            yield one.run, one.ratings

    # Ratings that count are all of the response that there is now.
    frame, axes = narrow_table(read_one_by_one(), prompts, without=["response"])
    told = beside(frame, axes.select("run", "seed", "untuned"))
    return Material(workspace, prompts, found, told, axes, Results(workspace).training, list(unread.values()))


def share_rows(material: Material, split: str) -> list[ShareRow]:
    """One row a checkpoint, scale and language: share of the best value, mean, how many were rated and are missing."""
    keys = ["run", "label", "step", "split", "facet", "rater", "kind", "language"]
    rates = dict(material.axes.select("run", "learning_rate").iter_rows())
    rows = [
        read(
            ShareRow,
            row,
            **{"run": row["label"], "id": row["run"], "learning_rate": rates[row["run"]]},
            **{"mean": row["share_best"], "low": row["share_best_low"], "high": row["share_best_high"]},
            **{"mean_value": row["mean"], "mean_value_low": row["low"], "mean_value_high": row["high"]},
        )
        for part in material.parts(material.ratings, split=split)
        for row in summary(part, keys, **material.resampling).to_dicts()
    ]
    order = {(one.run.id, one.step): place for place, one in enumerate(material.answered)}
    scales = [(scale.facet, scale.rater) for scale in material.scales]
    return sorted(
        rows,
        key=lambda row: (
            scales.index((row.facet, row.rater)),
            order[row.id, row.step],
            language_place(material, row.language),
        ),
    )


def language_place(material: Material, code: str) -> int:
    """Where a language stands in the study; one that the study has no longer comes last."""
    return material.languages.index(code) if code in material.languages else len(material.languages)


def conditions_of(frame: pl.DataFrame, order: list[str]) -> list[Condition]:
    """The conditions in `frame` (columns of `Results.ratings`), in the `order` of their run folders' names."""
    if frame.is_empty():
        return []
    told_once = frame.unique("run", keep="first", maintain_order=True)
    runs = with_conditions(told_once).select("condition", "run", "label", "seed", "untuned", *SETTINGS).unique()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(runs.iter_rows(named=True), key=lambda row: order.index(row["run"])):
        groups.setdefault(row["condition"], []).append(row)
    return [_condition(rows) for rows in groups.values()]


def _condition(rows: list[dict[str, Any]]) -> Condition:
    first = rows[0]
    settings = {name: first[name] for name in (*SETTINGS, "untuned")}
    names = [row["run"] for row in rows]
    name = first["label"] if len(rows) == 1 else first["label"].removesuffix(f"-s{first['seed']}")
    chosen = {"run": first["run"]} if len(rows) == 1 else {"condition": first["condition"]}
    return Condition(name, names, chosen, settings, first["untuned"])


# e.g. setting_text("method", {"method": "lora", "rank": 16}) → "lora r16"
# e.g. setting_text("instructions", {"instructions": "alpaca-64", "size": 64}) → "alpaca"
# e.g. setting_text("learning_rate", {"learning_rate": 0.0003}) → "learning rate 3e-4"
# e.g. setting_text("max_length", {"max_length": 96}) → "max length 96"
def setting_text(name: str, settings: Mapping[str, Any]) -> str | None:
    """One training choice in words, None where it says nothing of its own."""
    value = settings[name]
    if value is None or name in ("rank", "sources", *FILLED_IN):
        return None
    if name == "method":
        return f"{value} r{settings['rank']}" if settings["rank"] else str(value)
    if name == "instructions":
        return str(value).removesuffix(f"-{settings['size']}")
    words = {"size": "{} conversations", "steps": "{} steps", "weight": "weight {:g}", "template": "template {}"}
    if name == "learning_rate":
        return f"learning rate {learning_rate_text(value)}"
    if name == "system":
        return f"system prompt “{value[:24]}”"
    if name == "model":
        return model_text(str(value))
    return words.get(name, f"{name.replace('_', ' ')} {{}}").format(value)


# e.g. list(setting_texts("model", [{"model": "a/gemma"}, {"model": "b/gemma"}]).values()) → ["a/gemma", "b/gemma"]
def setting_texts(name: str, told: Sequence[Mapping[str, Any]]) -> dict[Any, str | None]:
    """The values of one training choice in words; models and system prompts that are shortened alike, told apart."""
    texts = {one[name]: setting_text(name, one) for one in told}
    times = Counter(texts.values())
    alike = [value for value, text in texts.items() if text and times[text] > 1 and name in ("model", "system")]
    for place, value in enumerate(alike, 1):
        texts[value] = str(value) if name == "model" else f"{texts[value]} ({place})"
    return texts


# e.g. [rater_name(rater) for rater in ("judge:mistral", "human:Ana", "language")] → ["mistral", "Ana", "language"]
def rater_name(rater: str) -> str:
    """A rater without what kind it is: mistral for judge:mistral, Ana for human:Ana."""
    return rater.removeprefix("judge:").removeprefix("human:").removeprefix(PANEL)


# e.g. measure_text({"language": 1.0}) → "language"
# e.g. measure_text({"helpfulness:human": 2.0, "language": 1.0}) → "2 × helpfulness:human + language"
def measure_text(measure: Mapping[str, float]) -> str:
    """A measure as people write it: "2 × helpfulness + language"."""
    return " + ".join(name if weight == 1 else f"{weight:g} × {name}" for name, weight in measure.items())


# e.g. slug("helpfulness-judge:gpt 4") → "helpfulness-judge-gpt-4"
def slug(text: str) -> str:
    """Letters, digits and dashes only."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()
