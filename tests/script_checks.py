"""What the tests of all training scripts share: refusals, what a script gives to `fit`, and whether options arrive."""

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import random_batch

from utils.core.cli import cli, parse_config
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL
from utils.evaluation.decoding import mask_filling, step_by_step
from utils.evaluation.predict import seq_predictor
from utils.training.losses import seq_loss, skip_loss, track_loss
from utils.training.options import LossConfig
from utils.training.seeds import each_seed

CPU = torch.device("cpu")


TINY = [
    *("--model.d_model", "8", "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"),
    *("--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01", "--train.device", "cpu"),
]
FILES = {"config.yml", "metrics.jsonl", "best.pt", "last.pt", "result.json", "predictions_test.npz"}


def train(script, arguments):
    """Run a script as its command line does; returns its run folders, oldest first."""
    config = parse_config(script.Config, arguments)
    each_seed(script.main)(config)
    parent = Path(config.run.folder) / script.__name__.removeprefix("train_")
    return sorted(parent.iterdir(), key=lambda folder: folder.stat().st_ctime_ns)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class StopError(Exception):
    """Instead of training."""


class Given(NamedTuple):
    """What a script gives to `fit`."""

    model: Any
    loss_fn: Any
    evaluate_fn: Any


def refused(main, config, arguments, capsys) -> str:
    """What a command says when it ends with exit code 2 and without a traceback."""
    with pytest.raises(SystemExit) as caught:
        cli(main, config, description="", args=arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def given_to_fit(script, arguments, monkeypatch):
    """Run a script up to its training."""

    def stop(model, loss_fn, evaluate_fn, *_, **__):
        caught.append(Given(model, loss_fn, evaluate_fn))
        raise StopError

    caught = []
    monkeypatch.setattr("utils.training.loop.fit", stop)
    with pytest.raises(StopError):
        script.main(parse_config(script.Config, arguments))
    return caught[0]


def check_weighting_arrives(script, arguments, monkeypatch):
    """The loss of a skip script is weighted as its option says."""
    batch, found = random_batch(), []
    for weighting in ("uniform", "maa"):
        model, loss_fn, _ = given_to_fit(script, [*arguments, "--weighting", weighting], monkeypatch)
        model.eval()
        found.append(loss_fn(model, batch))
        assert found[-1] == skip_loss(model, batch, weighting=weighting)
    assert found[0] != found[1]


def check_loss_arrives(script, arguments, monkeypatch, loss_of_batch=seq_loss):
    """The loss of a seq script is that of its options; `loss_of_batch(model, batch, loss=)` is what it means."""
    config = parse_config(script.Config, arguments)
    batch, train_plays, found = random_batch(), Dataset.open(config.data.folder).train_plays, []
    for options in ({}, {"name": "full"}, {"name": "gbce"}, {"name": "gbce", "n_negatives": 9}):
        more = [part for name, value in options.items() for part in (f"--loss.{name}", str(value))]
        model, loss_fn, _ = given_to_fit(script, [*arguments, *more], monkeypatch)
        expected = partial(loss_of_batch, loss=track_loss(LossConfig(**options), train_plays))
        losses = []
        for loss in (loss_fn, expected):
            torch.manual_seed(1)
            losses.append(loss(model.eval(), batch))
        assert losses[0] == losses[1]
        found.append(losses[0][0].item())
    assert len(set(found)) == 4


def check_continuation_arrives(
    script, arguments, monkeypatch, tmp_path, section, decodings, enliven=lambda model: None
):
    """Sessions are continued as the options say, and with an allow-list by its tracks only.

    Args:
        section: of the options.
        decodings: a config without and one with options, which come to different predictions.
        enliven: changes weights such that they do.
    """
    monkeypatch.setattr("utils.evaluation.scoring.validate", lambda predict, dataset, loader: predict)
    decoded = {"decoding": step_by_step, "filling": mask_filling}[section]
    dataset = Dataset.open(parse_config(script.Config, arguments).data.folder)
    allow_list = tmp_path / "allowed.txt"
    allow_list.write_text("t_3\nt_20\nt_31\n", encoding="utf-8")
    some, found = torch.tensor([3, 20, 31]) + N_SPECIAL, []
    for decoding in decodings:
        default = vars(type(decoding)())
        changed = {name: value for name, value in vars(decoding).items() if value != default[name]}
        more = [part for name, value in changed.items() for part in (f"--{section}.{name}", str(value))]
        for constraint, allowed in (([], None), ([f"--{section}.allow_list", str(allow_list)], some)):
            model, _, evaluate_fn = given_to_fit(script, [*arguments, *more, *constraint], monkeypatch)
            enliven(model)
            predict = evaluate_fn()
            tracks = predict(SessionLoader(dataset.valid, batch_size=5)).tracks
            expected = seq_predictor(model, CPU, decoded(decoding), allowed)
            assert np.array_equal(tracks, expected(SessionLoader(dataset.valid, batch_size=5)).tracks)
            assert allowed is None or set(tracks.ravel()) <= set(some.tolist())
            found.append(tracks.tolist())
    assert all(one != other for i, one in enumerate(found) for other in found[:i])
