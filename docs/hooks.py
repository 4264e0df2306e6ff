"""Pages of the site that are made from something else, so that they cannot fall behind it."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.testing import CliRunner

import xlift
from xlift.cli import app

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """README is the first page; commands come from their help, the Python reference from what is public."""
    made = {"index.md": landing(), "changelog.md": changelog(), "cli.md": commands(), "reference.md": reference()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """In the repository the changelog stands beside README."""
    return markdown.replace("(../CHANGELOG.md)", "(changelog.md)")


def landing() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("](docs/", "](")


def reference() -> str:
    """What mkdocstrings turns into the signatures and docstrings of all public names."""
    names = "\n\n".join(f"::: xlift.{name}" for name in sorted(xlift.__all__, key=str.lower))
    return f"# Python reference\n\n[Examples](python.md)\n\n{names}\n"


def commands() -> str:
    """The help of every command."""
    names = [command.name or str(getattr(command.callback, "__name__", "")) for command in app.registered_commands]
    parts = ["# Commands", _help()]
    for name in names:
        parts += [f"## xlift {name}", _help(name)]
    return "\n\n".join(parts) + "\n"


def _help(*words: str) -> str:
    done = CliRunner().invoke(app, [*words, "--help"], prog_name="xlift", terminal_width=110, catch_exceptions=False)
    return f"```text\n{done.output.strip()}\n```"
