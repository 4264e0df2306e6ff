"""People rate responses in a web page.

campaign.py   what `xlift annotate` calls: serve, add, revoke, renew, status, export, import
sampling.py   which responses are rated, and by whom
database.py   what is stored, in SQLite or PostgreSQL; migrations/ bring an older database up to date
app.py        the page
transfer.py   ratings out (JSONL, CSV) and in (CSV, Label Studio, potato)
"""

from __future__ import annotations

from importlib.util import find_spec

from xlift.errors import ConfigError

_missing = [name for name in ("alembic", "sqlalchemy", "starlette", "uvicorn") if find_spec(name) is None]
if _missing:
    raise ConfigError(f"annotation needs {', '.join(_missing)}", "pip install 'xlift[annotate]'")
