"""`xlift translate`: read what there is, translate each sentence once, keep what passes the gate, say what did not.

Every translated sentence goes to OUT.cache.jsonl at once, so that a killed run goes on where it was and another run
with more languages asks for nothing twice; OUT itself appears when all is done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from xlift.data.instructions import Unfit, load_source, nested_subset
from xlift.data.prompts import read_prompt_file
from xlift.data.tabular import rows
from xlift.disk import JsonlWriter, exclusive, write_jsonl
from xlift.errors import ConfigError
from xlift.progress import progress
from xlift.records import Message, fingerprint, read_jsonl
from xlift.study.data import Source
from xlift.translation.gate import copied, fault
from xlift.translation.pieces import Piece, fragments, joined, kept_in, pieces

Translator = Callable[[Sequence[str], str, str], Sequence[str | None]]
"""Translations of texts from one language into another, in their order; None for one that there is none of."""
RECORDS_AT_ONCE = 32
"""Records whose sentences are translated together."""
OF_ONE_LANGUAGE = ("answers", "answers_any", "wrong", "reply_language", "modifies", "follows")
"""Fields of a prompt that hold in its own language only: a record that has one is not translated."""


@dataclass
class Translation:
    """What came of it: the records that passed, how many did not and why, and where these are."""

    records: list[dict[str, Any]] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)

    def counts(self, language: str) -> tuple[int, Counter[str]]:
        """Records of a language that passed, and reasons of those that did not."""
        kept = sum(one["language"] == language for one in self.records)
        return kept, Counter(one["reason"] for one in self.dropped if one["language"] == language)


def translate_file(
    source: Source,
    languages: Sequence[str],
    out: Path,
    translator: Translator,
    signature: str,
    keep_source: bool = False,
    unfit: Unfit | None = None,
) -> Translation:
    """Translate conversations or prompts into every language and write those that pass the gate to `out`.

    `signature` says which translator it is; what another has translated is not taken over. Records left out go to
    OUT.dropped.jsonl, each with its reason. Raises DataError for what cannot be read, ConfigError where another process
    writes the same file.
    """
    records = _read(source, unfit)
    own = sorted({str(one["language"]) for one in records} & set(languages))
    if own:
        raise ConfigError(f"{source.path} is in {', '.join(own)} already", "name other languages with --to")
    with exclusive(out.with_name(f".{out.name}.lock"), f"{out} is being written by another process"):
        result = Translation([_named(one) for one in records] if keep_source else [])
        with JsonlWriter(_beside(out, "cache")) as cache:
            known = _known(_beside(out, "cache"), signature)
            with progress("translate", len(records) * len(languages)) as bar:
                for language in languages:
                    for batch in _chunks(records, RECORDS_AT_ONCE):
                        _complete(known, batch, language, translator, cache, signature)
                        for record in batch:
                            _put(result, record, language, known, signature)
                        bar.advance(len(batch), language)
        write_jsonl(out, result.records)
        write_jsonl(_beside(out, "dropped"), result.dropped)
    return result


# e.g. str(_beside(Path("data/fr.jsonl"), "dropped")) → "data/fr.dropped.jsonl"
def _beside(out: Path, what: str) -> Path:
    return out.with_name(f"{out.stem}.{what}.jsonl")


def _read(source: Source, unfit: Unfit | None) -> list[dict[str, Any]]:
    if _are_prompts(source):
        return [cast(dict[str, Any], one) for one in read_prompt_file(Path(source.path))[: source.size]]
    found = nested_subset(load_source(source, unfit=unfit), source.size, seed=0)
    return [cast(dict[str, Any], one) for one in found]


def _are_prompts(source: Source) -> bool:
    """Whether a file's first record asks and nobody answers."""
    if source.columns or source.path == "builtin" or source.path.startswith("hub:"):
        return False
    first = next(rows(source.path, source.split)).record
    turns = first.get("messages")
    asked = isinstance(turns, list) and bool(turns) and isinstance(turns[-1], dict) and turns[-1].get("role") == "user"
    return asked and "split" in first


def _named(record: dict[str, Any]) -> dict[str, Any]:
    return {**{key: one for key, one in record.items() if key != "where"}, "parallel_id": _parallel(record)}


# e.g. _parallel({"id": "a", "parallel_id": "p"}) → "p"
def _parallel(record: Mapping[str, Any]) -> str:
    return str(record.get("parallel_id") or record["id"])


# e.g. list(_chunks([1, 2, 3], 2)) → [[1, 2], [3]]
def _chunks(records: Sequence[dict[str, Any]], size: int) -> Iterator[Sequence[dict[str, Any]]]:
    for start in range(0, len(records), size):
        yield records[start : start + size]


# --- sentences


Known = dict[tuple[str, str, str], str | None]
"""Translations by the source's language, the target's, and the sentence; None where the translator gives none."""


def _known(path: Path, signature: str) -> Known:
    return {
        (row["from"], row["to"], row["text"]): row["translation"]
        for _, row in read_jsonl(path)
        if row.get("signature") == signature
    }


def _complete(
    known: Known,
    batch: Iterable[dict[str, Any]],
    target: str,
    translator: Translator,
    cache: JsonlWriter,
    signature: str,
) -> None:
    """Translate the sentences of these records that are not known yet, and then the fragments of spoilt ones."""
    for cut in (_whole, _spoilt):
        wanted: dict[str, dict[str, None]] = {}
        for record in batch:
            own = str(record["language"])
            for text in (text for m in record["messages"] for text in cut(m["content"], own, target, known)):
                if (own, target, text) not in known:
                    wanted.setdefault(own, {})[text] = None
        for own, texts in wanted.items():
            for text, said in zip(texts, translator(list(texts), own, target), strict=True):
                known[own, target, text] = said
                cache.write({"from": own, "to": target, "text": text, "translation": said, "signature": signature})


def _whole(content: str, own: str, target: str, known: Known) -> Iterator[str]:
    yield from (piece.text for piece in pieces(content, own) if piece.said)


def _spoilt(content: str, own: str, target: str, known: Known) -> Iterator[str]:
    """Fragments of the sentences whose translation changed what must stay as it is."""
    for text in _whole(content, own, target, known):
        if _is_spoilt(text, known.get((own, target, text))):
            yield from (piece.text for piece in fragments(text) if piece.said)


# e.g. _is_spoilt("Run `a.py`.", "Lancez a.py.") → True
def _is_spoilt(text: str, said: str | None) -> bool:
    return bool(said) and Counter(kept_in(text)) != Counter(kept_in(str(said)))


def _said(content: str, own: str, target: str, known: Known) -> str | None:
    """A text in the target language; None where a sentence of it has no translation."""
    missing: list[str] = []

    def told(sentence: str) -> str:
        said = known.get((own, target, sentence))
        if said is None:
            missing.append(sentence)
        if _is_spoilt(sentence, said):
            return _from_fragments(fragments(sentence), own, target, known, missing)
        return said or ""

    text = joined(pieces(content, own), told, target)
    return None if missing else text


def _from_fragments(found: Sequence[Piece], own: str, target: str, known: Known, missing: list[str]) -> str:
    texts = [known.get((own, target, piece.text)) if piece.said else piece.text for piece in found]
    missing += [piece.text for piece, text in zip(found, texts, strict=True) if text is None]
    return "".join(text or "" for text in texts)


# --- records


def _put(result: Translation, record: dict[str, Any], target: str, known: Known, signature: str) -> None:
    """A record's translation where it passes, else the reason why it does not."""
    messages, reason = _translated(record, target, known)
    made = {
        **_named(record),
        "id": f"{_parallel(record)}.{target}",
        "language": target,
        "messages": messages,
        "translated_by": signature,
    }
    if reason is None:
        result.records.append(made)
    else:
        result.dropped.append({**made, "reason": reason})


def _translated(record: dict[str, Any], target: str, known: Known) -> tuple[list[Message], str | None]:
    own, messages = str(record["language"]), cast(list[Message], record["messages"])
    bound = [name for name in OF_ONE_LANGUAGE if record.get(name)]
    if bound:
        return messages, f"'{bound[0]}' holds in its own language only"
    found: list[Message] = []
    for message in messages:
        text = _said(message["content"], own, target, known)
        if text is None:
            return messages, "a sentence is too long, or its translation has no end"
        found.append(cast(Message, {**message, "content": text}))
    checked = zip(messages, found, strict=True)
    return found, next((why for old, new in checked if (why := _fault(old["content"], new["content"], target))), None)


def _fault(source: str, translation: str, target: str) -> str | None:
    # What has nothing to translate, code for one, rightly comes back as it was.
    if source == translation and not copied(source, translation):
        return None
    return fault(source, translation, target)


def translator_signature(name: str, revision: str | None, *settings: Any) -> str:
    """Which translator made a sentence: its name, commit and settings."""
    return f"{name}@{(revision or '')[:12]}|{fingerprint(list(settings), length=8)}"


def by_model(name: str, revision: str | None, beams: int, device: str, dtype: str) -> tuple[Translator, str]:
    """A translation model of the hub or of a folder, and its signature. Raises ModelError."""
    from xlift.hub import folder_sha256, locate
    from xlift.models import place
    from xlift.translation.ctranslate import is_converted, load_converted
    from xlift.translation.seq2seq import load_seq2seq

    if is_converted(name):
        converted, own = load_converted(Path(name), beams, device, dtype)
        return converted.translate, translator_signature(name, own, beams, dtype)
    located, placement = locate(name, revision), place(device, dtype)
    own = located.revision or folder_sha256(Path(located.path))
    loaded = load_seq2seq(located, placement, beams)
    return loaded.translate, translator_signature(name, own, beams, placement.dtype)


def by_server(out: Path, given: Mapping[str, Any]) -> tuple[Translator, str]:
    """A served model and its signature; its calls are kept beside `out`. Raises ConfigError for wrong settings."""
    from xlift.translation.served import ASKED, TranslationServer, translate_served

    settings = TranslationServer(**given)
    ledger = _beside(out, "calls")
    return partial(translate_served, settings, ledger), translator_signature(
        settings.model, None, settings.base_url, ASKED
    )


def translation_data(result: Translation, languages: Sequence[str], out: Path) -> dict[str, Any]:
    """What came of it, for programs: by language how many were translated, and why others were left out."""
    counts = {code: result.counts(code) for code in languages}
    told = {
        code: {"translated": kept, "of": kept + reasons.total(), "left_out": dict(reasons.most_common())}
        for code, (kept, reasons) in counts.items()
    }
    left_out = str(_beside(out, "dropped")) if result.dropped else None
    return {"languages": told, "written": str(out), "left_out": left_out}


def translation_text(told: Mapping[str, Any]) -> str:
    """The same for the terminal."""
    lines = []
    for language, one in told["languages"].items():
        lines.append(f"{language}: {one['translated']} of {one['of']} translated")
        lines += [f"  {count} left out: {reason}" for reason, count in one["left_out"].items()]
    left_out = [f"left out: {told['left_out']}"] if told["left_out"] else []
    return "\n".join([*lines, f"written: {told['written']}", *left_out])
