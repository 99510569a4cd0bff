"""A track's first training plays stand as new tracks: which plays, in which batches, and what losses make of them."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import N_IDS, make_dataset
from script_checks import TINY, train
from sized_models import BertForMaskedTracks, BertTransformer, NextTrackGRU, SeqTransformer
from torch import Tensor

import train_transformer_seq
import train_transformer_skip
from utils.agents.calibration import calibration_loader
from utils.agents.environment import LoggedSessions
from utils.agents.options import EnvironmentConfig
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data import new_plays as module
from utils.data.batch import SessionBatch, true_sessions, true_targets, whole_sessions
from utils.data.dataloaders import SessionLoader, training_loader
from utils.data.dataset import Dataset
from utils.data.new_plays import first_plays
from utils.data.options import DataConfig
from utils.data.schema import SPLITS
from utils.data.vocab import MASK, N_SPECIAL, PAD, UNK
from utils.evaluation.scoring import scoring_loader, validation_loader
from utils.training.losses import hidden_targets_loss, next_track_loss, seq_loss
from utils.training.masked_tracks import masked_loss
from utils.training.options import MaskingConfig
from utils.training.rebuild import rebuild

A, B, C = N_SPECIAL, N_SPECIAL + 1, N_SPECIAL + 2
PLAYS = np.array([A, B, A, UNK, A, B, C, UNK, B], np.int32)


@pytest.mark.parametrize("at_once", [1, 2, 4, 100])
def test_first_plays_by_hand(at_once, monkeypatch):
    monkeypatch.setattr(module, "PLAYS_AT_ONCE", at_once)
    marks = {n: "".join(".x"[play] for play in first_plays(PLAYS, n, n_ids=C + 1).astype(int)) for n in (1, 2, 3)}
    assert marks == {1: "xx....x..", 2: "xxx..xx..", 3: "xxx.xxx.x"}


def test_first_plays_of_many_tracks(monkeypatch):
    monkeypatch.setattr(module, "PLAYS_AT_ONCE", 700)
    tracks = np.random.default_rng(0).integers(0, 60, 5000).astype(np.int32)
    seen, expected = dict.fromkeys(range(60), 0), []
    for track in tracks.tolist():
        expected.append(track >= N_SPECIAL and seen[track] < 20)
        seen[track] += 1
    assert first_plays(tracks, 20, n_ids=60).tolist() == expected


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Training sessions A B A UNK | A B C UNK B; the other splits are those of the small dataset."""
    folder = make_dataset(tmp_path / "data", n_sessions=8)
    np.save(folder / "train" / "tracks.npy", PLAYS)
    for name in ("skips", "log"):
        np.save(folder / "train" / f"{name}.npy", np.load(folder / "train" / f"{name}.npy")[: len(PLAYS)])
    np.save(folder / "train" / "offsets.npy", np.array([0, 4, 9]))
    return Dataset.open(folder)


def batches(loader: SessionLoader) -> list[SessionBatch]:
    """Of one session each, in order."""
    return sorted(loader, key=lambda batch: batch.rows.item())


def test_batches_show_first_plays_as_new_and_know_better(dataset):
    loader = training_loader(dataset, DataConfig(new_plays=1, history_size=3, target_size=4), batch_size=1, seed=0)
    first, second = batches(loader)
    assert whole_sessions(first).tolist() == [[PAD, UNK, UNK, A, UNK, PAD, PAD]]
    assert true_sessions(first).tolist() == [[PAD, A, B, A, UNK, PAD, PAD]]
    assert whole_sessions(second).tolist() == [[PAD, A, B, UNK, UNK, B, PAD]]
    assert true_sessions(second).tolist() == [[PAD, A, B, C, UNK, B, PAD]]
    assert true_targets(second).tolist() == [[C, UNK, B, PAD]]
    assert second.inputs(torch.device("cpu"))[1].tolist() == [[UNK, UNK, B, PAD]]
    both = next(iter(training_loader(dataset, DataConfig(new_plays=1), batch_size=2, seed=0)))
    for batch in (both.take(slice(1, None)), both.to(torch.device("cpu")).take(slice(1, None))):
        assert torch.equal(true_sessions(batch), true_sessions(both)[1:])
    none = training_loader(dataset, DataConfig(new_plays=0, history_size=3, target_size=4), batch_size=1, seed=0)
    for batch, known in zip(batches(none), (first, second), strict=True):
        assert batch.answers is None
        assert torch.equal(whole_sessions(batch), true_sessions(known))


def test_every_cut_shows_the_same_plays_as_new(dataset):
    """New is a play, not a place in a batch."""
    data = DataConfig(train_cut="every", new_plays=2, history_size=8, target_size=8)
    shown = {
        tuple(ids[ids != PAD].tolist())
        for batch in training_loader(dataset, data, batch_size=1, seed=0)
        for ids in whole_sessions(batch)
    }
    assert shown == {(UNK, UNK, UNK, UNK), (A, UNK, UNK, UNK, B)}


def test_only_training_has_new_plays(dataset):
    data = DataConfig(new_plays=1)
    loaders = [scoring_loader(dataset, data, split) for split in SPLITS]
    assert all(loader.new is None for loader in (*loaders, validation_loader(dataset, data)))
    assert (scoring_loader(dataset, data, "train").targets().tracks >= N_SPECIAL).sum() == 3
    assert calibration_loader(dataset, data).new.tolist() == first_plays(PLAYS, 1, n_ids=N_IDS).tolist()


@pytest.mark.parametrize(("min_count", "new_plays", "n"), [(1, 1, 3), (5, 2, 5), (0, 1, 0), (1, 0, 0)])
def test_a_whole_catalogue_has_no_new_tracks(dataset, min_count, new_plays, n):
    vocabulary = dataset.info["vocabulary"] | {"min_count": min_count}
    dataset = replace(dataset, info=dataset.info | {"vocabulary": vocabulary})
    loader = training_loader(dataset, DataConfig(new_plays=new_plays), batch_size=2, seed=0)
    assert (0 if loader.new is None else loader.new.sum()) == n


def test_a_negative_number_is_refused():
    with pytest.raises(UserError, match=r"data.new_plays is -1; it must be at least 0"):
        DataConfig(new_plays=-1)


def of_targets(states: Tensor, head: object, targets: Tensor) -> Tensor:
    """Instead of a loss: the sum of the targets that count."""
    return (targets * (targets >= N_SPECIAL)).sum() + 0 * states.sum()


SMALL = {"d_model": 8, "n_heads": 2, "n_layers": 1, "d_ff": 8}


def test_what_is_predicted_is_true_and_what_is_read_is_shown(dataset, monkeypatch):
    """Targets of seq: A (and UNK) of the first session, C and B of the second. The GRU's: all plays but the first."""
    batch = next(iter(training_loader(dataset, DataConfig(new_plays=1), batch_size=2, seed=0)))
    features = dataset.features
    model = SeqTransformer(N_IDS, features, **SMALL)
    fed = []
    monkeypatch.setattr(model, "previous_tracks", lambda history, targets: fed.append(targets) or targets)
    loss, n = seq_loss(model, batch, of_targets)
    assert (loss.item(), n) == (A + C + B, 3)
    assert torch.equal(fed[0], batch.target_tracks)
    assert {UNK, A, B, PAD} == set(fed[0].flatten().tolist())

    gru = NextTrackGRU(N_IDS, features, d_model=8, d_hidden=8)
    read, forward = [], gru.read
    monkeypatch.setattr(gru, "read", lambda tracks, *rest: read.append(tracks) or forward(tracks, *rest))
    loss, n = next_track_loss(gru, batch, of_targets)
    assert (loss.item(), n) == ((B + A) + (B + C + B), 5)
    assert torch.equal(read[0], whole_sessions(batch)[:, :-1])


def test_bert_finds_first_plays_but_does_not_read_them(dataset, monkeypatch):
    batch = next(iter(training_loader(dataset, DataConfig(new_plays=1), batch_size=2, seed=0)))
    bert = BertForMaskedTracks(BertTransformer(N_IDS, dataset.features, max_length=20, **SMALL), tie_weights=True)
    read, forward = [], bert.bert.forward
    monkeypatch.setattr(bert.bert, "forward", lambda tracks, *rest: read.append(tracks) or forward(tracks, *rest))
    hidden = set()
    for seed in range(40):
        torch.manual_seed(seed)
        masked_loss(bert, batch, loss=of_targets, masking=MaskingConfig(rate=0.3))
        inputs, true, shown = read[-1], true_sessions(batch), whole_sessions(batch)
        changed = inputs != shown  # masked, or another track instead
        assert (true[changed] >= N_SPECIAL).all(), "neither padding nor new tracks are hidden"
        hidden |= set(true[changed & (shown == UNK)].tolist())
    assert hidden == {A, B, C}


def test_masks_behind_the_history_hide_first_plays_too(dataset):
    """The second session has targets C (shown as new), UNK and B: what is not hidden is fed as it is shown."""
    _, batch = batches(training_loader(dataset, DataConfig(new_plays=1), batch_size=1, seed=0))
    fed = []

    class Slots(torch.nn.Module):
        head = torch.nn.Linear(1, 1)

        def forward(self, history, slots):
            fed.append(tuple(slots[0, :3].tolist()))
            return torch.zeros(*slots.shape, 1)

    losses = {}
    for seed in range(60):
        torch.manual_seed(seed)
        loss, n = hidden_targets_loss(Slots(), batch, of_targets)
        losses[fed[-1]] = (loss.item(), n)
    assert losses == {(MASK, MASK, MASK): (C + B, 2), (UNK, MASK, MASK): (B, 1), (MASK, MASK, B): (C, 1)}


def test_an_agent_may_play_first_plays(dataset):
    """Their tracks are candidates; the session so far shows them as new."""
    _, batch = batches(training_loader(dataset, DataConfig(new_plays=1), batch_size=1, seed=0))
    environment = LoggedSessions(N_IDS, "seq", EnvironmentConfig(negatives=0))
    environment.reset(batch)
    assert sorted(environment.candidates[environment.candidates != PAD].tolist()) == [B, C]
    assert environment.history.tracks[0, -2:].tolist() == [A, B]


def test_a_resumed_run_equals_an_uninterrupted_one_and_the_option_may_not_change(tmp_path, dataset_folder):
    def arguments(name: str, *more: str) -> list[str]:
        where = ["--data.folder", str(dataset_folder), "--run.folder", str(tmp_path / name)]
        return [*where, *TINY, "--data.new_plays", "2", *more]

    (whole,) = train(train_transformer_seq, arguments("whole"))
    (half,) = train(train_transformer_seq, arguments("half", "--train.epochs", "1"))
    train(train_transformer_seq, arguments("half", "--run.resume", str(half)))
    one, two = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (whole, half))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UserError, match=r"says data.new_plays: 2, not 3"):
        train(train_transformer_seq, arguments("half", "--run.resume", str(half), "--data.new_plays", "3"))
    (other,) = train(train_transformer_seq, arguments("other", "--data.new_plays", "0"))
    scores = [json.loads((folder / "result.json").read_text())["scores"] for folder in (whole, other)]
    assert scores[0] != scores[1], "it changes what is learnt"


def test_a_run_that_is_older_than_the_option_keeps_what_it_did(tmp_path, dataset_folder):
    """Skip scripts show one play as new by default; runs before them showed none, and did not say so."""
    script = train_transformer_skip
    whole, older = ["--run.folder", str(tmp_path / "whole")], ["--run.folder", str(tmp_path / "older")]
    where = ["--data.folder", str(dataset_folder), *TINY]
    (whole,) = train(script, [*where, *whole, "--data.new_plays", "0"])
    (older,) = train(script, [*where, *older, "--data.new_plays", "0", "--train.epochs", "1"])
    path = older / "config.yml"
    saved = yaml.safe_load(path.read_text())
    del saved["data"]["new_plays"]
    path.write_text(yaml.safe_dump(saved))
    with pytest.raises(UserError, match=r"says data.new_plays: 0, not 1; resume with --config"):
        train(script, [*where, "--run.resume", str(older)])
    rebuilt = rebuild(script, older, device=torch.device("cpu"))
    assert rebuilt.config == parse_config(script.Config, ["--config", str(path)])
    assert rebuilt.config.data.new_plays == 0
    train(script, ["--config", str(path), "--run.resume", str(older), "--train.epochs", "2"])
    one, two = (torch.load(folder / "last.pt", weights_only=True)["model"] for folder in (whole, older))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert yaml.safe_load(path.read_text())["data"]["new_plays"] == 0


def test_only_files_of_runs_are_older_than_an_option(tmp_path):
    def read(content, *more):
        (tmp_path / "config.yml").write_text(yaml.safe_dump(content))
        return parse_config(train_transformer_skip.Config, ["--config", str(tmp_path / "config.yml"), *more]).data

    run = {"run": {"resume": None}, "data": {"history_size": 6}}
    assert (read(run).new_plays, read(run).history_size) == (0, 6)
    assert read(run, "--data.new_plays", "1").new_plays == 1
    assert read({"run": {"resume": None}}).new_plays == 0
    assert read({**run, "data": {"new_plays": 3}}).new_plays == 3
    assert read({"data": {"history_size": 6}}).new_plays == 1, "a file that people write"


def test_skip_scripts_show_one_play_as_new_and_the_others_none():
    """Chosen by experiment, see docs/training.md."""
    scripts = sorted(path.stem for path in Path(train_transformer_seq.__file__).parent.glob("train_*.py"))
    shown = {}
    for script in scripts:
        config = importlib.import_module(script).Config
        if "data" in config.__dataclass_fields__:
            shown[script] = config().data.new_plays
    assert len(shown) == 15
    assert {script for script, n in shown.items() if n == 1} == {script for script in shown if "_skip" in script}
    assert set(shown.values()) == {0, 1}
