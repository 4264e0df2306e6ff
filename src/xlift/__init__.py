"""xlift: cross-lingual instruction fine-tuning, answered, rated and explained.

What `__all__` names is public; docs/python.md shows it in use and says how stable it is.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlift.analysis.agreement import agreement_tables as agreement_tables
    from xlift.analysis.calibration import calibrated_mean as calibrated_mean
    from xlift.analysis.comparison import compare as compare
    from xlift.analysis.effects import factor_effects as factor_effects
    from xlift.analysis.effects import variance_shares as variance_shares
    from xlift.analysis.estimates import summary as summary
    from xlift.analysis.power import detectable as detectable
    from xlift.analysis.power import power_table as power_table
    from xlift.analysis.power import prompts_needed as prompts_needed
    from xlift.api import generate as generate
    from xlift.api import run as run
    from xlift.api import train as train
    from xlift.disk import write_jsonl as write_jsonl
    from xlift.errors import UserError as UserError
    from xlift.rating import RATERS as RATERS
    from xlift.rating import rate as rate
    from xlift.rating.files import rate_file as rate_file
    from xlift.records import read_records as read_records
    from xlift.results import Results as Results
    from xlift.results import load as load

_HOMES = {
    "RATERS": "rating",
    "Results": "results",
    "UserError": "errors",
    "agreement_tables": "analysis.agreement",
    "calibrated_mean": "analysis.calibration",
    "compare": "analysis.comparison",
    "detectable": "analysis.power",
    "factor_effects": "analysis.effects",
    "generate": "api",
    "load": "results",
    "power_table": "analysis.power",
    "prompts_needed": "analysis.power",
    "rate": "rating",
    "rate_file": "rating.files",
    "read_records": "records",
    "run": "api",
    "summary": "analysis.estimates",
    "train": "api",
    "variance_shares": "analysis.effects",
    "write_jsonl": "disk",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    # Imported on use: `xlift --help` answers without the table library.
    if name in _HOMES:
        return getattr(import_module(f"xlift.{_HOMES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("xlift")
    raise AttributeError(f"module 'xlift' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
