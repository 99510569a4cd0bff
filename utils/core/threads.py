"""How the threads of this process wait for each other."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median_low

RUNNING = Path("/proc/loadavg")
"""Its fourth field is "running/all", the threads of the machine: Linux only."""
SPIN_COUNT = "20000"
"""Rounds of spinning, some tens of microseconds: longer than most waits inside a training step."""


def choose_waiting() -> None:
    """Let threads of GNU OpenMP spin briefly while they wait if there is a free core for each, else sleep.

    Spinning is faster on a quiet machine. Where others compute, a thread that spins keeps a core from the thread that
    it waits for, and a training step takes ten times longer; docs/benchmarks.md has the figures. To be called before
    torch is imported, since OpenMP reads the environment once. What the shell says holds.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    if cores_are_free():
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    else:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def cores_are_free(samples: int = 5, seconds: float = 0.01) -> bool:
    """Whether the machine has a core for each thread of this process now; false where that cannot be told.

    Args:
        samples: how often to look; their median counts.
        seconds: between two looks.
    """
    others = []
    for look in range(samples):
        if look:
            time.sleep(seconds)
        try:
            others.append(int(RUNNING.read_text().split()[3].partition("/")[0]) - 1)  # this thread runs, too
        except (OSError, ValueError, IndexError):
            return False
    cores, wanted = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdigit() else cores
    return median_low(others) + threads <= cores
