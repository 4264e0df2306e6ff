"""What somebody meets first: a study file made by questions, few words, a log, completion, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from warm import run_xlift

from xlift.disk import write_jsonl
from xlift.errors import ConfigError, DataError
from xlift.progress import kept_for_a_log, logged_in, say
from xlift.rating import rate
from xlift.records import Logged, Prompt, Rating, Response, read_records
from xlift.stages import prepare
from xlift.study.loading import load_study
from xlift.study.new import Compare, FirstStudy, SizeName, study_text, write_first_study

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("compare", get_args(Compare))
@pytest.mark.parametrize("size", get_args(SizeName))
def test_every_first_study_loads_and_has_the_runs_that_were_asked_for(compare: Any, size: Any, tmp_path: Path) -> None:
    path = write_first_study(tmp_path / "my study.yaml", FirstStudy(compare=compare, size=size))
    study = load_study(path)
    tuned = [run for run in study.runs() if not run.untuned]
    assert len(tuned) == {"rates": 3, "amounts": 3, "methods": 2, "nothing": 1}[compare]
    assert study.prompts.languages == ["en", "fr", "pt", "ru"]
    assert path.read_text().count("#") >= 6


def test_answers_are_written_as_they_are_meant(tmp_path: Path) -> None:
    answers = FirstStudy(model="my: model #1", data="a, b}.jsonl", languages="German, pt-BR,en")
    told = yaml.safe_load(study_text(tmp_path / "s.yaml", answers))
    assert told["training"]["model"] == "my: model #1"
    assert told["training"]["instructions"]["sources"] == [{"path": "a, b}.jsonl"}]
    assert told["prompts"]["languages"] == ["en", "de", "pt"]


def test_a_file_that_is_there_and_a_wrong_answer_are_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        write_first_study(tmp_path / "s", FirstStudy())
    with pytest.raises(DataError, match="klingon"):
        write_first_study(tmp_path / "t.yaml", FirstStudy(languages="klingon"))
    with pytest.raises(ConfigError, match=r"--compare rate: did you mean 'rates'"):
        write_first_study(tmp_path / "t.yaml", FirstStudy(compare="rate"))  # type: ignore[arg-type]
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("s.yaml", "mine")]


def test_the_next_commands_can_be_pasted_and_flags_ask_nothing(tmp_path: Path) -> None:
    done = run_xlift("init", "my study.yaml", "--languages", "ru", folder=tmp_path, input="nonsense\n" * 9)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"xlift .*", done.stdout) == ["xlift check 'my study.yaml'", "xlift run 'my study.yaml'"]
    assert load_study(tmp_path / "my study.yaml").prompts.languages == ["en", "ru"]
    told = run_xlift("init", "other.yaml", "--yes", "--json", folder=tmp_path).stdout
    assert json.loads(told) == {"written": "other.yaml", "next": ["xlift check other.yaml", "xlift run other.yaml"]}


def test_what_a_command_says_is_in_the_log_of_the_study_with_what_was_typed_and_no_secret(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345")
    with kept_for_a_log("xlift run s.yaml"):
        say("before")
        with pytest.raises(ConfigError), logged_in(tmp_path / "log.txt"):
            say_and_fail("within, by abcdefgh12345")
        say("after")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ", line) for line in lines)
    told = [line.split(" ", 1)[1] for line in lines]
    assert told == ["xlift run s.yaml", "before", "within, by [hidden]", "ended: what was wrong"]
    with logged_in(tmp_path / "nothing.txt"):
        pass
    assert not (tmp_path / "nothing.txt").exists()
    monkeypatch.setenv("XLIFT_QUIET", "1")
    capsys.readouterr()
    with logged_in(tmp_path / "quiet.txt"):
        say("only here")
    assert capsys.readouterr().err == ""
    assert "only here" in (tmp_path / "quiet.txt").read_text()


def say_and_fail(text: str) -> None:
    say(text)
    raise ConfigError("what was wrong")


@pytest.mark.parametrize("words", [["-q", "rate", "out"], ["rate", "out", "--quiet"]])
def test_quiet_holds_wherever_it_is_written(words: list[str], study_file: Path, tmp_path: Path) -> None:
    prepare(load_study(study_file), tmp_path / "out")
    done = run_xlift(*words, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "out" / "log.txt").read_text().splitlines()[0].endswith(f"xlift {' '.join(words)}")


def test_verbose_shows_where_an_error_arose(tmp_path: Path) -> None:
    plain, told = (run_xlift(*words, "verify", "absent", folder=tmp_path) for words in ([], ["-v"]))
    assert "Traceback" not in plain.stderr
    assert "Traceback" in told.stderr
    assert (plain.returncode, told.returncode) == (2, 2)


def test_results_are_there_as_json(study_file: Path, tmp_path: Path) -> None:
    prepare(load_study(study_file), tmp_path / "out")
    found = json.loads(run_xlift("report", "out", "--json", folder=tmp_path).stdout)
    assert (tmp_path / found["report"]).is_file()
    assert found["measure"] == "Answers wholly in the user's language"
    assert [run["run"] for run in found["runs"]] == ["base"]
    assert found["runs"][0]["languages"] == {"en": None, "ru": None}
    verified = json.loads(run_xlift("verify", "out", "--json", folder=tmp_path).stdout)
    assert verified["problems"] == []


def test_the_notebook_runs(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    notebook = json.loads((ROOT / "docs" / "first-minutes.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            exec("".join(cell["source"]).replace("embedded:gemma-3-270m", str(tiny)), names)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["1 2  []", "2 1  ['especially the blue part']"]
    assert shown[2].startswith("3 0 ")
    assert names["found"]["label"].n_unique() == 3
    assert (tmp_path / "results" / "first-minutes" / "report" / "index.html").is_file()


KINDS = {"prompt": Prompt, "response": Response, "rating": Rating, "line of train.jsonl": Logged}


@pytest.mark.parametrize("kind", KINDS)
def test_the_records_in_the_docs_are_records(kind: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    (shown,) = re.findall(rf"^A {kind}.*?:\n\n```json\n(.*?)\n```$", page, re.MULTILINE | re.DOTALL)
    record = json.loads(shown)
    write_jsonl(tmp_path / "one.jsonl", [record])
    assert read_records(tmp_path / "one.jsonl", KINDS[kind]) == [record]


def test_the_rating_in_the_docs_is_the_one_that_the_response_gets(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    shown = {
        kind: json.loads(text) for kind, text in re.findall(r"^A (\w+).*?:\n\n```json\n(.*?)\n```$", page, re.M | re.S)
    }
    made = rate(shown["response"], "language")
    assert made | {"signature": ""} == shown["rating"] | {"signature": ""}


def test_responses_where_a_study_is_wanted_become_one_by_the_command_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "my answers.csv").write_text("language,text\nfr,Bonjour le monde entier.\n")
    with pytest.raises(ConfigError) as refused:
        load_study(tmp_path / "my answers.csv")
    assert refused.value.hint
    assert refused.value.hint.startswith(f"xlift import '{tmp_path}/my answers.csv' --as results/NAME ")
