"""A judge examined on published pairs: formats as they are published, both orders, accuracy by language and subset."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from judge_server import Act, serving
from test_judging import QUICK, judge_at

from xlift.errors import ConfigError, DataError
from xlift.judging.exams import exam_of, exam_pairs, marks
from xlift.judging.judges import examine_judge
from xlift.judging.pairs import compare_pairs, current_comparisons


def item(number: int, language: str, subset: str = "chat") -> dict[str, Any]:
    texts = {"prompt": f"Question {number}?", "chosen": f"good {number}", "rejected": f"bad {number}"}
    return {**texts, "language": language, "subset": subset, "chosen_model": "a", "rejected_model": "b", "id": number}


def mm_eval(folder: Path) -> Path:
    """As its card has it: one file, languages by code, an index that pandas left behind."""
    rows = [item(i, code, subset) for i in range(4) for code in ("fr", "ko") for subset in ("chat", "reasoning")]
    (folder / "data").mkdir(parents=True)
    table = pl.DataFrame([row | {"__index_level_0__": i} for i, row in enumerate(rows)])
    table.write_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def reward_bench(folder: Path) -> Path:
    """As its card and the notebook that has uploaded it have it: a folder a language, with `source` and `category` in
    place of `subset`, and older files beside the test split; of English those files alone."""
    for code in ("fra_Latn", "zho_Hans"):
        (folder / code).mkdir(parents=True)
        rows = [item(i, code) | {"source": "alpacaeval-easy", "category": "Chat"} for i in range(3)]
        rows = [{name: value for name, value in row.items() if name != "subset"} for row in rows]
        pl.DataFrame(rows).write_parquet(folder / code / "test-00000-of-00001.parquet")
        (folder / code / "raw.json").write_text(json.dumps([item(99, code)]), encoding="utf-8")
    (folder / "eng_Latn").mkdir()
    (folder / "eng_Latn" / "filtered.json").write_text(json.dumps([item(99, "eng_Latn")]), encoding="utf-8")
    (folder / "translation").mkdir()
    pair = pl.DataFrame([item(7, "de-en", "translation-easy")])
    pair.write_parquet(folder / "translation" / "test-00000-of-00001.parquet")
    return folder


def test_both_sets_are_read_as_they_are_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = exam_pairs(f"mm:{mm_eval(tmp_path / 'mm')}")
    assert len(pairs) == 16
    first, second = pairs[0]
    assert (first["language"], first["subset"], first["text"], second["text"]) == ("fr", "chat", "good 0", "bad 0")
    # What has one number in two languages is not one item.
    assert len({pair[0]["parallel_id"] for pair in pairs}) == 16
    assert first["messages"] == second["messages"] == [{"role": "user", "content": "Question 0?"}]
    found = exam_pairs(f"mrewardbench:{reward_bench(tmp_path / 'rb')}")
    assert [pair[0]["language"] for pair in found] == ["fr"] * 3 + ["zh"] * 3
    assert {pair[0]["subset"] for pair in found} == {"Chat"}
    assert "left out: pairs in no language that is known: 'de-en' (1)" in capsys.readouterr().err
    # Translations of one item are one draw of the bootstrap.
    assert len({pair[0]["parallel_id"] for pair in found}) == 3


def test_some_languages_and_a_number_of_pairs_can_be_chosen(tmp_path: Path) -> None:
    source = f"mrewardbench:{reward_bench(tmp_path)}"
    drawn = exam_pairs(source, size=2)
    assert [pair[0]["language"] for pair in drawn] == ["fr", "fr", "zh", "zh"]
    assert {pair[0]["parallel_id"] for pair in drawn[:2]} == {pair[0]["parallel_id"] for pair in drawn[2:]}
    assert {pair[0]["language"] for pair in exam_pairs(source, ["zh"])} == {"zh"}
    with pytest.raises(ConfigError, match="has no 'ru'"):
        exam_pairs(source, ["ru"])


def test_what_is_no_exam_or_no_pair_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="begins with mm: or mrewardbench:"):
        exam_pairs(str(tmp_path))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "language": "fr"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: rejected wanted, found prompt, chosen, language"):
        exam_pairs(f"mm:{tmp_path / 'pairs.jsonl'}")


def test_pairs_in_no_known_language_alone_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(json.dumps(item(1, "de-en")), encoding="utf-8")
    with pytest.raises(DataError, match=r"no language that is known: 'de-en' \(1\)"):
        exam_pairs(f"mm:{tmp_path / 'pairs.jsonl'}")


def good_in_french(body: dict[str, Any], seen: int) -> Act:
    """Knows the better answer in French; elsewhere takes the first that it is shown."""
    asked = body["messages"][1]["content"]
    shown = re.findall(r"<<<(?:FIRST|SECOND) \w+>>>\n(.*?)\n<<<END", asked, re.DOTALL)
    second = "French" in asked and "good" in shown[1]
    return Act(json.dumps({"better": "second" if second else "first"}))


def test_accuracy_wants_both_orders_and_a_judge_of_places_has_none(tmp_path: Path) -> None:
    pairs = exam_pairs(f"mm:{mm_eval(tmp_path / 'mm')}")
    with serving(good_in_french) as server:
        judge = judge_at(server)
        compare_pairs(pairs, judge, tmp_path / "p.jsonl", tmp_path / "l.jsonl", QUICK)
        records = current_comparisons(tmp_path / "p.jsonl", pairs, judge)
        found = {(one.language, one.subset): one for one in marks(pairs, records)}
        assert found["fr", "all"][2:] == (8, 0, 0, 0)
        assert found["ko", "all"][2:] == (0, 8, 0, 0)
        assert found["all", "reasoning"][2:] == (4, 4, 0, 0)
        text, data = exam_of(pairs, records)
        assert max(map(len, text.splitlines())) <= 80
        assert re.search(r"ko +0% \[0–32\] +8 +0 +0 +100%", text)
        assert data["marks"][0]["accuracy"] == 0.5
        sent = server.state.requests
        told = examine_judge(judge, tmp_path / "kept", f"mm:{tmp_path / 'mm'}", "fr", 2, dry=True)
        assert told.data["calls"] == 4
        assert server.state.requests == sent
