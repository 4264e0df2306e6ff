"""Writes hashes.txt anew: the sha256 of every file of every pinned release, as a package index tells them.

    python .ci/hashes.py INDEX_URL

What an index does not have (a CPU build of torch) is kept from the hashes.txt of before, if the version is the same.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
WANTED = {"Accept": "application/vnd.pypi.simple.v1+json"}


def pinned() -> dict[str, str]:
    """Version by name, as constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


# e.g. ("typer", "0.27.0"): "typer-0.27.0-py3-none-any.whl", "typer-0.27.0.tar.gz"; not "typer-0.27.0rc1.tar.gz"
def is_of(file: str, name: str, version: str) -> bool:
    """Whether a file of an index is of this release."""
    start = re.sub(r"[-_.]+", "[-_.]+", re.escape(name).replace("\\", "")) + "-" + re.escape(version)
    return re.match(rf"{start}(-|\.tar\.gz$|\.zip$)", file, re.IGNORECASE) is not None


def told(index: str, name: str, version: str) -> list[str]:
    """The sha256 of each file of a release."""
    request = urllib.request.Request(f"{index.rstrip('/')}/{name}/", headers=WANTED)
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    return [one["hashes"]["sha256"] for one in files if is_of(one["filename"], name, version)]


def kept(path: Path) -> dict[str, list[str]]:
    """The hashes of a hashes.txt by "name==version"."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {one.split()[0]: re.findall(r"sha256:(\w+)", one) for one in re.split(r"\n(?=\w)", text) if "==" in one}


def main(index: str) -> None:
    path = ROOT / "hashes.txt"
    before = kept(path)
    lines = []
    for name, version in pinned().items():
        release = f"{name}=={version}"
        hashes = sorted({*told(index, name, version), *before.get(release, ())})
        if not hashes:
            sys.exit(f"{release}: the index has no file of it")
        lines.append(" \\\n".join([release, *(f"    --hash=sha256:{one}" for one in hashes)]) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
