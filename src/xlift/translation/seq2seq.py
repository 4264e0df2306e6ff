"""Sentences translated by a sequence-to-sequence model of the hub: NLLB, MADLAD, M2M-100, mBART-50, Marian (OPUS), T5.

Which words or tokens name the two languages is told from the tokenizer's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from xlift.errors import ConfigError, DataError, ModelError
from xlift.hub import Located, quiet
from xlift.languages import get_language
from xlift.models import Placement, reading
from xlift.tuning.packing import split_micro_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTENCE_TOKENS = 400
"""Tokens of one sentence; a longer one is left untranslated, since models of this kind lose its end."""
_MACRO = {"ar": "arb", "fa": "pes", "lv": "lvs", "et": "est", "sw": "swh", "ms": "zsm", "sq": "als", "az": "azj"} | {
    **{"uz": "uzn", "mg": "plt", "yi": "ydd", "ku": "kmr", "mn": "khk", "ne": "npi", "ps": "pbt", "fil": "tgl"},
    **{"no": "nob", "zh": "zho"},
}
"""Codes of NLLB that are not the ISO 639-3 code of the language: of a macrolanguage one of its members."""
_SCRIPTS = {"Hani": ("Hans", "Hant"), "Kore": ("Hang",)}


@dataclass(frozen=True)
class Naming:
    """How a model is told its languages: words before the source, the source's own token, the target's first token."""

    prefix: str = ""
    source: str | None = None
    first: int | None = None


Say = Callable[[Sequence[list[int]], int | None, int], Sequence[list[int] | None]]
"""Of sentences as tokens, the first token of what is said and its most: each translation, None without an end."""


@dataclass(frozen=True)
class Seq2Seq:
    """A loaded model that translates."""

    tokenizer: PreTrainedTokenizerBase
    model_type: str
    longest: int
    """Tokens of a sentence."""
    said: Say
    batch_tokens: int = 2048

    def translate(self, texts: Sequence[str], source: str, target: str) -> list[str | None]:
        """Translations in the order of the texts; None for one that is too long, or whose translation has no end.

        Raises ConfigError where the model does not know a language.
        """
        naming = naming_of(self.tokenizer, self.model_type, source, target)
        if naming.source is not None:
            self.tokenizer.src_lang = naming.source  # type: ignore[attr-defined]
        ids = [cast(list[int], self.tokenizer(naming.prefix + text)["input_ids"]) for text in texts]
        found: list[str | None] = [None] * len(texts)
        lengths = [len(one) for one in ids]
        fitting = [place for place, length in enumerate(lengths) if length <= self.longest]
        for places in split_micro_batches(fitting, lengths, self.batch_tokens, padded=True):
            most = min(2 * max(lengths[place] for place in places) + 16, self.longest)
            made = self.said([ids[place] for place in places], naming.first, most)
            for place, row in zip(places, made, strict=True):
                found[place] = None if row is None else self._text(row)
        return found

    def _text(self, row: list[int]) -> str:
        return cast(str, self.tokenizer.decode(row, skip_special_tokens=True)).strip()


def _ids(given: int | list[int] | None) -> set[int]:
    return set(given) if isinstance(given, list) else set() if given is None else {given}


def load_seq2seq(located: Located, placement: Placement, beams: int = 1) -> Seq2Seq:
    """Raises ModelError for a model that does not map one text to another."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer

    given: dict[str, Any] = {"revision": located.revision, "trust_remote_code": False}
    with reading(f"{located.path}: the model"):
        config = AutoConfig.from_pretrained(located.path, **given)
        if not config.is_encoder_decoder:
            raise ModelError(
                f"{located.path}: a {config.model_type} model does not translate by itself",
                "name a translation model such as facebook/nllb-200-distilled-600M, or a server with --base-url",
            )
        model = AutoModelForSeq2SeqLM.from_pretrained(
            located.path, dtype=placement.torch_dtype, use_safetensors=True, **given
        )
        tokenizer = AutoTokenizer.from_pretrained(located.path, **given)
    model = model.to(placement.device).eval()
    ends = _ids(model.generation_config.eos_token_id)

    def answer(ids: Sequence[list[int]], first: int | None, most: int) -> list[list[int] | None]:
        batch = tokenizer.pad({"input_ids": [*ids]}, return_tensors="pt").to(model.device)
        begun = {} if first is None else {"forced_bos_token_id": first}
        with torch.inference_mode(), quiet():
            made = model.generate(**batch, max_new_tokens=most, num_beams=beams, do_sample=False, **begun)
        rows = [row.tolist() for row in made]
        return [row if ends & set(row[1:]) else None for row in rows]

    known = getattr(model.config, "max_position_embeddings", None) or SENTENCE_TOKENS
    return Seq2Seq(tokenizer, config.model_type, min(SENTENCE_TOKENS, int(known) - 2), answer)


# --- what the languages are called


def naming_of(tokenizer: PreTrainedTokenizerBase, model_type: str, source: str, target: str) -> Naming:
    """How a model is told to translate from one language into another. Raises ConfigError where it knows one not."""
    vocabulary = tokenizer.get_vocab()
    by_token = {
        scheme: (_token(vocabulary, names, source), _token(vocabulary, names, target))
        for scheme, names in LANGUAGE_TOKENS
    }
    for scheme, (own, wanted) in by_token.items():
        if scheme == "madlad" and wanted:
            return Naming(prefix=f"{wanted} ")
        if scheme == "marian" and wanted:
            return Naming(prefix=f"{wanted} ")
        if scheme not in ("madlad", "marian") and own and wanted:
            return Naming(source=own.strip("_") if scheme == "m2m100" else own, first=vocabulary[wanted])
    if any(token in vocabulary for token in ("fra_Latn", "__fr__", "fr_XX", "<2fr>", ">>fra<<")):
        raise ConfigError(f"the translation model knows no {source} to {target}", "choose a model that has both")
    if model_type == "t5":
        return Naming(prefix=f"translate {get_language(source).name} to {get_language(target).name}: ")
    return Naming()  # a model of one pair of languages, which needs no names


def _token(vocabulary: dict[str, int], names: Callable[[str], list[str]], language: str) -> str | None:
    return next((name for name in names(language) if name in vocabulary), None)


# e.g. _nllb("ru") → ["rus_Cyrl"]
def _nllb(code: str) -> list[str]:
    language = get_language(code)
    scripts = _SCRIPTS.get(language.script, (language.script,))
    return [f"{iso}_{script}" for iso in (_MACRO.get(language.code), _three(code)) if iso for script in scripts]


def _three(code: str) -> str:
    import langcodes

    try:
        return langcodes.Language.get(code).to_alpha3()
    except LookupError:
        raise DataError(f"'{code}' has no ISO 639-3 code") from None


_REGIONS = (
    "ar_AR de_DE hi_IN it_IT ko_KR ru_RU tr_TR vi_VN zh_CN cs_CZ et_EE fi_FI gu_IN kk_KZ lt_LT lv_LV my_MM ne_NP ro_RO "
    "si_LK bn_IN fa_IR he_IL id_ID ml_IN mr_IN ta_IN te_IN th_TH uk_UA ur_PK pl_PL hr_HR ka_GE sv_SE sw_KE mk_MK mn_MN "
    "sl_SI af_ZA az_AZ km_KH xh_ZA"
).split()
"""Tokens of mBART-50; the others end in XX."""


def _mbart(code: str) -> list[str]:
    base = get_language(code).code
    return [*(one for one in _REGIONS if one.startswith(f"{base}_")), f"{base}_XX"]


LANGUAGE_TOKENS: tuple[tuple[str, Callable[[str], list[str]]], ...] = (
    ("nllb", _nllb),
    ("m2m100", lambda code: [f"__{get_language(code).code}__"]),
    ("mbart50", _mbart),
    ("madlad", lambda code: [f"<2{get_language(code).code}>"]),
    ("marian", lambda code: [f">>{name}<<" for name in (_three(code), code, _MACRO.get(code))]),
)
"""How the tokens are written that name a language, by the models that began it."""
