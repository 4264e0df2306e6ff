"""The commits of hub models and data sets that a study has begun with, so that a moving branch stays still for it."""

from __future__ import annotations

from xlift.hub import hub_snapshot
from xlift.study.data import Instructions
from xlift.workspace import RunFolder, StudyFolder


def pinned_revision(workspace: StudyFolder, run: RunFolder) -> str | None:
    """The revision of a run's base model: the commit that the study has begun with, else the one that it names."""
    asked = (run.config.model, run.config.revision)
    alike = [other for other in workspace.runs if (other.config.model, other.config.revision) == asked]
    pins = [one.pinned_revision for one in (run, *alike)]
    return next((pin for pin in pins if pin), run.config.revision)


def pinned_data(workspace: StudyFolder, settings: Instructions, offline: bool) -> tuple[Instructions, dict[str, str]]:
    """Instruction data with each hub dataset at the commit that the study has begun with, and these commits."""
    begun = {
        name: commit for run in workspace.runs for name, commit in run.manifest().get("data_revisions", {}).items()
    }
    commits: dict[str, str] = {}
    sources = list(settings.sources)
    for number, source in enumerate(sources):
        if source.path.startswith("hub:"):
            name, dataset = f"{source.path}@{source.revision or ''}", source.path.removeprefix("hub:")
            commit = begun.get(name) or hub_snapshot(dataset, source.revision, offline, "dataset").name
            commits[name], sources[number] = commit, source.model_copy(update={"revision": commit})
    return settings.model_copy(update={"sources": sources}), commits
