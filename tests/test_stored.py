from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from xlift.data.instructions import load_examples
from xlift.data.kept import Late, kept_examples
from xlift.errors import DataError
from xlift.hub import locate
from xlift.models import load_tokenizer
from xlift.study.data import Instructions, Source
from xlift.study.loading import load_study
from xlift.study.runs import RunConfig
from xlift.tuning import encoding, stored
from xlift.tuning.encoding import Tokenised, encode_data, unreadable_examples
from xlift.tuning.limits import Limits
from xlift.tuning.packing import plan_steps
from xlift.tuning.stored import Stored, stored_in, written
from xlift.tuning.templates import ChatFormat, Encoded, chat_format


@pytest.fixture
def chat(tiny: Path) -> ChatFormat:
    return chat_format(load_tokenizer(locate(str(tiny)).path), "gemma")


def examples(count: int) -> list[Encoded]:
    draw = random.Random(0)
    return [
        Encoded([draw.randrange(90) for _ in range(length)], [draw.random() < 0.5 for _ in range(length)])
        for length in (draw.randrange(1, 9) for _ in range(count))
    ]


def test_stored_examples_are_those_that_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "_BATCH", 7)
    given = examples(40)
    found = written(given, tmp_path / "e.arrow")
    assert list(found) == given
    assert found[5:9] == given[5:9]
    assert found[-1] == given[-1]
    assert list(found.lengths) == list(map(len, given))
    unusual = [one for one in given if max(one.ids) >= 80 or len(one) > 6]
    assert list(found.unusual(80, 6)) == unusual
    assert 0 < len(unusual) < 40
    claims = [unreadable_examples(Limits(80, 6, None), "conversations", part) for part in (found, given)]
    assert claims[0] == claims[1]
    with pytest.raises(IndexError):
        found[40]
    assert list(written([], tmp_path / "none.arrow")) == []


def test_stored_data_is_what_conversations_are_encoded_to(
    chat: ChatFormat, tiny: Path, conversations: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = sorted(len(chat.encode(one["messages"])) for one in conversations)
    config, folder = RunConfig(model=str(tiny), max_length=lengths[len(lengths) // 2]), tmp_path / "tokens"
    plain = encode_data(config, chat, conversations[2:], conversations[:2])
    for again in range(2):
        found = encode_data(config, chat, conversations[2:], conversations[:2], False, folder)
        assert isinstance(found.train, Stored)
        assert (list(found.train), list(found.heldout)) == (plain.train, plain.heldout)
        assert (found.too_long, found.heldout_too_long) == (plain.too_long, plain.heldout_too_long)
        assert found.too_long
        assert found.shortest == plain.shortest == min(plain.train, key=len)
        assert plan_steps(found.lengths, 1, 90, 5, None) == plan_steps(plain.lengths, 1, 90, 5, None)
        if not again:
            monkeypatch.setattr(encoding, "_encode", lambda *_: pytest.fail("encoded again"))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["tokens"]


@pytest.mark.parametrize("harm", ["cut", "changed", "gone"])
def test_stored_tokens_that_are_not_as_written_are_made_anew(
    chat: ChatFormat, tiny: Path, conversations: list[Any], tmp_path: Path, harm: str
) -> None:
    config, folder = RunConfig(model=str(tiny)), tmp_path / "tokens"
    first = list(encode_data(config, chat, conversations, [], False, folder).train)
    file = folder / "train.arrow"
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-9] if harm == "cut" else content.replace(content[200:204], b"\1\2\3\4", 1))
    assert stored_in(folder) is None
    assert list(encode_data(config, chat, conversations, [], False, folder).train) == first


def test_what_fails_leaves_no_tokens(chat: ChatFormat, tiny: Path, conversations: list[Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fits into max_length=8"):
        encode_data(RunConfig(model=str(tiny), max_length=8), chat, conversations, [], False, tmp_path / "tokens")
    assert not list(tmp_path.iterdir())


def sources(path: Path) -> Instructions:
    settings = load_study(path).runs()
    return next(one.instructions for one in settings if not one.untuned)


def test_data_that_is_kept_is_not_read_again_unless_it_changes(
    study_file: Path, chat: ChatFormat, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, prompts = sources(study_file), []
    config, reads = RunConfig(model=str(tiny)), list[int]()
    real = load_examples
    monkeypatch.setattr("xlift.data.kept.load_examples", lambda *told: reads.append(1) or real(*told))
    plain = real(settings, prompts)
    for _ in range(2):
        found = kept_examples(tmp_path / "data", settings, prompts)
        data = Tokenised().data(config, chat, found.train, found.heldout, False)
        assert list(data.train) == encode_data(config, chat, plain.train, plain.heldout).train
        assert (found.unfit, found.overlaps) == (plain.unfit, plain.overlaps)
        assert len(reads) == 1
    assert isinstance(found.train, Late)
    assert list(found.train) == list(plain.train)
    assert found.train[1:3] == plain.train[1:3]
    assert len(reads) == 2
    file = Path(settings.sources[0].path)
    file.write_text(file.read_text() + json.dumps({"prompt": "new", "completion": "new"}) + "\n")
    with pytest.raises(DataError, match="no longer the data that this study was made with"):
        kept_examples(tmp_path / "data", settings, prompts)


def test_overlaps_are_kept_as_they_were_found(tmp_path: Path, conversations: list[Any]) -> None:
    asked = conversations[0]["messages"][0]["content"]
    prompts = [{"id": "p", "split": "test", "language": "en", "messages": [{"role": "user", "content": asked}]}]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"messages": one["messages"]}) + "\n" for one in conversations))
    from xlift.data.tabular import content_sha256

    settings = Instructions(sources=[Source(path=str(path), sha256=content_sha256(path))], heldout=0)
    first, second = (kept_examples(tmp_path / "data", settings, prompts) for _ in range(2))
    assert first.overlaps == second.overlaps
    assert first.lines == second.lines
    with pytest.raises(DataError, match="test prompt 'p' stands in the training data"):
        second.overlaps.refuse()
