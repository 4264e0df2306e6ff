"""The command line: parse, call one function, print. Heavy imports stay inside the commands."""

# Help lists the commands in the order of these imports.
from xlift.cli import studies

# isort: split
from xlift.cli import data, models, ratings
from xlift.cli.common import app
from xlift.cli.entry import main

__all__ = ["app", "data", "main", "models", "ratings", "studies"]
