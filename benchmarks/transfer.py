"""Everything that docs/transfer-study.md shows, made anew from the stored responses and ratings.

    python benchmarks/transfer.py [--study FOLDER|FILE.tar.xz] [--page docs/transfer-study.md]

Reads the study (studies/transfer-270m.tar.xz where none is named), writes the figures into the folder beside the page
that is called as it is, and the tables between the page's marks, `<!-- NAME -->` and `<!-- /NAME -->`; the text around
them is written by hand. Takes about a minute; wants no model, no GPU and no network.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from xlift.analysis.selection import picks, rules, validation_findings
from xlift.export.archive import is_archive, read_archive
from xlift.languages import language_name
from xlift.report.figures import Figure, save_figure
from xlift.report.flips import flips_table
from xlift.report.formats import Column, ReportTable, Value, to_markdown
from xlift.report.numbers import Findings, consistency_rows, differences, findings_of, selection_rows
from xlift.report.reading import Condition, Material, Scale, material_of
from xlift.report.rows import MarginRow
from xlift.report.sections import sections_of
from xlift.report.tables import selection_tables
from xlift.stages import rate_stage
from xlift.workspace import find_study

ROOT = Path(__file__).parents[1]
FIGURES = ("outcomes", "learning-rate-language")
PUBLISHED = (3e-4, 1e-3)
"""Rates of LoRA that published sweeps have chosen by English loss."""
BY = ["facet", "rater", "language"]
SHOWN = 3
"""Requests of which the page shows answers."""


def table(heads: Sequence[Column], lines: Iterable[Sequence[Value]]) -> str:
    return shown(ReportTable("", "", "", list(heads), [list(line) for line in lines], []))


def shown(made: ReportTable | None) -> str:
    return to_markdown(made) if made and made.lines else "Too few runs are finished to say."


def by_language(material: Material, first: Sequence[Column], form: Any) -> list[Column]:
    return [*first, *(Column(language_name(code), form) for code in material.languages)]


def condition(material: Material, **settings: Any) -> Condition | None:
    """The tuned condition that has these settings and otherwise those of the study's first, if it has answered."""
    first = next(one for one in material.workspace.runs if one.trains).config
    usual = {"method": "lora", "instructions": first.instructions.label, "weight": 1.0, "layers": None, "rslora": False}
    if settings.get("method") == "full":
        usual["rslora"] = None
    wanted = usual | settings
    found = [one for one in material.conditions if not one.untuned]
    return next((one for one in found if all(one.settings[name] == value for name, value in wanted.items())), None)


def first_seed(material: Material, one: Condition | None) -> Condition | None:
    """The first run of a condition alone, to stand beside runs that share its seed."""
    if one is None:
        return None
    run = next(run for run in material.workspace.runs if run.id == one.runs[0])
    return one._replace(name=run.label, runs=[run.id], chosen={"run": run.id})


def base(material: Material) -> Condition:
    return next(one for one in material.conditions if one.untuned)


def shares(material: Material, found: Findings, chosen: Iterable[Condition], scale: Scale) -> list[list[Value]]:
    """A line a condition: its share in each language, over its seeds."""
    told = {(row.run, row.language): row for row in found.on(scale).means}
    lines = []
    for one in chosen:
        rows = [told.get((one.name, code)) for code in material.languages]
        lines.append([Value(one.name), *(Value(*row.share) if row else Value() for row in rows)])
    return lines


def runs(material: Material, found: Findings, scale: Scale) -> str:
    """Every run of the grid, finished or not."""
    whole = {row.id: row for row in found.on(scale).checkpoints}
    english = {row.id: row for row in found.on(scale).shares if row.language == "en"}
    losses = dict(
        material.training.drop_nulls("heldout_loss").group_by("run").agg(pl.col("heldout_loss").last()).iter_rows()
    )
    heads = [
        Column("run"),
        Column("English loss", "number"),
        Column("English", "share"),
        Column("others, mean", "share"),
    ]
    heads.append(Column("worst", "share"))
    lines = []
    for run in material.workspace.runs:
        own = whole.get(run.id)
        if own is None:
            lines.append([Value(run.label), *[Value(note="not run yet"), Value(), Value(), Value()]])
            continue
        said = english[run.id]
        worst = Value(own.worst, own.worst_low, own.worst_high, language_name(own.worst_language))
        loss = Value(losses.get(run.id))
        lines.append(
            [Value(run.label), loss, Value(said.mean, said.low, said.high), Value(own.mean, own.low, own.high), worst]
        )
    return table(heads, lines)


def facets(material: Material, found: Findings, chosen: Sequence[Condition]) -> str:
    """Each facet in each language, untuned and tuned."""
    heads = by_language(material, [Column("facet"), Column("run")], "share")
    lines = []
    for scale in material.scales:
        lines += [[Value(scale.short), *line] for line in shares(material, found, chosen, scale)]
    return table(heads, lines)


def beside(material: Material, pairs: Iterable[tuple[Condition | None, Condition | None]], scale: Scale) -> str:
    """Second less first by language, paired by prompt; p corrected over all of the table (Holm)."""
    frame = material.test.filter(facet=scale.facet, rater=scale.rater)
    heads = by_language(material, [Column("second"), Column("less first")], "points")
    lines, tests = [], []
    for first, second in pairs:
        if first is None or second is None or first == second:
            continue
        rows = {row.language: row for row in differences(frame, first, second, BY, material.resampling)}
        tests += [row.p for row in rows.values()]
        lines.append(
            [Value(second.name), Value(first.name)]
            + [
                Value(row.difference, row.low, row.high, "*" if row.p_holm is not None and row.p_holm < 0.05 else "")
                for row in (rows[code] for code in material.languages)
            ]
        )
    return table(heads, lines)


def facts(material: Material) -> str:
    """Of the facts right in English, the share that is wrong in each other language."""
    heads = [Column("run"), Column("right in English", "share")]
    heads += [Column(language_name(code), "share") for code in material.languages if code != "en"]
    lines: dict[str, list[Value]] = {}
    for row in consistency_rows(material):
        if row.first == "en":
            right = Value(row.first_right, row.first_right_low, row.first_right_high, f"of {row.rated}")
            line = lines.setdefault(row.run, [Value(row.run), right, *[Value()] * (len(heads) - 2)])
            place = [code for code in material.languages if code != "en"].index(row.second)
            line[place + 2] = Value(row.lost, row.lost_low, row.lost_high, f"of {row.lost_rated}")
    return table(heads, lines.values())


def seeds(material: Material, scale: Scale) -> str:
    """Of conditions with several seeds, the lowest and highest share that a seed gives in each language."""
    frame = material.test.filter(facet=scale.facet, rater=scale.rater)
    heads = by_language(material, [Column("run"), Column("seeds", "count")], "text")
    lines = []
    for one in (one for one in material.conditions if len(one.runs) > 1):
        own = frame.filter(pl.col("run").is_in(one.runs)).group_by("run", "language").agg(pl.col("value").mean())
        spread = {code: own.filter(language=code)["value"].to_list() for code in material.languages}
        texts = [Value(f"{min(told) * 100:.0f}–{max(told) * 100:.0f} %") for told in spread.values()]
        lines.append([Value(one.name), Value(len(one.runs)), *texts])
    return table(heads, lines)


def without_generating(rows: Sequence[MarginRow], codes: Sequence[str]) -> str:
    """What was measured of each checkpoint without an answer: how it leans, or which sentences it finds right."""
    told = {(row.run, row.language): row for row in rows}
    heads = [Column("run"), *(Column(language_name(code), "share") for code in codes)]
    names = list(dict.fromkeys(row.run for row in rows))
    lines = [[Value(name), *(Value(*_range(told[name, code])) for code in codes)] for name in names]
    return table(heads, lines)


def _range(row: Any) -> tuple[Any, Any, Any]:
    return row.mean, row.low, row.high


def examples(material: Material, chosen: Sequence[Condition], languages: Sequence[str], seed: int = 0) -> str:
    """Answers to a few open requests, drawn by the seed, as they are."""
    answered = {one.run.id: {response["id"]: response for response in one.responses} for one in material.answered}
    asked = [one for one in material.prompts if one["split"] == "test" and one["id"].startswith("open")]
    drawn = [random.Random(seed).choice([one for one in asked if one["language"] == code]) for code in languages]
    lines = []
    for prompt in drawn[:SHOWN]:
        lines.append(f"**{language_name(prompt['language'])}**: {_plain(prompt['messages'][-1]['content'])}\n")
        for one in {one.name: one for one in chosen}.values():
            lines.append(f"- `{one.name}`: {_plain(answered[one.runs[0]][prompt['id']]['text'])}")
        lines.append("")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text in one line that means nothing to Markdown or HTML."""
    flat = " ".join(text.split())
    return re.sub(r"([\\`*_\[\]#|])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))


def chosen_by_mean(material: Material) -> Condition:
    """What validation prompts in all languages would pick."""
    given = rules(
        validation_findings(material.everyone.filter(split="validation"), material.training), material.measure
    )
    run = picks(given["mean over languages"])[0].run
    return next(one for one in material.conditions if run in one.runs)


def best_of(material: Material, method: str) -> Condition | None:
    """The same among the runs of one method."""
    runs = material.axes.filter(method=method)["run"].to_list()
    own = material.everyone.filter(pl.col("run").is_in(runs), split="validation")
    if own.is_empty():
        return None
    given = rules(validation_findings(own, material.training), material.measure)
    run = picks(given["mean over languages"])[0].run
    return next(one for one in material.conditions if run in one.runs)


def selection_cost(material: Material) -> ReportTable | None:
    """What choosing costs."""
    found = {one.name: one for one in selection_tables(material, selection_rows(material))}
    return found.get("selection-cost")


def blocks(material: Material, found: Findings) -> dict[str, Callable[[], str]]:
    """What stands between the page's marks, by name."""
    language = material.scales[0]
    rates = sorted({one.settings["learning_rate"] for one in material.conditions if not one.untuned})
    lora = [one for rate in rates if (one := condition(material, learning_rate=rate))]
    full = [one for rate in rates if (one := condition(material, method="full", learning_rate=rate))]
    untuned, best = base(material), chosen_by_mean(material)
    spoilt = first_seed(material, condition(material, learning_rate=3e-3))
    named = sorted({one.settings["instructions"] for one in material.conditions if not one.untuned}, key=_natural)
    amounts = [one for name in named if (one := condition(material, instructions=name, learning_rate=1e-3))]
    others = [
        condition(material, learning_rate=3e-3, weight=0.5),
        condition(material, learning_rate=3e-3, instructions="en-300+40"),
        condition(material, learning_rate=3e-3, layers="last 4"),
    ]
    heads = by_language(material, [Column("run")], "share")
    return {
        "runs": lambda: runs(material, found, language),
        "facets": lambda: facets(material, found, [untuned, best]),
        "transfer": lambda: beside(material, [(untuned, best)], language),
        "rates": lambda: table(heads, shares(material, found, [untuned, *lora, *full], language)),
        "flips": lambda: shown(flips_table(material, found.on(language).means, language)),
        "amounts": lambda: table(heads, shares(material, found, amounts, language)),
        "amounts-compared": lambda: beside(
            material, [(amounts[-1] if amounts else None, one) for one in amounts], language
        ),
        "methods": lambda: beside(material, [(best_of(material, "lora"), best_of(material, "full"))], language),
        "selection-cost": lambda: shown(selection_cost(material)),
        "published": lambda: beside(
            material, [(best, condition(material, learning_rate=rate)) for rate in PUBLISHED], language
        ),
        "margins": lambda: without_generating(found.margins, [one for one in material.languages if one != "en"]),
        "grammar": lambda: without_generating(found.grammar, material.languages),
        "facts": lambda: facts(material),
        "seeds": lambda: seeds(material, language),
        "remedies": lambda: beside(material, [(spoilt, one) for one in others], language),
        "examples": lambda: examples(material, [untuned, best, *lora[-2:]], ["fr", "hi", "zh"]),
    }


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def fill(page: Path, made: dict[str, Callable[[], str]]) -> None:
    """Put the tables between the page's marks. Raises ValueError for a mark that no table has."""
    text = page.read_text(encoding="utf-8")

    def filled(mark: re.Match[str]) -> str:
        if mark[1] not in made:
            raise ValueError(f"{page}: no table '{mark[1]}'; there are {', '.join(made)}")
        return f"<!-- {mark[1]} -->\n\n{made[mark[1]]()}\n\n<!-- /{mark[1]} -->"

    page.write_text(re.sub(r"(?s)<!-- ([\w-]+) -->.*?<!-- /\1 -->", filled, text), encoding="utf-8")


def draw(figures: Iterable[Figure], folder: Path) -> None:
    """Figures on white paper, as SVG alone."""
    for figure in figures:
        save_figure(figure.specification, folder, figure.name)
        (folder / f"{figure.name}.png").unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=ROOT / "studies" / "transfer-270m.tar.xz")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "transfer-study.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "study"
        workspace = read_archive(given.study, place) if is_archive(given.study) else find_study(given.study)
        # What an earlier version of a rater has said does not count: it is said anew, of the same answers.
        rate_stage(workspace)
        material = material_of(workspace)
        found = findings_of(material)
        drawn = [block.figure for one in sections_of(material, found) for block in one.blocks if block.figure]
        draw([one for one in drawn if one.name in FIGURES], given.page.with_suffix(""))
        fill(given.page, blocks(material, found))


if __name__ == "__main__":
    main()
