"""What runs cost and what they were tuned on, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xlift.progress import byte_size, duration
from xlift.report.formats import Column, ReportTable, Value
from xlift.report.methods import data_facts
from xlift.report.reading import Material
from xlift.workspace import RunFolder


def cost_table(material: Material) -> ReportTable | None:
    """Time, memory and energy of each run, as far as they were measured; None where nothing was."""
    rows = [_cost(run) for run in material.workspace.runs]
    shown = [name for name in TOLD if any(row[name] is not None for row in rows)]
    if not shown:
        return None
    total = {name: _sum([row[name] for row in rows]) for name in shown if name != "memory"}
    columns = [Column("run"), *(Column(name) for name in shown), Column("device")]
    lines = [[Value(row["run"]), *(_told(row, name) for name in shown), Value(row["device"])] for row in rows]
    lines.append([Value("together"), *(_told(total, name) for name in shown), Value()])
    note = (
        "Seconds that a run itself took, the last time that it was worked on; peak memory of the process or the GPU; "
        "a dash is not measured, not zero. " + _of_energy(material.workspace.runs)
    )
    return ReportTable("costs", "What each run took", note, columns, lines, rows)


def _of_energy(runs: Sequence[RunFolder]) -> str:
    """Which counters the energy is of, or why there is none."""
    stages = [run.stage(name) for run in runs for name in ("train", "generate")]
    counted = dict.fromkeys(name for stage in stages for name in stage.get("energy_of", []))
    missing = dict.fromkeys(stage["energy_missing"] for stage in stages if stage.get("energy_missing"))
    of = [f"Energy is what {', '.join(counted)} used meanwhile, for whomever."] if counted else []
    return " ".join([*of, *(["Energy is missing: " + "; ".join(missing) + "."] if missing else [])])


TOLD: dict[str, Any] = {
    "training": duration,
    "answering": duration,
    "memory": byte_size,
    "energy": lambda joules: f"{joules / 3.6e6:.3f} kWh",
}


def _told(row: dict[str, Any], name: str) -> Value:
    return Value(None if row.get(name) is None else TOLD[name](row[name]))


def _cost(run: RunFolder) -> dict[str, Any]:
    train, generate, manifest = run.stage("train"), run.stage("generate"), run.known
    energy = [stage["energy_joules"] for stage in (train, generate) if stage.get("energy_joules") is not None]
    return {
        "run": run.label,
        "training": train.get("seconds"),
        "answering": generate.get("seconds"),
        "memory": train.get("peak_memory_bytes"),
        "energy": sum(energy) if energy else None,
        "device": " ".join(str(manifest[name]) for name in ("device", "dtype") if manifest.get(name)),
    }


def _sum(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def data_table(material: Material) -> ReportTable | None:
    """The card of the instruction data: where each set comes from, under which licence, and what was left out."""
    sets = {run.config.instructions.label: run for run in material.workspace.runs if run.trains}
    if not sets:
        return None
    told = dict(data_facts(material))
    lines, records = [], []
    for label, run in sets.items():
        commits = run.known.get("data_revisions", {})
        for source in run.config.instructions.sources:
            path = source.path
            commit = commits.get(f"{path}@{source.revision or ''}") or source.revision or ""
            languages = ", ".join(getattr(source, "languages", None) or []) or "as in the source"
            licence = LICENCES.get(path.partition(":")[0], "see the source: not known here")
            counts = told.get(f"Data {label}", "not trained yet")
            row = {"data": label, "source": path, "commit": commit[:12], "languages": languages}
            records.append(row | {"licence": licence, "conversations": counts})
            lines.append([Value(value) for value in records[-1].values()])
    columns = [Column(name) for name in records[0]]
    note = "What was trained on, held out and left out, and why; overlaps with the prompts are among the counts."
    return ReportTable("data", "What the runs were tuned on", note, columns, lines, records)


LICENCES = {"builtin": "Apache-2.0, as xlift"}
