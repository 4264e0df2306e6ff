"""Prompt sets that others have published, read as they come: nothing of them ships with xlift.

paper:FOLDER   the released files of arXiv 2402.14778: alpacaeval_test_subset.LL.jsonl and modifiers.LL.jsonl, a JSON
               list of messages a line, parallel by line over languages; modifiers.LL.types names each line's modifier
lcb:PATH       the test sets of the Language Confusion Benchmark, a folder or its zip:
               monolingual/SOURCE/LL.csv and crosslingual/SOURCE/LL.csv with a column `prompt`
ifeval:PATH    IFEval and the sets made after it: see ifeval.py
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, cast

from xlift.data.ifeval import ifeval_prompts
from xlift.errors import DataError, shortened
from xlift.languages import known_code, language_code
from xlift.records import Message, Prompt, Split, check_messages

File = TypeVar("File")
MOST_UNPACKED = 2**26
"""Bytes of one file of prompts in an archive: a small archive can unpack to more than there is memory."""
PAPER = "alpacaeval_test_subset"
MODIFIERS = "modifiers"


_SAME = {"html": "html", "markdown": "markdown", "short": "short", "long": "long", "cap": "capitalized"}
_FOR_JUDGES = {"scientific_style": "scientific", "simple_style": "simple", "complex_inst": "compound"}


# e.g. modifier_constraint("num_items_5") → {"name": "items", "count": 5}
# e.g. modifier_constraint("lang_fr") → {"name": "reply_language", "language": "fr"}
# e.g. modifier_constraint("cap_template") → {"name": "capitalized"}
def modifier_constraint(kind: str) -> dict[str, Any]:
    """The constraint that a modifier type of the paper stands for: "num_items_5", "lang_fr", "cap_template".

    Raises DataError for a type that is not known.
    """
    if found := re.fullmatch(r"num_items_(\d+)", kind):
        return {"name": "items", "count": int(found[1])}
    if kind.startswith("lang_"):
        return {"name": "reply_language", "language": language_code(kind.removeprefix("lang_"))}
    if kind in _FOR_JUDGES:
        return {"name": "style", "style": _FOR_JUDGES[kind]}
    name = kind.removesuffix("_template").lower()
    if name == "arrow":
        return {"name": "arrow", "marker": "-->"}
    if name not in _SAME:
        raise DataError(f"unknown modifier type '{kind}'")
    return {"name": _SAME[name]}


def paper_prompts(folder: Path, language: str, split: Split) -> list[Prompt]:
    """The unmodified prompts of a language, then the modified ones, each with its checkable constraint.

    Raises DataError with the line number for a file that is missing or malformed.
    """
    plain = _paper_lines(_paper_file(folder, PAPER, language, "jsonl"))
    modified = _paper_lines(_paper_file(folder, MODIFIERS, language, "jsonl"))
    constraints = _constraints(_paper_file(folder, MODIFIERS, language, "types"), len(modified))
    prompts = [_prompt(f"paper-{i:03d}", language, split, m, "open") for i, m in enumerate(plain, start=1)]
    originals = _modified_originals(folder, plain, modified, language)
    for i, (messages, (kind, constraint)) in enumerate(zip(modified, constraints, strict=True), start=1):
        prompt = _prompt(f"modified-{i:03d}", language, split, messages, kind)
        prompt["constraint"] = constraint
        if constraint["name"] == "reply_language":
            prompt["reply_language"] = constraint["language"]
        if i - 1 in originals:
            prompt["modifies"] = f"paper-{originals[i - 1] + 1:03d}.{language}"
        prompts.append(prompt)
    return prompts


def _prompt(parallel_id: str, language: str, split: Split, messages: list[Message], category: str) -> Prompt:
    return {
        "id": f"{parallel_id}.{language}",
        "parallel_id": parallel_id,
        "language": language,
        "split": split,
        "category": category,
        "messages": messages,
    }


def _paper_file(folder: Path, name: str, language: str, ending: str) -> Path:
    """The file of a language, however the file's name writes it; raises DataError that says what there is."""
    files = {path.name[len(name) + 1 : -len(ending) - 1]: path for path in sorted(folder.glob(f"{name}.*.{ending}"))}
    found = _of_language(files, language, folder)
    if found is None:
        there = f"; there are: {', '.join(files)}" if files else ""
        wanted = folder / f"{name}.{language}.{ending}"
        raise DataError(
            f"{wanted}: no such file{there}", "paper:FOLDER wants the folder with the released prompt files"
        )
    return found


# e.g. _of_language({"pt-BR": 1, "fr": 2}, "pt", Path("d")) → 1
def _of_language(files: Mapping[str, File], language: str, where: Path) -> File | None:
    """The one of several files by the tags in their names that is in `language`."""
    found = [language] if language in files else [tag for tag in files if known_code(tag) == language]
    if len(found) > 1:
        raise DataError(f"{where}: {' and '.join(found)} are both '{language}'", "leave one of these files there")
    return files[found[0]] if found else None


def _paper_lines(path: Path) -> list[list[Message]]:
    found, problems = [], []
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            messages = json.loads(raw)
        except (UnicodeDecodeError, json.JSONDecodeError):
            problems.append(f"{path}:{number}: not JSON")
            continue
        problems += check_messages(messages, f"{path}:{number}", ends_with="user")
        found.append(cast(list[Message], messages))
    if problems:
        raise DataError(shortened(problems))
    return found


def _constraints(path: Path, count: int) -> list[tuple[str, dict[str, Any]]]:
    """The modifier type of each modified prompt and the constraint that it stands for."""
    kinds = path.read_text(encoding="utf-8").split()
    if len(kinds) != count:
        raise DataError(f"{path}: {len(kinds)} modifier types for {count} modified prompts")
    known, problems = {}, []
    for number, kind in enumerate(kinds, start=1):
        try:
            known[kind] = modifier_constraint(kind)
        except DataError as error:
            problems += [f"{path}: type {number} ('{kind}'): {problem}" for problem in error.problems]
    if problems:
        raise DataError(shortened(problems))
    return [(kind, known[kind]) for kind in kinds]


def _modified_originals(
    folder: Path, plain: list[list[Message]], modified: list[list[Message]], language: str
) -> dict[int, int]:
    """Which plain prompt each modified one extends, by line; read off the English files, which repeat it."""
    english = [folder / f"{name}.en.jsonl" for name in (PAPER, MODIFIERS)]
    if language != "en" and all(path.is_file() for path in english):
        plain, modified = _paper_lines(english[0]), _paper_lines(english[1])
    texts = {messages[-1]["content"].strip(): i for i, messages in enumerate(plain)}
    found = {}
    for i, messages in enumerate(modified):
        words = messages[-1]["content"]
        best = max((text for text in texts if words.startswith(text)), key=len, default=None)
        if best is not None:
            found[i] = texts[best]
    return found


def lcb_prompts(path: Path, language: str, split: Split) -> list[Prompt]:
    """Prompts of the Language Confusion Benchmark that want an answer in `language`.

    Monolingual prompts are in that language. Crosslingual ones are English requests for an answer in it, which
    `asked_in` says. Raises DataError where there are none.
    """
    prompts: list[Prompt] = []
    for name, text in _lcb_files(path, language):
        task, source = PurePosixPath(name).parts[-3:-1]
        for number, row in enumerate(csv.DictReader(io.StringIO(text)), start=1):
            words = (row.get("prompt") or "").strip()
            if not words:
                raise DataError(f"{path}/{name}: record {number} has no text in the column 'prompt'")
            prompts.append(_lcb_prompt(task, source, number, language, split, words))
    if not prompts:
        raise DataError(f"{path}: no test set of the Language Confusion Benchmark for '{language}'")
    return prompts


# e.g. _lcb_prompt("crosslingual", "okapi", 7, "fr", "test", "Why?")["id"] → "lcb-crosslingual-okapi-007.fr"
# e.g. _lcb_prompt("monolingual", "okapi", 7, "fr", "test", "Ah ?")["parallel_id"] → "lcb-monolingual-okapi-007-fr"
def _lcb_prompt(task: str, source: str, number: int, language: str, split: Split, words: str) -> Prompt:
    messages = cast(list[Message], [{"role": "user", "content": words}])
    key = f"lcb-{task}-{source}-{number:03d}"
    if task == "monolingual":
        # Only crosslingual requests are the same in all languages.
        return _prompt(f"{key}-{language}", language, split, messages, task)
    return cast(Prompt, {**_prompt(key, language, split, messages, task), "asked_in": "en"})


def _lcb_files(path: Path, language: str) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        for name in _lcb_names((file.as_posix() for file in path.rglob("*.csv")), language, path):
            yield name, _decoded(Path(name).read_bytes(), name)
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _lcb_names(archive.namelist(), language, path):
                yield name, _decoded(_unpacked(archive, name, path), f"{path}/{name}")
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: neither a folder nor a whole zip file ({error})", "download it again") from None


def _unpacked(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    """A file of an archive, not more than MOST_UNPACKED of it whatever the archive says of its size."""
    try:
        with archive.open(name) as file:
            content = file.read(MOST_UNPACKED + 1)
    except (RuntimeError, NotImplementedError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path}/{name}: cannot be unpacked: {error}", "download it again, or unpack it") from None
    if len(content) > MOST_UNPACKED:
        raise DataError(f"{path}/{name}: more than {MOST_UNPACKED >> 20} MiB of prompts", "unpack it and look")
    return content


# e.g. _lcb_names(["monolingual/a/fr.csv", "monolingual/a/ru.csv"], "fr", Path("t")) → ["monolingual/a/fr.csv"]
def _lcb_names(names: Iterable[str], language: str, where: Path) -> list[str]:
    """One file of the language, however its name writes it, from each folder of the two tasks."""
    folders: dict[tuple[str, ...], dict[str, str]] = {}
    for name in sorted(names):
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and parts[-3] in {"monolingual", "crosslingual"} and parts[-1].endswith(".csv"):
            folders.setdefault(parts[:-1], {})[parts[-1].removesuffix(".csv")] = name
    found = (_of_language(files, language, where / "/".join(folder)) for folder, files in folders.items())
    return [name for name in found if name is not None]


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text") from None


def published_prompts(source: str, languages: list[str], split: Split) -> list[Prompt]:
    """Prompts of a `paper:`, `lcb:` or `ifeval:` source in the given languages."""
    kind, _, where = source.partition(":")
    if kind == "ifeval":
        return ifeval_prompts(Path(where), languages, split)
    read = {"paper": paper_prompts, "lcb": lcb_prompts}[kind]
    return [prompt for language in languages for prompt in read(Path(where), language, split)]
