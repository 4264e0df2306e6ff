"""Models and datasets of a hub, over real HTTP from a hub on loopback, in processes that know no other."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import Hub, serve

from xlift.hub import EmbeddedModel, _convert, _embedded_facts, file_sha256

# Runs the command line several times in one process, since each start costs seconds.
DRIVER = """
import contextlib, io, json, os, sys, traceback
from xlift.cli import main

outcomes = []
for case in json.load(sys.stdin):
    os.environ["HF_TOKEN"] = case["token"]
    sys.argv = ["xlift", *case["arguments"]]
    said, code = io.StringIO(), None
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except Exception:
            traceback.print_exc()
    outcomes.append({"code": code, "said": said.getvalue()})
print(json.dumps(outcomes))
"""

# name: (settings, options, token, what the message must say)
REFUSALS: dict[str, tuple[dict[str, Any], list[str], str, list[str]]] = {
    "gated": ({"model": "org/gated"}, [], "", ["'org/gated' is gated", "accept its terms", "hf auth login"]),
    "missing": ({"model": "org/absent"}, [], "", ["'org/absent' is not on the hub", "embedded:"]),
    "revision": ({"model": "org/tiny", "revision": "v9"}, [], "", ["has no revision 'v9'"]),
    "name": ({"model": "a/b/c"}, [], "", ["'a/b/c' is neither a folder nor a hub id"]),
    "pickled": ({"model": "org/pickled"}, [], "", ["'org/pickled' has no *.safetensors file", "safetensors only"]),
    "no config": ({"model": "org/bare"}, [], "", ["'org/bare' has no config.json file"]),
    "offline": ({"model": "org/other"}, ["--offline"], "", ["not in the local cache and offline is set"]),
    "old token": ({"model": "org/other"}, [], "hf_old", ["the hub answers 401", "hf auth login"]),
    "cut": ({"model": "org/cut"}, [], "", ["'org/cut' could not be downloaded: the hub cannot be reached"]),
    "data gated": ({"path": "hub:org/gated"}, [], "", ["dataset 'org/gated' is gated", "hf auth login"]),
    "data missing": ({"path": "hub:org/absent"}, [], "", ["dataset 'org/absent' is not on the hub"]),
    "data revision": ({"path": "hub:org/data", "data_revision": "v9"}, [], "", ["has no revision 'v9'"]),
    "data split": ({"path": "hub:org/data", "split": "trian"}, [], "", ["split trian", "'train'"]),
    "data offline": ({"path": "hub:org/other"}, ["--offline"], "", ["not in the local cache and offline is set"]),
}


def write_study(path: Path, model: str, source: dict[str, Any], **changes: Any) -> Path:
    training = {
        "model": model,
        "instructions": {"sources": [source], "heldout": 2},
        "adaptation": {"rank": 4},
        "steps": 2,
        "batch_tokens": 120,
        "micro_batch_tokens": 120,
        **changes,
    }
    prompts = {"languages": ["en"], "validation": {"size": 1}, "test": {"size": 1}}
    study = {"name": "hub", "training": training, "prompts": prompts, "decoding": {"max_new_tokens": 4}}
    path.write_text(yaml.safe_dump(study | {"raters": ["language"], "device": "cpu", "dtype": "float32"}))
    return path


def xlift(*arguments: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "xlift", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def as_jsonl(records: list[Any]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def without(folder: Path, ending: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith(ending)}


@pytest.fixture(scope="module")
def outcomes(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What `xlift train` says where the hub refuses, by case."""
    folder = tmp_path_factory.mktemp("refusals")
    pairs = as_jsonl([{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(4)])
    (folder / "data.jsonl").write_bytes(pairs)
    with serve() as hub:
        hub.publish("org/tiny", tiny)
        hub.publish("org/gated", tiny, gated=True)
        hub.publish("org/pickled", without(tiny, ".safetensors") | {"pytorch_model.bin": b"pickle"})
        hub.publish("org/bare", without(tiny, "config.json"))
        hub.publish("org/other", tiny)
        hub.publish("org/cut", tiny)
        hub.cut = "org/cut/resolve"
        hub.publish("datasets/org/data", {"train.jsonl": pairs})
        hub.publish("datasets/org/gated", {"train.jsonl": pairs}, gated=True)
        cases = []
        for name, (settings, options, token, _) in REFUSALS.items():
            source = {"path": settings.get("path", str(folder / "data.jsonl")), "split": settings.get("split", "train")}
            source["revision"] = settings.get("data_revision")
            model = settings.get("model", str(tiny))
            file = folder / f"{name}.yaml"
            write_study(file, model, source, revision=settings.get("revision"))
            cases.append({"arguments": ["train", str(file), "--out", str(folder / name), *options], "token": token})
        done = subprocess.run(
            [sys.executable, "-c", DRIVER],
            input=json.dumps(cases),
            env=hub.environment(folder / "home"),
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    return dict(zip(REFUSALS, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_hub_refuses_ends_with_one_clear_message(outcomes: dict[str, dict[str, Any]], case: str) -> None:
    said = outcomes[case]["said"]
    assert outcomes[case]["code"] == 2, said
    assert "Traceback" not in said
    assert said.count("try: ") <= 1
    for part in REFUSALS[case][3]:
        assert part in said, said


@pytest.fixture
def hub(tiny: Path, conversations: list[Any]) -> Iterator[Hub]:
    with serve() as hub:
        hub.publish("org/tiny", tiny)
        hub.publish("datasets/org/data", {"train.jsonl": as_jsonl(conversations)})
        yield hub


def manifests(study: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in study.glob("runs/*/manifest.json")]


def moved(tiny: Path, folder: Path) -> Path:
    """The tiny model with other weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    model.get_output_embeddings().weight.data.mul_(2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def test_a_study_downloads_once_keeps_its_commit_and_needs_the_hub_no_more(
    hub: Hub, tiny: Path, tmp_path: Path
) -> None:
    begun = hub.repositories["org/tiny"].branches["main"]
    environment = hub.environment(tmp_path / "home")
    file = write_study(tmp_path / "study.yaml", "org/tiny", {"path": "hub:org/data"})

    done = xlift("train", str(file), "--out", "first", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    fetched = [request for request in hub.requests if request.startswith("GET") and "/resolve/" in request]
    assert fetched
    assert len(fetched) == len(set(fetched))
    assert {request.split("/resolve/")[0] for request in fetched} == {"GET org/tiny", "GET datasets/org/data"}
    assert begun in [one.get("base", {}).get("model_revision") for one in manifests(tmp_path / "first")]

    # The branches move on; the study stays with the commits that it began with, for its untuned reference too.
    data = hub.repositories["datasets/org/data"].branches["main"]
    hub.publish("datasets/org/data", {"train.jsonl": as_jsonl([{"instruction": "Other.", "output": "Data."}] * 9)})
    trained = [one for one in manifests(tmp_path / "first") if "data" in one]
    assert [one["data_revisions"] for one in trained] == [{"hub:org/data@": data}]
    shutil.rmtree(next(tmp_path.glob("first/runs/lora-*")) / "checkpoints")
    done = xlift("train", str(file), "--out", "first", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert [one["data_revisions"] for one in manifests(tmp_path / "first") if "data" in one] == [
        {"hub:org/data@": data}
    ]
    later = hub.publish("org/tiny", moved(tiny, tmp_path / "moved"))
    hub.requests.clear()
    done = xlift("generate", str(file), "--out", "first", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert {one["base"]["model_revision"] for one in manifests(tmp_path / "first")} == {begun}
    assert not [request for request in hub.requests if later in request]

    # What is checked is what would be gone on with.
    done = xlift("check", str(file), "--out", "first", "--no-probe", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert not [request for request in hub.requests if later in request]

    cards = [one.read_text() for one in tmp_path.glob("first/runs/*/checkpoints/step-2/README.md")]
    assert cards
    assert all(f'from_pretrained("org/tiny", revision="{begun}")' in card for card in cards)
    adapters = [json.loads(one.read_text()) for one in tmp_path.glob("first/runs/*/checkpoints/*/adapter_config.json")]
    assert {(one["base_model_name_or_path"], one["revision"]) for one in adapters} == {("org/tiny", begun)}

    hub.requests.clear()
    done = xlift("run", str(file), "--out", "second", "--offline", folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    assert hub.requests == []
    assert {one["base"]["model_revision"] for one in manifests(tmp_path / "second")} == {begun}


def test_without_a_hub_an_unknown_model_is_said_to_be_out_of_reach(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = Hub(f"http://127.0.0.1:{free.getsockname()[1]}")
        file = write_study(tmp_path / "study.yaml", "org/tiny", {"path": "builtin"})
        done = xlift("train", str(file), folder=tmp_path, environment=nobody.environment(tmp_path / "home"))
    assert done.returncode == 2
    assert "model 'org/tiny' is not in the local cache and the hub cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_datasets_revision_is_never_replaced_by_another_one_in_the_cache(
    hub: Hub, conversations: list[Any], tmp_path: Path
) -> None:
    old = hub.repositories["datasets/org/data"].branches["main"]
    hub.publish("datasets/org/data", {"train.jsonl": as_jsonl(conversations[:7])}, branch="new")
    code = """if True:
        import json, sys
        from xlift.data.instructions import load_source
        from xlift.errors import DataError
        from xlift.study.data import Source

        def count(revision, offline):
            try:
                return len(load_source(Source(path="hub:org/data", revision=revision), offline))
            except DataError as error:
                return str(error)

        print(json.dumps([count(*asked) for asked in json.load(sys.stdin)]))
    """
    asked = [(None, False), ("new", True), ("new", False), (None, True), (old, True)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(asked),
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, uncached, *rest = json.loads(done.stdout)
    assert first == len(conversations)
    assert "not in the local cache and offline is set" in uncached
    assert rest == [7, len(conversations), len(conversations)]


def test_an_embedded_model_that_two_processes_prepare_at_once_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, folder, begun = tmp_path / "m.part1", tmp_path / "models" / "m", list[Path]()
    part.write_bytes(b"weights")
    model = EmbeddedModel("m", 1, file_sha256(part), "free", "", "")

    def dequantise(gguf: Path, made: Path) -> None:
        begun.append(made)
        if len(begun) == 1:  # the other process begins later and is done first
            _convert("m", model, folder)
        made.mkdir()
        (made / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr("xlift.hub._part_files", lambda *_: [part])
    monkeypatch.setattr("xlift.hub._dequantise", dequantise)
    folder.parent.mkdir()
    _convert("m", model, folder)
    assert len(begun) == 2
    assert _embedded_facts(folder)["model_licence"] == "free"


def test_a_hub_that_falls_silent_is_left_after_a_while(tmp_path: Path) -> None:
    code = (
        "import xlift.hub as hub\nfrom xlift.errors import ModelError\n"
        "hub.SILENT_SECONDS = 0.5\n"
        "try: hub.hub_snapshot('org/tiny', None, False, 'model')\nexcept ModelError as error: print(error.problems[0])"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections; nobody answers
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, timeout=100
        )
    assert "'org/tiny' is not in the local cache and the hub cannot be reached (ReadTimeout)" in done.stdout, (
        done.stderr
    )
