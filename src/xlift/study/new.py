"""`xlift init`: a first study file, with comments, from the answers to five questions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import yaml

from xlift.disk import write_atomic
from xlift.errors import ConfigError, nearest
from xlift.languages import language_codes
from xlift.study.loading import parse_study
from xlift.study.runs import EMBEDDED_MODEL
from xlift.study.yaml_text import read_yaml

Compare = Literal["rates", "amounts", "methods", "nothing"]
SizeName = Literal["quick", "usual", "thorough"]


class FirstStudy(NamedTuple):
    """What a first study is about."""

    model: str = EMBEDDED_MODEL
    data: str = "builtin"
    languages: str = "fr,pt,ru"
    compare: Compare = "rates"
    size: SizeName = "quick"


QUESTIONS = {
    "model": "which model is tuned (a folder, a hub id, or embedded:NAME)",
    "data": "on which instructions (a file, hub:OWNER/NAME, or builtin)",
    "languages": "which languages do your users write, besides English",
    "compare": f"what is compared ({', '.join(get_args(Compare))})",
    "size": f"how much is asked ({', '.join(get_args(SizeName))})",
}
"""What is asked for each of the answers, in this order."""

_COMPARED = {
    "rates": """\
  adaptation: {method: lora, rank: 16, alpha: 32}
  learning_rate: [5e-5, 2e-4, 1e-3]   # a list is an axis: one run each; the highest is meant to be too high
""",
    "amounts": """\
  adaptation: {method: lora, rank: 16, alpha: 32}
  learning_rate: 2e-4
""",
    "methods": """\
  adaptation: {method: lora, rank: 16, alpha: 32}
  learning_rate: 2e-4
""",
    "nothing": """\
  adaptation: {method: lora, rank: 16, alpha: 32}
  learning_rate: 2e-4                 # a list, [5e-5, 2e-4], would be an axis: one run each
""",
}
_FULL = """
include:                              # one more run: all weights, which want a lower rate than LoRA
  - {adaptation: {method: full}, learning_rate: 2e-5}
"""


class _Size(NamedTuple):
    examples: int | None
    epochs: int
    validation: int
    test: int
    sources: str
    max_new_tokens: int


_SIZES = {
    "quick": _Size(64, 2, 8, 16, "builtin:open", 64),
    "usual": _Size(None, 2, 12, 40, "builtin:open", 128),
    "thorough": _Size(None, 3, 20, 40, '["builtin:open", "builtin:constraints", "builtin:facts"]', 256),
}


def write_first_study(path: Path, answers: FirstStudy) -> Path:
    """Write a study file that loads as it is, its name ending in .yaml; that name.

    Raises ConfigError for a file that is there, and for wrong answers.
    """
    path = path if path.suffix in {".yaml", ".yml"} else path.with_name(f"{path.name}.yaml")
    if path.exists():
        raise ConfigError(f"{path}: there already", "xlift init OTHER.yaml")
    text = study_text(path, answers)
    parse_study(read_yaml(text, str(path)), folder=path.resolve().parent)
    write_atomic(path, text)
    return path


def study_text(path: Path, answers: FirstStudy) -> str:
    """The study file of some answers. Raises ConfigError for an answer that is none of the choices."""
    for name, kind in (("compare", Compare), ("size", SizeName)):
        if (given := getattr(answers, name)) not in get_args(kind):
            raise ConfigError(f"--{name} {given}: {nearest(given, get_args(kind))}")
    size = _SIZES[answers.size]
    languages = ", ".join(dict.fromkeys(["en", *language_codes(answers.languages)]))
    counts = {"amounts": "[32, 128, 512]   # an axis: one run each, on the first so many examples"}
    examples = counts.get(answers.compare, str(size.examples) if size.examples else "null   # all of them")
    return f"""\
# xlift run {path}
#
# What is left out has the default that docs/study-files.md lists. `xlift check` says what is wrong with it, and
# how long it will take, before anything is spent.

name: {_scalar(_name(path))}
question: >-
  Tuned on these instructions, does the model answer its users in their own languages?

training:
  model: {_scalar(answers.model)}
  instructions:
    sources: [{{path: {_scalar(answers.data)}}}]
    size: {examples}
    heldout: 16                       # examples that are not trained on, for the held-out loss
{_COMPARED[answers.compare]}  epochs: {size.epochs}
  max_length: 512                     # longer conversations are left out

{_FULL.lstrip() if answers.compare == "methods" else ""}prompts:
  languages: [{languages}]
  validation: {{source: "builtin:open", size: {size.validation}}}   # for choosing among runs
  test: {{source: {_listed(size.sources)}, size: {size.test}}}      # for comparing them: never chosen by

decoding:
  strategy: greedy
  max_new_tokens: {size.max_new_tokens}
  repetition_penalty: 1.2

raters: [language, fluency, constraint, answers]
"""


# e.g. _name(Path("my study.yaml")) → "my-study"
def _name(path: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "study"


# e.g. [_scalar(text) for text in ("builtin", "yes", "1e-4")] → ["builtin", "\"yes\"", "\"1e-4\""]
def _scalar(text: str) -> str:
    plain = re.fullmatch(r"[A-Za-z][\w./-]*(?::[\w./-]+)?", text) and yaml.safe_load(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)


# e.g. _listed("a.jsonl,b.jsonl") → "\"a.jsonl,b.jsonl\""
def _listed(source: str) -> str:
    return source if source.startswith("[") else f'"{source}"'
