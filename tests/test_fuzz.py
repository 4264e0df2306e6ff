"""Whatever a parser is given is a result or a UserError. `make torture` tries more than a million.

Mutations of good inputs reach further than random bytes: pieces are cut, doubled and replaced, values by odd ones.
"""

from __future__ import annotations

import io
import json
import lzma
import random
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from xlift.annotation.scheme import Scheme, read_scheme
from xlift.annotation.transfer import read_ratings
from xlift.data.instructions import load_source
from xlift.data.prompts import read_prompt_file
from xlift.errors import UserError
from xlift.export.archive import read_archive
from xlift.integrity import checkpoint_facts
from xlift.judging.exams import exam_pairs
from xlift.judging.replies import read_preference, read_values, read_why, refuses
from xlift.rating import rate
from xlift.rating.files import rate_file, read_responses
from xlift.rating.inspect_logs import log_rows
from xlift.records import Prompt, Rating, Response, any_response, parse_line, read_records
from xlift.redaction import redacted
from xlift.servers.calls import ServedReply
from xlift.servers.completions import Features, adapted, read_completion, retry_after, server_words
from xlift.servers.ledger import read_ledger
from xlift.study.data import Source
from xlift.study.loading import load_study
from xlift.study.runs import RunConfig
from xlift.study.served import Judge
from xlift.tuning.stored import stored_in
from xlift.workspace import find_run, manifest_of

ODD: list[Any] = [
    None, True, 0, -1, 7, 1e308, float("nan"), float("inf"), 10**30, "", " ", "\ud800", "\x00", "=1", "../../x",
    "é" * 300, [], [[]], [None], {}, {"a": {}}, {"id": 5}, "2026-01-01", [1, "a"], "\u202e", "fr", ["fr"],
]  # fmt: skip
BYTES = [b"\x00", b"\xff\xfe", b"{", b"}", b"[", b'"', b"\\", b"\n", b"\r\n", b"\\ud800", b"9" * 5000, b"[" * 2000,
         b"&a [*a]", b"!!python/object:os.system", b": ", b"- ", b"\xef\xbb\xbf", b"\t", b"NaN",
         b"1e999", b"log_range"]  # fmt: skip
TIMES = 360
SLOW = {"study", "study folder", "archive", "scheme", "file of responses"}


def mutated(chance: random.Random, raw: bytes) -> bytes:
    """Good bytes with one to four faults."""
    for _ in range(chance.randint(1, 4)):
        at, to = sorted((chance.randint(0, len(raw)), chance.randint(0, len(raw))))
        raw = chance.choice(
            (
                raw[:at] + chance.choice(BYTES) + raw[at:],
                raw[:at] + raw[to:] if to - at < 40 else raw[:at],
                raw[:to] + raw[at:][:2000],
                raw[:at] + bytes([chance.randrange(256)]) + raw[at + 1 :],
            )
        )
    return raw


def altered(chance: random.Random, value: Any) -> Any:
    """A JSON value with an odd one in some place of it."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.2:
        return chance.choice(ODD)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    copy = dict(value) if isinstance(value, dict) else list(value)
    if isinstance(copy, dict) and chance.random() < 0.15:
        copy.pop(key)
    else:
        copy[key] = altered(chance, value[key])
    return copy


def inputs(chance: random.Random, good: Any) -> bytes:
    """One input: a good record with odd values, with its bytes broken, or both."""
    record = altered(chance, good) if chance.random() < 0.7 else good
    raw = json.dumps(record).encode() + b"\n"
    return mutated(chance, raw) if chance.random() < 0.4 else raw


MESSAGES = [{"role": "user", "content": "Pourquoi ?"}]
PROMPT = {"id": "p1", "language": "fr", "messages": MESSAGES, "split": "test", "parallel_id": "p", "category": "advice",
          "constraint": {"name": "sentences", "count": 2}, "answers": ["Oui"], "reference": "Oui."}  # fmt: skip
RESPONSE = PROMPT | {"run": "r", "step": 4, "text": "Oui. Non.", "finish_reason": "stop", "prompt_tokens": 3,
                     "new_tokens": 4, "signature": "greedy|a"}  # fmt: skip
RATING = {"id": "p1", "language": "fr", "run": "r", "step": 4, "facet": "fluency", "rater": "fluency", "value": 2.0,
          "response": "abc", "signature": "s", "detail": {"a": 1}}  # fmt: skip
STUDY = {"name": "s", "training": {"learning_rate": {"log_range": [1e-5, 1e-3, 3]}, "adaptation": {"rank": [4, 8]}},
         "include": [{"seed": 1}], "exclude": [{"seed": 0, "adaptation": {"rank": 4}}], "raters": ["language"],
         "prompts": {"languages": ["en", "fr"], "test": {"source": "builtin:open", "size": 2}},
         "judges": [{"model": "m", "base_url": "http://localhost:1/v1", "facets": ["fluency"]}],
         "report": {"measure": {"language": 1.0}}, "halving": {"first": 10}}  # fmt: skip
CONVERSATION = {"id": "1", "messages": [*MESSAGES, {"role": "assistant", "content": "Parce que."}], "language": "fr"}
COMPLETION = {"choices": [{"message": {"content": '{"fluency": 2}', "refusal": None}, "finish_reason": "stop"}],
              "usage": {"prompt_tokens": 5, "completion_tokens": 3}, "error": {"message": "no seed"}}  # fmt: skip
LEDGER = {
    "request": "00ff",
    "part": 1,
    "reply": "{}",
    "finish": "stop",
    "refusal": None,
    "input": 1,
    "output": 1,
    "cost": 0.1,
}
MANIFEST = {"version": 1, "label": "r", "stages": {"train": {"state": "done", "time": "x"}},
            "base": {"model_sha256": {}}, "files": {"responses/step-4.jsonl": {"bytes": 4, "sha256": "a"}}}  # fmt: skip
FACTS = {"step": 4, "template": "own", "system": None, "sha256": {"a": "b"}, "training_state": "c"}
REPLIES = (
    '{"fluency": 2, "why": "x"}',
    "fluency: 2\naccuracy: 1",
    "<think>a</think>first",
    '{"better": "second"}',
    "**2**",
)


SCHEME = {"facets": ["accuracy", {"name": "tone", "title": {"en": "Tone"}, "question": "Is the tone right?",
                                 "help": {"en": "as asked"}, "scale": {"2": "yes", "0": {"en": "no"}}}],
          "spans": ["wrong", {"name": "rude", "title": "Rude", "facet": "tone"}],
          "answers": [{"name": "better", "question": "What else?"}], "guidelines": "# Tone"}  # fmt: skip
LOG = {"eval": {"model": "m", "task": "t"}, "samples": [
    {"id": 1, "input": "Pourquoi ?", "output": {"choices": [{"message": {"content": "Parce que."}}]}}]}  # fmt: skip
SAMPLE = {"doc": {"question": "Q", "language": "fr"}, "resps": [["Parce que."]], "filtered_resps": ["Parce que."],
          "custom_id": "a", "response": {"body": COMPLETION}, "prompt": "P", "predict": "R"}  # fmt: skip
TASK = {"data": {"id": "p1", "run": "r", "step": 4}, "annotations": [
    {"completed_by": {"email": "a@b.c"}, "lead_time": 3.5, "result": [
        {"from_name": "fluency", "value": {"choices": ["2: natural"]}},
        {"from_name": "comment", "value": {"text": ["good"]}}]}]}  # fmt: skip
INSTANCE = {"id": "r/step-4/p1", "label_annotations": {"fluency": {"2": True}, "comment": {"a": "b"}},
            "behavioral_data": {"time_string": "0d 0h 1m 5s"}, "user_id": "Ana"}  # fmt: skip
TABLE = (
    "id,run,step,language,facet,rater,value,reason,seconds,comment\np1,r,4,fr,fluency,Ana,2,,3.5,good\n",
    'id,run,step,language,facet,rater,value\n"p1",r,4,fr,helpfulness,Ana,1\np1,r,4,fr,fluency,Bo,\n',
)
PAIR = {
    "prompt": "Pourquoi ?",
    "chosen": "Parce que.",
    "rejected": "Because.",
    "language": "fr",
    "subset": "s",
    "id": 1,
}


def look_at_reply(raw: bytes, folder: Path) -> None:
    text = raw.decode("utf-8", "replace")
    for values in read_values(text, ["fluency", "accuracy"]).values():
        assert values[0] in (None, 0, 1, 2)
    read_why(text), read_preference(text), refuses(ServedReply(text)), redacted(text), retry_after(text, NOW)
    adapted(Features(schema=True), text)


def look_at_completion(raw: bytes, folder: Path) -> None:
    data = parsed(raw)
    reply, _ = read_completion(data)
    assert server_words(data, "x", "").isprintable()
    if isinstance(reply, ServedReply):
        look_at_reply(reply.text.encode("utf-8", "replace"), folder)


def parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def look_at_response(raw: bytes, folder: Path) -> None:
    record = any_response(parse_line(raw, "r.jsonl:1"), "r.jsonl:1", 1)
    assert rate(record, "language")["value"] in (None, 0, 1, 2)


def file_of(name: str, look: Callable[[Path], Any]) -> Callable[[bytes, Path], None]:
    def written(raw: bytes, folder: Path) -> None:
        (folder / name).write_bytes(raw)
        look(folder / name)

    return written


def look_at_ledger(path: Path) -> None:
    with read_ledger(path, Judge(model="m")) as book:
        book.replies("00ff")


def look_at_archive(raw: bytes, folder: Path) -> None:
    """An archive that holds this as its study, or whose own bytes are broken in the same way."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("study.yaml", "runs/r/run.yaml"):
            member = tarfile.TarInfo(name)
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))
    whole = packed.getvalue()
    if raw.startswith(b"{") and len(raw) % 3 == 0:
        whole = whole[: len(raw)] + raw[:100] + whole[len(raw) + 100 :]
    (folder / "a.study.tar.xz").write_bytes(lzma.compress(whole, preset=0))
    shutil.rmtree(folder / "unpacked", ignore_errors=True)
    read_archive(folder / "a.study.tar.xz", folder / "unpacked")


def look_at_run(raw: bytes, folder: Path) -> None:
    """The settings of a run, in a folder that is named after them where they are settings at all."""
    try:
        name = RunConfig.model_validate(parsed(raw)).content_hash
    except (ValueError, TypeError):
        name = "r"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    run = folder / "runs" / name
    run.mkdir(parents=True)
    (run / "run.yaml").write_bytes(raw)
    find_run(run)


def look_at_stored(raw: bytes, folder: Path) -> None:
    (folder / "facts.json").write_bytes(raw)
    assert stored_in(folder) is None or b"sha256" in raw


def look_at_responses(raw: bytes, folder: Path) -> None:
    for name in ("any.jsonl", "any.json"):
        (folder / name).write_bytes(raw)
        with suppress(UserError):
            list(read_responses(folder / name, []))


def rate_it(path: Path) -> None:
    target = path.with_name("out.jsonl")
    target.unlink(missing_ok=True)
    rate_file(path, target, ["fluency"], 1)


NOW = datetime(2026, 5, 4, tzinfo=timezone.utc)
PARSERS: dict[str, tuple[Any, Callable[[bytes, Path], None]]] = {
    "judge reply": (REPLIES, look_at_reply),
    "completion": (COMPLETION, look_at_completion),
    "ledger": (LEDGER, file_of("l.jsonl", look_at_ledger)),
    "response of anybody": (RESPONSE, look_at_response),
    "study": (STUDY, file_of("s.yaml", load_study)),
    "study folder": (STUDY, file_of("study.yaml", lambda path: load_study(path, resolved=True))),
    "run.yaml": (RunConfig().model_dump(mode="json"), look_at_run),
    "manifest": (MANIFEST, file_of("manifest.json", lambda path: manifest_of(path.parent))),
    "checkpoint": (FACTS, file_of("xlift.json", lambda path: checkpoint_facts(path.parent))),
    "own prompts": (PROMPT, file_of("p.jsonl", lambda path: read_records(path, Prompt))),
    "own responses": (RESPONSE, file_of("o.jsonl", lambda path: read_records(path, Response))),
    "own ratings": (RATING, file_of("t.jsonl", lambda path: read_records(path, Rating))),
    "prompts": (PROMPT, file_of("q.jsonl", read_prompt_file)),
    "instructions": (CONVERSATION, file_of("i.jsonl", lambda path: load_source(Source(path=str(path))))),
    "file of responses": (RESPONSE, file_of("f.jsonl", rate_it)),
    "archive": (STUDY, look_at_archive),
    "scheme": (SCHEME, file_of("scheme.yaml", read_scheme)),
    "log of inspect_ai": (LOG, file_of("log.json", lambda path: [*log_rows(path)])),
    "responses of programs": (SAMPLE, look_at_responses),
    "ratings of Label Studio": (
        [TASK],
        file_of("l.json", lambda path: read_ratings(path, [RESPONSE], {}, set(), Scheme())),
    ),
    "ratings of potato": (
        INSTANCE,
        file_of("l.jsonl", lambda path: read_ratings(path, [RESPONSE], {}, set(), Scheme())),
    ),
    "ratings as CSV": (TABLE, file_of("l.csv", lambda path: read_ratings(path, [RESPONSE], {}, set(), Scheme()))),
    "exam": (PAIR, file_of("exam.jsonl", lambda path: exam_pairs(f"mm:{path}"))),
    "stored tokens": ({"sha256": {"train.arrow": "a"}, "examples": 3}, look_at_stored),
}


def campaign(name: str, times: int, seed: int, folder: Path) -> int:
    """How many of so many inputs were refused; whatever is no UserError is raised with the input."""
    good, look = PARSERS[name]
    chance, refused = random.Random(f"{name} {seed}"), 0
    for _ in range(times):
        raw = mutated(chance, chance.choice(good).encode()) if isinstance(good, tuple) else inputs(chance, good)
        try:
            look(raw, folder)
        except UserError as error:
            refused += bool(error.problems)
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error} for {raw[:3000]!r}") from error
    return refused


def test_a_study_file_with_the_character_nul_is_refused_before_any_path_is_made_of_it(tmp_path: Path) -> None:
    prompts = {"languages": ["fr"], "test": {"source": "a\0b"}}
    (tmp_path / "s.yaml").write_text(json.dumps(STUDY | {"prompts": prompts}))
    with pytest.raises(UserError, match="NUL"):
        load_study(tmp_path / "s.yaml")


@pytest.mark.parametrize("name", PARSERS)
def test_what_is_broken_was_good_before(name: str, tmp_path: Path) -> None:
    good, look = PARSERS[name]
    for one in good if isinstance(good, tuple) else [json.dumps(good) + "\n"]:
        look(one.encode(), tmp_path)


@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_gives_a_result_or_a_users_error(name: str, tmp_path: Path) -> None:
    assert campaign(name, TIMES if name != "file of responses" else 30, 0, tmp_path) <= TIMES


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_many_times(name: str, tmp_path: Path) -> None:
    times = 20_000 if name in SLOW else 50_000
    print(name, times, "inputs,", campaign(name, times, 1, tmp_path), "refused")


@pytest.mark.torture
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PARSERS)
def test_every_parser_driven_to_code_that_no_input_has_reached(name: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="pip install atheris (for Python 3.11 and 3.12)")
    guided = [sys.executable, str(Path(__file__).with_name("guided.py")), name, str(tmp_path), "-max_total_time=100"]
    done = subprocess.run(guided, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stderr[-5000:]
    print(name, done.stderr.rstrip().splitlines()[-1])


@pytest.mark.parametrize(
    "piece",
    [
        "мир chat ",
        "le мир 世界 नमस्ते مرحبا chat ",
        "你好 hello ",
        "Le chat dort. The cat sleeps well today. ",
        "« le » the ",
    ],
)
def test_many_short_foreign_runs_are_rated_in_time_that_grows_with_their_number_alone(piece: str) -> None:
    text = piece * (80_000 // len(piece))
    began = time.process_time()
    assert rate(RESPONSE | {"text": text}, "language")["value"] is not None
    assert time.process_time() - began < 4
