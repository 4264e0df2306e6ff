"""The report: one self-contained HTML page, or Markdown; its figures as SVG and PNG, its tables as CSV and LaTeX.

    report/index.html, report.md, figures/NAME.svg, figures/NAME.png, tables/NAME.csv, tables/NAME.tex

The page runs only the scripts whose hashes its content security policy names, none of which evaluates text as code
(Vega's expressions are interpreted), and loads nothing from anywhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from markupsafe import Markup

from xlift.disk import encode_record, write_atomic
from xlift.errors import ConfigError, nearest, shortened
from xlift.languages import language_name
from xlift.progress import Progress, progress, say
from xlift.report import methods
from xlift.report.browser import TEMPLATES, Answers, packed_answers, packed_bytes, policy, rendered
from xlift.report.figures import Figure, figure_records, save_figure, script_bundle, svg_of
from xlift.report.formats import ReportTable, cells, plain, to_csv, to_markdown, write_tables
from xlift.report.gallery import first_columns, telling_order
from xlift.report.numbers import Findings, findings_of
from xlift.report.overall import checkpoint_rows
from xlift.report.reading import TITLES, Material, Scale, material_of, share_rows
from xlift.report.rows import Range, ShareRow, rows_of
from xlift.report.sections import Section, sections_of
from xlift.report.summary import outdated_text, summary_points, unknown_text
from xlift.report.tables import runs_table
from xlift.terminal import paged, share_text, terminal_room, wrapped
from xlift.workspace import StudyFolder

__all__ = ["FORMATS", "TITLES", "result_text", "write_pages", "write_report"]

FORMATS = ("html", "md", "csv", "latex")


def write_report(workspace: StudyFolder, format: str = "html") -> Path:
    """Write the report in a format and return where it is: the page, report.md, or the folder of tables.

    html and md write figures too, html also all tables; csv and latex the tables only. Raises ConfigError for another
    format.
    """
    if format not in FORMATS:
        raise ConfigError(f"unknown format '{format}'; {nearest(format, FORMATS)}")
    return write_pages(material_of(workspace), format)


def write_pages(material: Material, format: str = "html") -> Path:
    """`write_report` from what is read already."""
    folder = material.workspace.report
    say(f"report: numbers of {len(material.ratings):,} ratings")
    if told := outdated_text(material):
        say(told)
    found = findings_of(material)
    sections = sections_of(material, found)
    tables = [block.table for section in sections for block in section.blocks if block.table]
    endings = {"html": ("csv", "tex"), "md": (), "csv": ("csv",), "latex": ("tex",)}[format]
    write_tables([*tables, runs_table(material)], folder / "tables", endings)
    if format in ("csv", "latex"):
        return folder / "tables"
    figures = [block.figure for section in sections for block in section.blocks if block.figure]
    with progress("report: figures", len(figures)) as bar:
        drawn = {one.name: _saved(one, folder / "figures", bar) for one in figures}
    path = folder / ("index.html" if format == "html" else "report.md")
    write_atomic(
        path, _html(material, found, sections, drawn) if format == "html" else _markdown(material, found, sections)
    )
    return path


def page_text(material: Material, live: str = "") -> str:
    """The page as text, nothing being written; `live` is a script that asks the page's own server for news."""
    found = findings_of(material)
    sections = sections_of(material, found)
    figures = [block.figure for section in sections for block in section.blocks if block.figure]
    drawn = {one.name: svg_of(one.specification) for one in figures}
    return _html(material, found, sections, drawn, live)


def _saved(figure: Figure, folder: Path, bar: Progress) -> str:
    drawn = save_figure(figure.specification, folder, figure.name)
    write_atomic(folder / f"{figure.name}.csv", to_csv(figure_records(figure.specification)))
    bar.advance(1, figure.name)
    return drawn


def _title(material: Material) -> str:
    return material.workspace.study.report.title or material.workspace.study.name


def _html(material: Material, found: Findings, sections: list[Section], drawn: dict[str, str], live: str = "") -> str:
    script, vega = (TEMPLATES / "report.js").read_text(encoding="utf-8"), script_bundle() if drawn else ""
    figures = [block.figure for one in sections for block in one.blocks if block.figure]
    first = first_columns(material, found.overall)
    return rendered(
        "report.html",
        title=_title(material),
        study=material.workspace.study,
        points=summary_points(material, found),
        targets=_targets(sections),
        unknown=unknown_text(material, found),
        sections=sections,
        scales=[scale for scale in material.scales if _shown(scale, sections)],
        drawn={name: Markup(_still(svg, name)) for name, svg in drawn.items()},
        specifications={one.name: packed_bytes(encode_record(one.specification)) for one in figures},
        cells=cells,
        languages=[(code, language_name(code)) for code in material.languages],
        runs=runs_table(material),
        settings=[*methods.setting_lines(material), ("The study file", methods.study_lines(material))],
        definitions=methods.definitions(material),
        facts=methods.report_facts(material),
        signatures=methods.signatures(material),
        packed=packed_answers(
            material.prompts,
            [Answers(one.run.id, one.run.label, one.step, one.responses, one.ratings) for one in material.answered],
            telling_order(material, first),
            first,
        ),
        splits=True,
        script=Markup(script),
        vega=packed_bytes(vega.encode("utf-8")) if vega else "",
        live=Markup(live),
        policy=policy(script, vega, *([live] if live else [])) + ("; connect-src 'self'" if live else ""),
    )


def _targets(sections: list[Section]) -> set[str]:
    """Ids of the figures and tables on the page."""
    blocks = [block for section in sections for block in section.blocks]
    figures = {f"figure-{block.figure.name}" for block in blocks if block.figure}
    return figures | {f"table-{block.table.name}" for block in blocks if block.table}


def _shown(scale: Scale, sections: list[Section]) -> bool:
    return any(block.scale == scale.slug for section in sections for block in section.blocks)


_PLACES = re.compile(r' (?:d|transform|[xy][12]?|width|height)="[^"]*"')
_SPOKEN = re.compile(r' (?:role|aria-label|aria-roledescription)="[^"]*"')


# e.g. _still('<g id="a" role="x"><use href="#a" x="0.123"/></g>', "f") → '<g id="f-a"><use href="#f-a" x="0.12"/></g>'
def _still(svg: str, name: str) -> str:
    """An SVG as one image, for print: ids that no other figure of the page has, hundredths of a pixel, and no names of
    single marks, which the living figure and the tables have; a third of the size."""
    svg = _PLACES.sub(lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), _SPOKEN.sub("", svg))
    return re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)


def _markdown(material: Material, found: Findings, sections: list[Section]) -> str:
    study = material.workspace.study
    points = "\n".join(f"- {plain(point.text)}" for point in summary_points(material, found))
    parts = [f"# {plain(_title(material))}", plain(study.question), points]
    parts += [f"*What is not known.* {plain(unknown_text(material, found))}"]
    for section in sections:
        parts += [f"## {section.title}", section.lead]
        for block in section.blocks:
            if block.figure:
                parts.append(f"![{block.figure.caption}](figures/{block.figure.name}.svg)")
            if block.table:
                parts.append(_table_part(block.table))
    parts += ["## Runs", to_markdown(runs_table(material)), "## Methods"]
    parts.append("\n".join(f"- **{word}**: {meaning}" for word, meaning in methods.definitions(material)))
    parts.append("\n".join(f"- {plain(name)}: {plain(value)}" for name, value in methods.report_facts(material)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table_part(table: ReportTable) -> str:
    return f"### {table.title}\n\n{to_markdown(table)}\n\n{table.note}"


def result_text(material: Material) -> str:
    """The test table for the terminal, by the study's first rater: a line a run with the mean over the other languages
    and the worst of them where there are several, then each language as "94% [72–99]"; below, what is missing."""
    rater = material.workspace.study.raters[0]
    scale = next((scale for scale in material.scales if scale.rater == rater), None)
    rows = rows_of(share_rows(material, "test"), scale) if scale else []
    whole = {(row.id, row.step): row for row in (rows_of(checkpoint_rows(material), scale) if scale else [])}
    several = any(row.languages > 1 for row in whole.values())
    told = {(row.id, row.step, row.language): _cell_text(row) for row in rows}
    head = ["", *(["mean of others", "worst"] if several else []), *material.languages]
    table = [head]
    for one in material.answered:
        found = whole.get((one.run.id, one.step)) if several else None
        overall = [share_cell(found.share), f"{share_cell(found.lowest)} {found.worst_language}"] if found else []
        overall = overall or ["not rated"] * (2 * several)
        cells = [told.get((one.run.id, one.step, code), "not rated") for code in material.languages]
        table.append([material.name(one.run.id, one.step), *overall, *cells])
    missing = [f"{row.run} {row.language} {row.missing}" for row in rows if row.missing]
    lines = [TITLES[rater], "", paged(table)]
    unrated = wrapped(f"could not be rated: {', '.join(shortened(missing))}", terminal_room())
    return "\n".join([*lines, *(["", unrated] if missing else [])])


def result_data(material: Material) -> list[dict[str, Any]]:
    """The same for programs: shares with their intervals, null where nothing is rated."""
    rater = material.workspace.study.raters[0]
    rows = {(row.id, row.step, row.language): row for row in share_rows(material, "test") if row.rater == rater}

    def cell(row: ShareRow | None) -> dict[str, Any] | None:
        told = ("mean", "low", "high", "rated", "missing")
        return {name: getattr(row, name) for name in told} if row else None

    return [
        {"run": one.run.label, "id": one.run.id, "step": one.step}
        | {"languages": {code: cell(rows.get((one.run.id, one.step, code))) for code in material.languages}}
        for one in material.answered
    ]


def _cell_text(row: ShareRow) -> str:
    return "not rated" if row.mean is None else share_cell(row.share)


def share_cell(found: Range) -> str:
    return share_text(*(end or 0.0 for end in found))
