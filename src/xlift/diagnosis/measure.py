"""What a model does in each language: a small study of its untuned answers, rated by the surface raters, as one row a
language; and how well chat formats fit it, told by replies that are not generated.

The study is an ordinary one (generation, raters, margins, report), so that what is measured is kept and continued.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from xlift.checkpoint import Checkpoint, checkpoints
from xlift.diagnosis.duration import expected_seconds
from xlift.disk import write_atomic
from xlift.errors import ConfigError, TemplateError
from xlift.intervals import Estimate, estimate
from xlift.languages import get_language
from xlift.progress import duration, say
from xlift.records import Message, Rating, Response, counted, fingerprint
from xlift.study.data import builtin_languages
from xlift.study.labels import model_text
from xlift.study.loading import parse_study
from xlift.study.study import Study
from xlift.workspace import StudyFolder, find_run, locked

FORMATS_VERSION = 1
"""Grows where formats are measured otherwise."""
SETS = ("builtin:open", "builtin:constraints", "builtin:facts")
USED_RATERS = ("language", "fluency", "constraint", "answers")


class Extent(NamedTuple):
    """How much is asked: test prompts of each of SETS in each language, and the longest answer in tokens."""

    prompts: int
    max_new_tokens: int


SIZES = {"quick": Extent(4, 64), "usual": Extent(12, 128), "thorough": Extent(40, 256)}


@dataclass(frozen=True)
class LanguageRow:
    """What a model's answers in one language are like: shares of answers, with intervals.

    `right` wholly in the language, `wrong` mostly in another, `facts` and `constraints` of the prompts that have any,
    `margin` the mean probability of the language against English at the first tokens (see generation/margin.py).
    """

    language: str
    right: Estimate
    wrong: Estimate
    empty: Estimate
    cut: Estimate
    fluent: Estimate
    constraints: Estimate
    facts: Estimate
    margin: Estimate | None
    instead: str | None
    """The language that most of the foreign words are in."""
    worst: tuple[Response, ...]
    """Up to three answers with the lowest values, the least right language first."""

    @property
    def name(self) -> str:
        """The language's English name."""
        return get_language(self.language).name


@dataclass(frozen=True)
class FormatFit:
    """A chat format and what the model says of it: mean nats a token of reference replies, and the probability of the
    end of turn behind them (geometric mean)."""

    name: str
    nats: float
    ends: float


@dataclass(frozen=True)
class Measured:
    """One model: its rows in the order of the languages, and its chat formats, its own first; none of a served one."""

    name: str
    rows: tuple[LanguageRow, ...]
    formats: tuple[FormatFit, ...]
    tokens: dict[str, float]
    """By language, how many tokens the same questions take, English being 1."""


def diagnosis_study(
    models: Sequence[str],
    languages: Sequence[str],
    size: Extent,
    served: Sequence[dict[str, Any]] = (),
    **settings: Any,
) -> Study:
    """The study that measures these models, and behind them those that are `served`, each as the study names them.

    `settings` are `system`, `template` and `repetition_penalty`.
    Raises ConfigError for a language without built-in prompts.
    """
    there = builtin_languages("prompts.open")
    if other := [code for code in languages if code not in there]:
        raise ConfigError(
            [f"--languages {code}: no built-in prompts; there are: {', '.join(there)}" for code in other],
            "ask prompts of your own in a study (xlift init), or rate answers that exist (xlift rate)",
        )
    called = model_text(models[0]) if models else served[0]["model"]
    name = re.sub(r"[^A-Za-z0-9]+", "-", called).strip("-") or "model"
    decoding = {"max_new_tokens": size.max_new_tokens, "repetition_penalty": settings.pop("repetition_penalty")}
    training = {"model": list(models), "adaptation": {"method": "none"}, **settings}
    prompts = {
        "languages": ["en", *(code for code in languages if code != "en")],
        "validation": {"size": 1},
        "test": {"source": list(SETS), "size": size.prompts},
    }
    study: dict[str, Any] = {"name": f"diagnosis-{name}", "question": f"What is wrong with {called}?"}
    study |= {"training": training} if models else {}
    asked = {"system": settings["system"], "template": settings["template"]}
    study |= {"models": [one | asked for one in served]} if served else {}
    study |= {"prompts": prompts, "decoding": decoding, "raters": list(USED_RATERS)}
    return parse_study(study, folder=Path.cwd())


def model_name(given: str) -> str:
    """What a person calls a model as the name of a model: a run's folder stands for its last checkpoint."""
    if not (Path(given) / "run.yaml").is_file():
        return given
    run = find_run(given)
    if run.config.untuned:
        return run.config.model
    if run.config.weight != 1:
        raise ConfigError(f"{given}: its weights are drawn back when it is loaded", "diagnose the run that was trained")
    steps = run.checkpoint_steps()
    if not steps:
        raise ConfigError(f"{given}: no checkpoint yet", "xlift train STUDY.yaml makes it")
    return str(run.checkpoint(steps[-1]))


def measure(study: Study, folder: Path | None, offline: bool) -> tuple[StudyFolder, list[Measured]]:
    """Let the models answer what they have not answered yet, and rate it; then what each is like, in their order."""
    from xlift.stages import generate_stage, prepare, rate_stage

    workspace = prepare(study, folder)
    with locked(workspace.path):
        if seconds := expected_seconds(workspace, offline):
            say(f"{duration(seconds)} or less, where this machine is as busy as it is now")
        generate_stage(workspace, offline)
        rate_stage(workspace, offline)
        return workspace, [_measured(one, offline) for one in checkpoints(workspace)]


def _measured(checkpoint: Checkpoint, offline: bool) -> Measured:
    rows = tuple(language_row(checkpoint, code) for code in checkpoint.study.prompts.languages)
    formats, tokens = ((), {}) if checkpoint.run.config.remote else _without_generating(checkpoint, offline)
    return Measured(checkpoint.run.config.model, rows, formats, tokens)


def language_row(checkpoint: Checkpoint, code: str) -> LanguageRow:
    """What the answers to test prompts in one language are like."""
    asked = [one for one in checkpoint.responses if one["split"] == "test" and one["language"] == code]
    ratings: dict[str, dict[str, Rating]] = {name: {} for name in USED_RATERS}
    for rating in checkpoint.ratings:
        ratings[rating["rater"]][rating["id"]] = rating

    def share(holds: dict[str, float | None]) -> Estimate:
        clusters = [one.get("parallel_id", one["id"]) for one in asked if one["id"] in holds]
        return estimate([holds[one["id"]] for one in asked if one["id"] in holds], clusters, top=1.0)

    def rated(name: str, *values: float) -> Estimate:
        return share({key: _holds(one, values) for key, one in ratings[name].items()})

    margin = checkpoint.margins.get(code)
    return LanguageRow(
        code,
        rated("language", 2),
        rated("language", 0),
        share({one["id"]: float(not one["text"].strip()) for one in asked}),
        share({one["id"]: float(one["finish_reason"] == "length") for one in asked}),
        rated("fluency", 2),
        rated("constraint", 2),
        rated("answers", 2),
        Estimate(**margin["probability"]) if margin else None,
        _instead(ratings["language"], asked),
        _worst(ratings, asked),
    )


def _holds(rating: Rating, values: Sequence[float]) -> float | None:
    # Who says nothing does not say it in another language either.
    return None if counted(rating) is None else float(rating["value"] in values)


def _instead(ratings: dict[str, Rating], asked: Sequence[Response]) -> str | None:
    """The language that most foreign letters of the answers are in."""
    letters: Counter[str] = Counter()
    for one in asked:
        detail = ratings[one["id"]].get("detail", {}) if one["id"] in ratings else {}
        for span in detail.get("spans", ()):
            letters[span["language"]] += span["end"] - span["start"]
    return max(letters, key=letters.__getitem__) if letters else None


def _worst(ratings: dict[str, dict[str, Rating]], asked: Sequence[Response]) -> tuple[Response, ...]:
    def value(name: str, one: Response) -> float:
        found = ratings[name][one["id"]]["value"] if one["id"] in ratings[name] else None
        return 3.0 if found is None else float(found)

    told = [((value("language", one), value("fluency", one)), one) for one in asked]
    spoilt = [one for values, one in sorted(told, key=lambda pair: pair[0]) if min(values) < 2]
    return tuple(spoilt[:3])


# --- what the weights say of replies that are given -------------------------------------------------------------


def _without_generating(checkpoint: Checkpoint, offline: bool) -> tuple[tuple[FormatFit, ...], dict[str, float]]:
    from xlift.data.prompts import fact_prompts
    from xlift.hub import locate
    from xlift.models import load_tokenizer, loaded_checkpoint, place

    config, study = checkpoint.run.config, checkpoint.study
    base = locate(config.model, checkpoint.run.pinned_revision or config.revision, offline)
    key = fingerprint(base.facts, config.template, config.system, study.prompts.languages, FORMATS_VERSION)
    if (kept := _kept_formats(checkpoint.run.formats, key)) is not None:
        return kept
    facts = fact_prompts(study.prompts.languages)
    tokenizer = load_tokenizer(base.tokenizer, base.revision)
    counts = {
        code: sum(
            len(tokenizer(one["messages"][-1]["content"], add_special_tokens=False)["input_ids"]) for one in asked
        )
        for code, asked in facts.items()
    }
    said = [
        [*one["messages"], Message(role="assistant", content=one["reference"])]
        for one in facts["en"]
        if one["split"] == "validation"
    ]
    with loaded_checkpoint(base, None, place(study.device, study.dtype)) as model:
        fits = tuple(_format_fits(model, tokenizer, config.template, config.system, said))
    tokens = {code: counts[code] / counts["en"] for code in study.prompts.languages if counts.get(code)}
    told = {"key": key, "formats": [asdict(one) for one in fits], "tokens": tokens}
    write_atomic(checkpoint.run.formats, json.dumps(told, indent=2))
    return fits, tokens


def _kept_formats(path: Path, key: str) -> tuple[tuple[FormatFit, ...], dict[str, float]] | None:
    """What was measured before, where it was measured of the same model in the same way."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return (tuple(FormatFit(**one) for one in told["formats"]), told["tokens"]) if told["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _format_fits(
    model: Any, tokenizer: Any, asked: str, system: str | None, said: list[list[Message]]
) -> list[FormatFit]:
    """The format that was asked for, then the named ones that differ from it."""
    from xlift.generation.margin import token_log_probs
    from xlift.tuning.formats import NAMED_FORMATS
    from xlift.tuning.templates import chat_format

    fits: list[FormatFit] = []
    seen: list[list[int]] = []
    for name in (asked, *NAMED_FORMATS):
        try:
            # A format is put on its tokenizer.
            chat = chat_format(copy.copy(tokenizer), name, system)
            encoded = [chat.encode(conversation) for conversation in said]
        except TemplateError:
            continue
        if encoded[0].ids in seen:
            continue
        seen.append(encoded[0].ids)
        logs = token_log_probs(model, chat, encoded)
        words = [value for one in logs for value in one[:-1]]
        ends = math.exp(math.fsum(one[-1] for one in logs) / len(logs))
        fits.append(FormatFit(chat.name, -math.fsum(words) / len(words), ends))
    return fits
