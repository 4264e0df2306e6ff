"""Several studies side by side: one table a scale with the overall number of each run, and each study's own report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlift.disk import write_atomic
from xlift.errors import ConfigError
from xlift.languages import language_name
from xlift.report.browser import policy, rendered
from xlift.report.formats import Column, ReportTable, Value, cells, write_tables
from xlift.report.overall import overall_rows
from xlift.report.page import write_pages
from xlift.report.reading import Material, material_of
from xlift.report.rows import record
from xlift.workspace import StudyFolder


def write_side_by_side(studies: Sequence[StudyFolder], folder: Path) -> Path:
    """Write FOLDER/index.html and FOLDER/tables/, and each study's own report beside its files; returns the page.

    Raises ConfigError where a study is named twice, or the folder is one of the studies.
    """
    paths = [study.path.resolve() for study in studies]
    if len(set(paths)) < len(paths):
        raise ConfigError("a study is named twice", "name each once")
    if folder.resolve() in paths:
        raise ConfigError(f"--out {folder}: one of the studies", "choose a folder of its own")
    materials = [material_of(study) for study in studies]
    reports = [write_pages(material) for material in materials]
    tables = side_by_side(materials)
    write_tables(tables, folder / "tables")
    links = [
        (name, one.workspace.study.question, os.path.relpath(path, folder))
        for name, one, path in zip(names_of(materials), materials, reports, strict=True)
    ]
    page = rendered(
        "several.html",
        **{"links": links, "tables": tables, "cells": cells, "notes": differing(materials)},
        policy=policy(),
    )
    write_atomic(folder / "index.html", page)
    return folder / "index.html"


def side_by_side(materials: Sequence[Material]) -> list[ReportTable]:
    """A table for each scale, the best run of all studies first."""
    named = zip(names_of(materials), materials, strict=True)
    rows = [(name, row) for name, material in named for row in overall_rows(material)]
    scales = {scale.slug: scale for material in materials for scale in material.scales}
    tables = []
    for scale in scales.values():
        own = [(name, row) for name, row in rows if (row.facet, row.rater) == (scale.facet, scale.rater)]
        own.sort(key=lambda pair: -(pair[1].mean or 0.0))
        columns = [Column("study"), Column("run"), Column("mean of other languages", "share")]
        columns += [Column("worst language", "share"), Column("requests", "count")]
        lines = [
            [
                *(Value(name), Value(row.run), Value(*row.share)),
                *(Value(*row.lowest, language_name(row.worst_language)), Value(row.n_prompts)),
            ]
            for name, row in own
        ]
        records: list[dict[str, Any]] = [{"study": name} | record(row) for name, row in own]
        note = "Test prompts: share of the best value. Ranks are in a study's report; intervals are by its settings."
        tables.append(ReportTable(f"studies-{scale.slug}", scale.title, note, columns, lines, records))
    return tables


def names_of(materials: Sequence[Material]) -> list[str]:
    """What the studies are called: those of one name by their folders too."""
    names = [one.workspace.study.name for one in materials]
    paths = [one.workspace.path for one in materials]
    return [f"{name} ({path})" if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]


def differing(materials: Sequence[Material]) -> list[str]:
    """What studies do not share and must share for their numbers to be compared."""
    told: dict[str, list[Any]] = {
        "test prompts": [frozenset(p["id"] for p in one.prompts if p["split"] == "test") for one in materials],
        "languages": [frozenset(one.languages) for one in materials],
        "settings of decoding": [one.workspace.study.decoding.signature for one in materials],
        "raters": [frozenset((scale.facet, scale.rater) for scale in one.scales) for one in materials],
    }
    return [f"The studies do not have the same {name}" for name, values in told.items() if len(set(values)) > 1]
