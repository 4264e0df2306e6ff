"""The command line: parse, call one function, print. Heavy imports stay inside the commands."""

from __future__ import annotations

import io
import json
import shlex
import signal
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from xlift.errors import ConfigError, UserError, os_problem, raise_together
from xlift.extras import missing_extra
from xlift.redaction import redacted

app = typer.Typer(
    help="Instruction-tune on English, answer in many languages, see what crosses over.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, or a polite end from outside."""

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML), or a study's folder.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to replace, for instance training.steps=50.")
]
Out = Annotated[Path | None, typer.Option(help="Study folder; results/<name> where it is not given.")]
SkipUnfit = Annotated[
    bool, typer.Option("--skip-unfit", help="Leave out records that cannot be learned from, counted by reason.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub.")]


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"xlift {version('xlift')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Modes = dict[str, set[str]]
"""What a command can be asked to do, as it is written, and the options that it then takes."""


def _refuse_others(context: typer.Context, mode: str, modes: Modes) -> None:
    """No option is ignored: raises ConfigError that lists those given that this mode does not take, and which do."""
    command, problems = context.info_name, []
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if (
            option.param_type_name == "argument"
            or option.name in modes[mode]
            or source is None
            or source.name != "COMMANDLINE"
        ):
            continue
        fits = " or ".join(f"`xlift {command} {name}`" for name, takes in modes.items() if option.name in takes)
        problems.append(f"{max(option.opts, key=len)} does not apply to `xlift {command} {mode}`; it applies to {fits}")
    if problems:
        raise ConfigError(problems, f"xlift {command} --help")


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
) -> None:
    """Every stage in order; run again, it continues. Prints the result table and where the report is."""
    from xlift.stages import run_study

    _print_result(run_study(*_study(study, _skipping(overrides, skip_unfit), out), offline))


@app.command()
def check(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
    probe: Annotated[bool, typer.Option(help="Measure time and memory by a short probe.")] = True,
) -> None:
    """Check settings, data, prompts and the chat format before anything is spent, with time, memory and disk."""
    from xlift.planning.check import check_study

    parsed, folder = _study(study, _skipping(overrides, skip_unfit), out)
    check_study(parsed, offline, probe, folder)


@app.command()
def train(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
) -> None:
    """Train every run of the study."""
    _stage("train_stage", study, _skipping(overrides, skip_unfit), out, offline)


@app.command()
def generate(study: StudyFile, overrides: Overrides = None, out: Out = None, offline: Offline = False) -> None:
    """Let every run answer the prompts."""
    _stage("generate_stage", study, overrides, out, offline)


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
    "STUDY": {"raters"},
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
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the replies.")] = None,
    language: Annotated[
        str | None, typer.Option(metavar="COLUMN|CODE", help="The column of languages, or one language for all.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--map", metavar="COLUMN=FIELD", help="Another column as a field of ours.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Tables by its values: model, task, file, …")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page to browse responses and ratings in.")] = None,
    fail_under: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit code 1 where a language's share of wholly right answers is below."),
    ] = None,
) -> None:
    """Rate any files of responses, or a study's responses."""
    from xlift.rating import checked_raters, default_raters
    from xlift.rating.files import is_study
    from xlift.rating.foreign import asked_for

    mode = "STUDY" if len(sources) == 1 and is_study(sources[0]) else "FILE"
    _refuse_others(context, mode, _RATE)
    names = None if raters is None else checked_raters(name.strip() for name in raters.split(","))
    if mode == "STUDY":
        _stage("rate_stage", sources[0], None, None, True, raters=names)
        return
    from xlift.rating.overview import rate_and_show

    asked = asked_for(text, language, columns or [])
    problems = rate_and_show(sources, output, names or default_raters(), asked, workers, by, as_json, html, fail_under)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        raise typer.Exit(1)


@app.command()
def report(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    format_: Annotated[str, typer.Option("--format", help="html, md, csv or latex.")] = "html",
) -> None:
    """Write the report from what there is, as a page, as Markdown, or its tables alone."""
    from xlift.report.page import write_report

    workspace = _workspace(study, overrides, out)
    path = write_report(workspace, format_)
    _print_result(workspace, path)


_DIAGNOSE: Modes = {
    "MODEL": {
        *("base", "languages", "size", "system", "template", "repetition_penalty", "out", "html", "as_json"),
        *("fail_under", "offline"),
    },
    "--data FILE": {"data", "as_json", "offline"},
}


@app.command()
def diagnose(
    context: typer.Context,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="MODEL...", help="Folders, hub ids, adapters, runs; embedded:NAME.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that they were tuned from, to compare with.")] = None,
    languages: Annotated[str, typer.Option(help="Of the users, separated by commas; English is added.")] = "fr,pt,ru",
    size: Annotated[str, typer.Option(help="quick, usual or thorough: 4, 12 or 40 prompts of each kind.")] = "usual",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    template: Annotated[str, typer.Option(help="Chat format; the model's own where it is not given.")] = "auto",
    repetition_penalty: Annotated[float, typer.Option(help="1 is none.")] = 1.0,
    out: Out = None,
    html: Annotated[Path | None, typer.Option(help="Also a page with figures and every answer.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="fr=0.95, or 0.95 for all: exit code 1 where fewer answers are right.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Instruction data instead of a model.")] = None,
    offline: Offline = False,
) -> None:
    """What is wrong with a model, or with the data it is tuned on, and what to try."""
    from xlift.diagnosis import command

    if not models and not data:
        raise ConfigError("what should be diagnosed?", "xlift diagnose MODEL, or xlift diagnose --data FILE")
    _refuse_others(context, "MODEL" if models else "--data FILE", _DIAGNOSE)
    failures: list[str] = []
    if data:
        found, said = command.diagnose_data(data, offline)
    else:
        codes = [one.strip() for one in languages.split(",") if one.strip()]
        settings = {"system": system, "template": template, "repetition_penalty": repetition_penalty}
        found, said, failures = command.diagnose_models(
            models or [], base, codes, size, out, html, offline, fail_under or [], **settings
        )
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else said)
    for line in failures:
        print(line, file=sys.stderr)
    if failures:
        raise typer.Exit(1)


_ASKING = {
    *("model", "base_url", "api_key_env", "calls", "facets", "rubrics", "concurrency", "price_input", "price_output"),
    *("max_cost", "max_requests", "batch", "dry_run"),
}
_JUDGE: Modes = {
    "STUDY": {"name", *_ASKING},
    "STUDY --pair RUN_A RUN_B": {"name", "pair", *_ASKING},
    "STUDY --probe": {"name", "probe", *_ASKING},
    "FILE.jsonl": {"output", *_ASKING},
    "--probe": {"probe", *_ASKING},
}


def _judge_mode(source: Path | None, pair: bool, probe: bool) -> str:
    if source is None and not probe:
        raise UserError("what should be judged?", "xlift judge STUDY, xlift judge FILE.jsonl -o OUT.jsonl, or --probe")
    if source is None or source.suffix == ".jsonl":
        return "FILE.jsonl" if source else "--probe"
    return "STUDY --probe" if probe else "STUDY --pair RUN_A RUN_B" if pair else "STUDY"


@app.command()
def judge(
    context: typer.Context,
    source: Annotated[
        Path | None, typer.Argument(metavar="STUDY|FILE.jsonl", help="A study, or responses; --probe wants neither.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Ratings file, for a FILE.")] = None,
    name: Annotated[str | None, typer.Option("--judge", help="Only this one of the study's judges.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name, as the server knows it.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Server, for instance http://localhost:8000/v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key; OPENAI_API_KEY.")] = None,
    calls: Annotated[str | None, typer.Option(help="all: one call for all facets; each: one for each facet.")] = None,
    facets: Annotated[str | None, typer.Option(help="Facets to rate, separated by commas; all six.")] = None,
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
) -> None:
    """Let a judge model rate responses, compare two runs, or be tested itself."""
    from xlift.judging import judges

    mode = _judge_mode(source, pair is not None, probe)
    _refuse_others(context, mode, _JUDGE)
    if batch and concurrency is not None:
        raise ConfigError("--concurrency does not apply with --batch: the server decides", "leave one of them")
    given = {
        "model": model, "base_url": base_url, "api_key_env": api_key_env, "calls": calls, "rubrics": rubrics,
        "facets": None if facets is None else [facet.strip() for facet in facets.split(",")],
        "concurrency": concurrency, "price_input": price_input, "price_output": price_output,
        "max_cost": max_cost, "max_requests": max_requests, "batch": batch,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None}
    if source is None:
        print(judges.probe_judge(judges.settings_of(given), dry_run))
    elif mode == "FILE.jsonl":
        print(judges.judge_responses_file(source, output, judges.settings_of(given), dry_run))
    elif probe:
        print(judges.probe_judge(judges.one_of_study(source, name, given), dry_run))
    elif pair:
        print(judges.judge_pair(source, judges.one_of_study(source, name, given), *pair, dry_run))
    else:
        print(judges.judge_study(source, name, given, dry_run))


_ANNOTATE: Modes = {
    "SOURCE": {"database", "host", "port", "address", "proxy"},
    "SOURCE --add NAME": {
        *("database", "add", "languages", "per_response", "per_cell", "seed", "split", "controls", "address", "days")
    },
    "SOURCE --add NAME --total N": {
        *("database", "add", "languages", "per_response", "total", "seed", "split", "controls", "address", "days")
    },
    "SOURCE --revoke NAME": {"database", "revoke"},
    "SOURCE --renew NAME": {"database", "renew", "address", "days"},
    "SOURCE --status": {"database", "status"},
    "SOURCE --export FILE": {"database", "export", "with_controls"},
    "SOURCE --import FILE": {"database", "import_"},
}


@app.command()
def annotate(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="STUDY|FILE.jsonl", help="A study, or a file of responses.")],
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
) -> None:
    """People rate responses in a web page: serves it, or does what one of the options asks for."""
    from xlift.annotation import campaign

    asked = {
        "add": add,
        "revoke": revoke,
        "renew": renew,
        "status": status or None,
        "export": export,
        "import_": import_,
    }
    wanted = next((name for name, value in asked.items() if value is not None), None)
    _refuse_others(context, _annotate_mode(wanted, total), _ANNOTATE)
    opened = campaign.open_campaign(source, database)
    link = address or campaign.ADDRESS
    if add is not None:
        plan = campaign.Plan(per_response, per_cell, total, seed, split)
        print(campaign.add(opened, add, languages.split(","), plan, controls, link, days))
    elif revoke is not None:
        print(campaign.revoke(opened, revoke))
    elif renew is not None:
        print(campaign.renew(opened, renew, link, days))
    elif status:
        print(campaign.status(opened))
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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How far people, judge models and surface checks agree, by facet and language."""
    from xlift.analysis.agreement import agreement_tables, text_tables
    from xlift.records import read_jsonl
    from xlift.results import load

    studies = [source for source in sources if source.suffix != ".jsonl"]
    records = [record for source in sources if source not in studies for _, record in read_jsonl(source)]
    records += [row for study in studies for row in load(study).ratings.to_dicts()]
    tables = agreement_tables(records)
    print(json.dumps(tables, indent=2, ensure_ascii=False) if as_json else text_tables(tables))


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
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Two runs, prompt by prompt: differences with intervals, and p-values corrected over facets and languages."""
    import polars as pl

    from xlift.analysis.comparison import compare as compared
    from xlift.analysis.comparison import text_table
    from xlift.results import load, ratings_of_runs

    ratings, names = (load(study).ratings, [first, second]) if study else ratings_of_runs([Path(first), Path(second)])
    found = compared(ratings.filter(pl.col("split") == split), names[0], names[1], rater=rater)
    print(json.dumps(found.to_dicts(), indent=2) if as_json else text_table(found, names[0], names[1]))


@app.command()
def chat(
    model: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A run folder, a model folder, or a model name.")],
    system: Annotated[str | None, typer.Option(help="System prompt; a run's own without it, none where empty.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 256,
    offline: Offline = False,
) -> None:
    """Talk to a run or a model, a line a turn; an empty line or Ctrl-D ends."""
    from xlift.chat import talk

    talk(model, system, max_new_tokens, offline)


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run's folder.")],
    to: Annotated[Path, typer.Option(help="The folder to write, which is not there yet.")],
    step: Annotated[int | None, typer.Option(min=1, help="Of this checkpoint; the last where it is not given.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, not merged into its base.")] = False,
    offline: Offline = False,
) -> None:
    """Write a run's weights for other tools, with the chat template and a card of what the study found."""
    from xlift.export import export_run

    print(f"exported: {export_run(run, to, step, adapter, offline)}")


@app.command("ls")
def list_(
    study: Annotated[Path | None, typer.Argument(help="A study file or folder; all of results/ without it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What there is and how far it is."""
    from xlift.workspace import find_study, study_state

    folders = [study] if study else sorted(path.parent for path in Path("results").glob("*/study.yaml"))
    states, damaged = [], list[UserError]()
    for folder in folders:
        try:
            states.append(study_state(find_study(folder)))
        except UserError as error:
            damaged.append(error)
    if states or not damaged:
        print(json.dumps(states, indent=2)) if as_json else _print_states(states)
    raise_together(damaged)


def _print_states(states: list[dict[str, Any]]) -> None:
    from xlift.terminal import aligned

    if not states:
        print("nothing in results/; xlift run STUDY.yaml makes a study")
    for state in states:
        print(f"{state['study']}  {state['folder']}")
        rows = [["", one["run"], _told(one)] for one in state["runs"]]
        print(aligned(rows))


def _told(run: dict[str, Any]) -> str:
    stages = ", ".join(f"{name} {state}" for name, state in run["stages"].items()) or "not started"
    return stages if run["in_study"] else f"no longer in the study ({stages})"


@app.command()
def verify(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or a study's folder.")],
) -> None:
    """Check that every file of a study is whole and as it was written; what is not, and what mends it."""
    from xlift.verifying import verify as checked

    files, problems = checked(study)
    if problems:
        raise UserError(problems)
    print(f"{files} files and checkpoints of {study} are whole and as they were written")


_CLEAN: Modes = {"STUDY": {"yes"}, "STUDY --dry-run": {"dry_run"}}


@app.command()
def clean(
    context: typer.Context,
    study: StudyFile,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove what a study no longer needs: runs that left it, states of finished training, leftovers; asks before."""
    from xlift import cleaning
    from xlift.workspace import alone

    _refuse_others(context, "STUDY --dry-run" if dry_run else "STUDY", _CLEAN)
    workspace = cleaning.opened(study)
    with nullcontext() if dry_run else alone(workspace.path):
        found = cleaning.needless(workspace)
        print(cleaning.needless_text(found))
        if found and not dry_run and (yes or _agreed(study)):
            print(cleaning.remove(found))


def _agreed(study: Path) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nothing is removed: there is no terminal to ask in", f"xlift clean {study} --yes")
    return typer.confirm("remove it?", err=True)


def _skipping(overrides: list[str] | None, skip_unfit: bool) -> list[str]:
    return [*(overrides or []), *(["skip_unfit=true"] if skip_unfit else [])]


def _study(path: Path, overrides: list[str] | None, out: Path | None) -> tuple[Any, Path | None]:
    from xlift.api import read_study

    return read_study(path, overrides or [], out)


def _workspace(study: Path, overrides: list[str] | None, out: Path | None) -> Any:
    from xlift.stages import prepare

    return prepare(*_study(study, overrides, out))


def _stage(
    name: str, study: Path, overrides: list[str] | None, out: Path | None, offline: bool, **options: Any
) -> None:
    from xlift import stages
    from xlift.workspace import locked

    workspace = _workspace(study, overrides, out)
    with locked(workspace.path):
        getattr(stages, name)(workspace, offline, **options)
    print(f"{name.removesuffix('_stage')} done: {workspace.path}")


def _print_result(workspace: Any, path: Path | None = None) -> None:
    from xlift.rating import RATERS
    from xlift.report.page import result_table
    from xlift.report.reading import material_of
    from xlift.terminal import aligned

    table = [[RATERS[workspace.study.raters[0]].title, *workspace.study.prompts.languages]]
    table += [[run, *cells] for run, cells in result_table(material_of(workspace))]
    print(aligned(table))
    print(f"\nreport: {path or workspace.report / 'index.html'}")


def _end(error: UserError) -> NoReturn:
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    if error.hint:
        print(f"try: {error.hint}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Entry point: a user's mistake, or an extra that is not installed, ends with one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its code: nothing that is done is lost over that.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Ended like by Ctrl-C, at the next record, with locks released and worker processes ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app()
    except UserError as error:
        _end(error)
    except OSError as error:
        _end(os_problem(error))
    except ModuleNotFoundError as error:
        known = missing_extra(error)
        if known is None:
            raise
        _end(known)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            again = redacted(shlex.join(["xlift", *sys.argv[1:]]))
            print(f"stopped; what is done is kept. To go on: {again}", file=sys.stderr)
        raise
    except Exception:
        # A mistake of ours; what it says may hold a key.
        print(redacted(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)
