"""How this process asks the operating system for memory."""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Constants of malloc.h."""


def reuse_memory() -> None:
    """Keep large blocks that are freed for the next allocation, if the C library is glibc; otherwise do nothing.

    By default glibc gives every large tensor back to the system, which clears its pages when they are asked for again.
    In a training loop that allocates the same sizes in each step, this causes two thirds of all page faults and takes a
    sixth of the time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(M_TOP_PAD, 2**26)
