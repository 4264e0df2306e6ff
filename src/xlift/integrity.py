"""What xlift wrote is what it reads: hashes of files, made as they are written and compared before they are used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xlift.disk import is_as_written
from xlift.errors import ConfigError, DataError, ModelError
from xlift.hub import Located, file_sha256, folder_sha256
from xlift.progress import say
from xlift.workspace import RunFolder, manifest_of

FACTS_FILE = "xlift.json"
"""In the folder of a checkpoint: its step, its chat format, and the hashes of the other files and of its state."""
UNHASHED = {FACTS_FILE, "README.md"}
"""Files of a checkpoint without a hash: it stands in one, and people write in the other."""
AGAIN = "remove the checkpoint and run again: it is made anew"


def hashes(paths: Iterable[Path]) -> dict[str, str]:
    """Hash by file name."""
    return {path.name: file_sha256(path) for path in sorted(paths) if path.name not in UNHASHED}


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; {} for a folder that xlift did not write. Raises ModelError where damaged."""
    path = folder / FACTS_FILE
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_bytes())
        known = facts.get("sha256", {}) | {"training_state": facts.get("training_state", "")}
        assert all(isinstance(one, str) for pair in known.items() for one in pair)
    except (ValueError, TypeError, AttributeError, RecursionError, AssertionError):
        raise ModelError(f"{path}: damaged", AGAIN) from None
    return facts  # type: ignore[no-any-return]


def damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files of a checkpoint, by the hashes that it was written with."""
    problems = []
    for name, known in checkpoint_facts(folder).get("sha256", {}).items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path}: missing")
        elif file_sha256(path) != known:
            problems.append(f"{path}: not what was written: its sha256 has changed")
    return problems


def refuse_damaged(folder: Path) -> None:
    """Raises ModelError that names the files of a checkpoint that are not as they were written."""
    if problems := damaged_files(folder):
        raise ModelError(problems, AGAIN)


def refuse_other_state(checkpoint: Path, state: Path) -> None:
    """Raises DataError where a training state is not the one that was written with its checkpoint."""
    known = checkpoint_facts(checkpoint).get("training_state")
    if known and file_sha256(state) != known:
        hint = "remove the file and run again: training begins anew"
        raise DataError(f"{state}: not what was written: its sha256 has changed", hint)


def refuse_other_base(run: RunFolder, base: Located) -> None:
    """Raises ConfigError where the base model is another than the one that a run was begun with."""
    begun = manifest_of(run.trained).get("base") if run.checkpoint_steps() else None
    content = run.config.model_sha256
    # A study folder is read without looking at its models: they are looked at here, before they are used.
    if begun not in (None, base.facts) or content not in (None, folder_sha256(Path(base.adapter or base.path))):
        raise ConfigError(
            f"{run.config.model} is no longer the base model that this run was begun with",
            "put the old one back, or give the study's own file again: with another base it has other runs",
        )


def changed_files(run: RunFolder) -> list[str]:
    """The responses, margins and ratings of a run that are no longer as they were written."""
    known = run.manifest().get("files", {})
    paths = [run.path / name for name, part in known.items() if not is_as_written(run.path / name, part)]
    return [f"{path}: not what was written: its sha256 has changed" for path in paths]


def say_changed(run: RunFolder) -> None:
    """Say which files of a run have been changed by others since they were written; what they hold counts."""
    for one in changed_files(run):
        say(f"{one} (xlift verify says how to mend it)")
