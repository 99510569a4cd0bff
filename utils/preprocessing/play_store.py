"""Plays on disk, from the order of their listeners to the order of their sessions' starts, without another sort.

Sessions are whole in the first order, so a session is moved as a whole: into one of many buckets, each of which holds
sessions that follow each other in the second order and fits in memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.preprocessing.play_order import ROWS_AT_ONCE, TYPES, Columns

PLAYS_A_BUCKET = 1 << 20


class StoredPlays:
    """A file of plays, one after the other, with the columns that the dataset needs of each.

    Args:
        file: where they are written.
        names: columns, of `play_order.TYPES`.
    """

    def __init__(self, file: Path, names: list[str]) -> None:
        self.file = file
        self.dtype = np.dtype([(name, TYPES[name]) for name in names])
        self._data = file.open("wb")

    def append(self, plays: Columns) -> None:
        records = np.empty(len(plays["track"]), self.dtype)
        for name in self.dtype.names or ():
            records[name] = plays[name]
        self._data.write(records.data)

    def blocks(self, lengths: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """The plays of some sessions at a time, and which sessions these are. The file is removed at the end.

        Args:
            lengths: plays of each session, in the order of the file.
        """
        self._data.close()
        with self.file.open("rb") as data:
            for some in slices(lengths, ROWS_AT_ONCE):
                yield some, np.fromfile(data, self.dtype, int(lengths[some].sum()))
        self.file.unlink()


def slices(lengths: np.ndarray, size: int) -> Iterator[slice]:
    """Sessions, some at a time, with `size` plays together, or less than one session more."""
    first = 0
    while first < len(lengths):
        ends = np.cumsum(lengths[first : first + size], dtype=np.int64)
        last = first + int(np.searchsorted(ends, size)) + 1
        yield slice(first, min(last, len(lengths)))
        first = last


class Buckets(NamedTuple):
    """Sessions in buckets. M sessions, numbered in the order in which they are to be read."""

    folder: Path
    dtype: np.dtype
    lengths: np.ndarray
    """Plays of each session, (M,)"""
    slices: list[slice]
    """The sessions of each bucket."""

    def read(self) -> Iterator[tuple[slice, np.ndarray]]:
        """The plays of a bucket at a time, in order, and which sessions they belong to. What was read is removed."""
        for i, some in enumerate(self.slices):
            numbers = np.fromfile(self.folder / f"{i}.numbers", np.int32)
            plays = np.fromfile(self.folder / f"{i}.plays", self.dtype)
            for kind in ("numbers", "plays"):
                (self.folder / f"{i}.{kind}").unlink()
            lengths = self.lengths[numbers]
            order = np.argsort(numbers)
            yield some, plays[rows_of((np.cumsum(lengths) - lengths)[order], lengths[order])]


def rows_of(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows of sessions, one session after the other, by the first row and the plays of each: int64 (N,)."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


class BucketWriter:
    """Fills buckets.

    Args:
        folder: for their files; it is made.
        dtype: of the plays.
        lengths: plays of each session, by its number, (M,).
    """

    def __init__(self, folder: Path, dtype: np.dtype, lengths: np.ndarray) -> None:
        folder.mkdir()
        self.buckets = Buckets(folder, dtype, lengths, list(slices(lengths, PLAYS_A_BUCKET)))
        self._firsts = np.array([some.start for some in self.buckets.slices])

    def add(self, numbers: np.ndarray, plays: np.ndarray) -> None:
        """
        Args:
            numbers: of the sessions, int32.
            plays: their plays, one session after the other.
        """
        lengths = self.buckets.lengths[numbers].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        bucket = np.searchsorted(self._firsts, numbers, side="right") - 1
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(len(self._firsts) + 1))
        for i, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first == last:
                continue
            some = order[first:last]
            # Opened each time, for there may be more buckets than files that a process may have open.
            for kind, values in (("numbers", numbers[some]), ("plays", plays[rows_of(starts[some], lengths[some])])):
                with (self.buckets.folder / f"{i}.{kind}").open("ab") as file:
                    file.write(np.ascontiguousarray(values).data)
