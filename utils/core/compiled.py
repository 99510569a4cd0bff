"""Loops as machine code. Importing this module imports numba, so import it where the loop is, not where it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, kept on disk for the next process where there is a place for it.

    It releases Python's lock while it runs.
    """
    try:
        quick: Callable[..., Any] = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither this folder nor a cache of the user's can be written
        quick = njit(nogil=True)(function)
    return quick
