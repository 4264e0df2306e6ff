"""Translation of instruction data: what must stay stays, what is not good enough is left out and counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from judge_server import Act, serving
from warm import run_xlift

from xlift.data.instructions import load_source
from xlift.data.prompts import read_prompt_file
from xlift.disk import write_jsonl
from xlift.errors import ConfigError, ModelError
from xlift.records import read_jsonl
from xlift.study.data import Source
from xlift.translation.command import Translation, by_model, translate_file, translation_data, translation_text
from xlift.translation.gate import fault
from xlift.translation.pieces import fragments, joined, kept_in, pieces
from xlift.translation.seq2seq import Naming, naming_of

SHAPED = """# The sky

Look up. Is it blue? See https://a.org/x?y=1 or `sky.py`.

1. Take **one** look, e.g. at noon.
   - [ ] Write {name} down.

| hour | colour |
|:-----|-------:|
| 6    | pale blue |

```python
print("The sky is blue.")
```
$$E = mc^2$$
> Done.\t
"""
FRENCH = {
    "What colour is the sky?": "De quelle couleur est le ciel ?",
    "The sky is blue, as everybody can see.": "Le ciel est bleu, comme chacun peut le voir.",
    "Write to me at the end of the year 1984.": "Écris-moi à la fin de l'année 1984.",
    "I shall write to you with great pleasure.": "Je t'écrirai avec grand plaisir.",
}


# --- pieces


@pytest.mark.parametrize(
    "text", [SHAPED, "", "\n\n", "x", "a | b | c", "```\nno end", "“Hi.” He left.", "你好。再见。"]
)
def test_the_pieces_of_a_text_are_the_text(text: str) -> None:
    assert "".join(piece.text for piece in pieces(text, "en")) == text
    assert joined(pieces(text, "en"), lambda said: said, "fr") == text


def test_only_sentences_are_said_anew() -> None:
    said = [piece.text for piece in pieces(SHAPED, "en") if piece.said]
    assert said == [
        *("The sky", "Look up.", "Is it blue?", "See https://a.org/x?y=1 or `sky.py`."),
        *("Take **one** look, e.g. at noon.", "Write {name} down.", "hour", "colour", "pale blue", "Done."),
    ]
    upper = joined(pieces(SHAPED, "en"), lambda text: "×" * len(text), "fr")
    assert [len(line) for line in upper.splitlines()] == [len(line) for line in SHAPED.splitlines()]
    for kept in ('print("The sky is blue.")', "|:-----|-------:|", "   - [ ] ", "$$E = mc^2$$"):
        assert kept in upper


def test_sentences_of_a_language_without_blanks_stand_side_by_side() -> None:
    assert joined(pieces("One. Two.\nThree.", "en"), lambda _: "句。", "zh") == "句。句。\n句。"
    assert joined(pieces("One. Two.", "en"), lambda _: "Mot.", "fr") == "Mot. Mot."


def test_what_stays_is_told_from_words() -> None:
    text = "Mail me@a.org, run `ls -l`, set $HOME, fill {name}, <b>, [MASK], %s; see www.a.org/b. Cost: $5 and 5 %."
    assert kept_in(text) == ["me@a.org", "`ls -l`", "$HOME", "{name}", "<b>", "[MASK]", "%s", "www.a.org/b"]
    assert [piece.text for piece in fragments("Open `a.py` now.") if piece.said] == ["Open", "now."]


# --- the gate


@pytest.mark.parametrize(
    ("source", "translation", "target", "why"),
    [
        ("It costs 1,500.50 euros, they say.", "Cela coûte 1 500,50 euros, dit-on.", "fr", None),
        ("It costs 1,500 euros, they say.", "Cela coûte 1 600 euros, dit-on.", "fr", "number"),
        ("There are 3 eggs in the fridge.", "Il y a trois œufs dans le frigo.", "fr", None),
        ("In the year 2024 it rained a lot.", "साल २०२४ में बहुत बारिश हुई।", "hi", None),
        ("See https://a.org for the rest.", "Voir https://a.org pour le reste.", "fr", None),
        ("See https://a.org for the rest.", "Voir https://b.org pour le reste.", "fr", "link"),
        ("Fill in {name} and send it back.", "Remplissez {nom} et renvoyez-le.", "fr", "placeholder"),
        ("The sky is blue as can be.", "The sky is blue as can be.", "fr", "not translated"),
        ("The sky is blue as can be.", "El cielo es azul como puede ser.", "fr", "not in the language"),
        ("The sky is blue, and the sea is green and deep.", "Le ciel.", "fr", "shorter or longer"),
        ("The sky is blue.", "  ", "fr", "nothing came back"),
        ("The light scatters in the air.", "光在空气中散射，所以天空是蓝色的。", "zh", None),
        ("The sky is blue today and the sea is green.", "le ciel le ciel " * 6, "fr", "hardly readable"),
        ("OK.", "D'accord.", "fr", None),
    ],
)
def test_a_translation_is_fit_or_there_is_a_reason(source: str, translation: str, target: str, why: str | None) -> None:
    found = fault(source, translation, target)
    assert (found is None) if why is None else (found is not None and why in found)


# --- a file


def conversations(path: Path, *pairs: tuple[str, str]) -> Source:
    turns = [[{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in pairs]
    write_jsonl(path, [{"messages": one, "category": "open"} for one in turns])
    return Source(path=str(path))


class Asked:
    """A translator by a dictionary that counts what it was asked for; what it does not know it has no word for."""

    def __init__(self, words: dict[str, str], fails_after: int | None = None) -> None:
        self.words, self.fails_after, self.texts = words, fails_after, list[str]()

    def __call__(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        if self.fails_after is not None and len(self.texts) >= self.fails_after:
            raise KeyboardInterrupt
        self.texts += texts
        return [self.words.get(text) for text in texts]


def test_a_file_of_conversations_becomes_one_that_can_be_learned_from(tmp_path: Path) -> None:
    asked, said = list(FRENCH)[:2]
    source = conversations(tmp_path / "a.jsonl", (asked, said), ("What is that?", "Nobody has a word for this."))
    result = translate_file(source, ["fr"], tmp_path / "fr.jsonl", Asked(FRENCH), "t", keep_source=True)
    read = load_source(Source(path=str(tmp_path / "fr.jsonl")))
    assert [one["language"] for one in read] == ["en", "en", "fr"]
    assert [m["content"] for m in read[-1]["messages"]] == [FRENCH[asked], FRENCH[said]]
    (record,) = [one for one in result.records if one["language"] == "fr"]
    original = next(one for one in load_source(source) if one["messages"][0]["content"] == asked)
    assert (record["parallel_id"], record["category"]) == (original["id"], "open")
    (dropped,) = [row for _, row in read_jsonl(tmp_path / "fr.dropped.jsonl")]
    assert "has no end" in dropped["reason"]
    assert "fr: 1 of 2 translated\n  1 left out: a sentence" in translation_text(
        translation_data(result, ["fr"], tmp_path / "fr.jsonl")
    )


def test_no_sentence_is_asked_for_twice_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    texts = list(FRENCH)
    source = conversations(tmp_path / "a.jsonl", (texts[0], texts[1]), (texts[0], f"{texts[1]} {texts[3]}"))
    out = tmp_path / "fr.jsonl"
    whole = Asked(FRENCH)
    translate_file(source, ["fr"], out, whole, "t")
    assert sorted(whole.texts) == sorted({texts[0], texts[1], texts[3]})
    first = out.read_bytes()
    again = Asked({})
    translate_file(source, ["fr"], out, again, "t")
    assert (again.texts, out.read_bytes()) == ([], first)
    other = Asked(FRENCH)
    translate_file(source, ["fr"], out, other, "another translator")
    assert sorted(other.texts) == sorted(whole.texts)


def test_what_was_translated_before_an_interruption_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xlift.translation.command.RECORDS_AT_ONCE", 1)
    texts = list(FRENCH)
    source = conversations(tmp_path / "a.jsonl", (texts[0], texts[1]), (texts[2], texts[3]))
    with pytest.raises(KeyboardInterrupt):
        translate_file(source, ["fr"], tmp_path / "fr.jsonl", Asked(FRENCH, fails_after=2), "t")
    assert not (tmp_path / "fr.jsonl").exists()
    rest = Asked(FRENCH)
    result = translate_file(source, ["fr"], tmp_path / "fr.jsonl", rest, "t")
    assert (len(rest.texts), result.counts("fr")[0]) == (2, 2)


def test_a_translator_that_spoils_a_link_is_asked_for_the_words_around_it(tmp_path: Path) -> None:
    text = "Please read https://a.org/b with great care."
    words = {
        text: "Veuillez lire https://a.fr avec grand soin.",
        "Please read": "Veuillez lire",
        "with great care.": "avec grand soin.",
        **FRENCH,
    }
    source = conversations(tmp_path / "a.jsonl", (text, next(iter(FRENCH))))
    result = translate_file(source, ["fr"], tmp_path / "fr.jsonl", Asked(words), "t")
    assert result.records[0]["messages"][0]["content"] == "Veuillez lire https://a.org/b avec grand soin."


def test_prompts_keep_their_split_and_what_holds_in_one_language_only_is_left_out(tmp_path: Path) -> None:
    asked = list(FRENCH)
    prompts = [
        {"id": f"p{i}", "language": "en", "split": "test", "messages": [{"role": "user", "content": text}], **more}
        for i, (text, more) in enumerate([(asked[0], {}), (asked[2], {"answers": ["1984"]})])
    ]
    write_jsonl(tmp_path / "p.jsonl", prompts)
    result = translate_file(Source(path=str(tmp_path / "p.jsonl")), ["fr"], tmp_path / "o.jsonl", Asked(FRENCH), "t")
    (prompt,) = read_prompt_file(tmp_path / "o.jsonl")
    assert (prompt["id"], prompt["parallel_id"], prompt["split"]) == ("p0.fr", "p0", "test")
    assert [one["reason"] for one in result.dropped] == ["'answers' holds in its own language only"]


def test_a_language_that_the_data_is_in_already_is_refused(tmp_path: Path) -> None:
    source = conversations(tmp_path / "a.jsonl", ("Why?", "Because."))
    with pytest.raises(ConfigError, match="is in en already"):
        translate_file(source, ["fr", "en"], tmp_path / "o.jsonl", Asked({}), "t")


# --- a model


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 of two layers that has learned the sentences of FRENCH by heart."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    split = pre_tokenizers.Metaspace()
    words = {word for text in (*FRENCH, *FRENCH.values()) for word, _ in split.pre_tokenize_str(text)}
    special = ["<pad>", "</s>", "<unk>", "<2fr>", "<2de>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*special, *sorted(words)])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.add_special_tokens(special)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast: Any = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    size: Any = {"d_model": 48, "d_kv": 12, "d_ff": 96, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    size |= {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = T5Config(vocab_size=len(fast), **size)
    model = T5ForConditionalGeneration(config).train()
    asked = fast([f"<2fr> {text}" for text in FRENCH], padding=True, return_tensors="pt")
    said = fast(list(FRENCH.values()), padding=True, return_tensors="pt")["input_ids"]
    labels = said.masked_fill(said == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(150):
        loss = model(**{key: asked[key] for key in ("input_ids", "attention_mask")}, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.01:
            break
    folder = tmp_path_factory.mktemp("t5")
    model.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_the_command_translates_with_a_model_and_says_what_came_of_it(taught: Path, tmp_path: Path) -> None:
    texts = list(FRENCH)
    conversations(tmp_path / "a.jsonl", (texts[0], texts[1]), (texts[2], f"{texts[3]}\n\n{texts[1]}"))
    given = ["translate", str(tmp_path / "a.jsonl"), "--to", "French", "-o", str(tmp_path / "o.jsonl")]
    done = run_xlift(*given, "--with", str(taught), "--beams", "2", "--dtype", "float32", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fr: 2 of 2 translated" in done.stdout
    said = [m["content"] for _, row in read_jsonl(tmp_path / "o.jsonl") for m in row["messages"]]
    assert sorted(said) == sorted(
        [*map(FRENCH.get, texts[:3]), f"{FRENCH[texts[3]]}\n\n{FRENCH[texts[1]]}"]  # type: ignore[type-var]
    )
    assert json.loads((tmp_path / "o.cache.jsonl").read_text(encoding="utf-8").splitlines()[0])["to"] == "fr"
    again = run_xlift(*given, "--with", str(taught), "--beams", "2", "--dtype", "float32", "--json", folder=tmp_path)
    assert json.loads(again.stdout)["languages"] == {"fr": {"translated": 2, "of": 2, "left_out": {}}}
    unknown = run_xlift(*given[:3], "ru", *given[4:], "--with", str(taught), folder=tmp_path)
    assert (unknown.returncode, "knows no en to ru" in unknown.stderr) == (2, True)


def test_a_converted_model_says_the_same_and_one_without_its_tokenizer_is_refused(taught: Path, tmp_path: Path) -> None:
    pytest.importorskip("ctranslate2")
    from ctranslate2.converters import TransformersConverter

    folder, files = tmp_path / "converted", ["tokenizer.json", "tokenizer_config.json"]
    TransformersConverter(str(taught), copy_files=files).convert(str(folder))
    translate, signature = by_model(str(folder), None, 2, "cpu", "auto")
    assert translate([*FRENCH, "word " * 500], "en", "fr") == [*FRENCH.values(), None]
    assert signature != by_model(str(taught), None, 2, "cpu", "float32")[1]
    for name in files:
        (folder / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer beside"):
        by_model(str(folder), None, 2, "cpu", "auto")


def test_a_model_that_only_goes_on_with_text_is_refused(tiny: Path, tmp_path: Path) -> None:
    source = conversations(tmp_path / "a.jsonl", ("Why?", "Because."))
    given = ["--to", "fr", "-o", str(tmp_path / "o.jsonl"), "--with", str(tiny)]
    done = run_xlift("translate", source.path, *given, folder=tmp_path)
    assert done.returncode == 2
    assert "does not translate by itself" in done.stderr


def test_a_served_model_translates_within_its_budget_and_goes_on_when_asked_again(tmp_path: Path) -> None:
    texts = list(FRENCH)

    def script(body: dict[str, Any], seen: int) -> Act:
        asked = body["messages"][-1]["content"]
        assert "from English into French" in asked
        return Act(f"<think>Hm.</think>\n{FRENCH[asked.split(chr(10) * 2, 1)[1]]}\n")

    conversations(tmp_path / "a.jsonl", (texts[0], texts[1]), (texts[2], texts[3]))
    with serving(script) as server:
        given = ["translate", "a.jsonl", "--to", "fr", "-o", "o.jsonl", "--served", "m", "--base-url", server.url]
        prices = ["--price-input", "1", "--price-output", "1", "--concurrency", "1"]
        short = run_xlift(*given, *prices, "--max-cost", "0.0009", folder=tmp_path)
        assert (short.returncode, "max_cost" in short.stderr) == (2, True)
        assert not (tmp_path / "o.jsonl").exists()
        done = run_xlift(*given, *prices, folder=tmp_path)
        assert (done.returncode, "fr: 2 of 2 translated" in done.stdout) == (0, True)
    said = {m["content"] for _, row in read_jsonl(tmp_path / "o.jsonl") for m in row["messages"]}
    assert said == set(FRENCH.values())
    calls = [row["request"] for _, row in read_jsonl(tmp_path / "o.calls.jsonl")]
    assert len(calls) == len(set(calls)) == len(texts)


class Vocabulary:
    def __init__(self, *tokens: str) -> None:
        self.tokens = {token: place for place, token in enumerate(tokens)}

    def get_vocab(self) -> dict[str, int]:
        return self.tokens


@pytest.mark.parametrize(
    ("tokens", "kind", "target", "expected"),
    [
        (("eng_Latn", "fra_Latn"), "m2m_100", "fr", Naming(source="eng_Latn", first=1)),
        (("eng_Latn", "zho_Hans"), "m2m_100", "zh", Naming(source="eng_Latn", first=1)),
        (("eng_Latn", "arb_Arab"), "m2m_100", "ar", Naming(source="eng_Latn", first=1)),
        (("__en__", "__ru__"), "m2m_100", "ru", Naming(source="en", first=1)),
        (("en_XX", "ru_RU"), "mbart", "ru", Naming(source="en_XX", first=1)),
        (("<2fr>", "<2ru>"), "t5", "ru", Naming(prefix="<2ru> ")),
        ((">>fra<<", ">>por<<"), "marian", "pt", Naming(prefix=">>por<< ")),
        (("a",), "marian", "fr", Naming()),
        (("a",), "t5", "fr", Naming(prefix="translate English to French: ")),
    ],
)
def test_a_model_is_told_its_languages_as_its_vocabulary_names_them(
    tokens: tuple[str, ...], kind: str, target: str, expected: Naming
) -> None:
    found: Any = Vocabulary(*tokens)
    assert naming_of(found, kind, "en", target) == expected


def test_nothing_translated_is_said_plainly(tmp_path: Path) -> None:
    told = translation_data(Translation(), ["fr"], tmp_path / "o")
    assert translation_text(told).splitlines()[0] == "fr: 0 of 0 translated"
