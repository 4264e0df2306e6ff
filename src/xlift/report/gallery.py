"""Which answers a reader should see first: the most telling failures, drawn by seed, a language at a time."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from xlift.records import Prompt, counted, reply_language
from xlift.report.answered import Answered
from xlift.report.overall import REFERENCE, OverallRow
from xlift.report.reading import Material

FAILURES = {0.0: 2.0, 1.0: 1.0}
"""How much a value of the rater language tells of a failure."""


def telling_order(material: Material, shown: Sequence[int] = ()) -> list[int]:
    """Places of all prompts, those first to which tuned runs fail most; test prompts before validation prompts.

    The checkpoints at the places `shown`, which are seen at first, count as much as all together. What tuning has taken
    tells more than what was never there. Among equals a seed draws, and languages take turns.
    """
    prompts, shuffled = material.prompts, list(range(len(material.prompts)))
    random.Random(material.workspace.study.decoding.seed).shuffle(shuffled)
    told = _told(material, [material.answered[place] for place in shown])
    failing = [place for place in shuffled if told.get(prompts[place]["id"], 0.0) > 0]
    failing.sort(key=lambda place: -told[prompts[place]["id"]])
    parts = [[place for place in failing if prompts[place]["split"] == split] for split in ("test", "validation")]
    first = [place for part in parts for place in _in_turns(part, prompts)]
    return [*first, *sorted(set(shuffled) - set(first))]


# e.g. _in_turns([0, 1, 2], [{"language": "fr"}, {"language": "fr"}, {"language": "ru"}]) → [0, 2, 1]
def _in_turns(places: Sequence[int], prompts: Sequence[Prompt]) -> list[int]:
    """The places so that each language's first come first."""
    own: dict[str, list[int]] = {}
    for place in places:
        own.setdefault(reply_language(prompts[place]), []).append(place)
    return [place for turn in zip_longest(*own.values()) for place in turn if place is not None]


# e.g. the untuned model answers in French, one of two tuned runs in English: 2 / 2 runs, twice for what was lost = 2
def _told(material: Material, shown: Sequence[Answered]) -> dict[str, float]:
    """By prompt, the mean failure of the tuned and of those shown; twice where the untuned model had it right."""
    base = [one for one in material.answered if one.run.config.untuned]
    tuned = [one for one in material.answered if not one.run.config.untuned] or base
    right = {name for one in base if tuned is not base for name, value in _values(one) if value == 2}
    failed: dict[str, float] = defaultdict(float)
    for group in (tuned, [one for one in shown if any(one is other for other in tuned)]):
        for one in group:
            for name, value in _values(one):
                failed[name] += FAILURES.get(value, 0.0) / len(group)
    return {
        prompt["id"]: failed[prompt["id"]]
        * (2 if prompt["id"] in right else 1)
        * (0.5 if reply_language(prompt) == REFERENCE else 1)
        for prompt in material.prompts
    }


def _values(one: Answered) -> Iterator[tuple[str, float]]:
    """Prompts, and what the rater language says; silence is 0."""
    told = ((rating["id"], counted(rating)) for rating in one.rated_by("language"))
    return ((name, value) for name, value in told if value is not None)


def first_columns(material: Material, rows: Sequence[OverallRow]) -> list[int]:
    """Which checkpoints stand side by side at first: the untuned model, the best and the worst run, else the first."""
    places = {one.run.id: place for place, one in enumerate(material.answered)}
    own = [row for row in rows if (row.facet, row.rater) == (rows[0].facet, rows[0].rater)]
    tuned = [row.id for row in own if not row.untuned]
    wanted = [*(row.id for row in own if row.untuned), *tuned[:1], *tuned[-1:]]
    return sorted({places[run] for run in wanted[:3] if run in places}) or list(range(min(3, len(material.answered))))
