"""Memory of this process and of the device that it computes on, in bytes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xlift.models import Placement

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_memory(placement: Placement) -> bool:
    """Let `peak_memory` begin anew; False where the system cannot forget its peak: it stays that of the process."""
    if placement.device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return True
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


@contextmanager
def kept_memory() -> Iterator[None]:
    """Lets this process keep what it frees, for as long as the context lasts, where its C library is glibc.

    Otherwise every large tensor's pages are taken from the system and given back each time: a third of the processor's
    time in full fine-tuning.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        yield
        return
    # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h: no block of its own for a large tensor, nothing given back.
    mallopt(-4, 0)
    mallopt(-1, -1)
    try:
        yield
    finally:
        mallopt(-4, 65536)
        mallopt(-1, 128 * 1024)
        ctypes.CDLL(None).malloc_trim(0)


def peak_memory(placement: Placement) -> int:
    """Bytes: the most that this process has held so far, on the GPU where it computes on one."""
    if placement.device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    if STATUS.exists():
        # Not getrusage: its figure begins with that of the parent.
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    # In bytes on macOS, in KiB elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory(placement: Placement) -> int:
    """Bytes that a run could take now: on the GPU, or of this machine's (or container's) memory."""
    if placement.device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    if not info.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    line = next(line for line in info.read_text().splitlines() if line.startswith("MemAvailable"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    free = int(line.split()[1]) * 1024
    if limit.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
