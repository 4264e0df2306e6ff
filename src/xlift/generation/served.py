"""A served model answers a study's prompts: many at once, each reply written down as it comes, none paid twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from xlift.checkpoint import Checkpoint
from xlift.disk import JsonlWriter
from xlift.errors import ConfigError, UserError
from xlift.progress import progress, say
from xlift.records import LIMITED, Message, Prompt, fingerprint, shorter
from xlift.servers.calls import ServedAnswer, ServedReply
from xlift.servers.client import PACE, Pace, RequestGroup, answer_groups
from xlift.servers.completions import too_long
from xlift.servers.ledger import Ledger, open_ledger
from xlift.servers.where import engine_of, served_where
from xlift.study.served import Model
from xlift.tuning.formats import written

LEDGER = "served.ledger.jsonl"
"""In a run's folder: every call and what it has cost."""


class PromptRequest(NamedTuple):
    """A prompt as a server is asked it; `template` is the named chat format that xlift writes it in, or `auto`."""

    key: str
    messages: list[Message]
    template: str = "auto"
    stop: tuple[str, ...] = ()
    seed: int | None = None
    schema: None = None

    def content(self, messages: list[Message]) -> dict[str, Any]:
        """The request with what is its own: a sampled reply has a seed by its prompt, so that samples differ."""
        stop, seeded = list(self.stop), {} if self.seed is None else {"seed": self.seed}
        if self.template == "auto":
            return {"messages": messages, **({"stop": stop} if stop else {}), **seeded}
        prompt, end = written(self.template, messages)
        return {"prompt": prompt, "stop": [end, *stop], **seeded}

    def follow_up(self, replies: Sequence[ServedReply]) -> None:
        return None


def answer_served(checkpoint: Checkpoint, pace: Pace = PACE) -> int:
    """Let a served model answer what it has not answered yet; how many prompts were asked.

    Later turns are asked when the turns before them are answered. A request without a usable reply becomes a response
    without a text that says why, and where the next try may bring one, it is asked again then. With `too_long: drop`, a
    conversation that the server finds too long is asked again without its oldest turn. Raises UserError where
    the server or the budget makes it impossible to go on; what is answered is kept.
    """
    run, model = checkpoint.run, checkpoint.model
    assert model
    if model.by == "imported":
        problem = f"{len(checkpoint.unanswered)} prompts have no imported response"
        raise ConfigError(problem, "xlift import them again, or leave the model out")
    served_where(model)
    engine = engine_of(model)
    note_engine(checkpoint, model.title, engine)
    total, left = len(checkpoint.prompts), len({one["id"] for one in [*checkpoint.unanswered, *checkpoint.lost]})
    again = {one["id"] for one in checkpoint.lost}
    dropped: dict[str, int] = {}
    with (
        open_ledger(run.path / LEDGER, model) as ledger,
        JsonlWriter(run.responses(checkpoint.step)) as log,
        progress(f"generate {run.label}", total, total - left) as bar,
    ):

        def groups(now: Checkpoint, asked: Sequence[Prompt]) -> Iterator[RequestGroup]:
            for prompt in asked:
                left_out = dropped.get(prompt["id"], 0)
                request = _request(now, prompt, model, left_out)

                def finish(
                    answers: list[ServedAnswer],
                    prompt: Prompt = prompt,
                    key: str = request.key,
                    left_out: int = left_out,
                ) -> None:
                    if _may_lose_a_turn(now, prompt, answers[0], left_out):
                        dropped[prompt["id"]] = left_out + 1
                        again.add(prompt["id"])
                        return
                    record = _record(now, prompt, answers[0], ledger, key) | _told_of(answers[0], engine)
                    log.write({**record, **({"dropped_turns": left_out} if left_out else {})})
                    bar.advance(1)

                yield RequestGroup([request], finish)

        while asked := [*checkpoint.askable, *(one for one in checkpoint.lost if one["id"] in again)]:
            again = set()
            stopped = answer_groups(groups(checkpoint, asked), model, ledger, pace)
            checkpoint = replace(checkpoint)  # reads what was answered, which later turns go on from
            if stopped:
                missing = f"{len(checkpoint.unanswered)} of {total} prompts are not answered"
                raise UserError(f"{model.title}: {stopped}; {missing}", "raise the limit and run it again")
    return left


def note_engine(checkpoint: Checkpoint, title: str, engine: str) -> None:
    """Write down what answers from now on; a person is told where another engine has answered before."""
    run = checkpoint.run
    before = run.manifest().get("engine")
    if engine and before and before != engine and checkpoint.responses:
        count = len(checkpoint.responses)
        say(f"{title}: {count} responses are of {before}, those to come of {engine}; each names its own")
    if engine:
        run.update_manifest(engine=engine)


def _told_of(answer: ServedAnswer, engine: str) -> dict[str, str]:
    """What computed an answer, as far as its server tells: {"engine": "vLLM 0.10.2 fp_44709d6fcb"}."""
    prints = [one.engine for one in answer.replies[:1] if one.engine]
    told = " ".join([*([engine] if engine else []), *prints])
    return {"engine": told} if told else {}


def _may_lose_a_turn(checkpoint: Checkpoint, prompt: Prompt, answer: ServedAnswer, dropped: int) -> bool:
    """Whether a conversation was too long for the server, and is to be asked again without a turn more."""
    long = not answer.replies and too_long(answer.failure or "")
    drops = checkpoint.decoding.too_long == "drop"
    return long and drops and dropped < len(shorter(checkpoint.seen(prompt)))


def _request(checkpoint: Checkpoint, prompt: Prompt, model: Model, dropped: int = 0) -> PromptRequest:
    whole = checkpoint.seen(prompt)
    seen = [whole, *shorter(whole)][dropped]
    if model.system and seen[0]["role"] != "system":
        seen = [{"role": "system", "content": model.system}, *seen]
    told = [model.identity, model.template, checkpoint.signatures[prompt["id"]], prompt["id"], seen]
    key, own = fingerprint(told, length=16), model.chosen
    seed = int(fingerprint(own.seed, prompt["id"], length=7), 16) if own.strategy == "sample" else None
    return PromptRequest(key, seen, model.template, tuple(own.stop), seed)


def _record(checkpoint: Checkpoint, prompt: Prompt, answer: ServedAnswer, ledger: Ledger, key: str) -> dict[str, Any]:
    """The response that an answer makes, or why there is none."""
    reply = answer.replies[0] if answer.replies else None
    tokens = ledger.tokens(key)
    made: dict[str, Any] = {
        "messages": checkpoint.seen(prompt),
        "run": checkpoint.run.id,
        "step": checkpoint.step,
        "text": reply.text.strip() if reply else "",
        "finish_reason": "length" if reply and reply.finish in LIMITED else "stop",
        "prompt_tokens": tokens[0],
        "new_tokens": tokens[1],
        "signature": checkpoint.signatures[prompt["id"]],
    }
    if reply is None:
        made |= {"missing": answer.failure or "no answer", "lost": True}
    elif why := _unusable(reply):
        made |= {"missing": why, "text": ""}
    return {**prompt, **made}


def _unusable(reply: ServedReply) -> str | None:
    """Why a reply is no response; a refusal in words is one."""
    if reply.finish == "content_filter":
        return "the server's filter has taken the answer out"
    if reply.text.strip():
        return None
    if reply.refusal:
        return f"the server's model refuses: {reply.refusal[:200]}"
    return "the token limit ended the answer before any text" if reply.finish in LIMITED else "the answer is empty"
