"""Rating as a whole: records in, ratings out, whole files of them."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from warm import run_xlift

from xlift.errors import ConfigError, DataError, UserError
from xlift.rating import RATERS, Rater, files, in_scope, rate, text_fingerprint
from xlift.rating.files import Job, RatedFiles, rate_file, rate_files
from xlift.rating.foreign import Reading
from xlift.records import FACETS, read_jsonl, read_records
from xlift.study.loading import parse_study

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
        "d": None,
        "8": 2,
    }
    assert all(rated[name]["reason"] for name in "bd")
    assert (outcome.made, outcome.missing, outcome.unreadable) == (4, 2, 4)
    assert [problem.split("jsonl:")[1].split(":")[0] for problem in outcome.problems] == ["2", "5", "6", "9"]


def test_many_workers_write_what_one_writes_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [FR, EN, "Bonjour à tous", "", "Je ne sais pas du tout, really."]
    records = [{"id": str(i), "text": f"{texts[i % 5]} {i}", "language": "fr"} for i in range(700)]
    source = write(tmp_path / "responses.jsonl", [*records[:400], b"{\n", *records[400:]])
    monkeypatch.setattr(files, "MIN_FOR_WORKERS", 1)
    monkeypatch.setattr(files, "CHUNK_BYTES", 10_000)
    raters = ["language", "fluency"]
    alone, together = tmp_path / "alone.jsonl", tmp_path / "together.jsonl"
    job = Job(raters, raters, keep=10_000)
    one, two = (rate_files([source], target, job, workers=n) for n, target in enumerate((alone, together), start=1))
    assert alone.read_bytes() == together.read_bytes()
    assert one == two
    assert (one.counts.made, one.tally["", "fr"].responses) == (1400, 700)
    assert rate_file(source, together, raters, workers=2).made == 0
    assert alone.read_bytes() == together.read_bytes()


def test_a_process_that_the_system_ends_is_told_and_what_is_rated_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "r.jsonl", [{"id": str(i), "text": f"{FR} {i}", "language": "fr"} for i in range(400)])
    monkeypatch.setattr(files, "MIN_FOR_WORKERS", 1)
    monkeypatch.setattr(files, "CHUNK_BYTES", 500)
    plain = files._chunks

    def one_is_killed(*given: Any) -> Any:
        for number, chunk in enumerate(plain(*given)):
            yield chunk
            if number == 12:
                multiprocessing.active_children()[0].kill()

    monkeypatch.setattr(files, "_chunks", one_is_killed)
    target = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match="ended from outside"):
        rate_file(source, target, ["language"], workers=2)
    monkeypatch.setattr(files, "_chunks", plain)
    rate_file(source, target, ["language"], workers=1)
    assert sorted(int(one["id"]) for _, one in read_jsonl(target)) == list(range(400))


@pytest.mark.parametrize("size", [1, 100, 1_000, 10**6])
def test_chunks_are_all_lines_in_order_with_their_numbers(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"x" * (i % 7) * 40 + b"\n" for i in range(200)] + [b"no end"]
    source = write(tmp_path / "lines.jsonl", lines)
    monkeypatch.setattr(files, "CHUNK_BYTES", size)
    chunks = list(files._chunks(source, source.name, Reading("records of xlift", {}, {}), 0))
    numbered = [(chunk.first + i, line) for chunk in chunks for i, line in enumerate(chunk.rows)]
    assert numbered == list(enumerate(lines, start=1))
    assert all(len(b"".join(chunk.rows[:-1])) <= size for chunk in chunks)


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


def test_the_same_answer_of_another_run_or_step_has_ratings_of_its_own(tmp_path: Path) -> None:
    base = {"id": "1", "text": FR, "language": "fr"}
    owners: list[dict[str, Any]] = [{"run": "a", "step": 1}, {"run": "b", "step": 1}, {"run": "a", "step": 2}, {}]
    source = write(tmp_path / "responses.jsonl", [base | owner for owner in owners])
    target = tmp_path / "ratings.jsonl"
    assert rate_file(source, target, ["language"]).made == 4
    assert [(one["run"], one["step"]) for one in read_records(target)] == [("a", 1), ("b", 1), ("a", 2), ("", 0)]
    assert rate_file(source, target, ["language"]).made == 0
    write(source, [base | {"run": "c", "step": 1}])
    assert rate_file(source, target, ["language"]).made == 1


ODD = [
    None,
    True,
    0,
    -3,
    2.5,
    float("nan"),
    float("inf"),
    10**400,
    "",
    "final",
    "4",
    [],
    [1],
    {},
    {"a": [None]},
    "\ud800",
]
FIELDS = (
    *("id", "run", "step", "text", "language", "reply_language", "finish_reason", "messages", "prompt"),
    *("constraint", "unmodified", "answers", "answers_any", "wrong", "reference", "detail"),
)


def test_no_value_of_any_field_stops_the_rest(tmp_path: Path) -> None:
    good = {"text": FR, "language": "fr", "constraint": {"name": "short"}, "unmodified": FR * 2, "answers": ["Paris"]}
    odd = [good | {field: value} for field in FIELDS for value in ODD]
    odd.append(good | {"constraint": {"name": "length", "max_words": "x"}})
    huge = json.dumps(good | {"step": 0}).replace('"step": 0', '"step": ' + "9" * 5000).encode() + b"\n"
    deep = json.dumps(good | {"id": 0}).replace('"id": 0', '"id": ' + "[" * 900 + "]" * 900).encode() + b"\n"
    source = write(tmp_path / "r.jsonl", [*odd, huge, deep, b"[" * 100_000 + b"\n", {**good, "id": "last"}])
    target = tmp_path / "ratings.jsonl"
    counts = rate_file(source, target, list(RATERS))
    made = read_records(target)
    assert {one["rater"] for one in made if one["id"] == "last"} == set(RATERS)
    assert all(one["value"] is not None or one["reason"] for one in made)
    wrong = {problem.split("jsonl:")[1].split(":")[0] for problem in counts.problems}
    # Of all values only an odd step makes a response nobody's; every other line has its ratings.
    steps = {str(number) for number, record in enumerate(odd, start=1) if record.get("step", 0) in ODD[3:8] + ODD[9:10]}
    assert steps <= wrong
    assert counts.unreadable == len(wrong)
    assert rate_file(source, target, list(RATERS)).made == 0


def test_two_at_once_cannot_write_the_same_ratings(tmp_path: Path) -> None:
    source = write(tmp_path / "responses.jsonl", [{"text": FR, "language": "fr"}])
    target = tmp_path / "ratings.jsonl"
    code = f"""
import sys
from collections import Counter
from pathlib import Path
from xlift.rating import files
files._count_lines = lambda path: 1
real = files._already_rated
def slow(target):
    print("holds", flush=True)
    sys.stdin.readline()
    return real(target)
files._already_rated = slow
print(files.rate_file(Path({str(source)!r}), Path({str(target)!r}), ["language"]).made)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True) as first:
        assert first.stdout
        assert first.stdin
        assert first.stdout.readline() == "holds\n"
        with pytest.raises(ConfigError, match="another xlift process is writing"):
            rate_file(source, target, ["language"])
        assert first.communicate("\n")[0] == "1\n"
    assert rate_file(source, target, ["language"]).made == 0


@pytest.mark.parametrize(
    "content", [b"my notes, without an end of line", b"my notes\n", b'{"id": "1", "text": "x"}', b"["]
)
def test_ratings_never_go_into_a_file_of_something_else(content: bytes, tmp_path: Path) -> None:
    source = write(tmp_path / "responses.jsonl", [{"text": FR, "language": "fr"}])
    target = tmp_path / "notes"
    target.write_bytes(content)
    with pytest.raises(DataError, match="something else than ratings"):
        rate_file(source, target, ["language"])
    assert target.read_bytes() == content
    with pytest.raises(DataError, match="not a file"):
        rate_file(source, tmp_path, ["language"])


@pytest.mark.parametrize("kept", range(0, 300, 23))
def test_a_first_rating_cut_anywhere_is_made_again(kept: int, tmp_path: Path) -> None:
    source = write(tmp_path / "responses.jsonl", [{"text": FR, "language": "fr"}])
    target = tmp_path / "ratings.jsonl"
    rate_file(source, target, ["language"])
    whole = target.read_bytes()
    target.write_bytes(whole[: min(kept, len(whole) - 2)])
    assert rate_file(source, target, ["language"]).made == 1
    assert target.read_bytes() == whole


def test_the_command_says_what_was_wrong_and_keeps_what_it_rated(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", [{"id": "a", "text": FR, "language": "fr"}, b"{\n"])
    done = run_xlift("rate", "r.jsonl", "-o", "out.jsonl", "--raters", "language,fluency", folder=tmp_path)
    assert done.returncode == 2
    assert "r.jsonl:2" in done.stderr
    assert "Traceback" not in done.stderr
    assert "2 ratings added" in done.stdout
    assert len(read_records(tmp_path / "out.jsonl")) == 2


def test_an_unknown_rater_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match="did you mean 'language'"):
        rate({"text": "Bonjour.", "language": "fr"}, "langage")


@pytest.mark.parametrize(("names", "least"), [(5000, 1000), (1, 2000)], ids=["many requests", "one for all"])
def test_of_more_responses_than_are_kept_whole_requests_from_all_over_are(names: int, least: int) -> None:
    """Three models' responses to each request, in pieces as they come from workers."""
    found, every = RatedFiles(), 3 * 5000
    rows = [(f"m{number % 3}", {"id": f"p{number // 3 % names}", "place": number}, []) for number in range(every)]
    for start in range(0, every, 250):
        found.add(RatedFiles(kept=rows[start : start + 250]), 2000)
    kept = [(record["id"], name) for name, record, _ in found.kept]
    assert least <= len(kept) <= 2000
    assert found.left_out == every - len(kept)
    if names > 1:
        assert set(Counter(id for id, _ in kept).values()) == {3}
        assert {record["place"] * 10 // every for _, record, _ in found.kept} == set(range(10))
