"""The report in words: sentences made from its numbers. No number without its interval, no difference that chance can
explain, and what is not known is said too.

A difference is called one only if its interval leaves out 0 and its p, corrected for all comparisons that could have
been picked, is below 1 - confidence; the cost of a rule of selection, which has no p, by its interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import polars as pl

from xlift.analysis.pairings import ALL_LANGUAGES
from xlift.halving import saved
from xlift.languages import language_name
from xlift.progress import duration
from xlift.report.breakdown import KindRow, widest_gap
from xlift.report.factors import factor_name
from xlift.report.formats import interval_text, value_text
from xlift.report.numbers import Findings, differences, smallest_detectable
from xlift.report.overall import REFERENCE, OverallRow, others_text
from xlift.report.reading import Condition, Material, Scale, measure_text, setting_text
from xlift.report.rows import DifferenceRow, MissingRow, Range, SelectionRow, VarianceRow
from xlift.report.wide import picked

MOST_NAMED = 8
"""More languages than this are not gone through one by one."""


class Point(NamedTuple):
    """A finding in words, and the id of the figure or table of the page that shows it."""

    text: str
    target: str = ""


def summary_points(material: Material, found: Findings) -> list[Point]:
    """What was found, a point a finding."""
    opening = Point(_design(material))
    if not material.scales or not found.shares:
        return [opening, Point("Nothing has been rated yet, so nothing can be said.")]
    scale = material.scales[0]
    own = found.on(scale)
    points = [
        opening,
        Point(_untuned(material, own, scale), f"figure-heat-map-{scale.slug}"),
        Point(_overall(material, own.overall), f"table-overall-{scale.slug}"),
        Point(_extremes(material, scale), f"table-overall-{scale.slug}"),
        Point(_kinds(material, own.kinds), f"table-kinds-{scale.slug}"),
        Point(_versus(material, own.versus), f"table-versus-base-{scale.slug}"),
        Point(_gaps(material, own.gaps), f"figure-transfer-{scale.slug}"),
        Point(_choosing(material, found.selection), "table-selection-cost"),
        Point(_choices(own.variance), f"table-variance-{scale.slug}"),
    ]
    return [point for point in points if point.text]


def _overall(material: Material, rows: Sequence[OverallRow]) -> str:
    """The best run by the mean over the other languages, its worst language, and how many may be as good."""
    own = [row for row in rows if row.languages > 1]
    if len(own) < 2:
        return ""
    best = own[0]
    alike = [row for row in own[1:] if row.rank_from == 1]
    rest = f"; {_counted(len(alike), 'other')} cannot be told from it" if alike else "; all others are behind it"
    return (
        f"Overall ({others_text(material)}), {best.run} is highest with {_share(best.share)}, in its worst language, "
        f"{language_name(best.worst_language)}, {_share(best.lowest)}{rest}."
    )


def unknown_text(material: Material, found: Findings) -> str:
    """What these numbers cannot say, as one paragraph."""
    sentences = [
        _precision(material),
        _missing(material, found.missing),
        _seeds(material),
        _unjudged(material),
        _contaminated(material),
        _unfinished(material),
        outdated_text(material),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


def outdated_text(material: Material) -> str:
    """What to say of raters whose ratings are there and count no more, since the raters have changed; "" of none."""
    old = [
        name
        for name in material.workspace.study.raters
        if any(one.run.ratings(one.step, name).is_file() and name not in one.rated for one in material.answered)
    ]
    if not old:
        return ""
    # Without the study's folder: the page may go to others.
    return f"Ratings by {_listed(old)} that an older version has made count no more; xlift rate STUDY makes them anew."


def _design(material: Material) -> str:
    runs = material.workspace.runs
    tuned = [run for run in runs if not run.config.untuned]
    given = [run.label for run in runs if run.config.given]
    beside = f"{len(tuned)} tuned and {len(given)} other models" if tuned and given else ""
    models = list(dict.fromkeys(str(setting_text("model", {"model": run.config.model})) for run in runs))
    requests = _requests(material)
    languages = _listed([language_name(code) for code in material.languages])
    if beside:
        return f"This study compares {beside} on {_counted(requests, 'test request')} in {languages}."
    if given:
        return f"This study compares {_listed(given)} on {_counted(requests, 'test request')} in {languages}."
    if not tuned:
        return f"This study asks {_counted(requests, 'test request')} in {languages} of {_listed(models)}."
    base = " beside the untuned model" if len(tuned) < len(runs) else ""
    return (
        f"This study compares {_counted(len(tuned), 'tuned run')} of {_listed(models)}{base} on "
        f"{_counted(requests, 'test request')} in {languages}."
    )


def _requests(material: Material) -> int:
    """Test requests, translations counted once."""
    return len({prompt.get("parallel_id") or prompt["id"] for prompt in material.prompts if prompt["split"] == "test"})


# e.g. _counted(1, "tuned run") → "1 tuned run"
# e.g. _counted(3, "tuned run") → "3 tuned runs"
def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# e.g. _listed(["French", "Portuguese", "Russian"]) → "French, Portuguese and Russian"
# e.g. _listed([f"run {number}" for number in range(1, 10)]) → "run 1, run 2, run 3 and 6 more"
def _listed(names: Sequence[str]) -> str:
    if len(names) > MOST_NAMED:
        return f"{', '.join(names[:3])} and {len(names) - 3} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# e.g. _share(Range(0.94, 0.72, 0.99)) → "94 % [72–99]"
def _share(found: Range) -> str:
    return f"{value_text(found.value, 'share')} {interval_text(found.low, found.high, 'share')}".strip()


# e.g. _points(Range(-0.3, -0.5, -0.1)) → "−30 points [−50, −10]"
def _points(found: Range) -> str:
    return f"{value_text(found.value, 'points')} points {interval_text(found.low, found.high, 'points')}"


def _untuned(material: Material, found: Findings, scale: Scale) -> str:
    """How the untuned model does; where there are several, nothing."""
    bases = {condition.name for condition in material.conditions if condition.untuned}
    rows = [row for row in found.means if row.run in bases and row.share.low is not None]
    if len(bases) != 1 or not rows or len(rows) > MOST_NAMED:
        return ""
    said = [f"{_share(row.share)} in {language_name(row.language)}" for row in rows]
    return f"Untuned, the share of {scale.title[0].lower()}{scale.title[1:]} is {_listed(said)}."


def _settings(conditions: Sequence[Condition]) -> str:
    """What is compared: tuned settings, or models that are not tuned here."""
    return "models" if any(one.settings["method"] is None for one in conditions) else "tuned settings"


def _extremes(material: Material, scale: Scale) -> str:
    """The highest and the lowest tuned setting outside English, if they can be told apart."""
    tuned = [condition for condition in material.conditions if not condition.untuned]
    frame = _other_languages(material, scale)
    pairs = list(combinations(tuned, 2))
    if not pairs or frame.is_empty():
        return ""
    means = {one.name: _mean(frame, one) for one in tuned}
    known = [one for one in tuned if means[one.name] is not None]
    if len(known) < 2:
        return ""
    # Of equal ones the first in the study.
    best = max(known, key=lambda one: means[one.name] or 0)
    worst = min(known, key=lambda one: means[one.name] or 0)
    rows = differences(frame, worst, best, ("facet",), material.resampling) if best is not worst else []
    where = "outside English" if REFERENCE in material.languages else "over all languages"
    if not rows or not _is_difference(material, rows[0], rows[0].p, len(pairs)):
        return f"No two {_settings(known)} can be told apart with confidence {where}."
    row = rows[0]
    what = "How it is tuned" if _settings(known) == "tuned settings" else "Which model it is"
    compared = f"{_counted(len(pairs), 'pair')} of {_settings(known)}"
    return (
        f"{what} matters: {where}, {best.name} is {_points(row.points)} above {worst.name}, the widest of "
        f"{compared} (p {_p(row.p or 0, len(pairs))}, corrected for that choice)."
    )


def _kinds(material: Material, rows: Sequence[KindRow]) -> str:
    """On which kind of prompt a run does worst beside another kind, where that is beyond chance."""
    gap = widest_gap(rows, material.workspace.study.report.confidence)
    if gap is None:
        return ""
    runs = len({row.run for row in rows})
    most = f", the widest gap between kinds in {_counted(runs, 'run')}" if runs > 1 else ""
    return (
        f"What is asked matters: {gap.run} is {_points(gap.points)} better on prompts of the kind "
        f'"{gap.more}" than on "{gap.less}"{most} (p {_p(gap.p)}, corrected for that choice).'
    )


def _other_languages(material: Material, scale: Scale) -> pl.DataFrame:
    own = material.test.filter((pl.col("facet") == scale.facet) & (pl.col("rater") == scale.rater))
    return own.filter(pl.col("language") != REFERENCE) if len(material.languages) > 1 else own


def _mean(frame: pl.DataFrame, condition: Condition) -> float | None:
    """Mean over languages, each counting alike."""
    own = frame.filter(pl.col("run").is_in(condition.runs))
    value = own.group_by("language").agg(pl.col("value").mean()).sort("language")["value"].mean()
    return float(value) if isinstance(value, float) else None


def _is_difference(material: Material, row: DifferenceRow, p: float | None, comparisons: int = 1) -> bool:
    """Whether a difference is beyond chance: its interval leaves out 0, and so does p, times the comparisons."""
    if row.low is None or row.high is None or p is None:
        return False
    level = 1 - material.workspace.study.report.confidence
    return (row.low > 0 or row.high < 0) and p * comparisons < level


# e.g. _p(0.0004, 3) → "= 0.001"
# e.g. _p(0.0001) → "< 0.001"
def _p(value: float, comparisons: int = 1) -> str:
    text = value_text(min(1.0, value * comparisons), "p")
    return text if text.startswith("<") else f"= {text}"


def _versus(material: Material, rows: Sequence[DifferenceRow]) -> str:
    """Which differences to the untuned model are beyond chance."""
    if not rows:
        return ""
    told = [row for row in rows if _is_difference(material, row, row.p_holm)]
    if not told:
        return "Against the untuned model, no difference in any one language is beyond chance."
    parts = []
    for sign, word in ((1, "more"), (-1, "fewer")):
        own = sorted((row for row in told if _size(row) * sign > 0), key=lambda row: -abs(_size(row)))
        if own:
            first = own[0]
            parts.append(
                f"{word} such answers in {len(own)} of {len(rows)} cases (setting and language; most, {first.run} "
                f"in {language_name(first.language)}: {_points(first.points)})"
            )
    return f"Against the untuned model there are, beyond chance, {' and '.join(parts)}."


def _size(row: DifferenceRow) -> float:
    return row.difference or 0.0


def _gaps(material: Material, rows: Sequence[DifferenceRow]) -> str:
    """In how many tuned settings, or models, a language is behind English beyond chance."""
    tuned = [row for row in rows if not row.untuned]
    if not tuned:
        return ""
    models = _settings([condition for condition in material.conditions if not condition.untuned]) == "models"
    behind = [row for row in tuned if _is_difference(material, row, row.p_holm) and _size(row) < 0]
    if not behind:
        return f"In no {'model' if models else 'tuned setting'} can a language be told to be behind English."
    worst = min(behind, key=_size)
    return (
        f"{'A' if models else 'Tuned, a'} language is behind English beyond chance in {len(behind)} of {len(tuned)} "
        f"cases, at most {language_name(worst.language)} in {worst.run}: {_points(worst.points)}."
    )


def _choosing(material: Material, rows: Sequence[SelectionRow]) -> str:
    """What choosing by English alone costs."""
    english = [row for row in rows if row.rule == "English loss"] or [
        row for row in rows if row.rule == "English quality"
    ]
    other = next((row for row in rows if row.rule == "mean over languages"), None)
    if not english or other is None:
        return ""
    rule, pick, told = english[0].rule, picked(material, english[0]), picked(material, other)
    if (english[0].run, english[0].step) == (other.run, other.step):
        return f"Choosing by {rule} and by the mean over languages (validation prompts) both pick {pick}."
    costs = [row for row in english if row.cost_low is not None and row.cost_low > 0]
    gains = [row for row in english if row.cost_high is not None and row.cost_high < 0]
    means = f"the mean over languages on validation prompts ({measure_text(material.measure)})"
    said = f"Choosing by {rule} picks {pick}, by {means} {told}"
    if not costs and not gains:
        return f"{said}; no cost or gain of that can be told from chance in any language."
    parts = [f"costs {language_name(row.language)} {_unsigned(row.costs)}" for row in costs]
    parts += [f"gains {language_name(row.language)} {_unsigned(row.costs)}" for row in gains]
    return f"{said}; the former {_listed(parts)}."


# e.g. _unsigned(Range(-0.3, -0.5, -0.1)) → "30 points [10, 50]"
def _unsigned(found: Range) -> str:
    """A difference without its sign."""
    bounds = sorted(abs(bound or 0) for bound in found[1:])
    return f"{abs(found.value or 0) * 100:.0f} points [{bounds[0] * 100:.0f}, {bounds[1] * 100:.0f}]"


def _choices(rows: Sequence[VarianceRow]) -> str:
    """Which training choice accounts for most, where its interval leaves out 0 and there are several."""
    parted = [row for row in rows if row.language == ALL_LANGUAGES]
    told = [row for row in parted if row.factor != "rest" and (row.low or 0) > 0]
    if not told or len(parted) < 2:
        return ""
    first = max(told, key=lambda row: row.share or 0)
    share = _share(Range(first.share, first.low, first.high))
    return f"Of what differs between settings, {factor_name(first.factor)} accounts for {share}."


def _each(material: Material) -> str:
    """How many test requests a language has: "20 test requests", "99 to 598 test requests"."""
    counts = Counter(prompt["language"] for prompt in material.prompts if prompt["split"] == "test").values() or [0]
    least, most = min(counts), max(counts)
    many = _counted(most, "test request")
    return many if least == most else f"{least} to {many}"


def _precision(material: Material) -> str:
    smallest = smallest_detectable(material, material.scales[0]) if material.scales else None
    start = f"{_each(material)} in each language"
    if smallest is None:
        return f"The test has {start}; the intervals say how much other requests could have changed."
    return (
        f"With {start}, a difference to the untuned model in one language below about {smallest * 100:.0f} points "
        "would more often than one time in five go unnoticed: where no difference is found, there may still be one."
    )


def _missing(material: Material, rows: Sequence[MissingRow]) -> str:
    asked = len(material.ratings)
    lacking = [row for row in rows if row.kind != "response"]
    count = sum(row.count for row in lacking)
    if not asked:
        return ""
    if not count:
        return "No rating is missing."
    reasons: dict[str, int] = {}
    for row in lacking:
        reasons[row.reason] = reasons.get(row.reason, 0) + row.count
    commonest = max(sorted(reasons), key=lambda reason: reasons[reason])
    share = count / asked * 100
    part = "less than 1 %" if share < 1 else f"{share:.0f} %"
    return f"{count} of {asked} ratings ({part}) are missing, most often because: {commonest}."


def _seeds(material: Material) -> str:
    tuned = [one for one in material.conditions if not one.untuned and one.settings["method"] is not None]
    if not tuned:
        return ""
    single = [condition for condition in tuned if len(condition.runs) == 1]
    if not single:
        return ""
    which = "Every setting was" if len(single) == len(tuned) else f"{len(single)} of {len(tuned)} settings were"
    return f"{which} trained with one seed only, so what another seed would change is in none of their intervals."


def _unjudged(material: Material) -> str:
    kinds = {scale.kind for scale in material.scales}
    if not kinds:
        return ""
    if kinds == {"check"}:
        return (
            "Neither people nor a judge model have read the answers: whether they are helpful is not known, and "
            "surface checks see language and form, not meaning."
        )
    return "" if "human" in kinds else "No person has rated these answers, so the judge's leniency is not known."


def _contaminated(material: Material) -> str:
    told = [run.known.get("data", {}) for run in material.workspace.runs if run.trains]
    whole = max((data.get("test_prompts_in_training", 0) for data in told), default=0)
    part = max((data.get("test_prompts_sharing_words", 0) for data in told), default=0)
    if not whole and not part:
        return ""
    asked = f"{whole} as a whole, {part} in part"
    return f"Test prompts stand in the training data ({asked}): answers to them may be known by heart."


def _unfinished(material: Material) -> str:
    answered = {one.run.id for one in material.answered if one.responses} | {run.id for run, _ in material.unread}
    unread = [f"{run.label} step {step}" for run, step in material.unread]
    made = [(material.name(one.run.id, one.step), sum(one.made.values())) for one in material.answered]
    asked = len(material.prompts)
    partly = [f"{name} ({count} of {asked} prompts)" for name, count in made if 0 < count < asked]
    halved = [run for run in material.workspace.runs if run.trained.name in material.stopped]
    open_runs = [run.label for run in material.workspace.runs if run.id not in answered and run not in halved]
    out = [run.label for run in halved]
    sentences = [
        f"Left out, as files cannot be read: {_listed(unread)}; xlift verify STUDY says more." if unread else "",
        f"No answers yet from {_counted(len(open_runs), 'run')}: {_listed(open_runs)}." if open_runs else "",
        f"Answered in part: {_listed(partly)}." if partly else "",
        f"Stopped early by successive halving, without answers: {_listed(out)}.{_spared(material)}" if out else "",
        _unmeasured(material),
    ]
    return " ".join(sentence for sentence in sentences if sentence)


_WENT_BY = {
    "language": "the share of answers in the right language",
    "margins": "the language margin",
    "heldout_loss": "the loss on held-out English replies",
}


def _spared(material: Material) -> str:
    """What halving saved, what it went by, and whether English loss would have chosen otherwise."""
    found = saved(material.workspace)
    if found is None or not found.planned:
        return ""
    labels = {run.id: run.label for run in material.workspace.runs}
    share, by = f"{found.steps / found.planned:.0%}", _WENT_BY.get(found.measure, "what was measured")
    told = (
        f" That saved {found.steps:,} of {found.planned:,} steps ({share}), about {duration(found.seconds)}, by {by}."
    )
    others = [labels[run] for run in found.kept_by_loss if found.measure != "heldout_loss"]
    return f"{told} English loss alone would have kept {_listed(others)}." if others else told


def _unmeasured(material: Material) -> str:
    asked = material.workspace.study.report.measure
    if not material.measure or material.measure == asked:
        return ""
    return f"Nobody has rated {measure_text(asked)} yet; runs are chosen by {measure_text(material.measure)} meanwhile."
