"""How long a diagnosis takes, told before it begins, by the model's size and by how fast this machine multiplies."""

from __future__ import annotations

import time
from collections.abc import Sequence

from xlift.checkpoint import Checkpoint, checkpoints
from xlift.data.prompts import fact_prompts
from xlift.hub import locate
from xlift.models import Placement, place
from xlift.workspace import StudyFolder

MATRIX_SIDE = 2048
"""Numbers a side of the matrix that is multiplied to measure: larger than what a processor keeps at hand."""
LAYER_SECONDS = 0.002
"""What calling one layer costs beside its products, however small they are."""
TOKENS_ASKED = 60
"""Tokens of a question in its chat format, roughly."""


def expected_seconds(workspace: StudyFolder, offline: bool) -> float:
    """Seconds that the answers which are not there yet take at their longest, and the margins and formats that are not.

    Raises ModelError where a model is not found.
    """
    study = workspace.study
    left = [one for one in checkpoints(workspace) if not one.run.config.remote]
    left = [one for one in left if one.unanswered or one.unmeasured or not one.run.formats.is_file()]
    if not left:
        return 0.0
    placement = place(study.device, study.dtype)
    fast, slow = (operations_a_second(placement, rows) for rows in (512, study.decoding.batch_size))
    return sum(_seconds(one, offline, fast, slow) for one in left)


def _seconds(one: Checkpoint, offline: bool, fast: float, slow: float) -> float:
    """Reading is as fast as products of many rows are, writing as those of as many rows as answer at once."""
    from xlift.planning.forecast import model_size

    config, study = one.run.config, one.study
    base = locate(config.model, one.run.pinned_revision or config.revision, offline)
    size = model_size(base, config.adaptation)
    operations = 2 * size.parameters
    asked = len(one.unanswered)
    facts = len(fact_prompts(["en"])["en"])
    # Each language's margin is told by the openings of two replies to a few prompts; each format reads the facts once.
    read = asked * TOKENS_ASKED + 40 * TOKENS_ASKED * len(study.prompts.languages) + 4 * facts * TOKENS_ASKED
    written = asked * study.decoding.max_new_tokens
    steps = written / min(max(1, asked), study.decoding.batch_size)
    return operations * (read / fast + written / slow) + steps * size.layers * LAYER_SECONDS


def operations_a_second(placement: Placement, rows: int, seconds: float = 0.2) -> float:
    """Operations (a product and a sum are two) that this machine makes a second on matrices of so many rows."""
    import torch

    weights = torch.ones(MATRIX_SIDE, MATRIX_SIDE, dtype=placement.torch_dtype, device=placement.device)
    given = torch.ones(rows, MATRIX_SIDE, dtype=placement.torch_dtype, device=placement.device)
    times: list[float] = []
    with torch.no_grad():
        while not times or sum(times) < seconds:
            started = time.perf_counter()
            float((given @ weights).sum())  # waits for the device
            times.append(time.perf_counter() - started)
    return 2 * rows * MATRIX_SIDE * MATRIX_SIDE / _middle(times)


# e.g. _middle([3.0, 1.0, 2.0]) → 2.0
def _middle(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
