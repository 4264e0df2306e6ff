"""Where `xlift` begins, and how it ends: with one message for a user's mistake."""

from __future__ import annotations

import io
import logging
import os
import shlex
import signal
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from xlift.cli.common import app
from xlift.errors import UserError, memory_problem, os_problem
from xlift.extras import missing_extra
from xlift.progress import QUIET, VERBOSE, kept_for_a_log
from xlift.redaction import redacted
from xlift.workers import part

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
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Results and errors only, no progress; with any command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("-v", "--verbose", help="Also the libraries' own messages, and where an error arose.")
    ] = False,
) -> None:
    if quiet:
        os.environ[QUIET] = "1"
    if verbose:
        os.environ[VERBOSE] = "1"
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("xlift").propagate = False
    else:
        # Whenever PEFT loads it, it warns of kernels that it does without.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _end(error: UserError) -> NoReturn:
    if os.environ.get(VERBOSE):
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
    for problem in error.problems:
        print(f"error: {problem}", file=sys.stderr)
    if error.hint:
        print(f"try: {error.hint}", file=sys.stderr)
    sys.exit(2)


# e.g. _anywhere(["run", "s.yaml", "-q"]) → ["-q", "run", "s.yaml"]
def _anywhere(words: list[str]) -> list[str]:
    """The words with what holds for every command in front of the command, wherever it was written."""
    end = words.index("--") if "--" in words else len(words)
    common = [word for word in words[:end] if word in {"-q", "--quiet", "-v", "--verbose"}]
    return [*common, *(word for word in words[:end] if word not in common), *words[end:]]


def main() -> None:
    """Entry point: a user's mistake, or an extra that is not installed, ends with one message and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows its code: nothing that is done is lost over that.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    # Ended like by Ctrl-C, at the next record, with locks released and worker processes ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    typed = redacted(shlex.join(["xlift", *sys.argv[1:]]))
    try:
        with kept_for_a_log(typed):
            app(_anywhere(sys.argv[1:]))
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
            print(f"stopped; what is done is kept. To go on: {typed}", file=sys.stderr)
        elif not end.code:
            part()
        raise
    except Exception as error:
        if ended := memory_problem(error):
            _end(ended)
        # A mistake of ours; what it says may hold a key.
        print(redacted(traceback.format_exc()), file=sys.stderr)
        sys.exit(1)
