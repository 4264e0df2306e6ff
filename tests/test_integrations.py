"""The raters inside other programs, run by these programs themselves; a test skips where its program is not there."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from xlift.errors import ConfigError
from xlift.integrations import value_of
from xlift.integrations.trl import rater_reward
from xlift.rating.files import Job, rate_files

FR = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
MIXED = f"{FR} This is because blue light travels in shorter and smaller waves."
EN = "The leaves turn yellow because the days become shorter and colder."
TEXTS = [FR, MIXED, EN, "", "Ha!"]


def test_every_adapter_gives_silence_nothing_and_leaves_out_what_cannot_be_rated() -> None:
    assert [value_of("language", text, {"language": "fr"})[0] for text in TEXTS] == [2, 1, 0, 0.0, None]
    assert value_of("language", "<think>The sky", {"language": "fr"}) == (0.0, "empty response")
    assert value_of("constraint", FR, {"language": "fr"}) == (None, "out of the scope of 'constraint'")
    with pytest.raises(ConfigError, match="columns: lang"):
        value_of("language", FR, {"lang": "fr"})


def test_a_reward_reads_texts_and_conversations_and_the_columns_of_the_data() -> None:
    talks = [[{"role": "assistant", "content": text}] for text in TEXTS]
    reward = rater_reward("language")
    expected = [1.0, 0.5, 0.0, 0.0, None]
    assert reward(TEXTS, language=["fr"] * 5, trainer_state=object()) == expected
    assert reward(talks, prompts=[[]] * 5, language=["fr"] * 5) == expected
    assert reward([FR, FR], language=["fr", "en"], reply_language=[None, "fr"]) == [1.0, 1.0]
    assert rater_reward("language", "en")([FR, EN]) == [0.0, 1.0]
    asked = [{"name": "short", "max_words": 3}, None]
    assert rater_reward("constraint")([FR, FR], language=["fr"] * 2, constraint=asked) == [0.0, None]
    assert reward.__name__ == "language_reward"
    with pytest.raises(ConfigError, match="did you mean 'language'"):
        rater_reward("langage")


def shown(language: str, *words: str) -> str:
    """The example of the documentation that has these words."""
    page = (Path(__file__).parent.parent / "docs" / "rating-files.md").read_text(encoding="utf-8")
    (found,) = (
        code for code in re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL) if all(w in code for w in words)
    )
    return str(found)


def test_trl_trains_on_the_reward_as_shown_and_logs_it_by_its_name(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the reward is tried where TRL is installed")
    small = "max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=8, report_to=[]"
    code = shown("py", "GRPOTrainer").replace("Qwen/Qwen3-0.6B", str(tiny)).replace('"grpo"', f'"{tmp_path}"')
    names: dict[str, Any] = {}
    exec(
        code.replace("max_steps=100", f"{small}, use_cpu=True, bf16=False, logging_steps=1, save_strategy='no'"), names
    )
    logged = {name for entry in names["trainer"].state.log_history for name in entry}
    assert {"rewards/language_reward/mean", "rewards/fluency_reward/mean"} <= logged


def test_inspect_scores_the_share_of_right_replies_and_leaves_out_the_unrated(tmp_path: Path) -> None:
    pytest.importorskip("inspect_ai", reason="the scorer is tried where inspect_ai is installed")
    from inspect_ai import eval
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    names: dict[str, Any] = {}
    exec(shown("py", "inspect_ai").replace("[sample]", "[sample.model_copy() for _ in range(5)]"), names)
    replies = [ModelOutput.from_content("mockllm/model", text) for text in TEXTS]
    for one in replies:
        one.usage = ModelUsage()  # or the stand-in model would count tokens, by a file from the network
    model = get_model("mockllm/model", custom_outputs=replies)
    (log,) = eval(names["sky"](), model=model, log_dir=str(tmp_path), display="none", max_samples=1)
    (score,) = log.results.scores
    assert score.metrics["mean"].value == pytest.approx(1 / 4)
    assert (score.scored_samples, score.unscored_samples) == (4, 1)
    (path,) = tmp_path.glob("*.eval")
    kept = rate_files([path], None, Job(["language"], keep=10_000)).kept
    assert [ratings[0]["value"] for _, _, ratings in kept] == [2, 1, 0, None, None]


TASK = """
task: greet_fr
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/docs.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: ""
generation_kwargs: {{until: ["\\n\\n"]}}
"""


def test_the_harness_reports_the_metric_and_its_filter_empties_replies_in_another_language(tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="the metric is tried where lm-evaluation-harness is installed")
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class Says(LM):  # type: ignore[misc]
        def generate_until(self, requests: Any) -> list[str]:
            return [TEXTS[int(one.args[0])] for one in requests]

        loglikelihood = loglikelihood_rolling = generate_until

    docs = [json.dumps({"question": str(i), "lang": "fr"}) + "\n" for i in range(len(TEXTS))]
    (tmp_path / "docs.jsonl").write_text("".join(docs))
    (tmp_path / "own.py").write_text(shown("py", "lm_eval"))
    (tmp_path / "greet_fr.yaml").write_text(TASK.format(folder=tmp_path) + shown("yaml", "own.process_results"))
    os.environ["HF_DATASETS_CACHE"] = str(tmp_path / "cache")
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(Says(), tasks=["greet_fr"], task_manager=tasks, bootstrap_iters=0)
    results = found["results"]["greet_fr"]
    assert (results["xlift_language,all"], results["xlift_missing,all"]) == (1 / 4, 1 / 5)
    kept = [one["filtered_resps"][0] for one in found["samples"]["greet_fr"] if one["filter"] == "right"]
    assert kept == [FR, "", "", "", "Ha!"]
