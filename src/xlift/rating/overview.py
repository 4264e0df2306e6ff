"""What people see of rated files: tables by language in the terminal, JSON, a page; and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from xlift.errors import ConfigError, DataError, shortened
from xlift.progress import say
from xlift.rating import RATERS
from xlift.rating.files import Job, RatedFiles, rate_files
from xlift.rating.foreign import ReadingOptions
from xlift.rating.tally import LCB, LanguageCounts, Tally, as_json, below, figures, least_shares, nothing_rated, reasons
from xlift.terminal import WIDTH, aligned, fitted, paged, printable, terminal_room, wrapped


def rate_and_show(
    sources: Sequence[Path],
    output: Path | None,
    raters: list[str],
    asked: ReadingOptions,
    workers: int | None,
    by: str | None,
    json_: bool,
    html: Path | None,
    fail_under: Sequence[str],
) -> list[str]:
    """Rate files, print what came of it, and return what a caller's exit code must tell: [] where all is well.

    Raises DataError, after all that, where lines could not be read or there is no response.
    """
    limits = least_shares(fail_under)
    if limits and "language" not in raters:
        raise ConfigError("--fail-under asks for the rater 'language'", "add it to --raters")
    if html and (html.is_dir() or html in sources):
        raise ConfigError(f"--html {html}: not a file for a page", "choose another name, such as page.html")
    counted = list(dict.fromkeys([*raters, *([LCB] if "language" in raters else [])]))
    if html:
        from xlift.report.answers import write_answers  # what it lacks is said before anything is rated
        from xlift.report.browser import MOST_RESPONSES
    found = rate_files(sources, output, Job(raters, counted, by, MOST_RESPONSES if html else 0), asked, workers)
    if html and found.kept:
        title = ", ".join(one.name for one in sources)
        say(f"responses: {write_answers(html, found.kept, title, found.left_out)}")
    if json_:
        told = {"unreadable": found.counts.unreadable, "results": as_json(found.tally, raters, by)}
        print(json.dumps(told, indent=2, ensure_ascii=False))
    elif found.tally:
        show(overview_text(found.tally, raters, by))
    if output:
        added = f"{found.counts.made} ratings added to {output}, {found.counts.missing} of them missing with a reason"
        say(added) if json_ else print(added)
    _refuse_unread(sources, found)
    if nothing_rated(found.tally):
        return [f"nothing could be rated: {reason}" for reason in _told_reasons(found.tally)]
    return below(found.tally, limits)


def _told_reasons(tally: Tally) -> list[str]:
    told = [f"{printable(reason)} ({times} responses)" for reason, times in reasons(tally).most_common()]
    return shortened(told) or ["all replies are empty"]


def _refuse_unread(sources: Sequence[Path], found: RatedFiles) -> None:
    named = ", ".join(map(str, sources))
    if found.counts.unreadable:
        rest = found.counts.unreadable - len(found.counts.problems)
        more = [f"… and {rest} more"] if rest > 0 else []
        problems = [*found.counts.problems, *more]
        raise DataError(problems, f"mend these lines of {named} and run again; the rest is rated")
    if not found.tally:
        raise DataError(f"{named}: no responses in it")


def show(text: str) -> None:
    """Print tables, their heads in bold where a person reads them."""
    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    styled.highlight_regex(r"(?m)^ .*wholly right.*$", "bold")
    Console(soft_wrap=True, highlight=False).print(styled)


HEADS = ("", "n", "wholly right", "mostly", "wrong", "empty", "cut", "missing", "foreign", "LPR", "WPR")


def overview_text(tally: Tally, raters: Sequence[str], by: str | None) -> str:
    """The tables as lines of text, 80 columns wide where names and numbers are not unusually long."""
    groups = sorted({group for group, _ in tally})
    parts = [_group_text(group, tally, raters, by) for group in groups]
    return "\n\n".join(part for part in parts if part)


def _group_text(group: str, tally: Tally, raters: Sequence[str], by: str | None) -> str:
    own = {language: cell for (name, language), cell in sorted(tally.items()) if name == group}
    whole = LanguageCounts()
    for cell in own.values():
        whole.add(cell)
    rows = own | ({"all": whole} if len(own) > 1 else {})
    shown = {language: figures(cell, raters) for language, cell in rows.items()}
    parts = [_language_table(shown)] if "language" in raters else []
    others = [rater for rater in raters if rater not in {"language", LCB}]
    parts += [table for table in [_other_table(shown, others)] if table]
    parts += [text for text in (_missing_text(whole), _worst_text(own)) if text]
    return "\n\n".join([*([f"{by}: {printable(group)}"] if by else []), *parts])


def _language_table(shown: dict[str, dict[str, Any]]) -> str:
    rows = [_language_row(language, one) for language, one in shown.items()]
    # Columns of zeros alone make room; what is missing is always told.
    kept = [
        i for i, head in enumerate(HEADS) if head not in {"empty", "cut"} or any(row[i] not in _NONE for row in rows)
    ]
    return paged([[row[i] for i in kept] for row in (HEADS, *rows)], range(1, len(kept)))


_NONE = {"0", "0%", "–"}


def _language_row(language: str, one: dict[str, Any]) -> list[str]:
    of = one["language"]
    foreign = next(iter(of["foreign"].items()), None)
    return [
        *(language, str(one["responses"]), _interval(of["wholly_right"])),
        *(percent(of[name]) for name in ("mostly_right", "wrong", "empty")),
        *(str(one["cut"]), str(sum(of["missing"].values()))),
        f"{foreign[0]} {percent(foreign[1])}" if foreign else "–",
        *(percent(of[name]) for name in ("line_pass_rate", "word_pass_rate")),
    ]


def _other_table(shown: dict[str, dict[str, Any]], raters: Sequence[str]) -> str:
    """The share of the best value by the other raters, and what that says."""
    raters = [rater for rater in raters if any(rater in one for one in shown.values())]
    rows = [[language, *(_other_cell(one.get(rater)) for rater in raters)] for language, one in shown.items()]
    legend = [f"{rater}: {RATERS[rater].title[0].lower()}{RATERS[rater].title[1:]}" for rater in raters]
    told = [wrapped(line, terminal_room()) for line in legend]
    return "\n".join([paged([["", *raters], *rows]), *told]) if raters else ""


def _other_cell(one: dict[str, Any] | None) -> str:
    if one is None:
        return "–"
    missing = sum(one["missing"].values())
    return _interval(one["best"]) + (f" ({missing} missing)" if missing else "")


# e.g. [percent(share) for share in (0.5, 0.002, 0.998, 1.0, None)] → ["50%", "<1%", ">99%", "100%", "–"]
def percent(share: float | None) -> str:
    """A share as "94%", never 0 or 100 % where it is not; "–" where there is none."""
    if share is None:
        return "–"
    rounded = f"{share:.0%}"
    return "<1%" if rounded == "0%" and share else ">99%" if rounded == "100%" and share < 1 else rounded


# e.g. _interval({"share": 0.5, "low": 0.3, "high": 0.7}) → "50% [30–70]"
def _interval(one: dict[str, float | None]) -> str:
    if one["share"] is None or one["low"] is None or one["high"] is None:
        return percent(one["share"])
    return f"{percent(one['share'])} [{one['low'] * 100:.0f}–{one['high'] * 100:.0f}]"


def _missing_text(cell: LanguageCounts) -> str:
    lines = [
        f"missing, {rater}: {times} × {printable(reason)}"
        for rater, found in cell.missing.items()
        for reason, times in found.most_common(3)
        if rater != LCB
    ]
    return "\n".join(lines)


def _worst_text(own: dict[str, LanguageCounts]) -> str:
    rows = [
        [
            language,
            printable(one.id)[:16],
            "wrong" if not one.value else "mostly",
            ", ".join(one.languages[:2]),
            one.text,
        ]
        for language, cell in own.items()
        for one in sorted(cell.worst)
    ]
    if not rows:
        return ""
    texts = aligned([row[:4] for row in rows]).split("\n")
    room = max(10, min(WIDTH, terminal_room() or WIDTH) - max(map(cell_len, texts)) - 2)
    return "\n".join(["worst", aligned([[text, fitted(row[4], room)] for text, row in zip(texts, rows, strict=True)])])
