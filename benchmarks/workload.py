"""What all contenders work on: sizes, simulated sessions, models with the same weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.bert import BertForMaskedTracks, BertTransformer
from model.gru import NextTrackGRU
from model.transformer import SeqTransformer, SkipTransformer
from utils.core.checks import check_at_least
from utils.core.errors import UserError, blame
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import SessionArrays
from utils.data.vocab import N_SPECIAL
from utils.training.losses import TrackLoss, track_loss
from utils.training.model_configs import SeqTransformerConfig, SkipTransformerConfig
from utils.training.options import LossConfig

PLAYS_AT_ONCE = 10_000_000
"""Plays that are drawn at once: bounds the memory of the simulation."""


@dataclass(frozen=True)
class Sizes:
    """Of the catalogue, the models and the batches."""

    tracks: int = 103_000
    """Tracks of the catalogue."""
    features: int = 29
    """F, audio features of each track, as many as MSSD has."""
    d_model: int = 256
    """D, width."""
    n_heads: int = 2
    """Attention heads."""
    n_layers: int = 2
    """Layers of the encoder, and of the decoder."""
    d_ff: int = 2048
    """Inner width of the feed-forward layers."""
    dropout: float = 0.2
    """Dropout rate."""
    batch_size: int = 256
    """B, sessions of a batch."""
    history_size: int = 10
    """S, plays of each history."""
    target_size: int = 10
    """T, plays after it."""

    def __post_init__(self) -> None:
        check_at_least(self, "sizes", tracks=2, features=0, d_model=1, n_heads=1, n_layers=1, d_ff=1)
        check_at_least(self, "sizes", batch_size=1, history_size=1, target_size=1)
        if self.history_size != self.target_size:
            raise UserError(
                f"sizes.history_size is {self.history_size} and sizes.target_size {self.target_size}; they must be "
                "equal, as sessions are cut in the middle"
            )

    @property
    def n_ids(self) -> int:
        """V."""
        return self.tracks + N_SPECIAL


def write_sessions(folder: Path, lengths: NDArray[np.int64], *, tracks: int) -> SessionArrays:
    """Sessions of the given lengths, in the layout of a split; the popularity of tracks falls with their id.

    A play's track has popularity rank `tracks * u**3` with u uniform: the upper tenth of the tracks gets 46 % of the
    plays. Skips and log codes are uniform: no speed depends on them.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    offsets = np.append(0, np.cumsum(lengths))
    np.save(folder / "offsets.npy", offsets)
    n_codes = np.array(list(schema.LOG_COLUMNS.values()), np.uint8)
    n = int(offsets[-1])
    arrays = {
        "tracks": open_memmap(folder / "tracks.npy", "w+", np.int32, (n,)),
        "skips": open_memmap(folder / "skips.npy", "w+", np.uint8, (n,)),
        "log": open_memmap(folder / "log.npy", "w+", np.uint8, (n, len(n_codes))),
    }
    plays = np.zeros(N_SPECIAL + tracks, np.int64)
    for start in tqdm(range(0, n, PLAYS_AT_ONCE), desc="simulate sessions", leave=False, delay=2):
        part = slice(start, min(start + PLAYS_AT_ONCE, n))
        size = part.stop - part.start
        drawn = N_SPECIAL + (tracks * rng.random(size, np.float32) ** 3).astype(np.int32)
        arrays["tracks"][part] = drawn
        plays += np.bincount(drawn, minlength=len(plays))
        arrays["skips"][part] = rng.integers(0, schema.SKIP_1 + 1, size, np.uint8)
        arrays["log"][part] = rng.integers(0, 256, (size, len(n_codes)), np.uint8) % n_codes
    np.save(folder / "train_plays.npy", plays)
    return SessionArrays.open(folder)


def full_sessions(folder: Path, n_sessions: int, sizes: Sizes) -> SessionArrays:
    """Sessions that fill a batch without padding when they are cut in the middle."""
    lengths = np.full(n_sessions, sizes.history_size + sizes.target_size, np.int64)
    return write_sessions(folder, lengths, tracks=sizes.tracks)


def loader(arrays: SessionArrays, sizes: Sizes, *, shuffle: bool = True) -> SessionLoader:
    """Our batches of `arrays`."""
    return SessionLoader(
        arrays,
        batch_size=sizes.batch_size,
        history_size=sizes.history_size,
        target_size=sizes.target_size,
        shuffle=shuffle,
    )


def sampled_loss(arrays: SessionArrays) -> TrackLoss:
    """The scripts' default loss over the catalogue: 2,048 negatives."""
    return track_loss(LossConfig(), train_plays(arrays))


def train_plays(arrays: SessionArrays) -> Tensor:
    """int64 (V,): plays of each id, which were counted when the sessions were written."""
    return torch.from_numpy(np.load(arrays.folder / "train_plays.npy"))


@blame("sizes")
def seq_transformer(sizes: Sizes, *, sparse: bool = False, tie_weights: bool = False) -> SeqTransformer:
    """The seq model; the same weights each time."""
    torch.manual_seed(0)
    options = asdict(SeqTransformerConfig()) | model_options(sizes) | {"tie_weights": tie_weights}
    return SeqTransformer(sizes.n_ids, features(sizes), sparse=sparse, **options)


@blame("sizes")
def skip_transformer(sizes: Sizes, *, sparse: bool = False) -> SkipTransformer:
    """The skip model; the same weights each time."""
    torch.manual_seed(0)
    options = asdict(SkipTransformerConfig()) | model_options(sizes)
    return SkipTransformer(sizes.n_ids, features(sizes), sparse=sparse, **options)


@blame("sizes")
def bert(sizes: Sizes, *, sparse: bool = False) -> BertForMaskedTracks:
    """The BERT that is pre-trained, with twice the layers and heads of an encoder; the same weights again."""
    torch.manual_seed(0)
    reader = BertTransformer(
        sizes.n_ids,
        features(sizes),
        d_model=sizes.d_model,
        n_heads=2 * sizes.n_heads,
        n_layers=2 * sizes.n_layers,
        d_ff=sizes.d_ff,
        dropout=sizes.dropout,
        max_length=sizes.history_size + sizes.target_size,
        use_ids=True,
        sparse=sparse,
    )
    return BertForMaskedTracks(reader, tie_weights=True, sparse=sparse)


@blame("sizes")
def next_track_gru(sizes: Sizes, *, sparse: bool = False, tie_weights: bool = False) -> NextTrackGRU:
    """The GRU, as wide as the Transformers, in track vectors and state alike; the same weights each time."""
    torch.manual_seed(0)
    return NextTrackGRU(
        sizes.n_ids,
        features(sizes),
        d_model=sizes.d_model,
        d_hidden=sizes.d_model,
        n_layers=1,
        dropout=sizes.dropout,
        tie_weights=tie_weights,
        sparse=sparse,
    )


def features(sizes: Sizes) -> Tensor:
    """Audio features of all ids (V, F)."""
    return torch.randn(sizes.n_ids, sizes.features)


def model_options(sizes: Sizes) -> dict:
    """The sizes of a Transformer, by the names of its arguments."""
    names = ("d_model", "n_heads", "n_layers", "d_ff", "dropout", "history_size", "target_size")
    return {name: getattr(sizes, name) for name in names}
