"""Every setting of a study file does something: each is changed alone, and what it is for must differ.

A setting without a case here fails the first test.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from judge_server import Serving, serving
from pydantic import BaseModel
from report_fixtures import GOOD, STEP, log_training, made_study, rated_by

from xlift.checkpoint import Checkpoint, checkpoints, checkpoints_of, grammar_languages
from xlift.data.instructions import load_instructions
from xlift.data.prompts import load_prompts
from xlift.disk import encode_record, write_jsonl
from xlift.errors import ConfigError, UserError
from xlift.executors import each_run, task_resources
from xlift.generation.engine import decode
from xlift.generation.served import LEDGER, answer_served
from xlift.generation.vllm import engine_arguments
from xlift.halving import stopped
from xlift.hub import folder_sha256, locate
from xlift.judging.panel import panel_ratings
from xlift.judging.ratings import judge_responses, ledger_path
from xlift.models import KeptBase, Placement, load_model, load_tokenizer, place
from xlift.planning.check import check_study
from xlift.records import fingerprint, read_records
from xlift.report.numbers import findings_of, selection_rows
from xlift.report.page import _markdown
from xlift.report.reading import Material
from xlift.report.remedies import remedies_table
from xlift.results import tidy_table
from xlift.servers.client import Pace
from xlift.stages import ProcessWork, generate_stage, prepare, rate_stage, runs_at_once, train_stage
from xlift.study.data import Prompts
from xlift.study.labels import run_settings
from xlift.study.loading import parse_study, section_class
from xlift.study.runs import FILLED_IN, INDIFFERENT, RunConfig
from xlift.study.study import Study
from xlift.tuning.encoding import Data, encode_data
from xlift.tuning.optimizer import learning_rate_at, make_optimizer
from xlift.tuning.sharding import is_sharded
from xlift.tuning.templates import ChatFormat, chat_format
from xlift.tuning.train import lay_out, plan, prepared_model, train_step
from xlift.watch import validation_prompts, watcher
from xlift.workspace import StudyFolder, open_study

CPU = Placement("cpu", "float32", "test")


@dataclass
class Lab:
    """Models, data, judge servers and a folder: what the settings of a study act on."""

    folder: Path
    model: str
    servers: tuple[Serving, Serving]
    kept: KeptBase = field(default_factory=KeptBase)
    seen: dict[Any, Any] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def value(self, value: Any) -> Any:
        """A value of a case; words in capitals stand for what is in the lab."""
        named = {"OTHER": self.folder / "other", "FR": self.folder / "fr.jsonl", "RUBRICS": self.folder / "rubrics"}
        if value == "SERVER":
            return self.servers[1].url
        return str(named[value]) if isinstance(value, str) and value in named else value

    def place(self) -> Path:
        """A new folder."""
        return self.folder / str(next(self.numbers))

    def base(self) -> dict[str, Any]:
        """The study of which one setting at a time is changed."""
        source = {"path": str(self.folder / "en.jsonl"), "format": "alpaca"}
        return {
            "name": "settings",
            "training": {
                "model": self.model,
                "template": "gemma",
                "instructions": {"sources": [source], "heldout": 2},
                "adaptation": {"rank": 4},
                "learning_rate": 1e-2,
                "steps": 3,
                "batch_tokens": 120,
                "micro_batch_tokens": 120,
            },
            "prompts": {"languages": ["en", "fr"], "validation": {"size": 2}, "test": {"size": 3}},
            "decoding": {"max_new_tokens": 6},
            "validation": {"margins": False, "grammar": False},
            "judges": [{"model": "m", "base_url": self.servers[0].url}],
            "report": {"bootstrap": 100},
            "device": "cpu",
            "dtype": "float32",
        }

    def study(self, changes: Mapping[str, Any]) -> Study:
        raw = self.base()
        for path, value in changes.items():
            _put(raw, path.split("."), self.value(copy.deepcopy(value)))
        raw = json.loads(json.dumps(raw).replace('"FIRST"', json.dumps(self.servers[0].url)))
        key = json.dumps(raw)
        if key not in self.seen:
            self.seen[key] = parse_study(raw)
        return cast(Study, self.seen[key])

    def shown(self, shows: Shows, study: Study) -> Any:
        """What is seen of a study, looked at once."""
        key = (shows, study.model_dump_json())
        if key not in self.seen:
            self.seen[key] = shows(study, self)
        return self.seen[key]


Shows = Callable[[Study, Lab], Any]


class Case(NamedTuple):
    """A value for a setting, what must differ then, and the settings without which this one has no say."""

    value: Any
    shows: Shows
    given: Mapping[str, Any] = {}


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        inner = raw.setdefault(name, {})
        raw = inner[0] if isinstance(inner, list) else inner
    raw[path[-1]] = value


def _tuned(study: Study) -> RunConfig:
    return study.runs()[-1]


def _chat(config: RunConfig) -> ChatFormat:
    return chat_format(load_tokenizer(locate(config.model).path), *config.spoken)


def _data(study: Study) -> Data:
    config = _tuned(study)
    return encode_data(config, _chat(config), *load_instructions(config.instructions))


def runs(study: Study, lab: Lab) -> Any:
    return [run.content_hash for run in study.runs()]


def base_model(study: Study, lab: Lab) -> Any:
    found = locate(_tuned(study).model, _tuned(study).revision)
    return found.facts, (Path(found.path) / "config.json").read_text()


def conversations(study: Study, lab: Lab) -> Any:
    return [list(part) for part in load_instructions(_tuned(study).instructions)]


def examined(study: Study, lab: Lab) -> Any:
    """What is told of the data before a run is trained on them, or why they are refused."""
    try:
        return ProcessWork().examples(prepare(study, lab.place()), _tuned(study).instructions, offline=True).facts
    except UserError as error:
        return error.problems


def column(study: Study, lab: Lab) -> Any:
    """How the tidy table and the report call the instructions."""
    return run_settings(_tuned(study))["instructions"]


def encoded(study: Study, lab: Lab) -> Any:
    return _data(study).train, _chat(_tuned(study)).encode_prompt([{"role": "user", "content": "Why?"}])


def steps(study: Study, lab: Lab) -> Any:
    return plan(_tuned(study), _data(study).lengths)


def rates(study: Study, lab: Lab) -> Any:
    return [learning_rate_at(_tuned(study), step, 3) for step in range(3)]


def model(study: Study, lab: Lab) -> Any:
    """What is trained, from where it begins, and how it is computed."""
    config = _tuned(study)
    with prepared_model(config, locate(config.model), CPU, lab.kept) as found:
        trained = {name: one.detach().sum().item() for name, one in found.named_parameters() if one.requires_grad}
        layers = [one for one in found.modules() if hasattr(one, "scaling")]
        lora = [(one.scaling, [drop.p for drop in one.modules() if hasattr(drop, "p")]) for one in layers]
        kinds = {str(one.dtype) for one in found.parameters()}
        return trained, lora, kinds, any(getattr(one, "gradient_checkpointing", False) for one in found.modules())


def shared_out(study: Study, lab: Lab) -> Any:
    """Whether layers are put together for each use, from what lies in main memory."""
    with prepared_model(_tuned(study), locate(lab.model), CPU, lab.kept) as found:
        lay_out(found, _tuned(study), CPU)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return is_sharded(found)


def optimizer(study: Study, lab: Lab) -> Any:
    with prepared_model(_tuned(study), locate(lab.model), CPU, lab.kept) as found:
        groups = make_optimizer(_tuned(study), found).param_groups
        return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def in_half(study: Study, lab: Lab) -> Any:
    """The kinds of layers that multiply in a dtype of 16 bits."""
    half = replace(CPU, dtype="bfloat16")
    with prepared_model(_tuned(study), locate(lab.model), half, lab.kept) as found:
        lay_out(found, _tuned(study), half)
        return {type(one).__name__ for one in found.modules()}


def one_step(study: Study, lab: Lab) -> Any:
    """The shapes of a step's forward passes, and the gradients that the optimiser was given."""
    config, data = _tuned(study), _data(study)
    with prepared_model(config, locate(config.model), CPU, lab.kept) as found, passes(found) as shapes:
        made = make_optimizer(config, found)
        train_step(found, made, data.train, config, _chat(config), CPU, 0, 2, data.wrong)
        return shapes, [state["exp_avg"].abs().sum().item() for state in made.state.values()]


@contextmanager
def passes(found: Any) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of the tokens that a model is given, pass by pass."""
    shapes: list[tuple[int, ...]] = []
    embeddings = found.get_input_embeddings()
    hook = embeddings.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        yield shapes
    finally:
        hook.remove()


def training(study: Study, lab: Lab) -> Any:
    """What lies in the run's folder after training, and at which steps the model was measured."""
    workspace = prepare(study, lab.place())
    train_stage(workspace)
    run = workspace.runs[-1]
    measured = [record["step"] for record in read_records(run.train_log) if "validation" in record]
    return run.checkpoint_steps(), measured, sorted(path.name for path in run.path.iterdir())


def decoded(study: Study, lab: Lab) -> Any:
    """How the runs of a study decode, and what marks their replies as up to date."""
    workspace = open_study(study, lab.place())
    found = [Checkpoint(study, run, 1, ()) for run in workspace.runs]
    return [(one.decoding.allow, one.decoding.steer, one.decoding.signature) for one in found]


def generated(study: Study, lab: Lab) -> Any:
    workspace = prepare(study, lab.place())
    train_stage(workspace)
    generate_stage(workspace)
    return [response["text"] for one in checkpoints_of(workspace, workspace.runs[-1]) for response in one.responses]


def prompts(study: Study, lab: Lab) -> Any:
    return load_prompts(study.prompts, study.decoding.samples)


def replies(study: Study, lab: Lab) -> Any:
    """The replies themselves, and what marks them as up to date."""
    found = load_model(lab.model, CPU)
    chat = _chat(_tuned(study))
    chosen = load_prompts(study.prompts)[-4:]
    asked = [chat.encode_prompt(prompt["messages"]) for prompt in chosen]
    texts: dict[int, str] = {}
    keys, languages = [str(i) for i in range(len(asked))], [prompt["language"] for prompt in chosen]
    decode(found, chat, asked, keys, study.decoding, lambda i, reply: texts.update({i: reply.text}), languages)
    return texts, study.decoding.signature


def batches(study: Study, lab: Lab) -> Any:
    found, chat = load_model(lab.model, CPU), _chat(_tuned(study))
    with passes(found) as shapes:
        decode(found, chat, [[5, 6], [7]], ["a", "b"], study.decoding, lambda i, reply: None)
    return shapes


def _with_checkpoints(study: Study, lab: Lab) -> StudyFolder:
    workspace = prepare(study, lab.place())
    for step, run in itertools.product((2, 4), workspace.runs):
        (run.path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    return workspace


def counting(study: Study, lab: Lab) -> Any:
    return [(one.run.id, one.step) for one in checkpoints(_with_checkpoints(study, lab))]


def rated(study: Study, lab: Lab) -> Any:
    """The raters that have rated."""
    workspace = _made(study, lab)
    rate_stage(workspace)
    return {path.name for path in workspace.path.rglob("ratings/*.jsonl")}


def _made(study: Study, lab: Lab) -> StudyFolder:
    settings = study.model_dump(mode="json", exclude={"models"})
    settings["training"] = {"learning_rate": [1e-4, 1e-3], "seed": [0, 1]}
    return made_study(lab.place(), lambda _, prompt: GOOD[prompt["language"]], **settings)


def watched(study: Study, lab: Lab) -> Any:
    """What is measured on validation prompts, and the forward passes that it takes."""
    watch = watcher(study, validation_prompts(load_prompts(study.prompts)))
    found = load_model(lab.model, CPU)
    with passes(found) as shapes:
        return watch and watch(found, _chat(_tuned(study))), shapes


def graded(study: Study, lab: Lab) -> Any:
    """The languages whose grammar margin is measured at checkpoints that answer."""
    return grammar_languages(study)


def halved(study: Study, lab: Lab) -> Any:
    workspace = prepare(study, lab.place())
    for place_, run in enumerate(one for one in workspace.runs if one.trains):
        log_training(run, 2.0, {"fr": 0.1 * place_})
    return stopped(workspace)


def _material(study: Study, lab: Lab) -> Material:
    """Two learning rates of two seeds each: the lower one is best in language, the higher in helpfulness."""
    workspace = _made(study, lab)
    low = {run.id for run in workspace.runs if not run.config.untuned and run.config.learning_rate < 5e-4}
    odd = {prompt["id"] for prompt in load_prompts(study.prompts)[::3]}
    return rated_by(
        workspace,
        {
            ("language", "language"): lambda run, prompt: 2.0 if run.id in low or prompt["id"] in odd else 0.0,
            ("helpfulness", "judge:m"): lambda run, prompt: 0.0 if run.id in low else 2.0,
        },
    )


def opening(study: Study, lab: Lab) -> Any:
    """The first lines of the report."""
    material = _material(study, lab)
    return _markdown(material, findings_of(material), []).splitlines()[:3]


def mended(study: Study, lab: Lab) -> Any:
    return remedies_table(_material(study, lab))


def intervals(study: Study, lab: Lab) -> Any:
    found = findings_of(_material(study, lab))
    return found.means, found.versus, found.gaps


def picks(study: Study, lab: Lab) -> Any:
    return selection_rows(_material(study, lab))


def folder(study: Study, lab: Lab) -> Any:
    return open_study(study).path


def placement(study: Study, lab: Lab) -> Any:
    try:
        return place(study.device, study.dtype)
    except UserError as error:
        return str(error)


def where(study: Study, lab: Lab) -> Any:
    """Where work on a run ends up: in this process, or at the address of a cluster, which here is none."""
    done: list[str] = []
    workspace = prepare(study, lab.place())
    try:
        each_run(workspace, workspace.runs, "train", True, lambda workspace, run, offline: done.append(run.id))
    except UserError as error:
        return str(error)
    return done


def resources(study: Study, lab: Lab) -> Any:
    return task_resources(study, {"CPU": 8, "GPU": 1})


def at_once(study: Study, lab: Lab) -> Any:
    return runs_at_once(study)


def judged(part: str) -> Shows:
    """A part of what comes of judging six responses on a real server."""

    def shows(study: Study, lab: Lab) -> Any:
        return lab.shown(_judged, study)[part]

    return shows


def _judged(study: Study, lab: Lab) -> dict[str, Any]:
    (judge,) = study.judges
    for server in lab.servers:
        vars(server.state).update(vars(type(server.state)()))
    target = lab.place()
    outcome = judge_responses(RESPONSES, judge, target / "ratings", target / "ledger", pace=Pace(tries=1, poll=0.01))
    states = [server.state for server in lab.servers]
    return {
        "requests": [sorted(json.dumps(body) for body in state.bodies) for state in states],
        "keys": [headers["authorization"] for headers in states[0].headers],
        "at once": states[0].most_at_once,
        "batches": len(states[0].batches),
        "ratings": sorted(json.dumps(record) for record in read_records(target / "ratings")),
        "cost": outcome.cost,
        "stopped": outcome.stopped,
        "files": ledger_path(Path("study"), judge),
    }


def answered(part: str) -> Shows:
    """A part of what comes of asking a served model the study's prompts on a real server."""

    def shows(study: Study, lab: Lab) -> Any:
        return lab.shown(_answered, study)[part]

    return shows


def _answered(study: Study, lab: Lab) -> dict[str, Any]:
    for server in lab.servers:
        vars(server.state).update(vars(type(server.state)()))
    (one,) = [one for one in checkpoints(prepare(study, lab.place())) if one.run.config.given]
    failure: list[str] = []
    try:
        answer_served(one, Pace(tries=1))
    except UserError as error:
        failure = error.problems
    states = [server.state for server in lab.servers]
    return {
        "requests": [sorted(json.dumps(body) for body in state.bodies) for state in states],
        "keys": [headers["authorization"] for headers in states[0].headers],
        "at once": states[0].most_at_once,
        "cost": sum(line.get("cost", 0) for line in read_records(one.run.path / LEDGER)),
        "failure": failure,
        "missing": [record.get("missing") for record in read_records(one.run.responses(0))],
        "label": one.run.label,
    }


def engine(study: Study, lab: Lab) -> Any:
    return [run.given.by for run in study.runs() if run.given]


def factors(study: Study, lab: Lab) -> Any:
    """The columns of the tidy table."""
    return tidy_table(((run, []) for run in open_study(study, lab.place()).runs), []).columns


RESPONSES = [
    {"id": f"p{i}", "language": "fr", "run": "r", "step": 2, "text": f"Réponse {i}.", "reference": "Une réponse."}
    | {"messages": [{"role": "user", "content": f"Question {i} ?"}]}
    for i in range(6)
]
ORG = {"training.instructions.sources.path": "hub:org/data"}


def signed(study: Study, lab: Lab) -> Any:
    """What answers are known by."""
    return study.decoding.signature


def engines(study: Study, lab: Lab) -> Any:
    """What vLLM is made with."""
    return engine_arguments("m", None, "float32", [], study.decoding.tensor_parallel)


def united(study: Study, lab: Lab) -> Any:
    """What a panel makes of three judges who do not agree, and of two of them."""
    same = {"language": "fr", "run": "r", "step": 0, "facet": "fluency", "response": "0", "signature": "s"}
    values = [("p", "a", 2), ("p", "b", 1), ("p", "c", 1), ("q", "a", 2), ("q", "b", 2)]
    said: Any = [same | {"id": name, "rater": f"judge:{judge}", "value": value} for name, judge, value in values]
    assert study.panel is not None
    return [(one["rater"], one["value"]) for one in panel_ratings(study.panel, study.judges, said)]


PANEL = {"judges": [{"model": name, "base_url": "FIRST"} for name in "abc"], "panel.take": "mean"}
SAMPLED = {"decoding.strategy": "sample"}
HALVING = {
    "halving": {"first": STEP // 2, "factor": 2},
    "training.steps": 99,
    "training.learning_rate": [1e-4, 1e-3, 1e-2, 1e-1],
}
PARALLEL = {
    "training.instructions.sources": [
        {"path": "builtin", "size": 4},
        {"path": "builtin", "language": "fr", "size": 3},
    ]
}
DPO = {"training.preference": 0.5, "training.preference_loss": "dpo"}
SERVED = {"models": [{"model": "m", "base_url": "FIRST"}]}
RAY = {"executor": "ray", "ray.address": "nowhere"}

CASES: dict[str, Case] = {
    "name": Case("other", folder),
    "question": Case("Which is best?", opening),
    "skip_unfit": Case(True, examined, {"training.instructions.sources.path": "unfit.jsonl"}),
    "prompts.allow_contamination": Case(True, examined, {"training.instructions.sources.path": "asked.jsonl"}),
    "include": Case([{"learning_rate": 1e-1}], runs),
    "exclude": Case([{"learning_rate": 1e-2}], runs, {"training.learning_rate": [1e-3, 1e-2]}),
    "include_base": Case(False, runs),
    "training.model": Case("OTHER", base_model),
    "training.revision": Case("v2", base_model, {"training.model": "org/model"}),
    "training.template": Case("chatml", encoded),
    "training.system": Case("Be brief.", encoded),
    "training.thinking": Case("learn", encoded),
    "training.chat_template_kwargs": Case({"effort": "low"}, runs),
    "training.instructions.name": Case("mine", column),
    "training.instructions.sources.path": Case("FR", conversations),
    "training.instructions.sources.format": Case("dolly", conversations),
    "training.instructions.sources.columns": Case({"instruction": "output", "output": "instruction"}, conversations),
    "training.instructions.sources.language": Case("fr", conversations),
    "training.instructions.sources.size": Case(5, conversations),
    "training.instructions.sources.categories": Case(["odd"], conversations),
    "training.instructions.sources.languages": Case(["ru"], conversations),
    "training.instructions.sources.split": Case("test", conversations, ORG),
    "training.instructions.sources.revision": Case("v2", conversations, ORG),
    "training.instructions.size": Case(5, conversations),
    "training.instructions.heldout": Case(3, conversations),
    "training.instructions.subset_seed": Case(1, conversations),
    "training.adaptation.method": Case("full", model),
    "training.adaptation.rank": Case(2, model),
    "training.adaptation.alpha": Case(8.0, model),
    "training.adaptation.dropout": Case(0.1, model),
    "training.adaptation.targets": Case(["q_proj"], model),
    "training.adaptation.rslora": Case(True, model),
    "training.adaptation.dora": Case(True, model),
    "training.adaptation.quantized": Case(True, model),
    "training.adaptation.modules_to_save": Case(["norm"], model),
    "training.adaptation.layers": Case("last 1", model),
    "training.learning_rate": Case(1e-3, rates),
    "training.schedule": Case("constant", rates),
    "training.min_learning_rate_ratio": Case(0.5, rates),
    "training.warmup_steps": Case(1, rates),
    "training.steps": Case(2, steps),
    "training.epochs": Case(1.0, steps, {"training.steps": None}),
    "training.batch_tokens": Case(400, steps),
    "training.micro_batch_tokens": Case(60, one_step),
    "training.max_length": Case(36, encoded),
    "training.packing": Case(False, one_step),
    "training.beta1": Case(0.5, optimizer),
    "training.beta2": Case(0.5, optimizer),
    "training.weight_decay": Case(0.5, optimizer),
    "training.optimizer": Case("adamw8bit", optimizer),
    "training.fp8": Case(True, in_half),
    "training.max_gradient_norm": Case(1e-3, one_step),
    "training.checkpoint_every": Case(2, training),
    "training.gradient_checkpointing": Case(True, model),
    "training.offload": Case(True, shared_out, {"training.adaptation.method": "full"}),
    "training.seed": Case(1, steps),
    "training.weight": Case(0.25, generated),
    "training.remind": Case(True, generated),
    "training.allow": Case(True, decoded),
    "training.steer": Case(0.5, decoded),
    "training.preference": Case(0.5, one_step, PARALLEL),
    "training.preference_loss": Case("dpo", one_step, PARALLEL | {"training.preference": 0.5}),
    "training.preference_beta": Case(2.0, one_step, PARALLEL | DPO),
    "training.swap": Case(1, runs, PARALLEL),
    "prompts.languages": Case(["en", "ru"], prompts),
    "prompts.validation.source": Case("builtin:facts", prompts),
    "prompts.validation.size": Case(1, prompts),
    "prompts.test.source": Case("builtin:facts", prompts),
    "prompts.test.size": Case(1, prompts),
    "decoding.strategy": Case("sample", replies),
    "decoding.max_new_tokens": Case(3, replies),
    "decoding.repetition_penalty": Case(1.0, replies),
    "decoding.temperature": Case(0.3, replies, SAMPLED),
    "decoding.top_p": Case(0.2, replies, SAMPLED),
    "decoding.top_k": Case(2, replies, SAMPLED),
    "decoding.min_p": Case(0.5, replies, SAMPLED),
    "decoding.seed": Case(1, replies, SAMPLED),
    "decoding.samples": Case(2, prompts, SAMPLED),
    "decoding.stop": Case(["a", "e", "i", "о"], replies),
    "decoding.too_long": Case("drop", replies),
    "decoding.allow": Case(True, replies),
    "decoding.steer": Case(2.0, replies),
    "decoding.steer_layers": Case([1], replies, {"decoding.steer": 2.0}),
    "decoding.checkpoints": Case("all", counting),
    "decoding.batch_size": Case(1, batches),
    "decoding.engine": Case("vllm", signed),
    "decoding.quantized": Case(True, signed),
    "decoding.tensor_parallel": Case(2, engines, {"decoding.engine": "vllm"}),
    "raters": Case(["fluency"], rated),
    "models.model": Case("n", answered("requests"), SERVED),
    "models.name": Case("mine", answered("label"), SERVED),
    "models.base_url": Case("SERVER", answered("requests"), SERVED),
    "models.api_key_env": Case("OTHER_KEY", answered("keys"), SERVED),
    "models.concurrency": Case(1, answered("at once"), SERVED),
    "models.timeout": Case(0.01, answered("missing"), SERVED),
    "models.price_input": Case(1.0, answered("cost"), SERVED),
    "models.price_output": Case(1.0, answered("cost"), SERVED),
    "models.max_cost": Case(
        1e-9, answered("failure"), {"models": [{"model": "m", "base_url": "FIRST", "price_input": 1}]}
    ),
    "models.max_requests": Case(1, answered("failure"), SERVED),
    "models.engine": Case("openai", engine, {"models": [{"model": "m"}]}),
    "models.revision": Case("v2", base_model, {"models": [{"model": "org/model"}]}),
    "models.template": Case("chatml", answered("requests"), SERVED),
    "models.system": Case("Be brief.", answered("requests"), SERVED),
    "models.thinking": Case("keep", runs, {"models": [{"model": "org/model"}]}),
    "models.chat_template_kwargs": Case({"enable_thinking": True}, answered("requests"), SERVED),
    "models.factors": Case({"size": 7}, factors, SERVED),
    "models.decoding": Case({"max_new_tokens": 3}, answered("requests"), SERVED),
    "models.body": Case({"top_k": 1}, answered("requests"), SERVED),
    "judges.model": Case("n", judged("requests")),
    "judges.name": Case("mine", judged("files")),
    "judges.base_url": Case("SERVER", judged("requests")),
    "judges.api_key_env": Case("OTHER_KEY", judged("keys")),
    "judges.calls": Case("each", judged("requests")),
    "judges.facets": Case(["fluency"], judged("requests")),
    "judges.scales": Case({"fluency": [1, 5]}, judged("requests"), {"judges.rubrics": "RUBRICS"}),
    "judges.rubrics": Case("RUBRICS", judged("requests")),
    "judges.rubric_language": Case("response", judged("requests")),
    "judges.reference": Case(False, judged("requests")),
    "judges.json_schema": Case(False, judged("requests")),
    "judges.temperature": Case(0.5, judged("requests")),
    "judges.max_new_tokens": Case(64, judged("requests")),
    "judges.seed": Case(1, judged("requests")),
    "judges.concurrency": Case(1, judged("at once")),
    "judges.timeout": Case(0.01, judged("ratings")),
    "judges.price_input": Case(1.0, judged("cost")),
    "judges.price_output": Case(1.0, judged("cost")),
    "judges.max_cost": Case(1e-9, judged("stopped"), {"judges.price_input": 1.0}),
    "judges.max_requests": Case(1, judged("stopped")),
    "judges.batch": Case(True, judged("batches")),
    "panel.judges": Case(["a", "b"], united, PANEL),
    "panel.take": Case("majority", united, PANEL),
    "panel.least": Case(3, united, PANEL),
    "panel.name": Case("we", united, PANEL),
    "validation.every": Case(1, training, {"validation.margins": True}),
    "validation.margins": Case(True, watched),
    "validation.grammar": Case(True, graded),
    "validation.responses": Case(1, watched),
    "validation.max_new_tokens": Case(3, watched, {"validation.responses": 1}),
    "halving.first": Case(STEP, halved, HALVING),
    "halving.factor": Case(4, halved, HALVING),
    "tracking": Case(["tensorboard"], training),
    "executor": Case("ray", where, {"ray.address": "nowhere"}),
    "ray.address": Case("elsewhere", where, RAY),
    "ray.cpus": Case(2, resources, RAY),
    "ray.gpus": Case(0.5, resources, RAY),
    "together": Case(2, at_once),
    "report.title": Case("A title", opening),
    "report.remedies": Case(True, mended),
    "report.bootstrap": Case(200, intervals),
    "report.confidence": Case(0.8, intervals),
    "report.measure": Case({"helpfulness": 1.0}, picks),
    "device": Case("mps", placement),
    "dtype": Case("bfloat16", placement),
}

FILLED = {"model_hashes", "training.instructions.sources.sha256", *(f"training.{name}" for name in FILLED_IN)}
"""Filled in when the study is loaded; nobody sets them."""


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every setting of a section by its path, those of sections in it, of lists of sections and of `training` too."""
    for name, one in section.model_fields.items():
        nested = RunConfig if name == "training" else section_class(one.annotation) if name != "given" else None
        yield from leaves(nested, f"{prefix}{name}.") if nested else [prefix + name]


RECORD = {
    "instruction": "What is {}?",
    "output": "<think>Hm.</think>A thing: {}.",
    "response": "Some other thing than {}.",
}


@pytest.fixture(scope="module")
def lab(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    for name, count in (("en", 12), ("fr", 8)):
        records = [{key: text.format(f"{name} {i}") for key, text in RECORD.items()} for i in range(count)]
        records = [
            one | {"category": "odd" if i % 2 else "even"} | ({"language": "ru"} if i % 3 == 2 else {})
            for i, one in enumerate(records)
        ]
        write_jsonl(folder / f"{name}.jsonl", records)
    write_jsonl(folder / "unfit.jsonl", [*records, {"instruction": "And?", "output": None}])
    tests = [one for one in load_prompts(Prompts(languages=["en"])) if one["split"] == "test"]
    write_jsonl(folder / "asked.jsonl", [*records, {"instruction": tests[0]["messages"][0]["content"], "output": "x"}])
    other = shutil.copytree(tiny, folder / "other")
    (other / "config.json").write_text((tiny / "config.json").read_text().replace("0.2", "0.3"))
    (folder / "rubrics").mkdir()
    (folder / "rubrics" / "fluency.md").write_text("2: reads well. 0: does not.")
    for version in ("main", "v2"):
        _cache(folder / "hub" / "models--org--model", version, {one.name: one.read_bytes() for one in tiny.iterdir()})
        data = {f"{split}.jsonl": _lines(f"{split} {version}") for split in ("train", "test")}
        _cache(folder / "hub" / "datasets--org--data", version, data)
    with pytest.MonkeyPatch.context() as patch, serving(latency=0.03) as one, serving() as two:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
        patch.setenv("OPENAI_API_KEY", "a-key")
        patch.setenv("OTHER_KEY", "another-key")
        patch.chdir(folder)
        yield Lab(folder, str(tiny), (one, two))


def _lines(text: str) -> bytes:
    records = [{key: value.format(f"{text} {i}") for key, value in RECORD.items()} for i in range(6)]
    return b"".join(encode_record({key: one[key] for key in ("instruction", "output")}) for one in records)


def _cache(repository: Path, version: str, files: Mapping[str, bytes]) -> None:
    """A revision of a hub repository, as a download leaves it."""
    sha = fingerprint(str(repository), version, length=40)
    for path, content in {
        f"refs/{version}": sha.encode(),
        **{f"snapshots/{sha}/{k}": v for k, v in files.items()},
    }.items():
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).write_bytes(content)


def test_every_setting_has_a_case_or_is_filled_in() -> None:
    assert sorted(leaves(Study)) == sorted({*CASES, *FILLED})


@pytest.mark.parametrize("setting", CASES)
def test_a_setting_that_is_changed_changes_what_it_is_for(setting: str, lab: Lab) -> None:
    case = CASES[setting]
    before = lab.study(case.given)
    after = lab.study({**case.given, setting: case.value})
    assert before != after
    assert lab.shown(case.shows, before) != lab.shown(case.shows, after)


@pytest.mark.parametrize("shows", dict.fromkeys(case.shows for case in CASES.values()))
def test_what_is_looked_at_is_the_same_where_nothing_is_changed(shows: Shows, lab: Lab) -> None:
    given = next(case.given for case in CASES.values() if case.shows is shows)
    assert lab.shown(shows, lab.study(given)) == shows(lab.study(given), replace(lab, seen={}))


NAMES = {"training.instructions.name"}
"""Names alone change no weights."""


@pytest.mark.parametrize("setting", [name for name in CASES if name.startswith("training.")])
def test_a_setting_of_training_makes_another_run_unless_the_weights_are_the_same(setting: str, lab: Lab) -> None:
    case = CASES[setting]
    before, after = lab.study(case.given), lab.study({**case.given, setting: case.value})
    alike = setting.removeprefix("training.") in INDIFFERENT or setting in NAMES
    assert (runs(before, lab) == runs(after, lab)) == alike


def test_what_is_filled_in_cannot_be_set(lab: Lab) -> None:
    filled = lab.study({})
    assert filled.model_hashes == {lab.model: folder_sha256(Path(lab.model))}
    for setting, value in {"model_hashes": {lab.model: "0"}, "training.instructions.sources.sha256": "0"}.items():
        assert lab.study({setting: value}) == filled
    with pytest.raises(ConfigError, match="a dataset of the hub has no sha256"):
        lab.study({"training.instructions.sources": [{"path": "hub:o/n", "sha256": "0"}]})
    for name in FILLED_IN:
        with pytest.raises(ConfigError, match=f"{name}: no setting of training"):
            lab.study({f"training.{name}": "float32"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"checkpoint_every": [1, 2]}, "training.checkpoint_every: 1 and 2 give one and the same run"),
        ({"gradient_checkpointing": [True, False], "seed": [0, 1]}, "gradient_checkpointing: True and False give"),
        ({"instructions": [{"name": "a"}, {"name": "b"}]}, "training.instructions.name: a and b give one"),
        (
            {"instructions": {"sources": [[{"path": "en.jsonl"}], [{"path": "copy.jsonl"}]]}},
            "sources: .*en.jsonl .* and .*copy",
        ),
        ({"model": ["MODEL", "same"]}, "training.model: .* and .*same give one"),
    ],
)
def test_values_that_would_give_one_run_are_refused(settings: dict[str, Any], says: str, lab: Lab) -> None:
    shutil.copy(lab.folder / "en.jsonl", lab.folder / "copy.jsonl")
    shutil.copytree(lab.model, lab.folder / "same", dirs_exist_ok=True)
    if "model" in settings:
        settings = {"model": [lab.model, str(lab.folder / "same")]}
    with pytest.raises(ConfigError, match=says):
        parse_study({"name": "grid", "training": settings}, folder=lab.folder)


def test_a_setting_that_some_runs_of_a_grid_do_not_have_is_no_reason_to_refuse_it(lab: Lab) -> None:
    training = {"adaptation": {"method": ["lora", "full"], "rank": [4, 8]}, "instructions": {"heldout": 2}}
    study = parse_study({"name": "grid", "training": training, "include_base": False})
    assert [run.adaptation.label for run in study.runs()] == ["lora-r4", "lora-r8", "full"]


def test_with_dropout_the_size_of_a_forward_pass_decides_the_run(lab: Lab) -> None:
    def same(dropout: float) -> bool:
        given = {"training.adaptation.dropout": dropout}
        return runs(lab.study(given), lab) == runs(lab.study({**given, "training.micro_batch_tokens": 60}), lab)

    assert same(0.0)
    assert not same(0.1)


def test_what_only_the_hub_has_is_refused_of_files_and_folders(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"only a dataset of the hub .* has split and revision"):
        lab.study({"training.instructions.sources": [{"path": "en.jsonl", "split": "test", "revision": "v2"}]})
    with pytest.raises(UserError, match="only models of the hub have revisions"):
        check_study(lab.study({"training.revision": "v2"}), probe=False, folder=lab.place())


IDLE = {
    "later than every run": ({"halving": {"first": 3}}, "halving.first .3. is no earlier than the last step"),
    "nothing measured": ({"halving": {"first": 1}, "training.instructions.heldout": 0}, "nothing to compare runs by"),
}


@pytest.mark.parametrize("why", IDLE)
def test_halving_that_could_stop_no_run_is_refused_before_anything_is_trained(why: str, lab: Lab) -> None:
    changes, says = IDLE[why]
    study = lab.study({**changes, "training.learning_rate": [1e-3, 1e-2]})
    target = lab.place()
    with pytest.raises(ConfigError, match=says):
        prepare(study, target)
    with pytest.raises(ConfigError, match=says):
        check_study(study, probe=False, folder=target)
    assert not target.exists()
