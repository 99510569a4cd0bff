"""Continuing sessions by ten tracks: greedy decoding beside a straightforward reference, beam search, sampling.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --quick true

The weights are random, and the search in bfloat16 leaves 15 candidates a state to be scored in float32. It left 14 to
17 for models trained with sampled losses, but 34 for one trained with the full softmax: training may make it slower.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.predicting import Check, Config, Predict, Predictor, measure_predictors
from benchmarks.rounds import gate
from benchmarks.rows import Row, publish
from model.catalogue import Catalogue
from model.decoding import beam_search, greedy, sample
from model.transformer import SeqTransformer
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data.batch import History, SessionBatch

WIDTH = 5
TOP_P = 0.9


# ---------------------------------------------------------------------------------------------------- contenders


def reference_greedy(model: SeqTransformer) -> Predict:
    """The whole model on the whole prefix for each track."""
    return lambda batch: reference.greedy(model, batch.history, length_of(batch))


def our_greedy(model: SeqTransformer) -> Predict:
    """What evaluation does."""
    catalogue = Catalogue(model.head)
    return lambda batch: greedy(model, batch.history, length_of(batch), catalogue=catalogue)


def our_beam(model: SeqTransformer) -> Predict:
    """The best of each beam."""
    catalogue = Catalogue(model.head)

    def best(batch: SessionBatch) -> Tensor:
        return beam_search(model, batch.history, length_of(batch), width=WIDTH, catalogue=catalogue).tracks[:, 0]

    return best


def our_sample(model: SeqTransformer) -> Predict:
    """Nucleus sampling."""
    catalogue = Catalogue(model.head)

    def drawn(batch: SessionBatch) -> Tensor:
        numbers = {"seed": 0, "rows": batch.rows}
        return sample(model, batch.history, length_of(batch), top_p=TOP_P, catalogue=catalogue, **numbers)

    return drawn


def length_of(batch: SessionBatch) -> int:
    """Tracks that continue each session: as many as it has targets."""
    return batch.target_tracks.shape[1]


# --------------------------------------------------------------------------------------------------------- gates


def check_greedy(model: SeqTransformer, batch: SessionBatch, few: SessionBatch) -> None:
    """
    Raises:
        UserError: greedy tracks are not the reference's.
    """
    expected, tracks = reference_greedy(model)(batch), our_greedy(model)(batch)
    gate(torch.equal(tracks, expected), f"{(tracks != expected).sum()} tracks of decode/greedy are not the reference's")


def check_beam(model: SeqTransformer, batch: SessionBatch, few: SessionBatch) -> None:
    """
    Raises:
        UserError: beams do not have the probability that they claim, or less than greedy continuations.
    """
    beams = beam_search(model, few.history, length_of(few), width=WIDTH)
    claimed, true = beams.log_probability[:, 0], log_probability(model, few.history, beams.tracks[:, 0])
    gate(torch.allclose(claimed, true, rtol=1e-4), f"decode/beam-{WIDTH} claims other probabilities than tracks have")
    least = log_probability(model, few.history, our_greedy(model)(few)).mean()
    gate(bool(claimed.mean() >= least), f"tracks of decode/beam-{WIDTH} are less probable than greedy ones")


def check_sample(model: SeqTransformer, batch: SessionBatch, few: SessionBatch) -> None:
    """
    Raises:
        UserError: what is drawn from the smallest nucleus is not the most probable track.
    """
    drawn = sample(model, few.history, length_of(few), top_p=1e-6, seed=0, rows=few.rows)
    gate(torch.equal(drawn, our_greedy(model)(few)), "decode/sample with top_p near 0 is not decode/greedy")


@torch.no_grad()
def log_probability(model: SeqTransformer, history: History, tracks: Tensor) -> Tensor:
    """Of whole continuations (B, T), by a softmax over all tracks: (B,)."""
    logits = model.logits(model(history, model.previous_tracks(history, tracks)))
    return logits.log_softmax(-1).gather(2, tracks[:, :, None]).sum((1, 2))


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds."""
    check_at_least(config.sizes, "sizes", tracks=WIDTH)
    predictors: dict[str, Predictor] = {
        "decode/greedy/reference": reference_greedy,
        "decode/greedy/ours": our_greedy,
    }
    alone: dict[str, Predictor] = {f"decode/beam-{WIDTH}": our_beam, "decode/sample": our_sample}
    checks: list[Check] = [check_greedy]
    if not config.quick:
        predictors |= alone
        checks += [check_beam, check_sample]
    return measure_predictors(config, folder, predictors, checks, alone=alone, title="decoding")


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
