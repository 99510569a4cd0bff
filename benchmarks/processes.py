"""One model in two processes: the speed of torchrun, and what a sharded track table costs beside a replicated one.

    python -m benchmarks.processes
    python -m benchmarks.processes --quick true

Two processes share the cores that one has for itself, so on one machine there is little to win: the rows say what the
exchange of gradients costs. The second group has a table of a million tracks. Replicated, each process keeps all of it
and the rows that were touched are exchanged, as in training; sharded by torch's FSDP2, each process keeps half of it,
and the whole of it goes through the network in each step. The last group saves such a table and its moments: the first
process all of it, or each its own half by torch's distributed checkpoints (DCP).
"""

from __future__ import annotations

import atexit
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from benchmarks import workload
from benchmarks.large import next_track_gru
from benchmarks.options import fill_in
from benchmarks.rounds import Contender, Step, measure, rows_of
from benchmarks.rows import Row, publish
from benchmarks.training import LR, learner_with, our_batches, updates
from benchmarks.workload import Sizes
from utils.core import distributed
from utils.core.checks import check_at_least
from utils.core.cli import cli
from utils.data.batch import SessionBatch
from utils.data.dataset import SessionArrays
from utils.training import data_parallel
from utils.training.checkpoint import save_checkpoint
from utils.training.loop import autocast
from utils.training.losses import LossFn, next_track_loss, seq_loss
from utils.training.optimizers import make_optimizers

N_PROCESSES = 2
TABLE = Sizes(tracks=1_000_000, d_model=64)


@dataclass
class Config:
    """Sizes of the measurement."""

    sizes: Sizes = field(default_factory=lambda: Sizes(d_ff=512))
    """Of the SeqTransformer that one and two processes train."""
    table: Sizes = field(default_factory=lambda: TABLE)
    """Of the next-track GRU whose table is replicated or sharded."""
    rounds: int = 0
    """Rounds that are timed; 0: five, or two if quick."""
    steps: int = 0
    """Batches of a round; 0: four, or one if quick."""
    quick: bool = False
    """Two rounds of one step, a table of 100,000 tracks."""
    out: Path | None = None
    """File for the rows. Without it benchmarks/latest.json, if sizes are the defaults."""

    def __post_init__(self) -> None:
        fill_in(self, rounds=(5, 2), steps=(4, 1))
        check_at_least(self, "benchmark", rounds=1, steps=1)
        if self.quick and self.table == TABLE:
            self.table = replace(TABLE, tracks=TABLE.tracks // 10)


# ---------------------------------------------------------------------------------------------------- contenders


def train(arrays: SessionArrays, sizes: Sizes) -> Callable[[SessionBatch], float]:
    """Updates of a SeqTransformer as `fit` makes them, in any number of processes."""
    model = workload.seq_transformer(sizes, sparse=True)
    return _replicated(model, partial(seq_loss, loss=workload.sampled_loss(arrays)))


def replicated(arrays: SessionArrays, sizes: Sizes) -> Callable[[SessionBatch], float]:
    """Updates of a GRU as `fit` makes them."""
    return _replicated(*next_track_gru(arrays, sizes))


def sharded(arrays: SessionArrays, sizes: Sizes) -> Callable[[SessionBatch], float]:
    """Updates of the same GRU with dense gradients, all of its weights sharded over the processes by FSDP2."""
    return _sharded(arrays, sizes)[2]


def saved(arrays: SessionArrays, sizes: Sizes) -> Callable[[SessionBatch], float]:
    """Checkpoints of the replicated GRU after an update, instead of further updates."""
    model, loss_fn = next_track_gru(arrays, sizes)
    optimizers = make_optimizers(model, lr=LR)
    learner_with(optimizers, model, loss_fn)(next(iter(our_batches(arrays, sizes))))
    path = arrays.folder / "last.pt"

    def save(_: SessionBatch) -> float:
        if distributed.is_first():
            states = [optimizer.state_dict() for optimizer in optimizers]
            save_checkpoint(path, {"model": model.state_dict(), "optimizers": states})
        return 0.0

    return save


def saved_in_shards(arrays: SessionArrays, sizes: Sizes) -> Callable[[SessionBatch], float]:
    """Checkpoints of the sharded GRU after an update: each process writes what it has."""
    model, optimizer, learn = _sharded(arrays, sizes)
    learn(next(iter(our_batches(arrays, sizes))))

    def save(_: SessionBatch) -> float:
        weights, state = get_state_dict(model, optimizer)
        writer = checkpoint.FileSystemWriter(arrays.folder / "shards", sync_files=False)  # `save_checkpoint` does not
        checkpoint.save({"model": weights, "optimizer": state}, storage_writer=writer)
        return 0.0

    return save


def _replicated(model: nn.Module, loss_fn: LossFn) -> Callable[[SessionBatch], float]:
    return learner_with(make_optimizers(model, lr=LR), model, data_parallel.averaging(model, loss_fn))


def _sharded(arrays: SessionArrays, sizes: Sizes) -> tuple[nn.Module, Optimizer, Callable[[SessionBatch], float]]:
    model = workload.next_track_gru(sizes, tie_weights=True)
    wrapped = data_parallel.LossOfBatch(model, partial(next_track_loss, loss=workload.sampled_loss(arrays)))
    fully_shard(wrapped, mesh=dist.init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=LR, weight_decay=0.0)

    def learn(batch: SessionBatch) -> float:
        optimizer.zero_grad()
        with autocast(torch.device("cpu"), "auto"):
            loss_sum, count = wrapped(batch.take(distributed.mine()))
        (loss_sum * N_PROCESSES / distributed.total(count)).backward()
        optimizer.step()
        return loss_sum.item()

    return wrapped, optimizer, learn


LEARNERS = {learner.__name__: learner for learner in (train, replicated, sharded, saved, saved_in_shards)}


def setup(folder: Path, sizes: Sizes, steps: int, learner: str, processes: int) -> Step:
    """Updates in this process and in others that it starts; units are sessions of the common batch."""
    if processes > 1:
        port = _free_port()
        for rank in range(1, processes):
            task = {"folder": str(folder), "sizes": asdict(sizes), "learner": learner}
            command = [sys.executable, "-c", f"from benchmarks.processes import follow; follow({json.dumps(task)!r})"]
            environment, nothing = _environment(rank, processes, port), subprocess.DEVNULL
            follower = subprocess.Popen(command, env=environment, stdout=nothing, stderr=nothing)
            atexit.register(follower.kill)
        os.environ.update(_environment(0, processes, port))
        dist.init_process_group("gloo")
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    return _updates(folder, sizes, steps, learner)


def follow(task: str) -> None:
    """What runs in the other processes: the same updates, until the first process is gone."""
    options: dict[str, Any] = json.loads(task)
    dist.init_process_group("gloo")
    torch.set_num_threads(max(1, torch.get_num_threads() // dist.get_world_size()))
    step = _updates(Path(options["folder"]), Sizes(**options["sizes"]), 1, options["learner"])
    while True:
        step()


def _updates(folder: Path, sizes: Sizes, steps: int, learner: str) -> Step:
    """Updates that begin together: no process works ahead while the clock of another contender runs."""
    arrays = SessionArrays.open(folder)
    learn = LEARNERS[learner](arrays, sizes)

    def together(batch: SessionBatch) -> float:
        if dist.is_initialized():
            dist.barrier()
        return learn(batch)

    return updates(together, our_batches(arrays, sizes), steps=steps)


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells each process."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return {**os.environ, **where, "RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank)}


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# --------------------------------------------------------------------------------------------------- measurement


def measure_all(config: Config, folder: Path) -> list[Row]:
    """One and two processes, then a replicated and a sharded table in two, and how they are saved."""
    rows: list[Row] = []
    tasks = {
        "train": (config.sizes, "sessions/s", {"one": ("train", 1), "two": ("train", N_PROCESSES)}),
        "table": (config.table, "sessions/s", {name: (name, N_PROCESSES) for name in ("replicated", "sharded")}),
        "save": (
            replace(config.table, batch_size=1),  # a session a step: what is counted are saves
            "saves/s",
            {"replicated": ("saved", N_PROCESSES), "sharded": ("saved_in_shards", N_PROCESSES)},
        ),
    }
    for name, (sizes, unit, learners) in tasks.items():
        group, place = f"processes/{name}", folder / name
        workload.full_sessions(place, (config.rounds + 1) * config.steps * sizes.batch_size, sizes)
        options = {"folder": place, "sizes": sizes, "steps": config.steps}
        contenders = [
            Contender(f"{group}/{name}", setup, {**options, "learner": learner, "processes": n})
            for name, (learner, n) in learners.items()
        ]
        measured = measure(contenders, rounds=config.rounds, title=group.replace("/", ", "))
        rows += rows_of(measured, unit, quick=config.quick)
    return rows


def main(config: Config) -> list[Row]:
    """Measure, print and save."""
    return publish(config, measure_all)


if __name__ == "__main__":
    cli(main, Config, description=__doc__)
