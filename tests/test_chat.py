"""`xlift chat`: any model answers line by line, asked, rated and begun anew as the person at the terminal says."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, Serving, serving
from warm import run_xlift, start_xlift

from xlift.chat import talk
from xlift.errors import ConfigError, UserError
from xlift.generation.engine import answering, decode
from xlift.opening import open_model
from xlift.study.served import Decoding


def streamed(*pieces: Any, finish: str | None = "stop") -> bytes:
    """The answer of a server that streams; a piece that is no text is sent as it is."""
    deltas: list[Any] = [{"choices": [{"index": 0, "delta": {"content": one}}]} for one in pieces]
    deltas += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}] if finish else []
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in deltas) + b"data: [DONE]\n\n"


def echo(body: dict[str, Any], seen: int) -> Act:
    """Answers with the last message, in pieces."""
    return Act(body=streamed(*body["messages"][-1]["content"].partition(" ")))


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving(echo) as one:
        yield one


def chat(lines: str, *models: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, **more: Any) -> tuple[str, str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    capsys.readouterr()
    talk(models, more.pop("system", None), 6, True, ("m", None), **more)
    return tuple(capsys.readouterr())  # type: ignore[return-value]


def test_a_model_here_answers_as_it_is_decoded_with_what_was_said_before(
    tiny: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, _ = chat("Why?\nAnd then?\n", str(tiny), capsys=capsys, monkeypatch=monkeypatch)
    first, second = said.splitlines()
    context, form = open_model(str(tiny), None, True)
    asked: list[Any] = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": first}]
    asked.append({"role": "user", "content": "And then?"})
    found: list[str] = []
    with context as model, answering(model) as batch_of:
        prompt = [form.encode_prompt(asked)]
        keep = lambda _, reply: found.append(reply.text)  # noqa: E731
        decode(model, form, prompt, [""], Decoding(max_new_tokens=6), keep, batch_of=batch_of)
    assert found == [second]


def test_lines_with_a_slash_change_what_is_asked_and_rated(
    server: Serving, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "/lang fr\n/system Be brief.\n/ratings on\nThe weather is lovely in this town today.\n/reset\n/system\n"
    said, told = chat(f"{lines}/lang\nIl fait beau.\n /help\n", server.url, capsys=capsys, monkeypatch=monkeypatch)
    first, second, third = (body["messages"] for body in server.state.bodies)
    assert first[0]["content"].startswith("Be brief.")
    assert "français" in first[0]["content"]
    assert first[1:] == [{"role": "user", "content": "The weather is lovely in this town today."}]
    assert second == [{"role": "user", "content": "Il fait beau."}]
    assert [one["content"] for one in third] == ["Il fait beau.", "Il fait beau.", "/help"]
    shown = said.splitlines()
    assert shown[0] == "The weather is lovely in this town today."
    assert shown[1].startswith("[language 0: English · fluency ")
    assert "not rated: the language of the message cannot be told" in shown[3]
    assert "answers are asked for and rated in French" in told


def test_two_models_answer_each_in_a_conversation_of_its_own(
    tiny: Path, server: Serving, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, _ = chat("One two\nThree\n", server.url, str(tiny), capsys=capsys, monkeypatch=monkeypatch, rated=True)
    lines = said.splitlines()
    assert lines[:2] == ["[m]", "One two"]
    assert lines.count("[m]") == lines.count(f"[{tiny.name}]") == 2
    assert [one["content"] for one in server.state.bodies[1]["messages"]] == ["One two", "One two", "Three"]


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_and_says_so(
    tiny: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(body: dict[str, Any], seen: int) -> Act:
        long = sum(one["role"] == "user" for one in body["messages"]) > 2
        return Act("this exceeds the available context size", status=400) if long else echo(body, seen)

    with serving(short) as server:
        said, told = chat("One\nTwo\nThree\nFour\n", server.url, capsys=capsys, monkeypatch=monkeypatch)
        asked = [one["content"] for one in server.state.bodies[-1]["messages"]]
    assert said.split() == ["One", "Two", "Three", "Four"]
    assert asked == ["Three", "Three", "Four"]
    assert told.count("m: the conversation is too long for the model: the oldest turn was dropped") == 2
    # The model here reads 2,048 tokens; a single question that is longer is still refused.
    line = "light " * 250
    assert "dropped" in chat(f"{line}\n" * 3, str(tiny), capsys=capsys, monkeypatch=monkeypatch)[1]
    with pytest.raises(UserError, match="longer than the model's context"):
        chat(f"{line * 3}\n", str(tiny), capsys=capsys, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (Act(body=streamed("Bon", finish=None)), "the answer was cut off"),
        (Act(body=streamed("Bonjour"), cut=True), "closed"),
        (Act(body=b"<html>bad gateway</html>"), "no answer that can be read"),
        (Act(body=b"data: {nonsense\n\n"), "JSONDecodeError"),
        (Act(body=b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        (Act(body=streamed(["a", {"b": 1}], finish=None)), "no answer that can be read"),
        (Act("the context length is 20 tokens", status=400), "400: the context length is 20 tokens"),
        (Act("wrong key", status=401), "401: wrong key"),
        (Act("no such model", status=404), "404: no such model"),
    ],
)
def test_an_answer_that_does_not_come_is_told_in_a_sentence(
    act: Act, says: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(lambda body, seen: act) as server, pytest.raises(UserError, match=says):
        chat("Bonjour\n", server.url, capsys=capsys, monkeypatch=monkeypatch)


def test_a_parameter_that_a_server_does_not_know_is_left_out(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(body: dict[str, Any], seen: int) -> Act:
        return Act("max_tokens is not supported", status=400) if "max_tokens" in body else echo(body, seen)

    with serving(picky) as server:
        said, _ = chat("Bonjour\n", server.url, capsys=capsys, monkeypatch=monkeypatch)
    assert said == "Bonjour\n"
    assert server.state.bodies[-1]["max_completion_tokens"] == 6


def test_what_cannot_be_talked_to_is_told_before_the_first_line(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="does not answer"):
        chat("Bonjour\n", "http://127.0.0.1:9/v1", capsys=capsys, monkeypatch=monkeypatch)
    with serving(echo) as server, pytest.raises(ConfigError, match="which of its models"):
        talk([server.url], None, 6, True)
    with pytest.raises(UserError, match="/langue fr: not known"), serving(echo) as server:
        chat("/langue fr\n", server.url, capsys=capsys, monkeypatch=monkeypatch)


def test_a_command_line_that_fails_ends_in_words(tmp_path: Path) -> None:
    done = run_xlift("chat", "http://127.0.0.1:9/v1", "--model", "m", folder=tmp_path, input="Bonjour\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_line_that_is_no_text_is_answered_as_far_as_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "lines").write_bytes(b"\xff\xfe Bonjour \xed\xa0\x80\n")
    with serving(echo) as server, (tmp_path / "lines").open() as lines:
        done = run_xlift("chat", server.url, "--model", "m", folder=tmp_path, stdin=lines.fileno())
        asked = server.state.bodies[-1]["messages"][-1]["content"]
    assert (done.returncode, done.stderr) == (0, "")
    assert asked == "\ufffd\ufffd Bonjour \ufffd\ufffd\ufffd"


def test_at_a_terminal_ctrl_c_ends_an_answer_a_mistake_ends_nothing_and_two_stand_side_by_side(tmp_path: Path) -> None:
    def slow(body: dict[str, Any], seen: int) -> Act:
        return echo(body, seen)._replace(delay=60 * ("wait" in body["messages"][-1]["content"]))

    with serving(slow) as server:
        ours, theirs = pty.openpty()
        wide = os.environ | {"COLUMNS": "100", "TERM": "xterm"}
        process = start_xlift(
            "chat", *[server.url] * 2, "--model", "m", folder=tmp_path, streams=[theirs] * 3, env=wide
        )
        told = ""

        def until(text: str) -> None:
            nonlocal told
            while text not in told:
                assert select.select([ours], [], [], 60)[0], told
                told += os.read(ours, 4096).decode(errors="replace")

        until("> ")
        os.write(ours, b"wait here\n")
        while len(server.state.bodies) < 1:
            time.sleep(0.01)
        told = ""
        process.send_signal(2)
        while len(server.state.bodies) < 2:
            time.sleep(0.01)
        process.send_signal(2)
        until("> ")
        told = ""
        os.write(ours, b"/nonsense\n")
        until("try: /lang")
        os.write(ours, "/reset\nÇa \x1b[31mva ?\n".encode())
        until("new conversation")
        told = ""
        until("\x1b[?25h")
        assert any(line.count("va ?") == 2 for line in told.splitlines())
        assert "\x1b[31m" not in told
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    assert "Traceback" not in told
