"""What training takes on GPUs that are not here: counted from a model's configuration, true of the model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from warm import run_xlift

from xlift.hub import Located
from xlift.models import Placement
from xlift.planning.forecast import model_size
from xlift.planning.gpus import kept_bytes, training_needs, training_operations
from xlift.study.runs import Adaptation, RunConfig
from xlift.tuning.attention import TILED_TOKENS
from xlift.tuning.loss import response_loss
from xlift.tuning.packing import pack
from xlift.tuning.templates import Encoded
from xlift.tuning.train import prepared_model

SHAPES = {
    "llama-2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "llama-2-13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}
HEADS = {"llama-2-7b": 32, "llama-2-13b": 40}
PARAMETERS = {"llama-2-7b": 6_738_415_616, "llama-2-13b": 13_015_864_320}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders that hold a configuration and no weights."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("shapes")
    for name, sizes in SHAPES.items():
        LlamaConfig(num_attention_heads=HEADS[name], vocab_size=32000, **sizes).save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_counted_as_kept_of_a_token_is_what_training_keeps(method: str, tiny: Path) -> None:
    config = RunConfig(adaptation=Adaptation.model_validate({"method": method, "rank": 4}))

    def kept(tokens: int) -> int:
        # One example, and no short one of a CPU, so that attention keeps what a kernel does.
        batch = pack([Encoded([5] * tokens, [True] * tokens)])
        own = {one.untyped_storage().data_ptr() for one in model.parameters()}
        found: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        full = torch.autocast("cpu", torch.bfloat16, enabled=method == "full")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), full:
            loss = response_loss(model, batch)
        size = sum(storage.nbytes() for storage in found.values())
        assert float(loss.detach()) > 0
        return size

    with prepared_model(config, Located(str(tiny), None, {}), Placement("cpu", "bfloat16", "")) as model:
        measured = (kept(TILED_TOKENS + 160) - kept(TILED_TOKENS + 32)) / 128
    assert kept_bytes(str(tiny), None, config.adaptation) == pytest.approx(measured, rel=0.15)


def test_the_sizes_of_the_paper_fit_where_they_are_known_to_fit(shapes: Path) -> None:
    def gigabytes(name: str, **settings: object) -> float:
        config = RunConfig.model_validate({"model": str(shapes / name)} | settings)
        size = model_size(Located(config.model, None, {}), config.adaptation)
        assert size.parameters == PARAMETERS[name]
        return training_needs(config, size, kept_bytes(config.model, None, config.adaptation)).whole / 1e9

    full = {"adaptation": {"method": "full"}, "gradient_checkpointing": True}
    small = {"gradient_checkpointing": True, "micro_batch_tokens": 2048}
    # Llama-2's layers have 202 and 317 million weights each, its embeddings 262 and 328.
    assert 18 * 0.66 < gigabytes("llama-2-7b", **full, offload=True) < 22
    assert 22 < gigabytes("llama-2-13b", **full, offload=True) < 44
    # Weights, gradients and AdamW in float32 are 16 bytes a parameter, the copy that autocast keeps 2 more.
    assert 18 * 6.74 < gigabytes("llama-2-7b", **full) < 18 * 6.74 + 15
    assert gigabytes("llama-2-13b", **full) > 18 * 13.02
    assert gigabytes("llama-2-7b", **small) < 24 < gigabytes("llama-2-7b")
    assert 26 < gigabytes("llama-2-13b", **small) < 48


def test_operations_are_those_of_the_matrix_products(shapes: Path) -> None:
    config = RunConfig(model=str(shapes / "llama-2-7b"), adaptation=Adaptation(method="full"))
    size = model_size(Located(config.model, None, {}), config.adaptation)
    assert training_operations(config, size) == 6 * PARAMETERS["llama-2-7b"]
    saving = config.model_copy(update={"gradient_checkpointing": True})
    assert training_operations(saving, size) == 8 * PARAMETERS["llama-2-7b"]


def test_check_tells_what_fits_where_from_a_configuration_alone(shapes: Path, tmp_path: Path) -> None:
    adaptations = [{"method": "lora"}, {"method": "full"}]
    training = {"model": str(shapes / "llama-2-7b"), "adaptation": adaptations, "learning_rate": [1e-5, 1e-4]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "s", "training": training}))
    done = run_xlift("check", "study.yaml", "--gpus", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    full = next(line for line in lines if line.startswith("llama-2-7b full, 2 runs"))
    assert full.split().count("–") == 5
    saving = next(line for line in lines if "micro_batch_tokens: 2048" in line)
    assert "–" not in saving
    full = lines.index(full)
    (offload,) = (line for line in lines[full:] if "… offload: true" in line)
    assert "+ 107.8 GB main" in offload
    assert "–" not in offload
    told = json.loads(run_xlift("check", "study.yaml", "--gpus", "--json", folder=tmp_path).stdout)["gpus"]
    shared = {one["gpus"]: one for one in told if one["gpus"] > 1}
    # Each holds its share of the 16 bytes of a parameter, two layers and the embeddings, and at first the whole.
    for gpus, one in shared.items():
        share = 16 * PARAMETERS["llama-2-7b"] / gpus
        assert max(share, 4 * PARAMETERS["llama-2-7b"]) <= one["bytes"] < share + 15e9
    hours = [shared[gpus]["seconds"]["H200 141 GB"] for gpus in (2, 4, 8)]
    assert hours == pytest.approx([4 * hours[2], 2 * hours[2], hours[2]])
    assert [(one["training"], one["runs"]) for one in told][:1] == [("llama-2-7b lora-r16", 2)]
    assert {card: seconds is None for card, seconds in told[0]["seconds"].items()}["RTX 4090 24 GB"] is True
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"name": "s", "training": {"model": "./nowhere"}}))
    refused = run_xlift("check", "other.yaml", "--gpus", "--offline", folder=tmp_path)
    assert refused.returncode == 2
    assert "no such folder" in refused.stderr
    (tmp_path / "hub.yaml").write_text(yaml.safe_dump({"name": "s", "training": {"model": "nobody/nothing"}}))
    refused = run_xlift("check", "hub.yaml", "--gpus", "--offline", folder=tmp_path)
    assert "model 'nobody/nothing' is not in the local cache and offline is set" in refused.stderr
    assert "try: give a local folder, a hub id" in refused.stderr
