"""Training curves sent to wandb, mlflow, tensorboard or trackio, through accelerate's trackers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xlift.errors import ConfigError
from xlift.study.settings import flat
from xlift.workers import first_worker
from xlift.workspace import RunFolder

Track = Callable[[dict[str, Any]], None]


@contextmanager
def tracked(run: RunFolder, names: Sequence[str], project: str) -> Iterator[Track]:
    """A function that sends a record of train.jsonl to every tracker named; it does nothing where none is named.

    Raises ConfigError for a tracker whose package is not installed.
    """
    if names:
        # By every worker: one that went on alone would wait for the first for ever.
        _check_installed(names)
    if not names or not first_worker():
        yield lambda record: None
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    named: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": run.id, "logging_dir": run.path / "tracking"},
        "mlflow": {"experiment_name": project, "run_name": run.id},
        "wandb": {"run_name": project, "name": run.id},
        "trackio": {"run_name": project, "name": run.id},
    }
    trackers = [LOGGER_TYPE_TO_CLASS[name](**named[name]) for name in names]
    settings = {
        key: value if isinstance(value, int | float | str) else str(value)
        for key, value in flat(run.config.model_dump(mode="json"), "/").items()
    }
    for tracker in trackers:
        tracker.start()
        tracker.store_init_configuration(settings)
    try:
        yield lambda record: _send(trackers, record)
    finally:
        for tracker in trackers:
            tracker.finish()


def _check_installed(names: Sequence[str]) -> None:
    from accelerate.tracking import get_available_trackers

    missing = sorted(set(names) - {str(name) for name in get_available_trackers()})
    if missing:
        raise ConfigError(f"tracking: not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")


def _send(trackers: Sequence[Any], record: dict[str, Any]) -> None:
    values = {
        key: value for key, value in flat(record, "/").items() if isinstance(value, int | float) and key != "step"
    }
    for tracker in trackers:
        tracker.log(values, step=record["step"])
