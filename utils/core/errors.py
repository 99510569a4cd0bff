"""Bad input becomes one line and exit code 2, never a traceback: raise `UserError` with the place and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input. The message names the file, row, column or key, and the cure."""


@contextmanager
def blame(section: str) -> Iterator[None]:
    """Report a ValueError of the block as bad input in `section` of the config."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{section}: {error}") from error
