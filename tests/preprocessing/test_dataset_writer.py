"""The arrays of a dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from utils.preprocessing.dataset_writer import NpyWriter, standardise, summary


def test_standardise_by_hand() -> None:
    raw = pd.DataFrame({"duration": [1.0, 3.0, np.inf], "tempo": [7.0, 7.0, np.nan], "key": [0.0, 11.0, np.nan]})
    raw["mode"], raw["time_signature"] = ["major", "minor", None], [4.0, 3.0, 4.0]
    features = standardise(pa.Table.from_pandas(raw))
    keys, signatures = [f"key_{i}" for i in range(12)], [f"time_signature_{i}" for i in range(6)]
    assert features.names == ["duration", "tempo", *keys, "mode", *signatures]
    assert (features.matrix[:5] == 0).all()
    rows = pd.DataFrame(features.matrix[5:], columns=features.names)
    assert rows["duration"].tolist() == [-1, 1, 0]  # mean 2, std 1; what is no number is the mean
    assert rows["tempo"].tolist() == [0, 0, 0]
    assert rows["mode"].tolist() == [1, 0, 0]
    assert rows["key_0"].tolist() == [1, 0, 0]
    assert rows["key_11"].tolist() == [0, 1, 0]
    assert rows["time_signature_4"].tolist() == [1, 0, 1]
    assert rows.filter(like="key_").sum(axis=1).tolist() == [1, 1, 0]
    assert features.mean == [2, 7, *[0] * 19]
    assert features.std == [1] * 21


def test_npy_writer_equals_numpy(tmp_path: Path) -> None:
    values = np.arange(30, dtype=np.uint8).reshape(10, 3)
    writer = NpyWriter(tmp_path / "a.npy", np.uint8, width=3)
    writer.append(values[:4])
    writer.append(values[4:4])
    writer.append(values[4:])
    writer.close()
    assert (np.load(tmp_path / "a.npy") == values).all()
    assert (np.load(tmp_path / "a.npy", mmap_mode="r")[9] == [27, 28, 29]).all()
    empty = NpyWriter(tmp_path / "b.npy", np.int64)
    empty.close()
    assert np.load(tmp_path / "b.npy").shape == (0,)


def test_the_summary_leaves_out_reasons_for_which_nothing_was_dropped() -> None:
    reasons = [("read", 12, 3), ("dropped: no track", 0, 0), ("dropped: the same play again", 2, 0), ("kept", 10, 3)]
    told = summary(
        {
            "funnel": [{"reason": reason, "rows": rows, "sessions": n} for reason, rows, n in reasons],
            "splits": {},
            "vocabulary": {"tracks": 4, "min_count": 1},
            "features": {"names": []},
            "notes": [],
        }
    )
    assert [line.split() for line in told.splitlines()[1:4]] == [
        ["read", "12", "3"],
        ["dropped:", "the", "same", "play", "again", "2", "0"],
        ["kept", "10", "3"],
    ]
    assert told.splitlines()[4].startswith("split")
