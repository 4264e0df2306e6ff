"""What the terminal, JSON and the page say of rated files, and what the exit code says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner, Result

from xlift.cli import app
from xlift.errors import ConfigError
from xlift.intervals import wilson
from xlift.rating import rate
from xlift.rating.overview import overview_text, percent
from xlift.rating.tally import LanguageCounts, Tally, count, figures, merge, wholly_right
from xlift.records import read_records
from xlift.terminal import printable

FR = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
MIXED = f"{FR} This is because blue light travels in shorter and smaller waves."
EN = "The leaves turn yellow because the days become shorter and colder."
TEXTS = [FR, FR, MIXED, EN, "", "Ha!"]


def responses() -> list[dict[str, Any]]:
    return [
        {"id": str(i), "text": text, "language": "fr", "model": "m1" if i < 3 else "m2"} for i, text in enumerate(TEXTS)
    ]


def run(folder: Path, *words: str, records: list[Any] | None = None) -> Result:
    path = folder / "r.jsonl"
    lines = [json.dumps(one) + "\n" for one in (responses() if records is None else records)]
    path.write_text("".join(lines), encoding="utf-8")
    return CliRunner().invoke(app, ["rate", str(path), *words], catch_exceptions=True)


def tallied(records: list[dict[str, Any]], raters: tuple[str, ...] = ("language",)) -> Tally:
    tally: Tally = {}
    for order, record in enumerate(records):
        count(tally, record, [rate(record, rater) for rater in raters], record.get("model", ""), order)
    return tally


def test_every_response_is_in_one_column_and_silence_stays_in_the_denominator(tmp_path: Path) -> None:
    (found,) = json.loads(run(tmp_path, "--json", "--raters", "language").stdout)["results"]
    of = found["language"]
    assert found["responses"] == 6
    assert of["rated"] == 5
    assert of["missing"] == {"too little text that tells the language": 1}
    shares = [of["wholly_right"]["share"], of["mostly_right"], of["wrong"], of["empty"]]
    assert shares == [0.4, 0.2, 0.2, 0.2]
    assert (of["wholly_right"]["low"], of["wholly_right"]["high"]) == wilson(0.4, 5)
    assert of["foreign"] == {"en": 0.4}
    assert [one["id"] for one in of["worst"]] == ["3", "2"]
    assert of["line_pass_rate"] == 3 / 4


def test_the_table_fits_a_terminal_and_has_nothing_that_steers_it(tmp_path: Path) -> None:
    odd = {
        "id": "x\x1b[2J",
        "text": "\x1b]0;title\x07" + EN + "\u202e語" * 90,
        "language": "fr",
        "finish_reason": "length",
    }
    many = [{**one, "language": language} for one in responses() for language in ("fr", "ru", "zh")] * 40
    shown = run(tmp_path, "--raters", "language,fluency", records=[odd, *many]).stdout
    assert max(map(cell_len, shown.splitlines())) <= 80
    assert shown.replace("\n", "").isprintable()
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["fr", "ru", "zh", "all"]


def test_chunks_in_any_order_give_the_same_figures() -> None:
    records, whole, parts = responses(), tallied(responses()), list[Tally]()
    for part in (records[4:], records[:2], records[2:4]):
        parts.append({})
        for record in part:
            count(parts[-1], record, [rate(record, "language")], record["model"], int(record["id"]))
    together: Tally = {}
    for one in parts:
        merge(together, one)
    assert overview_text(together, ["language"], "model") == overview_text(whole, ["language"], "model")


def test_answers_to_one_prompt_are_no_independent_evidence() -> None:
    draw = random.Random(0)
    texts = [draw.choice([FR, EN]) for _ in range(30)]
    apart = tallied([{"id": f"{i}", "text": text, "language": "fr"} for i, text in enumerate(texts * 4)])
    together = tallied([{"id": f"{i % 30}", "text": text, "language": "fr"} for i, text in enumerate(texts * 4)])
    narrow, wide = wholly_right(apart["", "fr"]), wholly_right(together["", "fr"])
    assert narrow.share == wide.share
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)  # type: ignore[operator]


def test_groups_have_tables_of_their_own_and_too_many_are_refused(tmp_path: Path) -> None:
    shown = run(tmp_path, "--by", "model").stdout
    assert [line for line in shown.splitlines() if line.startswith("model: ")] == ["model: m1", "model: m2"]
    many = [{"id": str(i), "text": "Oui.", "language": "fr"} for i in range(300)]
    refused = run(tmp_path, "--by", "id", records=many)
    assert "more than 200 different values" in str(refused.exception)
    assert "choices: file, id" in str(run(tmp_path, "--by", "modell", records=many).exception)


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for folder, text in (("a", FR), ("b", EN)):
        (tmp_path / folder).mkdir()
        line = json.dumps({"text": text, "language": "fr"}) + "\n"
        (tmp_path / folder / "fr.jsonl").write_text(line, encoding="utf-8")
    words = ["rate", str(tmp_path / "a"), str(tmp_path / "b"), "--by", "file", "-o", str(tmp_path / "out.jsonl")]
    shown = CliRunner().invoke(app, words).stdout
    groups = [line for line in shown.splitlines() if line.startswith("file: ")]
    assert groups == ["file: a/fr.jsonl", "file: b/fr.jsonl"]
    assert {one["id"] for one in read_records(tmp_path / "out.jsonl")} == {"a/fr:1", "b/fr:1"}


def test_a_threshold_that_is_missed_is_exit_code_1_and_names_the_language(tmp_path: Path) -> None:
    english = [{"id": f"e{i}", "text": EN, "language": "en"} for i in range(2)]
    missed = run(tmp_path, "--fail-under", "0.95", records=[*responses(), *english])
    assert missed.exit_code == 1
    assert missed.stderr.splitlines()[-1] == "error: fr: 40.0% wholly right, asked: 95.0%"
    assert run(tmp_path, "--fail-under", "0.4").exit_code == 0
    assert run(tmp_path, "--fail-under", "0.95", records=english).exit_code == 0
    both = ("--fail-under", "0.95", "--fail-under", "fr=0.4")
    assert run(tmp_path, *both, records=[*responses(), *english]).exit_code == 0
    absent = run(tmp_path, "--fail-under", "ru=0.4", records=english)
    assert (absent.exit_code, absent.stderr.splitlines()[-1]) == (1, "error: ru: no responses, asked: 40.0%")
    assert isinstance(run(tmp_path, "--fail-under", "2").exception, ConfigError)


def test_where_nothing_could_be_rated_the_reason_is_said_with_exit_code_1(tmp_path: Path) -> None:
    unknown = [{"text": f"tlhIngan maH {i}", "language": "tlh"} for i in range(20)]
    done = run(tmp_path, "-o", str(tmp_path / "out.jsonl"), records=unknown)
    assert done.exit_code == 1
    assert "nothing could be rated: no word lists of tlh (tlh) (20 responses)" in done.stderr
    assert len(read_records(tmp_path / "out.jsonl")) == 40
    silent = run(tmp_path, records=[{"text": "", "language": "fr"}])
    assert "all replies are empty" in silent.stderr
    assert "no responses in it" in str(run(tmp_path, records=[]).exception)


def test_without_a_file_for_ratings_nothing_is_written_and_with_one_they_are_as_from_python(tmp_path: Path) -> None:
    from xlift.rating.files import rate_file

    run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["r.jsonl"]
    first = run(tmp_path, "-o", str(tmp_path / "out.jsonl"))
    again = run(tmp_path, "-o", str(tmp_path / "out.jsonl"))
    rate_file(tmp_path / "r.jsonl", tmp_path / "python.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "python.jsonl").read_bytes()
    assert "12 ratings added" in first.stdout
    assert "0 ratings added" in again.stdout
    assert first.stdout.split("\n\n")[0] == again.stdout.split("\n\n")[0]


def test_a_reply_that_the_limit_cut_is_counted_and_not_blamed() -> None:
    cut = [{"id": str(i), "text": FR[:40], "language": "fr", "finish_reason": "length"} for i in range(3)]
    cell = tallied(cut, ("language", "fluency"))["", "fr"]
    shown = figures(cell, ["language", "fluency"])
    assert (shown["cut"], shown["empty"]) == (3, 0)
    assert shown["fluency"]["best"]["share"] == 1.0


def test_a_reply_of_nothing_but_reasoning_is_empty() -> None:
    record = {
        "id": "1",
        "text": "<think>The user asks why the sky is blue",
        "language": "fr",
        "finish_reason": "length",
    }
    cell = tallied([record])["", "fr"]
    assert (cell.empty, cell.cut, wholly_right(cell).share, dict(cell.missing)) == (1, 1, 0.0, {})


def test_a_page_never_takes_the_place_of_responses_or_a_folder(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "r.jsonl"):
        assert "not a file for a page" in str(run(tmp_path, "--html", str(place)).exception)


@pytest.mark.parametrize(("share", "text"), [(None, "–"), (0.0, "0%"), (0.001, "<1%"), (0.999, ">99%"), (1.0, "100%")])
def test_no_share_is_rounded_to_none_or_all(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_cells_without_responses_have_no_share_instead_of_none_right() -> None:
    assert wholly_right(LanguageCounts()).share is None
    assert printable("a\tb\r\nc\x07") == "a b c "


def test_the_page_shows_every_response_beside_those_of_other_models(tmp_path: Path, browser: Any) -> None:
    page = tmp_path / "page.html"
    other = [{**one, "model": "m3", "text": EN} for one in responses()]
    done = run(tmp_path, "--html", str(page), "--by", "model", records=[*responses(), *other, {"text": None}])
    assert done.exit_code == 0, done.stderr
    tab = browser.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: pytest.fail(str(error)))
    tab.goto(page.as_uri())
    tab.wait_for_selector("#cards[aria-busy=false] article")
    assert tab.text_content("#count") == "6 of 6 prompts"
    assert tab.locator("article >> nth=3 >> .answer").all_text_contents() == [EN, EN]
    assert tab.locator("mark").first.get_attribute("data-language") == "en"
    assert "1 without a text or a language" in str(tab.text_content("header.top"))
    assert asked == [page.as_uri()]
    tab.close()
