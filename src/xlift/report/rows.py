"""The rows of findings: what is known of a run, a pair of runs, a rule, a rater, as plain typed values.

`run` is a run's id, `name` what people read. A row's fields, in their order, are the columns of its CSV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Protocol, TypeVar

Number = float | None


class _OnScale(Protocol):
    @property
    def facet(self) -> str: ...
    @property
    def rater(self) -> str: ...


OnScale = TypeVar("OnScale", bound=_OnScale)


def rows_of(rows: Iterable[OnScale], scale: _OnScale) -> list[OnScale]:
    """The rows that belong to a scale, or to the scale of a row."""
    return [row for row in rows if (row.facet, row.rater) == (scale.facet, scale.rater)]


class Range(NamedTuple):
    """A value with the bounds of its interval; None where it is not known."""

    value: Number
    low: Number
    high: Number


@dataclass(frozen=True)
class ShareRow:
    """One checkpoint, scale and language: the share of responses with the best value, and the mean value."""

    run: str
    id: str
    step: int
    split: str
    facet: str
    rater: str
    kind: str
    language: str
    learning_rate: Number
    mean: Number
    low: Number
    high: Number
    rated: int
    missing: int
    n_prompts: int
    mean_value: Number
    mean_value_low: Number
    mean_value_high: Number
    covers: str | None
    reason: str | None

    @property
    def share(self) -> Range:
        return Range(self.mean, self.low, self.high)


@dataclass(frozen=True)
class DifferenceRow:
    """Shares of the best value of two sides, paired by prompt (`first` less than or more than `second`): a condition,
    scale and language. `base` is the untuned side of a tuned condition, `untuned` whether the condition itself is."""

    run: str
    base: str | None
    untuned: bool | None
    facet: str
    language: str
    rater: str
    first_mean: Number
    second_mean: Number
    difference: Number
    low: Number
    high: Number
    p: Number
    p_holm: Number
    standardised: Number
    better: Number
    worse: Number
    tied: Number
    superiority: Number
    pairs: int
    missing: int
    n_prompts: int
    first_seeds: int
    second_seeds: int
    covers: str | None
    test: str | None
    reason: str | None

    @property
    def points(self) -> Range:
        return Range(self.difference, self.low, self.high)


@dataclass(frozen=True)
class MeanRow:
    """One condition, scale and language over its seeds: `share` of the best value, with how it was trained."""

    run: str
    settings: Mapping[str, Any]
    untuned: bool
    facet: str
    rater: str
    language: str
    share: Range
    rated: int
    missing: int


class CurvePoint(NamedTuple):
    """A mean along a training choice; `panel` is what all else is."""

    panel: str
    row: MeanRow


@dataclass(frozen=True)
class SelectionRow:
    """What a rule of selection picks, in one language: the pick's score, its regret, and what the choice costs."""

    rule: str
    run: str
    label: str
    step: int
    candidates: int
    tied: int
    language: str
    score: Number
    low: Number
    high: Number
    rated: int
    regret: Number
    cost: Number
    cost_low: Number
    cost_high: Number
    pairs: int

    @property
    def scored(self) -> Range:
        return Range(self.score, self.low, self.high)

    @property
    def costs(self) -> Range:
        return Range(self.cost, self.cost_low, self.cost_high)


@dataclass(frozen=True)
class EffectRow:
    """What one level of a training choice contributes, on one scale and in one language (or in all)."""

    facet: str
    rater: str
    language: str
    factor: str
    level: str
    mean: Number
    effect: Number
    low: Number
    high: Number
    against: str | None
    interaction: Number
    interaction_low: Number
    interaction_high: Number
    conditions: int
    rated: int
    missing: int
    n_prompts: int
    covers: str | None
    reason: str | None


@dataclass(frozen=True)
class VarianceRow:
    """The share of the variance between settings that a training choice accounts for."""

    facet: str
    rater: str
    language: str
    factor: str
    share: Number
    low: Number
    high: Number
    covers: str | None
    reason: str | None


@dataclass(frozen=True)
class MarginRow:
    """How likely a checkpoint opens its reply in the user's language, or which share of pairs of sentences it tells."""

    run: str
    id: str
    step: int
    language: str
    mean: Number
    low: Number
    high: Number
    rated: int
    missing: int


@dataclass(frozen=True)
class InstructionRow:
    """How many prompts, or single instructions, of IFEval a checkpoint follows, strictly or loosely."""

    run: str
    id: str
    step: int
    language: str
    counted: str
    criterion: str
    mean: Number
    low: Number
    high: Number
    rated: int
    missing: int


@dataclass(frozen=True)
class FactRow:
    """How alike a checkpoint answers the same facts in two languages (see analysis/consistency.py)."""

    run: str
    id: str
    step: int
    first: str
    second: str
    rated: int
    missing: int
    first_right: Number
    first_right_low: Number
    first_right_high: Number
    second_right: Number
    second_right_low: Number
    second_right_high: Number
    alike: Number
    alike_low: Number
    alike_high: Number
    alike_by_chance: Number
    first_only: Number
    first_only_low: Number
    first_only_high: Number
    second_only: Number
    second_only_low: Number
    second_only_high: Number
    lost_rated: int
    gained_rated: int
    lost: Number
    lost_low: Number
    lost_high: Number
    gained: Number
    gained_low: Number
    gained_high: Number


@dataclass(frozen=True)
class MissingRow:
    """How many of the ratings asked for are missing, by scale, language and reason."""

    facet: str
    rater: str
    kind: str
    language: str
    reason: str
    count: int
    asked: int


@dataclass(frozen=True)
class AgreementRow:
    """How far two raters, or a rater and people, agree (see analysis/agreement.py)."""

    between: str
    facet: str
    language: str
    first: str
    second: str
    items: int
    pairs: int
    missing: int
    clusters: int
    kappa: Number
    kappa_low: Number
    kappa_high: Number
    agreement: Number
    agreement_low: Number
    agreement_high: Number
    alpha: Number
    alpha_low: Number
    alpha_high: Number
    tau: Number
    tau_low: Number
    tau_high: Number
    leniency: Number
    leniency_low: Number
    leniency_high: Number
    confusion: list[list[int]] | None
    reasons: Mapping[str, str]

    def measure(self, name: str) -> Range:
        """One of analysis.agreement.MEASURES with its interval."""
        return Range(*(getattr(self, f"{name}{end}") for end in ("", "_low", "_high")))


@dataclass(frozen=True)
class PersonRow:
    """One person beside the others who read the same responses."""

    facet: str
    language: str
    rater: str
    items: int
    clusters: int
    kappa: Number
    kappa_others: Number
    leniency: Number
    leniency_low: Number
    leniency_high: Number
    leniency_p: Number
    kappa_difference: Number
    kappa_difference_low: Number
    kappa_difference_high: Number
    kappa_difference_p: Number
    deviates: list[str]


@dataclass(frozen=True)
class CalibrationRow:
    """A judge's mean of a checkpoint, people's, and both together (see analysis/calibration.py)."""

    run: str
    step: int
    language: str
    facet: str
    judge: str
    judge_mean: Number
    judge_low: Number
    judge_high: Number
    judge_rated: int
    judge_missing: int
    people_mean: Number
    people_low: Number
    people_high: Number
    people_rated: int
    people_missing: int
    calibrated_mean: Number
    calibrated_low: Number
    calibrated_high: Number
    calibrated_rated: int
    calibrated_missing: int
    weight: Number
    labelled: int
    reason: str | None
    id: str

    @property
    def estimates(self) -> dict[str, Range]:
        """By who says so."""
        return {
            "judge alone": Range(self.judge_mean, self.judge_low, self.judge_high),
            "people alone": Range(self.people_mean, self.people_low, self.people_high),
            "calibrated": Range(self.calibrated_mean, self.calibrated_low, self.calibrated_high),
        }


RowType = TypeVar("RowType")


def read(kind: type[RowType], found: Mapping[str, Any], **more: Any) -> RowType:
    """A row of what an analysis has found; raises KeyError for a field that it does not tell."""
    told = {**found, **more}
    return kind(**{field.name: told[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def record(row: Any) -> dict[str, Any]:
    """A row as one line of a CSV; one that is a record already stays."""
    if isinstance(row, dict):
        return row
    return {name: value for name, value in vars(row).items() if name not in {"base", "untuned"} or value is not None}
