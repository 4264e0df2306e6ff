"""A folder that was exported, sent to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from xlift.errors import ConfigError, UserError
from xlift.progress import say
from xlift.redaction import redacted


def push_folder(folder: Path, name: str, kind: Literal["model", "dataset"], private: bool) -> str:
    """Send a whole folder to the hub repository OWNER/NAME as one commit, and return its address at that commit.

    The repository is made where there is none; what it holds already stays in its history. Raises ConfigError without a
    token, or with one that may not write there, and UserError where the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    again = f"hf upload {name} {folder} --repo-type {kind}"
    say(f"sending {folder} to {name} ({'private' if private else 'public'})")
    hub = HfApi()
    try:
        hub.create_repo(name, repo_type=kind, private=private, exist_ok=True)
        done = hub.upload_folder(
            folder_path=folder, repo_id=name, repo_type=kind, commit_message="Exported by xlift", delete_patterns="*"
        )
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in {401, 403}:
            problem = f"--push {name}: the hub knows no token that may write there ({error.response.status_code})"
            raise ConfigError(problem, f"hf auth login, then: {again}") from None
        raise UserError(f"--push {name}: {redacted(str(error).splitlines()[0])}", again) from None
    except (HTTPError, OSError) as error:
        problem = f"--push {name}: the hub cannot be reached ({type(error).__name__})"
        raise UserError(problem, f"it is in {folder}; then: {again}") from None
    return f"{hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}/tree/{done.oid}"


def checked_name(name: str | None) -> str | None:
    """OWNER/NAME. Raises ConfigError for what is no such name, before anything is made."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if name is not None and "/" not in name:
            raise HFValidationError
        if name is not None:
            validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(f"--push {name}: not the name of a repository", "--push OWNER/NAME") from None
    return name
