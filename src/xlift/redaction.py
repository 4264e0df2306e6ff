"""No key and no password reaches a screen or a file: `redacted` takes them out of every message."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

HIDDEN = "[hidden]"
SHORTEST_SECRET = 6
"""Characters of a secret; what is shorter protects nothing, and stands in every other word."""
_NAMES = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
"""Names of environment variables that hold a secret."""
_ADDRESS = re.compile(r"(?<=:)(/{0,2})[^\s/@:'\"<>]{1,200}:[^\s/'\"<>]{1,200}@|(?<=://)[^\s/@'\"<>]{20,200}@")
_PARAMETER = re.compile(r"(?i)([?&](?:[\w-]{0,40}(?:key|token|secret|password|signature)|sig)=)[^\s&'\"]+")
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+(?=[^\s]{0,40}\d)[A-Za-z0-9._~+/-]{8,}=*")
_KEY = re.compile(r"\b(?:sk|pk|rk|hf|gsk|xai|pplx|ghp|glpat|nvapi)[-_](?=[\w-]{0,40}\d)[\w-]{16,}|\bhf_[A-Za-z]{30,}")


# e.g. redacted("http://me:word@host/v1 refuses sk-live-1234567890123456") → "http://[hidden]@host/v1 refuses [hidden]"
# e.g. redacted("GET /v1?api_key=abc123 by Bearer abcdefgh12345678") → "GET /v1?api_key=[hidden] by Bearer [hidden]"
# e.g. redacted("the task sk-learn and 12:30@noon stay") → "the task sk-learn and 12:30@noon stay"
def redacted(text: str, *secrets: str) -> str:
    """A text without these secrets, those of the environment, and what looks like one: in addresses, headers, keys."""
    for secret in sorted({*secrets, *_environment()}, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            for written in {secret, quote(secret, safe=""), repr(secret)[1:-1]}:
                text = text.replace(written, HIDDEN)
    text = _ADDRESS.sub(lambda found: f"{found[1] or ''}{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1{HIDDEN}", text)
    return _KEY.sub(HIDDEN, _HEADER.sub(rf"\1 {HIDDEN}", text))


def _environment() -> set[str]:
    """Values of variables that are secret by their names; the path of a key's file is none."""
    found = {value.strip() for name, value in os.environ.items() if _NAMES.search(name)}
    return {value for value in found if not value.startswith(("/", "~", ".")) and len(value) > SHORTEST_SECRET}
