"""No key and no password reaches a screen or a file, wherever it was put."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, serving
from test_judging import QUICK, judge_at, judged, records

from xlift.cli import main
from xlift.errors import ConfigError, UserError
from xlift.progress import say
from xlift.redaction import redacted
from xlift.study.loading import load_study, problems_of
from xlift.study.served import Judge

KEY = "sk-planted-1234567890abcdef"
WORD = "planted-word-77"


class Commands:
    """Commands in this process, in a folder of their own: all that they say, whatever comes of them."""

    def __init__(self, patch: pytest.MonkeyPatch, captured: pytest.CaptureFixture[str]) -> None:
        self.patch, self.captured = patch, captured

    def __call__(self, *arguments: str) -> str:
        self.patch.setattr(sys, "argv", ["xlift", *arguments])
        with contextlib.suppress(SystemExit):
            main()
        said = "".join(self.captured.readouterr())
        assert "Traceback" not in said
        return said


@pytest.fixture
def xlift(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Commands:
    monkeypatch.chdir(tmp_path)
    return Commands(monkeypatch, capfd)


def files_of(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "text",
    [
        f"no route to http://me:{WORD}@host:80/v1",
        f"no route to postgresql:me:{WORD}@host/db",
        f"postgresql+psycopg://me:{WORD}@host/db?x=1 is not there",
        f"GET https://host/v1?api-key={WORD}&x=1",
        f"Illegal header value b'Bearer {KEY}'",
        f"Incorrect API key provided: {KEY}.",
        "Basic bWU6cGxhbnRlZC13b3JkLTc3",
    ],
)
def test_what_looks_like_a_secret_is_hidden_in_every_message(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(text)
    shown = str(UserError([text], text)) + redacted(text) + capsys.readouterr().err
    for secret in (WORD, KEY, "bWU6cGxhbnRlZC13b3JkLTc3"):
        assert secret not in shown
    assert "[hidden]" in shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://USER@HOST/NAME", "results/a:b/step-4.jsonl: line 3", "12:30:45 me@example.org", "sk-learn here",
        "a basic understanding", "2 tokens: http://localhost:8000/v1", "at 10:20 sent@x", "hf_hub is missing",
    ],
)  # fmt: skip
def test_what_holds_no_secret_is_left_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_secrets_of_the_environment_are_hidden_however_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_API_KEY", "pass/word+'3'")
    assert redacted("a pass/word+'3' b pass%2Fword%2B%273%27") == "a [hidden] b [hidden]"


def test_hiding_takes_linear_time() -> None:
    for piece in (":", "a:", "sk-", "://a", "?key=", "bearer ", "@", "hf_"):
        redacted(piece * (200_000 // len(piece)))


@pytest.mark.parametrize(
    "key",
    [KEY, "sk_live_1234567890abcdefghijkl", "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
     "AIzaSyA1234567890abcdefghijklmnopqrstuv", f"OPENAI_API_KEY={KEY}"],
)  # fmt: skip
def test_a_key_typed_in_place_of_its_variables_name_is_refused_and_not_repeated(key: str, tmp_path: Path) -> None:
    problems = problems_of(Judge, {"model": "m", "api_key_env": key})
    assert any("not the key itself" in problem for problem in problems)
    path = tmp_path / "study.yaml"
    path.write_text(f"name: s\njudges: {{model: m, api_key_env: '{key}', base_url: 'http://me:{WORD}@host'}}\n")
    with pytest.raises(ConfigError) as mapping:
        load_study(path)
    path.write_text("name: s\njudges: []\n")
    with pytest.raises(ConfigError) as override:
        load_study(path, [f"judges.0.api_key_env={key}"])
    shown = "".join([*problems, str(mapping.value), str(override.value)])
    assert key not in shown
    assert WORD not in shown


def test_a_mistyped_database_is_named_without_its_password(xlift: Commands, tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"id": "a", "language": "fr", "text": "Oui."}\n')
    for url in (f"postgresql//me:{WORD}@host/db", f"mysql://me:{WORD}@host/db", f"postgres://me:{WORD}@127.0.0.1:9/db",
                f"me {WORD}"):  # fmt: skip
        said = xlift("annotate", "r.jsonl", "--status", "--database", url)
        assert "error:" in said
        assert WORD not in said


def test_nothing_that_a_study_leaves_or_says_holds_a_key_that_its_server_repeats(
    xlift: Commands, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server repeats the key in replies, refusals and errors; a key with a line break comes before a good one."""
    words = [
        Act(f'{{"fluency": 2, "why": "{KEY}"}}'),
        Act(None, refusal=KEY),
        Act(KEY, status=400),
        Act(KEY, status=403),
    ]
    words += [Act(f"Bearer {KEY}", status=500), Act(body=KEY.encode()), Act(KEY, finish=KEY)]
    sent = iter(range(1000))

    def script(body: dict[str, Any], seen: int) -> Act:
        harmless = body["messages"][0]["content"].endswith("OK.")
        return Act(KEY) if harmless else words[next(sent) % len(words)]

    with serving(script) as server:
        settings = (
            f"judges=[{{model: m, base_url: '{server.url}', api_key_env: ODD, facets: [fluency], concurrency: 3}}]"
        )
        small = (
            "training.steps=1",
            "training.learning_rate=1e-3",
            "prompts.languages=[en]",
            "validation.margins=false",
            "include_base=false",
        )
        monkeypatch.setenv("ODD", f"{KEY}\nX: y")
        said = xlift("run", str(study_file), *small, settings, "--out", "out")
        assert "is no key" in said
        monkeypatch.setenv("ODD", f"{KEY}\r\n")
        said += xlift("judge", "out")
        assert next(sent) > len(words)
        said += xlift("report", "out")
    left = files_of(tmp_path / "out")
    assert b"[hidden]" in left
    assert KEY not in said
    assert KEY.encode() not in left


def test_a_reply_keeps_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ODD", "unlike-any-key-at-all")
    with serving(lambda body, seen: Act("unlike-any-key-at-all is what I was sent")) as server:
        judged(tmp_path, judge_at(server, api_key_env="ODD"), records(1), QUICK)
    assert b"unlike-any-key" not in files_of(tmp_path)
