"""train_baselines.py from end to end, and that no target has a way into its predictions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import N_IDS as DATASET_IDS
from conftest import make_dataset
from small_sessions import A, all_models

import train_baselines
from model import baselines_skip as skip
from model import next_track
from model.trees_skip import HistoryTrees
from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.schema import PREFIXES, SPLITS
from utils.data.vocab import N_SPECIAL
from utils.training.options import RunConfig


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the script reports of all baselines, label -> result, on a dataset with a rule in its tracks and skips."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "rule", n_sessions=400)
    config = train_baselines.Config(DataConfig(str(folder)), RunConfig(folder=str(tmp_path_factory.mktemp("runs"))))
    return {result["label"]: result for result in train_baselines.main(config)}


def mean(result: dict, metric: str, split: str = "test") -> float:
    return result["scores"][split]["metrics"][metric]["mean"]


def test_script_scores_every_baseline(results: dict[str, dict]) -> None:
    assert [(label, result["task"], result["kind"]) for label, result in results.items()] == [
        ("Position majority", "skip", "baseline"),
        ("Skip rate of the track", "skip", "baseline"),
        ("Repeat last action", "skip", "baseline"),
        ("Logistic on the history", "skip", "baseline"),
        ("Boosted trees", "skip", "baseline"),
        ("Popularity", "seq", "baseline"),
        ("Markov", "seq", "baseline"),
        ("Item-kNN", "seq", "baseline"),
        ("n-gram with kNN", "seq", "baseline"),
    ]
    for result in results.values():
        assert set(result["scores"]) == {"train", "valid", "test"}


def test_baselines_find_the_rule(results: dict[str, dict]) -> None:
    """Nine in ten odd tracks are skipped and no even one, and each track is followed by the next id."""
    assert mean(results["Skip rate of the track"], "accuracy") == pytest.approx(0.9, abs=0.03)
    assert mean(results["Logistic on the history"], "accuracy") == pytest.approx(0.9, abs=0.03)
    assert mean(results["Position majority"], "accuracy") < 0.65
    assert mean(results["Repeat last action"], "accuracy") < 0.65
    for label in ("Markov", "n-gram with kNN"):
        assert mean(results[label], "maa") == mean(results[label], "hr@1") == 1
        assert mean(results[label], "perplexity") < 1.5
    assert mean(results["Popularity"], "maa") < 0.2
    assert mean(results["Item-kNN"], "hr@10") > 0.5


def test_the_best_setting_on_validation_is_reported(results: dict[str, dict]) -> None:
    trials = results["Item-kNN"]["trials"]
    assert len(trials) == 9
    assert max(trials.values()) == pytest.approx(mean(results["Item-kNN"], "mrr@20", "valid"))
    assert min(trials.values()) < max(trials.values())
    assert list(results["n-gram with kNN"]["trials"]) == [f"discount {d}" for d in (0.5, 0.8, 0.9, 0.95)]


def test_no_target_has_a_way_into_the_predictions(tmp_path: Path) -> None:
    """Other labels, levels and logs in the second halves change no skip prediction, other tracks no continuation."""
    arrays = Dataset.open(make_dataset(tmp_path / "data")).test
    second = np.arange(len(arrays.tracks)) >= np.repeat(arrays.offsets[:-1] + arrays.lengths // 2, arrays.lengths)
    other_skips = np.where(second, schema.SKIP_1 - arrays.skips, arrays.skips).astype(np.uint8)
    other_labels = replace(arrays, skips=other_skips, log=np.where(second[:, None], 0, arrays.log))
    other_tracks = replace(arrays, tracks=np.where(second, A, arrays.tracks))
    original, changed_labels, changed_tracks = (
        SessionLoader(part, batch_size=5) for part in (arrays, other_labels, other_tracks)
    )
    assert (original.targets().skips != changed_labels.targets().skips).any()
    given, labels = skip.SkipInputs.of(original), original.targets().skips
    rate = skip.TrackRate.fit(arrays.tracks, arrays.skips, n_ids=DATASET_IDS)
    for model in (
        skip.PositionMajority.fit(given, labels),
        skip.RepeatLast.fit(given, labels),
        rate,
        skip.HistoryLogistic.fit(given, labels, track_rate=rate),
        HistoryTrees.fit((given, labels), None, track_rate=rate, max_trees=20)[0],
    ):
        for before, after in zip(
            model.predict(skip.SkipInputs.of(original)), model.predict(skip.SkipInputs.of(changed_labels)), strict=True
        ):
            np.testing.assert_array_equal(before, after)
    for model in all_models([arrays.tracks.tolist()], DATASET_IDS).values():
        np.testing.assert_array_equal(
            next_track.predict(model, *next_track.examples(original))[0],
            next_track.predict(model, *next_track.examples(changed_tracks))[0],
        )


def test_a_dataset_without_skips_gets_the_seq_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(tmp_path / "plays", has_skips=False, min_length=2)
    data = DataConfig(str(folder), min_length=4, every_prefix=True)
    config = train_baselines.Config(data, RunConfig(folder=str(tmp_path / "runs")))
    results = train_baselines.main(config)
    assert {result["task"] for result in results} == {"seq"}
    assert "has no skips: only the seq baselines run" in capsys.readouterr().out
    assert results[1]["scores"]["test_prefixes"]["metrics"]["hr@1"]["mean"] > 0.5
    with pytest.raises(UserError, match="skips"):
        train_baselines.main(replace(config, task="skip"))


def test_every_prefix_is_for_the_seq_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(str(make_dataset(tmp_path / "data")), every_prefix=True)
    config = train_baselines.Config(data, RunConfig(folder=str(tmp_path / "runs")))
    with pytest.raises(
        UserError, match=r"data.every_prefix has no meaning for skips; leave it out, or choose --task seq"
    ):
        train_baselines.main(replace(config, task="skip"))
    results = train_baselines.main(config)
    assert [result["task"] for result in results] == ["seq"] * 4
    assert set(results[0]["scores"]) == {f"{split}{end}" for split in SPLITS for end in ("", PREFIXES)}
    assert "data.every_prefix is for seq: only the seq baselines run" in capsys.readouterr().out


def test_ties_of_baselines_reach_the_metrics(results: dict[str, dict]) -> None:
    """What chooses a setting counts ties as the scores of the run do."""
    for label in ("Markov", "Item-kNN", "n-gram with kNN"):
        trials = results[label]["trials"]
        assert max(trials.values()) == pytest.approx(mean(results[label], "mrr@20", "valid"))


def test_max_sessions_takes_the_last_sessions(tmp_path: Path) -> None:
    dataset = Dataset.open(make_dataset(tmp_path / "data"))
    config = train_baselines.Config(DataConfig(str(dataset.folder)), max_sessions=3)
    fits = {each.id: each.fit for each in train_baselines.seq_baselines(config, dataset)}
    model, _ = fits["popularity"]()
    last = dataset.train.tracks[dataset.train.offsets[-4] :]
    expected = np.bincount(last, minlength=dataset.n_ids)[N_SPECIAL:] + 1
    np.testing.assert_allclose(model.popularity[N_SPECIAL:], expected / expected.sum())
    markov, _ = fits["markov"]()
    assert markov.counts.sum() == len(last) - 3  # each play but the last of a session is followed by another


@pytest.mark.parametrize("option", [{"new_plays": 1}, {"train_cut": "every"}, {"valid_sessions": 5}])
def test_an_option_of_models_is_refused(tmp_path, option):
    config = train_baselines.Config(DataConfig("nowhere", **option), RunConfig(folder=str(tmp_path)))
    with pytest.raises(UserError, match=rf"data\.{next(iter(option))} has no meaning for baselines.*; leave it out"):
        train_baselines.main(config)
    assert not list(tmp_path.iterdir())
