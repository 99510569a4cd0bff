"""What the original's paper reported: MAA on its test set, and why it cannot be compared with ours.

"The original" is "Sequential Sessions Based Music Recommendations Using Deep Learning", tables 1 and 2. Its figures are
shown for orientation only; none of them can be reproduced, for the reason given with each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class OriginalFigure(NamedTuple):
    """One reported figure and the runs it stands beside."""

    experiment: str
    """`experiment` of the run."""
    maa: float
    name: str
    """What the original calls the model."""
    reason: str
    """Why the figure cannot be compared with ours."""
    when: Callable[[Mapping[str, Any]], bool] = lambda _: True
    """Whether a run of the experiment with these options, flat, is of the same kind."""

    @property
    def sentence(self) -> str:
        """The figure as a reader should take it."""
        return f'The original reported {self.maa:.3f} for its "{self.name}", not comparable: {self.reason}.'


SAME_DAY = "its training and test sessions are of the same day, its best checkpoint was chosen on the test set"
LEAK = "its decoder starts from the true label of the last target (accuracy at position 10 is 1.000)"
HIGHEST_POINT = "the highest point of its test curve, one action for all users"

ORIGINAL_FIGURES = (
    OriginalFigure(
        "transformer_skip",
        0.571,
        "standard transformer",
        SAME_DAY,
        when=lambda options: options.get("model.skip_encoding") != "none",
    ),
    OriginalFigure(
        "skip_bert_augmented", 0.441, "BERT-augmented transformer", "the history's skips never enter that model"
    ),
    OriginalFigure(
        "lstm_skip",
        0.613,
        "bidirectional GRU",
        LEAK,
        when=lambda options: options.get("model.cell") == "gru" and bool(options.get("model.bidirectional")),
    ),
    OriginalFigure(
        "lstm_skip",
        0.614,
        "LSTM, word2vec",
        LEAK + "; its vectors were overwritten at random",
        when=lambda options: options.get("model.cell") == "lstm" and bool(options.get("table.vectors")),
    ),
    OriginalFigure(
        "lstm_skip",
        0.611,
        "LSTM, skip padding",
        LEAK,
        when=lambda options: (
            options.get("model.cell") == "lstm" and options.get("model.skip_encoding") in ("token", "embedding")
        ),
    ),
    OriginalFigure(
        "lstm_skip",
        0.521,
        "LSTM, no skip padding",
        LEAK,
        when=lambda options: options.get("model.cell") == "lstm" and options.get("model.skip_encoding") == "none",
    ),
    OriginalFigure(
        "ddpg_skip",
        0.437,
        "DDPG with noise",
        HIGHEST_POINT,
        when=lambda options: options.get("noise.schedule", "none") != "none",
    ),
    OriginalFigure("ddpg_skip", 0.430, "DDPG", HIGHEST_POINT),
    OriginalFigure("transformer_seq", 0.178, "standard transformer", SAME_DAY),
    OriginalFigure("bert_finetune_seq", 0.144, "BERT encoder, fine-tuned", SAME_DAY),
    OriginalFigure("seq_bert_augmented", 0.157, "BERT-augmented transformer", SAME_DAY),
    OriginalFigure("lstm_seq", 0.008, "LSTM, word2vec", "its training feeds the answer to the decoder"),
    OriginalFigure("ddpg_seq", 0.030, "DDPG", "it ranks 100 candidates, not the catalogue, and depends on their order"),
)
"""The first entry that matches a run is its figure."""


def original_figure(experiment: str, options: Mapping[str, Any]) -> OriginalFigure | None:
    """The original's figure for the same kind of model, or None where it reported none.

    Args:
        experiment: of the run.
        options: of the run, flat.
    """
    for figure in ORIGINAL_FIGURES:
        if figure.experiment == experiment and figure.when(options):
            return figure
    return None
