"""Responses as other programs write them: rows of anybody's file become records with `text` and `language`.

FORMS are known programs' files. Any other row is read by the names of its columns, or as `ReadingOptions` says. What
was taken for what is decided on the first rows of a file, and said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xlift.data.ifeval import instruction_fields
from xlift.errors import ConfigError, DataError, nearest
from xlift.languages import find_language
from xlift.records import LIMITED, any_response

Fields = dict[str, Any]


class ReadingOptions(NamedTuple):
    """What the user says: (column, our field) and so on, and a column of languages or one language for all."""

    columns: tuple[tuple[str, str], ...] = ()
    language: str | None = None
    command: str = "rate FILE"
    """What a hint says to run; FILE stands for the path."""


# e.g. asked_for("answer", "fr", ["n=id"]).columns → (("n", "id"), ("answer", "text"))
def asked_for(
    text: str | None, language: str | None, columns: Sequence[str], command: str = "rate FILE"
) -> ReadingOptions:
    """What options of a command line say. Raises ConfigError for a map that is none."""
    wrong = [one for one in columns if not re.fullmatch(".+=.+", one)]
    if wrong:
        raise ConfigError([f"--map {one}: expected COLUMN=FIELD" for one in wrong], "for instance --map topic=category")
    pairs = [(column, field) for column, _, field in (one.rpartition("=") for one in columns)]
    return ReadingOptions((*pairs, *([(text, "text")] if text else [])), language, command)


class Reading(NamedTuple):
    """How the rows of one file are read: its form, columns by our field, and what holds for all rows."""

    form: str
    columns: dict[str, str]
    fixed: dict[str, str]
    coded: str | None = None
    """A column whose texts name the language by a code among other words: q7-fr."""
    only: str | None = None
    """The one of lm-evaluation-harness's filters that is read: each has the same replies again."""


# --- known forms


def _lm_eval(row: Fields) -> Iterator[Fields]:
    arguments = row.get("arguments")
    first = arguments.get("gen_args_0") if isinstance(arguments, dict) else None
    asked = first.get("arg_0") if isinstance(first, dict) else None
    for told in row["resps"][0] if row["resps"] else []:
        yield {"id": row.get("doc_id"), "text": told if isinstance(told, str) else None, "prompt": asked}


def _inspect(row: Fields) -> Iterator[Fields]:
    """A sample of a log; one that broke off has no reply, which is no empty one."""
    messages = row["input"] if isinstance(row["input"], list) else [{"role": "user", "content": row["input"]}]
    asked = {"id": row["id"], "prompt": reply_text(messages), **{name: row.get(name) for name in ("model", "task")}}
    choices = row["output"].get("choices") or [{"message": {}}]
    attached = row.get("attachments") or {}
    for one in _chosen(choices) if not row.get("error") else [{}]:
        text = one.get("text")
        yield asked | one | ({"text": attached[text[13:]]} if text and text[13:] in attached else {})


def _batch(row: Fields) -> Iterator[Fields]:
    body = (row.get("response") or {}).get("body") or {}
    for one in _completed(body) if not row.get("error") else [{}]:
        yield {"id": row["custom_id"], "model": body.get("model"), **one}


def _completion(row: Fields) -> Iterator[Fields]:
    for one in _completed(row):
        yield {"id": row.get("id"), "model": row.get("model"), **one}


def _completed(body: Fields) -> list[Fields]:
    """The replies in the body of a server's answer, of chat completions or of responses."""
    if "choices" in body:
        return _chosen(body["choices"])
    parts = [one for one in body.get("output") or [] if isinstance(one, dict) and one.get("type") == "message"]
    return [{"text": reply_text(parts), "finish_reason": body.get("status")}] if parts else [{}]


def _chosen(choices: Sequence[Fields]) -> list[Fields]:
    return [
        {
            "text": reply_text(one.get("message", one.get("text"))) or "",
            "finish_reason": one.get("finish_reason") or one.get("stop_reason"),
        }
        for one in choices
    ]


def _mt_bench(row: Fields) -> Iterator[Fields]:
    asked = {"model": row.get("model_id"), "category": row.get("category")}
    for choice in row["choices"]:
        for turn, text in enumerate(choice["turns"], start=1):
            yield asked | {"id": f"{row['question_id']}-{turn}", "text": reply_text(text)}


def _message_batch(row: Fields) -> Iterator[Fields]:
    message = row["result"].get("message") or {}
    fields = {"id": row["custom_id"], "model": message.get("model"), "finish_reason": message.get("stop_reason")}
    yield fields | ({"text": reply_text(message["content"])} if "content" in message else {})


def _llama_factory(row: Fields) -> Iterator[Fields]:
    yield {"text": reply_text(row["predict"]), "prompt": row["prompt"]}


def _ollama(row: Fields) -> Iterator[Fields]:
    yield {"model": row["model"], "text": reply_text(row["message"]), "finish_reason": row.get("done_reason")}


def _vllm(row: Fields) -> Iterator[Fields]:
    asked = {"id": row.get("request_id"), "prompt": row["prompt"]}
    for one in row["outputs"]:
        finish = one.get("finish_reason") if isinstance(one, dict) else None
        yield asked | {"text": reply_text(one), "finish_reason": finish}


def _helm(row: Fields) -> Iterator[Fields]:
    asked = {"id": row["instance"].get("id"), "prompt": row["request"].get("prompt"), "model": row["request"]["model"]}
    result = row["result"] or {}
    for one in result.get("completions") or [{}]:
        finish = (one.get("finish_reason") or {}).get("reason")
        yield asked | ({"text": one["text"], "finish_reason": finish} if "text" in one else {})


def _promptfoo(row: Fields) -> Iterator[Fields]:
    """One call; one that failed has no reply."""
    provider, prompt, said = row["provider"], row.get("prompt"), (row.get("response") or {}).get("output")
    asked = {
        "id": row.get("testIdx"),
        "model": provider.get("id") if isinstance(provider, dict) else provider,
        "prompt": prompt.get("raw") if isinstance(prompt, dict) else prompt,
    }
    yield asked | ({"text": reply_text(said)} if said is not None else {})


def _distilabel(row: Fields) -> Iterator[Fields]:
    models = row.get("generation_models") or []
    for i, text in enumerate(row["generations"]):
        yield {"prompt": row["instruction"], "text": text, "model": models[i] if i < len(models) else None}


class FileForm(NamedTuple):
    """Files of one program: what they are called, the fields that tell a row of them, and the responses in a row."""

    name: str
    fields: frozenset[str]
    responses: Callable[[Fields], Iterator[Fields]]


FORMS = (
    FileForm("samples of lm-evaluation-harness", frozenset({"doc", "resps", "filtered_resps"}), _lm_eval),
    FileForm("log of inspect_ai", frozenset({"epoch", "input", "output", "target"}), _inspect),
    FileForm("batch output of an OpenAI-compatible server", frozenset({"custom_id", "response"}), _batch),
    FileForm("message batch of Anthropic", frozenset({"custom_id", "result"}), _message_batch),
    FileForm("answers of MT-Bench", frozenset({"question_id", "answer_id", "choices"}), _mt_bench),
    FileForm("chat completions", frozenset({"choices", "model"}), _completion),
    FileForm("predictions of LLaMA-Factory", frozenset({"prompt", "predict", "label"}), _llama_factory),
    FileForm("results of promptfoo", frozenset({"provider", "vars", "success"}), _promptfoo),
    FileForm("requests of HELM", frozenset({"instance", "request", "result"}), _helm),
    FileForm("outputs of vLLM", frozenset({"prompt", "outputs"}), _vllm),
    FileForm("chats of Ollama", frozenset({"model", "message", "done"}), _ollama),
    FileForm("generations of distilabel", frozenset({"instruction", "generations"}), _distilabel),
)
PLAIN = FileForm("columns", frozenset(), lambda row: iter([{}]))
OURS = FileForm("records of xlift", frozenset({"text", "language"}), lambda row: iter([row]))


# e.g. reply_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]) → "Yes"
# e.g. reply_text({"candidates": [{"content": {"parts": [{"text": "Yes"}], "role": "model"}}]}) → "Yes"
# e.g. reply_text({"usage": {}}) → None
def reply_text(value: Any) -> str | None:
    """The text of a reply: itself, the content of a message, its text parts, or the last of several messages.

    Nothing is an empty reply; None is what cannot be a reply.
    """
    if isinstance(value, dict):
        name = next((name for name in _HOLD_TEXT if name in value), None)
        return reply_text(value[name]) if name else None
    if isinstance(value, list):
        if value and not any(isinstance(one, dict) for one in value):
            return value[0] if len(value) == 1 and isinstance(value[0], str) else None
        parts = [one for one in value if isinstance(one, dict)]
        if any("content" in one for one in parts):
            return reply_text(parts[-1])
        return "".join(str(one.get("text") or "") for one in parts if one.get("type") in {None, "text", "output_text"})
    return "" if value is None else value if isinstance(value, str) else None


_HOLD_TEXT = ("content", "text", "parts", "candidates", "answer", "generated_text")
"""What a reply's words stand under in an object, the first that is there."""


# --- columns by their names

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "text": (
        *(
            "text",
            "response",
            "output",
            "answer",
            "completion",
            "prediction",
            "predict",
            "generated_text",
            "generation",
        ),
        *("reply", "model_output", "model_response", "generated", "hypothesis", "predictions", "predicted_text"),
        *("actual_output", "actualoutput", "modeloutput"),
    ),
    "language": (
        *("language", "lang", "locale", "language_code", "lang_code", "langcode", "target_language", "target_lang"),
        *("tgt_lang", "tgt_language"),
    ),
    "id": ("id", "custom_id", "question_id", "prompt_id", "doc_id", "uid", "idx"),
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "model": ("model", "generator", "model_name", "model_id"),
    "finish_reason": ("finish_reason", "stop_reason"),
}
"""By our field, the names under which others have it."""
FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run", "step", "task"), (str, int)),
    **dict.fromkeys(("reply_language", "parallel_id", "category", "unmodified"), str),
    **{"messages": list, "constraint": dict, "answers": list, "answers_any": dict, "wrong": list},
}
"""Fields of ours that others have under the same name, where they hold what we mean by it."""
INSIDE = ("doc", "metadata", "meta", "vars", "fields", "outputs")
"""Columns that hold further ones."""
ANSWERS_INSIDE = ("fields", "outputs")
"""Those that hold replies, as Argilla's and LangSmith's do."""
GENERATED = frozenset({"generated_text", "generation", "generated", "model_output", "model_response", "actual_output"})
"""Names of replies alone: beside them a `text` may be the prompt."""


# e.g. look({"doc": {"lang": "fr"}}, "doc.lang") → "fr"
def look(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, in a row or, after a dot, inside one of its columns; None where it is not there."""
    if column in row or "." not in column:
        return row.get(column)
    outer, inner = column.split(".", 1)
    return look(row[outer], inner) if isinstance(row.get(outer), dict) else None


# e.g. columns_of([{"doc": {"lang": "fr"}, "resps": []}]) → ["doc", "resps", "doc.lang"]
def columns_of(rows: Sequence[Fields]) -> list[str]:
    """The columns of rows, and after a dot those inside of them."""
    found = dict.fromkeys(name for row in rows for name in row)
    for row in rows:
        for outer in INSIDE:
            if isinstance(row.get(outer), dict):
                found |= dict.fromkeys(f"{outer}.{name}" for name in row[outer])
    return list(found)


# e.g. _holds([{"fields": {"reply": "Oui."}}], "fields.reply") → True
def _holds(rows: Sequence[Fields], column: str) -> bool:
    """Whether any row has a column, or a column inside of one."""
    return any(column in row or look(row, column) is not None for row in rows)


def reading_of(path: Path, rows: Sequence[Fields], asked: ReadingOptions) -> Reading:
    """How a file is read whose first rows are `rows`.

    Raises ConfigError, with all that is wrong and the columns there are, where nothing says which column holds the
    replies or the languages, where several could, or where a column that was asked for is not there.
    """
    if not rows:
        return Reading(OURS.name, {}, {})
    there = columns_of(rows)
    form = next((form for form in FORMS if all(form.fields <= row.keys() for row in rows)), PLAIN)
    columns = {field: column for column, field in asked.columns}
    problems = [
        f"no column '{column}'; {nearest(column, there)}" for column in columns.values() if not _holds(rows, column)
    ]
    fixed = _from_name(path) if form is FORMS[0] else {}
    if asked.language and "language" not in columns:
        column, known = _asked_language(asked.language, rows, there)
        columns, fixed = (columns | column, fixed | known)
        if not column and not known:
            problems.append(f"'{asked.language}' is neither a language nor a column; {nearest(asked.language, there)}")
    for field in COLUMN_NAMES if form is PLAIN else ("language",):
        if field in columns or field in fixed or (field == "language" and asked.language):
            continue
        found = _named(field, rows, there, set(columns.values()))
        if len(found) > 1 and field in ("text", "language"):
            problems.append(f"{' and '.join(found)} could each be the {field}: --{field} {found[0]}")
        columns |= {field: found[0]} if found else {}
    if form is PLAIN and "text" not in columns:
        problems.append(f"no column is known by its name to hold the replies; columns: {', '.join(there)}")
    coded = None
    if not asked.language and "language" not in {*columns, *fixed} and not problems:
        coded, code = _hidden_language(path, rows, columns.get("id", "custom_id"))
        fixed |= {"language": code} if code else {}
        if not coded and not code:
            problems.append(f"nothing says in which language a reply must be; columns: {', '.join(there)}")
    if problems:
        command = asked.command.replace("FILE", str(path))
        hint = f"xlift {command} --text COLUMN --language COLUMN, or --language fr where all are French"
        raise ConfigError([f"{path}: {problem}" for problem in problems], hint)
    ours = form is PLAIN and not asked.columns and (columns["text"], columns.get("language")) == ("text", "language")
    only = rows[0].get("filter") if form is FORMS[0] else None
    return Reading(OURS.name if ours else form.name, columns, fixed, coded, only)


# e.g. _named("text", [{"q": "Why?", "answer": "So."}], ["q", "answer"], set()) → ["answer"]
def _named(field: str, rows: Sequence[Fields], there: Sequence[str], taken: set[str]) -> list[str]:
    """The columns that may hold a field, by their names: the one that is named like it, or all in order of NAMES."""
    last = {column: column.rpartition(".")[2].lower() for column in there if column not in taken}
    found = sorted(
        (one for one in last if last[one] in COLUMN_NAMES[field]), key=lambda one: COLUMN_NAMES[field].index(last[one])
    )
    if field == "text":
        found = [one for one in found if any(reply_text(look(row, one)) is not None for row in rows)]
        inside = [one for one in found if one.split(".")[0] in ANSWERS_INSIDE and last[one] != "text"]
        found = [one for one in found if "." not in one] or inside
        if field in found[:1] and any(last[one] in GENERATED for one in found):
            return found
        if not found and all(_answered(row.get("messages")) for row in rows):
            return ["messages"]
    return found[:1] if field in found[:1] else found


# e.g. _answered([{"role": "user"}, {"role": "assistant"}]) → True
def _answered(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


# e.g. _asked_language("fr", [{"text": "Oui."}], ["text"]) → ({}, {"language": "fr"})
# e.g. _asked_language("id", [{"id": "q1"}], ["id"]) → ({}, {"language": "id"})
# e.g. _asked_language("id", [{"id": "fr"}], ["id"]) → ({"language": "id"}, {})
def _asked_language(asked: str, rows: Sequence[Fields], there: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """A column where there is one by that name, unless that name is a language and the column holds none."""
    known = find_language(asked)
    if _holds(rows, asked) and (known is None or all(find_language(look(row, asked)) for row in rows)):
        return {"language": asked}, {}
    return {}, ({"language": known.tag} if known else {})


_WORDS = frozenset(
    "it no id he hi ms is so la be mi mt sd ps ha su ug sn eu as or st ss ts om ee ay bo fo br co sm ff war run que "
    "cos lin".split()
)
"""Codes that are words or abbreviations, too."""
_TOKEN = re.compile(r"[A-Za-z]{2,3}(?:[_-](?:[A-Z][a-z]{3}|[A-Z]{2}))?(?![A-Za-z])")


# e.g. language_in("samples_mgsm_direct_fr_2025-01-01.jsonl") → "fr"
# e.g. language_in("belebele_fra_Latn") → "fr"
# e.g. language_in("responses.yo.jsonl") → "yo"
# e.g. language_in("wmt_de_fr") → None
def language_in(text: Any) -> str | None:
    """The one language that a name, of a file or of a prompt, has the code of; None for none or several."""
    parts = [found[0] for found in re.finditer(rf"(?<![A-Za-z]){_TOKEN.pattern}", str(text))]
    known = [find_language(part) for part in parts if part.lower() not in _WORDS]
    codes = {one.code for one in known if one and one.name != one.code}  # of the others only codes are known
    return codes.pop() if len(codes) == 1 else None


def _hidden_language(path: Path, rows: Sequence[Fields], ids: str) -> tuple[str | None, str | None]:
    """The column of ids, where each has a language in it, or the language in the file's name."""
    if all(language_in(look(row, ids) or "") for row in rows):
        return ids, None
    return None, language_in(path.name.split(".")[0] if path.name.startswith("samples_") else path.name)


# e.g. _from_name(Path("gemma/samples_mgsm_fr_2025-01-01T10.jsonl"))["task"] → "mgsm_fr"
def _from_name(path: Path) -> dict[str, str]:
    """What lm-evaluation-harness says of samples in their place alone: MODEL/samples_TASK_TIME.jsonl."""
    task = re.fullmatch(r"samples_(.+)_\d{4}-\d\d-\d\dT.*", path.name)
    return {"task": task[1], "model": path.absolute().parent.name} if task else {}


# e.g. reading_text(Path("a.csv"), Reading("columns", {"text": "answer"}, {})) → "a.csv: columns; text from 'answer'"
def reading_text(path: Path, reading: Reading) -> str:
    """What was taken for what, in a line; "" where there is nothing to tell."""
    if reading.form == OURS.name:
        return ""
    parts = [f"{field} from '{column}'" for field, column in reading.columns.items()]
    parts += [f"{field} '{value}'" for field, value in reading.fixed.items()]
    parts += [f"language by the code in '{reading.coded}'"] if reading.coded else []
    return f"{path.name}: {reading.form}; {', '.join(parts)}"


def responses(row: Fields, reading: Reading, where: str, number: int | str) -> list[Fields]:
    """The responses in one row. Raises DataError that begins with `where`, as `any_response` does."""
    form = next(form for form in (OURS, PLAIN, *FORMS) if form.name == reading.form)
    asked = instruction_fields(row["doc"] if isinstance(row.get("doc"), dict) else row, where)
    if form is OURS:
        return [any_response(asked | row, where, number)]
    if reading.only and row.get("filter") != reading.only:
        return []
    own = {field: look(row, column) for field, column in reading.columns.items()}
    if "text" in own:
        # A row without the column has no reply; one with nothing in it an empty one.
        own["text"] = reply_text(own["text"]) if reading.columns["text"].split(".")[0] in row else None
    if reading.coded:
        own["language"] = language_in(look(row, reading.coded))
    kept = {name: row[name] for name, kind in FIELD_TYPES.items() if form is PLAIN and isinstance(row.get(name), kind)}
    try:
        made = list(form.responses(row))
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not as {form.name} are: {error}") from None
    return [any_response(_cleaned(asked | kept | one | reading.fixed | own), where, number) for one in made]


# e.g. _cleaned({"id": None, "finish_reason": "max_tokens"}) → {"finish_reason": "length"}
def _cleaned(record: Fields) -> Fields:
    """Without what is not there, the end of the reply in our words, and the model as the run where none is named."""
    found = {name: value for name, value in record.items() if value is not None}
    if "finish_reason" in found:
        found["finish_reason"] = "length" if str(found["finish_reason"]) in LIMITED else "stop"
    return found if "run" in found or "model" not in found else found | {"run": str(found["model"])}
