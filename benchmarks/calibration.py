"""How often calibrated intervals hold the true mean, and how wide they are beside those of people alone.

    python benchmarks/calibration.py [--studies 5000] [--only "useless"]

Simulated studies, by the scenarios of tests/test_calibration.py, with more repetitions than a test can afford.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_calibration import SCENARIOS, simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=5000)
    parser.add_argument("--only", default="", help="scenarios whose name has this in it")
    arguments = parser.parse_args()
    names = [name for name in SCENARIOS if arguments.only in name]
    print("| judge and people | covers: people only | calibrated | width |\n|---|---|---|---|")
    with ProcessPoolExecutor() as pool:
        for name, found in zip(names, pool.map(simulate, names, [arguments.studies] * len(names)), strict=True):
            print(f"| {name} | {found.people:.3f} | {found.calibrated:.3f} | {found.width:.2f} |", flush=True)


if __name__ == "__main__":
    main()
