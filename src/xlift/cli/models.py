"""Commands for one model, of a study or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from xlift.cli.common import AsJson, Modes, Offline, OfServer, OfServerKey, Out, app, print_json, refuse_others
from xlift.errors import ConfigError

_DIAGNOSE: Modes = {
    "MODEL": {
        *("base", "languages", "size", "system", "template", "repetition_penalty", "out", "html", "as_json"),
        *("fail_under", "offline"),
    },
    "http://…": {
        *("model", "api_key_env", "base", "languages", "size", "system", "template", "out", "html", "as_json"),
        *("fail_under", "offline"),
    },
    "--data FILE": {"data", "as_json", "offline"},
}


@app.command()
def diagnose(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...", help="Folders, hub ids, adapters, runs; embedded:NAME; FILE.gguf; http://HOST/v1."
        ),
    ] = None,
    model: OfServer = None,
    api_key_env: OfServerKey = None,
    base: Annotated[str | None, typer.Option(help="The model that they were tuned from, to compare with.")] = None,
    languages: Annotated[str, typer.Option(help="Of the users, separated by commas; English is added.")] = "fr,pt,ru",
    size: Annotated[str, typer.Option(help="quick, usual or thorough: 4, 12 or 40 prompts of each kind.")] = "usual",
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    template: Annotated[str, typer.Option(help="Chat format; the model's own where it is not given.")] = "auto",
    repetition_penalty: Annotated[float, typer.Option(help="1 is none.")] = 1.0,
    out: Out = None,
    html: Annotated[Path | None, typer.Option(help="Also a page with figures and every answer.")] = None,
    as_json: AsJson = False,
    fail_under: Annotated[
        list[str] | None, typer.Option(help="fr=0.95, or 0.95 for all: exit code 1 where fewer answers are right.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE", help="Instruction data instead of a model.")] = None,
    offline: Offline = False,
) -> None:
    """What is wrong with a model, or with the data it is tuned on, and what to try."""
    from xlift.diagnosis import command
    from xlift.languages import language_codes
    from xlift.servers.named import is_address

    if not models and not data:
        raise ConfigError("what should be diagnosed?", "xlift diagnose MODEL, or xlift diagnose --data FILE")
    served = any(is_address(one) for one in [*(models or []), *([base] if base else [])])
    refuse_others(context, "http://…" if served else "MODEL" if models else "--data FILE", _DIAGNOSE)
    failures: list[str] = []
    if data:
        found, said = command.diagnose_data(data, offline)
    else:
        codes = language_codes(languages)
        settings = {"system": system, "template": template, "repetition_penalty": repetition_penalty}
        found, said, failures = command.diagnose_models(
            models or [], base, codes, size, out, html, offline, fail_under or [], (model, api_key_env), **settings
        )
    print_json(found) if as_json else print(said)
    for line in failures:
        print(line, file=sys.stderr)
    if failures:
        raise typer.Exit(1)


_CHAT: Modes = {
    "MODEL": {"system", "language", "ratings", "max_new_tokens", "offline"},
    "http://…": {"model", "api_key_env", "system", "language", "ratings", "max_new_tokens", "offline"},
}


@app.command()
def chat(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Run folders, folders, hub ids, adapters; embedded:NAME; FILE.gguf; http://HOST/v1.",
        ),
    ],
    model: OfServer = None,
    api_key_env: OfServerKey = None,
    system: Annotated[str | None, typer.Option(help="System prompt; a run's own without it, none where empty.")] = None,
    language: Annotated[str | None, typer.Option(help="Answers are to be in this language, and rated for it.")] = None,
    ratings: Annotated[bool, typer.Option("--ratings", help="Rate every answer.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest reply in tokens.")] = 256,
    offline: Offline = False,
) -> None:
    """Talk to a run or a model, or to several side by side, a line a turn; an empty line or Ctrl-D ends."""
    from xlift.chat import talk
    from xlift.servers.named import is_address

    refuse_others(context, "http://…" if any(map(is_address, models)) else "MODEL", _CHAT)
    talk(models, system, max_new_tokens, offline, (model, api_key_env), language, ratings)


@app.command()
def serve(
    models: Annotated[list[str], typer.Argument(metavar="RUN|MODEL…", help="Run folders, model folders or names.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on this machine, 127.0.0.1.")] = 8766,
    offline: Offline = False,
) -> None:
    """Let runs and models answer other tools: an OpenAI-compatible endpoint on this machine, by name."""
    from xlift.extras import require

    require("train", "serve")
    from xlift.serving import serve as served

    served(models, port, offline)


_EXPORT: Modes = {
    "SOURCE --to DIR": {"to", "step", "gguf", "push", "private", "offline", "as_json"},
    "SOURCE --to DIR --adapter": {"to", "step", "adapter", "push", "private", "offline", "as_json"},
    "SOURCE --to DIR --data": {"to", "data", "push", "private", "as_json"},
    "SOURCE --to DIR --archive": {"to", "archive", "as_json"},
}


@app.command()
def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="RUN|STUDY", help="A run's folder; with --data, --archive a study.")],
    to: Annotated[Path, typer.Option(help="The folder to write, or the file of an archive; not there yet.")],
    step: Annotated[int | None, typer.Option(min=1, help="Of this checkpoint; the last where it is not given.")] = None,
    adapter: Annotated[bool, typer.Option("--adapter", help="The adapter alone, not merged into its base.")] = False,
    gguf: Annotated[
        Literal["auto", "f32", "f16", "bf16", "q8_0"] | None,
        typer.Option(help="Also one file for llama.cpp, with a Modelfile for Ollama."),
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="The study's responses and ratings instead of weights.")] = False,
    archive: Annotated[
        bool, typer.Option("--archive", help="The study without its weights as one file, which xlift import reads.")
    ] = False,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Also send it to this repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="The repository is private where it is new.")] = False,
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's weights for other tools, or a study's data, with a card of what was found."""
    from xlift.export.push import checked_name, push_folder

    asked = " --archive" if archive else " --data" if data else " --adapter" if adapter else ""
    refuse_others(context, "SOURCE --to DIR" + asked, _EXPORT)
    if private and push is None:
        raise ConfigError("--private does not apply without --push", "--push OWNER/NAME --private, or leave it out")
    repository = checked_name(push)
    if archive:
        from xlift.export.archive import write_archive

        made = write_archive(Path(source), to)
    elif data:
        from xlift.export.dataset import export_data

        made = export_data(Path(source), to)
    else:
        from xlift.export.weights import export_run

        made = export_run(source, to, step, adapter, offline, gguf)
    pushed = push_folder(made, repository, "dataset" if data else "model", private) if repository else None
    if as_json:
        return print_json({"exported": str(made), "pushed": pushed})
    print(f"exported: {made}")
    if pushed:
        print(f"pushed: {pushed}")
