"""A table once, in every form: cells for the page, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from xlift.disk import write_atomic
from xlift.report.rows import record

ValueForm = Literal["text", "rates", "share", "points", "number", "signed", "p", "count"]
EMPTY_CELL = "–"


class Column(NamedTuple):
    """A column for people.

    Forms: `rates` text with learning rates, none of which a line breaks, `share` 0 to 1 as per cent, `points` a
    difference of shares as percentage points, `number` and `signed` with two decimals, `p` a p-value, `count` a whole
    number.
    """

    heading: str
    form: ValueForm = "text"


class Value(NamedTuple):
    """What stands in a column: a value, the bounds of its interval, and a remark that follows it."""

    value: Any = None
    low: float | None = None
    high: float | None = None
    note: str = ""


class ReportTable(NamedTuple):
    """`lines` are what people see, a value a column; `rows` are what a machine reads: records, or typed rows."""

    name: str
    title: str
    note: str
    columns: list[Column]
    lines: list[list[Value]]
    rows: Sequence[Any]

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of the CSV."""
        return [record(row) for row in self.rows]


class Cell(NamedTuple):
    """A cell of the page: the value, its interval, a remark, and (of shares) where the bar ends, in per cent."""

    text: str
    interval: str
    note: str
    bar: tuple[float, float, float] | None


# e.g. value_text(0.9449, "share") → "94 %"
# e.g. value_text(-0.304, "points") → "−30"
# e.g. value_text(0.0002, "p") → "< 0.001"
def value_text(value: Any, form: ValueForm) -> str:
    """A value as people read it."""
    if value is None or value == "":
        return EMPTY_CELL
    if form == "share":
        return f"{value * 100:.0f} %"
    if form == "points":
        return _signed(value * 100, 0)
    if form == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if form == "signed":
        return _signed(value, 2)
    return _unsigned(value) if form == "number" else str(value)


# e.g. [_unsigned(value) for value in (0.5, -0.25, -0.001)] → ["0.50", "−0.25", "0.00"]
def _unsigned(value: float) -> str:
    text = f"{value:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


# e.g. [_signed(-0.001, digits) for digits in (0, 2)] → ["0", "0.00"]
def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")


# e.g. interval_text(0.72, 0.99, "share") → "[72–99]"
# e.g. interval_text(-0.2, 0.05, "points") → "[−20, +5]"
# e.g. interval_text(None, None, "share") → ""
def interval_text(low: float | None, high: float | None, form: ValueForm) -> str:
    """An interval in brackets, "" where there is none."""
    if low is None or high is None:
        return ""
    if form == "share":
        return f"[{low * 100:.0f}–{high * 100:.0f}]"
    return f"[{value_text(low, form)}, {value_text(high, form)}]"


def cells(table: ReportTable) -> list[list[Cell]]:
    """The cells of a table, row by row."""
    return [[_cell(*pair) for pair in zip(line, table.columns, strict=True)] for line in table.lines]


def _cell(one: Value, column: Column) -> Cell:
    bar = None
    if column.form == "share" and one.value is not None and one.low is not None and one.high is not None:
        bar = (one.value * 100, one.low * 100, (one.high - one.low) * 100)
    interval = interval_text(one.low, one.high, column.form)
    return Cell(value_text(one.value, column.form), interval, one.note, bar)


# e.g. cell_line(Cell("56 %", "[33–77]", "1 missing", None)) → "56 % [33–77] (1 missing)"
def cell_line(cell: Cell) -> str:
    """A cell in one line of plain text: 56 % [33–77] (1 missing)."""
    return " ".join(part for part in (cell.text, cell.interval, f"({cell.note})" if cell.note else "") if part)


# e.g. to_csv([{"run": "a", "n": 1}, {"run": "=b", "p": 0.5}]) → "run,n,p\na,1,\n'=b,,0.5\n"
def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as CSV; columns in the order in which they first occur."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shielded(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


# A spreadsheet shows what is quoted, and does not compute it.
# e.g. _shielded("=1+1") → "'=1+1"
def _shielded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def to_markdown(table: ReportTable) -> str:
    """A table in Markdown."""
    head = [column.heading for column in table.columns]
    align = ["---" if column.form == "text" else "---:" for column in table.columns]
    lines = [[plain(cell_line(cell)) for cell in line] for line in cells(table)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [[plain(one) for one in head], align, *lines])


# e.g. plain("*bold* <b>") → "\\*bold\\* &lt;b\\>"
def plain(text: str) -> str:
    """Text that means nothing to Markdown or HTML."""
    for mark in "\\`*_[]<>#|":
        text = text.replace(mark, f"\\{mark}" if mark != "<" else "&lt;")
    return " ".join(text.split())


def to_latex(table: ReportTable) -> str:
    """A table in LaTeX with the package booktabs."""
    align = "".join("l" if column.form == "text" else "r" for column in table.columns)
    head = " & ".join(_latex(column.heading) for column in table.columns)
    body = [" & ".join(_latex(cell_line(cell)) for cell in line) + r" \\" for line in cells(table)]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(table.title)}. {_latex(table.note)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "–": "--", "−": "$-$",
    "·": r"$\cdot$", "…": r"\dots{}", "→": r"$\to$", "≥": r"$\geq$",
}  # fmt: skip


# e.g. _latex("5 % – R_1") → "5 \\% -- R\\_1"
def _latex(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in " ".join(text.split()))


def write_tables(tables: Sequence[ReportTable], folder: Path, endings: Sequence[str] = ("csv", "tex")) -> None:
    """Write each table as NAME.csv (all records) and NAME.tex (what people see)."""
    for table in tables:
        if "csv" in endings:
            write_atomic(folder / f"{table.name}.csv", to_csv(table.records))
        if "tex" in endings:
            write_atomic(folder / f"{table.name}.tex", to_latex(table))
