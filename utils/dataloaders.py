"""From a dataset folder to batches: memory-mapped ragged arrays, cut into history and targets without a Python loop.

The folder's layout is in docs/architecture.md; `utils/datapreprocessing.py` writes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from utils import schema
from utils.batch import History, SessionBatch
from utils.cli import UserError, check_at_least
from utils.files import read_json
from utils.schema import SCHEMA_VERSION, SPLITS
from utils.vocab import N_SPECIAL, PAD

PLAYS_AT_ONCE = 4_000_000
"""Plays that `has_pairs` looks at together."""
Cut = Literal["half", "random", "every"]


@dataclass
class DataConfig:
    """Which sessions, and how they are cut into history and targets."""

    folder: str = "data/demo"
    """Dataset folder written by `python -m utils.datapreprocessing`."""
    train_cut: Cut = "half"
    """Where training sessions are cut: half (the first half is the history, as in MSSD), random (anew in each epoch),
    every (each prefix is an example)."""
    history_size: int = 10
    """Plays of the history that a model sees, at most (the last ones)."""
    target_size: int = 10
    """Plays after the history that are targets, at most (the first ones)."""
    min_length: int = 2
    """Shortest session whose second half is scored (the shortest of MSSD have 10 plays anyway)."""
    valid_sessions: int = 0
    """Validation sessions that are scored while training, evenly spaced; 0 for all (the end always scores all)."""
    scored: list[str] = field(default_factory=lambda: list(SPLITS))
    """Splits that are scored at the end; [valid] to choose between settings without a look at test."""
    every_prefix: bool = False
    """Seq: also score the next track after every prefix of every session."""

    def __post_init__(self) -> None:
        check_at_least(self, "data", history_size=1, target_size=1, min_length=2, valid_sessions=0)
        check_splits("data.scored", self.scored)


def check_splits(option: str, names: Sequence[str]) -> None:
    """
    Raises:
        UserError: names the option, whose value is not some of the splits.
    """
    if not names or set(names) - set(SPLITS):
        raise UserError(f"{option} is {list(names)}; it must be some of {', '.join(SPLITS)}")


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

    @classmethod
    def open(cls, folder: str | Path) -> SessionArrays:
        """Memory-map a split's folder.

        Raises:
            UserError: a file is missing, or the arrays do not fit each other.
        """
        folder = Path(folder)
        arrays = cls(
            folder, **{name: _open_array(folder / f"{name}.npy") for name in ("tracks", "offsets", "skips", "log")}
        )
        n_events = len(arrays.tracks)
        fits = arrays.offsets[-1] == n_events == len(arrays.skips) == len(arrays.log)
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

    def has_pairs(self, keys: np.ndarray) -> np.ndarray:
        """Which pairs of tracks (`pair_keys`, (N,), at least one) are neighbours in a session: bool (N,).

        The plays stream by: they take no memory.
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
        """Some columns of `sessions`, and no other is read: name -> (n_sessions,)."""
        table = pq.read_table(self.folder / "sessions.parquet", columns=list(names))
        return {name: table[name].to_numpy() for name in names}

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
            UserError: not a dataset folder, another schema version, a session id in two splits, or no skips in it
                although `needs_skips`.
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
        features = torch.tensor(_open_array(folder / "track_features.npy"))
        if len(features) != info["vocabulary"]["n_ids"]:
            raise UserError(
                f"{folder}/track_features.npy has {len(features)} rows, the vocabulary {info['vocabulary']['n_ids']}; "
                "run the preprocessing again"
            )
        _check_disjoint(folder)
        splits = {split: SessionArrays.open(folder / split) for split in SPLITS}
        for split, arrays in splits.items():
            if arrays.n_sessions == 0:
                raise UserError(f"{folder}/{split} has no sessions; run the preprocessing on more data")
        return cls(folder, info, features=features, **splits)

    @property
    def n_ids(self) -> int:
        """V: tracks and special ids."""
        return int(self.info["vocabulary"]["n_ids"])

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
    """No session may stand in two splits, or twice in one: the seed's worst mistakes were exactly these.

    DuckDB looks for it within 1 GB of memory; 20 million sessions take 8 s of processor time.
    """
    paths = [folder / split / "sessions.parquet" for split in SPLITS]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; run the preprocessing again")
    query = "SELECT session_id FROM read_parquet($paths) GROUP BY session_id HAVING count(*) > 1 LIMIT 1"
    with (
        tempfile.TemporaryDirectory() as spill,
        duckdb.connect(config={"memory_limit": "1GB", "temp_directory": spill}) as engine,
    ):
        try:
            twice = engine.execute(query, {"paths": [str(path) for path in paths]}).fetchone()
        except duckdb.Error as error:
            raise UserError(f"the sessions of {folder} cannot be read ({error}); run the preprocessing again") from None
    if twice is not None:
        raise UserError(
            f"session {twice[0]} stands more than once in the splits of {folder}; run the preprocessing again"
        )


def check_length(arrays: SessionArrays, min_length: int) -> None:
    """
    Raises:
        UserError: no session has `min_length` plays.
    """
    if not (arrays.lengths >= min_length).any():
        raise UserError(f"{arrays.folder} has no session of at least {min_length} plays")


class Targets(NamedTuple):
    """The answers of all examples of a loader, in order, with what is needed to slice scores."""

    tracks: np.ndarray
    """int32 (N, T); PAD after the end."""
    skips: np.ndarray
    """int8 (N, T); 1 skipped, 0 not, -1 no play or unknown."""
    session: np.ndarray
    """int64 (N,): the session of each example (several examples share one when every prefix is cut)."""


class SessionLoader:
    """Batches of examples from one split; the same order for the same seed and epoch, resumable at any batch.

    Args:
        arrays: the split.
        batch_size: B; the last batch of an epoch may be smaller.
        cut: where a session is cut in history and targets: "half" at floor(length / 2); "random", anew in each
            epoch; "every" makes each proper prefix an example.
        history_size: S, the last plays of the history are kept.
        target_size: T, the first plays after the cut are kept.
        min_length: shorter sessions are left out (2 is the least that can be cut).
        max_sessions: if given, an evenly spaced sample of at most that many sessions.
        shuffle: draw a new order in each epoch.
        seed: of the order and of random cuts.
    """

    def __init__(
        self,
        arrays: SessionArrays,
        *,
        batch_size: int,
        cut: Cut = "half",
        history_size: int = 10,
        target_size: int = 10,
        min_length: int = 2,
        max_sessions: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.arrays = arrays
        self.batch_size = batch_size
        self.cut = cut
        self.history_size = history_size
        self.target_size = target_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        self.next_batch = 0
        lengths = arrays.lengths
        check_length(arrays, max(min_length, 2))
        self.session = np.flatnonzero(lengths >= max(min_length, 2))
        if max_sessions is not None and len(self.session) > max_sessions:
            self.session = self.session[np.linspace(0, len(self.session) - 1, max_sessions).astype(np.int64)]
        self.cuts: np.ndarray = lengths[self.session] // 2
        if cut == "every":
            n_cuts = lengths[self.session] - 1
            first = np.repeat(np.cumsum(n_cuts) - n_cuts, n_cuts)
            self.cuts = np.arange(n_cuts.sum()) - first + 1
            self.session = np.repeat(self.session, n_cuts)

    @property
    def n_examples(self) -> int:
        """N: examples in an epoch."""
        return len(self.session)

    def __len__(self) -> int:
        return -(-self.n_examples // self.batch_size)

    def __iter__(self) -> Iterator[SessionBatch]:
        """The rest of the current epoch from `next_batch` on; then the loader stands at the start of the next one."""
        order, cuts = self._draw_epoch()
        while self.next_batch < len(self):
            start = self.next_batch * self.batch_size
            self.next_batch += 1
            yield self._gather(order[start : start + self.batch_size], cuts)
        self.epoch += 1
        self.next_batch = 0

    def state_dict(self) -> dict[str, int]:
        """Where the loader stands."""
        return {"epoch": self.epoch, "next_batch": self.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to where another loader of the same settings stood."""
        self.epoch, self.next_batch = state["epoch"], state["next_batch"]

    def targets(self) -> Targets:
        """The answers of all N examples in order (for loaders that do not shuffle or cut at random)."""
        if self.shuffle or self.cut == "random":
            raise ValueError("targets are in order only for loaders without shuffling and random cuts")
        return self._targets

    @cached_property
    def _targets(self) -> Targets:
        shape, s = (self.n_examples, self.target_size), self.history_size
        targets = Targets(np.empty(shape, np.int32), np.empty(shape, np.int8), self.session)
        for rows in np.array_split(np.arange(self.n_examples), len(self)):  # a batch at a time, for it has logs, too
            tracks, skips, _ = self._window(rows, self.cuts)
            targets.tracks[rows], targets.skips[rows] = tracks[:, s:], _labels(skips[:, s:])
        return targets

    def _draw_epoch(self) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.n_examples) if self.shuffle else np.arange(self.n_examples)
        cuts = self.cuts
        if self.cut == "random":
            cuts = rng.integers(1, self.arrays.lengths[self.session])
        return order, cuts

    def _window(self, rows: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Plays around the cut of each row: tracks (B, S + T), skip codes (B, S + T), log codes (B, S + T, L)."""
        session, cut = self.session[rows], cuts[rows]
        start, end = self.arrays.offsets[session], self.arrays.offsets[session + 1]
        arrays = (self.arrays.tracks, self.arrays.skips, self.arrays.log)
        first, width = start + cut - self.history_size, self.history_size + self.target_size
        tracks, skips, log = (_windows(array, first, width) for array in arrays)
        position = np.arange(-self.history_size, self.target_size, dtype=np.int32)  # half the memory of int64
        before, after = cut.astype(np.int32), (end - start - cut).astype(np.int32)
        outside = (position < -before[:, None]) | (position >= after[:, None])
        tracks[outside] = PAD
        skips[outside] = schema.SKIP_UNKNOWN
        plays = log.view(f"V{log.shape[2]}")  # (B, S + T, 1): all codes of a play as one item, five times as fast
        plays[outside] = np.zeros((), plays.dtype)
        return tracks, skips, log

    def _gather(self, rows: np.ndarray, cuts: np.ndarray) -> SessionBatch:
        tracks, skips, log = self._window(rows, cuts)
        s = self.history_size
        # uint8 arithmetic wraps: 255 (unknown) + 1 is 0, the unknown state of a history.
        states = skips + np.uint8(1)
        return SessionBatch(
            history=History(_long(tracks[:, :s]), _long(states[:, :s]), torch.from_numpy(log[:, :s])),
            target_tracks=_long(tracks[:, s:]),
            target_skips=_long(_labels(skips[:, s:])),
            target_log=torch.from_numpy(log[:, s:]),
            rows=_long(rows),
        )


def _windows(array: np.ndarray, first: np.ndarray, width: int) -> np.ndarray:
    """Copy `array[i : i + width]` for each i of `first` (B,): (B, width, ...), with anything beyond the array's ends.

    The windows are items of an array that overlaps itself, so each is one copy of contiguous bytes.
    """
    if len(array) < width:
        array = np.resize(array, (width, *array.shape[1:]))
    size = array[0].nbytes
    items = np.ndarray(len(array) - width + 1, f"V{width * size}", array, strides=(size,))
    inside = first.clip(0, len(items) - 1)
    windows = items[inside].view(array.dtype).reshape(len(first), width, *array.shape[1:])
    for row in np.flatnonzero(inside != first):  # the few sessions at the ends
        windows[row] = np.roll(windows[row], inside[row] - first[row], axis=0)
    return windows


def _long(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))


def _labels(skips: np.ndarray) -> np.ndarray:
    """Challenge labels int8 of skip codes: 1 skipped (skip_2), 0 not, -1 unknown."""
    labels = ((skips >= schema.SKIP_2) & (skips <= schema.SKIP_1)).astype(np.int8)
    labels[skips == schema.SKIP_UNKNOWN] = -1
    return labels


def training_loader(dataset: Dataset, data: DataConfig, *, batch_size: int, seed: int) -> SessionLoader:
    """Shuffled training batches, cut as `data` says.

    Raises:
        UserError: a split has no session that could be scored, which is better known before training than after it.
    """
    for split in SPLITS:
        check_length(dataset.split(split), data.min_length)
    return SessionLoader(
        dataset.train,
        batch_size=batch_size,
        cut=data.train_cut,
        history_size=data.history_size,
        target_size=data.target_size,
        shuffle=True,
        seed=seed,
    )
