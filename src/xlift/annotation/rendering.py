"""A response as readers expect it: Markdown formatted, with nothing in it that runs, loads or leads away."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

_BLOCKS = {"paragraph_open", "heading_open", "list_item_open", "blockquote_open", "th_open", "td_open"}
LONGEST_RENDERED = 100_000
"""Characters beyond which a text is shown as it is."""


# e.g. formatted("Plain words.\nTwo lines.") → None
# e.g. str(formatted("See [this](http://a.org).")).count("<a ") → 0
# e.g. "<script>" in str(formatted("**Hi** <script>x</script>")) → False
def formatted(text: str) -> Markup | None:
    """A text with its Markdown formatted; None where it has none. Links are shown with their address, never followed.

    Each paragraph has the direction of its own text; code runs from left to right.
    """
    if len(text) > LONGEST_RENDERED:
        return None
    # HTML stays text; images would be loaded.
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    markdown.disable(["image", "html_block", "html_inline"])
    tokens = markdown.parse(sendable(text))
    _make_harmless(tokens)
    found = str(markdown.renderer.render(tokens, markdown.options, {}))
    # e.g. "One line.\nAnother." is two lines of a paragraph with or without formatting
    return Markup(found) if re.search(r"<(?!/?p\b|br\b)", found) else None


# e.g. sendable("half \ud83d") → "half �"
def sendable(text: str) -> str:
    """Lone surrogates, which no page can carry, as the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _make_harmless(tokens: Sequence[Token]) -> None:
    for token in tokens:
        if token.type in _BLOCKS:
            token.attrs = {"dir": "auto"}
        elif token.type in {"fence", "code_block"}:
            token.attrs, token.info = {"dir": "ltr"}, ""
        elif token.type == "link_open":
            token.type, token.tag, token.meta = "html_inline", "", {}
            token.content = "<u>"
        elif token.type not in {"link_close", "ordered_list_open"}:
            token.attrs = {}
        _make_harmless(token.children or [])
    _close_links(tokens)


def _close_links(tokens: Sequence[Token]) -> None:
    """Behind the words of a link stands its address, unless they are the address."""
    opened = ""
    for at, token in enumerate(tokens):
        if token.type == "html_inline" and token.content == "<u>":
            opened = str(token.attrs.get("href", ""))
        elif token.type == "link_close":
            shown = "" if at and tokens[at - 1].content == opened else f" ({html.escape(opened)})"
            token.type, token.tag, token.content = "html_inline", "", f"</u>{shown}"
