"""A checkpoint: a run's weights at a step, what they have answered and how that was rated, as far as it is up to date.

Which checkpoints count, and which of their responses, ratings and margins belong to the study as it is now, is asked
here and nowhere else. A `Checkpoint` reads each of its files once; ask `checkpoints` again for what has come since.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NotRequired, cast

from typing_extensions import TypedDict

from xlift.data.prompts import fact_prompts, grammar_pairs, margin_languages, with_reminder
from xlift.halving import surviving
from xlift.hub import chat_sha256
from xlift.progress import or_told
from xlift.rating import in_scope, signature_of, text_fingerprint
from xlift.records import Message, Prompt, Rating, Response, fingerprint, read_json, read_records, response_signature
from xlift.study.served import Decoding, Judge, Model
from xlift.study.study import Study
from xlift.workspace import RunFolder, StudyFolder

NOT_YET = "|"
"""In place of a signature where a turn before it has no up-to-date response."""
MARGIN_TOKENS = 3
"""Tokens of a reply that count for the language margin, from the first on which the two replies differ."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One run at one step (0: the untuned base), with the study's `prompts` as they are now."""

    study: Study
    run: RunFolder
    step: int
    prompts: tuple[Prompt, ...]

    @property
    def weights(self) -> Path | None:
        """Folder of the tuned weights; None for the untuned base."""
        return self.run.checkpoint(self.step) if self.step else None

    @cached_property
    def decoding(self) -> Decoding:
        """How it answers: as the study says, and a model of the study's `models` as is said of it."""
        given, own = self.run.config.given, self.run.config
        settings = self.study.decoding
        if own.allow or own.steer:
            changed = {"allow": own.allow or settings.allow, "steer": own.steer or settings.steer}
            settings = settings.model_copy(update=changed)
        return Decoding.model_validate(settings.model_dump() | given.decoding) if given else settings

    @cached_property
    def model(self) -> Model | None:
        """What lets it answer, with all of its decoding filled in; None for what the study trains, and its bases."""
        given = self.run.config.given
        settings = self.decoding.model_dump(exclude={"checkpoints", "samples"})
        return given and given.model_copy(update={"decoding": settings})

    @cached_property
    def signatures(self) -> dict[str, str]:
        """Per prompt id, what a response must carry to be up to date; NOT_YET for a turn that cannot be asked yet."""
        found: dict[str, str] = {}
        settings, known = self._settings, self._chat
        for prompt in self.prompts:
            seen = self._seen(prompt, found)
            chat = self._made_with(prompt["id"]) if known is None else known
            found[prompt["id"]] = response_signature(settings, seen, chat) if seen else NOT_YET
        return found

    @property
    def _settings(self) -> str:
        return self.model.signature if self.model and self.model.remote else self.decoding.signature

    @property
    def _chat(self) -> str | None:
        """The chat format that responses are made with; of a model that is not here, its engine.

        None where the folder of its weights is gone, to be made again as it was: each response says its own.
        """
        if self.model and self.model.remote:
            return self.model.by
        return None if self.weights and not self.weights.is_dir() else self._chat_mark

    def _made_with(self, name: str) -> str:
        return str(self.made.get(name, {}).get("signature")).rpartition("|")[2].partition(".")[2]

    @cached_property
    def _chat_mark(self) -> str:
        """What the chat template and the tokenizer of tuned weights are known by; "" without them."""
        return chat_sha256(self.weights)[:8] if self.weights and self.weights.is_dir() else ""

    def seen(self, prompt: Prompt) -> list[Message]:
        """What the model sees of an askable prompt: before a later turn, the turns that it follows and its replies."""
        return self._seen(prompt, self.signatures) or []

    def _seen(self, prompt: Prompt, signatures: Mapping[str, str]) -> list[Message] | None:
        """None where a turn before has no up-to-date response."""
        before = prompt.get("follows")
        if before is None:
            return with_reminder(prompt, self.run.config.system) if self.run.config.remind else prompt["messages"]
        said = self.made.get(before)
        if said is None or said.get("signature") != signatures[before]:
            return None
        return [*said["messages"], {"role": "assistant", "content": said["text"]}, *prompt["messages"]]

    @cached_property
    def made(self) -> dict[str, dict[str, Any]]:
        """All responses on disk by prompt id, those of other prompts or decoding too; the latest of each counts."""
        return {str(record["id"]): record for record in read_records(self.run.responses(self.step), Response)}

    @cached_property
    def responses(self) -> list[Response]:
        """The up-to-date responses, in prompt order."""
        return [cast(Response, self.made[one["id"]]) for one in self.prompts if self._is_current(one["id"])]

    @cached_property
    def unanswered(self) -> list[Prompt]:
        """The prompts without an up-to-date response."""
        return [prompt for prompt in self.prompts if not self._is_current(prompt["id"])]

    @property
    def lost(self) -> list[Prompt]:
        """The prompts whose request a server has not answered: missing, and asked again by the next `generate`."""
        return [one for one in self.prompts if self._is_current(one["id"]) and self.made[one["id"]].get("lost")]

    @property
    def askable(self) -> list[Prompt]:
        """The prompts without an up-to-date response that can be asked now: the turns before them are answered."""
        return [prompt for prompt in self.unanswered if self.signatures[prompt["id"]] != NOT_YET]

    def _is_current(self, name: str) -> bool:
        return name in self.made and self.made[name].get("signature") == self.signatures[name]

    @property
    def rateable(self) -> list[dict[str, Any]]:
        """The responses as raters see them.

        Where an imported file does not tell the request (`untold`), they see the answer alone. A modified request ("…,
        in a few words") carries the same run's answer to the request that it modifies (`modifies`), which short and
        long are relative to.
        """
        texts = {response["id"]: response["text"] for response in self.responses}
        return [
            {key: value for key, value in one.items() if key != "messages" or not one.get("untold")}
            | ({"unmodified": texts[one["modifies"]]} if one.get("modifies") in texts else {})
            for one in self.responses
        ]

    @cached_property
    def _keys(self) -> list[tuple[str, str]]:
        return [(response["id"], text_fingerprint(response)) for response in self.rateable]

    def rated_by(self, rater: str) -> dict[tuple[str, str], Rating]:
        """What a surface rater, as it is now, has said: by prompt id and fingerprint of the rated text."""
        signature, wanted = signature_of(rater), set(self._keys)
        return {
            key: cast(Rating, record)
            for record in read_records(self.run.ratings(self.step, rater), Rating)
            if record.get("signature") == signature and (key := (record["id"], record["response"])) in wanted
        }

    def unrated_by(self, rater: str) -> list[dict[str, Any]]:
        """The responses within a surface rater's scope that it has still to rate."""
        done = self.rated_by(rater)
        return [
            one for one, key in zip(self.rateable, self._keys, strict=True) if key not in done and in_scope(one, rater)
        ]

    @cached_property
    def ratings(self) -> list[Rating]:
        """The up-to-date ratings: surface raters, judges and people."""
        found = []
        for name in self.study.raters:
            done = self.rated_by(name)
            found += [done[key] for key in self._keys if key in done]
        judged = [one for judge in self.study.judges for one in self.judged_by(judge)]
        return [*found, *judged, *self._panel(judged), *self._people]

    def _panel(self, judged: list[Rating]) -> list[Rating]:
        """What the study's panel makes of its judges' ratings."""
        from xlift.judging.panel import panel_ratings

        return panel_ratings(self.study.panel, self.study.judges, judged) if self.study.panel else []

    def judge_file(self, judge: Judge) -> Path:
        """Where a judge's ratings of the responses are."""
        return self.run.ratings(self.step, f"judge-{judge.label}")

    def judged_by(self, judge: Judge) -> list[Rating]:
        """What a judge, as it is now, has said of the responses."""
        from xlift.judging.current import current_judge_ratings

        return current_judge_ratings(self.judge_file(judge), self.rateable, judge)

    @property
    def _people(self) -> list[Rating]:
        """What people have said of the responses as they are now; the last word of each person counts."""
        wanted = set(self._keys)
        found = {
            (record["id"], record["rater"], record["facet"]): cast(Rating, record)
            for record in read_records(self.run.ratings(self.step, "human"), Rating)
            if (record["id"], record["response"]) in wanted
        }
        return list(found.values())

    @cached_property
    def margins(self) -> dict[str, dict[str, Any]]:
        """The up-to-date language margins by language: `probability` and `wins`, each an interval of a mean."""
        return self._measured("languages", measured_languages(self.study))

    @cached_property
    def grammar(self) -> dict[str, dict[str, Any]]:
        """The up-to-date grammar margins by language: `wins`, an interval of the share of pairs told right."""
        return self._measured("grammar", grammar_languages(self.study))

    def _measured(self, kind: str, languages: list[str]) -> dict[str, dict[str, Any]]:
        path = self.run.margins(self.step)
        found = read_json(path, Margins) if path.is_file() else {}
        rows = {row["language"]: row for row in found.get(kind, [])}
        return {code: rows[code] for code in languages if code in rows and self._as_now(kind, rows[code])}

    def _as_now(self, kind: str, row: dict[str, Any]) -> bool:
        bare = (margin_signature if kind == "languages" else grammar_signature)(row["language"]) + self._kept
        # Margins of earlier versions do not tell the chat format; those of a folder that is gone are made with its own.
        gone = self.weights and not self.weights.is_dir()
        told = str(row.get("signature"))
        return told in (bare, self._marked(bare)) or bool(gone and told.startswith(bare))

    def signed(self, signature: str) -> str:
        """A margin's signature with how weights are kept and the chat format that it is measured under."""
        return self._marked(signature + self._kept)

    def _marked(self, signature: str) -> str:
        return f"{signature}|{self._chat_mark}" if self._chat_mark else signature

    @property
    def _kept(self) -> str:
        return f"|{bits}bit" if (bits := self.decoding.quantized) else ""

    @property
    def unmeasured(self) -> list[str]:
        """The languages whose margin is still to be measured."""
        wanted = [] if self.run.config.remote else measured_languages(self.study)
        return [code for code in wanted if code not in self.margins]

    @property
    def ungraded(self) -> list[str]:
        """The languages whose grammar margin is still to be measured."""
        wanted = [] if self.run.config.remote else grammar_languages(self.study)
        return [code for code in wanted if code not in self.grammar]


class LanguageMargin(TypedDict):
    """How far a model leans to one language."""

    language: str
    signature: str
    probability: dict[str, Any]
    wins: dict[str, Any]


class GrammarMargin(TypedDict):
    """Which share of pairs of sentences a model tells right in one language."""

    language: str
    signature: str
    wins: dict[str, Any]


class Margins(TypedDict):
    """The file of a checkpoint's margins."""

    languages: list[LanguageMargin]
    grammar: NotRequired[list[GrammarMargin]]


def measured_languages(study: Study) -> list[str]:
    """The languages whose margin against English is measured at every checkpoint; [] where that is turned off."""
    return margin_languages(study.prompts.languages) if study.validation.margins else []


def grammar_languages(study: Study) -> list[str]:
    """The languages whose grammar margin is measured at every checkpoint; [] where that is turned off."""
    return [code for code in study.prompts.languages if grammar_pairs(code)] if study.validation.grammar else []


# e.g. grammar_signature("fr").rpartition("|")[0] → "grammar margin v1|log-probability of the sentence"
@lru_cache(maxsize=64)
def grammar_signature(language: str) -> str:
    """What decides a grammar margin besides the model: the definition and the built-in pairs of the language."""
    return f"grammar margin v1|log-probability of the sentence|{fingerprint(grammar_pairs(language), length=8)}"


@lru_cache(maxsize=64)
def margin_signature(language: str) -> str:
    """What decides a language margin besides the model: the definition and the built-in facts of the language."""
    facts = [prompt for prompts in fact_prompts([language]).values() for prompt in prompts]
    return f"language margin v1|first {MARGIN_TOKENS} differing tokens|{fingerprint(facts, length=8)}"


def checkpoints(workspace: StudyFolder, prompts: Sequence[Prompt] | None = None) -> list[Checkpoint]:
    """The checkpoints that count: those that answer prompts, of the runs that were not stopped.

    `prompts` are the study's as written down where they are not given.
    """
    asked = written_prompts(workspace) if prompts is None else prompts
    return [one for run in surviving(workspace, workspace.runs) for one in checkpoints_of(workspace, run, asked)]


def checkpoints_of(workspace: StudyFolder, run: RunFolder, prompts: Sequence[Prompt] | None = None) -> list[Checkpoint]:
    """The checkpoints that answer prompts, of a run that counts: whether halving stopped it is not asked again."""
    asked = tuple(written_prompts(workspace) if prompts is None else prompts)
    return [Checkpoint(workspace.study, run, step, asked) for step in _answering(workspace, run)]


def is_trained(workspace: StudyFolder, run: RunFolder) -> bool:
    """Whether nothing is left to train: of a run that was sent without its weights, all questions are answered."""
    if run.stage("train")["state"] != "done" or run.checkpoint_steps():
        return run.stage("train")["state"] == "done"
    asked = [one for one in workspace.runs if one.trained == run.path]
    found = [checkpoints_of(workspace, one) if one.sent_steps() else [] for one in asked]
    return all(found) and not any(one.unanswered for own in found for one in own)


def _answering(workspace: StudyFolder, run: RunFolder) -> list[int]:
    """The steps of a run that answer prompts: 0 for an untuned base; of a trained run the last, all, or some.

    A study may be sent without its weights: then those that have answered.
    """
    if run.config.untuned:
        return [0]
    wanted, there = workspace.study.decoding.checkpoints, run.checkpoint_steps() or run.sent_steps()
    if isinstance(wanted, str):
        return there if wanted == "all" else there[-1:]
    return [step for step in there if step in wanted]


def readable(found: list[Checkpoint]) -> Iterator[Checkpoint]:
    """Those whose responses, ratings and margins can be read; what is wrong with the others is said.

    `found` is emptied: who lets each go before the next holds one checkpoint's records at a time.
    """
    found.reverse()
    while found:
        one = found.pop()
        if or_told(lambda one=one: [one.ratings, one.margins], None):  # type: ignore[misc]
            yield one


def written_prompts(workspace: StudyFolder) -> list[Prompt]:
    """The study's prompts as written down; [] before that."""
    return [cast(Prompt, record) for record in read_records(workspace.prompts, Prompt)]
