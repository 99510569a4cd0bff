"""The models. Shapes are written with the letters of the legend in `utils/batch.py`."""

from model.embeddings import HistoryEmbedding, LogEmbedding, TrackEmbedding, TrackHead
from model.transformer import SeqTransformer, SkipTransformer

__all__ = ["HistoryEmbedding", "LogEmbedding", "SeqTransformer", "SkipTransformer", "TrackEmbedding", "TrackHead"]
