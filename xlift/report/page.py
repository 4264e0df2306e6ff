"""The report: one self-contained HTML page, its figures as SVG and PNG, its table as CSV."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from xlift.analysis.consistency import consistency, with_requests
from xlift.analysis.estimates import Estimate, estimate
from xlift.data.prompts import margin_languages
from xlift.languages import get_language
from xlift.records import Rating, Response, read_records, reply_language, write_atomic
from xlift.report.figures import learning_rate_figure, loss_figure, save_figure
from xlift.workspace import RunFolder, StudyFolder, now

# What a value of 2 says, by rater.
TITLES = {
    "language": "Answers wholly in the user's language",
    "language_lcb": "Answers without error by the Language Confusion Benchmark's rule",
    "fluency": "Answers without a sign of reduced fluency",
    "constraint": "Constraints followed",
    "answers": "Facts answered right",
}


class Answered(NamedTuple):
    """One checkpoint's up-to-date responses and ratings."""

    run: RunFolder
    step: int
    responses: list[Response]
    ratings: list[Rating]


def read_answers(workspace: StudyFolder) -> list[Answered]:
    """Every checkpoint that answers prompts, its files read once for all tables."""
    from xlift.results import ratings_of, responses_of

    return [
        Answered(run, step, responses_of(workspace, run, step), ratings_of(workspace, run, step))
        for run in workspace.runs
        for step in run.evaluated_steps(workspace.study.decoding.checkpoints)
    ]


def share_table(
    workspace: StudyFolder, rater: str, split: str = "test", answered: list[Answered] | None = None
) -> list[dict[str, Any]]:
    """One row a run, step and language: the share of responses that a rater gives a 2, with its interval.

    Responses that a rater has nothing to say about (prompts without a constraint, say) are not counted.
    """
    settings = workspace.study.report
    rows = []
    for run, step, responses, ratings in read_answers(workspace) if answered is None else answered:
        values = {r["id"]: r["value"] for r in ratings if r["rater"] == rater}
        rated = [r for r in responses if r["split"] == split and r["id"] in values]
        for language in workspace.study.prompts.languages:
            own = [r for r in rated if r["language"] == language]
            shares = [_share(values[r["id"]]) for r in own]
            clusters = [r.get("parallel_id") or r["id"] for r in own]
            found = estimate(shares, clusters, settings.bootstrap, settings.confidence, workspace_seed(workspace))
            rows.append(_row(run, step, language, split, found) | {"rater": rater})
    return rows


def margin_table(workspace: StudyFolder) -> list[dict[str, Any]]:
    """One row a run, step and language: how likely the model opens in the user's language rather than in English."""
    languages = margin_languages(workspace.study.prompts.languages)
    rows = []
    for run in workspace.runs:
        for step in run.evaluated_steps(workspace.study.decoding.checkpoints):
            measured = {one["language"]: one["probability"] for one in run.margins_of(step, languages) or []}
            for language in workspace.study.prompts.languages:
                found = Estimate(**measured[language]) if language in measured else Estimate(None, None, None, 0, 0)
                rows.append(_row(run, step, language, "validation", found) | {"rater": "margin"})
    return rows


def consistency_table(
    workspace: StudyFolder, split: str = "test", answered: list[Answered] | None = None
) -> list[dict[str, Any]]:
    """One row a run, step and pair of languages: how alike the same facts are answered; empty without facts."""
    rows = []
    for run, step, responses, ratings in read_answers(workspace) if answered is None else answered:
        found = consistency(with_requests(ratings, [r for r in responses if r["split"] == split]))
        rows += [{"run": run.label, "id": run.id, "step": step} | pair for pair in found]
    return rows


def workspace_seed(workspace: StudyFolder) -> int:
    """Seed of all resampling in the report."""
    return workspace.study.decoding.seed


def _share(value: float | None) -> float | None:
    return None if value is None else float(value == 2)


def _row(run: RunFolder, step: int, language: str, split: str, found: Estimate) -> dict[str, Any]:
    rate = None if run.config.untuned else run.config.learning_rate
    facts = {"run": run.label, "id": run.id, "step": step, "split": split, "language": language, "learning_rate": rate}
    return facts | asdict(found)


def write_report(workspace: StudyFolder) -> Path:
    """Write report/index.html with its figures and table; returns the page's path."""
    raters, answered = workspace.study.raters, read_answers(workspace)
    tables = {
        (rater, split): share_table(workspace, rater, split, answered)
        for rater in raters
        for split in ("test", "validation")
    }
    margins = margin_table(workspace)
    facts = consistency_table(workspace, answered=answered)
    if facts:
        write_atomic(workspace.report / "facts.csv", _csv(facts))
    write_atomic(workspace.report / "shares.csv", _csv([row for rows in [*tables.values(), margins] for row in rows]))
    figures = _figures(workspace, tables[raters[0], "test"], raters[0])
    templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)
    page = templates.get_template("report.html").render(
        study=workspace.study,
        title=workspace.study.report.title or workspace.study.name,
        made=now(),
        version=metadata.version("xlift"),
        languages=[get_language(code) for code in workspace.study.prompts.languages],
        tables=[
            {"title": TITLES[rater], "rows": pivot(rows), "split": split}
            for (rater, split), rows in sorted(tables.items(), key=lambda item: (item[0][1], raters.index(item[0][0])))
            if any(row["rated"] or row["missing"] for row in rows)
        ],
        facts=[row for row in facts if row["first"] == "en" and row["rated"]],
        names={code: get_language(code).name for code in workspace.study.prompts.languages},
        margins=pivot(margins) if any(row["rated"] for row in margins) else [],
        confidence=f"{workspace.study.report.confidence:.0%}",
        figures=figures,
        runs=[_run_facts(run) for run in workspace.runs],
        payload=Markup(_script_json(_browser_data(workspace, answered))),
    )
    path = workspace.report / "index.html"
    write_atomic(path, page)
    return path


def pivot(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table: a run and step, its cells by language."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        line = found.setdefault((row["id"], row["step"]), {"run": row["run"], "step": row["step"], "cells": []})
        line["cells"].append(row)
    return list(found.values())


def _figures(workspace: StudyFolder, rows: list[dict[str, Any]], rater: str) -> list[dict[str, Any]]:
    by_rate = [
        {**row, "language": get_language(row["language"]).name}
        for row in rows
        if row["learning_rate"] is not None and row["mean"] is not None
    ]
    losses = [
        {"run": run.label, "step": record["step"], "heldout_loss": record["heldout_loss"]}
        for run in workspace.runs
        for record in read_records(run.train_log)
        if "heldout_loss" in record
    ]
    drawn = [
        ("learning-rate", f"{TITLES[rater]}, by learning rate", learning_rate_figure(by_rate)),
        ("heldout-loss", "Loss on held-out instruction data (what English-only validation sees)", loss_figure(losses)),
    ]
    return [
        {"name": name, "caption": caption, "svg": Markup(save_figure(chart, workspace.report, name))}
        for name, caption, chart in drawn
        if chart is not None
    ]


def _run_facts(run: RunFolder) -> dict[str, Any]:
    manifest = run.manifest()
    shown = {key: value for key, value in manifest.items() if key not in {"stages", "label"}}
    return {"label": run.label, "id": run.id, "config": run.config.model_dump(mode="json"), "manifest": shown} | {
        "stages": manifest.get("stages", {})
    }


def _browser_data(workspace: StudyFolder, answered: list[Answered]) -> dict[str, Any]:
    """What the response browser needs: prompts, and per run and step each response with its ratings."""
    from xlift.results import study_prompts

    prompts = {
        prompt["id"]: {
            "language": prompt["language"],
            "split": prompt["split"],
            "reply_language": reply_language(prompt),
            "category": prompt.get("category", ""),
            "text": prompt["messages"][-1]["content"],
            "rtl": get_language(prompt["language"]).right_to_left,
        }
        for prompt in study_prompts(workspace)
    }
    runs = []
    for run, step, responses, rated in answered:
        ratings: dict[str, list[Rating]] = {}
        for rating in rated:
            ratings.setdefault(rating["id"], []).append(rating)
        answers = {
            r["id"]: {
                "text": r["text"],
                "end": r["finish_reason"],
                "ratings": [_shown(x) for x in ratings.get(r["id"], [])],
            }
            for r in responses
        }
        runs.append({"label": run.label, "step": step, "answers": answers})
    return {"prompts": prompts, "runs": runs}


def _shown(rating: Rating) -> dict[str, Any]:
    keys = ("facet", "rater", "value", "reason", "signature")
    shown = {key: value for key, value in rating.items() if key in keys}
    spans = rating.get("detail", {}).get("spans")
    return shown | ({"spans": spans} if spans else {})


def _script_json(data: Any) -> str:
    """JSON that is inert inside a script element, whatever text it holds."""
    text = json.dumps(data, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _csv(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def text_table(workspace: StudyFolder) -> list[tuple[str, list[str]]]:
    """The test table for the terminal: per run, one cell a language as "94 % [72–99]"."""
    table = pivot(share_table(workspace, workspace.study.raters[0]))
    return [(line["run"], [cell_text(cell) for cell in line["cells"]]) for line in table]


def cell_text(cell: dict[str, Any]) -> str:
    if cell["mean"] is None:
        return "not rated"
    mean, low, high = (cast(float, cell[key]) for key in ("mean", "low", "high"))
    return f"{mean:.0%} [{low * 100:.0f}–{high * 100:.0f}]" + (
        f" ({cell['missing']} missing)" if cell["missing"] else ""
    )
