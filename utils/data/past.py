"""What is known of each play beside its track: the listener's past, its neighbours, what was logged (docs/past.md).

`with_past` opens a dataset with these numbers. They are made on first use and kept under `<dataset>/past/`. Past
statistics of a play know only plays whose outcome was known when its session started; relations know only which tracks
the session has; details are what was logged of the play itself, for plays of the history.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.core.distributed import once
from utils.core.errors import UserError
from utils.core.files import atomic_folder, read_json, write_json
from utils.data import past_plays
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import PastConfig
from utils.data.past_columns import detail_names, past_names
from utils.data.past_plays import Facts
from utils.data.schema import SPLITS

if TYPE_CHECKING:  # at run time only where a past is made: the compiler behind it takes half a second to load
    from utils.data.past_numbers import Block, Work

VERSION = 1
"""Of the formulas and the files; files of another version are not read."""
LARGEST = 5.0
"""Standardised numbers are clipped at plus and minus this."""


def past_columns(dataset: Dataset, config: PastConfig) -> tuple[str, ...]:
    """Names of the columns of `SessionArrays.past`: statistics, then relations.

    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    return past_names(_checked_facts(dataset, config), config)


def detail_columns(dataset: Dataset, config: PastConfig) -> tuple[str, ...]:
    """Names of the columns of `SessionArrays.details`.

    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    return detail_names(_checked_facts(dataset, config), config)


def _checked_facts(dataset: Dataset, config: PastConfig) -> Facts:
    """
    Raises:
        UserError: the dataset knows too little for what `config` asks.
    """
    if not dataset.info["has_skips"]:
        raise UserError(f"{dataset.folder} has no skips (its source has none), so it has no past of skips")
    facts = past_plays.facts_of(dataset)
    if config.protocol != "none" and not facts.listeners:
        days = past_plays.days_of([dataset.train])
        if len(np.unique(days)) < 2 or (days < 0).any():
            raise UserError(
                f"{dataset.folder} knows no listeners, and its training sessions are not of several days: there is no "
                "past to learn from. Choose --past.protocol none, or make the dataset again with a column of users"
            )
    if config.details and not detail_names(facts, config):
        raise UserError(f"{dataset.folder} has no times, lengths or hours of plays; choose --past.details false")
    return facts


# --------------------------------------------------------------------------------------------------- the two doors


def with_past(dataset: Dataset, config: PastConfig) -> Dataset:
    """The same dataset, with `past` and `details` in its splits as `config` asks; made on first use.

    Raises:
        UserError: the dataset knows too little for what `config` asks, or its folder cannot be written.
    """
    if not _asked(config):
        return dataset
    facts = _checked_facts(dataset, config)
    tables = _tables(dataset.folder, facts, config)
    once(lambda: _make_missing(dataset, facts, config, tables))

    def opened(split: str) -> SessionArrays:
        arrays: dict[str, Any] = {name: _open(table.folder / f"{split}.npy") for name, table in tables.items()}
        return replace(dataset.split(split), **arrays)

    return replace(dataset, train=opened("train"), valid=opened("valid"), test=opened("test"))


def past_of(arrays: SessionArrays, dataset: Dataset, config: PastConfig) -> SessionArrays:
    """The same for sessions from outside, which a model of `dataset` is to predict.

    They stand in time among the dataset's own sessions of the same listener (which are known to them, and, if
    `running`, they to each other); a session that the dataset holds, too, is not its own past. The files are written to
    `arrays.folder / "past"`.

    Raises:
        UserError: as `with_past`; or `arrays` have no users or times, though the dataset has.
    """
    if not _asked(config):
        return arrays
    facts = _checked_facts(dataset, config)
    tables = _tables(dataset.folder, facts, config)
    once(lambda: _make_missing(dataset, facts, config, tables))
    scales = {name: _Scale.read(table.folder) for name, table in tables.items()}

    files = {name: arrays.folder / "past" / f"{name}.npy" for name in tables}

    def make() -> None:
        from utils.data.past_numbers import Work

        sources = [*(dataset.split(name) for name in SPLITS), arrays]
        work = Work(sources, facts, config, past_plays.catalogue_of(dataset, arrays))
        with _writable(arrays.folder):
            (arrays.folder / "past").mkdir(exist_ok=True)
            _write(work, scales, {name: {len(SPLITS): path} for name, path in files.items()})

    once(make)
    opened: dict[str, Any] = {name: _open(path) for name, path in files.items()}
    return replace(arrays, **opened)


def _asked(config: PastConfig) -> bool:
    return config.protocol != "none" or config.relations or config.details


class _Table(NamedTuple):
    """An array of every split: where it is kept, and its columns."""

    folder: Path
    columns: tuple[str, ...]


def _tables(folder: Path, facts: Facts, config: PastConfig) -> dict[str, _Table]:
    """The field of `SessionArrays` -> its table."""
    tables, home = {}, folder / "past" / f"v{VERSION}"
    if config.protocol != "none" or config.relations:
        name = config.protocol + ("-relations" if config.relations else "")
        tables["past"] = _Table(home / name, past_names(facts, config))
    if config.details:
        tables["details"] = _Table(home / f"{config.protocol}-details", detail_names(facts, config))
    return tables


def _open(path: Path) -> np.ndarray:
    return np.asarray(np.load(path, mmap_mode="r"))


def _make_missing(dataset: Dataset, facts: Facts, config: PastConfig, tables: dict[str, _Table]) -> None:
    """Make the tables that are not there, or were made of another dataset."""
    identity = _identity(dataset)
    missing = {name: table for name, table in tables.items() if not _is_of(table, identity)}
    if not missing:
        return
    from utils.data.past_numbers import Work

    work = Work([dataset.split(name) for name in SPLITS], facts, config, past_plays.catalogue_of(dataset))
    with _writable(dataset.folder), ExitStack() as stack:
        folders = {
            name: stack.enter_context(atomic_folder(table.folder, overwrite=True, holds="past.json"))
            for name, table in missing.items()
        }
        paths = {
            name: {i: folder / f"{split}.npy" for i, split in enumerate(SPLITS)} for name, folder in folders.items()
        }
        scales = _scales(work, missing)
        _write(work, scales, paths)
        for name, folder in folders.items():
            scales[name].write(folder, identity)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """
    Raises:
        UserError: instead of any `OSError` in the block.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the past cannot be written under {folder} ({error.strerror or error}); "
            "make the folder writable, or work on a copy of the dataset"
        ) from None


def _is_of(table: _Table, identity: str) -> bool:
    """Whether the table is there, made of this dataset, and has these columns."""
    if not (table.folder / "past.json").exists():
        return False
    kept = read_json(table.folder / "past.json")
    return bool(kept.get("identity") == identity and kept.get("columns") == list(table.columns))


def _identity(dataset: Dataset) -> str:
    """A checksum of `dataset.json`, and of names, sizes and times of change of all other files that a past is made of.

    To read those files takes seconds at every opening. A file that was only copied has another time: the past is then
    made again, though it need not be.
    """
    names = ["tracks.parquet", "new_tracks.parquet"]
    arrays = ("tracks", "full_ids", "offsets", "skips", "times", "seconds", "log")
    names += [f"{split}/{name}" for split in SPLITS for name in (*(f"{a}.npy" for a in arrays), "sessions.parquet")]
    checksum = hashlib.blake2b((dataset.folder / "dataset.json").read_bytes(), digest_size=16)
    for name in names:
        path = dataset.folder / name
        if path.exists():
            about = path.stat()
            checksum.update(f"\n{name} {about.st_size} {about.st_mtime_ns}".encode())
    return checksum.hexdigest()


# --------------------------------------------------------------------------------------------------- scales and files


class _Scale(NamedTuple):
    """Mean and deviation of each column over the plays of the training split."""

    columns: tuple[str, ...]
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def read(cls, folder: Path) -> _Scale:
        kept = read_json(folder / "past.json")
        return cls(tuple(kept["columns"]), np.array(kept["mean"]), np.array(kept["deviation"]))

    def write(self, folder: Path, identity: str) -> None:
        values = {"mean": self.mean.tolist(), "deviation": self.deviation.tolist()}
        write_json(
            folder / "past.json", {"version": VERSION, "identity": identity, "columns": list(self.columns), **values}
        )

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        """Standardised, clipped, 0 where there is none: float16. What is given is changed, too."""
        from utils.data.past_pass import standardise

        standardise(numbers, self.mean.astype(np.float32), self.deviation.astype(np.float32), LARGEST)
        return numbers.astype(np.float16)


def _scales(work: Work, tables: dict[str, _Table]) -> dict[str, _Scale]:
    """The scale of each table, from a first pass over all plays."""
    from utils.data.past_pass import add_moments

    columns = {name: table.columns for name, table in tables.items()}
    sums = {name: np.zeros((3, len(wanted))) for name, wanted in columns.items()}
    for block in _with_bar(work, columns, "past: scales"):
        training = np.repeat(block.sessions.source == 0, block.sessions.length)
        for name, numbers in block.numbers.items():
            add_moments(numbers, training, sums[name])
    scales = {}
    for name, (count, total, squares) in sums.items():
        mean = total / np.maximum(count, 1)
        deviation = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
        deviation[deviation <= 1e-6 * np.maximum(np.abs(mean), 1)] = 1.0  # the same for all plays
        scales[name] = _Scale(columns[name], mean, deviation)
    return scales


def _with_bar(work: Work, columns: dict[str, tuple[str, ...]], title: str) -> Iterator[Block]:
    from utils.data.past_numbers import blocks

    total = sum(len(arrays.tracks) for arrays in work.sources)
    with tqdm(total=total, desc=title, unit=" plays", unit_scale=True, leave=False, delay=2) as bar:
        for block in blocks(work, columns):
            yield block
            bar.update(int(block.sessions.length.sum()))


def _write(work: Work, scales: dict[str, _Scale], paths: dict[str, dict[int, Path]]) -> None:
    """Write the standardised numbers of the wanted sources.

    Args:
        work: what they are made of.
        scales: field -> scale.
        paths: field -> number of a source -> its file.
    """
    from utils.data.past_pass import scatter

    for name, wanted in paths.items():
        for source, path in wanted.items():
            _reserve(path, (len(work.sources[source].tracks), len(scales[name].columns)))
    for block in _with_bar(work, {name: scales[name].columns for name in paths}, "past"):
        for name, numbers in block.numbers.items():
            scaled = scales[name](numbers).view(np.uint16)  # numba knows no float16
            for source, path in paths[name].items():
                # Opened anew for each block, so that no more of the file is held in memory than a block touches.
                out = np.load(path, mmap_mode="r+").view(np.uint16)
                scatter(scaled, block.sessions.length, block.sessions.first, block.sessions.source == source, out)


def _reserve(path: Path, shape: tuple[int, int]) -> None:
    """Make an `.npy` file float16 of this shape, and take the room on the disk that it needs."""
    np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    if hasattr(os, "posix_fallocate"):  # else a full disk would end the process when it writes to the mapped file
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
