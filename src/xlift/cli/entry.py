"""Where `xlift` begins, and how it ends: with one message for a user's mistake."""

from __future__ import annotations

import io
import shlex
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from xlift.cli.common import app
from xlift.errors import UserError, os_problem
from xlift.extras import missing_extra
from xlift.redaction import redacted

INTERRUPTED = 130
"""Exit code after Ctrl-C, or a polite end from outside."""


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
