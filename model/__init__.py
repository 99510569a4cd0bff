"""The models. Shapes are written with the letters of the legend in `utils/batch.py`."""

from model.bert import BertForContinuation, BertForMaskedTracks, BertForSkips, BertTransformer
from model.bert_augmented import BertAugmentedSeqTransformer, BertAugmentedSkipTransformer
from model.ddpg import ActorCritic, DDPGForContinuation, DDPGForSkips
from model.embeddings import HistoryEmbedding, LogEmbedding, TrackEmbedding, TrackHead
from model.gru import NextTrackGRU
from model.lstm import LSTMForContinuation, LSTMForSkips
from model.transformer import SeqTransformer, SkipTransformer

__all__ = [
    "ActorCritic",
    "BertAugmentedSeqTransformer",
    "BertAugmentedSkipTransformer",
    "BertForContinuation",
    "BertForMaskedTracks",
    "BertForSkips",
    "BertTransformer",
    "DDPGForContinuation",
    "DDPGForSkips",
    "HistoryEmbedding",
    "LSTMForContinuation",
    "LSTMForSkips",
    "LogEmbedding",
    "NextTrackGRU",
    "SeqTransformer",
    "SkipTransformer",
    "TrackEmbedding",
    "TrackHead",
]
