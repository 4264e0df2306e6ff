"""The study file as a whole. Its sections: data.py, runs.py, served.py, sections.py; reading it: loading.py."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from xlift.errors import ConfigError, nearest
from xlift.records import FACETS
from xlift.study.data import Prompts
from xlift.study.grid import expand, matches
from xlift.study.labels import model_label
from xlift.study.runs import ANSWERING, SPOKEN, UNTUNED, Adaptation, RunConfig
from xlift.study.sections import Halving, Panel, Ray, Report, Validation
from xlift.study.served import Decoding, Ends, Judge, Model
from xlift.study.settings import Settings


def _default_raters() -> list[str]:
    from xlift.rating import default_raters

    return default_raters()


class Study(Settings):
    """A whole study file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = ""
    """The question that the study answers; opens the report."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Settings of `RunConfig`, each one value or a list of values (an axis of the grid). Where there are `models` and
    nothing here, nothing is trained."""
    include: list[dict[str, Any]] = Field([])
    """More runs: settings that replace those of `training`, each spanning a grid of its own."""
    exclude: list[dict[str, Any]] = Field([])
    """Runs to leave out: those that have every value of one of these rules; a list names alternatives."""
    models: list[Model] = Field([])
    """Models that answer beside the trained runs; a name alone is that of a hub model or a folder."""
    include_base: bool = True
    """Also let each untuned base model answer, as the reference."""
    skip_unfit: bool = False
    """Leave out records that cannot be learned from, counted by reason; otherwise they are refused."""
    prompts: Prompts = Prompts()
    decoding: Decoding = Decoding()
    raters: list[str] = Field(default_factory=_default_raters, min_length=1)
    """Surface checks of the answers: names of `xlift.rating.RATERS`, which says which are there where none is named."""
    judges: list[Judge] = Field([])
    """Judge models that rate the answers, too."""
    panel: Panel | None = None
    """Several of the judges as one rater more; none where it is not given."""
    validation: Validation = Validation()
    halving: Halving | None = None
    """Stop hopeless runs early; off where it is not given."""
    tracking: list[Literal["wandb", "mlflow", "tensorboard", "trackio"]] = Field([])
    """Where training curves are sent, besides train.jsonl."""
    executor: Literal["local", "ray"] = "local"
    """Where runs are worked on: in this process, or as tasks of a Ray cluster."""
    ray: Ray = Ray()
    together: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    """How many LoRA runs of one base are trained in one pass: `auto` (as many as memory holds, where the first steps
    show that it is faster), a number, or 1; where it is not given, `auto` on a GPU and 1 on a CPU."""
    report: Report = Report()
    model_hashes: dict[str, str] = Field({})
    """Hash of each local model folder's content; filled in when the study is loaded."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @field_validator("raters")
    @classmethod
    def _known_raters(cls, names: list[str]) -> list[str]:
        from xlift.rating import checked_raters

        try:
            return checked_raters(names)
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None

    @field_validator("models", mode="before")
    @classmethod
    def _named_alone(cls, models: Any) -> Any:
        found = [{"model": one} if isinstance(one, str) else one for one in models] if isinstance(models, list) else []
        return found if isinstance(models, list) else models

    @field_validator("models")
    @classmethod
    def _named_once(cls, models: list[Model]) -> list[Model]:
        names = Counter(model_label(one).casefold() for one in models)
        again = sorted({model_label(one) for one in models if names[model_label(one).casefold()] > 1})
        if again:
            raise ValueError(f"several models are called {', '.join(again)}; give each a name of its own")
        return models

    @field_validator("judges")
    @classmethod
    def _named_apart(cls, judges: list[Judge]) -> list[Judge]:
        # Some file systems take A for a; ratings are known by the name as it is written.
        files = Counter(judge.label.casefold().replace(".", "-") for judge in judges)
        names = Counter(judge.known_as.casefold() for judge in judges)
        alike = [
            judge.label
            for judge in judges
            if files[judge.label.casefold().replace(".", "-")] > 1 or names[judge.known_as.casefold()] > 1
        ]
        if alike:
            called = ", ".join(sorted(set(alike)))
            raise ValueError(
                f"several judges are called {called}, which would share files; give each a name of its own"
            )
        return judges

    @model_validator(mode="after")
    def _of_its_judges(self) -> Study:
        if not self.panel:
            return self
        labels = [judge.label for judge in self.judges]
        if other := [name for name in self.panel.judges if name not in labels]:
            problems = [f"panel.judges: unknown judge '{name}'; {nearest(name, labels)}" for name in other]
            raise ValueError("; ".join(problems))
        sitting = [judge for judge in self.judges if judge.label in (self.panel.judges or labels)]
        scales: dict[str, set[Ends]] = {}
        for facet, ends in ((facet, judge.ends(facet)) for judge in sitting for facet in judge.facets):
            scales.setdefault(facet, set()).add(ends)
        if apart := [facet for facet, found in scales.items() if len(found) > 1]:
            raise ValueError(f"panel: its judges rate {', '.join(apart)} on different scales")
        wanted, there = max(2, self.panel.least), len(set(self.panel.judges or labels))
        if there < wanted:
            raise ValueError(f"panel: {wanted} judges are wanted, {there} are there; name them under judges")
        return self

    @model_validator(mode="after")
    def _measured_by_somebody(self) -> Study:
        # A facet of people alone is in no study file: it is known by `FACET:human`.
        known = [*FACETS, *(facet for judge in self.judges for facet in judge.facets if facet not in FACETS)]
        named = [name.partition(":") for name in self.report.measure]
        unknown = [facet for facet, _, kind in named if facet not in known and kind != "human"]
        if unknown:
            told = [f"unknown facet '{facet}'; {nearest(facet, known)}, each also as FACET:human" for facet in unknown]
            raise ValueError("report.measure: " + "; ".join(told))
        return self

    @property
    def extras(self) -> list[str]:
        """What must be installed to run every stage: names of `xlift.extras.EXTRAS`."""
        runs = self.runs()
        chosen = {
            "train": not all(run.remote for run in runs) or any(judge.here is not None for judge in self.judges),
            "report": True,
            "judge": any(judge.here is None for judge in self.judges) or any(run.remote for run in runs),
            "vllm": "vllm" in {self.decoding.engine, *(one.decoding.get("engine") for one in self.models)},
            "ray": self.executor == "ray",
            "quantize": any(run.adaptation.quantized or run.optimizer == "adamw8bit" for run in runs)
            or any((self.decoding.quantized, *(one.decoding.get("quantized") for one in self.models))),
        }
        return [name for name, wanted in chosen.items() if wanted]

    def named_runs(self) -> list[RunConfig]:
        """The runs that the grid names, excluded ones among them."""
        return [run for grid in (self.training, *self.include) for run in self.named_by(grid)]

    def named_by(self, grid: dict[str, Any]) -> list[RunConfig]:
        """The runs that `training`, or an entry of `include`, names; no settings train nothing beside models."""
        return [self._run(settings) for settings in expand(RunConfig, grid)] if grid or not self.models else []

    def tuned_runs(self) -> list[RunConfig]:
        """The runs that the grid names and no rule leaves out."""
        return [run for run in self.named_runs() if not any(matches(run, rule) for rule in self.exclude)]

    def runs(self) -> list[RunConfig]:
        """Every run of the grid, the untuned base models first, and the models that answer beside them.

        What a run is made from is in the grid too: the trained run of one that only answers otherwise, such as with
        weights drawn back to the base, and the parents of one with swapped layers.
        """
        tuned = self.tuned_runs()
        asked = [run.model_dump(include={*UNTUNED} - {*ANSWERING}) for run in tuned]
        bases = [RunConfig(adaptation=Adaptation(method="none"), **one) for one in asked]
        drawn = [one for run in tuned for one in (run.trained, run)]
        parents = [one for run in tuned for one in run.parents]
        given = [self.given_run(model) for model in self.models]
        found: dict[str, RunConfig] = {}
        for run in [*(bases if self.include_base else []), *drawn, *parents, *given]:
            found.setdefault(run.content_hash, run)
        return list(found.values())

    def given_run(self, model: Model) -> RunConfig:
        """A model that answers, as a run that trains nothing; one behind a server has no dtype or files here."""
        here = {} if model.remote else {"dtype": self.dtype, "model_sha256": self.model_hashes.get(model.model)}
        spoken = model.model_dump(include={"model", "revision", *SPOKEN})
        return RunConfig(adaptation=Adaptation(method="none"), given=model, **spoken, **here)

    def _run(self, settings: dict[str, Any]) -> RunConfig:
        filled = {"dtype": self.dtype, "model_sha256": self.model_hashes.get(str(settings.get("model")))}
        return RunConfig.model_validate(settings | filled)
