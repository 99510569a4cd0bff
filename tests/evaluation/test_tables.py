"""Predictions as a table, one row a target."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_dataset
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import seq_model, skip_model

from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, PAD
from utils.evaluation.predict import predict_seq, predict_skip
from utils.evaluation.tables import predictions_table, write_table

CPU = torch.device("cpu")


def test_table_of_skip_predictions(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32)
    skips = np.load(folder / "test" / "skips.npy")
    skips[-1] = schema.SKIP_UNKNOWN
    np.save(folder / "test" / "skips.npy", skips)
    dataset = Dataset.open(folder)
    loader = SessionLoader(dataset.test, batch_size=8)
    predictions = predict_skip(skip_model(), CPU, loader)
    table = predictions_table(predictions, loader, dataset)
    lengths = dataset.test.lengths
    second = np.concatenate(
        [np.arange(n // 2, n) + start for n, start in zip(lengths, dataset.test.offsets, strict=False)]
    )
    assert len(table) == len(second)
    assert table["track_id"].tolist() == [f"t_{track - N_SPECIAL}" for track in dataset.test.tracks[second]]
    assert table["session_id"].tolist() == np.repeat([f"test_{i}" for i in range(8)], lengths - lengths // 2).tolist()
    assert table["position"].tolist() == [p for n in lengths for p in range(n // 2 + 1, n + 1)]
    assert table["skipped"].iloc[:-1].tolist() == (skips[second][:-1] == schema.SKIP_1).tolist()
    assert table["skipped"].isna().tolist() == [False] * (len(second) - 1) + [True]
    known = loader.targets().tracks != PAD
    assert_array_equal(table["skip_probability"], predictions.probability[known])
    assert (table["skip_predicted"] == (table["skip_probability"] >= 0.5)).all()
    for name in ("p.csv", "p.parquet"):
        write_table(tmp_path / name, table)
    read = pd.read_csv(tmp_path / "p.csv")
    assert_allclose(read["skip_probability"], table["skip_probability"], rtol=1e-6)
    assert pd.read_parquet(tmp_path / "p.parquet")["position"].tolist() == table["position"].tolist()
    with pytest.raises(UserError, match=r"p.xlsx must end in .csv or .parquet"):
        write_table(tmp_path / "p.xlsx", table)


def test_a_place_where_nothing_can_be_written_is_named(tmp_path):
    """A file where a folder should be, and a folder where the file should be; nothing is left behind."""
    table = pd.DataFrame({"a": [1]})
    (tmp_path / "file").write_text("")
    for name in ("p.csv", "p.parquet"):
        (tmp_path / "taken" / name).mkdir(parents=True)
        (tmp_path / "taken" / name / "mine").write_text("")
        for path in (tmp_path / "file" / name, tmp_path / "file" / "deeper" / name, tmp_path / "taken" / name):
            with pytest.raises(UserError, match=f"{path} cannot be written: "):
                write_table(path, table)
        write_table(tmp_path / "new" / "folder" / name, table)
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["p.csv", "p.parquet"]


def test_table_of_seq_predictions(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    loader = SessionLoader(dataset.test, batch_size=8)
    predictions = predict_seq(seq_model(), CPU, loader)
    table = predictions_table(predictions, loader, dataset)
    known = loader.targets().tracks != PAD
    assert table["predicted_track_id"].tolist() == [f"t_{track - N_SPECIAL}" for track in predictions.tracks[known]]
    assert list(table) == ["session_id", "position", "track_id", "predicted_track_id"]
