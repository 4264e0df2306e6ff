"""README.md of what is exported, in the hub's form: how it was made, what the study found, what nobody looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from xlift.export.licence import Licence
from xlift.languages import language_name
from xlift.report.reading import Material, material_of, share_rows
from xlift.report.rows import ShareRow
from xlift.tuning.card import card_body, card_head
from xlift.workspace import RunFolder, find_study


def export_card(run: RunFolder, step: int, whole: bool, licence: Licence) -> str:
    """README.md: how it was tuned, what the study found by language with intervals, and what it has not looked at."""
    material = material_of(find_study(run.path.parent.parent))
    rows = [row for row in share_rows(material, "test") if (row.id, row.step) == (run.id, step)]
    head = card_head(run, whole, public=True) | licence.fields
    head |= {"model-index": [_index(run, material, rows)]} if rows else {}
    return f"{front(head)}{card_body(run, step, whole, public=True)}\n{findings_section(material, rows)}"


def front(head: dict[str, Any]) -> str:
    """The part of a card that the hub reads."""
    return f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n"


def _index(run: RunFolder, material: Material, rows: Sequence[ShareRow]) -> dict[str, Any]:
    """The results in the form that the hub shows."""
    data = {"name": f"prompts of the study {material.workspace.study.name}", "type": "xlift"}
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": data | {"config": row.language},
            "metrics": [{"type": row.rater, "name": f"{row.facet}, {language_name(row.language)}", "value": row.mean}],
        }
        for row in rows
        if row.mean is not None
    ]
    return {"name": run.label, "results": results}


def findings_section(material: Material, rows: Sequence[ShareRow], of_runs: bool = False) -> str:
    """The section on what was found by language, with intervals; `of_runs` where the rows are of several."""
    if not rows:
        return "## Findings\n\nThe answers have not been rated.\n"
    titles = {(scale.facet, scale.rater): scale.title for scale in material.scales}
    named = ["| run | step ", "|---|---"] if of_runs else ["", ""]
    lines = [
        f"{named[0]}| answers to test prompts | language | share | 95 % interval | rated | missing |",
        f"{named[1]}|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, interval = ("", "") if row.mean is None else (f"{row.mean:.0%}", f"{row.low:.0%} – {row.high:.0%}")
        told = (titles[row.facet, row.rater], language_name(row.language), share, interval, row.rated, row.missing)
        whose = (row.run, row.step) if of_runs else ()
        lines.append(f"| {' | '.join(map(str, (*whose, *told)))} |")
    asked = len({prompt.get("parallel_id", prompt["id"]) for prompt in material.prompts if prompt["split"] == "test"})
    limits = (
        f"From {asked} test requests a language; other languages and longer conversations were not looked at. "
        "Shares by surface checks and judges are no proof that an answer is true or safe."
    )
    return "\n".join(["## Findings", "", *lines, "", limits, ""])
