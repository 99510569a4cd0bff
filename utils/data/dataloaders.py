"""From sessions to batches, cut into history and targets without a Python loop."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from utils.core.errors import UserError
from utils.data import schema
from utils.data.batch import History, Past, SessionBatch
from utils.data.dataset import Dataset, SessionArrays
from utils.data.new_plays import first_plays
from utils.data.options import Cut, DataConfig
from utils.data.schema import SPLITS
from utils.data.vocab import PAD, UNK


def check_length(arrays: SessionArrays, min_length: int) -> None:
    """
    Raises:
        UserError: no session has `min_length` plays.
    """
    if arrays.n_sessions == 0:
        raise UserError(
            f"{arrays.folder} has no sessions, as --{arrays.folder.name}_fraction 0 asked for: make the dataset with "
            "this split, or leave out what needs it"
        )
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
        history_size: S; of a longer history the last plays are kept.
        target_size: T; of more targets the first plays are kept.
        min_length: shorter sessions are left out (2 plays are the fewest that can be cut).
        max_sessions: if given, an evenly spaced sample of at most that many sessions.
        shuffle: draw a new order in each epoch.
        seed: of the order and of random cuts.
        new: bool (n_events,), plays that stand as `UNK` in histories and targets; their true tracks are `answers`.
    """

    def __init__(
        self,
        arrays: SessionArrays,
        *,
        batch_size: int,
        cut: Cut = "half",
        history_size: int = DataConfig.history_size,
        target_size: int = DataConfig.target_size,
        min_length: int = DataConfig.min_length,
        max_sessions: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        new: np.ndarray | None = None,
    ) -> None:
        self.arrays = arrays
        self.new = new
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
        for rows in np.array_split(np.arange(self.n_examples), len(self)):  # a batch at a time, as it has logs, too
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
        s, answers = self.history_size, None
        outside = torch.from_numpy(tracks == PAD)
        if self.new is not None:
            answers = _long(tracks)
            new = _windows(self.new, self._first(rows, cuts), tracks.shape[1])
            tracks[new & (tracks != PAD)] = UNK
        # uint8 arithmetic wraps: 255 (unknown) + 1 is 0, the unknown state of a history.
        states = skips + np.uint8(1)
        return SessionBatch(
            history=History(_long(tracks[:, :s]), _long(states[:, :s]), torch.from_numpy(log[:, :s])),
            target_tracks=_long(tracks[:, s:]),
            target_skips=_long(_labels(skips[:, s:])),
            rows=_long(rows),
            past=self._past(rows, cuts, outside),
            answers=answers,
        )

    def _first(self, rows: np.ndarray, cuts: np.ndarray) -> np.ndarray:
        """Where the window of each row starts among all plays."""
        return self.arrays.offsets[self.session[rows]] + cuts[rows] - self.history_size

    def _past(self, rows: np.ndarray, cuts: np.ndarray, outside: torch.Tensor) -> Past | None:
        """The past of some rows, if the split was opened with it; `outside` (B, S + T) says where no play is."""
        plays, details = self.arrays.past, self.arrays.details
        if plays is None and details is None:
            return None
        first = self._first(rows, cuts)

        def numbers(array: np.ndarray | None, width: int) -> torch.Tensor:
            if array is None:
                return torch.zeros(len(rows), width, 0)
            windows = torch.from_numpy(_windows(array, first, width)).float()
            return windows.masked_fill_(outside[:, :width, None], 0.0)

        return Past(numbers(plays, self.history_size + self.target_size), numbers(details, self.history_size))


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
    labels = schema.is_skip(skips).astype(np.int8)
    labels[skips == schema.SKIP_UNKNOWN] = -1
    return labels


def splits_to_score(dataset: Dataset, data: DataConfig) -> list[str]:
    """The splits of `data.scored` that have sessions.

    Raises:
        UserError: none has.
    """
    splits = [split for split in data.scored if dataset.split(split).n_sessions]
    if not splits:
        raise UserError(
            f"data.scored is {data.scored}, and {dataset.folder} has no such sessions; score its training sessions: "
            "--data.scored '[train]'"
        )
    return splits


def training_loader(dataset: Dataset, data: DataConfig, *, batch_size: int, seed: int) -> SessionLoader:
    """Shuffled training batches, cut as `data` says.

    Raises:
        UserError: a split that is not empty has no session that could be scored, or all of `data.scored` are empty; it
            is better to learn this before training than after.
    """
    splits_to_score(dataset, data)
    for split in SPLITS:
        if dataset.split(split).n_sessions:
            check_length(dataset.split(split), data.min_length)
    return SessionLoader(
        dataset.train.between(0, max(1, int(dataset.train.n_sessions * data.train_share))),
        batch_size=batch_size,
        cut=data.train_cut,
        history_size=data.history_size,
        target_size=data.target_size,
        shuffle=True,
        seed=seed,
        new=new_plays(dataset, data),
    )


def new_plays(dataset: Dataset, data: DataConfig) -> np.ndarray | None:
    """Which training plays stand as new tracks: bool (n_events,), or None if none do."""
    if not data.new_plays or dataset.info["vocabulary"]["min_count"] == 0:  # with 0 it has all of the catalogue
        return None
    return first_plays(dataset.train.tracks, data.new_plays, n_ids=dataset.n_ids)
