"""What two processes do together: started by torchrun from test_distributed.py, each with the arguments of a script.

Every process checks what it sees; then both train by the script, and the first one says that all was well.
"""

import sys
from functools import partial

import numpy as np
import pytest
import torch
from conftest import random_batch
from sized_models import SeqTransformer
from torch import nn

import train_transformer_seq as script
from model.decoding import sample
from model.dropnet import DropNet
from utils.core import distributed
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.batch import true_targets
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import UNK
from utils.evaluation.decoding import step_by_step
from utils.evaluation.options import DecodingConfig
from utils.evaluation.predict import predict_seq
from utils.training import data_parallel
from utils.training.loop import update
from utils.training.losses import Negatives
from utils.training.optimizers import make_optimizers
from utils.training.seeds import each_seed


class Table(nn.Module):
    """Two row-sparse tables, one of which the second process does not use, and a dense weight."""

    def __init__(self) -> None:
        super().__init__()
        self.all_use, self.first_uses, self.none_uses = (nn.Embedding(6, 2, sparse=True) for _ in range(3))
        self.factor = nn.Parameter(torch.ones(2))
        for table in (self.all_use, self.first_uses, self.none_uses):
            nn.init.ones_(table.weight)


def sum_of_tracks(model, batch):
    """Sum over rows with a known track of the factor times the table's row of it, and the number of such rows."""
    rows = batch.target_tracks[true_targets(batch)[:, 0] != UNK, 0]
    tables = [model.all_use, model.first_uses] if distributed.is_first() else [model.all_use]
    return sum((table(rows) * model.factor).sum() for table in tables), len(rows)


def check_collectives() -> None:
    assert (distributed.n_processes(), distributed.is_first()) == (2, distributed.rank() == 0)
    mine = distributed.rank() + 1  # 1, 2
    assert distributed.total(mine) == 3
    assert distributed.agreed(mine == 1)
    assert not distributed.agreed(mine == 2)
    assert distributed.shared(torch.tensor([mine])).item() == 1
    assert distributed.gathered(torch.full((mine, 2), mine)).tolist() == [[1, 1], [2, 2], [2, 2]]
    assert distributed.gathered(torch.full((2 - mine,), mine)).tolist() == [1]
    assert distributed.from_all(mine) == [1, 2]


def check_once() -> None:
    calls = []
    assert distributed.once(lambda: calls.append(1) or "said") == "said"
    assert len(calls) == (1 if distributed.is_first() else 0)

    def refuse():
        raise UserError("no such folder")

    with pytest.raises(UserError, match="no such folder"):
        distributed.once(refuse)


def check_put_together() -> None:
    whole = np.array([[1.0, -2.0], [np.inf, 4.0], [5.0, 6.0]], np.float32)
    rows = np.array([0, 2]) if distributed.is_first() else np.array([1])
    array = np.full_like(whole, np.inf)
    array[rows] = whole[rows]
    names = np.full(3, 7, np.int32)
    names[rows] = rows
    distributed.put_together(array, names, rows=[rows])
    assert np.array_equal(array, whole)
    assert names.tolist() == [0, 1, 2]


def check_shares() -> None:
    batch = random_batch(n=5)
    own = batch.take(distributed.mine())
    assert own.rows.tolist() == batch.rows[distributed.rank() :: 2].tolist()
    assert torch.equal(own.history.log, batch.history.log[distributed.rank() :: 2])
    assert len(batch.take(slice(1)).take(distributed.mine()).rows) == (1 if distributed.is_first() else 0)


def check_gradients() -> None:
    """Of the mean over all rows: rows 0, 2 and 4 of the batch are the first process's, 1 and 3 the second's."""
    batch = random_batch(n=5)
    batch = batch._replace(target_tracks=torch.tensor([1, 1, 2, 1, 5])[:, None])
    model = Table()
    loss_fn = data_parallel.averaging(model, sum_of_tracks)
    one_update = partial(update, optimizers=[], clip=0.0, precision="float32")
    losses = one_update(model, loss_fn, batch)
    assert losses == ((12.0, 3) if distributed.is_first() else (4.0, 2))
    assert model.factor.grad.tolist() == pytest.approx([(3 * 2 + 2) / 5] * 2)
    assert model.all_use.weight.grad.to_dense()[:, 0].tolist() == pytest.approx([0, 3 / 5, 1 / 5, 0, 0, 1 / 5])
    assert model.first_uses.weight.grad.to_dense()[:, 0].tolist() == pytest.approx([0, 1 / 5, 1 / 5, 0, 0, 1 / 5])
    assert model.none_uses.weight.grad is None
    losses = one_update(model, loss_fn, batch.take(slice(1)))  # nothing for the second one
    assert losses == ((4.0, 1) if distributed.is_first() else (0.0, 0))
    assert model.factor.grad.tolist() == [2.0, 2.0]
    assert model.all_use.weight.grad.to_dense()[:, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert len(make_optimizers(model, lr=1e-4)) == 2


def check_draws() -> None:
    """Drawn by the first process for all, whatever the generators of the others."""
    torch.manual_seed(distributed.rank())
    negatives = Negatives(torch.tensor([0] * 5 + [3, 2, 1]), n=50, power=1.0)
    drawn = distributed.from_all(negatives.draw().tolist())
    assert drawn[0] == drawn[1]
    drop_net = DropNet(0.8).train()
    mixed = [drop_net(torch.zeros(1), torch.ones(1)).item() for _ in range(30)]
    assert set(mixed) == {0.0, 0.5, 1.0}
    assert distributed.from_all(mixed) == [mixed] * 2


def check_samples(folder) -> None:
    """The continuation of a session is that of one process: its random numbers are its own."""
    dataset = Dataset.open(folder)
    torch.manual_seed(0)
    model = SeqTransformer(dataset.n_ids, dataset.features, d_model=8, n_heads=2, n_layers=1, d_ff=8).eval()
    (batch,) = SessionLoader(dataset.test, batch_size=100)
    expected = sample(model, batch.history, 10, top_p=0.9, seed=7, rows=batch.rows)
    decoding = step_by_step(DecodingConfig(method="sample", seed=7))
    found = predict_seq(model, torch.device("cpu"), SessionLoader(dataset.test, batch_size=5), decoding=decoding)
    assert found.tracks.tolist() == expected.tolist()


def main(config) -> None:
    state = torch.get_rng_state()
    for check in (check_collectives, check_once, check_put_together, check_shares, check_gradients, check_draws):
        check()
    check_samples(config.data.folder)
    torch.set_rng_state(state)
    each_seed(script.main)(config)
    print("all was well")
    print("SECOND PROCESS SPEAKS" if not distributed.is_first() else "", file=sys.stderr)


if __name__ == "__main__":
    cli(main, script.Config, description="", processes=True)
