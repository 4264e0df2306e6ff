"""Studies that nobody has run, written in the documented layout, for the tests of the report."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xlift.checkpoint import checkpoints, written_prompts
from xlift.disk import write_jsonl
from xlift.records import Rating, response_signature
from xlift.report.reading import Material, material_of
from xlift.stages import prepare, rate_stage
from xlift.study.loading import parse_study
from xlift.workspace import RunFolder, StudyFolder

GOOD = {
    "en": "The leaves turn yellow because the days become shorter.",
    "fr": "Les feuilles jaunissent parce que les jours raccourcissent.",
    "ru": "Листья желтеют, потому что дни становятся короче.",
}
STEP = 40


def made_study(folder: Path, text: Callable[[RunFolder, Any], str], **settings: Any) -> StudyFolder:
    """A study whose runs have answered every prompt with `text(run, prompt)`; not rated yet."""
    prompts = {"languages": ["en", "fr"], "validation": {"size": 2}, "test": {"size": 4}} | settings.pop("prompts", {})
    training = {"learning_rate": [1e-4, 1e-3]}
    study = parse_study(
        {"name": "made", "prompts": prompts, "training": training, "report": {"bootstrap": 100}, **settings}
    )
    workspace = prepare(study, folder)
    asked = written_prompts(workspace)
    signatures = {one["id"]: response_signature(study.decoding.signature, one["messages"]) for one in asked}
    facts = {"finish_reason": "stop", "prompt_tokens": 5, "new_tokens": 9}
    for run in workspace.runs:
        step = 0 if run.config.untuned else STEP
        if step:
            run.checkpoint(step).mkdir(parents=True, exist_ok=True)
        write_jsonl(
            run.responses(step),
            [
                {**prompt, **facts, "run": run.id, "step": step, "text": text(run, prompt)}
                | {"signature": signatures[prompt["id"]]}
                for prompt in asked
            ],
        )
    return workspace


def log_training(run: RunFolder, heldout_loss: float, margins: dict[str, float]) -> None:
    """A training record that ends at the checkpoint."""
    write_jsonl(
        run.train_log,
        [
            {"step": step, "loss": 3 - step / STEP, "heldout_loss": heldout_loss + 1 - step / STEP}
            | {"validation": {"margins": margins}}
            for step in (STEP // 2, STEP)
        ],
    )


Value = Callable[[RunFolder, Any], float | None]


def rated_by(
    workspace: StudyFolder, raters: dict[tuple[str, str], Value], scales: dict[str, list[int]] | None = None
) -> Material:
    """The study with these ratings: by (facet, rater), what `value(run, prompt)` gives, None being missing.

    `scales` are the ends of a facet's own scale.
    """
    answered = []
    own = {facet: {"scale": ends} for facet, ends in (scales or {}).items()}
    for checkpoint in checkpoints(workspace):
        ratings = [
            {**_rating(response, facet, rater, value(checkpoint.run, response)), **own.get(facet, {})}
            for (facet, rater), value in raters.items()
            for response in checkpoint.responses
        ]
        # As read from files: a checkpoint reads each of its files once.
        vars(checkpoint).update(ratings=ratings, margins={})
        answered.append(checkpoint)
    return material_of(workspace, answered)


def _rating(response: Any, facet: str, rater: str, value: float | None) -> Rating:
    facts: Any = {key: response[key] for key in ("id", "language", "run", "step")}
    facts |= {"facet": facet, "rater": rater, "value": value, "response": "text", "signature": f"{rater} v1"}
    return {**facts, "reason": "could not tell"} if value is None else facts


def chances(share: Callable[[RunFolder, Any], float], seed: int) -> Value:
    """Ratings of 2 with a probability that run and prompt decide, else 0."""
    generator = random.Random(seed)
    return lambda run, prompt: 2.0 if generator.random() < share(run, prompt) else 0.0


def rated_study(folder: Path, text: Callable[[RunFolder, Any], str], **settings: Any) -> StudyFolder:
    """`made_study`, rated by its surface checks."""
    workspace = made_study(folder, text, **settings)
    rate_stage(workspace)
    return workspace
