"""What people rate and what comes of it: sampling, the rule about fluency 0, export and import, on both databases."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from annotation_fixtures import (
    RUNS,
    Visitor,
    link_in,
    open_campaign,
    records_of,
    response_file,
    responses,
    serving,
)

from xlift.annotation import campaign as campaigns
from xlift.annotation import database as db
from xlift.annotation import sampling, transfer
from xlift.annotation.campaign import Plan
from xlift.checkpoint import written_prompts
from xlift.disk import write_jsonl
from xlift.errors import ConfigError, DataError
from xlift.rating import text_fingerprint
from xlift.records import read_jsonl, response_signature
from xlift.stages import prepare
from xlift.study.loading import parse_study

GOOD = dict.fromkeys(db.ASKED_FACETS, 2)


# Sampling and assignment


def test_every_run_and_language_is_sampled_on_the_same_prompts() -> None:
    chosen = sampling.sample(responses(["en", "fr"], 20), 5, None, seed=3)
    cells = defaultdict(set)
    for one in chosen:
        cells[one["run"], one["language"]].add(one["parallel_id"])
    assert len(cells) == 4
    assert len({frozenset(prompts) for prompts in cells.values()}) == 1
    assert {len(prompts) for prompts in cells.values()} == {5}
    assert sampling.sample(responses(["en", "fr"], 20), 5, None, seed=4) != chosen


def test_a_larger_sample_holds_the_smaller_one_and_order_does_not_matter() -> None:
    pool = responses(["en", "fr"], 20)
    shuffled = random.Random(0).sample(pool, len(pool))
    key = lambda one: (one["run"], one["id"])  # noqa: E731
    small = {key(one) for one in sampling.sample(pool, 4, None, 0)}
    assert small < {key(one) for one in sampling.sample(shuffled, 9, None, 0)}
    assert small == {key(one) for one in sampling.sample(shuffled, 4, None, 0)}


def test_a_total_is_spread_evenly_over_runs_and_languages() -> None:
    chosen = sampling.sample(responses(["en", "fr"], 20), None, 10, seed=0)
    assert len(chosen) == 10
    assert set(Counter((one["run"], one["language"]) for one in chosen).values()) <= {2, 3}


def test_each_response_gets_its_readers_in_balance_and_none_who_cannot_read_it() -> None:
    tasks = [sampling.Task(f"t{n}", frozenset(["fr" if n % 3 else "ru"]), False) for n in range(60)]
    readers = {1: frozenset(["fr"]), 2: frozenset(["fr", "ru"]), 3: frozenset(["ru", "fr"]), 4: frozenset(["fr"])}
    pairs = sampling.assign(tasks, readers, [], 2, seed=0)
    assert set(Counter(task for _, task in pairs).values()) == {2}
    assert len(set(pairs)) == len(pairs)
    languages = {task.id: task.languages for task in tasks}
    assert all(languages[task] <= readers[who] for who, task in pairs)
    load = Counter(who for who, _ in pairs)
    assert max(load.values()) - min(load.values()) <= 1
    assert sampling.assign(tasks, readers, pairs, 2, seed=0) == []


def test_a_newcomer_takes_over_what_nobody_has_opened(tmp_path: Path, url: str) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 10)), url)
    campaigns.add(campaign, "Ana", ["fr"], Plan(per_response=1))
    with campaign.database.write.begin() as connection:
        ana = db.annotator_named(connection, "Ana")
        begun = [one.task for one in db.own_tasks(connection, ana.id)][:3]
        for task in begun:
            db.mark_opened(connection, ana.id, task)
    campaigns.add(campaign, "Ben", ["fr"])
    with campaign.database.read.begin() as connection:
        own = {
            n: [o.task for o in db.own_tasks(connection, db.annotator_named(connection, n).id)] for n in ("Ana", "Ben")
        }
    assert own["Ana"][:3] == begun
    assert len(own["Ana"]) == len(own["Ben"]) == 10
    assert not set(own["Ana"]) & set(own["Ben"])


def test_order_is_shuffled_by_annotator_and_seed() -> None:
    tasks = [f"t{n}" for n in range(30)]
    orders = [sampling.in_order([], tasks, who, seed) for who, seed in ((1, 0), (2, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 3
    assert orders[0] == sampling.in_order([], reversed(tasks), 1, 0)
    assert sampling.in_order(["t7", "t3"], ["t1"], 1, 0)[:2] == ["t7", "t3"]


def test_a_response_in_another_language_needs_a_reader_of_both(tmp_path: Path, url: str) -> None:
    records = [{**one, "reply_language": "ru"} for one in responses(["fr"], 4)]
    campaign = open_campaign(response_file(tmp_path, records), url)
    assert campaigns.add(campaign, "Ana", ["fr"]).splitlines()[2].startswith("0 responses")
    assert campaigns.add(campaign, "Ben", ["ru", "fr"]).splitlines()[2].startswith("8 responses")


def test_mistakes_on_the_command_line_are_told_together_and_change_nothing(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 2)))
    with pytest.raises(ConfigError) as caught:
        campaigns.add(campaign, "", ["xx", "yy"])
    assert len(caught.value.problems) == 3
    campaigns.add(campaign, "Ana", ["fr"], Plan(seed=1))
    with pytest.raises(ConfigError, match="there already"):
        campaigns.add(campaign, "Ana", ["fr"])
    with pytest.raises(ConfigError, match="begun with seed 1"):
        campaigns.add(campaign, "Ben", ["fr"], Plan(seed=2))
    with pytest.raises(ConfigError, match="there are: Ana"):
        campaigns.revoke(campaign, "Anna")
    with pytest.raises(ConfigError, match="database URL"):
        open_campaign(campaign.path, "not a url")


def test_every_unusable_line_of_responses_and_controls_is_told(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"id": "a", "language": "fr", "text": "x"}] * 2 + [
        {"language": "xx", "text": 3, "step": "one"}
    ]
    with pytest.raises(DataError) as caught:
        sampling.file_responses(response_file(tmp_path, bad))
    assert [re.search(r":(\d+):", problem)[1] for problem in caught.value.problems] == ["2", "3", "3", "3"]  # type: ignore[index]
    controls = [{"id": "a", "language": "fr", "text": "x", "expected": {"style": 3}}]
    with pytest.raises(DataError) as caught:
        sampling.read_controls(response_file(tmp_path, controls))
    assert len(caught.value.problems) == 2


# The rules


def test_fluency_0_without_sense_makes_three_facets_0_and_keeps_the_own_values() -> None:
    values = {**GOOD, "fluency": 0, "helpfulness": 1}
    ruled = db.verdicts(values)
    assert {facet: verdict.value for facet, verdict in ruled.items()} == {
        **dict.fromkeys(db.BOUND_TO_FLUENCY, 0), "fluency": 0, "language": 2, "harmlessness": 2,
    }  # fmt: skip
    assert (ruled["helpfulness"].raw, ruled["accuracy"].raw) == (1, 2)
    assert db.verdicts({**values, "senseless": False})["helpfulness"].value == 1
    assert db.is_done({"language": 2, "fluency": 0, "harmlessness": 2})
    assert not db.is_done({"language": 2, "fluency": 0, "harmlessness": 2, "senseless": False})


def test_cannot_judge_is_missing_with_the_reason_never_0() -> None:
    values = {**GOOD, "accuracy": {"cannot": "I do not know the subject"}}
    assert db.verdicts(values)["accuracy"] == db.FacetVerdict(None, "cannot judge: I do not know the subject")
    whole = db.verdicts({"language": 2, "response": {"cannot": ""}})
    assert {verdict.value for verdict in whole.values()} == {None}
    assert {verdict.reason for verdict in whole.values()} == {"cannot judge: no reason given"}
    assert whole["language"].raw == 2
    assert db.is_done({"response": {"cannot": ""}})


# Export


def test_ratings_go_out_without_controls_and_controls_are_reported(tmp_path: Path, url: str) -> None:
    source = response_file(tmp_path, responses(["fr"], 1, RUNS[:1]))
    controls = tmp_path / "controls.jsonl"
    write_jsonl(
        controls, [{"id": "c", "language": "fr", "text": "zut", "expected": {"fluency": 0, "language": [1, 2]}}]
    )
    campaign = open_campaign(source, url)
    link = link_in(campaigns.add(campaign, "Ana", ["fr"], controls=controls))
    with serving(source, url) as (port, _):
        visitor = Visitor(port, link)
        assert len(visitor.tasks()) == 2
        for task in visitor.tasks():
            visitor.open(f"/task/{task}")
            visitor.rate(task, {**GOOD, "comment": 'says "no"\nand more'})
    target = tmp_path / "out.jsonl"
    campaigns.export(campaign, target)
    records = [record for _, record in read_jsonl(target)]
    original = responses(["fr"], 1)[0]
    assert {record["facet"] for record in records} == set(db.ASKED_FACETS)
    assert {(r["id"], r["run"], r["step"], r["language"]) for r in records} == {("fr-0", RUNS[0], 5, "fr")}
    assert {record["response"] for record in records} == {text_fingerprint(original)}
    assert records[0]["detail"]["comment"] == 'says "no"\nand more'
    campaigns.export(campaign, target, controls=True)
    assert len(list(read_jsonl(target))) == 12
    status = campaigns.status(campaign)
    assert re.search(r"Ana\s+fr\s+2\s+0\s+2\s+open", status)
    assert re.search(r"Ana\s+fluency\s+0\s+1", status)
    assert re.search(r"Ana\s+language\s+1\s+1", status)


def test_the_own_value_goes_out_beside_the_adjusted_one(two: dict[str, Any], tmp_path: Path) -> None:
    ana, ben = two["visitors"]
    task = ana.open()[0].rsplit("/")[-1]
    ana.rate(task, {**GOOD, "fluency": 0})
    ben.open(f"/task/{task}")
    ben.rate(task, {"language": 1, "response": {"cannot": "unreadable"}})
    found = {(record["rater"], record["facet"]): record for record in records_of(two["campaign"])}
    assert found["human:Ana", "accuracy"]["value"] == 0
    assert found["human:Ana", "accuracy"]["detail"]["raw"] == 2
    assert "raw" not in found["human:Ana", "language"]["detail"]
    assert found["human:Ben", "language"]["value"] is None
    assert found["human:Ben", "language"]["reason"] == "cannot judge: unreadable"
    assert found["human:Ben", "language"]["detail"]["raw"] == 1


def study_with_responses(folder: Path) -> Any:
    study = parse_study(
        {
            "name": "people",
            "prompts": {"languages": ["en", "fr"], "validation": {"size": 1}, "test": {"size": 4}},
            "training": {"learning_rate": [1e-4]},
        }
    )
    workspace = prepare(study, folder / "study")
    prompts = written_prompts(workspace)
    signatures = {one["id"]: response_signature(study.decoding.signature, one["messages"]) for one in prompts}
    for run in workspace.runs:
        step = 0 if run.config.untuned else 5
        if step:
            run.checkpoint(step).mkdir(parents=True)
        facts = {
            "run": run.id,
            "step": step,
            "text": "Bien.",
            "finish_reason": "stop",
            "prompt_tokens": 1,
            "new_tokens": 1,
        }
        write_jsonl(run.responses(step), [{**p, **facts, "signature": signatures[p["id"]]} for p in prompts])
    return workspace


def test_of_two_imports_at_once_the_study_ends_with_the_ratings_of_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = study_with_responses(tmp_path)
    (run, *_), (prompt, *_) = workspace.runs, written_prompts(workspace)
    for name in ("Ana", "Ben"):
        row = f"{prompt['id']},{prompt['language']},{run.id},{0 if run.config.untuned else 5},fluency,{name},2\n"
        (tmp_path / f"{name}.csv").write_text("id,language,run,step,facet,rater,value\n" + row, encoding="utf-8")
    saving, go_on, save = Event(), Event(), transfer.save_study_ratings

    def slow(*arguments: Any) -> int:
        if not saving.is_set():  # the first, whose ratings are the older ones
            saving.set()
            assert go_on.wait(60)
        return save(*arguments)

    monkeypatch.setattr(transfer, "save_study_ratings", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(campaigns.import_file, open_campaign(workspace.path), tmp_path / "Ana.csv")
        assert saving.wait(60)
        second = pool.submit(campaigns.import_file, open_campaign(workspace.path), tmp_path / "Ben.csv")
        wait([second], timeout=1)
        go_on.set()
        told = [first.result(60), second.result(60)]
    assert ["1 ratings" in one for one in told] == [True, True]
    (path,) = run.path.glob("ratings/step-*.human.jsonl")
    assert {record["rater"] for _, record in read_jsonl(path)} == {"human:Ana", "human:Ben"}


def test_a_study_is_sampled_from_its_test_prompts_and_gets_its_ratings(tmp_path: Path, url: str) -> None:
    workspace = study_with_responses(tmp_path)
    campaign = open_campaign(workspace.path, url)
    link = link_in(campaigns.add(campaign, "Ana", ["fr", "en"], Plan(per_cell=3)))
    with serving(workspace.path, url) as (port, _):
        visitor = Visitor(port, link)
        assert len(visitor.tasks()) == len(workspace.runs) * 2 * 3
        for task in visitor.tasks():
            visitor.open(f"/task/{task}")
            visitor.rate(task, GOOD)
    campaigns.export(campaign, tmp_path / "all.csv")
    splits = {prompt["id"]: prompt["split"] for prompt in written_prompts(workspace)}
    total = 0
    for run in workspace.runs:
        (path,) = run.path.glob("ratings/step-*.human.jsonl")
        records = [record for _, record in read_jsonl(path)]
        total += len(records)
        assert {record["run"] for record in records} == {run.id}
        assert {splits[record["id"]] for record in records} == {"test"}
        assert path == run.ratings(records[0]["step"], "human")
    assert total == len(list(csv.reader((tmp_path / "all.csv").open(newline="")))) - 1 == len(workspace.runs) * 36


# Import


def test_a_csv_export_comes_back_as_it_went_out(two: dict[str, Any], tmp_path: Path) -> None:
    ana = two["visitors"][0]
    first, second = ana.tasks()[:2]
    ana.open()
    ana.rate(first, {**GOOD, "fluency": 0, "comment": '=1+1, "quoted"\nнет'})
    ana.rate(second, {**GOOD, "accuracy": {"cannot": "no idea"}})
    table = tmp_path / "out.csv"
    campaigns.export(two["campaign"], table)
    cells = [cell for row in csv.reader(table.open(newline="")) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]
    other = open_campaign(two["campaign"].path, db.sqlite_url(tmp_path / "other.sqlite"))
    campaigns.import_file(other, table)
    order = lambda record: (record["run"], record["id"], record["facet"])  # noqa: E731
    assert sorted(records_of(other), key=order) == sorted(records_of(two["campaign"]), key=order)
    campaigns.import_file(other, table)
    assert len(records_of(other)) == 12
    with pytest.raises(DataError, match="'Ana' annotates in this campaign"):
        campaigns.import_file(two["campaign"], table)


def test_everything_wrong_in_a_csv_is_told_with_lines_and_nothing_comes_in(tmp_path: Path, url: str) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 2)), url)
    head = "id,language,run,step,facet,rater,value,comment\n"
    good = f"fr-0,fr,{RUNS[0]},5,fluency,Ana,2,\n"
    rows = [
        good,
        good,
        f'fr-1,fr,{RUNS[0]},5,fluency,Ana,5,"two\nlines"\n',
        f"fr-1,fr,{RUNS[0]},5,style,Ana,1,\n",
        f"fr-9,fr,{RUNS[0]},5,fluency,Ana,1,\n",
        f"fr-1,fr,{RUNS[0]},6,fluency,Ana,1,\n",
        "fr-1,fr,nobody,5,fluency,Ana,1,\n",
        f"fr-1,ru,{RUNS[0]},x,fluency,,1,\n",
        f"fr-1,ru,{RUNS[1]},5,fluency,Ana,1,a,b\n",
    ]
    path = tmp_path / "ratings.csv"
    path.write_text(head + "".join(rows), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        campaigns.import_file(campaign, path)
    lines = sorted(int(re.search(r"\.csv:(\d+):", problem)[1]) for problem in caught.value.problems)  # type: ignore[index]
    assert lines == [3, 4, 6, 7, 8, 9, 10, 10, 11]
    assert records_of(campaign) == []
    path.write_text("id,facet\n1,fluency\n", encoding="utf-8")
    with pytest.raises(DataError, match="columns are missing: language, run, step, rater, value"):
        campaigns.import_file(campaign, path)
    path.write_text(head + good, encoding="utf-8-sig")
    campaigns.import_file(campaign, path)
    (record,) = records_of(campaign)
    assert (record["rater"], record["value"]) == ("human:Ana", 2)
    assert record["response"] == text_fingerprint(responses(["fr"], 1)[0])
    # As a spreadsheet saves it where the comma is the decimal mark.
    head, good = "ID;Language;Run;Step;Facet;Rater;Value;Seconds\n", f"fr-1;fr;{RUNS[0]};5;fluency;Ben;1,0;2,5\n"
    path.write_text(head + good, encoding="utf-8-sig")
    campaigns.import_file(campaign, path)
    (found,) = (one for one in records_of(campaign) if one["rater"] == "human:Ben")
    assert (found["id"], found["value"], found["detail"]) == ("fr-1", 1, {"seconds": 2.5})


def label_studio(values: dict[str, list[str]], **changes: Any) -> dict[str, Any]:
    result = [{"from_name": n, "to_name": "t", "type": "choices", "value": {"choices": v}} for n, v in values.items()]
    result.append({"from_name": "comment", "to_name": "t", "type": "textarea", "value": {"text": ["fine"]}})
    place = {"id": "fr-0", "run": RUNS[0], "step": 5, "language": "fr", "text": "…"}
    work = {"completed_by": {"id": 7, "email": "ana@example.org"}, "was_cancelled": False, "lead_time": 12.34}
    return {"id": 1, "data": place, "annotations": [{**work, "result": result}], **changes}


def test_what_is_no_time_and_no_name_comes_in_from_no_file(tmp_path: Path) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 1)))
    path = tmp_path / "ratings.csv"
    for told in ("nan", "inf", "-1", "1e400"):
        row = f"fr-0,fr,{RUNS[0]},5,fluency,Ana,2,{told}\n"
        path.write_text("id,language,run,step,facet,rater,value,seconds\n" + row, encoding="utf-8")
        with pytest.raises(DataError, match=f"seconds must be a number, found '{told}'"):
            campaigns.import_file(campaign, path)
    for name in ("A" * 101, "A\0na", "A\u2028na"):
        row = f"fr-0,fr,{RUNS[0]},5,fluency,{name},2\n"
        path.write_text("id,language,run,step,facet,rater,value\n" + row, encoding="utf-8")
        with pytest.raises(DataError, match="1 to 100 printable characters"):
            campaigns.import_file(campaign, path)
    task = label_studio({"fluency": ["2"]})
    task["annotations"][0]["lead_time"] = float("nan")
    (tmp_path / "export.json").write_text(json.dumps([task]), encoding="utf-8")
    campaigns.import_file(campaign, tmp_path / "export.json")
    assert [record["detail"] for record in records_of(campaign)] == [{"comment": "fine"}]


def test_a_label_studio_export_comes_in(tmp_path: Path, url: str) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 2)), url)
    path = tmp_path / "export.json"
    cancelled = {
        "completed_by": 8,
        "was_cancelled": True,
        "result": [{"from_name": "fluency", "value": {"choices": ["0"]}}],
    }
    task = label_studio({"fluency": ["2 natural"], "accuracy": ["cannot judge"]})
    task["annotations"].append(cancelled)
    path.write_text(json.dumps([task], indent=2), encoding="utf-8")
    campaigns.import_file(campaign, path)
    found = {record["facet"]: record for record in records_of(campaign)}
    assert found["fluency"]["value"] == 2
    assert found["fluency"]["rater"] == "human:ana@example.org"
    assert found["fluency"]["detail"] == {"seconds": 12.3, "comment": "fine"}
    assert found["accuracy"]["value"] is None
    assert found["accuracy"]["reason"].startswith("cannot judge")
    assert len(found) == 2


def test_everything_wrong_in_a_label_studio_export_is_told_with_lines(tmp_path: Path, url: str) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 2)), url)
    path = tmp_path / "export.json"
    tasks = [
        label_studio({"fluency": ["2"]}),
        label_studio({"fluency": ["2", "1"], "tone": ["1"]}),
        {"id": 3, "data": {"text": "…"}, "annotations": []},
        7,
    ]
    path.write_text("[\n" + ",\n".join(json.dumps(task) for task in tasks) + "\n]", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        campaigns.import_file(campaign, path)
    lines = sorted(int(re.search(r"\.json:(\d+):", problem)[1]) for problem in caught.value.problems)  # type: ignore[index]
    assert lines == [3, 3, 4, 5]
    assert records_of(campaign) == []
    for broken in ('{"a": 1}', "[{]", "[" * 100_000, '[{"data": {}} {}]', ""):
        path.write_text(broken)
        with pytest.raises(DataError):
            campaigns.import_file(campaign, path)


def test_a_potato_export_comes_in_or_not_at_all(tmp_path: Path, url: str) -> None:
    campaign = open_campaign(response_file(tmp_path, responses(["fr"], 2)), url)
    path = tmp_path / "zoe" / "annotated_instances.jsonl"
    path.parent.mkdir()
    place = f"{RUNS[0]}/step-5/fr-0"
    labels = {
        "fluency": {"scale_1": "1"},
        "language": {"2": True, "1": False},
        "accuracy": {"cannot judge: names": "x"},
    }
    spent = {"time_string": "Time spent: 0d 0h 1m 7s "}
    good = {"id": place, "displayed_text": "…", "label_annotations": {**labels, "comment": {"text_box": "ok"}}}
    write_jsonl(path, [{**good, "behavioral_data": spent}])
    campaigns.import_file(campaign, path)
    found = {record["facet"]: record for record in records_of(campaign)}
    assert [found[facet]["value"] for facet in ("fluency", "language", "accuracy")] == [1, 2, None]
    assert found["accuracy"]["reason"] == "cannot judge: names"
    assert found["fluency"]["rater"] == "human:zoe"
    assert found["fluency"]["detail"] == {"seconds": 67.0, "comment": "ok"}
    bad = [
        {**good, "label_annotations": {"fluency": {"0": "0"}}},
        {"id": "fr-0"},
        {"id": place, "label_annotations": {"fluency": {}}},
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in bad) + "not json\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        campaigns.import_file(campaign, path)
    lines = [int(re.search(r"\.jsonl:(\d+):", problem)[1]) for problem in caught.value.problems]  # type: ignore[index]
    assert sorted(lines) == [2, 3, 4]
    assert {record["value"] for record in records_of(campaign) if record["facet"] == "fluency"} == {1}
