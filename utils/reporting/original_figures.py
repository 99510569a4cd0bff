"""What the seed's paper reported, beside what we measure: MAA on its test set, and why the two cannot be compared.

"The seed" is "Sequential Sessions Based Music Recommendations Using Deep Learning", tables 1 and 2. Its figures are
shown for orientation only; none of them can be reproduced, for the reason given with each.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class SeedFigure(NamedTuple):
    """One reported figure and the run it stands beside."""

    experiment: str
    """`experiment` of the run."""
    label: str
    """Regular expression that the run's `label` has to contain, in any case; "" for every label."""
    maa: float
    name: str
    """What the seed calls the model."""
    reason: str
    """Why the figure cannot be compared with ours."""


SAME_DAY = "its training and test sessions are of the same day, its best checkpoint was chosen on the test set"
LEAK = "its decoder starts from the true label of the last target (accuracy at position 10 is 1.000)"
SEED_FIGURES = (
    SeedFigure("transformer_skip", r"^(?!.*(hidden|none|no skip))", 0.571, "standard transformer", SAME_DAY),
    SeedFigure(
        "skip_bert_augmented", "", 0.441, "BERT-augmented transformer", "the history's skips never enter that model"
    ),
    SeedFigure("lstm_skip", "both directions|bidirectional|bi-?gru", 0.613, "bidirectional GRU", LEAK),
    SeedFigure("lstm_skip", "word2vec", 0.614, "LSTM, word2vec", LEAK + "; its vectors were overwritten at random"),
    SeedFigure("lstm_skip", "token|embedding", 0.611, "LSTM, skip padding", LEAK),
    SeedFigure("lstm_skip", "none|no skip|skips.*hidden", 0.521, "LSTM, no skip padding", LEAK),
    SeedFigure(
        "ddpg_skip",
        "(?<!no )noise",
        0.437,
        "DDPG with noise",
        "the highest point of its test curve, one action for all users",
    ),
    SeedFigure("ddpg_skip", "", 0.430, "DDPG", "the highest point of its test curve, one action for all users"),
    SeedFigure("transformer_seq", "", 0.178, "standard transformer", SAME_DAY),
    SeedFigure("bert_finetune_seq", "", 0.144, "BERT encoder, fine-tuned", SAME_DAY),
    SeedFigure("seq_bert_augmented", "", 0.157, "BERT-augmented transformer", SAME_DAY),
    SeedFigure("lstm_seq", "", 0.008, "LSTM, word2vec", "its training feeds the answer to the decoder"),
    SeedFigure("ddpg_seq", "", 0.030, "DDPG", "it ranks 100 candidates, not the catalogue, and depends on their order"),
)
"""The first entry that matches a run is its figure."""


def seed_figure(experiment: str, label: str) -> SeedFigure | None:
    """The seed's figure for the same kind of model, or None where it reported none."""
    for figure in SEED_FIGURES:
        if figure.experiment == experiment and re.search(figure.label, label, re.IGNORECASE):
            return figure
    return None
