"""The same models converted for CTranslate2, which is made for CPUs and can keep weights in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from xlift.errors import ModelError
from xlift.extras import require
from xlift.hub import file_sha256
from xlift.models import reading
from xlift.records import fingerprint
from xlift.translation.seq2seq import SENTENCE_TOKENS, Seq2Seq

WEIGHTS = "model.bin"
"""The file that a folder of CTranslate2's converter has: its own format, nothing that is unpickled."""
_CONVERT = (
    "ct2-transformers-converter --model MODEL --output_dir FOLDER --copy_files tokenizer.json tokenizer_config.json"
)


def is_converted(name: str) -> bool:
    return (Path(name) / WEIGHTS).is_file()


def load_converted(folder: Path, beams: int, device: str, dtype: str) -> tuple[Seq2Seq, str]:
    """The model of a folder that CTranslate2's converter wrote, and the hash of what is in it.

    Raises ModelError for a folder without the tokenizer, or that CTranslate2 does not take; ConfigError without it.
    """
    require("translate", "train")
    import ctranslate2
    from transformers import AutoTokenizer

    if not (folder / "tokenizer_config.json").is_file():
        raise ModelError(f"{folder}: no tokenizer beside {WEIGHTS}", f"convert with {_CONVERT}")
    kept = "default" if dtype == "auto" else dtype
    try:
        translator = ctranslate2.Translator(str(folder), device=device, compute_type=kept)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{folder}: CTranslate2 does not load it: {error}", f"convert with {_CONVERT}") from None
    with reading(f"{folder}: its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def answer(ids: Sequence[list[int]], first: int | None, most: int) -> list[list[int] | None]:
        prefix = None if first is None else [[tokenizer.convert_ids_to_tokens(first)]] * len(ids)
        made = translator.translate_batch(
            [tokenizer.convert_ids_to_tokens(one) for one in ids],
            **{"target_prefix": prefix, "beam_size": beams, "max_decoding_length": most, "return_end_token": True},
        )
        said = [cast(list[int], tokenizer.convert_tokens_to_ids(one.hypotheses[0])) for one in made]
        return [one if one and one[-1] == tokenizer.eos_token_id else None for one in said]

    kind = "t5" if "t5" in type(tokenizer).__name__.lower() else ""
    whole = fingerprint(
        {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}, length=64
    )
    return Seq2Seq(tokenizer, kind, SENTENCE_TOKENS, answer), whole
