"""Rating as a whole: records in, ratings out, whole files of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xlift.errors import ConfigError, DataError
from xlift.rating import RATERS, Rater, files, in_scope, rate, text_fingerprint
from xlift.rating.files import rate_file
from xlift.records import FACETS, read_records
from xlift.study.study import parse_study

ROOT = Path(__file__).parent.parent
FR = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
EN = "The leaves turn yellow because the days become shorter and colder."


def write(path: Path, records: list[Any]) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records))
    return path


def test_a_rater_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """One entry of RATERS, and studies, the command, its help, the report and the default know it."""
    from typer.testing import CliRunner

    from xlift.cli import app

    for default in (True, False):
        rates = Rater("coherence", "Answers that rhyme", lambda _: (2.0, {}, None), lambda: "rhyme v1", default=default)
        monkeypatch.setitem(RATERS, "rhyme", rates)
        study = parse_study({"name": "x"})
        assert ("rhyme" in study.raters) is default
        assert parse_study({"name": "x", "raters": ["rhyme"]}).raters == ["rhyme"]
        shown = CliRunner().invoke(app, ["rate", "--help"]).stdout
        assert "rhyme" in shown
        assert "Answers that rhyme" in shown


def test_raters_rate_known_facets_and_the_docs_name_each() -> None:
    table = (ROOT / "docs" / "raters.md").read_text(encoding="utf-8").split("|---|---|---|---|\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert [(row[0], row[1]) for row in rows] == [(name, one.facet) for name, one in RATERS.items()]
    assert {rater.facet for rater in RATERS.values()} <= set(FACETS)
    assert all(one.title for one in RATERS.values())


def test_unknown_raters_are_refused_all_at_once_and_a_study_has_at_least_one() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_study({"name": "x", "raters": ["langage", "fluency", "answer", "fluency"]})
    assert "did you mean 'language'" in str(caught.value)
    assert "did you mean 'answers'" in str(caught.value)
    assert parse_study({"name": "x", "raters": ["fluency", "fluency"]}).raters == ["fluency"]
    with pytest.raises(ConfigError, match="raters"):
        parse_study({"name": "x", "raters": []})


def test_missing_fields_are_missing_not_a_crash() -> None:
    assert rate({"id": "1", "text": FR, "language": "xx"}, "language")["value"] is None
    assert "text" in rate({"id": "1", "language": "fr"}, "language")["reason"]
    assert rate({"id": "1", "text": 3, "language": "fr"}, "fluency")["value"] is None
    for name in RATERS:
        assert rate({}, name)["value"] is None


def test_raters_speak_only_of_what_is_asked() -> None:
    record = {"text": FR, "language": "fr"}
    assert [name for name in RATERS if in_scope(record, name)] == ["language", "language_lcb", "fluency"]
    assert in_scope({**record, "answers": ["Paris"]}, "answers")
    assert in_scope({**record, "constraint": {"name": "short"}}, "constraint")


def test_a_rating_is_bound_to_what_decides_it() -> None:
    record = {"id": "1", "text": FR, "language": "fr", "run": "a"}
    changes: list[dict[str, Any]] = [
        {"text": EN},
        {"reply_language": "en"},
        {"constraint": {"name": "short"}},
        {"answers": ["x"]},
        {"finish_reason": "length"},
        {"unmodified": "x"},
    ]
    assert len({text_fingerprint(record | change) for change in [{}, *changes]}) == len(changes) + 1
    assert text_fingerprint(record | {"run": "b", "extra": 1}) == text_fingerprint(record)


def test_bad_lines_are_reported_with_their_number_and_the_rest_is_rated(tmp_path: Path) -> None:
    source = write(
        tmp_path / "responses.jsonl",
        [
            {"id": "a", "text": FR, "language": "fr"},
            b"\xff\xfe not utf-8\n",
            {"id": "b", "language": "fr"},
            b"\n",
            {"id": "c", "text": EN, "language": "xx"},
            b"[1]\n",
            {"id": "d", "text": "", "language": "fr"},
            {"text": "\u200f\u202e\x00" + FR, "language": "fr"},
            b'{"id": "torn", "text": "La lum',
        ],
    )
    outcome = rate_file(source, tmp_path / "ratings.jsonl", ["language"])
    rated = {record["id"]: record for record in read_records(tmp_path / "ratings.jsonl")}
    assert {name: one["value"] for name, one in rated.items()} == {
        "a": 2,
        "b": None,
        "c": None,
        "d": None,
        "8": 2,
    }
    assert all(rated[name]["reason"] for name in "bcd")
    assert (outcome.made, outcome.missing, outcome.unreadable) == (5, 3, 3)
    assert [problem.split("jsonl:")[1].split(":")[0] for problem in outcome.problems] == ["2", "6", "9"]


def test_many_workers_write_what_one_writes_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [FR, EN, "Bonjour à tous", "", "Je ne sais pas du tout, really."]
    records = [{"id": str(i), "text": f"{texts[i % 5]} {i}", "language": "fr"} for i in range(700)]
    source = write(tmp_path / "responses.jsonl", [*records[:400], b"{\n", *records[400:]])
    monkeypatch.setattr(files, "MIN_FOR_WORKERS", 1)
    monkeypatch.setattr(files, "CHUNK", 10_000)
    raters = ["language", "fluency"]
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    one, two = rate_file(source, alone, raters, workers=1), rate_file(source, together, raters, workers=2)
    assert alone.read_bytes() == together.read_bytes()
    assert one == two
    assert one.made == 1400
    assert rate_file(source, together, raters, workers=2).made == 0
    assert alone.read_bytes() == together.read_bytes()


@pytest.mark.parametrize("size", [1, 100, 1_000, 10**6])
def test_chunks_are_all_lines_in_order_with_their_numbers(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"x" * (i % 7) * 40 + b"\n" for i in range(200)] + [b"no end"]
    source = write(tmp_path / "lines", lines)
    monkeypatch.setattr(files, "CHUNK", size)
    chunks = list(files._chunks(source))
    numbered = [(first + i, line) for first, found in chunks for i, line in enumerate(found)]
    assert numbered == list(enumerate(lines, start=1))
    assert all(len(b"".join(found[:-1])) <= size for _, found in chunks)


def test_an_interrupted_file_is_continued_and_a_changed_response_rated_again(tmp_path: Path) -> None:
    records = [{"id": str(i), "text": f"{FR} {i}", "language": "fr"} for i in range(10)]
    source, target = write(tmp_path / "responses.jsonl", records), tmp_path / "ratings.jsonl"
    rate_file(source, target, ["language"])
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) * 2 // 3])
    assert 0 < rate_file(source, target, ["language"]).made < 10
    assert sorted(target.read_bytes().splitlines()) == sorted(whole.splitlines())
    records[3]["text"] = EN
    write(source, records)
    assert rate_file(source, target, ["language"]).made == 1
    assert [record["value"] for record in read_records(target) if record["id"] == "3"] == [2, 0]


def test_ratings_never_overwrite_responses(tmp_path: Path) -> None:
    source = write(tmp_path / "responses.jsonl", [{"text": FR, "language": "fr"}])
    before = source.read_bytes()
    with pytest.raises(DataError, match="same file"):
        rate_file(source, source, ["language"])
    assert source.read_bytes() == before


def test_the_command_says_what_was_wrong_and_keeps_what_it_rated(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", [{"id": "a", "text": FR, "language": "fr"}, b"{\n"])
    command = [sys.executable, "-m", "xlift", "rate", "r.jsonl", "-o", "out.jsonl", "--raters", "language,fluency"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "r.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 ratings added" in done.stdout
    assert len(read_records(tmp_path / "out.jsonl")) == 2
