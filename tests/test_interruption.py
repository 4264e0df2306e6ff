"""A study that is killed again and again ends with the same files as one that is left alone."""

from __future__ import annotations

import filecmp
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from judge_server import Serving, serving
from warm import start_xlift

from xlift.stages import generate_stage, rate_stage
from xlift.study.loading import load_study
from xlift.verifying import verify
from xlift.workspace import open_study

ROOT = Path(__file__).parent.parent
STEPS = 20

# The files of a study, as docs/files.md promises them; checkpoints are in Hugging Face format.
STUDY_FILES = {
    ".lock",
    "study.yaml",
    "prompts.jsonl",
    "log.txt",
    "judge-NAME.jsonl",
    ".judge-NAME.jsonl.lock",
    "report/index.html",
    "data/HASH/examples.json",
    "data/HASH/tokens-HASH/train.arrow",
    "data/HASH/tokens-HASH/heldout.arrow",
    "data/HASH/tokens-HASH/facts.json",
}
RUN_FILES = {"run.yaml", "manifest.json", "responses/step-N.jsonl", "ratings/step-N.RATER.jsonl", "margins/step-N.json"}
TRAINED_FILES = {"train.jsonl"}
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "xlift.json"}
CHECKPOINT_FILES = {
    "lora": TOKENIZER_FILES | {"adapter_config.json", "adapter_model.safetensors", "README.md"},
    "full": TOKENIZER_FILES | {"config.json", "generation_config.json", "model.safetensors", "README.md"},
}


def write_study(folder: Path, model: Path, judge_url: str) -> Path:
    pairs = [
        {"instruction": f"Tell me {i} things." + " Please." * (i % 3), "output": f"Thing {i}." + " Yes." * (i % 5)}
        for i in range(16)
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    training = {
        "model": str(model),
        "instructions": {"sources": [{"path": "data.jsonl"}], "heldout": 2},
        "adaptation": [{"method": "full"}, {"method": "lora", "rank": 4, "dropout": 0.1}],
        "learning_rate": 1e-3,
        "steps": STEPS,
        "batch_tokens": 120,
        "micro_batch_tokens": 120,
        "checkpoint_every": 4,
    }
    prompts = {"languages": ["en", "ru"], "validation": {"size": 2}, "test": {"size": 4}}
    decoding = {"strategy": "sample", "max_new_tokens": 24, "batch_size": 2}
    study = {"name": "cut", "training": training, "prompts": prompts, "decoding": decoding, "raters": ["language"]}
    study["judges"] = [{"model": "m", "base_url": judge_url, "facets": ["fluency", "helpfulness"], "concurrency": 2}]
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study | {"device": "cpu", "dtype": "float32"}))
    return path


def start(study: Path, folder: Path, results: Path | None = None) -> Any:
    out = ["--out", str(results / "cut")] if results else []
    with (folder / "stderr").open("w") as err, open(os.devnull, "r+") as nothing:
        streams = [nothing.fileno(), nothing.fileno(), err.fileno()]
        return start_xlift("run", str(study), *out, folder=folder, streams=streams)


def finish(study: Path, folder: Path) -> None:
    assert start(study, folder).wait(timeout=300) == 0, (folder / "stderr").read_text()


def has_lines(pattern: str) -> Callable[[Path], bool]:
    return lambda folder: any(path.stat().st_size for path in folder.glob(pattern))


# Signs of the moments at which the study is killed, in the order in which they come.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "the first steps": has_lines("runs/full-*/train.jsonl"),
    "writing a checkpoint": lambda folder: any(folder.glob("runs/full-*/checkpoints/.step-*.tmp")),
    "training after a checkpoint": lambda folder: any(folder.glob("runs/lora-*/checkpoints/step-*")),
    "responses of a tuned model": has_lines("runs/full-*/responses/*.jsonl"),
    "rating": has_lines("runs/*/ratings/*.language.jsonl"),
    "judging": has_lines("runs/*/ratings/*.judge-m.jsonl"),
    "judging the last run": has_lines("runs/lora-*/ratings/*.judge-m.jsonl"),
    "writing the report": lambda folder: any(folder.glob("report/*")),
    "the figures of the report": lambda folder: any(folder.glob("report/figures/*")),
}


def kill_at(sign: Callable[[Path], bool], study: Path, folder: Path, delay: float) -> None:
    process = start(study, folder)
    while process.poll() is None and not sign(folder / "results" / "cut"):
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL, (folder / "stderr").read_text()


@pytest.fixture(scope="module")
def judge() -> Iterator[Serving]:
    with serving(latency=0.02) as server:
        yield server


@pytest.fixture(scope="module")
def study(tiny: Path, judge: Serving, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tiny, judge.url)


@pytest.fixture(scope="module")
def asked() -> Counter[str]:
    """How often the judge was asked what, for the two folders below."""
    return Counter()


@pytest.fixture(scope="module")
def whole(study: Path, judge: Serving, asked: Counter[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, made without interruption."""
    folder, before = tmp_path_factory.mktemp("whole"), Counter(judge.state.seen)
    finish(study, folder)
    asked.update(judge.state.seen - before)
    return folder / "results" / "cut"


@pytest.fixture(scope="module")
def killed(study: Path, judge: Serving, asked: Counter[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the study, killed at every one of MOMENTS, a little later each by chance, and then finished."""
    folder, before = tmp_path_factory.mktemp("killed"), Counter(judge.state.seen)
    chance = random.Random(0)
    for sign in MOMENTS.values():
        kill_at(sign, study, folder, chance.uniform(0, 0.02))
    made = folder / "results" / "cut"
    # A process killed in the middle of an atomic write leaves the temporary file; the moment is too short to be met.
    code = "import sys, pathlib as p, xlift.disk as r; r.temporary_path(p.Path(sys.argv[1])).touch()"
    manifest = next(made.glob("runs/full-*")) / "manifest.json"
    subprocess.run([sys.executable, "-c", code, str(manifest)], check=True)
    assert list(manifest.parent.glob(".manifest.json.*.tmp"))
    finish(study, folder)
    asked.update(judge.state.seen - before)
    return made


KILLS, KILLS_A_STUDY = 200, 10


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_study_killed_at_random_ends_like_one_left_alone(study: Path, whole: Path, tmp_path: Path) -> None:
    """Fresh studies, each killed up to ten times anywhere between its first and its last moment."""
    chance, kills, studies = random.Random(1), 0, 0
    began = time.monotonic()
    (tmp_path / "timed").mkdir()
    finish(study, tmp_path / "timed")
    needed = time.monotonic() - began
    while kills < KILLS:
        folder = tmp_path / str(studies)
        folder.mkdir()
        for _ in range(KILLS_A_STUDY):
            process = start(study, folder)
            time.sleep(chance.uniform(0, needed / 2))
            process.kill()
            kills += process.wait(timeout=60) == -signal.SIGKILL
        finish(study, folder)
        assert different(whole, folder / "results" / "cut") == []
        studies += 1
    print(f"{kills} kills in {studies} studies of {needed:.1f} s: nothing lost, nothing twice, nothing left over")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own in memory, which a test makes small, larger or read-only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def size_of(folder: Path) -> int:
    """KiB that the files of a folder take on a disk."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob("*"))


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_disk_that_is_full_anywhere_loses_nothing(study: Path, whole: Path, small_disk: Path) -> None:
    needed, tries = size_of(whole), 24
    told = Counter[str]()
    for i in range(tries):
        remount(small_disk, f"size={needed * (i + 1) // (tries + 1)}k")
        assert start(study, small_disk.parent, small_disk).wait(timeout=300) == 2
        errors = (small_disk.parent / "stderr").read_text()
        assert "Traceback" not in errors
        assert "No space left on device" in errors
        told[errors.split("error: ")[1].split(":")[0].rsplit("/", 1)[-1]] += 1
        remount(small_disk, "size=1g")
        assert start(study, small_disk.parent, small_disk).wait(timeout=300) == 0, (
            small_disk.parent / "stderr"
        ).read_text()
        assert different(whole, small_disk / "cut") == []
        empty(small_disk)
    print(f"{tries} disks of up to {needed} KiB were full; first told of {dict(told)}")


@pytest.mark.torture
@pytest.mark.timeout(7200)
def test_a_study_that_may_no_longer_be_written_anywhere_loses_nothing(study: Path, whole: Path, tmp_path: Path) -> None:
    """From a random moment on no file of it can be opened for writing, nor made or moved, even by the superuser."""
    chance, made, told = random.Random(2), tmp_path / "results" / "cut", Counter[str]()
    began = time.monotonic()
    (tmp_path / "timed").mkdir()
    finish(study, tmp_path / "timed")
    needed = time.monotonic() - began
    while told.total() < 12:
        process = start(study, tmp_path)
        time.sleep(chance.uniform(0, needed))
        made.mkdir(parents=True, exist_ok=True)
        if subprocess.run(["chattr", "-R", "+i", str(made)], capture_output=True).returncode:
            process.kill()
            pytest.skip("files cannot be made immutable here")
        code = process.wait(timeout=300)
        subprocess.run(["chattr", "-R", "-i", str(made)], check=True)
        errors = (tmp_path / "stderr").read_text()
        assert "Traceback" not in errors
        if code:
            assert code == 2, errors
            first = re.search(r"error: (\S+): Operation not permitted", errors)
            assert first, errors
            told[first[1].rsplit("/", 1)[-1]] += 1
        finish(study, tmp_path)
        assert different(whole, made) == []
        shutil.rmtree(made)
    print(f"{told.total()} studies could no longer be written; first told of {dict(told)}")


@pytest.fixture
def disk_image(tmp_path: Path) -> Iterator[Path]:
    """A file that holds a file system, and a folder beside it where that is mounted; what is written comes late."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(96 * 2**20)
    if not shutil.which("mkfs.ext4") or not mounted(image, folder, make=True):
        pytest.skip("mounting a file system is not allowed here")
    yield image
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def mounted(image: Path, folder: Path, make: bool = False) -> bool:
    if make:
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    return not subprocess.run(["mount", "-o", "loop", str(image), str(folder)], capture_output=True).returncode


def without_power(image: Path, copy: Path) -> None:
    """What the disk holds at one moment: two copies are alike only if nothing was written in between."""
    shutil.copyfile(image, copy)
    while True:
        again = copy.with_suffix(".again")
        shutil.copyfile(image, again)
        same = filecmp.cmp(copy, again, shallow=False)
        again.replace(copy)
        if same:
            return


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("writes", [None, "data=writeback,commit=1"])
def test_a_loss_of_power_anywhere_loses_nothing_that_is_not_made_again(
    writes: str | None, study: Path, whole: Path, disk_image: Path, tmp_path: Path
) -> None:
    """Copies of the disk beneath the file system, as it was at random moments: what was never synced is not there."""
    chance, disk, losses, kept = random.Random(3), tmp_path / "disk", 0, 0
    while losses < 16:
        if writes:
            subprocess.run(["umount", str(disk)], check=True)
            subprocess.run(["mount", "-o", f"loop,{writes}", str(disk_image), str(disk)], check=True)
        process, taken = start(study, tmp_path, disk), []
        while process.poll() is None:
            time.sleep(chance.uniform(0, 3))
            process.send_signal(signal.SIGSTOP)
            taken.append(tmp_path / f"copy-{losses}")
            without_power(disk_image, taken[-1])
            process.send_signal(signal.SIGCONT)
            losses += 1
        assert process.wait(timeout=300) == 0, (tmp_path / "stderr").read_text()
        assert different(whole, disk / "cut") == []
        empty(disk)
        for copy in taken:
            place = copy.with_suffix(".disk")
            place.mkdir()
            assert mounted(copy, place)
            try:
                kept += len(list(place.glob("cut/runs/*/checkpoints/step-*")))
                # Nothing is there that is not as it was written, but for what was being written.
                wrong = verify(place / "cut")[1] if (place / "cut" / "study.yaml").is_file() else []
                assert [one for one in wrong if "left by a process that was killed" not in one] == []
                assert start(study, tmp_path, place).wait(timeout=300) == 0, (tmp_path / "stderr").read_text()
                assert different(whole, place / "cut") == []
            finally:
                subprocess.run(["umount", "--lazy", str(place)], check=True)
            copy.unlink()
    print(f"{losses} losses of power, {kept} checkpoints outlived them")


@pytest.mark.parametrize("copies", [1, pytest.param(24, marks=[pytest.mark.torture, pytest.mark.timeout(7200)])])
def test_a_study_copied_while_it_runs_goes_on_as_well_as_the_one_it_was_copied_from(
    copies: int, study: Path, whole: Path, tmp_path: Path
) -> None:
    chance, made = random.Random(copies), 0
    while made < copies:
        process, taken = start(study, tmp_path), []
        while process.poll() is None and made < copies:
            time.sleep(chance.uniform(0, 2))
            taken.append(tmp_path / f"copy-{made}")
            (taken[-1] / "results").mkdir(parents=True)
            # What is moved or removed meanwhile cannot be copied.
            found = [str(tmp_path / "results" / "cut"), str(taken[-1] / "results")]
            subprocess.run(["cp", "-r", *found], capture_output=True)
            made += 1
        # Only then does nobody write any longer what a copy holds under a temporary name.
        assert process.wait(timeout=300) == 0
        assert different(whole, tmp_path / "results" / "cut") == []
        for folder in taken:
            finish(study, folder)
            assert different(whole, folder / "results" / "cut") == []
            shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "results")


@pytest.mark.torture
@pytest.mark.timeout(7200)
@pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc")
def test_ten_thousand_steps_take_no_more_memory_and_no_more_files_than_the_first(study: Path, tmp_path: Path) -> None:
    longer = yaml.safe_load(study.read_text())
    longer["training"] |= {"steps": 10_000, "checkpoint_every": 1000}
    longer["training"]["instructions"]["sources"] = [{"path": str(study.parent / "data.jsonl")}]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(longer))
    held: dict[str, list[tuple[int, int, int]]] = {}
    with open(os.devnull, "r+") as nothing, (tmp_path / "stderr").open("w") as err:
        streams = [nothing.fileno(), nothing.fileno(), err.fileno()]
        process = start_xlift("train", "study.yaml", folder=tmp_path, streams=streams)
        own = Path(f"/proc/{process.pid}")
        while process.poll() is None:
            for log in tmp_path.glob("results/cut/runs/*/train.jsonl"):
                pages, opened = int((own / "statm").read_text().split()[1]), len(list((own / "fd").iterdir()))
                held.setdefault(log.parent.name, []).append((log.read_bytes().count(b"\n"), pages // 256, opened))
            time.sleep(0.5)
    assert process.wait() == 0, (tmp_path / "stderr").read_text()
    for run, found in held.items():
        late = [one for one in found if 500 < one[0] <= 10_000]
        print(f"{run}: {min(one[1] for one in late)} to {max(one[1] for one in late)} MB, {late[-1][2]} open files")
        assert max(one[1] for one in late) < 1.05 * late[0][1]
        assert max(one[2] for one in late) <= late[0][2] + 2


def different(whole: Path, found: Path) -> list[str]:
    """Files that are not in both folders, or whose contents differ in more than the time that something took."""
    expected, there = files(whole), files(found)
    same_names = expected.keys() & there.keys()
    kept = {name for name in same_names if Path(name).parts[0] != "report" and Path(name).name not in TIMED_FILES}
    return sorted(
        [*(expected.keys() ^ there.keys()), *(one for one in kept if contents(expected[one]) != contents(there[one]))]
    )


TIMED_FILES = {"log.txt", "manifest.json"}


def contents(path: Path) -> object:
    """What a file holds; of records their set, without the seconds that they took."""
    if path.suffix != ".jsonl":
        return path.read_bytes()
    lines = [json.dumps(one, sort_keys=True) for one in records(path, "seconds", "tokens_per_second", "time")]
    return Counter(lines)


def files(study: Path) -> dict[str, Path]:
    return {str(path.relative_to(study)): path for path in sorted(study.rglob("*")) if path.is_file()}


def records(path: Path, *drop: str) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in drop} for line in lines]


def test_whoever_may_read_what_is_made_here_may_read_a_study(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in files(whole).values()} == {(tmp_path / "usual").stat().st_mode}


def test_a_killed_study_ends_with_the_same_checkpoints(whole: Path, killed: Path) -> None:
    expected = {name: path.read_bytes() for name, path in files(whole).items() if "/checkpoints/" in name}
    found = {name: path.read_bytes() for name, path in files(killed).items() if "/checkpoints/" in name}
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_a_killed_study_ends_with_the_same_training_log(whole: Path, killed: Path) -> None:
    logs = list(whole.glob("runs/*/train.jsonl"))
    assert len(logs) == 2
    for path in logs:
        found = records(killed / path.relative_to(whole), "tokens_per_second")
        assert found == records(path, "tokens_per_second")
        assert [record["step"] for record in found] == list(range(STEPS + 1))


@pytest.mark.parametrize("kind", ["responses", "ratings"])
def test_a_killed_study_ends_with_the_same_records_and_none_twice(whole: Path, killed: Path, kind: str) -> None:
    paths = list(whole.glob(f"runs/*/{kind}/*.jsonl"))
    assert len(paths) == {"responses": 3, "ratings": 6}[kind]

    def key(record: dict[str, Any]) -> tuple[str, str]:
        return record["id"], record.get("facet", "")

    for path in paths:
        found = records(killed / path.relative_to(whole), "seconds")
        assert set(Counter(map(key, found)).values()) == {1}
        assert sorted(found, key=key) == sorted(records(path, "seconds"), key=key)


def test_no_answer_of_the_judge_that_was_written_down_is_asked_for_again(
    asked: Counter[str], whole: Path, killed: Path
) -> None:
    """Each of both folders asks once; a kill may lose the two calls under way."""
    kills = len(MOMENTS)
    assert len(asked) == len(records(whole / "judge-m.jsonl")) == len(records(killed / "judge-m.jsonl"))
    assert 2 * len(asked) <= asked.total() <= 2 * len(asked) + 2 * kills


def test_a_killed_study_says_that_every_stage_is_done(killed: Path) -> None:
    for path in killed.glob("runs/*/manifest.json"):
        stages = json.loads(path.read_text())["stages"]
        trained = set() if path.parent.name.startswith("base-") else {"train"}
        assert {name: stage["state"] for name, stage in stages.items()} == dict.fromkeys(
            trained | {"generate", "rate"}, "done"
        )


def test_a_study_killed_just_before_it_says_done_says_so_at_last(study: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(whole, folder)
    workspace = open_study(load_study(study), folder)
    for run in workspace.runs:
        stages = run.manifest()["stages"] | {"generate": {"state": "running"}}
        run.update_manifest(stages={name: stage for name, stage in stages.items() if name != "rate"})
    generate_stage(workspace)
    rate_stage(workspace)
    assert {run.stage(name)["state"] for run in workspace.runs for name in ("generate", "rate")} == {"done"}
    for name, path in files(whole).items():
        if path.suffix == ".jsonl":
            assert (folder / name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("made", ["whole", "killed"])
def test_a_study_leaves_exactly_the_promised_files(made: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(made)
    found = set(files(folder))
    expected = {name.replace("NAME", "m") for name in STUDY_FILES}
    study = {re.sub("[0-9a-f]{16}", "HASH", name) for name in found if not name.startswith(("runs/", "report/"))}
    assert study == expected - {"report/index.html"}
    assert "report/index.html" in found
    report = {name for name in found if name.startswith("report/")}
    assert {Path(name).suffix for name in report - STUDY_FILES} <= {".svg", ".png", ".csv", ".tex"}
    for run in folder.glob("runs/*"):
        method = run.name.split("-")[0]
        steps = range(4, STEPS + 1, 4) if method in CHECKPOINT_FILES else []
        expected = RUN_FILES | (TRAINED_FILES if steps else set())
        expected = {re.sub("step-N", f"step-{STEPS if steps else 0}", name) for name in expected}
        expected = {re.sub("RATER", rater, name) for name in expected for rater in ("language", "judge-m")}
        expected |= {f"checkpoints/step-{step}/{name}" for step in steps for name in CHECKPOINT_FILES[method]}
        expected |= {f"training_state/step-{STEPS}.safetensors"} if steps else set()
        assert set(files(run)) == expected


def test_the_promised_files_are_those_of_the_documentation() -> None:
    documented, stack = set(), [""]
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    for line in re.findall(r"^    ( *)(\S+)", page, re.MULTILINE):
        depth = len(line[0]) // 2
        stack[depth:] = [line[1]]
        documented.add("".join(stack[1 : depth + 1]))
    runs = {f"runs/LABEL-HASH/{name}" for name in RUN_FILES | TRAINED_FILES | {"checkpoints/step-N/"}}
    assert STUDY_FILES | runs <= documented
