"""People rate responses in a web page.

campaign.py   what `xlift annotate` calls: serve, add, revoke, renew, status, export, import
sampling.py   which responses are rated, and by whom
database.py   what is stored, in SQLite or PostgreSQL; migrations/ bring an older database up to date
app.py        the page
server.py     the web server around it, with its bounds
transfer.py   ratings out (JSONL, CSV) and in (CSV, Label Studio, potato)
"""

from __future__ import annotations

from xlift.extras import require

require("annotate")
