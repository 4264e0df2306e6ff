"""Published prompt sets, on small files of the same form."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from xlift.data.prompts import load_prompts
from xlift.data.sources import lcb_prompts, modifier_constraint, paper_prompts
from xlift.errors import DataError
from xlift.study.data import Prompts, PromptSet

PLAIN = {
    "en": ["How do fish breathe?", "Name two rivers."],
    "fr": ["Comment respirent les poissons ?", "Cite deux fleuves."],
}
MODIFIED = {
    "en": ["How do fish breathe? Answer briefly.", "Name two rivers. Answer in Russian.", "Write about rain as HTML."],
    "fr": ["Comment respirent les poissons ? Sois bref.", "Cite deux fleuves en russe.", "Parle de la pluie en HTML."],
}
KINDS = ["short", "lang_ru", "html_template"]


def lines(texts: list[str]) -> str:
    return "".join(json.dumps([{"role": "user", "content": text}]) + "\n" for text in texts)


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    for code in ("en", "fr"):
        (tmp_path / f"alpacaeval_test_subset.{code}.jsonl").write_text(lines(PLAIN[code]))
        (tmp_path / f"modifiers.{code}.jsonl").write_text(lines(MODIFIED[code]))
        (tmp_path / f"modifiers.{code}.types").write_text("\n".join(KINDS) + "\n")
    return tmp_path


def test_paper_prompts_are_parallel_and_carry_their_constraints(paper: Path) -> None:
    french, english = paper_prompts(paper, "fr", "test"), paper_prompts(paper, "en", "test")
    assert [p["parallel_id"] for p in french] == [p["parallel_id"] for p in english]
    assert [p["messages"][0]["content"] for p in french] == PLAIN["fr"] + MODIFIED["fr"]
    short, russian, page = french[2:]
    assert (short["constraint"], short["modifies"]) == ({"name": "short"}, "paper-001.fr")
    assert (russian["reply_language"], russian["modifies"]) == ("ru", "paper-002.fr")
    assert page["constraint"] == {"name": "html"}
    assert "modifies" not in page
    assert all(p["split"] == "test" for p in french)


def test_every_modifier_type_of_the_paper_has_a_constraint() -> None:
    kinds = "arrow_template cap_template complex_inst html_template lang_fr long markdown_template num_items_12"
    names = [modifier_constraint(kind)["name"] for kind in (kinds + " scientific_style short simple_style").split()]
    assert names == "arrow capitalized style html reply_language long markdown items style short style".split()
    assert modifier_constraint("num_items_12")["count"] == 12
    with pytest.raises(DataError, match="sonnet"):
        modifier_constraint("sonnet")


def test_malformed_paper_files_are_refused_with_the_line(paper: Path) -> None:
    (paper / "modifiers.fr.types").write_text("short\n")
    with pytest.raises(DataError, match="1 modifier types for 3 modified"):
        paper_prompts(paper, "fr", "test")
    (paper / "modifiers.fr.jsonl").write_text(lines(MODIFIED["fr"][:1]) + "[{}\n" + '[{"role": "user"}]\n')
    with pytest.raises(DataError) as caught:
        paper_prompts(paper, "fr", "test")
    assert [problem.split(".jsonl:")[1][0] for problem in caught.value.problems] == ["2", "3"]
    with pytest.raises(DataError, match="no such file"):
        paper_prompts(paper, "de", "test")


@pytest.mark.parametrize("packed", [False, True])
def test_lcb_prompts_are_read_from_a_folder_or_its_zip(tmp_path: Path, packed: bool) -> None:
    header = "prompt,location,phrasing,language,source\n"
    files = {
        "test_sets/monolingual/okapi/fr.csv": 'prompt,source,language\n"Une ligne,\nune autre",okapi,fr\n',
        "test_sets/crosslingual/okapi/fr.csv": header + "Reply in French.,Start,x,fr,okapi\n",
        "test_sets/crosslingual/okapi/de.csv": header + "Reply in German.,Start,x,de,okapi\n",
    }
    place = tmp_path / "sets.zip" if packed else tmp_path
    if packed:
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    else:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
    cross, mono = lcb_prompts(place, "fr", "test")
    assert mono["messages"][0]["content"] == "Une ligne,\nune autre"
    assert cross["language"] == mono["language"] == "fr"
    assert dict(cross)["asked_in"] == "en"
    assert cross["parallel_id"] == lcb_prompts(place, "de", "test")[0]["parallel_id"]
    with pytest.raises(DataError, match="'it'"):
        lcb_prompts(place, "it", "test")
    both = PromptSet(source=f"lcb:{place}")
    with pytest.raises(DataError, match="both validation and test"):
        load_prompts(Prompts(languages=["fr"], validation=both, test=both))


def test_a_study_takes_published_prompts_but_never_for_both_splits(paper: Path) -> None:
    published = PromptSet(source=f"paper:{paper}")
    found = load_prompts(Prompts(languages=["en", "fr"], validation=PromptSet(size=2), test=published))
    assert [p["split"] for p in found].count("test") == 10
    with pytest.raises(DataError, match="both validation and test"):
        load_prompts(Prompts(languages=["en"], validation=published, test=published))


def test_an_archive_that_unpacks_to_far_too_much_is_cut_short_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xlift.data.sources.MOST_UNPACKED", 2**16)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("monolingual/x/fr.csv", b"prompt\n" + b"a" * 2**20)
    assert (tmp_path / "bomb.zip").stat().st_size < 2**12
    with pytest.raises(DataError, match=r"bomb.zip/monolingual/x/fr.csv: more than 0 MiB"):
        lcb_prompts(tmp_path / "bomb.zip", "fr", "test")


@pytest.mark.parametrize("damage", ["cut", "flipped", "encrypted", "no zip"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("monolingual/x/fr.csv", "prompt\n" + "Pourquoi ?\n" * 50)
    whole = bytearray(path.read_bytes())
    if damage == "flipped":
        whole[60] ^= 0xFF
    if damage == "encrypted":
        for place in (whole.index(b"PK\x03\x04") + 6, whole.index(b"PK\x01\x02") + 8):
            whole[place] |= 1
    path.write_bytes(b"hello" if damage == "no zip" else whole[:-30] if damage == "cut" else whole)
    with pytest.raises(DataError, match=r"a\.zip"):
        lcb_prompts(path, "fr", "test")
