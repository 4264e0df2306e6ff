"""The licence of a base model, carried on to what is made of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from xlift.errors import UserError
from xlift.hub import EMBEDDED, hub_snapshot, locate
from xlift.workspace import RunFolder

FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
LICENCE_FIELDS = ("license", "license_name", "license_link")


class Licence(NamedTuple):
    """What a model's card says of its licence, as the hub's fields, and the files that hold its text."""

    fields: dict[str, Any]
    files: list[Path]


def keep_licence(run: RunFolder, folder: Path, offline: bool) -> Licence:
    """Copy the texts of a run's base's licence into a folder, and return what its card says of it."""
    found = licence_of(run.config.model, run.pinned_revision or run.config.revision, offline)
    for path in found.files:
        shutil.copyfile(path, folder / path.name)
    return found


def licence_of(model: str, revision: str | None, offline: bool) -> Licence:
    """The licence of a model that `locate` finds; no fields where its card names none, or cannot be had."""
    if model.startswith("embedded:"):
        known = EMBEDDED[model.removeprefix("embedded:")]
        return Licence({"license": known.licence_name, "license_link": known.licence_link}, [])
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = hub_snapshot(model, revision, offline, "model", ["README.md", *FILES])
        except UserError:
            return Licence({}, [])
    if (folder / "adapter_config.json").is_file():
        folder = Path(locate(model, revision, offline).path)
    files = sorted({path for pattern in FILES for path in folder.glob(pattern) if path.is_file()})
    told = card_fields(folder / "README.md")
    return Licence({name: told[name] for name in LICENCE_FIELDS if told.get(name)}, files)


# e.g. card_fields(Path("absent.md")) → {}
def card_fields(card: Path) -> dict[str, Any]:
    """What stands between the lines --- at the top of a card; nothing where there is no card or no such part."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if not text.startswith("---\n"):
        return {}
    try:
        found = yaml.safe_load(text.split("\n---", 1)[0].removeprefix("---\n"))
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
