"""Which loaders are scored, and what is left of their predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import seq_model, skip_model

from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.evaluation.predict import seq_predictor, skip_predictor
from utils.evaluation.scores import evaluate_skip
from utils.evaluation.scoring import score, scoring_loader, scoring_loaders, validate, validation_loader

CPU = torch.device("cpu")


def test_score_covers_the_splits(tmp_path, dataset_folder):
    dataset = Dataset.open(dataset_folder)
    scores = score(skip_predictor(skip_model(), CPU), dataset, scoring_loaders(dataset, DataConfig()), folder=tmp_path)
    assert list(scores) == ["train", "valid", "test"]
    assert [split["n_sessions"] for split in scores.values()] == [16, 16, 16]  # of train as many as of test
    assert [path.name for path in tmp_path.iterdir()] == ["predictions_test.npz"]
    assert set(scores["test"]["slices"]) == {"length", "context_type", "shuffle", "premium", "history", "continuation"}
    assert set(scores["train"]["slices"]["continuation"]) == {"seen in training"}
    counted = {group: value["n"] for group, value in scores["test"]["by_plays"].items()}
    assert counted == {"5 to 49": sum(-(-length // 2) for length in dataset.test.lengths)}


def test_score_with_every_prefix(tmp_path, dataset_folder):
    dataset = Dataset.open(dataset_folder)
    data = DataConfig(every_prefix=True, scored=["test"])
    scores = score(seq_predictor(seq_model(), CPU), dataset, scoring_loaders(dataset, data), folder=tmp_path)
    assert list(scores) == ["test", "test_prefixes"]
    for name in scores:
        with np.load(tmp_path / f"predictions_{name}.npz") as arrays:
            right, asked = arrays["sums_hr@20"].T
            assert right.sum() / asked.sum() == pytest.approx(scores[name]["metrics"]["hr@20"]["mean"])
            assert len(right) == len(np.unique(arrays["session"])) == 16
    assert scores["test_prefixes"]["n_sessions"] == 16
    assert len(scores["test_prefixes"]["histogram"]) == 2
    metrics = scores["test_prefixes"]["metrics"]
    assert metrics["maa"] == metrics["accuracy"] == metrics["hr@1"], "one target: the best is right or not"


def test_validation(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    predict = skip_predictor(skip_model(), CPU)
    loader = scoring_loader(dataset, DataConfig(), "valid")
    watched = validate(predict, dataset, validation_loader(dataset, DataConfig()))
    assert watched == evaluate_skip(predict(loader), loader.targets()).means()
    sizes = []

    def counting(loader):
        sizes.append(loader.n_examples)
        return predict(loader)

    for n in (5, 500):
        validate(counting, dataset, validation_loader(dataset, DataConfig(valid_sessions=n)))
    assert sizes == [5, 16]
    loader = validation_loader(dataset, DataConfig(every_prefix=True))
    prefixes = validate(seq_predictor(seq_model(), CPU), dataset, loader)
    assert prefixes["maa"] == prefixes["hr@1"]
