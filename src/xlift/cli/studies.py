"""Commands that make a study, look at it and look after it."""

from __future__ import annotations

import shlex
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xlift.cli.common import (
    AsJson,
    Modes,
    Offline,
    Out,
    Overrides,
    SkipUnfit,
    StudyFile,
    app,
    print_json,
    print_result,
    refuse_others,
    skipping,
    stage,
    study_of,
    workspace_of,
)
from xlift.errors import ConfigError, UserError, raise_together

if TYPE_CHECKING:
    from xlift.workspace import StudyFolder


@app.command()
def init(
    file: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.yaml"),
    model: Annotated[str | None, typer.Option(help="Folder, hub id, or embedded:NAME.")] = None,
    data: Annotated[str | None, typer.Option(help="Instructions: a file, hub:OWNER/NAME, or builtin.")] = None,
    languages: Annotated[str | None, typer.Option(help="Of your users, separated by commas.")] = None,
    compare: Annotated[str | None, typer.Option(help="rates, amounts, methods or nothing.")] = None,
    size: Annotated[str | None, typer.Option(help="quick, usual or thorough.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; what is not given is as proposed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a first study file, with comments; asks what no option says."""
    from xlift.study.new import QUESTIONS, FirstStudy, write_first_study

    given = {"model": model, "data": data, "languages": languages, "compare": compare, "size": size}
    answers = FirstStudy()._asdict() | {name: value for name, value in given.items() if value is not None}
    for name in () if yes or not sys.stdin.isatty() else QUESTIONS:
        if given[name] is None:
            answers[name] = typer.prompt(QUESTIONS[name], default=answers[name], err=True)
    path = write_first_study(file, FirstStudy(**answers))
    written = shlex.quote(str(path))
    then = [f"xlift check {written}", f"xlift run {written}"]
    if as_json:
        return print_json({"written": str(path), "next": then})
    print(f"written: {path}\nnext: {then[0]}\n      {then[1]}")


@app.command()
def run(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
    as_json: AsJson = False,
) -> None:
    """Every stage in order; run again, it continues. Prints the result table and where the report is."""
    from xlift.stages import run_study

    _print_study(run_study(*study_of(study, skipping(overrides, skip_unfit), out), offline), as_json)


_CHECK: Modes = {
    "STUDY": {"out", "offline", "skip_unfit", "probe", "as_json"},
    "STUDY --gpus": {"gpus", "offline", "as_json"},
}


_MEND: Modes = {
    "MODEL": {"languages", "base", "out", "offline", "as_json"},
    "MODEL --dry-run": {"languages", "base", "dry_run"},
}


@app.command()
def mend(
    context: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="A base model, a run that ails, or with --base tuned weights.")
    ],
    overrides: Overrides = None,
    languages: Annotated[str, typer.Option(help="Of the users, separated by commas.")] = "fr,pt,ru",
    base: Annotated[str | None, typer.Option(help="What MODEL was tuned from, where its run is not at hand.")] = None,
    out: Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the study instead, to be kept as a file.")] = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Compare what mends a model that answers in English: a study of remedies with their gains and costs."""
    import yaml

    from xlift.languages import language_codes
    from xlift.mending import drawn_back, mending_study
    from xlift.stages import run_study
    from xlift.study.loading import read_overridden
    from xlift.terminal import WIDTH
    from xlift.workspace import open_study

    refuse_others(context, "MODEL --dry-run" if dry_run else "MODEL", _MEND)
    raw = mending_study(source, language_codes(languages), base)
    study = read_overridden(raw, overrides or [])
    if base:
        folder = open_study(study, out).path
        half = folder.with_name(f"{folder.name}-weights") / "weight-0.5"
        if not dry_run:
            drawn_back(source, base, half, offline=offline)
            raw["include"].append({"model": str(half)})
            study = read_overridden(raw, overrides or [])
    if dry_run:
        print(yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=WIDTH), end="")
        return
    _print_study(run_study(study, out, offline), as_json)


def _print_study(workspace: StudyFolder, as_json: bool) -> None:
    from xlift.report.reading import material_of

    print_result(material_of(workspace), workspace.report / "index.html", as_json)


@app.command()
def check(
    context: typer.Context,
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
    probe: Annotated[bool, typer.Option(help="Measure time and memory by a short probe.")] = True,
    gpus: Annotated[bool, typer.Option("--gpus", help="Only tell what it takes on GPUs; wants no weights.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check settings, data, prompts and the chat format before anything is spent, with time, memory and disk."""
    refuse_others(context, "STUDY --gpus" if gpus else "STUDY", _CHECK)
    parsed, folder = study_of(study, skipping(overrides, skip_unfit), out)
    if gpus:
        from xlift.extras import require
        from xlift.planning.gpus import gpu_needs, gpus_text

        require("train")
        needs = gpu_needs(parsed, offline)
        return print_json({"gpus": needs}) if as_json else print(gpus_text(needs))
    from xlift.planning.check import check_study

    # For a person, the table of runs and what the first of them learns are still told.
    with redirect_stdout(sys.stderr) if as_json else nullcontext():
        told = check_study(parsed, offline, probe, folder)
    if as_json:
        return print_json(told)
    print(f"all good; next: {shlex.join(['xlift', 'run', str(study), *(overrides or [])])}")


@app.command()
def train(
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    offline: Offline = False,
    skip_unfit: SkipUnfit = False,
    as_json: AsJson = False,
) -> None:
    """Train every run of the study."""
    stage("train_stage", study, skipping(overrides, skip_unfit), out, offline, as_json)


@app.command()
def generate(
    study: StudyFile, overrides: Overrides = None, out: Out = None, offline: Offline = False, as_json: AsJson = False
) -> None:
    """Let every run answer the prompts."""
    stage("generate_stage", study, overrides, out, offline, as_json)


_REPORT: Modes = {"STUDY": {"out", "format_", "as_json"}, "STUDY STUDY… --out DIR": {"out"}}


@app.command()
def report(
    context: typer.Context,
    study: StudyFile,
    overrides: Overrides = None,
    out: Out = None,
    format_: Annotated[str, typer.Option("--format", help="html, md, csv or latex.")] = "html",
    as_json: AsJson = False,
) -> None:
    """Write the report from what there is, as a page, as Markdown, or its tables alone; one page of several studies."""
    from xlift.report.page import write_pages
    from xlift.report.reading import material_of

    others = [one for one in overrides or [] if "=" not in one]
    refuse_others(context, list(_REPORT)[bool(others)], _REPORT)
    if others:
        if changed := [one for one in overrides or [] if "=" in one]:
            raise ConfigError(f"several studies are shown as they are, without {', '.join(changed)}", "leave it out")
        return _side_by_side([study, *map(Path, others)], out)
    workspace = workspace_of(study, overrides, out)
    material = material_of(workspace)
    print_result(material, write_pages(material, format_), as_json)


def _side_by_side(studies: list[Path], out: Path | None) -> None:
    from xlift.report.several import write_side_by_side
    from xlift.workspace import find_study

    if out is None:
        raise ConfigError("several studies: where should the page be written?", "xlift report A B --out DIR")
    print(f"report: {write_side_by_side([find_study(one) for one in studies], out)}")


@app.command()
def view(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or a study's folder.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any that is free.")] = 8766,
) -> None:
    """The report in a browser while the study runs: on this machine alone, read-only, always as it is now."""
    from functools import partial

    from xlift.report.live import view as serve
    from xlift.workspace import find_study

    find_study(study)
    serve(partial(find_study, study), port)


@app.command("ls")
def list_(
    study: Annotated[Path | None, typer.Argument(help="A study file or folder; all of results/ without it.")] = None,
    as_json: AsJson = False,
) -> None:
    """What there is and how far it is."""
    from xlift.listing import states_text, study_state
    from xlift.workspace import find_study

    folders = [study] if study else sorted(path.parent for path in Path("results").glob("*/study.yaml"))
    states, damaged = [], list[UserError]()
    for folder in folders:
        try:
            states.append(study_state(find_study(folder)))
        except UserError as error:
            damaged.append(error)
    if states or not damaged:
        print_json(states) if as_json else print(states_text(states))
    raise_together(damaged)


@app.command()
def verify(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, or a study's folder.")],
    as_json: AsJson = False,
) -> None:
    """Check that every file of a study is whole and as it was written; what is not, and what mends it."""
    from xlift.verifying import verify as checked

    files, problems = checked(study)
    if as_json:
        print_json({"files": files, "problems": problems})
    if problems:
        raise UserError(problems)
    if not as_json:
        print(f"{files} files and checkpoints of {study} are whole and as they were written")


_CLEAN: Modes = {"STUDY": {"yes", "as_json"}, "STUDY --dry-run": {"dry_run", "as_json"}}


@app.command()
def clean(
    context: typer.Context,
    study: StudyFile,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it without asking.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what a study no longer needs: runs that left it, states of finished training, leftovers; asks before."""
    from xlift import cleaning
    from xlift.workspace import alone

    refuse_others(context, "STUDY --dry-run" if dry_run else "STUDY", _CLEAN)
    workspace = cleaning.open_folder(study)
    with nullcontext() if dry_run else alone(workspace.path):
        found = cleaning.needless(workspace)
        # What is to be agreed to must be seen, whatever stdout is for.
        print(cleaning.needless_text(found), file=sys.stderr if as_json else None)
        removed = bool(found) and not dry_run and (yes or _agreed(study))
        if removed:
            print(cleaning.remove(found), file=sys.stderr if as_json else None)
    if as_json:
        rows = [{"path": str(one.place), "why": one.why, "bytes": one.bytes} for one in found]
        print_json({"removed": removed, "needless": rows})


def _agreed(study: Path) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nothing is removed: there is no terminal to ask in", f"xlift clean {study} --yes")
    return typer.confirm("remove it?", err=True)
