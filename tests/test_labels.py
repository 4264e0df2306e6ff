from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest

from xlift.report.reading import conditions_of
from xlift.results import AXES, RATING_COLUMNS
from xlift.study.labels import LONGEST_LABEL, run_labels, run_settings, setting_kinds
from xlift.study.loading import parse_study
from xlift.study.runs import FILLED_IN, UNTUNED, Adaptation, RunConfig

VALUES: dict[str, list[Any]] = {
    "model": ["a/tiny", "b/tiny", "b/Tiny", "c"],
    "revision": [None, "main", "none"],
    "template": ["own", "chatml"],
    "system": [None, "none", "a" * 300 + "b", "a" * 300 + "c", "Réponds en français.", "…"],
    "thinking": ["strip", "keep", "learn"],
    "chat_template_kwargs": [{}, {"effort": "low"}, {"effort": "high", "tags": ["a", "b"]}],
    "learning_rate": [1e-4, 1.0000001e-4, 2e-4],
    "schedule": ["cosine", "linear"],
    "min_learning_rate_ratio": [0.1, 0.0],
    "warmup_steps": [0, 10],
    "steps": [10, 100],
    "batch_tokens": [32768, 65536],
    "micro_batch_tokens": [1024, 2048],
    "max_length": [128, 256],
    "packing": [True, False],
    "beta1": [0.9, 0.8],
    "beta2": [0.95, 0.999],
    "weight_decay": [0.1, 0.0],
    "optimizer": ["adamw", "adamw8bit"],
    "fp8": [False, True],
    "max_gradient_norm": [1.0, 0.5],
    "checkpoint_every": [200, 100],
    "gradient_checkpointing": [False, True],
    "offload": [False, True],
    "seed": [0, 1, 2],
    "weight": [1.0, 0.5],
    "remind": [False, True],
    "allow": [False, True],
    "steer": [0.0, 1.0],
    "preference": [0.0, 0.5],
    "preference_loss": ["orpo", "dpo"],
    "preference_beta": [0.1, 0.5],
    "swap": [0, 2],
    "adaptation.method": ["lora", "full"],
    "adaptation.rank": [8, 16],
    "adaptation.alpha": [16, 32],
    "adaptation.dropout": [0.0, 0.1],
    "adaptation.targets": ["all-linear", ["q_proj", "v_proj"], ["q_proj"]],
    "adaptation.rslora": [False, True],
    "adaptation.dora": [False, True],
    "adaptation.quantized": [False, True],
    "adaptation.modules_to_save": [[], ["norm"], ["lm_head"]],
    "adaptation.layers": [None, "last 1", [0, 2]],
    "instructions.name": [None, "a b", "a-b", "x" * 120],
    "instructions.sources": [[{"path": "one/data.jsonl"}], [{"path": "two/data.jsonl"}], [{"size": 4}]],
    "instructions.size": [None, 8, 64],
    "instructions.heldout": [16, 0],
    "instructions.subset_seed": [0, 1],
}


def config(**settings: Any) -> RunConfig:
    """A run with settings named as in a study file, sections with dots."""
    raw: dict[str, Any] = {}
    for name, value in settings.items():
        section, _, last = name.rpartition(".")
        (raw.setdefault(section, {}) if section else raw)[last] = value
    return RunConfig.model_validate(raw)


def test_checkpoints_of_runs_are_called_after_their_run() -> None:
    models = [f"/studies/{run}/checkpoints/step-17" for run in ("one", "two")]
    labels = run_labels([RunConfig(model=model, adaptation=Adaptation(method="none")) for model in models])
    assert labels == ["base-one-step-17", "base-two-step-17"]


def fits(settings: dict[str, Any]) -> bool:
    """Whether 4 and 8 bits go with the rest."""
    lora, dora = settings.get("adaptation.method", "lora") == "lora", settings.get("adaptation.dora")
    quantized = settings.get("adaptation.quantized")
    return not (quantized and (dora or not lora)) and not (settings.get("fp8") and (dora or quantized))


def test_runs_that_differ_in_any_settings_have_labels_that_differ_even_as_folders() -> None:
    generator = np.random.default_rng(0)
    for trial in range(150):
        varied = generator.choice(list(VALUES), size=generator.integers(1, 6), replace=False)
        values = {name: VALUES[name] for name in varied}
        combined = (dict(zip(values, one, strict=True)) for one in itertools.product(*values.values()))
        runs = [config(**one) for one in combined if fits(one)][:400]
        labels = run_labels(runs)
        assert len({label.casefold() for label in labels}) == len(runs), (trial, varied)
        assert all(0 < len(label.encode()) <= LONGEST_LABEL for label in labels)
        assert not any(set(label) & set(' /\\:*?"<>|,\n') for label in labels)


def test_every_setting_of_a_run_can_be_varied_and_is_in_the_tests_list() -> None:
    tried = {name.rpartition(".")[2] for name in VALUES} - {"name"} | {"instructions", "epochs", *FILLED_IN} - {"given"}
    assert tried == set(setting_kinds()) == set(run_settings(RunConfig()))
    for name, kind in setting_kinds().items():
        values = [
            run_settings(config(**{path: one}))[name] for path in VALUES if path.endswith(name) for one in VALUES[path]
        ]
        assert all(value is None or isinstance(value, kind | int if kind is float else kind) for value in values), name


@pytest.mark.parametrize("name", [name for name in VALUES if name not in ("instructions.name", "adaptation.method")])
def test_a_setting_that_differs_is_named_in_the_label_and_has_a_column(name: str) -> None:
    runs = [config(**{name: value}) for value in VALUES[name][:2]]
    last = name.rpartition(".")[2]
    values = [run_settings(run)[last] for run in runs]
    assert values[0] != values[1]
    assert len(set(run_labels(runs))) == 2


def test_labels_are_readable() -> None:
    training = {"adaptation": {"alpha": [16, 32]}, "packing": [True, False], "seed": [0, 1]}
    labels = run_labels(parse_study({"name": "grid", "training": training}).runs())
    assert labels[0] == "base"
    assert labels[1] == "lora-r16-alpha=16-lr1e-4-packing=on-s0"
    training = {"adaptation": [{"rank": [8, 16]}, {"method": "full"}], "instructions": {"size": [8, 64]}}
    labels = run_labels(parse_study({"name": "grid", "training": training}).runs())
    hows = ("lora-r8", "lora-r16", "full")
    assert labels[1:] == [f"builtin-{size}-{how}-lr1e-4" for how in hows for size in (8, 64)]
    training = {"adaptation": [{"rslora": [False, True]}, {"method": "full"}]}
    labels = run_labels(parse_study({"name": "grid", "training": training}).runs())
    assert labels[1:] == ["lora-r16-lr1e-4", "lora-r16-lr1e-4-rslora=on", "full-lr1e-4"]


def test_untuned_bases_that_differ_in_what_they_are_told_have_labels_of_their_own() -> None:
    training = {"model": ["a/tiny", "b/tiny"], "system": [None, "Be brief."]}
    runs = [run for run in parse_study({"name": "grid", "training": training}).runs() if run.untuned]
    assert len(set(run_labels(runs))) == len(runs) == 4


def test_settings_that_do_not_apply_are_none() -> None:
    full = run_settings(config(**{"adaptation.method": "full"}))
    assert [full[name] for name in ("method", "rank", "alpha", "targets", "weight")] == ["full", None, None, None, 1.0]
    base = run_settings(config(**{"adaptation.method": "none"}))
    of_a_base = {*UNTUNED} - {"revision", "system", "model_sha256", "chat_template_kwargs"}
    assert {name for name, value in base.items() if value is not None} == of_a_base


def test_a_condition_is_called_as_its_runs_without_their_seed_alone() -> None:
    runs = [config(model=f"tiny-s{number}", seed=seed) for number in (1, 2) for seed in (1, 2)]
    rows = [
        {**dict.fromkeys(RATING_COLUMNS), **run_settings(run), "untuned": False, "run": label, "label": label}
        for run, label in zip(runs, run_labels(runs), strict=True)
    ]
    found = conditions_of(pl.DataFrame(rows, schema=RATING_COLUMNS | AXES), [row["run"] for row in rows])
    assert [one.name for one in found] == ["tiny-s1-lora-r16-lr1e-4", "tiny-s2-lora-r16-lr1e-4"]
