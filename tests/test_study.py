from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import run_xlift

from xlift.errors import ConfigError
from xlift.hub import folder_sha256
from xlift.opening import open_model
from xlift.records import Message
from xlift.stages import prepare
from xlift.study.labels import run_labels
from xlift.study.loading import load_study, parse_study, problems_of
from xlift.study.runs import FILLED_IN, Adaptation, RunConfig
from xlift.study.study import Study
from xlift.study.yaml_text import dump_yaml

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_study_validates_and_says_how_it_is_started(path: Path) -> None:
    assert load_study(path).runs()
    assert path.read_text(encoding="utf-8").startswith(f"# xlift run studies/{path.name}")


def test_lists_are_axes_and_base_comes_first() -> None:
    training = {
        "learning_rate": ["1e-4", 2e-4],
        "instructions": {"size": [8, 16]},
        "adaptation": [{"rank": 4}, {"method": "full"}],
    }
    study = parse_study({"name": "grid", "training": training})
    runs = study.runs()
    assert len(runs) == 1 + 2 * 2 * 2
    assert runs[0].untuned
    assert len({run.content_hash for run in runs}) == len(runs)
    assert len(set(run_labels(runs))) == len(runs)


def test_the_resolved_study_loads_back_to_the_same_runs() -> None:
    study = parse_study({"name": "again", "training": {"learning_rate": [1e-4, 2e-4], "steps": 5}})
    again = parse_study(yaml.safe_load(dump_yaml(study)))
    assert [run.content_hash for run in again.runs()] == [run.content_hash for run in study.runs()]


def test_include_adds_runs_exclude_leaves_some_out_and_the_resolved_file_gives_the_same_grid() -> None:
    raw = {
        "name": "rules",
        "training": {"learning_rate": {"log_range": ["1e-5", "1e-3", 3]}, "adaptation": [{"rank": 4}, {"rank": 8}]},
        "include": [{"adaptation": {"method": "full"}, "learning_rate": ["1e-6"]}],
        "exclude": [
            {"learning_rate": ["1e-3"], "adaptation": {"rank": 8}},
            {"adaptation.rank": 4, "learning_rate": 1e-5},
        ],
    }
    study = parse_study(raw)
    tuned = [(run.adaptation.label, run.learning_rate) for run in study.runs() if not run.untuned]
    expected = [("lora-r4", 1e-4), ("lora-r8", 1e-5), ("lora-r4", 1e-3), ("lora-r8", 1e-4), ("full", 1e-6)]
    assert sorted(tuned) == sorted(expected)
    again = parse_study(yaml.safe_load(dump_yaml(study)))
    assert [run.content_hash for run in again.runs()] == [run.content_hash for run in study.runs()]


def test_a_wrong_range_and_a_wrong_rule_are_refused_together() -> None:
    raw = {
        "name": "bad",
        "training": {"learning_rate": {"log_range": ["1e-3", "1e-5", 3]}},
        "exclude": [{"learning_rat": 1}],
    }
    with pytest.raises(ConfigError) as caught:
        parse_study(raw)
    assert "lowest value, the highest and how many" in str(caught.value)
    assert "did you mean 'learning_rate'" in str(caught.value)
    with pytest.raises(ConfigError, match="no run is left"):
        parse_study({"name": "none", "exclude": [{"seed": 0}]})


def test_a_run_drawn_back_to_the_base_brings_the_run_that_is_trained() -> None:
    runs = parse_study({"name": "back", "training": {"weight": [0.5, 0.25]}}).runs()
    assert [run.weight for run in runs if not run.untuned] == [1.0, 0.5, 0.25]


def test_judges_are_named_apart_and_their_rubrics_lie_beside_the_study(tmp_path: Path) -> None:
    two = [{"model": "a/m"}, {"model": "b/m"}]
    with pytest.raises(ConfigError, match="several judges are called m"):
        parse_study({"name": "twice", "judges": two})
    own = parse_study({"name": "own", "judges": [{"model": "m", "rubrics": "mine"}]}, folder=tmp_path)
    assert own.judges[0].rubrics == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"name": "A.B"}, {"name": "a-b"}),
        ({"name": "large"}, {"name": "LARGE"}),
        ({"name": "a b"}, {"name": "a_b"}),
        ({"name": "法官"}, {"name": "裁判"}),
        ({"model": "x/y", "name": "z"}, {"name": "z!"}),
        ({"model": "x/y"}, {"name": "x/y"}),
    ],
)
def test_judges_that_would_share_a_file_or_a_name_are_refused(first: dict[str, str], second: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="several judges are called"):
        parse_study({"name": "x", "judges": [{"model": "m"} | first, {"model": "n"} | second]})
    apart = [{"model": "m"} | first, {"model": "n", "name": "another"}]
    assert len(parse_study({"name": "x", "judges": apart}).judges) == 2


def test_some_of_a_studys_raters_can_be_asked_for_and_no_others(study_file: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    for stage in ("train", "generate"):
        assert xlift(stage, str(study_file), "training.learning_rate=1e-3", folder=place).returncode == 0
    study = place / "results" / "tiny"
    refused = xlift("rate", str(study), "--raters", "nonsense", folder=place)
    assert (refused.returncode, "unknown rater 'nonsense'" in refused.stderr) == (2, True)
    refused = xlift("rate", str(study), "--raters", "language_lcb", folder=place)
    assert (refused.returncode, "not a rater of this study: language_lcb" in refused.stderr) == (2, True)
    assert not list(study.glob("runs/*/ratings/*"))
    assert xlift("rate", str(study), "--raters", "fluency", folder=place).returncode == 0
    assert {path.name.split(".")[1] for path in study.glob("runs/*/ratings/*")} == {"fluency"}
    states = json.loads(xlift("ls", str(study), "--json", folder=place).stdout)[0]["runs"]
    assert all("rate" not in one["stages"] for one in states)
    assert xlift("rate", str(study), folder=place).returncode == 0
    states = json.loads(xlift("ls", str(study), "--json", folder=place).stdout)[0]["runs"]
    assert all(one["stages"]["rate"] == "done" for one in states)


def test_hashes_are_the_same_in_another_process_and_key_order() -> None:
    raw = {"name": "x", "training": {"steps": 5, "learning_rate": 1e-4, "adaptation": {"rank": 8, "alpha": 4}}}
    turned = {"training": {"adaptation": {"alpha": 4, "rank": 8}, "learning_rate": 1e-4, "steps": 5}, "name": "x"}
    code = f"from xlift.study.loading import parse_study; print(parse_study({turned!r}).runs()[1].content_hash)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == parse_study(raw).runs()[1].content_hash


def test_the_choices_for_an_unknown_setting_of_training_are_those_that_training_takes() -> None:
    (problem,) = problems_of(RunConfig, {"zzz": 1})
    assert "learning_rate" in problem
    assert not [name for name in FILLED_IN if name in problem]


def test_all_mistakes_are_reported_at_once_with_the_nearest_name() -> None:
    raw = {
        "name": "bad",
        "trainin": {},
        "training": {"learnin_rate": 1, "adaptation": {"rank": "big"}, "instructions": {"sources": [{"pth": "x"}]}},
        "decoding": {"max_new": 3},
        "prompts": {"languages": ["xx"]},
    }
    with pytest.raises(ConfigError) as caught:
        parse_study(raw)
    text = str(caught.value)
    for part in (
        "did you mean 'training'",
        "did you mean 'learning_rate'",
        "training.adaptation.rank",
        "did you mean 'path'",
        "did you mean 'max_new_tokens'",
        "prompts.languages.0: unknown language 'xx'",
    ):
        assert part in text


@pytest.mark.parametrize(
    "raw", [{"training": 3}, {"training": {"instructions": 3}}, {"training": {"adaptation": [3]}}, {"prompts": []}]
)
def test_values_of_the_wrong_shape_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        parse_study({"name": "x", **raw})


@pytest.mark.parametrize("section", ["include", "exclude"])
@pytest.mark.parametrize(
    "given", [5, "2024-01-01", datetime.date(2024, 1, 1), {"seed": 1}, [5], ["seed"], [[1]], [None], [{1: 2}]], ids=str
)
def test_include_and_exclude_are_lists_of_settings_and_nothing_else(section: str, given: object) -> None:
    with pytest.raises(ConfigError, match=section):
        parse_study({"name": "x", section: given})


def test_an_entry_of_include_that_adds_no_run_is_refused_and_one_that_adds_some_is_not() -> None:
    same = {"learning_rate": 1e-4, "seed": [1, 2]}
    with pytest.raises(ConfigError, match=r"include\.1: adds no run"):
        parse_study({"name": "x", "training": same, "include": [{"seed": 3}, {"seed": [1, 3]}]})
    study = parse_study({"name": "x", "training": same, "include": [{"seed": [1, 3]}]})
    assert {run.seed for run in study.runs() if not run.untuned} == {1, 2, 3}


def test_a_rule_that_excludes_nothing_is_refused_with_the_values_that_there_are() -> None:
    training = {"learning_rate": [1e-4, 1e-3], "adaptation": [{"rank": 4}, {"rank": 8, "alpha": 16}]}
    rules = [{"learning_rate": 1e-2}, {"adaptation": {"rank": 4, "alpha": 16}}, {"seed": [0, 9]}, {"schedule": "cosin"}]
    with pytest.raises(ConfigError) as caught:
        parse_study({"name": "x", "training": training, "exclude": rules})
    assert "exclude.3.schedule" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        parse_study({"name": "x", "training": training, "exclude": rules[:3]})
    first, second = caught.value.problems
    assert "exclude.0: no run has learning_rate 0.01; there are: 0.0001, 0.001" in first
    assert "exclude.1: no run has all of" in second


def test_a_rule_names_a_model_as_the_study_does_and_a_list_as_a_value(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    training = {"model": ["one", "two"], "adaptation": {"targets": [["q_proj"], ["q_proj", "v_proj"]]}}
    rules = [{"model": "one"}, {"adaptation": {"targets": ["q_proj", "v_proj"]}}]
    study = parse_study({"name": "x", "training": training, "exclude": rules}, folder=tmp_path)
    (run,) = [run for run in study.runs() if not run.untuned]
    assert (Path(run.model).name, run.adaptation.targets) == ("two", ["q_proj"])
    again = parse_study(yaml.safe_load(dump_yaml(study)), resolved=True)
    assert again.runs() == study.runs()


def test_numbers_are_numbers_however_yaml_writes_them_and_at_every_depth(tmp_path: Path) -> None:
    path = tmp_path / "numbers.yaml"
    path.write_text(
        """
training:
  learning_rate: [1e-4, 1E-3, 2.e-3]
  steps: 1e2
  adaptation: {rank: 8, alpha: [1e2, +2e2, .5e3]}
  instructions: {size: 4e1, sources: [{size: 1e2}], name: 1e2}
exclude:
  - {adaptation: {alpha: 1e2}}
  - {adaptation.alpha: 200, learning_rate: [1e-3, 2.0e-3]}
include:
  - {adaptation: {alpha: {log_range: [1e0, 1e2, 3]}}, learning_rate: 5e-3}
prompts: {test: {size: 1e1}}
decoding: {max_new_tokens: 1e2, checkpoints: [1e1]}
""",
        encoding="utf-8",
    )
    study = load_study(path, ["validation.every=1e1", "training.batch_tokens=4e4"])
    tuned = [run for run in study.runs() if not run.untuned]
    pairs = {(run.learning_rate, run.adaptation.alpha) for run in tuned}
    assert pairs == {(1e-4, 200), *((rate, 500) for rate in (1e-4, 1e-3, 2e-3)), (5e-3, 1), (5e-3, 10)}
    run = tuned[0]
    assert (run.steps, run.batch_tokens, run.instructions.size, run.instructions.sources[0].size) == (
        100,
        40000,
        40,
        100,
    )
    assert run.instructions.name == "1e2"
    assert (study.prompts.test.size, study.decoding.checkpoints, study.validation.every) == (10, [10], 10)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            (name, value)
            for name in ("learning_rate", "adaptation.alpha", "weight_decay")
            for value in (".inf", ".nan", "1e400")
        ),
        *(("seed", value) for value in (".inf", "yes", "1e-3")),
        ("adaptation.rank", "true"),
        *(
            ("learning_rate", f"{{log_range: [1e-5, {high}, {count}]}}")
            for high, count in (("1e-3", "1e9"), (".inf", 3))
        ),
        ("learning_rate", "{log_range: [1e-5, 1e-3, .nan]}"),
        ("learning_rate", f"{{log_range: [1e-5, 1{'0' * 400}, 3]}}"),
    ],
)
def test_what_is_no_number_is_refused_in_the_file_and_on_the_command_line_alike(
    tmp_path: Path, setting: str, value: str
) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"training.{setting}") as caught:
        load_study(path, [f"training.{setting}={value}"])
    assert caught.value.hint == f"edit {path}"


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "more than 100,000 entries"),
        ("a: &a [*a]", "nested too deeply"),
        ("training: " + "[" * 3000, "nested too deeply"),
        ("a: 2024-13-45", "not usable"),
        ("a: " + "9" * 5000, "not usable"),
        ("a: !!python/object/apply:os.getcwd []", "not YAML"),
        ("a: b: c", "not YAML"),
    ],
)
def test_yaml_that_is_none_or_has_no_end_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        load_study(path)
    path.write_text("question: ok\n", encoding="utf-8")
    with pytest.raises(ConfigError):
        load_study(path, [f"question={text.partition(': ')[2]}"])


def test_a_setting_given_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    text = "training:\n  seed: 1\n  adaptation: {rank: 4, rank: 8}\nquestion: one\ntraining: {steps: 5}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert caught.value.problems == [
        f"{path}:3: 'rank' is there already, on line 3",
        f"{path}:5: 'training' is there already, on line 1",
    ]
    path.write_text(
        "prompts: &p {test: {size: 1}}\ntraining: {adaptation: {<<: {rank: 4}, rank: 8}}\n", encoding="utf-8"
    )
    assert load_study(path).runs()[-1].adaptation.rank == 8
    with pytest.raises(ConfigError, match="'rank' is there already"):
        load_study(path, ["training.adaptation={rank: 4, rank: 8}"])


def test_a_grid_that_nobody_can_run_is_refused_before_it_is_made() -> None:
    many = {"rank": list(range(1, 2000)), "alpha": list(range(1, 2000))}
    with pytest.raises(ConfigError, match="3,996,001 combinations; a study has at most 10,000 runs"):
        parse_study({"name": "x", "training": {"adaptation": many}})
    with pytest.raises(ConfigError, match="combinations"):
        parse_study(
            {"name": "x", "training": {"seed": list(range(200)), "learning_rate": [1e-4 + i for i in range(200)]}}
        )


@pytest.mark.parametrize(("given", "spoken"), [(None, "Be brief."), ("", None), ("Be kind.", "Be kind.")])
def test_the_system_prompt_of_a_chat_is_the_one_given_and_else_the_runs(
    given: str | None, spoken: str | None, study_file: Path, tmp_path: Path
) -> None:
    base = prepare(load_study(study_file, ["training.system=Be brief."]), tmp_path / "out").runs[0]
    _, chat = open_model(str(base.path), given, offline=True)
    assert ("Be brief." in chat.render(ASKED, True)) == (spoken == "Be brief.")
    assert spoken is None or spoken in chat.render(ASKED, True)


ASKED: list[Message] = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", "..", ".", "a\nb", "a\x00b", "\u202eb", ""])
def test_a_name_of_instructions_that_could_be_a_path_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"instructions\.name"):
        parse_study({"name": "x", "training": {"instructions": [{"name": "fine"}, {"name": name}]}})


def xlift(*arguments: str, folder: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    return run_xlift(*arguments, folder=folder, **settings)


def relative_files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_whole_study_from_the_command_line(study_file: Path, tmp_path: Path) -> None:
    clean = tmp_path / "clean"
    clean.mkdir()
    done = xlift("run", str(study_file), folder=clean)
    assert done.returncode == 0, done.stderr
    assert "report: results/tiny/report/index.html" in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("base ", "lora-"))]
    assert rows[:3] == ["base", "lora-r4-lr1e-3", "lora-r4-lr1e-2"]

    study = clean / "results" / "tiny"
    (run,) = study.glob("runs/lora-r4-lr1e-3-*")
    weights = {"README.md", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"}
    weights |= {"tokenizer.json", "tokenizer_config.json", "xlift.json"}
    expected = {"run.yaml", "manifest.json", "train.jsonl", "responses/step-4.jsonl", "margins/step-4.json"}
    expected |= {f"ratings/step-4.{rater}.jsonl" for rater in ("language", "fluency")}
    expected |= {f"checkpoints/step-{step}/{name}" for step in (2, 4) for name in weights}
    expected.add("training_state/step-4.safetensors")
    assert relative_files(run) == expected
    report = relative_files(study / "report")
    stems = {name.rsplit(".", 1)[0] for name in report}
    named = {"figures/heat-map-language", "figures/heldout-loss", "tables/shares-language", "tables/runs"}
    assert named <= stems
    # Every figure as pictures and data, every table in both forms, and nothing else.
    figures = {stem for stem in stems if stem.startswith("figures/")}
    tables = {stem for stem in stems if stem.startswith("tables/")}
    forms = {f"{stem}.{ending}" for stem in figures for ending in ("svg", "png", "csv")}
    assert report == {"index.html"} | forms | {f"{stem}.{ending}" for stem in tables for ending in ("csv", "tex")}

    stamps = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    again = xlift("run", str(study_file), folder=clean)
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps

    listed = json.loads(xlift("ls", "--json", folder=clean).stdout)
    assert all(one["stages"]["rate"] == "done" for one in listed[0]["runs"])
    said = xlift("chat", str(run), "--max-new-tokens", "3", folder=clean, input="Why?\n\n")
    assert said.returncode == 0, said.stderr

    # Cut responses and ratings in mid-record: what is missing is made again, to the same records.
    for name in ("responses/step-4.jsonl", "ratings/step-4.language.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) * 2 // 3])
        resumed = xlift("run", str(study_file), folder=clean)
        assert resumed.returncode == 0, resumed.stderr
        assert timeless((run / name).read_bytes()) == timeless(whole)


def timeless(records: bytes) -> list[bytes]:
    """The lines of a file of records without the seconds that they took, in an order of their own."""
    return sorted(re.sub(rb'"seconds": [0-9.]+, ', b"", line) for line in records.splitlines())


def test_check_shows_the_grid_and_a_masked_example(study_file: Path, tmp_path: Path) -> None:
    done = xlift("check", str(study_file), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 runs on cpu" in done.stdout
    assert "light is scattered" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "absent.yaml"], "no such study file"),
        (["run", "study.yaml", "training.stps=3"], "did you mean 'steps'"),
        (["run", "study.yaml", "training.instructions.sources=[{path: absent.jsonl}]"], "absent.jsonl: no such file"),
        (["run", "study.yaml", "training.model=embedded:gemma"], "unknown embedded model"),
        (["rate", "absent.jsonl", "-o", "out.jsonl"], "no such file"),
        (["rate", "data.jsonl"], "nothing says in which language a reply must be"),
        (["rate", "data.txt", "-o", "x.jsonl"], "files of responses end in .jsonl"),
        (["rate", "data.jsonl", "-o", "x.jsonl", "--raters", "langage"], "did you mean 'language'"),
        (["chat", "./absent"], "no such folder"),
        (["ls", "absent"], "neither a study file nor a study folder"),
    ],
)
def test_bad_input_ends_with_one_clear_message(study_file: Path, arguments: list[str], says: str) -> None:
    (study_file.parent / "data.txt").write_bytes((study_file.parent / "data.jsonl").read_bytes())
    done = xlift(*arguments, folder=study_file.parent)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_failed_run_is_reported_and_the_others_are_finished(study_file: Path, tmp_path: Path) -> None:
    axis = "training.adaptation=[{rank: 2, targets: [nothing_of_that_name]}, {rank: 2}]"
    done = xlift("run", str(study_file), "training.learning_rate=1e-3", axis, "--out", "out", folder=tmp_path)
    assert done.returncode == 2
    assert "nothing_of_that_name" in done.stderr
    assert "Traceback" not in done.stderr
    states = json.loads(xlift("ls", "out", "--json", folder=tmp_path).stdout)[0]["runs"]
    assert sorted(one["stages"].get("train", "base") for one in states) == ["base", "done", "failed"]
    assert sum(one["stages"].get("rate") == "done" for one in states) == 2
    assert (tmp_path / "out" / "report" / "index.html").is_file()


def test_help_does_not_load_heavy_libraries() -> None:
    code = (
        "import sys, xlift.cli; print([m for m in ('torch', 'transformers', 'pydantic', 'altair') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_environment_of_tests_is_offline() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def ids(study: Study) -> list[str]:
    return [run.content_hash for run in study.runs()]


def test_a_run_is_known_by_contents_not_by_names_and_places(study_file: Path, tiny: Path, tmp_path: Path) -> None:
    before = ids(load_study(study_file))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(tiny, elsewhere / "model")
    shutil.copy(tmp_path / "data.jsonl", elsewhere / "renamed.jsonl")
    moved = study_file.read_text().replace(str(tiny), "model").replace("data.jsonl", "renamed.jsonl")
    (elsewhere / "study.yaml").write_text(moved)
    assert ids(load_study(elsewhere / "study.yaml")) == before
    for indifferent in ("checkpoint_every=1", "gradient_checkpointing=true", "offload=true", "micro_batch_tokens=60"):
        assert ids(load_study(study_file, [f"training.{indifferent}"])) == before
    assert ids(load_study(study_file, ["training.instructions.name=called otherwise"])) == before


@pytest.mark.parametrize("what", ["dtype", "data", "weights", "tokenizer", "config"])
def test_what_decides_the_weights_decides_the_run(what: str, study_file: Path, tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    study_file.write_text(study_file.read_text().replace(str(tiny), "model"))
    before = ids(load_study(study_file))
    files = {
        "data": tmp_path / "data.jsonl",
        "weights": tmp_path / "model" / "model.safetensors",
        "tokenizer": tmp_path / "model" / "tokenizer.json",
        "config": tmp_path / "model" / "config.json",
    }
    if what in files:
        files[what].write_bytes(files[what].read_bytes() + b"\n")
    after = ids(load_study(study_file, ["dtype=bfloat16"] if what == "dtype" else []))
    # The data is no matter of the untuned base.
    assert [one in before for one in after] == [what == "data", False, False]


def test_a_study_of_another_machine_has_the_same_runs(study_file: Path, tmp_path: Path) -> None:
    study = load_study(study_file)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_yaml(study))
    (tmp_path / "data.jsonl").unlink()
    assert ids(load_study(path, resolved=True)) == ids(study)
    # Also as the file of a study that one goes on with, by `xlift rate` for instance.
    assert ids(load_study(path)) == ids(study)


def test_settings_of_lora_make_no_second_run_of_full_fine_tuning(study_file: Path) -> None:
    grid = [
        "training.adaptation=[{method: full, rank: [4, 8]}, {method: lora, rank: [4, 8]}]",
        "training.learning_rate=1e-3",
    ]
    methods = [run.adaptation.method for run in load_study(study_file, grid).runs()]
    assert methods == ["none", "full", "lora", "lora"]


@pytest.mark.parametrize("name", ["merges.txt", "vocab.txt", "tokenizer.model", "qwen.tiktoken"])
def test_every_file_of_a_tokenizer_decides_what_a_model_folder_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = [folder_sha256(tmp_path)]
    for text in ("a b", "a c"):
        (tmp_path / name).write_text(text)
        found.append(folder_sha256(tmp_path))
    (tmp_path / "LICENSE.txt").write_text("free")
    assert len(set(found)) == 3
    assert folder_sha256(tmp_path) == found[-1]


def test_a_setting_that_is_as_by_default_is_no_part_of_what_a_run_is() -> None:
    """So that settings of later versions, with the default that there was before, leave runs what they are."""

    class Later(RunConfig):
        novelty: int = 3

    for given in ({}, {"learning_rate": 1e-3}, {"adaptation": {"method": "none"}}, {"instructions": {"size": 9}}):
        assert Later.model_validate(given).content_hash == RunConfig.model_validate(given).content_hash
    assert Later(novelty=4).content_hash != RunConfig().content_hash
    assert RunConfig(adaptation=Adaptation(method="none")).content_hash != RunConfig().content_hash
