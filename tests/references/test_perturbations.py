"""Every script's model on datasets that differ in one thing: what it must not know changes no bit, what it reads does.

The models are not trained. All goes the way of a score: dataset folder, loader, model, predictions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import N_IDS, N_TRACKS, make_dataset
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

import train_bert_finetune_seq
import train_bert_finetune_skip
import train_ddpg_seq
import train_ddpg_skip
import train_gru_seq
import train_lstm_seq
import train_lstm_skip
import train_seq_bert_augmented
import train_skip_bert_augmented
import train_transformer_seq
import train_transformer_skip
from utils.core.cli import parse_config
from utils.data.dataset import Dataset
from utils.data.schema import LOG_COLUMNS, SKIP_1, SKIP_PLAYED
from utils.data.vocab import N_SPECIAL
from utils.evaluation.decoding import mask_filling, step_by_step
from utils.evaluation.predict import seq_predictor, skip_predictor
from utils.evaluation.predictions import Predictions, SkipPredictions
from utils.evaluation.scoring import scoring_loader

MODEL = ["--model.d_model", "8", "--model.n_heads", "2", "--model.n_layers", "1", "--model.d_ff", "8"]
BERT = [option.replace("model.", "bert.", 1) if option.startswith("--model.") else option for option in MODEL]
RECURRENT = ["--model.d_model", "8", "--model.d_hidden", "6"]
AGENT = ["--agent.d_model", "8", "--agent.d_hidden", "8"]
BOTH_ENDS = ["--model.bidirectional", "true", "--model.attention", "true"]
SHORT = ["--data.history_size", "4", "--data.target_size", "3"]

Case = tuple[ModuleType, list[str]]
CAUSAL_SKIP: dict[str, Case] = {
    "transformer": (train_transformer_skip, MODEL),
    "transformer, SKIP token": (train_transformer_skip, [*MODEL, "--model.skip_encoding", "token"]),
    "lstm": (train_lstm_skip, RECURRENT),
    "lstm, both ends": (train_lstm_skip, [*RECURRENT, *BOTH_ENDS]),
    "ddpg": (train_ddpg_skip, AGENT),
    "ddpg, advance": (train_ddpg_skip, [*AGENT, "--advance", "true", "--score", "critic"]),
}
SKIP = CAUSAL_SKIP | {
    "transformer, all targets": (train_transformer_skip, [*MODEL, "--model.causal", "false"]),
    "lstm, all targets": (train_lstm_skip, [*RECURRENT, "--model.causal", "false", "--model.cell", "gru"]),
    "bert": (train_bert_finetune_skip, BERT),
    "bert-augmented": (train_skip_bert_augmented, [*MODEL, *BERT]),
}
INPUTS = ["--model.skip_encoding", "embedding", "--model.use_log", "true"]
SEQ: dict[str, Case] = {
    "transformer": (train_transformer_seq, MODEL),
    "transformer, all inputs": (train_transformer_seq, [*MODEL, *INPUTS, "--model.start", "bos"]),
    "lstm": (train_lstm_seq, RECURRENT),
    "lstm, all inputs": (train_lstm_seq, [*RECURRENT, *BOTH_ENDS, *INPUTS]),
    "gru": (train_gru_seq, RECURRENT),
    "bert": (train_bert_finetune_seq, BERT),
    "bert, confident": (train_bert_finetune_seq, [*BERT, "--filling.order", "confident", "--filling.passes", "3"]),
    "bert-augmented": (train_seq_bert_augmented, [*MODEL, *BERT]),
    "bert-augmented, beams": (train_seq_bert_augmented, [*MODEL, *BERT, "--decoding.method", "beam"]),
    "ddpg": (train_ddpg_seq, AGENT),
}
SEQ_SCRIPTS = {script for script, _ in SEQ.values()}
ALL = [(SKIP, name) for name in SKIP] + [(SEQ, name) for name in SEQ]
every_model = pytest.mark.parametrize(
    ("cases", "name"), ALL, ids=[f"{'skip' if c is SKIP else 'seq'} {n}" for c, n in ALL]
)


class Plays:
    """All plays of a split, and where in its session each stands."""

    def __init__(self, folder: Path) -> None:
        self.tracks, self.skips, self.log = (np.load(folder / f"{name}.npy") for name in ("tracks", "skips", "log"))
        offsets = np.load(folder / "offsets.npy")
        lengths = np.diff(offsets)
        self.session = np.repeat(np.arange(len(lengths)), lengths)
        self.place = np.arange(len(self.tracks)) - offsets[self.session] - lengths[self.session] // 2
        """0 at the first target, negative in the history."""

    def change(self, names: tuple[str, ...], where: NDArray[np.bool_]) -> None:
        """Each of these plays gets another track, another kind of skip, or another code in every column of the log."""
        if "tracks" in names:
            shift = np.random.default_rng(1).integers(1, N_IDS - N_SPECIAL, where.sum())
            self.tracks[where] = N_SPECIAL + (self.tracks[where] - N_SPECIAL + shift) % (N_IDS - N_SPECIAL)
        if "skips" in names:
            self.skips[where] = np.where(self.skips[where] == SKIP_1, SKIP_PLAYED, SKIP_1)
        if "log" in names:
            self.log[where] = (self.log[where] + 1) % list(LOG_COLUMNS.values())


def repeat_first_session(folder: Path, place: int) -> None:
    """The first session again and again, with every track there is as its target number `place`."""
    plays = Plays(folder)
    length = int((plays.session == 0).sum())
    for name in ("tracks", "skips", "log"):
        np.save(folder / f"{name}.npy", np.concatenate([getattr(plays, name)[:length]] * N_TRACKS))
    tracks = np.load(folder / "tracks.npy")
    tracks[length // 2 + place :: length] = np.arange(N_SPECIAL, N_IDS)
    np.save(folder / "tracks.npy", tracks)
    np.save(folder / "offsets.npy", length * np.arange(N_TRACKS + 1))


Change = Callable[[Plays], None]
CHANGES: dict[str, Change] = {
    "nothing": lambda plays: None,
    "answers": lambda plays: plays.change(("skips", "log"), plays.place >= 0),
    "other sessions": lambda plays: plays.change(("tracks", "skips", "log"), plays.session % 2 == 1),
    "outside": lambda plays: plays.change(("tracks", "skips", "log"), (plays.place < -4) | (plays.place >= 3)),
    "tracks": lambda plays: plays.change(("tracks",), plays.place == -3),
    "skips": lambda plays: plays.change(("skips",), plays.place == -3),
    "log": lambda plays: plays.change(("log",), plays.place == -3),
    "targets from 0": lambda plays: plays.change(("tracks",), plays.place >= 0),
    "targets from 1": lambda plays: plays.change(("tracks",), plays.place >= 1),
    "targets from 4": lambda plays: plays.change(("tracks",), plays.place >= 4),
}
Run = Callable[..., Predictions]


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """(script and options, change, more options) -> what the model, not trained, predicts of validation sessions."""
    root = tmp_path_factory.mktemp("perturbed")
    for name, change in CHANGES.items():
        folder = make_dataset(root / name, n_sessions=4 * N_TRACKS)
        for split in ("train", "valid", "test"):
            plays = Plays(folder / split)
            change(plays)
            for array in ("tracks", "skips", "log"):
                np.save(folder / split / f"{array}.npy", getattr(plays, array))

    parse = lru_cache(None)(lambda script, options: parse_config(script.Config, options))

    def run(script: ModuleType, options: tuple[str, ...], change: str) -> Predictions:
        device, config, dataset = torch.device("cpu"), parse(script, options), Dataset.open(root / change)
        torch.manual_seed(0)
        model = script.build(config, dataset)
        predict = skip_predictor(model, device)
        if script in SEQ_SCRIPTS:
            fills = script is train_bert_finetune_seq
            decoding = mask_filling(config.filling) if fills else step_by_step(config.decoding)
            predict = seq_predictor(model, device, decoding)
        return predict(scoring_loader(dataset, config.data, "valid"))

    for place in (0, 2):
        repeat_first_session(make_dataset(root / f"every track at {place}", n_sessions=4 * N_TRACKS) / "valid", place)
    cached = lru_cache(None)(run)
    return lambda case, change, *more: cached(case[0], (*case[1], *more), change)


def same(one: Predictions, other: Predictions, rows: slice = slice(None)) -> None:
    """Every bit of every prediction."""
    assert type(one) is type(other)
    for mine, theirs in zip(one, other, strict=True):
        assert_array_equal(mine[rows], theirs[rows])


def differ(one: Predictions, other: Predictions) -> NDArray[np.bool_]:
    """Which sessions have other probabilities."""
    parts = (p.probability if isinstance(p, SkipPredictions) else p.log_probability for p in (one, other))
    return np.not_equal(*parts).any(axis=1)


@every_model
def test_answers_are_not_read(cases: dict[str, Case], name: str, predictions: Run) -> None:
    """Skips and log columns of second halves."""
    same(*(predictions(cases[name], change) for change in ("nothing", "answers")))


@every_model
@pytest.mark.parametrize("what", ["tracks", "skips", "log"])
def test_histories_are_read(cases: dict[str, Case], name: str, what: str, predictions: Run) -> None:
    """The third last play of each history; skips and log where the model says that it has them."""
    reads = cases is SKIP or "all inputs" in name or cases[name][0] is train_ddpg_seq or what == "tracks"
    changed = differ(*(predictions(cases[name], change) for change in ("nothing", what)))
    if what == "tracks" and "SKIP token" in name:
        assert changed.any()  # but not where the play was skipped
    else:
        assert (changed == reads).all()


@every_model
def test_other_sessions_are_not_read(cases: dict[str, Case], name: str, predictions: Run) -> None:
    """Every second session is another one; the predictions of those between stay."""
    before, after = (predictions(cases[name], change) for change in ("nothing", "other sessions"))
    same(before, after, slice(0, None, 2))
    assert differ(before, after)[1::2].all()


@every_model
def test_plays_outside_of_the_window_are_not_read(cases: dict[str, Case], name: str, predictions: Run) -> None:
    """Four plays of history and three targets; sessions have ten plays and more."""
    same(*(predictions(cases[name], change, *SHORT) for change in ("nothing", "outside")))


@pytest.mark.parametrize("name", SEQ)
@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_continuation_sees_no_target_and_a_judgement_none_before_its_turn(
    name: str, k: int, predictions: Run
) -> None:
    """Target tracks from the k-th on are others."""
    before, after = (predictions(SEQ[name], change) for change in ("nothing", f"targets from {k}"))
    assert_array_equal(before.tracks, after.tracks)
    assert_array_equal(before.log_probability[:, :k], after.log_probability[:, :k])
    assert (before.log_probability[:, k] != after.log_probability[:, k]).all()
    assert (before.rank != after.rank).any() == (k == 0)


@pytest.mark.parametrize("name", SEQ)
@pytest.mark.parametrize("place", [0, 2])
def test_judgements_of_all_tracks_are_one_distribution(name: str, place: int, predictions: Run) -> None:
    """A model that saw the target that it judges would give each its own distribution: they would not sum to 1."""
    tracks, log_p, rank, tied = predictions(SEQ[name], f"every track at {place}")
    assert np.exp(log_p[:, place].astype(float)).sum() == pytest.approx(1, abs=1e-4)
    assert (log_p[:, :place] == log_p[0, :place]).all()
    assert (tracks == tracks[0]).all()
    assert sorted(rank) == (list(range(N_TRACKS)) if place == 0 else [rank[0]] * N_TRACKS)
    assert (tied == 1).all()


@pytest.mark.parametrize("name", CAUSAL_SKIP)
@pytest.mark.parametrize("k", [1, 4])
def test_a_causal_skip_model_sees_no_later_target(name: str, k: int, predictions: Run) -> None:
    before, after = (predictions(SKIP[name], change).probability for change in ("nothing", f"targets from {k}"))
    assert_array_equal(before[:, :k], after[:, :k])
    assert (before[:, k] != after[:, k]).all()
