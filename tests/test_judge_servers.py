"""Servers that answer whatever they like: an answer is data, and one request's fault is not that of all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Script, honest, serving
from test_judge_calls import ONCE
from test_judging import judge_at, judged, records

from xlift.errors import ConfigError, UserError
from xlift.judging.replies import read_preference, read_values, refuses
from xlift.servers import bounds
from xlift.servers.calls import ServedReply
from xlift.servers.completions import Features, adapted, model_names, read_completion, server_words
from xlift.servers.ledger import read_ledger
from xlift.study.served import Judge

ODD: list[Any] = [None, 5, -1, 1.5, True, "", "x", [], [5], {}, {"a": [1]}, [{"text": 5}], [[]], "\ud800", 10**30]


def completion(**message: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def odd_answers() -> list[Any]:
    """Every odd value in every place of an answer."""
    found = [*ODD, *({"choices": one} for one in ODD), *({"choices": [one]} for one in ODD)]
    found += [{"choices": [{"message": one}]} for one in ODD]
    found += [completion(content=one) for one in ODD] + [completion(content="{}", refusal=one) for one in ODD]
    found += [{"choices": [{"message": {"content": "{}"}, "finish_reason": one}]} for one in ODD]
    found += [completion(content="{}") | {"usage": one} for one in ODD]
    found += [completion(content="{}") | {"usage": {"prompt_tokens": one, "completion_tokens": 3}} for one in ODD]
    return found


def test_whatever_a_server_answers_is_a_reply_of_text_or_none() -> None:
    for answer in odd_answers():
        reply, usage = read_completion(answer)
        if isinstance(reply, ServedReply):
            assert isinstance(reply.text, str)
            assert isinstance(reply.finish, str)
            assert reply.refusal is None or isinstance(reply.refusal, str)
        assert usage is None or all(type(one) is int and one >= 0 for one in usage)


def test_parts_of_text_are_one_text() -> None:
    reply, _ = read_completion(completion(content=[{"type": "text", "text": '{"fluency"'}, {"text": ": 2}"}]))
    assert reply == ServedReply('{"fluency": 2}')


def test_odd_answers_end_no_judging_and_a_server_in_order_again_is_paid_for_the_rest_alone(tmp_path: Path) -> None:
    answers = [json.dumps(one).encode() for one in odd_answers()]
    answers += [b"[" * 100_000, b'{"a":' * 20_000, b'{"usage": ' + b"9" * 5000 + b"}", b"\xff\xfe", b"null", b""]
    turn = iter(answers)

    def script(body: dict[str, Any], seen: int) -> Act:
        answer = next(turn, None)
        # A failed call between two good ones: otherwise so many failures in a row would mean that all calls fail.
        return Act(body=answer) if answer is not None and seen == 0 else honest(body, seen)

    with serving(script) as server:
        settings = judge_at(server, facets=["fluency"])
        outcome, ratings = judged(tmp_path, settings, records(len(answers)))
        assert outcome.responses == len(answers)
        assert {one["value"] for one in ratings} <= {None, 0, 1, 2}
        assert all(one["reason"] for one in ratings if one["value"] is None)
        paid = server.state.requests
        assert judged(tmp_path, settings, records(len(answers)))[0].responses == 0
        assert server.state.requests == paid


def test_an_answer_without_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LONGEST_ANSWER", 100_000)
    script: Script = lambda body, seen: Act(body=b'{"choices": "' + b"x" * 2_000_000)  # noqa: E731
    with serving(script) as server:
        _, ratings = judged(tmp_path, judge_at(server, facets=["fluency"]), records(1), ONCE)
    assert [one["reason"] for one in ratings] == ["the answer is longer than 100,000 bytes"]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "Your input was flagged by moderation"),
        (400, "The response was filtered by the content management policy"),
        (404, "No endpoints found for this request"),
        (400, "I do not like it"),
    ],
)
def test_requests_that_are_refused_one_by_one_are_missing_alone_and_the_rest_is_judged(
    status: int, words: str, tmp_path: Path
) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        shown = body["messages"][-1]["content"]
        refused = any(f"Question {i} " in shown for i in range(20))
        return Act(words, status=status) if refused else honest(body, seen)

    with serving(script) as server:
        outcome, ratings = judged(tmp_path, judge_at(server, facets=["fluency"], concurrency=2), records(30))
        assert outcome.missing == 20
        assert {one["reason"] for one in ratings if one["value"] is None} == {f"{status}: {words}"}
        harmless = [body for body in server.state.bodies if "OK" in body["messages"][-1]["content"]]
        assert 1 <= len(harmless) <= 5


def test_a_key_that_is_refused_for_everything_stops_after_one_harmless_request(tmp_path: Path) -> None:
    with serving(lambda body, seen: Act("no", status=403)) as server:
        with pytest.raises(UserError, match="refuses the key"):
            judged(tmp_path, judge_at(server, concurrency=2), records(50))
        assert server.state.requests <= 3


def test_parameters_are_taken_back_one_at_a_time() -> None:
    features = Features(schema=True)
    assert adapted(features, "Unsupported parameter: 'seed' (see the JSON schema)") == features._replace(seed=False)
    assert adapted(features, "Our system is busy with temperature") == features._replace(temperature=False)
    assert adapted(features, "System role not supported") == features._replace(system=False)
    unnamed = "No endpoints found that support the requested parameters"
    steps = []
    found = adapted(features, unnamed)
    while found:
        steps.append(found)
        found = adapted(found, unnamed)
    assert [(one.schema, one.seed, one.temperature) for one in steps] == [
        (False, True, True),
        (False, False, True),
        (False, False, False),
    ]


def test_a_404_for_a_parameter_is_no_unknown_model(tmp_path: Path) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        words = "No endpoints found that support the requested parameters"
        return Act(words, status=404) if "seed" in body else honest(body, seen)

    with serving(script) as server:
        assert judged(tmp_path, judge_at(server), records(3))[0].missing == 0
        assert "seed" not in server.state.bodies[-1]


def test_damaged_lines_of_a_ledger_are_asked_again_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as server:
        settings = judge_at(server, facets=["fluency"], price_input=1, price_output=1)
        judged(tmp_path, settings, records(6))
        ledger = tmp_path / "ledger.jsonl"
        lines = [json.loads(line) for line in ledger.read_text().splitlines()]
        lines[0]["reply"], lines[1]["cost"], lines[2]["input"] = {"a": 1}, "much", float("nan")
        damaged = [json.dumps(line).encode() for line in lines]
        damaged[3], damaged[4] = b"\xff{", b"[]"
        ledger.write_bytes(b"\n".join(damaged) + b"\n")
        (tmp_path / "ratings.jsonl").unlink()
        _, ratings = judged(tmp_path, settings, records(6))
        assert server.state.requests == 6 + 5
    assert all(one["value"] is not None for one in ratings)
    assert "5 damaged lines" in capsys.readouterr().err


def test_a_flipped_bit_of_a_ledger_turns_no_rating_into_another(tmp_path: Path) -> None:
    """Each bit of what a reply says, one at a time: the line is asked again, or says what it said."""
    with serving() as server:
        settings = judge_at(server, facets=["fluency"])
        judged(tmp_path, settings, records(1))
        ledger = tmp_path / "ledger.jsonl"
        whole = ledger.read_bytes()
        start, end = whole.index(b'"reply"'), whole.index(b'"finish"')
        with read_ledger(ledger, settings) as kept:
            (place,) = kept.places
        for at in range(start, end):
            for bit in range(8):
                ledger.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
                with read_ledger(ledger, settings) as kept:
                    assert place not in kept.places
        assert server.state.requests == 1


@pytest.mark.parametrize(
    "address",
    ["localhost:8000/v1", "ftp://host/v1", "http://", "http://a b/v1", "http://host:port/v1", "http://h/v1\r\nX: y",
     "http://[/v1", "http://me:word@host/v1", "http://host/v1?api_key=abc", "http://h\ud800/v1"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_before_anything_is_sent(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Judge(model="m", base_url=address)


def test_blanks_around_addresses_and_keys_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", " sk-very-secret-1234567890\r\n")
    with serving() as server:
        settings = Judge(model="m", base_url=f" {server.url}\n", api_key_env=" JUDGE_KEY ", facets=["fluency"])
        assert judged(tmp_path, settings, records(1))[0].missing == 0
        assert server.state.headers[0]["authorization"] == "Bearer sk-very-secret-1234567890"


@pytest.mark.parametrize("key", ["two words-1234567", "line\nbreak-1234567", "clé-1234567890"])
def test_a_key_that_no_header_can_hold_is_refused_at_once_and_not_shown(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    with serving() as server:
        with pytest.raises(ConfigError, match="is no key") as raised:
            judged(tmp_path, judge_at(server, api_key_env="JUDGE_KEY"), records(1))
        assert server.state.requests == 0
    assert key not in str(raised.value)


def test_words_of_a_server_are_one_short_line_whatever_their_shape() -> None:
    for body in [*ODD, *({"error": one} for one in ODD), *({"message": one} for one in ODD)]:
        text = server_words(body, "\x1b[31m\nbad gateway", "secret-key")
        assert text.isprintable()
        assert len(text) <= 200
    assert model_names({"data": [{"id": "a"}, {"id": 5}, 3, {"id": "\x1b"}]}) == ["a"]


@pytest.mark.parametrize(
    "piece",
    ["\n- ", '{"a":', '{"a":{', "{", '{"', "[", "- *_", "<think>", "</think>", "\n", "fluency: ", '{"fluency": 2}'],
)
def test_a_reply_of_a_megabyte_is_read_in_seconds_whatever_it_holds(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    began = time.process_time()
    read_values(text, ["fluency", "accuracy"])
    read_preference(text)
    refuses(ServedReply(text))
    assert time.process_time() - began < 5
