"""What the page says in each of its languages: its words (texts.json) and the guidelines (guidelines.LANGUAGE.md)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from xlift.languages import get_language
from xlift.records import fingerprint

FOLDER = Path(__file__).parent
TEXTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "texts.json").read_text(encoding="utf-8"))
INTERFACES = tuple(TEXTS)
"""Languages that the page speaks."""
COORDINATION: dict[str, str] = TEXTS["en"]["coordination"]
"""What the coordinator's page says, and the command line with it: in English."""


def spoken(code: str) -> str:
    """The language of the page for somebody who wants this one: English where the page does not speak it."""
    return code if code in TEXTS else "en"


# e.g. [direction(code) for code in ("ar", "fr")] → ["rtl", "ltr"]
def direction(code: str) -> str:
    return "rtl" if get_language(code).right_to_left else "ltr"


@cache
def guidelines(interface: str) -> tuple[Markup, str]:
    """The guidelines in a language of the page, as HTML, and the hash of their text that ratings are signed with."""
    return rendered_guidelines((FOLDER / f"guidelines.{interface}.md").read_text(encoding="utf-8"))


def rendered_guidelines(text: str) -> tuple[Markup, str]:
    """Guidelines in Markdown as HTML, and the hash of their text."""
    markdown = MarkdownIt("commonmark", {"html": False})
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1]) + 1, 6)}"  # below the page's own title
    return Markup(markdown.renderer.render(tokens, markdown.options, {})), fingerprint(text, length=8)
