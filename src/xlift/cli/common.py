"""What the commands share: their arguments, how a study is opened, which options a mode takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xlift.errors import ConfigError

if TYPE_CHECKING:
    from xlift.report.reading import Material

app = typer.Typer(
    help="Instruction-tune on English, answer in many languages, see what crosses over.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file (YAML), or a study's folder.")]

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Settings to replace, for instance training.steps=50.")
]

Out = Annotated[Path | None, typer.Option(help="Study folder; results/<name> where it is not given.")]

SkipUnfit = Annotated[
    bool, typer.Option("--skip-unfit", help="Leave out records that cannot be learned from, counted by reason.")
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

TextColumn = Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the replies in a file.")]

LanguageColumn = Annotated[
    str | None, typer.Option(metavar="COLUMN|CODE", help="The column of languages, or one language for all.")
]

OtherColumns = Annotated[
    list[str] | None, typer.Option("--map", metavar="COLUMN=FIELD", help="Another column as a field: id, model, ….")
]

OfServer = Annotated[str | None, typer.Option(help="Of a server: the name that it knows.")]

OfServerKey = Annotated[str | None, typer.Option(help="Of a server: the environment variable with the key.")]

Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub.")]

Modes = dict[str, set[str]]
"""What a command can be asked to do, as it is written, and the options that it then takes."""


def refuse_others(context: typer.Context, mode: str, modes: Modes) -> None:
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


# e.g. skipping(["steps=9"], True) → ["steps=9", "skip_unfit=true"]
def skipping(overrides: list[str] | None, skip_unfit: bool) -> list[str]:
    return [*(overrides or []), *(["skip_unfit=true"] if skip_unfit else [])]


def study_of(path: Path, overrides: list[str] | None, out: Path | None) -> tuple[Any, Path | None]:
    from xlift.api import read_study

    return read_study(path, overrides or [], out)


def workspace_of(study: Path, overrides: list[str] | None, out: Path | None) -> Any:
    from xlift.stages import prepare

    return prepare(*study_of(study, overrides, out))


def print_json(told: Any) -> None:
    """The whole of what stdout says with `--json`: one value."""
    print(json.dumps(told, indent=2, ensure_ascii=False))


def print_state(workspace: Any) -> None:
    """How far a study is, as `xlift ls --json` says it, read anew."""
    from xlift.listing import study_state
    from xlift.workspace import find_study

    print_json(study_state(find_study(workspace.path)))


def stage(
    name: str,
    study: Path,
    overrides: list[str] | None,
    out: Path | None,
    offline: bool,
    as_json: bool = False,
    **options: Any,
) -> None:
    from xlift import stages
    from xlift.workspace import locked

    workspace = workspace_of(study, overrides, out)
    with locked(workspace.path):
        getattr(stages, name)(workspace, offline, **options)
    if as_json:
        print_state(workspace)
    else:
        print(f"{name.removesuffix('_stage')} done: {workspace.path}")


def print_result(material: Material, report: Path, as_json: bool = False) -> None:
    """The table of the study's first rater, and where the report is."""
    from xlift.rating import RATERS
    from xlift.report.page import result_data, result_text
    from xlift.report.remedies import remedies_table, remedies_text

    if as_json:
        measure = RATERS[material.workspace.study.raters[0]].title
        told: dict[str, Any] = {"measure": measure, "runs": result_data(material), "report": str(report)}
        if mended := remedies_table(material):
            told["remedies"] = mended.records
        print_json(told)
        return
    print(result_text(material))
    if text := remedies_text(material):
        print(f"\n{text}")
    print(f"\nreport: {report}")
