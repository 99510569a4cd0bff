"""A dataset folder, opened and checked: memory-mapped ragged arrays, vocabulary and audio features.

The folder's layout is in docs/data.md; `python -m utils.datapreprocessing` writes it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from utils.core.errors import UserError
from utils.core.files import only, read_json
from utils.data import schema
from utils.data.schema import OLDER_PROTOCOLS, SCHEMA_VERSION, SPLITS
from utils.data.vocab import N_SPECIAL

REQUIRED_ARRAYS = ("tracks", "offsets", "skips", "log")
OPTIONAL_ARRAYS = ("full_ids", "times", "seconds")
"""Files of a split that tables of plays have, each where the source knows it."""
PLAYS_AT_ONCE = 4_000_000
"""Plays that `has_pairs` looks at at a time."""


@dataclass(frozen=True)
class SessionArrays:
    """One split: flat arrays over plays, and where each session starts."""

    folder: Path
    tracks: np.ndarray
    """int32 (n_events,)"""
    offsets: np.ndarray
    """int64 (n_sessions + 1,)"""
    skips: np.ndarray
    """uint8 (n_events,)"""
    log: np.ndarray
    """uint8 (n_events, L)"""
    full_ids: np.ndarray | None = None
    """int32 (n_events,): as `tracks`, but a new track has an id of its own, from n_ids on; None where new tracks are
    not told apart."""
    times: np.ndarray | None = None
    """int64 (n_events,): when each play started, in microseconds since 1970; None where the source has no times."""
    seconds: np.ndarray | None = None
    """float32 (n_events,): how long each play lasted, NaN where unknown; None where the source does not say."""
    past: np.ndarray | None = None
    """float16 (n_events, P): statistics and relations, see `utils/data/past.py`; None if opened without them."""
    details: np.ndarray | None = None
    """float16 (n_events, K): details of each play, see `utils/data/past.py`; None if opened without them."""

    @classmethod
    def open(cls, folder: str | Path) -> SessionArrays:
        """Memory-map a split's folder.

        Raises:
            UserError: a file is missing, or the arrays do not fit each other.
        """
        folder = Path(folder)
        there = [name for name in OPTIONAL_ARRAYS if (folder / f"{name}.npy").exists()]
        arrays = cls(folder, **{name: _open_array(folder / f"{name}.npy") for name in (*REQUIRED_ARRAYS, *there)})
        n_events = len(arrays.tracks)
        fits = arrays.offsets[-1] == n_events == len(arrays.skips) == len(arrays.log)
        fits = fits and all(len(getattr(arrays, name)) == n_events for name in there)
        if not fits or arrays.log.shape[1:] != (len(schema.LOG_COLUMNS),):
            raise UserError(f"the arrays in {folder} do not fit each other; run the preprocessing again")
        return arrays

    @property
    def n_sessions(self) -> int:
        """Number of sessions."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (n_sessions,): plays of each session."""
        return np.diff(self.offsets)

    def between(self, first: int, end: int) -> SessionArrays:
        """The sessions from `first` up to `end`, without a copy; only for reading their plays."""
        return replace(self, offsets=self.offsets[first : end + 1])

    def has_pairs(self, keys: np.ndarray) -> np.ndarray:
        """Which pairs of tracks (`pair_keys`, (N,), at least one) follow each other in a session: bool (N,).

        Only `PLAYS_AT_ONCE` plays are in memory at a time.
        """
        wanted, place = np.unique(keys, return_inverse=True)
        found = np.zeros(len(wanted), bool)
        for start in range(0, len(self.tracks) - 1, PLAYS_AT_ONCE):
            tracks = self.tracks[start : start + PLAYS_AT_ONCE + 1]
            neighbours = pair_keys(tracks[:-1], tracks[1:])
            first, last = np.searchsorted(self.offsets, [start + 1, start + len(neighbours) + 1])
            neighbours[self.offsets[first:last] - 1 - start] = -1  # the last play of a session has no next one
            at = np.searchsorted(wanted, neighbours).clip(max=len(wanted) - 1)
            found[at[wanted[at] == neighbours]] = True
        return found[place]

    def columns_of_sessions(self, *names: str) -> dict[str, np.ndarray]:
        """Some columns of `sessions`, without reading the others: name -> (n_sessions,)."""
        table = pq.read_table(self.folder / "sessions.parquet", columns=list(names))
        return {name: table[name].to_numpy() for name in names}

    @cached_property
    def users(self) -> pa.DictionaryArray | None:
        """The listener of each session, null where none is known; None in datasets that know of no listeners."""
        path = self.folder / "sessions.parquet"
        if "user" not in pq.read_schema(path).names:
            return None
        column = pq.read_table(path, columns=["user"], read_dictionary=["user"])["user"].unify_dictionaries()
        if column.null_count == len(column):
            return None
        return pa.DictionaryArray.from_arrays(
            pa.concat_arrays([chunk.indices for chunk in column.chunks]), column.chunk(0).dictionary
        )

    @cached_property
    def sessions(self) -> pd.DataFrame:
        """One row a session (session_id, day, file, premium, ...), in the arrays' order."""
        return pd.read_parquet(self.folder / "sessions.parquet")


def pair_keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """One int64 for each pair of track ids."""
    return (first.astype(np.int64) << 32) | second.astype(np.int64)


def _open_array(path: Path) -> np.ndarray:
    try:
        # A plain ndarray view: indexing np.memmap objects costs more than the reading.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run python -m utils.datapreprocessing first") from None
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a readable array ({error}); run the preprocessing again") from None


@dataclass(frozen=True)
class Dataset:
    """A dataset folder, opened and checked."""

    folder: Path
    info: dict[str, Any]
    """The content of `dataset.json`."""
    train: SessionArrays
    valid: SessionArrays
    test: SessionArrays
    features: torch.Tensor
    """float32 (V, F): standardised audio features; F may be 0."""

    @classmethod
    def open(cls, folder: str | Path, *, needs_skips: bool = False) -> Dataset:
        """Open a dataset folder and check its promises.

        Raises:
            UserError: not a dataset folder, another schema version, a session id in two splits, a split that is empty
                though nobody asked for that, or no skips although `needs_skips`.
        """
        folder = Path(folder)
        if not (folder / "dataset.json").exists():
            raise UserError(f"{folder} is no dataset folder (no dataset.json); make one: see data/README.md")
        info = read_json(folder / "dataset.json")
        version = info.get("schema_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{folder}/dataset.json has schema version {version}, this code reads {SCHEMA_VERSION}; "
                "run the preprocessing again"
            )
        if needs_skips and not info["has_skips"]:
            raise UserError(f"{folder} has no skips (its source has none): only the seq task can be run on it")
        info["protocol"] = OLDER_PROTOCOLS.get(info["protocol"], info["protocol"])
        features = torch.tensor(_open_array(folder / "track_features.npy"))
        if len(features) != info["vocabulary"]["n_ids"]:
            raise UserError(
                f"{folder}/track_features.npy has {len(features)} rows, the vocabulary {info['vocabulary']['n_ids']}; "
                "run the preprocessing again"
            )
        _check_disjoint(folder)
        splits = {split: SessionArrays.open(folder / split) for split in SPLITS}
        for split, arrays in splits.items():
            if arrays.n_sessions == 0 and split not in info.get("empty_splits", []):
                raise UserError(f"{folder}/{split} has no sessions; run the preprocessing on more data")
        return cls(folder, info, features=features, **splits)

    @property
    def n_ids(self) -> int:
        """V: tracks and special ids."""
        return int(self.info["vocabulary"]["n_ids"])

    @property
    def n_past(self) -> int:
        """P: statistics and relations of a play; 0 if opened without them."""
        return 0 if self.train.past is None else self.train.past.shape[1]

    @property
    def n_details(self) -> int:
        """K: details of a play in the history; 0 if opened without them."""
        return 0 if self.train.details is None else self.train.details.shape[1]

    @property
    def vocabulary_hash(self) -> str:
        """Hash of the vocabulary, to be compared before weights are loaded."""
        return str(self.info["vocabulary"]["hash"])

    @cached_property
    def track_names(self) -> np.ndarray:
        """object (V,): the source's id of each track; the special ids have names in angle brackets."""
        table = pq.read_table(self.folder / "tracks.parquet", columns=["index", "track_id"])
        names = np.empty(self.n_ids, dtype=object)
        names[:N_SPECIAL] = ("<pad>", "<mask>", "<skip>", "<unk>", "<bos>")
        names[table["index"].to_numpy()] = table["track_id"].to_numpy()
        return names

    @cached_property
    def train_plays(self) -> torch.Tensor:
        """int64 (V,): plays of each id in the training split, 0 for the special ids."""
        table = pq.read_table(self.folder / "tracks.parquet", columns=["index", "train_plays"])
        plays = torch.zeros(self.n_ids, dtype=torch.int64)
        plays[torch.from_numpy(table["index"].to_numpy().astype(np.int64))] = torch.tensor(
            table["train_plays"].to_numpy()
        )
        return plays

    def split(self, name: str) -> SessionArrays:
        """The arrays of "train", "valid" or "test"."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]


def _check_disjoint(folder: Path) -> None:
    """Check that no session is in two splits, or twice in one: the original's worst mistakes were exactly these.

    DuckDB does this within 1 GB of memory; 20 million sessions take 8 s of processor time.
    """
    paths = [folder / split / "sessions.parquet" for split in SPLITS]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; run the preprocessing again")
    query = (
        "SELECT session_id FROM read_parquet($paths, hive_partitioning = false) "
        "GROUP BY session_id HAVING count(*) > 1 LIMIT 1"
    )
    with (
        tempfile.TemporaryDirectory() as spill,
        duckdb.connect(config={"memory_limit": "1GB", "temp_directory": spill}) as engine,
    ):
        try:
            twice = engine.execute(query, {"paths": [only(path) for path in paths]}).fetchone()
        except duckdb.Error as error:
            raise UserError(f"the sessions of {folder} cannot be read ({error}); run the preprocessing again") from None
    if twice is not None:
        raise UserError(
            f"session {twice[0]} stands more than once in the splits of {folder}; run the preprocessing again"
        )
