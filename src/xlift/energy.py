"""The energy that a run's work takes, by counters of the hardware: RAPL of the processor, NVML of NVIDIA's driver.

A counter counts all that its processor or GPU does, for whomever. Where none can be read, the reason is kept.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from xlift.workers import several_workers
from xlift.workspace import RunFolder

POWERCAP = Path("/sys/class/powercap")
EVERY_SECONDS = 30.0
"""A processor's counter begins anew after some minutes under full load: 262 kJ at 200 W are 22."""
Counter = Callable[[], float]
"""Joules since a moment of its own, growing."""


@contextmanager
def metered(runs: Sequence[RunFolder], stage: str, folder: Path = POWERCAP) -> Iterator[None]:
    """Write down what the work on runs takes, each an equal share, beside the state of a stage that it has ended in."""
    counters, why = _counters(runs[0].manifest().get("device", ""), folder)
    before, stop = [read() for read in counters.values()], threading.Event()
    reader = threading.Thread(target=_keep_reading, args=(list(counters.values()), stop), daemon=True)
    reader.start()
    try:
        yield
    finally:
        stop.set()
        reader.join()
    told: dict[str, Any] = {"energy_joules": None, "energy_missing": why}
    # What is trained stays trained, whatever becomes of a counter.
    with suppress(OSError):
        used = sum(read() for read in counters.values()) - sum(before)
        told = {"energy_joules": round(used / len(runs), 1), "energy_of": list(counters)} if counters else told
    for run in runs:
        stages = run.manifest()["stages"]
        if stages.get(stage, {}).get("state") == "done":
            stages[stage] |= told
            run.update_manifest(stages=stages)


def _keep_reading(counters: Sequence[Counter], stop: threading.Event) -> None:
    with suppress(OSError):
        while not stop.wait(EVERY_SECONDS):
            for read in counters:
                read()


def _counters(device: str, folder: Path) -> tuple[dict[str, Counter], str]:
    """The counters of what works here, by name; why there is none."""
    if several_workers() or not device:
        return {}, "several processes shared the work" if device else "a server did the work"
    found, reasons = _processor(folder)
    if device == "cuda":
        try:
            found |= _gpu()
        except (OSError, AttributeError) as error:
            # A processor's share alone would look like the whole.
            return {}, f"the GPU's counter cannot be read ({error})"
    return found, reasons


def _processor(folder: Path) -> tuple[dict[str, Counter], str]:
    """Packages and memory of the processor; `psys`, the whole board, has them in it and is left out."""
    found: dict[str, Counter] = {}
    reason = f"{folder} has no counter of the processor"
    for zone in sorted(folder.glob("intel-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith(("package", "dram")):
                found[f"{name} ({zone.name})"] = _growing(
                    partial(_microjoules, zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj")
                )
                found[f"{name} ({zone.name})"]()
        except OSError as error:
            return {}, f"the processor's counter cannot be read ({zone.name}: {error.strerror})"
    return found, reason


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


# e.g. 90, 95, 5 of a counter that ends at 100: 0, 5, 15
def _growing(read: Counter, end: float) -> Counter:
    last, total = read(), 0.0

    def grown() -> float:
        nonlocal last, total
        now = read()
        total += now - last if now >= last else now + end - last
        last = now
        return total

    return grown


def _gpu() -> dict[str, Counter]:
    """The counter of the GPU in use. Raises OSError where the driver has none, or not for a part of a GPU (MIG)."""
    import torch

    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    driver, handle = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p()
    uuid = str(properties.uuid)
    _checked(driver.nvmlInit_v2())
    name = (uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}").encode()
    _checked(driver.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)))

    def read() -> float:
        millijoules = ctypes.c_ulonglong()
        _checked(driver.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)))
        return millijoules.value / 1e3

    read()
    return {properties.name: read}


def _checked(code: int) -> None:
    if code:
        raise OSError(f"NVML answers {code}")
