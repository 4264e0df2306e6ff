"""Commands about ratings: by surface checks, judge models and people, and what they tell."""

from __future__ import annotations

import shlex
import sys
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from xlift.cli.common import (
    AsJson,
    LanguageColumn,
    Modes,
    OtherColumns,
    TextColumn,
    app,
    print_json,
    refuse_others,
    stage,
)
from xlift.errors import ConfigError, UserError


class _NamesRaters(TyperCommand):
    """A command whose help ends with the raters there are; they are loaded for that alone."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from xlift.rating import RATERS

        with formatter.section("Raters"):
            shown = {
                name: f"{one.title}{'' if one.default else '; only where it is named'}" for name, one in RATERS.items()
            }
            formatter.write_dl(list(shown.items()))


_RATE: Modes = {
    "FILE": {
        *("output", "raters", "workers", "text", "language", "columns", "by", "as_json", "html", "fail_under"),
    },
    "STUDY": {"raters", "as_json"},
}


@app.command(cls=_NamesRaters)
def rate(
    context: typer.Context,
    sources: Annotated[
        list[Path], typer.Argument(metavar="FILE…|STUDY", help="Files or folders of anybody's responses, or a study.")
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Ratings file, appended to.")] = None,
    raters: Annotated[str | None, typer.Option(help="Only these raters, separated by commas.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores where it is not given.")] = None,
    text: TextColumn = None,
    language: LanguageColumn = None,
    columns: OtherColumns = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Tables by its values: model, task, file, …")] = None,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to browse responses and ratings in.")] = None,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(help="0.95, or fr=0.95 for one language: exit code 1 where fewer are wholly right."),
    ] = None,
) -> None:
    """Rate any files of responses, or a study's responses."""
    from xlift.rating import checked_raters, default_raters
    from xlift.rating.files import is_study
    from xlift.rating.foreign import asked_for

    mode = "STUDY" if len(sources) == 1 and is_study(sources[0]) else "FILE"
    refuse_others(context, mode, _RATE)
    if studies := [one for one in sources if mode == "FILE" and (one / "study.yaml").is_file()]:
        raise ConfigError(f"{studies[0]}: a study is rated alone", f"xlift rate {shlex.quote(str(studies[0]))}")
    names = None if raters is None else checked_raters(name.strip() for name in raters.split(","))
    if mode == "STUDY":
        stage("rate_stage", sources[0], None, None, True, as_json, raters=names)
        return
    from xlift.rating.overview import rate_and_show

    asked = asked_for(text, language, columns or [])
    asked_raters = names or default_raters()
    problems = rate_and_show(sources, output, asked_raters, asked, workers, by, as_json, html, fail_under or [])
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


_ASKING = {
    *("model", "base_url", "api_key_env", "calls", "facets", "scales", "rubrics", "concurrency", "price_input"),
    *("price_output", "max_cost", "max_requests", "batch", "dry_run", "as_json"),
}

_JUDGE: Modes = {
    "STUDY": {"name", *_ASKING},
    "STUDY --pair RUN_A RUN_B": {"name", "pair", *_ASKING},
    "STUDY --probe": {"name", "probe", "languages", *_ASKING},
    "FILE": {"output", "text", "language", "columns", *_ASKING},
    "--probe": {"probe", "languages", *_ASKING},
    "STUDY --exam SOURCE": {"name", "exam", "languages", "size", *_ASKING},
    "--exam SOURCE": {"exam", "languages", "size", *_ASKING},
}


def _judge_mode(source: Path | None, pair: bool, probe: bool, exam: bool) -> str:
    from xlift.rating.files import is_study

    asked = " --exam SOURCE" if exam else " --probe" if probe else ""
    if source is None and not asked:
        ways = "xlift judge STUDY, xlift judge FILE -o OUT.jsonl, --probe or --exam SOURCE"
        raise UserError("what should be judged?", ways)
    if source is None:
        return asked.strip()
    if not is_study(source):
        return "FILE"
    return f"STUDY{asked or (' --pair RUN_A RUN_B' if pair else '')}"


@app.command()
def judge(
    context: typer.Context,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="STUDY|FILE", help="A study, or anybody's responses; --probe wants neither."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Ratings file, for a FILE.")] = None,
    name: Annotated[str | None, typer.Option("--judge", help="Only this one of the study's judges.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name, as the server knows it; or local:MODEL.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Server, for instance http://localhost:8000/v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key; OPENAI_API_KEY.")] = None,
    calls: Annotated[str | None, typer.Option(help="all: one call for all facets; each: one for each facet.")] = None,
    facets: Annotated[str | None, typer.Option(help="Facets to rate, separated by commas; all six.")] = None,
    scales: Annotated[str | None, typer.Option(help="Scales that are not 0 to 2, as in politeness=1-5.")] = None,
    rubrics: Annotated[str | None, typer.Option(help="Folder with rubrics of your own (FACET.md).")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests under way at one time; 16.")] = None,
    price_input: Annotated[float | None, typer.Option(help="Price of a million tokens read.")] = None,
    price_output: Annotated[float | None, typer.Option(help="Price of a million tokens written.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop before it has cost more.")] = None,
    max_requests: Annotated[int | None, typer.Option(help="Stop before more requests than this.")] = None,
    batch: Annotated[bool | None, typer.Option("--batch", help="Use the server's Batch API.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how many calls, tokens and what price.")] = False,
    pair: Annotated[
        tuple[str, str] | None, typer.Option(metavar="RUN_A RUN_B", help="Ask which of two runs answers better.")
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Test the judge on responses with known faults.")] = False,
    languages: Annotated[str | None, typer.Option(help="Languages of a probe or an exam, separated by commas.")] = None,
    exam: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Examine the judge on mm:PATH or mrewardbench:PATH.")
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pairs of each language in an exam; all.")] = None,
    text: TextColumn = None,
    language: LanguageColumn = None,
    columns: OtherColumns = None,
    as_json: AsJson = False,
) -> None:
    """Let a judge model rate responses, compare two runs, or be tested itself."""
    from xlift.judging import judges
    from xlift.rating.foreign import asked_for

    mode = _judge_mode(source, pair is not None, probe, exam is not None)
    refuse_others(context, mode, _JUDGE)
    if batch and concurrency is not None:
        raise ConfigError("--concurrency does not apply with --batch: the server decides", "leave one of them")
    given = {
        "model": model, "base_url": base_url, "api_key_env": api_key_env, "calls": calls, "rubrics": rubrics,
        "facets": None if facets is None else [facet.strip() for facet in facets.split(",")],
        "scales": None if scales is None else dict(judges.read_scale(one) for one in scales.split(",")),
        "concurrency": concurrency, "price_input": price_input, "price_output": price_output,
        "max_cost": max_cost, "max_requests": max_requests, "batch": batch,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if mode == "FILE" and source:
        asked = asked_for(text, language, columns or [], "judge FILE")
        told = judges.judge_responses_file(source, output, judges.settings_of(given), dry_run, asked)
    elif exam or probe or source is None:
        one = judges.one_of_study(source, name, given) if source else judges.settings_of(given)
        folder = judges.probe_folder(source)
        if exam:
            told = judges.examine_judge(one, folder, exam, languages, size, dry_run)
        else:
            told = judges.probe_judge(one, folder, judges.probe_languages(source, languages), dry_run)
    elif pair:
        told = judges.judge_pair(source, judges.one_of_study(source, name, given), *pair, dry_run)
    else:
        told = judges.judge_study(source, name, given, dry_run)
    print_json(told.data) if as_json else print(told.text)


_ANNOTATE: Modes = {
    "SOURCE": {"database", "host", "port", "address", "proxy"},
    "SOURCE --add NAME": {
        *("database", "add", "languages", "per_response", "per_cell", "seed", "split", "controls", "address", "days"),
        *("scheme", "qualify"),
    },
    "SOURCE --add NAME --total N": {
        *("database", "add", "languages", "per_response", "total", "seed", "split", "controls", "address", "days"),
        *("scheme", "qualify"),
    },
    "SOURCE --extend NAME --languages CODES": {"database", "extend", "languages"},
    "SOURCE --admit NAME": {"database", "admit"},
    "SOURCE --coordinate": {"database", "coordinate", "address", "days"},
    "SOURCE --pause": {"database", "pause"},
    "SOURCE --resume": {"database", "resume"},
    "SOURCE --revoke NAME": {"database", "revoke"},
    "SOURCE --renew NAME": {"database", "renew", "address", "days"},
    "SOURCE --status": {"database", "status", "as_json"},
    "SOURCE --export FILE": {"database", "export", "with_controls"},
    "SOURCE --import FILE": {"database", "import_"},
}


@app.command()
def annotate(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="STUDY|FILE", help="A study, or a file of responses of any kind.")],
    add: Annotated[str | None, typer.Option(metavar="NAME", help="Add a person; prints their personal link.")] = None,
    languages: Annotated[str, typer.Option(help="Languages that the person reads, separated by commas.")] = "",
    per_response: Annotated[int | None, typer.Option(help="People for each response; 2 at first.")] = None,
    per_cell: Annotated[int | None, typer.Option(help="Prompts for each run and language; 10 at first.")] = None,
    total: Annotated[int | None, typer.Option(help="Responses in all, instead of --per-cell.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sample and order; 0 at first.")] = None,
    split: Annotated[
        Literal["test", "validation", "all"] | None, typer.Option(help="Prompts to sample from; test at first.")
    ] = None,
    controls: Annotated[Path | None, typer.Option(help="JSONL of responses with expected values, mixed in.")] = None,
    scheme: Annotated[Path | None, typer.Option(help="YAML: facets, scales, guidelines; ours without it.")] = None,
    qualify: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Expected values to meet in practice to go on, such as 0.7.")
    ] = None,
    extend: Annotated[str | None, typer.Option(metavar="NAME", help="Give a person more --languages.")] = None,
    admit: Annotated[str | None, typer.Option(metavar="NAME", help="Let a person go on after practice.")] = None,
    coordinate: Annotated[bool, typer.Option("--coordinate", help="A link to the coordinator's page.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Close the page to annotators.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Open the page again.")] = False,
    revoke: Annotated[str | None, typer.Option(metavar="NAME", help="Make a person's link invalid.")] = None,
    renew: Annotated[str | None, typer.Option(metavar="NAME", help="Give a person a new link.")] = None,
    status: Annotated[bool, typer.Option("--status", help="How far everybody is.")] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write ratings to this .jsonl or .csv, and into the study.")
    ] = None,
    with_controls: Annotated[
        bool, typer.Option("--with-controls", help="Export ratings of control items, too.")
    ] = False,
    import_: Annotated[
        Path | None, typer.Option("--import", help="Read ratings from CSV, Label Studio JSON or potato JSONL.")
    ] = None,
    database: Annotated[
        str | None, typer.Option(help="Database URL; a SQLite file beside the responses without it.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8765,
    address: Annotated[str | None, typer.Option(help="Address under which people reach the page, for links.")] = None,
    proxy: Annotated[str, typer.Option(metavar="ADDRESS", help="Proxy whose word on who asks is believed.")] = "",
    days: Annotated[int, typer.Option(help="Days that a link made by --add or --renew works.")] = 90,
    as_json: AsJson = False,
) -> None:
    """People rate responses in a web page: serves it, or does what one of the options asks for."""
    from xlift.annotation import campaign

    asked = {
        "add": add,
        "revoke": revoke,
        "renew": renew,
        "extend": extend,
        "admit": admit,
        "coordinate": coordinate or None,
        "pause": pause or None,
        "resume": resume or None,
        "status": status or None,
        "export": export,
        "import_": import_,
    }
    wanted = next((name for name, value in asked.items() if value is not None), None)
    refuse_others(context, _annotate_mode(wanted, total), _ANNOTATE)
    opened = campaign.open_campaign(source, database)
    link = address or campaign.ADDRESS
    if add is not None:
        plan = campaign.Plan(per_response, per_cell, total, seed, split, qualify)
        print(campaign.add(opened, add, languages.split(","), plan, controls, link, days, scheme))
        from xlift.progress import say

        say(f"next: {shlex.join(['xlift', 'annotate', str(source)])} serves the page")
    elif extend is not None:
        print(campaign.extend(opened, extend, languages.split(",")))
    elif admit is not None:
        print(campaign.admit(opened, admit))
    elif coordinate:
        print(campaign.coordinate(opened, link, days))
    elif pause or resume:
        print(campaign.pause(opened, pause))
    elif revoke is not None:
        print(campaign.revoke(opened, revoke))
    elif renew is not None:
        print(campaign.renew(opened, renew, link, days))
    elif status:
        print_json(campaign.progress(opened)) if as_json else print(campaign.status(opened))
    elif export is not None:
        print(campaign.export(opened, export, with_controls))
    elif import_ is not None:
        print(campaign.import_file(opened, import_))
    else:
        campaign.serve(opened, host, port, address, proxy)


def _annotate_mode(wanted: str | None, total: int | None) -> str:
    """The first mode that takes the option that says what is wanted; the page where none does."""
    if wanted is None:
        return "SOURCE"
    fitting = [mode for mode, takes in _ANNOTATE.items() if wanted in takes]
    return fitting[-1] if total is not None else fitting[0]


@app.command()
def agreement(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RATINGS.jsonl|STUDY…", help="Files of ratings, or studies with all of theirs."),
    ],
    as_json: AsJson = False,
) -> None:
    """How far people, judge models and surface checks agree, by facet and language."""
    import polars as pl

    from xlift.analysis.agreement import agreement_tables
    from xlift.analysis.agreement_text import text_tables
    from xlift.records import read_jsonl
    from xlift.results import load

    studies = [source for source in sources if source.suffix != ".jsonl"]
    frames = [load(study).ratings for study in studies]
    records = (record for source in sources if source not in studies for _, record in read_jsonl(source))
    rows = (row for frame in frames for row in frame.iter_rows(named=True))
    only_studies = len(studies) == len(sources)
    tables = agreement_tables(pl.concat(frames, how="diagonal") if only_studies else chain(records, rows))
    print_json(tables) if as_json else print(text_tables(tables))


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(metavar="RUN_A", help="A run's folder, or with --study its label or settings.")
    ],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare it with.")],
    study: Annotated[
        Path | None, typer.Option(help="Study of both runs: then learning_rate=1e-4,size=64 will do, too.")
    ] = None,
    rater: Annotated[str | None, typer.Option(help="Only this rater's ratings.")] = None,
    split: Annotated[Literal["test", "validation"], typer.Option(help="Prompts to compare on.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Two runs, prompt by prompt: differences with intervals, and p-values corrected over facets and languages."""
    import polars as pl

    from xlift.analysis.comparison import compare as compared
    from xlift.analysis.comparison import comparison_text
    from xlift.results import load, ratings_of_runs

    ratings, names = (load(study).ratings, [first, second]) if study else ratings_of_runs([Path(first), Path(second)])
    found = compared(ratings.filter(pl.col("split") == split), names[0], names[1], rater=rater)
    print_json(found.to_dicts()) if as_json else print(comparison_text(found, names[0], names[1]))
