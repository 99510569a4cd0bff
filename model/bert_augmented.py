"""BERT-augmented Transformers: each layer also attends to BERT's states of the tracks (Zhu et al. 2020).

Their section 4, where H_B are BERT's states and Attn_B is an attention with weights of its own:
    encoder layer, before its feed-forward    h = norm(h + mix(Attn_S(h, H, H), Attn_B(h, H_B, H_B)))
    decoder layer, after its self-attention   s = norm(s + mix(Attn_E(s, H_E, H_E), Attn_B(s, H_B, H_B)))
where `mix` is the average, or in training `DropNet`. The layers themselves are in `model/attention.py`.
Deviations from the original, numbered:
    1  all residuals are kept (the original's decoder loses that of its self-attention)
    2  a frozen BERT stays in evaluation mode during training, and gets no gradients
    3  BERT may have any width
    4  to predict skips, BERT reads the given target tracks as well, and the Transformer sees the history's skips
BERT reads tracks only. To continue a session it reads the history, at its first positions, and none of the targets.
Shapes: see the legend in `utils/data/batch.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import Memory, real
from model.bert import BertTransformer
from model.embeddings import TrackHead
from model.transformer import DecoderState, SeqTransformer, SkipTransformer
from utils.data.batch import History


class BertAugmentedSeqTransformer(nn.Module):
    """Which tracks come next? A `SeqTransformer` whose layers look at BERT's states of the history.

    Args:
        transformer: built with a `BertBranch` of the width of `bert`.
        bert: reads the tracks of the history.
        finetune_bert: train BERT as well; otherwise it is frozen, see `BertTransformer.freeze`.
    """

    def __init__(self, transformer: SeqTransformer, bert: BertTransformer, *, finetune_bert: bool) -> None:
        super().__init__()
        _check_width(transformer, bert)
        self.transformer = transformer
        self.bert = bert if finetune_bert else bert.freeze()

    @property
    def head(self) -> TrackHead:
        """Scores of all tracks."""
        return self.transformer.head

    def forward(self, history: History, previous: Tensor) -> Tensor:
        """History and previous tracks (B, T) -> states (B, T, D), each blind to the tracks after it."""
        return self.transformer(history, previous, bert=_read(self.bert, history.tracks))

    def begin(self, history: History) -> DecoderState:
        """Read a history once, for any number of steps."""
        return self.transformer.begin(history, bert=_read(self.bert, history.tracks))

    def step(self, state: DecoderState, tracks: Tensor) -> tuple[Tensor, DecoderState]:
        """The next tracks (B,), the start token first -> states (B, D) as in `forward`, and the state after them."""
        return self.transformer.step(state, tracks)

    def logits(self, states: Tensor) -> Tensor:
        """States (..., D) -> scores of all ids (..., V), minus infinity at the special ones."""
        return self.transformer.logits(states)

    def start(self, history: History) -> Tensor:
        """The token (B, 1) before the first prediction."""
        return self.transformer.start(history)

    def previous_tracks(self, history: History, targets: Tensor) -> Tensor:
        """Targets (B, T) shifted right, after the start token."""
        return self.transformer.previous_tracks(history, targets)


class BertAugmentedSkipTransformer(nn.Module):
    """Which of the given target tracks will be skipped?

    A `SkipTransformer` whose layers look at BERT's states of the history and of all target tracks. So every step sees
    the tracks after it, even in a causal transformer: there, only the self-attention is causal.

    Args:
        transformer: built with a `BertBranch` of the width of `bert`.
        bert: reads the tracks of history and targets.
        finetune_bert: train BERT as well; otherwise it is frozen, see `BertTransformer.freeze`.
    """

    def __init__(self, transformer: SkipTransformer, bert: BertTransformer, *, finetune_bert: bool) -> None:
        super().__init__()
        _check_width(transformer, bert)
        self.transformer = transformer
        self.bert = bert if finetune_bert else bert.freeze()

    def forward(self, history: History, target_tracks: Tensor) -> Tensor:
        """History and target tracks (B, T) -> logits (B, T) of a skip."""
        session = torch.cat([history.tracks, target_tracks], dim=1)  # (B, S + T)
        return self.transformer(history, target_tracks, bert=_read(self.bert, session))


def _read(bert: BertTransformer, tracks: Tensor) -> Memory:
    """Tracks (B, M), padded on any side -> BERT's states of them, for the layers to attend to."""
    return Memory(bert(tracks), real(tracks))


def _check_width(transformer: SeqTransformer | SkipTransformer, bert: BertTransformer) -> None:
    d_bert = transformer.encoder.d_bert
    if d_bert != bert.d_model:
        raise ValueError(f"the transformer's d_bert is {d_bert}, but BERT's d_model is {bert.d_model}")
