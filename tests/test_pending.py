from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import judge_server
import pytest
import yaml

from xlift.disk import write_jsonl
from xlift.errors import UserError
from xlift.planning.pending import pending, say_pending
from xlift.rating import signature_of
from xlift.records import read_records
from xlift.stages import generate_stage, judge_stage, prepare, rate_stage, train_stage
from xlift.study.loading import load_study
from xlift.study.study import Study
from xlift.tuning import checkpoints
from xlift.workspace import RunFolder, StudyFolder, open_study

PROMPTS = 10


def carried_out(study: Study, folder: Path) -> StudyFolder:
    """The stages whose work can be pending."""
    workspace = prepare(study, folder)
    for stage in (train_stage, generate_stage, rate_stage):
        stage(workspace)
    return workspace


@pytest.fixture
def done(study_file: Path, tmp_path: Path) -> StudyFolder:
    """A study that has been run."""
    return carried_out(load_study(study_file), tmp_path / "out")


def opened(study_file: Path, tmp_path: Path, *settings: str) -> StudyFolder:
    return open_study(load_study(study_file, list(settings)), tmp_path / "out")


def tuned(workspace: StudyFolder) -> list[RunFolder]:
    return [run for run in workspace.runs if run.trains]


def test_nothing_is_pending_after_a_run_and_everything_before_it(study_file: Path, tmp_path: Path, capsys: Any) -> None:
    study = load_study(study_file)
    before = pending(open_study(study, tmp_path / "out"))
    assert before == [
        "base: measure the language margin (not measured in ru)",
        "base: measure the grammar margin (not measured in en, ru)",
        f"base: answer {PROMPTS} of {PROMPTS} prompts (not made yet)",
        f"base: rate {PROMPTS} replies by language, fluency (not made yet)",
        "lora-r4-lr1e-3, lora-r4-lr1e-2: train: new run",
        f"lora-r4-lr1e-3, lora-r4-lr1e-2: then answer {PROMPTS} prompts and rate the replies by language, fluency",
    ]
    workspace = carried_out(study, tmp_path / "out")
    assert pending(workspace) == []
    capsys.readouterr()
    say_pending(workspace)
    assert capsys.readouterr().err == ""


def test_asking_writes_nothing_and_needs_no_model_library(done: StudyFolder) -> None:
    times = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    code = (
        "import sys; from pathlib import Path\n"
        "from xlift.planning.pending import pending; from xlift.workspace import find_study\n"
        "print(pending(find_study(Path(sys.argv[1])))); print({'torch', 'transformers'} & set(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code, str(done.path)], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\nset()\n"
    assert times == {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}


def test_an_added_learning_rate_is_a_setting_and_a_new_run(done: StudyFolder, study_file: Path, tmp_path: Path) -> None:
    rows = pending(opened(study_file, tmp_path, "training.learning_rate=[1e-3, 1e-2, 1e-1]"))
    assert rows == [
        "setting training.learning_rate: [0.001, 0.01] → [0.001, 0.01, 0.1]",
        "lora-r4-lr1e-1: train: new run",
        f"lora-r4-lr1e-1: then answer {PROMPTS} prompts and rate the replies by language, fluency",
    ]


def test_a_run_that_left_the_grid_is_named_as_kept(done: StudyFolder, study_file: Path, tmp_path: Path) -> None:
    left = tuned(done)[1].id
    rows = pending(opened(study_file, tmp_path, "training.learning_rate=[1e-3]"))
    assert rows[-1] == f"no longer in the study, kept and not used: {left}"
    assert len(rows) == 2
    carried_out(load_study(study_file, ["training.learning_rate=[1e-3]"]), tmp_path / "out")
    assert pending(opened(study_file, tmp_path, "training.learning_rate=[1e-3]")) == []


def test_other_decoding_is_told_from_old_to_new(done: StudyFolder, study_file: Path, tmp_path: Path) -> None:
    old, new = done.study.decoding.signature, "greedy|rp1|max6"
    rows = pending(opened(study_file, tmp_path, "decoding.repetition_penalty=1.0"))
    everyone = "base, lora-r4-lr1e-3, lora-r4-lr1e-2"
    assert rows == [
        "setting decoding.repetition_penalty: 1.2 → 1.0",
        f"{everyone}: answer {PROMPTS} of {PROMPTS} prompts (decoding changed: {old} → {new})",
        f"{everyone}: rate {PROMPTS} replies by language, fluency (not made yet)",
    ]


def test_another_rater_version_is_told_from_old_to_new(done: StudyFolder) -> None:
    run = tuned(done)[0]
    path = run.ratings(4, "fluency")
    write_jsonl(path, [{**record, "signature": "fluency v0"} for record in read_records(path)])
    assert pending(done) == [
        f"{run.label}: rate {PROMPTS} replies by fluency (rater changed: fluency v0 → {signature_of('fluency')})"
    ]


def test_ratings_that_are_not_there_and_changed_responses_are_told_apart(done: StudyFolder) -> None:
    run = tuned(done)[0]
    run.ratings(4, "language").unlink()
    responses = read_records(run.responses(4))
    responses[0]["text"] += " And more."
    write_jsonl(run.responses(4), responses)
    assert pending(done) == [
        f"{run.label}: rate {PROMPTS} replies by language (not rated yet)",
        f"{run.label}: rate 1 replies by fluency (response changed)",
    ]


def test_added_prompts_are_told_as_added(done: StudyFolder, study_file: Path, tmp_path: Path) -> None:
    rows = pending(opened(study_file, tmp_path, "prompts.test.size=5"))
    everyone = "base, lora-r4-lr1e-3, lora-r4-lr1e-2"
    assert rows == [
        "setting prompts.test.size: 3 → 5",
        "prompts: 4 added",
        f"{everyone}: answer 4 of 14 prompts (prompt added)",
        f"{everyone}: rate 4 replies by language, fluency (not made yet)",
    ]


def test_a_prompt_that_reads_otherwise_is_told_as_changed(study_file: Path, tmp_path: Path) -> None:
    own = [
        {
            "id": f"{split}-{code}",
            "language": code,
            "split": split,
            "messages": [{"role": "user", "content": f"Why {split}?"}],
        }
        for split in ("validation", "test")
        for code in ("en", "ru")
    ]
    write_jsonl(tmp_path / "own.jsonl", own)
    settings = ["prompts={languages: [en, ru], validation: {source: own.jsonl}, test: {source: own.jsonl}}"]
    study = load_study(study_file, [*settings, "training.learning_rate=[1e-3]"])
    carried_out(study, tmp_path / "out")
    own[0]["messages"] = [{"role": "user", "content": "Why not?"}]
    write_jsonl(tmp_path / "own.jsonl", own)
    workspace = open_study(study, tmp_path / "out")
    asked = "base, lora-r4-lr1e-3"
    assert pending(workspace)[:2] == ["prompts: 1 changed", f"{asked}: answer 1 of 4 prompts (prompt changed)"]
    carried_out(study, tmp_path / "out")
    assert pending(workspace) == []


def test_deleted_checkpoints_are_trained_again_and_kept_answers_stay(done: StudyFolder) -> None:
    run = tuned(done)[0]
    shutil.rmtree(run.path / "checkpoints")
    assert pending(done) == [f"{run.label}: train: its checkpoints are gone"]
    carried_out(done.study, done.path)
    assert pending(done) == []


def test_unfinished_training_names_the_step_it_goes_on_from(study_file: Path, tmp_path: Path) -> None:
    workspace = prepare(load_study(study_file, ["halving={first: 2, factor: 2}"]), tmp_path / "out")
    train_stage(workspace)
    plain = opened(study_file, tmp_path)
    stopped = next(run for run in tuned(plain) if run.stage("train")["state"] == "running")
    assert checkpoints.resume_step(stopped) == 2
    assert f"{stopped.label}: train: unfinished, from step 2 of 4" in pending(plain)
    # What halving has stopped is not pending where halving is on.
    assert not [row for row in pending(workspace) if stopped.label in row]


def test_a_failed_run_tells_why_it_failed(study_file: Path, tmp_path: Path) -> None:
    workspace = prepare(load_study(study_file), tmp_path / "out")
    run = tuned(workspace)[0]
    run.set_stage("train", "failed", problems=["the disk was full\nin full: error-train.txt"])
    rows = pending(workspace)
    assert f"{run.label}: train: failed before (the disk was full); again from the start" in rows


def test_weights_drawn_back_wait_for_the_run_they_come_from(study_file: Path, tmp_path: Path) -> None:
    settings = ["training.weight=0.5", "training.learning_rate=[1e-3]"]
    workspace = opened(study_file, tmp_path, *settings)
    source, drawn = (run for run in workspace.runs if not run.config.untuned)
    wanted = f"{drawn.label}: once {source.label} is trained, answer {PROMPTS} prompts and rate the replies by "
    assert any(row.startswith(wanted) for row in pending(workspace))
    assert sum("train: new run" in row for row in pending(workspace)) == 1


def test_many_runs_of_which_the_same_is_to_be_said_take_one_row(study_file: Path, tmp_path: Path) -> None:
    rates = json.dumps([round(0.001 * i, 4) for i in range(1, 21)])
    rows = pending(opened(study_file, tmp_path, f"training.learning_rate={rates}"))
    trained = [row for row in rows if "train: new run" in row]
    assert len(trained) == 1
    assert "and 17 more: train: new run" in trained[0]


def test_settings_changed_inside_lists_are_named_by_their_place(
    done: StudyFolder, study_file: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    rows = pending(opened(study_file, tmp_path))
    before = yaml.safe_load((done.path / "study.yaml").read_text())["training"]["instructions"]["sources"][0]["sha256"]
    row = next(row for row in rows if row.startswith("setting training.instructions.sources.0.sha256: "))
    assert before[:59] in row
    assert sum("train: new run" in row for row in rows) == 1


def test_what_judges_have_to_rate_is_told_with_its_reason(study_file: Path, tmp_path: Path) -> None:
    with judge_server.serving() as server:
        judge = f"judges=[{{model: m, base_url: '{server.url}', facets: [fluency], rubrics: mine}}]"
        (study_file.parent / "mine").mkdir()
        rubric = study_file.parent / "mine" / "fluency.md"
        rubric.write_text("Is it fluent?")
        study = load_study(study_file, [judge])
        replies = PROMPTS * 3
        assert f"judge m: rate {replies} replies (not made yet)" in pending(open_study(study, tmp_path / "out"))
        workspace = carried_out(study, tmp_path / "out")
        assert pending(workspace) == [f"judge m: rate {replies} replies (not rated yet)"]
        judge_stage(workspace)
        assert pending(workspace) == []
        rubric.write_text("Does it read well?")
        assert pending(workspace) == [f"judge m: rate {replies} replies (judge, rubric or reply changed)"]
        (base := workspace.runs[0]).responses(0).unlink()
        left = f"{replies - PROMPTS} judge, rubric or reply changed"
        assert f"judge m: rate {replies} replies ({PROMPTS} not made yet, {left})" in pending(workspace)
        assert base.config.untuned


def test_responses_count_for_the_chat_template_and_tokenizer_that_they_were_made_with(done: StudyFolder) -> None:
    run = tuned(done)[0]
    template = run.checkpoint(4) / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("user\\n", "user:\\n"), encoding="utf-8")
    assert pending(done) == [
        f"{run.label}: measure the language margin (not measured in ru)",
        f"{run.label}: measure the grammar margin (not measured in en, ru)",
        f"{run.label}: answer {PROMPTS} of {PROMPTS} prompts (chat template or tokenizer changed)",
        f"{run.label}: rate {PROMPTS} replies by language, fluency (not made yet)",
    ]
    with pytest.raises(UserError, match="not what was written"):
        generate_stage(done)
    shutil.rmtree(run.checkpoint(4))
    (run.training_state(4)).unlink()
    carried_out(done.study, done.path)
    assert pending(done) == []
    assert len(read_records(run.responses(4))) == PROMPTS  # asked as before, they count again
