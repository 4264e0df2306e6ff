"""Every recipe of studies/paper is read whole, and runs from its data to its report with small models and data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import architectures
import pytest
import yaml
from conftest import build_tokenizer
from judge_server import serving
from tokenizers_at_hand import sentencepiece_tokenizer

from xlift.checkpoint import checkpoints
from xlift.disk import write_jsonl
from xlift.languages import LANGUAGES
from xlift.results import load
from xlift.stages import run_study
from xlift.study.loading import load_study
from xlift.study.study import Study

RECIPES = sorted((Path(__file__).parent.parent / "studies" / "paper").glob("*.yaml"))
LIKE: dict[str, tuple[str, Callable[[], Any]]] = {
    "meta-llama/Llama-2": ("llama", sentencepiece_tokenizer),
    "Unbabel/TowerBase": ("llama", sentencepiece_tokenizer),
    "meta-llama/Llama-3": ("llama", build_tokenizer),
    "Qwen/Qwen3": ("qwen3", build_tokenizer),
    "google/gemma-3": ("gemma3_text", build_tokenizer),
    "HuggingFaceTB/SmolLM2": ("llama", build_tokenizer),
}
"""Architecture and kind of tokenizer of the recipes' models, by how their names begin."""


def small_model(name: str, folder: Path) -> str:
    """A tiny model of the same architecture, with a tokenizer of the same kind."""
    kind, tokenizer = next(like for prefix, like in LIKE.items() if name.startswith(prefix))
    path = folder / name.replace("/", "-")
    if not path.is_dir():
        made = tokenizer()
        # Models of one architecture are no longer one model where their sizes differ.
        architectures.build(kind, vocab_size=len(made), max_position_embeddings=256 + len(name)).save_pretrained(path)
        made.save_pretrained(path)
    return str(path)


def conversation(language: str, number: int) -> dict[str, Any]:
    asked, said = f"{language} {number}: why?", f"Because {number}."
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"messages": turns, "language": language}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and prompts of the shapes that the recipes name."""
    folder = tmp_path_factory.mktemp("recipes")
    write_jsonl(folder / "data.jsonl", [conversation(code, i) for code in LANGUAGES for i in range(12)])
    prompts = folder / "prompts"
    prompts.mkdir()
    for code in ("en", "fr", "pt", "ru"):
        turns = [[{"role": "user", "content": f"{code} {i}: tell me."}] for i in range(2)]
        for name in ("alpacaeval_test_subset", "modifiers"):
            lines = "\n".join(json.dumps(one) for one in turns)
            (prompts / f"{name}.{code}.jsonl").write_text(lines, encoding="utf-8")
        (prompts / f"modifiers.{code}.types").write_text("short\nnum_items_3\n", encoding="utf-8")
    return folder


def first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def shrunk(raw: dict[str, Any], place: Path, judge: str) -> dict[str, Any]:
    """The same study with one value of every axis, small data, few steps and short answers."""
    training = raw["training"]
    models = training["model"] if isinstance(training["model"], list) else [training["model"]]
    data = first(training["instructions"]) if isinstance(training["instructions"], list) else training["instructions"]
    sources = [
        {**source, "path": str(place / "data.jsonl"), "size": 6, "languages": source.get("languages", ["en"])}
        for source in data["sources"]
    ]
    training |= {
        **{name: first(training[name]) for name in ("seed", "adaptation") if name in training},
        **{"learning_rate": [1e-3, 1e-4] if "halving" in raw else 1e-3, "steps": 2, "checkpoint_every": 1},
        **{"batch_tokens": 64, "micro_batch_tokens": 64, "max_length": 60},
        "model": [small_model(name, place / "models") for name in models],
        "instructions": {"sources": sources, "heldout": 2},
    }
    training.pop("epochs", None)
    for one in raw.get("include", []):
        one |= {"learning_rate": first(one["learning_rate"]), "batch_tokens": 64}
    codes = raw["prompts"]["languages"][:2]
    raw["prompts"] = {
        "languages": codes,
        "validation": {**raw["prompts"]["validation"], "size": 1},
        "test": {"size": 1, "source": [one.replace("data/prompts", str(place / "prompts")) for one in sources_of(raw)]},
    }
    raw["decoding"] = {**raw.get("decoding", {}), "max_new_tokens": 3}
    raw["validation"] = {**raw.get("validation", {}), "max_new_tokens": 3, "grammar": False}
    raw["judges"] = [{**one, "base_url": judge, "facets": ["helpfulness"]} for one in raw.get("judges", [])]
    raw["report"] = {**raw.get("report", {}), "bootstrap": 100}
    if "halving" in raw:
        raw["halving"]["first"] = 1
    return raw


def sources_of(raw: dict[str, Any]) -> list[str]:
    found = raw["prompts"]["test"]["source"]
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_whole_and_says_how_many_runs_it_has(path: Path) -> None:
    study = load_study(path)
    tuned = [run for run in study.runs() if not run.untuned]
    head = " ".join(line.removeprefix("#").strip() for line in path.read_text(encoding="utf-8").splitlines()[:24])
    assert f"{len(tuned)} runs and" in head
    assert f"xlift run studies/paper/{path.name}" in head
    assert head.index("Before:") < head.index("Start:") < head.index("Machine:")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_from_its_data_to_its_report(
    path: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving() as server:
        raw = shrunk(yaml.safe_load(path.read_text(encoding="utf-8")), place, server.url)
        (tmp_path / path.name).write_text(yaml.safe_dump(raw), encoding="utf-8")
        study: Study = load_study(tmp_path / path.name)
        done = run_study(study, tmp_path / "out")
    found = checkpoints(done)
    assert all(not one.unanswered for one in found)
    assert {one.run.config.adaptation.method for one in found} >= {"none", "lora"}
    ratings = load(tmp_path / "out").ratings
    assert set(study.raters) & set(ratings["rater"])
    assert (tmp_path / "out" / "report" / "index.html").is_file()
