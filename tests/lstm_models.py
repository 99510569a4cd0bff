"""Small LSTMs and GRUs, plain and with all options."""

import pytest
import torch
from conftest import N_IDS, random_batch
from model_checks import FEATURES, seq_output, skip_output
from sized_models import LSTMForContinuation, LSTMForSkips

from utils.data.vocab import PAD

SIZES = {"d_model": 12, "d_hidden": 10}
VARIANTS = {
    "lstm": {},
    "gru, all options": {"cell": "gru", "bidirectional": True, "attention": True, "n_layers": 2},
    "lstm, all options": {"cell": "lstm", "bidirectional": True, "attention": True, "n_layers": 2},
}
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)


def skip_model(**options):
    torch.manual_seed(0)
    return LSTMForSkips(N_IDS, FEATURES, **SIZES | options).eval()


def seq_model(**options):
    torch.manual_seed(0)
    return LSTMForContinuation(N_IDS, FEATURES, **SIZES | options).eval()


BOTH = pytest.mark.parametrize(("make", "output"), [(skip_model, skip_output), (seq_model, seq_output)])


def teacher_forced(model, batch):
    """Logits (B, T) given the true labels, 0 at padding."""
    return model(batch.history, batch.target_tracks, labels=batch.target_skips) * (batch.target_tracks != PAD)


def spread(model):
    """Make about half of its guesses a skip: an untrained model says the same of all tracks."""
    with torch.no_grad():
        model.tracks.table.weight.mul_(3)
        model.output.weight.mul_(20)
        batch = random_batch(n=40)
        labels = None if model.label is None else batch.target_skips
        logits = model(batch.history, batch.target_tracks, labels=labels)
        model.output.bias.sub_(logits[batch.target_tracks != PAD].median())
    return model
