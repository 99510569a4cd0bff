import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import N_IDS, make_dataset, random_batch
from script_checks import refused
from sized_models import BertForMaskedTracks, BertTransformer, NextTrackGRU, SeqTransformer, SkipTransformer

import train_ddpg_skip
import train_transformer_seq as script
from utils.core import distributed
from utils.core.cli import parse_config
from utils.training import data_parallel
from utils.training.losses import next_track_loss, seq_loss, skip_loss, track_loss
from utils.training.masked_tracks import masked_loss
from utils.training.options import LossConfig, MaskingConfig

ROOT = Path(__file__).parents[2]
SIZES = {
    **{"model.d_model": 16, "model.d_ff": 32, "model.n_layers": 1, "model.n_heads": 2, "model.dropout": 0.0},
    **{"train.batch_size": 17, "train.lr": 0.01, "train.clip": 1.0, "train.precision": "float32"},
    **{"loss.n_negatives": 20, "loss.in_batch": True, "data.new_plays": 1},
}


def arguments(data, runs, *, name="", epochs=2, resume=None):
    options = {**SIZES, "data.folder": data, "run.folder": runs, "run.name": name, "train.epochs": epochs}
    if resume is not None:
        options["run.resume"] = resume
    return [part for key, value in options.items() for part in (f"--{key}", str(value))]


def one_process(*args, **options):
    script.main(parse_config(script.Config, arguments(*args, **options)))


def two_processes(command, *args, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(command), *arguments(*args, **options)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def logged(folder):
    """What `metrics.jsonl` says, without the names of the splits."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "split"} for line in lines]


def test_two_processes_train_as_one_and_a_run_goes_on_in_another_number(tmp_path):
    """69 sessions in batches of 17: the last batch has one row, so nothing for the second process. 17 are scored."""
    data, runs = make_dataset(tmp_path / "data", n_sessions=69), tmp_path / "runs"
    make = runs / "transformer_seq"
    one_process(data, runs, name="alone")
    expected = logged(make / "alone")

    done = two_processes(ROOT / "tests/two_processes.py", data, runs, name="two_then_one", epochs=1)
    assert done.stdout.count("all was well") == 1
    assert "SECOND PROCESS SPEAKS" not in done.stderr
    assert json.loads((make / "two_then_one/result.json").read_text())["processes"] == 2
    one_process(data, runs, name="two_then_one", resume=make / "two_then_one")

    one_process(data, runs, name="one_then_two", epochs=1)
    two_processes(ROOT / "train_transformer_seq.py", data, runs, name="one_then_two", resume=make / "one_then_two")
    for name in ("two_then_one", "one_then_two"):
        assert len(logged(make / name)) == len(expected) == 4
        for found, wanted in zip(logged(make / name), expected, strict=True):
            assert found == pytest.approx(wanted, rel=1e-4)
        result, alone = (json.loads((make / folder / "result.json").read_text()) for folder in (name, "alone"))
        for metric, value in alone["scores"]["test"]["metrics"].items():
            assert result["scores"]["test"]["metrics"][metric]["mean"] == pytest.approx(value["mean"], rel=1e-4)
        best, best_alone = (
            torch.load(make / folder / "best.pt", weights_only=True)["model"] for folder in (name, "alone")
        )
        assert all(torch.allclose(best[key], best_alone[key], atol=1e-4) for key in best_alone)


SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8}
FEATURES = torch.randn(N_IDS, 3)
TRACK_LOSSES = {
    name: LossConfig(**options)
    for name, options in (
        ("full", {"name": "full"}),
        ("sampled", {}),
        ("in_batch", {"in_batch": True}),
        ("gbce", {"name": "gbce"}),
    )
}
MODELS = {
    "transformer": (lambda: SeqTransformer(N_IDS, FEATURES, **SMALL), seq_loss),
    "gru": (lambda: NextTrackGRU(N_IDS, FEATURES, d_model=8, d_hidden=8), next_track_loss),
    "bert": (
        lambda: BertForMaskedTracks(
            BertTransformer(N_IDS, FEATURES, max_length=20, use_ids=True, **SMALL), tie_weights=True
        ),
        partial(masked_loss, masking=MaskingConfig()),
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("config", TRACK_LOSSES.values(), ids=TRACK_LOSSES)
def test_a_process_without_rows_has_no_loss_and_zero_gradients(name, config):
    make, loss_fn = MODELS[name]
    model = make().train()
    nothing = data_parallel._nothing_known(random_batch())
    loss_sum, count = loss_fn(model, nothing, loss=track_loss(config, torch.ones(N_IDS, dtype=torch.int64)))
    assert (loss_sum.item(), count) == (0.0, 0)
    loss_sum.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_a_process_without_rows_has_no_skips_to_learn_from():
    model = SkipTransformer(N_IDS, FEATURES, **SMALL)
    loss_sum, count = skip_loss(model, data_parallel._nothing_known(random_batch()))
    assert (loss_sum.item(), count) == (0.0, 0)
    loss_sum.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize(("gpu", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_numbers_on_the_cpu_are_exchanged_where_there_is_a_gpu_too(gpu, backend, monkeypatch):
    asked = []
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.distributed, "init_process_group", asked.append)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: asked.append("gone"))
    with distributed.processes():
        pass
    assert asked == [backend, "gone"]


def test_a_command_for_one_process_refuses_to_run_in_two(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    said = refused(train_ddpg_skip.main, train_ddpg_skip.Config, [], capsys)
    assert said == "error: this command runs in one process; start it with python instead of torchrun\n"
