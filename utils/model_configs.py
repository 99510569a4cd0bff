"""Options of models that more than one script trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.embeddings import SkipEncoding


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
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (added)."""
    use_log: bool = False
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    start: Literal["last", "bos"] = "last"
    """What stands before the first prediction: the last track of the history (the seed), or a BOS token."""
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
    """How the history's skips enter: none, token (skipped tracks become the SKIP token), embedding (added)."""
    use_log: bool = True
    """Give the model the history's log columns (pauses, seeks, context, reasons of start and end, hour, premium)."""
    causal: bool = True
    """Each target sees only the target tracks up to itself (the seed); false shows it all target tracks."""
