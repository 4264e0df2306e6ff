"""What a model's measurements mean and what to try: only what they show beyond chance is said."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from xlift.diagnosis.measure import FormatFit, LanguageRow, Measured
from xlift.intervals import Estimate
from xlift.study.data import builtin_languages
from xlift.terminal import share_text

SPOILT = 0.95
"""The share of answers that should be right; a row whose whole interval lies below has a fault."""
OFTEN = 0.2
"""A share of answers that is a fault where its whole interval lies above."""
BETTER_FIT, LEAST_END = 0.3, 1e-3
"""Nats a token by which another chat format must fit better, and the probability under which no reply ends."""
COSTLY = 1.7
"""Tokens of a language against English from which on its tokens are said to be short."""


class Finding(NamedTuple):
    """One thing that is wrong: what it is, the figures behind it, and what to try, commands where there are any."""

    kind: str
    title: str
    shown: list[str]
    tries: list[str]


def findings(model: Measured, base: Measured | None = None) -> list[Finding]:
    """What is wrong, the most telling first; [] where nothing is beyond chance. `base` is what it was tuned from."""
    found = [_template(model), _no_end(model), _empty(model)]
    spoilt = _spoilt(model)
    found += [spoilt] if spoilt else [*_languages(model, base), _facts(model), _loops(model)]
    return [one for one in found if one]


def _spoilt(model: Measured) -> Finding | None:
    """Answers that are no language, in English too: then it makes no sense to ask in which language they are."""
    row = next(row for row in model.rows if row.language == "en")
    if not (_below(row.right, 0.5) and _below(row.fluent, 0.5)):
        return None
    shown = [_each([row], "right", "wholly in the language: "), _each([row], "fluent", "without a fluency sign: ")]
    tries = [
        "lower the learning rate by ten or more; see in train.jsonl where the loss has risen",
        "see that weights and tokenizer belong together, and that it was saved whole",
    ]
    return Finding("no language", "What it writes is no language, in English neither", shown, tries)


def _template(model: Measured) -> Finding | None:
    """Another chat format under which the model finds the same replies much likelier."""
    if not model.formats:
        return None
    own, *others = model.formats
    best = min(others, key=lambda fit: fit.nats, default=own)
    if own.nats - best.nats < BETTER_FIT:
        return None
    shown = [f"reference replies cost {_fit(own)} as '{own.name}', {_fit(best)} as '{best.name}'"]
    tries = [f"xlift diagnose {model.name} --template {best.name}", "tune and serve with one and the same template"]
    return Finding("template", f"The chat template '{own.name}' is not what the model knows best", shown, tries)


def _fit(fit: FormatFit) -> str:
    return f"{fit.nats:.2f} nats a token"


def _no_end(model: Measured) -> Finding | None:
    """Answers that run to the limit although what would end them has been said."""
    running = [row for row in model.rows if _above(row.cut, OFTEN)]
    own = next(iter(model.formats), None)
    if not running or own is None or own.ends >= LEAST_END:
        return None
    cut = _each(running, "cut", "at the token limit: ")
    shown = [f"after a whole reply, the end of turn has a probability of {own.ends:.0e}", cut]
    tries = [
        "see that the end of turn is learned: xlift check STUDY.yaml shows the loss mask on a real example",
        "an untuned base model has never learned to end its turn: tune it, or name stop strings where it is served",
    ]
    return Finding("no end of turn", "It does not end its turn: answers run to the token limit", shown, tries)


def _empty(model: Measured) -> Finding | None:
    rows = [row for row in model.rows if _above(row.empty, 0.05)]
    if not rows:
        return None
    tries = ["look at the template: a reply that ends at once was often learned from data without its reply"]
    return Finding("no answer", "It gives no answer", [_each(rows, "empty", "empty: ")], tries)


def _languages(model: Measured, base: Measured | None) -> list[Finding]:
    """Answers in another language than the user's: English above all, another one, or two mixed."""
    before = {row.language: row for row in base.rows} if base else {}
    wrong = [row for row in model.rows if row.language != "en" and _below(row.right, SPOILT)]
    english = [row for row in wrong if row.instead == "en" and _above(row.wrong, OFTEN)]
    other = [row for row in wrong if row not in english and _above(row.wrong, OFTEN)]
    # e.g. half of the answers empty and the rest right: silence, and no mix of languages
    mixed = [row for row in wrong if row not in english and row not in other and _said(row) < SPOILT]
    # What never ends a reply has not been tuned: then tuning has taken nothing.
    tuned = base is not None or _no_end(model) is None
    lost = [row for row in english + other + mixed if tuned and _fell(row, before.get(row.language))]
    faults = (
        ("answers in English", "It answers users of {} in English", english),
        ("wrong language", "It answers users of {} in another language", other),
        ("mixed languages", "It mixes languages when it answers users of {}", mixed),
    )
    found = [
        Finding(kind, title.format(_names(rows)), _language_shown(rows, before), _remedies(model, rows, lost, base))
        for kind, title, rows in faults
        if rows
    ]
    rare = [row for row in wrong if model.tokens.get(row.language, 0) >= COSTLY and (not base or row not in lost)]
    if rare and base:
        tokens = ", ".join(f"{row.name} {model.tokens[row.language]:.1f}" for row in rare)
        shown = [f"tokens for the same questions, English being 1: {tokens}", _language_shown(rare, before)[-1]]
        tries = ["choose a base model that was trained on more of the language: tuning does not bring it"]
        found.append(Finding("little of it in pretraining", f"The base has seen little {_names(rare)}", shown, tries))
    return found


def _said(row: LanguageRow) -> float:
    """The share of answers that are wholly in the language or say nothing."""
    return (row.right.mean or 0.0) + (row.empty.mean or 0.0)


def _language_shown(rows: Sequence[LanguageRow], before: dict[str, LanguageRow]) -> list[str]:
    shown = [_each(rows, "right", "wholly in the language: ")]
    margins = [(row, row.margin) for row in rows if row.margin and row.margin.mean is not None]
    if margins:
        told = ", ".join(f"{row.name} {share_or_unknown(margin)}" for row, margin in margins)
        shown.append(f"probability that a reply opens in the language and not in English: {told}")
    known = [before[row.language] for row in rows if row.language in before]
    return [*shown, _each(known, "right", "of its base: ")] if known else shown


def _remedies(
    model: Measured, rows: Sequence[LanguageRow], lost: Sequence[LanguageRow], base: Measured | None
) -> list[str]:
    """What is known to help against answers in another language; after tuning, what tuning has taken."""
    tries = [f"xlift diagnose {model.name} --system 'Always answer in the language of the user.'"]
    if lost:
        tries += [
            "tune with a lower learning rate or fewer steps, and choose by all languages:",
            "  xlift run STUDY.yaml 'training.learning_rate={log_range: [1e-5, 1e-3, 5]}'",
            "draw the weights half-way back to the base: xlift run STUDY.yaml 'training.weight=[0.5, 1]'",
        ]
    tries += ["mix about 40 conversations in these languages into the data (sources, in docs/study-files.md)"]
    codes = ",".join(row.language for row in rows if row.language in builtin_languages())
    # Of a run the data and settings are known, its base too.
    run = (Path(model.name) / "run.yaml").is_file()
    source = model.name if run else f"{model.name} --base {base.name}" if base else None
    if codes and source:
        tries += [
            "compare these and other remedies, with what each costs:",
            f"  xlift mend {source} --languages {codes}",
        ]
    return tries


def _facts(model: Measured) -> Finding | None:
    """Facts that it has right in English and wrong elsewhere, where it answers in the language."""
    english = next((row.facts for row in model.rows if row.language == "en"), None)
    if not english or english.low is None:
        return None
    weak = [row for row in model.rows if row.language != "en" and _below(row.facts, english.low)]
    sound = [row for row in weak if not _below(row.right, SPOILT)]
    if not sound:
        return None
    shown = [f"facts answered right: English {share_or_unknown(english)}, {_each(sound, 'facts')}"]
    tries = ["no matter of tuning data: what the base does not know in a language, instructions do not teach"]
    title = f"It speaks {_names(sound)}, and knows less there than in English"
    return Finding("facts", title, shown, tries)


def _loops(model: Measured) -> Finding | None:
    rows = [row for row in model.rows if _below(row.fluent, 1 - OFTEN) and not _below(row.right, SPOILT)]
    if not rows:
        return None
    shown = [_each(rows, "fluent", "without a sign of reduced fluency: ")]
    tries = [
        f"xlift diagnose {model.name} --repetition-penalty 1.2",
        "look at the examples below: loops, or broken words",
    ]
    return Finding("fluency", f"Its {_names(rows)} shows signs of reduced fluency", shown, tries)


# e.g. _below(Estimate(0.8, 0.6, 0.94, 20, 0), SPOILT) → True
# e.g. _below(Estimate(0.8, 0.6, 0.97, 20, 0), SPOILT) → False
def _below(found: Estimate, least: float) -> bool:
    return found.high is not None and found.high < least


# e.g. _above(Estimate(0.4, 0.21, 0.6, 20, 0), OFTEN) → True
def _above(found: Estimate, most: float) -> bool:
    return found.low is not None and found.low > most


def _fell(row: LanguageRow, before: LanguageRow | None) -> bool:
    """Whether the base did better beyond chance; without a base, tuning is suspected."""
    if before is None or before.right.low is None:
        return before is None
    return _below(row.right, before.right.low)


def _names(rows: Sequence[LanguageRow]) -> str:
    return " and ".join(filter(None, [", ".join(row.name for row in rows[:-1]), rows[-1].name]))


def _each(rows: Sequence[LanguageRow], what: str, before: str = "") -> str:
    return before + ", ".join(f"{row.name} {share_or_unknown(getattr(row, what))}" for row in rows)


# e.g. share_or_unknown(Estimate(0.94, 0.72, 0.99, 20, 0)) → "94% [72–99]"
# e.g. share_or_unknown(Estimate(None, None, None, 0, 20)) → "not known"
def share_or_unknown(found: Estimate, unknown: str = "not known") -> str:
    """A share with its interval, or `unknown`."""
    if found.mean is None or found.low is None or found.high is None:
        return unknown
    return share_text(found.mean, found.low, found.high)
