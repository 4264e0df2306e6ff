"""No command ignores an option: what does not apply is refused, by name; a new option without a case here fails."""

from __future__ import annotations

import fcntl
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from judge_server import Act, serving
from test_judging import judge_at

from xlift import cli
from xlift.cli import data, models, ratings, studies
from xlift.cli.common import Modes
from xlift.disk import write_jsonl
from xlift.judging.pairs import compare_pairs, current_comparisons, summarise_pairs
from xlift.judging.probe import probe, probe_cases
from xlift.stages import prepare
from xlift.study.loading import load_study

COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
MODES: dict[str, Modes] = {
    **{"rate": ratings._RATE, "judge": ratings._JUDGE, "annotate": ratings._ANNOTATE, "clean": studies._CLEAN},
    **{"check": studies._CHECK, "mend": studies._MEND, "report": studies._REPORT},
    **{"translate": data._TRANSLATE, "import": data._IMPORT},
    **{"diagnose": models._DIAGNOSE, "export": models._EXPORT, "chat": models._CHAT},
}
"""Commands that can be asked for several things, and the options that each takes."""
ALWAYS = {
    "init": {"model", "data", "languages", "compare", "size", "yes", "as_json"},
    "run": {"out", "offline", "skip_unfit", "as_json"},
    "train": {"out", "offline", "skip_unfit", "as_json"},
    "generate": {"out", "offline", "as_json"},
    "agreement": {"as_json"},
    "compare": {"study", "rater", "split", "as_json"},
    "serve": {"port", "offline"},
    "ls": {"as_json"},
    "view": {"port"},
    "verify": {"as_json"},
}
"""Options that apply however the command is asked."""
WORDS = {
    "STUDY": "study",
    "STUDY…": "other",
    "FILE.jsonl": "responses.jsonl",
    "SOURCE": "study",
    "NAME": "ana",
    "N": "3",
    "FILE": "ratings.csv",
    "http://…": "http://localhost:9/v1",
    "RUN_A": "a",
    "RUN_B": "b",
    "LANGUAGES": "fr",
    "OUT": "out.jsonl",
    "DIR": "exported",
}


def options_of(command: str) -> dict[str, Any]:
    found = COMMANDS[command].params
    return {one.name: one for one in found if one.param_type_name == "option" and one.name != "help"}


def flag_of(command: str, name: str) -> str:
    return str(max(options_of(command)[name].opts, key=len))


def value_of(option: Any) -> list[str]:
    """A value that an option takes."""
    if getattr(option, "is_flag", False):
        return []
    chosen = {"split": "test", "gguf": "q8_0"}.get(option.name)
    return [chosen] if chosen else ["1"] * option.nargs


def asks(command: str, mode: str, name: str) -> bool:
    """Whether an option turns a mode into another one instead of being out of place in it."""
    flag = flag_of(command, name)
    return any({flag, *mode.split()} <= set(other.split()) for other in MODES[command])


MISFITS = [
    (command, mode, name)
    for command, modes in MODES.items()
    for mode, takes in modes.items()
    for name in options_of(command)
    if name not in takes and not asks(command, mode, name)
]


def test_every_option_of_every_command_has_a_case() -> None:
    for command in COMMANDS:
        cases = set().union(*MODES[command].values()) if command in MODES else ALWAYS[command]
        assert set(options_of(command)) == cases, command


@pytest.mark.parametrize(("command", "mode", "name"), MISFITS, ids=lambda value: str(value))
def test_an_option_that_does_not_apply_is_refused_by_name(
    command: str, mode: str, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    option = options_of(command)[name]
    flag = flag_of(command, name)
    words = [WORDS.get(word, word) for word in mode.split()]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xlift", command, *words, flag, *value_of(option)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    # Where the option itself says what is wanted, either of the two is the one that does not fit.
    named = re.findall(r"error: (--[\w-]+) does not apply", said)
    assert flag in named or set(named) & set(mode.split()) or "--total" in named
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("export run --to exported --private", "--private does not apply without --push"),
        ("report a b training.steps=3 --out page", "several studies are shown as they are, without training.steps=3"),
        ("rate responses.jsonl results/a", "results/a: a study is rated alone"),
    ],
)
def test_what_goes_with_another_word_alone_is_refused_without_it(
    line: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "a").mkdir(parents=True)
    (tmp_path / "results" / "a" / "study.yaml").touch()
    monkeypatch.setattr(sys, "argv", ["xlift", *line.split()])
    with pytest.raises(SystemExit):
        cli.main()
    assert said in capsys.readouterr().err


def test_the_number_of_requests_under_way_does_not_apply_to_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["xlift", "judge", "--probe", "--model", "m", "--batch", "--concurrency", "3"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, "--concurrency does not apply with --batch" in capsys.readouterr().err) == (2, True)


def test_a_dry_run_names_the_lines_that_would_not_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"id": "a", "text": "Yes.", "language": "en"}, {"id": "b", "text": "Yes.", "language": "klingon"}]
    write_jsonl(tmp_path / "r.jsonl", lines)
    monkeypatch.setattr(sys, "argv", ["xlift", "judge", "r.jsonl", "-o", "o.jsonl", "--model", "m", "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr().err
    assert (ended.value.code, "r.jsonl:2" in said, "klingon" in said, "1 response" in said) == (2, True, True, True)


BETTER = {"better": "first"}


def test_a_dry_run_of_a_pair_or_the_probe_counts_the_calls_that_are_then_made(tmp_path: Path) -> None:
    from xlift.judging.pairs import estimate_pairs
    from xlift.judging.probe import estimate_probe

    pairs = [({**one, "run": "a"}, {**one, "run": "b", "text": one["text"] + "!"}) for one in probe_cases(["en"])[:3]]
    pairs.append((pairs[0][0] | {"id": "same"}, pairs[0][0] | {"id": "same", "run": "b"}))
    with serving(lambda body, seen: Act(json.dumps(BETTER))) as server:
        judge = judge_at(server)
        files = (tmp_path / "pairs.jsonl", tmp_path / "ledger.jsonl")
        before = estimate_pairs(pairs, judge, *files)
        assert (before.items, before.calls, server.state.requests) == (3, 6, 0)
        compare_pairs(pairs, judge, *files)
        assert server.state.requests == before.calls
        assert estimate_pairs(pairs, judge, *files).calls == 0
        (total,) = summarise_pairs(current_comparisons(files[0], pairs, judge))
        # The identical pair was shown to nobody: it says nothing about how steady the judge is.
        assert (total.identical, total.tie, total.consistent) == (1, 3, 0.0)
        assert estimate_probe(judge, tmp_path / "probe").calls == len(probe_cases())
        assert server.state.requests == before.calls


@pytest.mark.parametrize(
    "words",
    [["--probe"], ["responses.jsonl", "-o", "new/folder/ratings.jsonl"], ["study"], ["study", "--probe"]],
    ids=" ".join,
)
def test_a_dry_run_of_judging_leaves_the_disk_as_it_was(
    words: list[str], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    prepare(load_study(study_file), tmp_path / "study")
    write_jsonl(tmp_path / "responses.jsonl", probe_cases(["en"])[:2])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    judge = ["--model", "m", "--base-url", "http://localhost:9/v1", "--dry-run"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["xlift", "judge", *words, *judge])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "calls" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_dry_run_reads_a_ledger_that_another_process_writes_and_leaves_its_torn_line(tmp_path: Path) -> None:
    from xlift.judging.probe import estimate_probe

    with serving() as server:
        judge = judge_at(server)
        probe(judge, tmp_path, probe_cases(["en"])[:1])
        (ledger,) = tmp_path.glob("judge-*.jsonl")
        with ledger.open("ab") as file:
            file.write(b'{"request": "ab')
        torn = ledger.read_bytes()
        with ledger.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert estimate_probe(judge, tmp_path).items == len(probe_cases()) - 1
        assert ledger.read_bytes() == torn


def test_pairs_and_the_probe_go_by_batches_where_the_judge_is_set_so(tmp_path: Path) -> None:
    from xlift.servers.client import Pace

    pairs = [({**one, "run": "a"}, {**one, "run": "b", "text": one["text"] + "!"}) for one in probe_cases(["en"])[:3]]
    with serving(lambda body, seen: Act(json.dumps(BETTER))) as server:
        judge = judge_at(server, batch=True)
        compare_pairs(pairs, judge, tmp_path / "pairs.jsonl", tmp_path / "ledger.jsonl", Pace(poll=0.01))
        assert len(server.state.batches) == 1
        assert len(current_comparisons(tmp_path / "pairs.jsonl", pairs, judge)) == 3
        probe(judge, tmp_path, probe_cases(["en"])[:2], Pace(poll=0.01))
        assert len(server.state.batches) > 1
