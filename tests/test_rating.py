from __future__ import annotations

import pytest

from xlift.rating import rate
from xlift.rating.language import rate_language

FR = "La lumière du soleil est diffusée par l'air, surtout la partie bleue."
PT = "As folhas das árvores mudam de cor porque os dias ficam mais curtos."
RU = "Листья желтеют, потому что дни становятся короче и холоднее."
EN = "The leaves turn yellow because the days become shorter and colder."
ZH = "秋天的时候，树叶会变成黄色和红色，因为白天变短了。"
AR = "تتغير ألوان الأوراق في الخريف لأن النهار يصبح أقصر."


@pytest.mark.parametrize(("text", "code"), [(FR, "fr"), (PT, "pt"), (RU, "ru"), (EN, "en"), (ZH, "zh"), (AR, "ar")])
def test_right_language_is_2_and_english_instead_is_0(text: str, code: str) -> None:
    assert rate_language(text, code)[0] == 2
    if code != "en":
        assert rate_language(EN, code)[0] == 0


def test_one_foreign_line_among_many_is_1() -> None:
    value, detail, _ = rate_language(f"{FR}\n{FR}\n{EN}", "fr")
    assert value == 1
    assert detail["lines"] == ["fr", "fr", "en"]
    assert not detail["line_pass"]


@pytest.mark.parametrize(
    "text", ["", "   \n", "42", "ok", "https://example.org/a/page", "```\nprint('hello world')\n```", "🙂🙂"]
)
def test_what_cannot_be_identified_is_missing_with_a_reason(text: str) -> None:
    value, _, reason = rate_language(text, "fr")
    assert value is None
    assert reason


def test_unknown_language_and_missing_fields_are_missing_not_a_crash() -> None:
    assert rate({"id": "1", "text": FR, "language": "xx"}, "language")["value"] is None
    assert "text" in rate({"id": "1", "language": "fr"}, "language")["reason"]
    assert rate({"id": "1", "text": 3, "language": "fr"}, "language")["value"] is None


def test_reply_language_outranks_the_prompts_language() -> None:
    record = {"id": "1", "text": FR, "language": "en", "reply_language": "fr"}
    assert rate(record, "language")["value"] == 2


def test_hostile_text_is_rated_without_a_crash() -> None:
    for text in ("\x00\x01" + FR, "\u202e" + FR, FR * 2000, "\ud800" + FR, "a" * 100_000):
        rate_language(text, "fr")
