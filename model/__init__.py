"""The models. Shapes are written with the letters of the legend in `utils/batch.py`."""

from model.bert import BertForContinuation, BertForMaskedTracks, BertForSkips, BertTransformer
from model.bert_augmented import BertAugmentedSeqTransformer, BertAugmentedSkipTransformer
from model.embeddings import HistoryEmbedding, LogEmbedding, TrackEmbedding, TrackHead
from model.transformer import SeqTransformer, SkipTransformer

__all__ = [
    "BertAugmentedSeqTransformer",
    "BertAugmentedSkipTransformer",
    "BertForContinuation",
    "BertForMaskedTracks",
    "BertForSkips",
    "BertTransformer",
    "HistoryEmbedding",
    "LogEmbedding",
    "SeqTransformer",
    "SkipTransformer",
    "TrackEmbedding",
    "TrackHead",
]
