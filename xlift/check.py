"""`xlift check`: everything that can be wrong, found before anything is spent."""

from __future__ import annotations

from xlift.data.instructions import load_instructions
from xlift.data.prompts import load_prompts
from xlift.errors import UserError
from xlift.models import load_tokenizer, locate, place
from xlift.settings import RunConfig
from xlift.study import Study, run_labels
from xlift.tuning.templates import ChatFormat, Encoded, chat_format
from xlift.tuning.train import encode_data, plan


def check_study(study: Study, offline: bool = False) -> None:
    """Print the grid, the data of each run and one example with its loss mask; raises UserError with all problems."""
    problems: list[str] = []
    hints: list[str] = []
    runs = study.runs()
    placement = place(study.device, study.dtype)
    print(f"{study.name}: {len(runs)} runs on {placement.device} in {placement.dtype} ({placement.why})")
    try:
        print(f"prompts: {len(load_prompts(study.prompts))} in {', '.join(study.prompts.languages)}")
    except UserError as error:
        problems += error.problems
    shown = False
    for label, config in zip(run_labels(runs), runs, strict=True):
        try:
            shown = _check_run(label, config, offline, shown)
        except UserError as error:
            problems += [f"{label}: {problem}" for problem in error.problems]
            hints += [error.hint] if error.hint else []
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hints[0] if hints else None)
    print("all good; next: xlift run")


def _check_run(label: str, config: RunConfig, offline: bool, shown: bool) -> bool:
    base = locate(config.model, config.revision, offline)
    if config.untuned:
        print(f"  {label}: untuned reference")
        return shown
    chat = chat_format(load_tokenizer(base.path, base.revision), config.template, config.system)
    conversations, heldout = load_instructions(config.instructions, offline)
    data = encode_data(config, chat, conversations, heldout)
    steps = plan(config, data.lengths)
    tokens = sum(data.lengths[i] for step in steps for i in step)
    print(
        f"  {label}: {len(data.train)} conversations ({data.too_long} too long, {len(data.heldout)} held out), "
        f"{len(steps)} steps, {tokens} tokens"
    )
    if not shown:
        _show_mask(chat, min(data.train, key=len))
    return True


def _show_mask(chat: ChatFormat, example: Encoded) -> None:
    """One example as the model sees it: learned tokens green, the rest dim."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    for token, learned in zip(example.ids, example.mask, strict=True):
        text.append(str(chat.tokenizer.decode([token])), style="bold green" if learned else "dim")
    print(f"template {chat.name}, end of turn {chat.end_of_turn}; learned tokens are green:")
    Console().print(text)
