"""What a reader sees first, what runs cost, kinds of prompts, several studies side by side, and the live page."""

from __future__ import annotations

import csv
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from report_fixtures import GOOD, STEP, chances, made_study, rated_by, rated_study
from warm import run_xlift

from xlift.disk import write_jsonl
from xlift.intervals import wilson
from xlift.records import read_records
from xlift.report.breakdown import KindRow, breakdown_table, widest_gap
from xlift.report.facts import cost_table, data_table
from xlift.report.figures import FAMILIES, PALETTE, _grouped
from xlift.report.gallery import first_columns, telling_order
from xlift.report.live import server_of, state_of
from xlift.report.numbers import findings_of
from xlift.report.overall import overall_rows
from xlift.report.reading import material_of
from xlift.report.summary import outdated_text, summary_points, unknown_text
from xlift.workspace import find_study

LANGUAGE = ("language", "language")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two tuned runs and the untuned model, in three languages, with two kinds of prompts."""
    prompts = {"languages": ["en", "fr", "ru"], "test": {"source": ["builtin:open", "builtin:facts"], "size": 8}}
    return made_study(
        tmp_path_factory.mktemp("more") / "study", lambda _, prompt: GOOD[prompt["language"]], prompts=prompts
    )


def lost_russian(run: Any, prompt: Any) -> float:
    high = not run.config.untuned and run.config.learning_rate > 5e-4
    return 0.0 if high and prompt["language"] == "ru" else 2.0


def test_the_browser_opens_on_what_tuning_has_taken_and_keeps_every_prompt(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: lost_russian})
    order = telling_order(material)
    assert sorted(order) == list(range(len(material.prompts)))
    first = [material.prompts[place] for place in order[:8]]
    assert {(one["language"], one["split"]) for one in first} == {("ru", "test")}
    assert order == telling_order(rated_by(study, {LANGUAGE: lost_russian}))


def test_ratings_of_an_older_version_are_told_with_what_makes_them_anew(tmp_path: Path) -> None:
    folder = rated_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]])
    assert outdated_text(material_of(folder)) == ""
    for path in folder.path.rglob("step-*.fluency.jsonl"):
        write_jsonl(path, [record | {"signature": "fluency v0"} for record in map(dict, read_records(path))])
    told = unknown_text(material := material_of(folder), findings_of(material))
    assert told.endswith("an older version has made count no more; xlift rate STUDY makes them anew.")
    assert "Ratings by fluency that" in told


def test_a_run_that_is_still_at_work_is_told_with_how_far_it_is(tmp_path: Path) -> None:
    folder = rated_study(tmp_path / "study", lambda _, prompt: GOOD[prompt["language"]])

    def told() -> str:
        return unknown_text(material := material_of(folder), findings_of(material))

    assert "Answered in part" not in told()
    path = (run := folder.runs[-1]).responses(STEP)
    write_jsonl(path, list(read_records(path))[:5])
    assert f"Answered in part: {run.label} (5 of 12 prompts)." in told()


def test_failures_of_the_checkpoints_that_are_shown_come_before_those_of_others(study: Any) -> None:
    french = [
        prompt["id"] for prompt in rated_by(study, {LANGUAGE: lost_russian}).prompts if prompt["language"] == "fr"
    ]
    own = {1e-4: set(french[::2]), 1e-3: set(french[1::2])}

    def value(run: Any, prompt: Any) -> float:
        return 0.0 if not run.config.untuned and prompt["id"] in own[run.config.learning_rate] else 2.0

    material = rated_by(study, {LANGUAGE: value})
    for place, one in enumerate(material.answered[1:], start=1):
        order = [material.prompts[number] for number in telling_order(material, [place])]
        tested = [prompt["id"] for prompt in order if prompt["language"] == "fr" and prompt["split"] == "test"]
        failed = own[one.run.config.learning_rate] & set(tested)
        assert set(tested[: len(failed)]) == failed


def test_languages_take_turns_among_equal_failures(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: lambda run, prompt: 0.0 if prompt["language"] != "en" else 2.0})
    first = [material.prompts[place]["language"] for place in telling_order(material)[:6]]
    assert first[::2] == [first[0]] * 3
    assert set(first) == {"fr", "ru"}


def test_the_untuned_the_best_and_the_worst_run_stand_side_by_side_at_first(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: lost_russian})
    assert first_columns(material, overall_rows(material)) == [0, 1, 2]


def test_what_was_not_measured_is_a_dash_and_not_nothing(study: Any) -> None:
    assert cost_table(rated_by(study, {LANGUAGE: lost_russian})) is None
    first, second = (run for run in study.runs if run.trains)
    first.set_stage("train", "done", examples=9, heldout=1, too_long=0, seconds=90.0, peak_memory_bytes=2_000_000_000)
    try:
        table = cost_table(rated_by(study, {LANGUAGE: lost_russian}))
        assert table is not None
        lines = {line[0].value: [cell.value for cell in line[1:3]] for line in table.lines}
        assert lines[first.label] == ["1 min 30 s", "2.0 GB"]
        assert lines[second.label] == [None, None]
        data = data_table(rated_by(study, {LANGUAGE: lost_russian}))
        assert data is not None
        assert "Apache-2.0" in str(data.lines)
    finally:
        first.update_manifest(stages={})


def test_prompts_are_told_by_kind(study: Any) -> None:
    def value(run: Any, prompt: Any) -> float:
        return 0.0 if prompt.get("answers") else 2.0

    material = rated_by(study, {LANGUAGE: value})
    found = findings_of(material)
    table = breakdown_table(material, found.kinds, material.scales[0])
    assert table is not None
    shares = {(row["prompt_kind"], row["mean"]) for row in table.records}
    assert {mean for _, mean in shares} == {0.0, 1.0}
    assert len({kind for kind, _ in shares}) == len(shares) > 1


def kind(run: str, name: str, share: float, count: int) -> KindRow:
    return KindRow(run, "language", "language", name, share, *wilson(share, count), count, 0)


def test_the_summary_says_which_kind_of_prompt_is_answered_worse(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: lost_russian})
    found = findings_of(material)._replace(kinds=[kind("base", "chat", 0.9, 200), kind("base", "facts", 0.1, 200)])
    (told,) = (point.text for point in summary_points(material, found) if point.target == "table-kinds-language")
    assert told.startswith('What is asked matters: base is +80 points [+73, +85] better on prompts of the kind "chat" ')


def test_the_widest_gap_between_kinds_is_that_of_newcombe_and_only_where_chance_does_not_explain_it() -> None:
    # Newcombe 1998, table II, method 10: 56/70 against 48/80 is .2 [.0524, .3339].
    told = widest_gap([kind("a", "chat", 56 / 70, 70), kind("a", "facts", 48 / 80, 80)], 0.95)
    assert told is not None
    assert (told.more, told.less) == ("chat", "facts")
    assert told.points == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert widest_gap([kind("a", "chat", 0.5, 70), kind("a", "facts", 0.5, 80)], 0.95) is None
    assert widest_gap([kind("a", "chat", 0.9, 70), kind("b", "facts", 0.1, 80)], 0.95) is None
    many = [kind(f"run {number}", name, 0.5, 70) for number in range(30) for name in ("chat", "facts")]
    assert widest_gap([*many, kind("a", "chat", 56 / 70, 70), kind("a", "facts", 48 / 80, 80)], 0.95) is None


def test_each_point_of_the_summary_leads_to_what_shows_it(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: chances(lambda run, prompt: lost_russian(run, prompt) / 2.2, 1)})
    points = summary_points(material, findings_of(material))
    assert [point.target for point in points[:3]] == ["", "figure-heat-map-language", "table-overall-language"]
    assert "Overall (mean of 2 other languages), " in points[2].text


def test_no_interval_of_a_difference_of_shares_leaves_what_is_possible(study: Any) -> None:
    material = rated_by(study, {LANGUAGE: chances(lambda run, prompt: 0.05 if run.config.untuned else 0.95, 3)})
    rows = findings_of(material).versus
    assert rows
    assert all(-1 <= (row.low or 0) <= (row.high or 0) <= 1 for row in rows)


def test_more_languages_than_colours_are_told_apart_by_colour_and_shape() -> None:
    names = [name for family in FAMILIES for name in sorted(family)]
    looks = _grouped(names)
    assert len(set(looks)) == len(names)
    assert max(colour for colour, _ in looks) < len(PALETTE)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two studies beside one another, rated; the second asks fewer prompts."""
    folder = tmp_path_factory.mktemp("two")
    for name, size in (("a", 4), ("b", 3)):
        settings: dict[str, Any] = {"prompts": {"test": {"size": size}}}
        rated_study(folder / name, lambda _, prompt: GOOD[prompt["language"]], **settings)
    return folder


def test_several_studies_are_one_page_that_says_what_they_do_not_share(two: Path) -> None:
    done = run_xlift("report", "a", "b", "--out", "both", folder=two)
    assert (done.returncode, done.stdout) == (0, "report: both/index.html\n"), done.stderr
    page = (two / "both" / "index.html").read_text(encoding="utf-8")
    assert "The studies do not have the same test prompts" in page
    assert "../a/report/index.html" in page
    rows = list(csv.DictReader((two / "both" / "tables" / "studies-language.csv").open(encoding="utf-8")))
    assert len(rows) == 6
    assert {row["study"] for row in rows} == {"made (a)", "made (b)"}
    refused = run_xlift("report", "a", "b", folder=two)
    assert (refused.returncode, "--out DIR" in refused.stderr) == (2, True)


@pytest.fixture
def live(two: Path) -> Iterator[str]:
    with server_of(partial(find_study, two / "a"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def get(address: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as answer:
        return str(answer.read().decode("utf-8"))


def test_the_live_page_shows_what_has_come_since_and_writes_nothing(two: Path, live: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in (two / "a").rglob("*")}
    page, state = get(live + "/"), get(live + "/state")
    assert "Answers wholly in the user" in page
    assert f'seen = "{state}"' in page  # what comes while the page is made is news to it, too
    assert {path: path.stat().st_mtime_ns for path in (two / "a").rglob("*")} == before
    file = next((two / "a" / "runs").glob("*/ratings/*.language.jsonl"))
    ratings = list(read_records(file))
    write_jsonl(file, ratings[:-2])
    try:
        assert get(live + "/state") != state
        assert get(live + "/") != page
    finally:
        write_jsonl(file, ratings)


def test_the_live_page_is_for_this_machine_alone_and_reads_only(live: str) -> None:
    for path, headers in (("/study.yaml", {}), ("/../a/study.yaml", {}), ("/", {"Host": "evil.example:80"})):
        with pytest.raises(urllib.error.HTTPError):
            get(live + path, **headers)
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(urllib.request.Request(live + "/", data=b"x", method="POST"))


def test_a_study_that_cannot_be_read_now_is_told_and_the_page_comes_back(
    two: Path, live: str, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = two / "a" / "study.yaml"
    whole = settings.read_bytes()
    settings.write_bytes(whole[: len(whole) // 2] + b"\xff{")
    try:
        with pytest.raises(urllib.error.HTTPError, match="the study cannot be read now"):
            get(live + "/")
    finally:
        settings.write_bytes(whole)
    assert "Answers wholly in the user" in get(live + "/")
    host, port = live.removeprefix("http://").split(":")
    for _ in range(3):  # gone before the answer is written
        with socket.create_connection((host, int(port))) as gone:
            gone.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert "Answers wholly in the user" in get(live + "/")
    assert "Traceback" not in capfd.readouterr().err


ODD = [
    b"GET / HTTP/1.1\r\nHo",
    b"GET /state HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n",
    b"GET /%00\xff/../.. HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\nx",
    b"PUT /state HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    b"\x16\x03\x01\x02\x00" * 9,
    b"\r\n\r\n",
    b"GET /\r\n\r\n",
    b"",
]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_odd_and_half_requests_are_no_error_of_the_live_page(
    live: str, capfd: pytest.CaptureFixture[str], reset: bool
) -> None:
    host, port = live.removeprefix("http://").split(":")
    for asked in ODD:
        with socket.create_connection((host, int(port))) as client, suppress(OSError):
            client.sendall(asked)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                continue
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(partial(client.recv, 65_536), b""))
            assert not answer.startswith(b"HTTP/1.0 200"), asked[:40]
    assert "Answers wholly in the user" in get(live + "/")
    assert capfd.readouterr().err == ""


def test_many_readers_of_the_live_page_at_once_are_all_given_it(live: str) -> None:
    whole = len(get(live + "/"))
    with ThreadPoolExecutor(200) as readers:
        pages = list(readers.map(lambda _: len(get(live + "/")), range(200)))
    assert set(pages) == {whole}


def test_the_state_of_a_study_is_still_while_nothing_is_written(two: Path) -> None:
    assert state_of(two / "a") == state_of(two / "a") != state_of(two / "b")
