"""What can go wrong, as a tree.

XliftError
└── UserError            the user can mend it: one message, a hint, exit code 2, no traceback
    ├── ConfigError      a study file or an option
    ├── DataError        an instruction, prompt, response or rating file
    ├── ModelError       a base model or checkpoint that cannot be found or used
    ├── TooLongError     a conversation is longer than what a model can read
    └── TemplateError    a chat template that cannot be trained on
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from xlift.redaction import redacted


class XliftError(Exception):
    """Base of every error that xlift raises on purpose."""


class UserError(XliftError):
    """A mistake or gap that the user can mend.

    `problems` are reported together; `hint` names the next thing to try. Neither holds a secret.
    """

    def __init__(self, problems: str | Iterable[str], hint: str | None = None) -> None:
        self.problems = [redacted(one) for one in ([problems] if isinstance(problems, str) else problems)]
        self.hint = redacted(hint) if hint else hint
        super().__init__("\n".join([*self.problems, *([self.hint] if self.hint else [])]))


class ConfigError(UserError):
    """A study file or command-line setting is wrong."""


class DataError(UserError):
    """A data file does not hold what it should."""


class ModelError(UserError):
    """A model cannot be found, loaded or used."""


class TooLongError(UserError):
    """A conversation is longer than what a model can read with its reply."""


class TemplateError(UserError):
    """A chat template cannot express the conversations or hides where a reply ends."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has ended, on a GPU or on the host."""
    # torch raises a RuntimeError where memory ends on a CPU, and a kind of it on a GPU.
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


# e.g. memory_problem(ImportError("libc10.so: failed to map segment from shared object")) is not None → True
# e.g. memory_problem(ImportError("no module")) is not None → False
def memory_problem(error: BaseException) -> UserError | None:
    """The end of memory, as a library says it that cannot even be loaded: as the user's error; None for another."""
    said = (str(error) or type(error).__name__).splitlines()[0]
    if not isinstance(error, MemoryError) and not ("failed to map segment" in said or "allocate memory" in said):
        return None
    hint = "raise ulimit -v, end other programs, or take a smaller model or batch; what is done is kept"
    return UserError(f"memory has ended: {said}", hint)


# e.g. os_problem(OSError(28, "No space left on device", "a.jsonl")).problems → ["a.jsonl: No space left on device"]
def os_problem(error: OSError) -> UserError:
    """A full disk, a missing right, an unreadable file: as the user's error, with the file and what to do."""
    hints = {
        errno.ENOSPC: "make room and run the same command again: what is done is kept",
        errno.EDQUOT: "your quota is used up: make room and run the same command again: what is done is kept",
        errno.EROFS: "it cannot be written to: choose another folder (--out, -o), or XLIFT_CACHE for the cache",
        errno.ENAMETOOLONG: "choose a shorter name or folder",
        errno.EMFILE: "too many files are open: raise ulimit -n",
        errno.EFBIG: "raise ulimit -f, or choose another file system (--out, -o), and run the same command again",
        errno.ENOLCK: "this file system keeps no locks: choose another (--out, -o), or XLIFT_CACHE for the cache",
    }
    rights = "give yourself the right to it (ls -l), or choose another folder (--out, -o), or XLIFT_CACHE for the cache"
    hints |= dict.fromkeys((errno.EACCES, errno.EPERM), rights)
    where = f"{error.filename}: " if error.filename else ""
    said = f"{where}{error.strerror or error or type(error).__name__}"
    return UserError(said, hints.get(error.errno or 0, "mend it and run the same command again: what is done is kept"))


def raise_together(errors: Iterable[UserError]) -> None:
    """One UserError with the problems of all, each once, and the first hint; nothing where there are none."""
    found = list(errors)
    hints = [error.hint for error in found if error.hint]
    problems = [problem for error in found for problem in error.problems]
    if problems:
        raise UserError(list(dict.fromkeys(problems)), hints[0] if hints else None)


MAX_PROBLEMS = 20
"""Problems of one kind that are shown; of more, how many there are besides."""


# e.g. shortened([str(number) for number in range(25)])[-1] → "… and 5 more"
def shortened(problems: list[str]) -> list[str]:
    """The first problems, and how many more there are."""
    more = [f"… and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
    return [*problems[:MAX_PROBLEMS], *more]


# e.g. nearest("step", ["steps", "epochs"]) → "did you mean 'steps'? choices: epochs, steps"
def nearest(name: str, choices: Iterable[str]) -> str:
    """A phrase that names the closest choice and all of them: "did you mean 'x'? choices: x, y"."""
    known = sorted(choices)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f"did you mean '{close[0]}'? " if close else ""
    return f"{meant}choices: {', '.join(known)}"
