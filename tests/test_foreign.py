"""Anybody's files of responses: what other programs write is rated as if it had been written for us."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from xlift.errors import ConfigError, DataError, UserError
from xlift.rating.files import Job, RatedFiles, rate_files, response_files
from xlift.rating.foreign import ReadingOptions, asked_for, language_in, reading_of, reading_text, reply_text, responses

FR = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
EN = "Sorry, I can only answer in English today, my friend."
JOB = Job(["language"], ["language"], keep=10_000)


def rated(path: Path, asked: ReadingOptions = ReadingOptions(), job: Job = JOB) -> RatedFiles:  # noqa: B008
    return rate_files([path], None, job, asked, workers=1)


def values(path: Path, asked: ReadingOptions = ReadingOptions()) -> list[tuple[str, str | None, Any]]:  # noqa: B008
    """Id, language and value of every response."""
    kept = rated(path, asked).kept
    return [(record["id"], record.get("language"), ratings[0]["value"]) for _, record, ratings in kept]


def jsonl(path: Path, records: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return path


def sample(ident: int, reply: str, filter_: str) -> dict[str, Any]:
    """A line of lm-evaluation-harness 0.4.13, as it wrote it."""
    return {
        "doc_id": ident,
        "doc": {"question": "Pourquoi ?", "answer": "x", "lang": "fr"},
        "target": "x",
        "arguments": {"gen_args_0": {"arg_0": "Pourquoi ?", "arg_1": {"until": ["\n\n"], "max_gen_toks": 20}}},
        "resps": [[reply]],
        "filtered_resps": [reply.split()[0]],
        "filter": filter_,
        "metrics": ["exact_match"],
        "exact_match": 0.0,
    }


def log_sample(ident: str, epoch: int, reply: str, stop: str = "stop") -> dict[str, Any]:
    """A sample of a log of inspect_ai 0.3.285, without its events."""
    message = {"id": "m", "content": reply, "source": "generate", "role": "assistant", "model": "mockllm/model"}
    return {
        "id": ident,
        "epoch": epoch,
        "input": "Pourquoi ?",
        "target": "",
        "messages": [{"id": "u", "content": "Pourquoi ?", "source": "input", "role": "user"}, message],
        "output": {"model": "mockllm/model", "choices": [{"message": message, "stop_reason": stop}]},
        "scores": {},
        "metadata": {"language": "fr"},
        "attachments": {},
    }


HEAD = {"eval": {"task": "greet", "model": "mockllm/model"}}
SAMPLES = [log_sample("a", 1, FR), log_sample("b", 1, EN, "max_tokens"), log_sample("a", 2, FR)]


def log_archive(path: Path, samples: list[dict[str, Any]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps({"version": 2, "status": "success", **HEAD}))
        for one in samples:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        archive.writestr("summaries.json", "[]")
    return path


def zstd_archive(path: Path, samples: list[dict[str, Any]]) -> Path:
    """The same as newer versions write it: entries in Zstandard, which zipfile writes only when it does not know."""
    zstandard = pytest.importorskip("zstandard")
    packed = log_archive(path, samples)
    with zipfile.ZipFile(packed) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, zstandard.compress(content))
        for info in archive.infolist():
            info.compress_type = 93
    return path


def batch(ident: str, reply: str | None, finish: str = "stop") -> dict[str, Any]:
    """A line of an OpenAI batch's output file, as its reference shows it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": reply}, "finish_reason": finish}
    body = {"id": "chatcmpl-1", "object": "chat.completion", "model": "m", "choices": [choice]}
    return {"id": "b", "custom_id": ident, "response": {"status_code": 200, "body": body}, "error": None}


def test_samples_of_the_harness_are_rated_once_whatever_filters_ran(tmp_path: Path) -> None:
    replies = [sample(i, text, name) for name in ("none", "strict") for i, text in enumerate((FR, EN))]
    path = jsonl(tmp_path / "me__model" / "samples_greet_fr_2026-11-28T11-03-58.682695.jsonl", replies)
    (tmp_path / "me__model" / "results_2026-11-28T11-03-58.682695.json").write_text("{}")
    assert values(path) == [("0", "fr", 2), ("1", "fr", 0)]
    assert response_files(tmp_path) == [path]
    (_, record, _), *_ = rated(path).kept
    assert (record["task"], record["model"], record["prompt"]) == ("greet_fr", "me__model", "Pourquoi ?")


def test_choices_without_a_written_reply_are_missing_and_no_mistake_of_the_model(tmp_path: Path) -> None:
    chosen = sample(0, "x", "none") | {"resps": [[["-1.0", "False"]], [["-2.0", "False"]]]}
    path = jsonl(tmp_path / "samples_x.jsonl", [chosen])
    assert values(path) == [("0", "fr", None)]


@pytest.mark.parametrize("kind", ["eval", "zstd", "json"])
def test_logs_of_inspect_are_read_with_their_epochs_and_limits(kind: str, tmp_path: Path) -> None:
    if kind == "json":
        path = tmp_path / "log.json"
        path.write_text(json.dumps({"version": 2, "status": "success", **HEAD, "samples": SAMPLES}))
    else:
        path = (zstd_archive if kind == "zstd" else log_archive)(tmp_path / "log.eval", SAMPLES)
    assert values(path) == [("a", "fr", 2), ("b", "fr", 0), ("a", "fr", 2)]
    kept = [record for _, record, _ in rated(path).kept]
    assert [record["finish_reason"] for record in kept] == ["stop", "length", "stop"]
    assert {(record["model"], record["task"], record["prompt"]) for record in kept} == {
        ("mockllm/model", "greet", "Pourquoi ?")
    }


def test_a_sample_that_broke_off_has_no_reply_and_a_long_one_its_own(tmp_path: Path) -> None:
    broken = log_sample("a", 1, "") | {"error": {"message": "ConnectionError"}}
    long = log_sample("b", 1, "attachment://f00") | {"attachments": {"f00": FR}}
    assert values(log_archive(tmp_path / "x.eval", [broken, long])) == [("a", "fr", None), ("b", "fr", 2)]


def test_a_log_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "x.eval").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(DataError, match=r"x\.eval: no whole log"):
        rated(tmp_path / "x.eval")


def test_a_batch_of_a_server_is_rated_by_the_language_in_its_ids(tmp_path: Path) -> None:
    failed = {"id": "b", "custom_id": "q3-fr", "response": None, "error": {"code": "batch_expired"}}
    output = [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Der Himmel ist blau."}]},
    ]
    newer = {"custom_id": "q4-de", "response": {"body": {"status": "incomplete", "output": output}}, "error": None}
    lines = [batch("q1-fr", FR), batch("q2-fr", None, "length"), failed, newer]
    path = jsonl(tmp_path / "output.jsonl", lines)
    found = values(path)
    assert found == [("q1-fr", "fr", 2), ("q2-fr", "fr", None), ("q3-fr", "fr", None), ("q4-de", "de", 2)]
    tally = rated(path).tally
    # Silence is an answer, and no good one; a request that failed is none.
    assert (tally["", "fr"].empty, tally["", "fr"].cut, dict(tally["", "fr"].missing["language"])) == (
        1,
        1,
        {"the response has no 'text'": 1},
    )
    assert tally["", "de"].cut == 1


def test_message_batches_and_predictions_are_read(tmp_path: Path) -> None:
    message = {"model": "m", "content": [{"type": "text", "text": FR}], "stop_reason": "max_tokens"}
    lines = [
        {"custom_id": "q1-fr", "result": {"type": "succeeded", "message": message}},
        {"custom_id": "q2-fr", "result": {"type": "errored", "error": {"type": "invalid_request"}}},
    ]
    path = jsonl(tmp_path / "messages.jsonl", lines)
    assert values(path) == [("q1-fr", "fr", 2), ("q2-fr", "fr", None)]
    lines = [{"prompt": "user: Pourquoi ?", "predict": text, "label": FR} for text in (FR, EN)]
    predictions = jsonl(tmp_path / "generated_predictions.jsonl", lines)
    assert [value for _, _, value in values(predictions, ReadingOptions(language="fr"))] == [2, 0]


def test_every_turn_of_mt_bench_is_rated(tmp_path: Path) -> None:
    lines = [{"question_id": 81, "answer_id": "a", "model_id": "m", "choices": [{"index": 0, "turns": [FR, EN]}]}]
    rated = values(jsonl(tmp_path / "m.jsonl", lines), ReadingOptions(language="fr"))
    assert rated == [("81-1", "fr", 2), ("81-2", "fr", 0)]


def test_columns_inside_of_others_can_be_named(tmp_path: Path) -> None:
    lines = [{"id": "q", "fields": {"reply": text, "tongue": "fr"}} for text in (FR, EN)]
    asked = asked_for("fields.reply", "fields.tongue", [])
    assert [value for _, _, value in values(jsonl(tmp_path / "a.jsonl", lines), asked)] == [2, 0]


@pytest.mark.parametrize("orient", ["columns", "list", "index", "records"])
def test_a_data_frame_is_read_however_it_was_written(orient: str, tmp_path: Path) -> None:
    rows = [{"text": text, "language": "fr"} for text in (FR, EN)]
    written: dict[str, Any] = {
        "columns": {name: {str(i): row[name] for i, row in enumerate(rows)} for name in rows[0]},
        "list": {name: [row[name] for row in rows] for name in rows[0]},
        "index": {f"q{i}": row for i, row in enumerate(rows)},
        "records": rows,
    }
    (tmp_path / "frame.json").write_text(json.dumps(written[orient]), encoding="utf-8")
    assert [value for _, _, value in values(tmp_path / "frame.json")] == [2, 0]


def outputs() -> list[dict[str, Any]]:
    return [{"question": "Pourquoi ?", "response": text, "lang": "fr"} for text in (FR, EN)]


def as_csv(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(outputs()[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(outputs())
    return text.getvalue().encode()


@pytest.mark.parametrize("name", ["x.csv", "x.tsv", "y.csv", "x.json", "x.jsonl.gz", "x.parquet", "hub"])
def test_one_table_in_any_format_has_the_same_ratings(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "x.json":
        path.write_text(json.dumps(outputs()))
    elif name == "x.jsonl.gz":
        path.write_bytes(gzip.compress(jsonl(tmp_path / "x.jsonl", outputs()).read_bytes()))
    elif name in ("x.parquet", "hub"):
        file = path / "data" / "test-00000-of-00001.parquet" if name == "hub" else path
        file.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(outputs()).write_parquet(file)
    else:
        path.write_bytes(as_csv({"x.csv": ",", "x.tsv": "\t", "y.csv": ";"}[name]))
    assert [(language, value) for _, language, value in values(path)] == [("fr", 2), ("fr", 0)]


def test_what_was_taken_for_what_is_said_in_a_line_and_nothing_is_said_of_our_own_records(tmp_path: Path) -> None:
    rows = [{"question": "Pourquoi ?", "response": FR, "lang": "fr", "generator": "m1"}]
    reading = reading_of(tmp_path / "x.csv", rows, ReadingOptions())
    line = "x.csv: columns; text from 'response', language from 'lang', prompt from 'question', model from 'generator'"
    assert reading_text(tmp_path / "x.csv", reading) == line
    own = reading_of(
        tmp_path / "x.jsonl", [{"text": FR, "language": "fr", "lang": "x", "response": "y"}], ReadingOptions()
    )
    assert reading_text(tmp_path / "x.jsonl", own) == ""


def test_fields_of_the_same_name_that_mean_something_else_are_not_taken_for_ours(tmp_path: Path) -> None:
    row = {"response": FR, "lang": "fr", "answers": {"text": ["x"]}, "step": [1], "messages": "none", "category": "a"}
    (record,) = responses(row, reading_of(tmp_path / "x", [row], ReadingOptions()), "x:1", 7)
    assert record == {"id": "7", "text": FR, "language": "fr", "category": "a", "step": 0}


AMBIGUOUS = [
    ([{"output": FR, "answer": "42", "lang": "fr"}], "output and answer could each be the text: --text output"),
    ([{"response": FR, "lang": "fr", "locale": "fr"}], "lang and locale could each be the language: --language lang"),
    ([{"verbatim": FR, "lang": "fr"}], "no column is known by its name to hold the replies; columns: verbatim, lang"),
    ([{"response": FR}], "nothing says in which language a reply must be; columns: response"),
]


@pytest.mark.parametrize(("rows", "problem"), AMBIGUOUS)
def test_what_is_not_certain_is_asked_and_not_guessed(rows: list[Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        reading_of(tmp_path / "x.csv", rows, ReadingOptions())
    assert [one.partition(": ")[2] for one in caught.value.problems] == [problem]
    assert "--language fr" in str(caught.value.hint)


def test_all_that_is_wrong_with_the_columns_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        reading_of(tmp_path / "x.csv", [{"verbatim": FR}], asked_for("verbatims", "klingonish", ["topic=category"]))
    assert len(caught.value.problems) == 3
    assert "did you mean 'verbatim'" in str(caught.value)
    with pytest.raises(ConfigError, match="expected COLUMN=FIELD"):
        asked_for(None, None, ["topic"])


def test_columns_and_one_language_for_all_can_be_named(tmp_path: Path) -> None:
    row = {"verbatim": FR, "meta": {"where": "fr", "topic": "sky"}, "id": "q1"}
    asked = asked_for("verbatim", "meta.where", ["meta.topic=category"])
    (record,) = responses(row, reading_of(tmp_path / "x", [row], asked), "x:1", 1)
    assert (record["text"], record["language"], record["category"]) == (FR, "fr", "sky")
    # A column by the name of a language is one where it holds languages.
    reading = reading_of(tmp_path / "x", [row], asked_for("verbatim", "id", []))
    assert reading.fixed["language"] == "id"
    reading = reading_of(tmp_path / "x", [row | {"id": "fr"}], asked_for("verbatim", "id", []))
    assert reading.columns["language"] == "id"


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("samples_mgsm_direct_fr_2025-01-01", "fr"),
        ("belebele_fra_Latn", "fr"),
        ("answers.pt-BR.jsonl", "pt"),
        ("wmt_de_fr.jsonl", None),
        ("what_is_it_to_me_or_the_new_run.jsonl", None),
        ("q17", None),
        ("", None),
    ],
)
def test_a_language_is_read_from_a_name_only_where_it_names_one(name: str, language: str | None) -> None:
    assert language_in(name) == language


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (FR, FR),
        (None, ""),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": FR}], FR),
        ({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": FR}], FR),
        ({"content": None, "refusal": "no"}, ""),
        ([], ""),
        ([FR], FR),
        ([FR, EN], None),
        (3, None),
    ],
)
def test_the_text_of_a_reply_is_found_in_messages_and_their_parts(value: Any, text: str | None) -> None:
    assert reply_text(value) == text


def test_conversations_are_rated_by_their_last_reply(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Pourquoi ?"}, {"role": "assistant", "content": FR}]
    assert values(jsonl(tmp_path / "x.jsonl", [{"messages": turns, "language": "French"}])) == [("1", "fr", 2)]


def test_a_row_without_the_column_has_no_reply_and_one_with_nothing_in_it_an_empty_one(tmp_path: Path) -> None:
    rows = [{"response": FR, "lang": "fr"}, {"response": None, "lang": "fr"}, {"other": FR, "lang": "fr"}, {"other": 1}]
    tally = rated(jsonl(tmp_path / "x.jsonl", rows)).tally
    assert (tally["", "fr"].empty, tally["", "fr"].missing) == (1, {"language": {"the response has no 'text'": 1}})
    assert (tally["", "?"].empty, len(tally["", "?"].judged)) == (0, 0)


def test_responses_of_several_files_keep_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        jsonl(tmp_path / "in" / f"{name}.jsonl", outputs())
    assert [name for name, _, _ in values(tmp_path / "in")] == ["a:1", "a:2", "b:1", "b:2"]


@pytest.mark.parametrize(
    "rows", [[{}], [{"a": None}], [{"": ""}], [{"text": 3, "language": 4}], [{"choices": 1, "model": 2}]]
)
def test_rows_of_any_shape_end_in_words(rows: list[Any], tmp_path: Path) -> None:
    said_of = []
    try:
        found = rated(jsonl(tmp_path / "x.jsonl", rows), ReadingOptions(language="fr"))
        said_of = [*found.counts.problems, *(str(ratings[0].get("reason")) for _, _, ratings in found.kept)]
    except UserError as error:
        said_of = error.problems
    assert said_of
    assert all("x.jsonl" in one or "no 'text'" in one for one in said_of)


def call(output: str | None) -> dict[str, Any]:
    """A row of promptfoo's results; one that failed has an error and no response."""
    said = {"response": {"output": output}} if output else {"error": "rate limit"}
    return {"provider": {"id": "m"}, "vars": {"language": "fr"}, "success": bool(output), "testIdx": 0, **said}


OTHERS: dict[str, Any] = {
    "promptfoo.json": {"evalId": "e", "results": {"version": 3, "results": [call(FR), call(None)]}},
    "scenario_state.json": {
        "request_states": [
            {
                "instance": {"id": "q-fr-1"},
                "request": {"model": "m", "prompt": "Pourquoi ?"},
                "result": {"completions": [{"text": FR}]},
                "language": "fr",
            }
        ]
    },
    "vllm_fr.json": [{"prompt": "Pourquoi ?", "outputs": [{"text": FR, "finish_reason": "length"}, {"text": FR}]}],
    "ollama_fr.json": [{"model": "m", "message": {"role": "assistant", "content": FR}, "done": True}],
    "distilabel.json": [{"instruction": "Pourquoi ?", "generations": [FR], "language": "fr"}],
    "argilla.json": [{"fields": {"instruction": "Pourquoi ?", "response": FR}, "metadata": {"language": "fr"}}],
    "langsmith.json": [{"inputs": {"question": "Pourquoi ?"}, "outputs": {"answer": FR}, "lang": "fr"}],
    "gemini_fr.json": [{"key": "1", "response": {"candidates": [{"content": {"parts": [{"text": FR}]}}]}}],
    "bedrock_fr.json": [{"recordId": "1", "modelOutput": {"content": [{"type": "text", "text": FR}]}}],
    "lighteval_fr.json": [{"example": "Pourquoi ?", "predictions": [FR], "gold": ["x"]}],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_other_programs_write_is_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(OTHERS[name]), encoding="utf-8")
    found = [(record.get("text"), record["language"]) for _, record, _ in rated(path).kept]
    wanted = {"promptfoo.json": [(FR, "fr"), (None, "fr")], "vllm_fr.json": [(FR, "fr"), (FR, "fr")]}
    assert found == wanted.get(name, [(FR, "fr")])


@pytest.mark.parametrize(
    "row",
    [
        {"response": {"usage": {"tokens": 3}}, "language": "fr"},
        {"text": "Pourquoi ?", "generated_text": FR, "language": "fr"},
    ],
)
def test_an_object_without_words_and_a_text_beside_what_was_generated_are_no_replies(
    row: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"hold the replies|could each be the text"):
        rated(jsonl(tmp_path / "a.jsonl", [row]))


def test_an_end_of_a_reply_that_is_no_text_is_none_of_the_known_ones(tmp_path: Path) -> None:
    rows = [{"reply": "Oui.", "language": "fr", "finish_reason": odd} for odd in (["length"], {"a": 1}, 7, "length")]
    kept = rated(jsonl(tmp_path / "r.jsonl", rows)).kept
    assert [record["finish_reason"] for _, record, _ in kept] == ["stop", "stop", "stop", "length"]
