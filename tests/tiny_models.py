"""Untrained Transformers, small enough for tests of what is done with their predictions."""

from __future__ import annotations

import torch
from conftest import N_IDS
from sized_models import SeqTransformer, SkipTransformer


def skip_model(**options):
    torch.manual_seed(0)
    features = torch.randn(N_IDS, 3)
    return SkipTransformer(N_IDS, features, d_model=16, n_heads=2, n_layers=1, d_ff=16, **options)


def seq_model(**options):
    torch.manual_seed(0)
    features = torch.randn(N_IDS, 3)
    return SeqTransformer(N_IDS, features, d_model=16, n_heads=2, n_layers=1, d_ff=16, **options)
