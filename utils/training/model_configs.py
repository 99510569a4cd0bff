"""Options of models that more than one script trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.names import Cell, SkipEncoding
from utils.core.checks import check_at_least


@dataclass
class SeqTransformerConfig:
    """Sizes and inputs of the SeqTransformer."""

    d_model: int = 256
    """Width."""
    n_heads: int = 2
    """Attention heads."""
    n_layers: int = 2
    """Layers of the encoder, and of the decoder."""
    d_ff: int = 2048
    """Inner width of the feed-forward layers."""
    dropout: float = 0.2
    """Dropout rate."""
    skip_encoding: SkipEncoding = "none"
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (a vector added)."""
    use_log: bool = False
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    start: Literal["last", "bos"] = "last"
    """What stands before the first prediction: the last track of the history (the original), or a BOS token."""
    tie_weights: bool = False
    """Use the track table as output weights."""


@dataclass
class SkipTransformerConfig:
    """Sizes and inputs of the SkipTransformer."""

    d_model: int = 128
    """Width."""
    n_heads: int = 4
    """Attention heads."""
    n_layers: int = 4
    """Layers of the encoder, and of the decoder."""
    d_ff: int = 2048
    """Inner width of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout rate."""
    skip_encoding: SkipEncoding = "embedding"
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (a vector added)."""
    use_log: bool = True
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    causal: bool = True
    """Each target sees only the target tracks up to itself (the original); false shows it all target tracks."""
    use_ids: bool = True
    """Give each track a vector of its own; false tells tracks apart by their audio features and their past only, so new
    tracks are no different from known ones."""


@dataclass
class BertConfig:
    """Sizes of a BertTransformer; must be those of the pre-training run, if there is one."""

    d_model: int = 256
    """Width."""
    n_heads: int = 4
    """Attention heads."""
    n_layers: int = 4
    """Layers."""
    d_ff: int = 2048
    """Inner width of the feed-forward layers."""
    dropout: float = 0.1
    """Dropout rate."""
    use_features: bool = False
    """Add the tracks' audio features (the original's BERT has none)."""

    def __post_init__(self) -> None:
        check_at_least(self, "bert", d_model=1, n_heads=1, n_layers=1, d_ff=1)


@dataclass
class SkipLSTMConfig:
    """Sizes and inputs of the LSTMForSkips."""

    d_model: int = 100
    """Width of the embeddings."""
    d_hidden: int = 512
    """Units of a layer."""
    n_layers: int = 1
    """Layers of the encoder, and of the decoder."""
    cell: Cell = "lstm"
    """lstm or gru."""
    bidirectional: bool = False
    """Read the history from both ends."""
    attention: bool = False
    """The decoder looks at all states of the encoder (Luong), not only at the last one."""
    dropout: float = 0.5
    """Dropout rate."""
    skip_encoding: SkipEncoding = "embedding"
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (a vector added)."""
    use_log: bool = True
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    causal: bool = True
    """Each target sees only the target tracks up to itself (the original); false shows it all target tracks."""
    previous_label: bool = True
    """Tell the decoder whether the track before was skipped: the truth in training, its own guess in prediction."""
    scheduled_sampling: float = 0.0
    """Probability of telling the decoder its own guess instead of the truth, in training."""
    use_ids: bool = True
    """Give each track a vector of its own; false tells tracks apart by their audio features and their past only, so new
    tracks are no different from known ones."""

    def __post_init__(self) -> None:
        check_at_least(self, "model", d_model=1, d_hidden=1, n_layers=1)


@dataclass
class SeqLSTMConfig:
    """Sizes and inputs of the LSTMForContinuation."""

    d_model: int = 100
    """Width of the embeddings."""
    d_hidden: int = 512
    """Units of a layer."""
    n_layers: int = 1
    """Layers of the encoder, and of the decoder."""
    cell: Cell = "lstm"
    """lstm or gru."""
    bidirectional: bool = False
    """Read the history from both ends."""
    attention: bool = False
    """The decoder looks at all states of the encoder (Luong), not only at the last one."""
    dropout: float = 0.2
    """Dropout rate."""
    skip_encoding: SkipEncoding = "none"
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (a vector added)."""
    use_log: bool = False
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    start: Literal["last", "bos"] = "last"
    """What stands before the first prediction: the last track of the history, or a BOS token."""
    tie_weights: bool = False
    """Use the track table as output weights."""

    def __post_init__(self) -> None:
        check_at_least(self, "model", d_model=1, d_hidden=1, n_layers=1)


@dataclass
class NextTrackGRUConfig:
    """Sizes of the GRU."""

    d_model: int = 128
    """Width of the track vectors."""
    d_hidden: int = 128
    """Width of the GRU's state."""
    n_layers: int = 1
    """GRU layers, one on top of the other."""
    dropout: float = 0.2
    """Dropout rate."""
    tie_weights: bool = False
    """Use the track table as output weights."""

    def __post_init__(self) -> None:
        check_at_least(self, "model", d_model=1, d_hidden=1, n_layers=1)


@dataclass
class ScorerConfig:
    """The networks that choose among a memory's candidates."""

    n_members: int = 1
    """Networks that are trained side by side; their probabilities are averaged."""
    d_hidden: int = 64
    """Width of the first hidden layer; the second has half of it."""
    dropout: float = 0.1
    """Dropout rate."""

    def __post_init__(self) -> None:
        check_at_least(self, "model", n_members=1, d_hidden=2)
