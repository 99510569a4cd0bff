"""Continuing sessions by ten tracks: greedy decoding beside a straightforward reference, beam search, sampling.

    python -m benchmarks.decoding
    python -m benchmarks.decoding --quick true

The weights are random. A trained model's scores are further apart, which only helps the search in bfloat16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks import reference, workload
from benchmarks.rounds import Contender, Step, gate, measure
from benchmarks.rows import Row, publish
from benchmarks.workload import Sizes
from model import SeqTransformer
from model.catalogue import Catalogue
from model.decoding import beam_search, greedy, sample
from utils.batch import History, SessionBatch
from utils.cli import check_at_least, cli
from utils.dataloaders import SessionArrays

WIDTH = 5
TOP_P = 0.9
BATCHES = 4
GATE_SESSIONS = 16


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=Sizes)
    rounds: int = 7
    """Rounds that are timed."""
    quick: bool = False
    """Two rounds, greedy decoding only."""

    def __post_init__(self) -> None:
        check_at_least(self, "benchmark", rounds=1)


Decode = Callable[[History], Tensor]
"""Tracks int64 (B, T) that continue each history."""
Decoder = Callable[[SeqTransformer, int], Decode]
"""Prepares a model for continuations of T tracks."""


# ---------------------------------------------------------------------------------------------------- contenders


def reference_greedy(model: SeqTransformer, length: int) -> Decode:
    """The whole model on the whole prefix for each track."""
    return lambda history: reference.greedy(model, history, length)


def our_greedy(model: SeqTransformer, length: int) -> Decode:
    """What evaluation does."""
    catalogue = Catalogue(model.head)
    return lambda history: greedy(model, history, length, catalogue=catalogue)


def our_beam(model: SeqTransformer, length: int) -> Decode:
    """The best of each beam."""
    catalogue = Catalogue(model.head)
    return lambda history: beam_search(model, history, length, width=WIDTH, catalogue=catalogue).tracks[:, 0]


def our_sample(model: SeqTransformer, length: int) -> Decode:
    """Nucleus sampling."""
    catalogue, generator = Catalogue(model.head), torch.Generator().manual_seed(0)
    return lambda history: sample(model, history, length, top_p=TOP_P, generator=generator, catalogue=catalogue)


def setup(folder: Path, sizes: Sizes, decoder: Decoder) -> Step:
    """A batch of continuations; units are sessions."""
    batches = ordered_batches(folder, sizes)
    decode = decoder(workload.seq_transformer(sizes).eval(), sizes.target_size)

    def step() -> float:
        return len(decode(next(batches).history))

    return step


def ordered_batches(folder: Path, sizes: Sizes) -> Iterator[SessionBatch]:
    """Batches in order, the same again and again."""
    return iter(chain.from_iterable(repeat(workload.loader(SessionArrays.open(folder), sizes, shuffle=False))))


# --------------------------------------------------------------------------------------------------------- gates


def check_greedy(model: SeqTransformer, history: History, length: int) -> None:
    """
    Raises:
        UserError: greedy tracks are not the reference's.
    """
    expected, tracks = reference_greedy(model, length)(history), our_greedy(model, length)(history)
    gate(torch.equal(tracks, expected), f"{(tracks != expected).sum()} tracks of decode/greedy are not the reference's")


def check_beam(model: SeqTransformer, history: History, length: int) -> None:
    """
    Raises:
        UserError: beams do not have the probability that they claim, or less than greedy continuations.
    """
    few = History(*(tensor[:GATE_SESSIONS] for tensor in history))
    beams = beam_search(model, few, length, width=WIDTH)
    claimed, true = beams.log_probability[:, 0], log_probability(model, few, beams.tracks[:, 0])
    gate(torch.allclose(claimed, true, rtol=1e-4), f"decode/beam-{WIDTH} claims other probabilities than tracks have")
    least = log_probability(model, few, our_greedy(model, length)(few)).mean()
    gate(bool(claimed.mean() >= least), f"tracks of decode/beam-{WIDTH} are less probable than greedy ones")


def check_sample(model: SeqTransformer, history: History, length: int) -> None:
    """
    Raises:
        UserError: what is drawn from the smallest nucleus is not the most probable track.
    """
    few = History(*(tensor[:GATE_SESSIONS] for tensor in history))
    drawn = sample(model, few, length, top_p=1e-6, generator=torch.Generator().manual_seed(0))
    gate(torch.equal(drawn, our_greedy(model, length)(few)), "decode/sample with top_p near 0 is not decode/greedy")


@torch.no_grad()
def log_probability(model: SeqTransformer, history: History, tracks: Tensor) -> Tensor:
    """Of whole continuations (B, T), by a softmax over all tracks: (B,)."""
    logits = model.logits(model(history, model.previous_tracks(history, tracks)))
    return logits.log_softmax(-1).gather(2, tracks[:, :, None]).sum((1, 2))


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """Gates, then rounds."""
    sizes = config.sizes
    workload.full_sessions(folder / "test", BATCHES * sizes.batch_size, sizes)
    model, batch = workload.seq_transformer(sizes).eval(), next(ordered_batches(folder / "test", sizes))
    checks = [check_greedy] if config.quick else [check_greedy, check_beam, check_sample]
    for check in tqdm(checks, desc="gates", leave=False):
        check(model, batch.history, sizes.target_size)
    decoders: dict[str, Decoder] = {
        "decode/greedy/reference": reference_greedy,
        "decode/greedy/ours": our_greedy,
    }
    if not config.quick:
        decoders |= {f"decode/beam-{WIDTH}": our_beam, "decode/sample": our_sample}
    contenders = [
        Contender(name, setup, {"folder": folder / "test", "sizes": sizes, "decoder": decoder})
        for name, decoder in decoders.items()
    ]
    measured = measure(contenders, rounds=config.rounds, title="decoding")
    first = measured[contenders[0].name]
    return [
        found.row("sessions/s", reference=first if "greedy" in found.name else None, quick=config.quick)
        for found in measured.values()
    ]


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    if config.quick:
        config = replace(config, rounds=2)
    with tempfile.TemporaryDirectory() as folder:
        return publish(measure_all(config, Path(folder)))


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
