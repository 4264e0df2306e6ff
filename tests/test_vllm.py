"""`decoding.engine: vllm`: what it is given is what vLLM takes, and it says what xlift's own decoding says.

The parts that need vLLM skip where it is not installed; they run on a CPU, too.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from xlift.checkpoint import checkpoints
from xlift.errors import ConfigError
from xlift.generation.vllm import RANKS, beyond_vllm, engine_arguments, sampling_arguments
from xlift.stages import generate_stage, prepare
from xlift.study.loading import load_study, parse_study
from xlift.study.served import Decoding, Model

SPEC = importlib.util.find_spec("vllm")
with_vllm = pytest.mark.skipif(SPEC is None, reason="vLLM is not installed")
SAMPLED = Decoding(strategy="sample", temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, stop=["\n"], max_new_tokens=9)


def test_greedy_replies_are_drawn_by_nothing_and_samples_by_a_seed_of_their_prompt() -> None:
    greedy = sampling_arguments(Decoding(repetition_penalty=1.1), [3, 2], "a")
    assert (greedy["temperature"], greedy["repetition_penalty"], greedy["stop_token_ids"]) == (0.0, 1.1, [2, 3])
    assert "seed" not in greedy
    first, again, other = (sampling_arguments(SAMPLED, [2], key) for key in ("a", "a", "b"))
    assert first == again != other
    assert (first["top_k"], first["stop"], first["max_tokens"]) == (5, ["\n"], 9)


def test_an_engine_has_room_for_all_adapters_and_none_where_there_is_none() -> None:
    assert engine_arguments("m", "abc", "bfloat16", [4, 20], 2) == {
        **{"model": "m", "dtype": "bfloat16", "tensor_parallel_size": 2, "seed": 0},
        **{"revision": "abc", "tokenizer_revision": "abc"},
        **{"enable_lora": True, "max_loras": 2, "max_lora_rank": 32},
    }
    assert "enable_lora" not in engine_arguments("m", None, "bfloat16", [], 1)
    assert engine_arguments("m", None, "bfloat16", [8] * 40, 1)["max_loras"] == 8


def test_answers_of_vllm_are_never_taken_for_those_of_xlift_and_servers_have_no_engine() -> None:
    assert Decoding(engine="vllm").signature != Decoding().signature
    served = [Model(model="m", base_url="http://h/v1", decoding={"engine": one}) for one in ("local", "vllm")]
    assert served[0].signature == served[1].signature


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"allow": True}, "allow and steer"), ({"steer": 1.0}, "allow and steer")],
)
def test_what_vllm_has_not_is_refused_in_the_file(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Decoding(engine="vllm", **settings)
    with pytest.raises(ValueError, match="tensor_parallel is for engine: vllm"):
        Decoding(tensor_parallel=2)


def test_what_vllm_has_not_is_named_for_a_run(study_file: Path, tmp_path: Path) -> None:
    changed = ["training.weight=0.5", "training.adaptation.dora=true"]
    workspace = prepare(load_study(study_file, changed), tmp_path / "out")
    run = next(run for run in workspace.runs if run.config.weight != 1)
    from xlift.checkpoint import Checkpoint

    assert beyond_vllm(Checkpoint(workspace.study, run, 4, ())) == ["weight below 1", "adaptation.dora"]


@pytest.mark.skipif(SPEC is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named_before_anything_is_done(study_file: Path) -> None:
    from xlift.extras import require

    study = load_study(study_file, ["decoding.engine=vllm"])
    with pytest.raises(ConfigError, match=r"decoding\.engine: vllm needs vllm: not installed"):
        require(*study.extras)


def fields_of(file: str, name: str) -> set[str]:
    """The fields of a class of vLLM, and the parameters that it is made with, read from its source."""
    assert SPEC
    assert SPEC.submodule_search_locations
    tree = ast.parse((Path(SPEC.submodule_search_locations[0]) / file).read_text(encoding="utf-8"))
    (found,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    made = [node.args for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    names = {one.arg for args in made for one in (*args.args, *args.kwonlyargs)}
    return names | {
        node.target.id for node in found.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


@with_vllm
def test_arguments_are_those_that_vllm_takes() -> None:
    takes = fields_of("entrypoints/llm.py", "LLM") | fields_of("engine/arg_utils.py", "EngineArgs")
    assert {*engine_arguments("m", "r", "float32", [8], 1), "tokenizer"} <= takes
    assert {*sampling_arguments(SAMPLED, [1], "a")} <= fields_of("sampling_params.py", "SamplingParams")
    assert {"lora_name", "lora_int_id", "lora_path"} <= fields_of("lora/request.py", "LoRARequest")
    assert SPEC
    assert SPEC.submodule_search_locations
    text = (Path(SPEC.submodule_search_locations[0]) / "config" / "lora.py").read_text(encoding="utf-8")
    assert f"{', '.join(map(str, RANKS))}]" in text


@with_vllm
def test_a_model_and_its_adapter_say_what_they_say_by_xlift(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from architectures import build
    from conftest import build_tokenizer
    from peft import LoraConfig, get_peft_model

    for name, value in {"ENABLE_V1_MULTIPROCESSING": "0", "CPU_KVCACHE_SPACE": "1"}.items():
        monkeypatch.setenv(f"VLLM_{name}", value)
    # Heads of 32 are the smallest that vLLM has on a CPU.
    model = build("llama", hidden_size=64, num_attention_heads=2, num_key_value_heads=2, head_dim=32)
    model.save_pretrained(tmp_path / "base")
    build_tokenizer().save_pretrained(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "adapter")
    said = {}
    for engine in ("local", "vllm"):
        raw = {
            "name": "study",
            "models": [str(tmp_path / "base"), str(tmp_path / "adapter")],
            "prompts": {"languages": ["en"], "validation": {"source": "none"}, "test": {"size": 3}},
            "decoding": {"engine": engine, "max_new_tokens": 8},
            "validation": {"margins": False, "grammar": False},
            "dtype": "float32",
        }
        workspace = prepare(parse_study(raw), tmp_path / engine)
        generate_stage(workspace, offline=True)
        found = checkpoints(workspace)
        said[engine] = [(one.run.label, response["text"]) for one in found for response in one.responses]
    assert len(said["vllm"]) == 6
    assert said["vllm"] == said["local"]
    assert all(response["engine"].startswith("vLLM ") for one in found for response in one.responses)
