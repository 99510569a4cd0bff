"""Vectors of tracks by word2vec: a session is a document, a track is a word (Mikolov et al. 2013; gensim).

    python -m utils.track_vectors.word2vec --data.folder data/demo
    python -m utils.track_vectors.word2vec --data.folder data/mssd --skip_gram true --d_model 128 --workers 4
    python -m utils.track_vectors --vectors runs/word2vec/demo/track_embeddings.safetensors --track t_123
    python train_lstm_skip.py --data.folder data/demo --table.vectors runs/word2vec/demo/track_embeddings.safetensors

All tracks of each training session count, skipped or not. The defaults are the original's, except for one worker
instead of eight: one gives the same vectors again, several do not. `utils/track_vectors/files.py` has the format. A
track that was never played in training has a zero vector, and so have the special ids.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from utils.core.checks import check_at_least
from utils.core.cli import TYPE_CHECKING, cli
from utils.core.errors import UserError
from utils.data.vocab import N_SPECIAL

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from utils.data.dataset import SessionArrays

LARGEST = 1e3
"""Mean length of vectors that only a failed training reaches (some 4 on simulated sessions, 0.5 on real ones)."""
SESSIONS_AT_ONCE = 4096
"""How many sessions are Python lists at the same time."""


@dataclass
class FolderConfig:
    """Which sessions."""

    folder: str = "data/demo"
    """Dataset folder written by `python -m utils.datapreprocessing`."""


@dataclass
class Config:
    """From sessions to track vectors."""

    data: FolderConfig = field(default_factory=FolderConfig)
    out: str = ""
    """Folder to write; runs/word2vec/<name of the dataset> if empty."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    d_model: int = 100
    """Dimensions."""
    window: int = 10
    """Plays on each side that count as neighbours, at most: for each play a number up to it is drawn."""
    skip_gram: bool = False
    """Predict the neighbours from a track (skip-gram); otherwise the track from its neighbours (CBOW)."""
    negatives: int = 5
    """Random tracks that each prediction is compared with."""
    epochs: int = 5
    """Passes over the sessions."""
    lr: float = 0.025
    """Learning rate at the start; it falls to 0.0001."""
    workers: int = 1
    """Threads; with more than one the vectors differ a little each time."""
    seed: int = 1
    """Seed of first vectors, windows and negatives."""

    def __post_init__(self) -> None:
        check_at_least(self, "", d_model=1, window=1, negatives=1, epochs=1, workers=1, seed=0)
        if self.seed >= 2**32:
            raise UserError(f"--seed is {self.seed}; it must be below 2**32")
        if not self.lr > 0:
            raise UserError(f"--lr is {self.lr}; it must be positive")


class Documents:
    """The tracks of each session of a split as a list of ids, without the special ids; can be iterated again and again.

    Args:
        arrays: the split.
        bar: a progress bar that counts sessions.
    """

    def __init__(self, arrays: SessionArrays, bar: tqdm | None = None) -> None:
        self.arrays = arrays
        self.bar = bar

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.arrays.n_sessions, SESSIONS_AT_ONCE):
            offsets = self.arrays.offsets[first : first + SESSIONS_AT_ONCE + 1]
            tracks = self.arrays.tracks[offsets[0] : offsets[-1]]
            known = tracks >= N_SPECIAL
            ends = np.concatenate([[0], np.cumsum(known)])[offsets - offsets[0]].tolist()
            ids = tracks[known].tolist()
            yield from (ids[start:end] for start, end in pairwise(ends))
            if self.bar is not None:
                self.bar.update(len(ends) - 1)


def train_vectors(arrays: SessionArrays, n_ids: int, config: Config) -> Tensor:
    """Train word2vec on all sessions of a split: float32 (V, D), zero for ids that are not in it.

    They are scaled so that the mean squared length is 1, as in a random table: the two differ in meaning, not in size.

    Raises:
        UserError: no session has a track of the vocabulary, or the learning rate is too high.
    """
    import torch
    from tqdm import tqdm

    if not (arrays.tracks >= N_SPECIAL).any():
        raise UserError(f"{arrays.folder} has no track of the vocabulary; run the preprocessing on more data")
    from gensim.models import Word2Vec  # importing it takes a second

    model = Word2Vec(
        vector_size=config.d_model,
        window=config.window,
        min_count=1,
        sg=int(config.skip_gram),
        negative=config.negatives,
        epochs=config.epochs,
        alpha=config.lr,
        workers=config.workers,
        seed=config.seed,
    )
    n = arrays.n_sessions
    with tqdm(total=n * (1 + config.epochs), desc="word2vec", unit="session", unit_scale=True, delay=2) as bar:
        sessions = Documents(arrays, bar)
        model.build_vocab(sessions)
        model.train(sessions, total_examples=n, epochs=config.epochs)
    trained = torch.from_numpy(model.wv.vectors)
    size = trained.square().sum(1).mean().sqrt()
    if not size.isfinite() or not 0 < size < LARGEST:
        raise UserError(f"the vectors have grown to a length of {size:.3g}; lower --lr, which is {config.lr}")
    vectors = torch.zeros(n_ids, config.d_model)
    vectors[torch.tensor(model.wv.index_to_key)] = trained / size
    return vectors


def main(config: Config) -> Path:
    """Write the vectors of a dataset's tracks and return their folder."""
    import yaml

    from utils.core.files import atomic_folder
    from utils.data.dataset import Dataset
    from utils.track_vectors.files import PICTURE, VECTORS, save_vectors
    from utils.track_vectors.picture import plot_vectors

    dataset = Dataset.open(config.data.folder)
    out = Path(config.out or f"runs/word2vec/{dataset.info['name']}")
    started = time.monotonic()
    with atomic_folder(out, overwrite=config.overwrite, holds=VECTORS) as folder:
        vectors = train_vectors(dataset.train, dataset.n_ids, config)
        seconds = time.monotonic() - started
        save_vectors(folder, vectors, dataset)
        plot_vectors(folder / PICTURE, vectors, dataset)
        (folder / "config.yml").write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
    n, n_tracks = dataset.train.n_sessions, int(vectors.any(1).sum())
    print(f"{n:,} sessions, {n_tracks:,} of {dataset.n_ids - N_SPECIAL:,} tracks, {seconds:.1f} s -> {out}")
    return out


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
