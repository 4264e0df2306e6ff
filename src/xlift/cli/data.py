"""Commands for data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xlift.cli.common import (
    AsJson,
    LanguageColumn,
    Modes,
    OtherColumns,
    SkipUnfit,
    TextColumn,
    app,
    print_json,
    print_state,
    refuse_others,
)

_EVERY = {"to", "output", "language", "size", "keep_source", "skip_unfit", "as_json"}
_TRANSLATE: Modes = {
    "DATA --to LANGUAGES -o OUT --with MODEL": {"model", "revision", "beams", "device", "dtype", *_EVERY},
    "DATA --to LANGUAGES -o OUT --served MODEL": {
        *("served", "base_url", "api_key_env", "concurrency", "price_input", "price_output", "max_cost", *_EVERY)
    },
}


@app.command()
def translate(
    context: typer.Context,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Instruction data or prompts; builtin, hub:OWNER/NAME.")],
    to: Annotated[str, typer.Option(help="Languages, separated by commas.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write; beside it what was left out.")],
    model: Annotated[str | None, typer.Option("--with", help="Translation model: hub id or folder.")] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of the model.")] = None,
    beams: Annotated[int, typer.Option(min=1, help="More are better and slower.")] = 4,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    served: Annotated[str | None, typer.Option(help="Instead: a model that a server answers with.")] = None,
    base_url: Annotated[str | None, typer.Option(help="The server, for instance http://localhost:8000/v1.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable with the key; OPENAI_API_KEY.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at one time; 16.")] = None,
    price_input: Annotated[float | None, typer.Option(min=0, help="Of a million tokens read.")] = None,
    price_output: Annotated[float | None, typer.Option(min=0, help="Of a million tokens written.")] = None,
    max_cost: Annotated[float | None, typer.Option(min=0, help="Stop before it costs more.")] = None,
    language: Annotated[str, typer.Option(help="Of records that do not name their own.")] = "en",
    size: Annotated[int | None, typer.Option(min=1, help="How many conversations; all where it is not given.")] = None,
    keep_source: Annotated[bool, typer.Option("--keep-source", help="Write the source's records, too.")] = False,
    skip_unfit: SkipUnfit = False,
    as_json: AsJson = False,
) -> None:
    """Say instruction data or prompts in other languages; what fails the checks is left out, counted by reason."""
    from xlift.data.instructions import Unfit
    from xlift.errors import ConfigError
    from xlift.languages import language_codes
    from xlift.study.data import Source
    from xlift.translation import command

    if model is None and served is None:
        raise ConfigError("who should translate?", "xlift translate … --with MODEL, or --served MODEL --base-url URL")
    refuse_others(context, list(_TRANSLATE)[model is None], _TRANSLATE)
    codes = language_codes(to)
    source = Source(path=data, language=language, size=size)
    if model:
        translator, signature = command.by_model(model, revision, beams, device, dtype)
    else:
        given = {
            "model": served, "base_url": base_url, "api_key_env": api_key_env, "concurrency": concurrency,
            "price_input": price_input, "price_output": price_output, "max_cost": max_cost,
        }  # fmt: skip
        translator, signature = command.by_server(output, {name: one for name, one in given.items() if one is not None})
    unfit: Unfit | None = {} if skip_unfit else None
    result = command.translate_file(source, codes, output, translator, signature, keep_source, unfit)
    told = command.translation_data(result, codes, output)
    print_json(told) if as_json else print(command.translation_text(told))


_IMPORT: Modes = {
    "FOLDER --as NAME": {"target", "pattern", "text", "language", "columns", "factors", "raters", "as_json"},
    "ARCHIVE.tar.xz --as NAME": {"target", "as_json"},
}


@app.command("import")
def import_(
    context: typer.Context,
    source: Annotated[
        Path,
        typer.Argument(metavar="FOLDER|FILE", help="Responses in any known format, or a study's archive."),
    ],
    target: Annotated[Path, typer.Option("--as", metavar="results/NAME", help="The study's folder, made if need be.")],
    pattern: Annotated[
        str | None, typer.Option(help="What files are called: {model}/{language}.csv; other {names} are factors.")
    ] = None,
    text: TextColumn = None,
    language: LanguageColumn = None,
    columns: OtherColumns = None,
    factors: Annotated[
        list[str] | None, typer.Option("--factor", metavar="COLUMN", help="A column that tells something of models.")
    ] = None,
    raters: Annotated[str | None, typer.Option(help="The study's raters, separated by commas.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a study of responses that exist already, to rate, judge, annotate, compare and report."""
    from xlift.export.archive import is_archive, read_archive

    refuse_others(context, list(_IMPORT)[is_archive(source)], _IMPORT)
    if is_archive(source):
        read = read_archive(source, target)
        print_state(read) if as_json else print(f"{len(read.runs)} runs\nnext: xlift report {target}")
        return
    from xlift.importing import Wanted, import_study
    from xlift.planning.pending import no_longer_used
    from xlift.progress import say
    from xlift.rating import checked_raters
    from xlift.rating.foreign import asked_for

    names = tuple(checked_raters(name.strip() for name in raters.split(","))) if raters is not None else ()
    asked = asked_for(text, language, columns or [], f"import FILE --as {target}")
    wanted = Wanted(pattern, asked, tuple(factors or []), names)
    workspace = import_study(source, target, wanted)
    if as_json:
        return print_state(workspace)
    for told in no_longer_used(workspace):
        say(told)
    models = ", ".join(run.label for run in workspace.runs)
    word = "model" if len(workspace.runs) == 1 else "models"
    print(f"{len(workspace.runs)} {word}: {models}\nnext: xlift rate {target}, then xlift report {target}")
