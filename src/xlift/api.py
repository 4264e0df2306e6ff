"""Stages for a notebook or a program: what the commands do, given a study as a file, a folder or a plain mapping."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlift.study.loading import load_study, parse_study
from xlift.study.study import Study

if TYPE_CHECKING:
    from xlift.results import Results

StudyLike = str | Path | Mapping[str, Any]
"""A study file, a study's folder, or the settings of a study file as a mapping, `name` among them."""


def read_study(
    study: StudyLike, overrides: Sequence[str] = (), folder: str | Path | None = None
) -> tuple[Study, Path | None]:
    """The study and the folder that it was given with; None stands for results/NAME. Raises ConfigError."""
    out = None if folder is None else Path(folder)
    if isinstance(study, Mapping):
        # Paths in a mapping are relative to where the program runs.
        return parse_study(copy.deepcopy(dict(study)), folder=Path.cwd()), out
    path = Path(study)
    if (path / "study.yaml").is_file():
        return load_study(path / "study.yaml", overrides), out or path
    return load_study(path, overrides), out


def run(
    study: StudyLike, overrides: Sequence[str] = (), folder: str | Path | None = None, offline: bool = False
) -> Results:
    """Every stage of a study in order, as `xlift run` does; called again, it continues.

    `study` is a study file, a study's folder, or its settings as a mapping. `overrides` are settings such as
    "training.steps=50", for a file or folder. `folder` is where the study is kept: results/NAME where it is not given.
    Raises UserError with everything that is wrong, and at the end with what failed in single runs.
    """
    from xlift.results import Results
    from xlift.stages import run_study

    return Results(run_study(*read_study(study, overrides, folder), offline))


def train(
    study: StudyLike, overrides: Sequence[str] = (), folder: str | Path | None = None, offline: bool = False
) -> Results:
    """Train the runs of a study that are not trained yet; arguments and errors as for `run`."""
    from xlift.stages import train_stage

    return _stage(train_stage, study, overrides, folder, offline)


def generate(
    study: StudyLike, overrides: Sequence[str] = (), folder: str | Path | None = None, offline: bool = False
) -> Results:
    """Let every run of a study answer the prompts that it has not answered yet; arguments and errors as for `run`."""
    from xlift.stages import generate_stage

    return _stage(generate_stage, study, overrides, folder, offline)


def _stage(
    stage: Callable[[Any, bool], None],
    study: StudyLike,
    overrides: Sequence[str],
    folder: str | Path | None,
    offline: bool,
) -> Results:
    from xlift.results import Results
    from xlift.stages import prepare
    from xlift.workspace import locked

    workspace = prepare(*read_study(study, overrides, folder))
    with locked(workspace.path):
        stage(workspace, offline)
    return Results(workspace)
