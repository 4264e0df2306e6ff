"""Where a reply reasons before it answers: tags, channels, and a closing tag whose opening one the prompt held.

Reasoning is no part of the answer: no rater looks at it, and no judge's reply is read there.
"""

from __future__ import annotations

import re

_NAMES = (
    r"(?:\w{1,20}[:_])?think(?:ing)?(?:_\w{1,20})?|ant_?thinking|thoughts?|reason(?:ing)?|scratchpad|reflection|analysis"
    r"|(?:inner|internal)_(?:monologue|thoughts?|reasoning)"
)
# e.g. without_reasoning("[THINK]2 + 2[/THINK]4") → "4"
# e.g. without_reasoning("<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Oui.<|END_RESPONSE|>") → "Oui."
# e.g. without_reasoning("<inner_thoughts>Hm.</inner_thoughts>Oui.") → "Oui."
# e.g. without_reasoning("<think>Hm.</think>```json\n{}\n```") → "```json\n{}\n```"
# e.g. without_reasoning("<unused94>thought\nHm.<unused95>Oui.") → "Oui."
# e.g. without_reasoning("<|channel>thought\nHm.<channel|>Oui.") → "Oui."
# e.g. without_reasoning("Write `<think>` first.") → "Write `<think>` first."
_TAG = re.compile(
    rf"(?<!`)(?:<\s?/?\s?(?:{_NAMES})(?:\s[^<>\n]{{0,60}})?>|&lt;/?(?:{_NAMES})&gt;|\[/?THINK\]|◁/?think▷"
    rf"|<\|(?:begin|end)[_▁]of[_▁]thought\|>|<\|(?:START|END)_THINKING\|>|<\|/?(?:{_NAMES})\|>"
    r"|<(?:unused|ctrl)94>(?:thought\b)?|<(?:unused|ctrl)95>|<\|channel>(?:thought\b)?|<channel\|>)(?!`(?!``))",
    re.IGNORECASE,
)
_SHUT = re.compile(r"(?:[<\[◁]|&lt;|<\||<\s)\s?/|<\|end|<(?:unused|ctrl)95|<channel\|", re.IGNORECASE)
# What stands around an answer that was set off from its reasoning.
_AROUND = re.compile(
    r"\A\s*(?:<(?:answer|response|solution|output|final)>|<\|START_RESPONSE\|>|<\|begin_of_solution\|>)"
    r"|(?:</(?:answer|response|solution|output|final)>|<\|END_RESPONSE\|>|<\|end_of_solution\|>)\s*\Z",
    re.IGNORECASE,
)
# e.g. without_reasoning("<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>Ja.") → "Ja."
_FINAL = re.compile(r"(?:<\|channel\|>|\A)\s{0,3}final\b[^<\n]{0,40}(?:<\|constrain\|>[^<\n]{0,40})?<\|message\|>")
_CHANNEL = re.compile(r"<\|channel\|>|\A\s{0,9}(?:analysis|commentary|final)\b[^<\n]{0,40}<\|message\|>")
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start|channel)\|>|\Z")
# The same where the special tokens were dropped, so that names of channels touch the words.
# e.g. without_reasoning("analysisThe user greets. Reply in German.assistantfinalGuten Tag!") → "Guten Tag!"
_BARE_CHANNELS = re.compile(r"\A\s*(?:analysis|commentary)(?=[^a-z\s]|\s*\n)")
_BARE_FINAL = re.compile(r"assistant\s{0,3}final\s{0,3}")
_MARKS = re.compile(r"<\|[a-zA-Z_]{1,20}\|>|assistant(?=<\||\s*\Z)|\A\s*(?:<\|channel\|>\s*)?(?:analysis|commentary)")


# A message of a chat whose role is to think, and the marks of the other messages.
# e.g. without_reasoning("<|im_start|>think\nHm.<|im_end|>\n<|im_start|>answer\nJa.<|im_end|>") → "Ja."
_THOUGHT = re.compile(
    rf"<\|im_start\|>\s*(?:{_NAMES})\s*\n(?s:.)*?(?:<\|im_end\|>|(?=<\|im_start\|>)|\Z)", re.IGNORECASE
)
_MESSAGE_MARKS = re.compile(r"<\|im_start\|>[ \w]{0,40}(?:\n|\Z)|<\|im_end\|>")
_SIGNS = ("<", "&lt;", "[TH", "[/", "◁")
# e.g. without_reasoning("**Thinking:**\nThe user greets.\n\n**Answer:**\nBom dia!") → "Bom dia!"
_LABELLED = re.compile(
    r"\A\s*(?:\*\*|#{1,4} )?(?:my )?(?:(?:thinking|thoughts?|(?:internal )?reasoning)(?: process)?|chain of thought)"
    r"(?:\*\*)?:?(?:\*\*)?:?[ \t]*(?:\n|(?<=:)[ \t]|(?<=:\*\*)[ \t]).{1,20000}?\n\s*(?:\*\*|#{1,4} )?(?:final )?"
    r"(?:answer|response|reply|output)(?::\*\*|\*\*:|:|\*\*(?=\n)|(?<=\w)(?=\n))\s*",
    re.IGNORECASE | re.DOTALL,
)
# What a chat page folds away.
# e.g. without_reasoning("<details><summary>Thought for 3 seconds</summary>Hm.</details>Oui.") → "Oui."
_FOLDED = re.compile(
    r"\A\s*<details(?P<kind>[^<>]{0,200})>\s*(?:<summary>(?P<name>[^<>]{0,80})</summary>)?(?:[^<]|<(?!/details>)){0,50000}"
    r"</details>\s*"
)
# An answer that is announced, and reasoning as a command line prints it.
# e.g. without_reasoning("My reasoning:\nHm.\n[BEGIN FINAL RESPONSE]\nOui.\n[END FINAL RESPONSE]") → "Oui."
# e.g. without_reasoning("Thinking...\nHm.\n...done thinking.\n\nOui.") → "Oui."
_ANNOUNCED = re.compile(r"(?s:\A.{0,50000}?)\[BEGIN FINAL RESPONSE\]\s*|\s*\[END FINAL RESPONSE\]\s*\Z")
_PRINTED = re.compile(r"\A\s*Thinking(?:\.\.\.|…)[ \t]*\n(?s:.{0,50000}?)\n(?:\.\.\.|…)done thinking\.\s*")
_REASONING = re.compile(r"\b(?:think\w*|thought\w*|reason\w*)\b", re.IGNORECASE)


def reasoning_stretches(text: str) -> list[tuple[int, int]]:
    """The stretches of a text, in order, that hold reasoning or mark where it begins and ends."""
    if "<|" in text and _CHANNEL.search(text):
        return _outside(_final_messages(text), len(text))
    if "<|im_start|>" in text and (thoughts := [found.span() for found in _THOUGHT.finditer(text)]):
        marks = [found.span() for found in _MESSAGE_MARKS.finditer(text)]
        return sorted(thoughts + [one for one in marks if not any(a <= one[0] < b for a, b in thoughts)])
    if _BARE_CHANNELS.match(text):
        finals = [found.end() for found in _BARE_FINAL.finditer(text)]
        # "Analysis" alone may be the first word of an answer; touching a capital it is the name of the channel.
        if finals or re.match(r"\s*analysis[A-Z]", text):
            return [(0, finals[-1] if finals else len(text))]
    if told := _LABELLED.match(text) or _PRINTED.match(text):
        return [told.span()]
    if "[BEGIN FINAL RESPONSE]" in text:
        return [found.span() for found in _ANNOUNCED.finditer(text)]
    folded = _FOLDED.match(text)
    if folded and _REASONING.search(f"{folded['kind']} {folded['name']}"):
        return [folded.span()]
    return _tagged(text) if any(map(text.__contains__, _SIGNS)) else []


def _final_messages(text: str) -> list[tuple[int, int]]:
    """What is said in the channel of answers; the text as a whole names its channels."""
    messages = []
    for found in _FINAL.finditer(text):
        end = _END_OF_MESSAGE.search(text, found.end())
        messages.append((found.end(), end.start() if end else len(text)))
    return messages


def _outside(kept: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    edges = [0, *(edge for stretch in kept for edge in stretch), length]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


# e.g. reasoning_stretches("So 4.</think>4") → [(0, 13)]
# e.g. reasoning_stretches("4 <think>or five") → [(2, 16)]
def _tagged(text: str) -> list[tuple[int, int]]:
    stretches: list[tuple[int, int]] = []
    opened, depth = 0, 0
    for tag in _TAG.finditer(text):
        if not _SHUT.match(tag[0]):
            opened, depth = (opened if depth else tag.start()), depth + 1
        elif depth > 1:
            depth -= 1
        else:
            if not depth:  # the prompt held the opening tag: all before is reasoning
                stretches, opened = [], 0
            stretches.append((opened, tag.end()))
            depth = 0
    if depth:
        stretches.append((opened, len(text)))
    if stretches:
        stretches += _around(text, stretches)
    return sorted(stretches)


def _around(text: str, stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Tags around the answer, where it is one piece behind the reasoning."""
    start = stretches[-1][1]
    return [] if len(stretches) > 1 else [(start + f.start(), start + f.end()) for f in _AROUND.finditer(text[start:])]


def without_reasoning(text: str) -> str:
    """The answer alone; the text as it is where it holds no reasoning."""
    stretches = reasoning_stretches(text)
    if not stretches:
        return text
    return "".join(text[start:end] for start, end in _outside(stretches, len(text))).strip()


def blank_reasoning(text: str) -> tuple[str, str]:
    """The text with its reasoning as spaces, so that offsets and lines stay, and what the reasoning says."""
    stretches = reasoning_stretches(text)
    if not stretches:
        return text, ""
    pieces, said, position = [], [], 0
    for start, end in stretches:
        part = text[start:end]
        pieces += [text[position:start], re.sub(r"[^\n]", " ", part)]
        said.append(_AROUND.sub(" ", _MARKS.sub(" ", _TAG.sub(" ", part))))
        position = end
    return "".join([*pieces, text[position:]]), " ".join(" ".join(said).split())
