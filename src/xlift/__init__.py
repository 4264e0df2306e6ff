"""xlift: cross-lingual instruction fine-tuning, answered, rated and explained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlift.results import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported on use: `xlift --help` answers without the table library.
    if name == "load":
        from xlift.results import load

        return load
    raise AttributeError(f"module 'xlift' has no attribute '{name}'")
