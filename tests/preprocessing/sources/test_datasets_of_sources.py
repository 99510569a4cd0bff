"""From an export to a dataset: what a source says arrives in the arrays, and every row is in the funnel."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from exported import as_json, stream, zipped
from test_apple_music import export as apple_export
from test_apple_music import row as apple_row
from test_listenbrainz import export as listenbrainz_export
from test_listenbrainz import listen
from test_spotify_account import export as account_export
from test_spotify_account import row as account_row

from utils.core.errors import UserError
from utils.data import schema
from utils.data.dataset import Dataset
from utils.datapreprocessing import main
from utils.preprocessing.options import Config

TITLES = (("C", 1_000), ("A", 50_000), ("B", 0))
"""Of the plays in a minute of the account data, and their milliseconds."""
START = datetime(2024, 2, 1, tzinfo=UTC)


def hours(n):
    """A session's start, as the exports write times."""
    return START + timedelta(hours=n)


def prepared(tmp_path, source, path):
    """The dataset of an export of twelve sessions, and what it is made of."""
    out = tmp_path / "dataset"
    main(Config(out=out, plays=path, source=source, min_count=1))
    info = json.loads((out / "dataset.json").read_text())
    assert sum(each["rows"] for each in info["sources"]) == info["funnel"][0]["rows"]
    return Dataset.open(out), info, out


def whole(dataset, name):
    """An array of all splits, in order of time."""
    return np.concatenate([getattr(dataset.split(split), name) for split in schema.SPLITS])


def test_spotify(tmp_path):
    """Twelve sessions of a play to the end, a brief one and one whose label is unknown, each two minutes long."""
    rows = []
    for n in range(12):
        for i, reason in enumerate(("trackdone", "fwdbtn", "logout")):
            end = hours(n) + timedelta(minutes=2 * (i + 1))
            how = {"reason_start": "clickrow", "shuffle": i == 1, "master_metadata_track_name": f"Song {i}"}
            rows.append(stream(f"{end:%Y-%m-%dT%H:%M:%SZ}", 120_000, f"track{i}", reason_end=reason, **how))
    rows += [rows[0], stream(spotify_track_uri=None, episode_name="Talk")]
    path = zipped(tmp_path / "my_spotify_data.zip", {"MyData/endsong_0.json": as_json(rows)})
    dataset, info, out = prepared(tmp_path, "spotify", path)
    assert whole(dataset, "skips").tolist() == [schema.SKIP_PLAYED, schema.SKIP_2, schema.SKIP_UNKNOWN] * 12
    assert whole(dataset, "seconds").tolist() == [120.0] * 36
    assert whole(dataset, "times")[:3].tolist() == [round(hours(0).timestamp() + 120 * i) * 1_000_000 for i in range(3)]
    columns = list(schema.LOG_COLUMNS)
    shuffle = whole(dataset, "log")[:, columns.index("hist_user_behavior_is_shuffle")]
    assert shuffle[:3].tolist() == [1, 2, 1]
    end = whole(dataset, "log")[:, columns.index("hist_user_behavior_reason_end")]
    assert end[:3].tolist() == [1 + schema.REASONS_END.index(word) for word in ("trackdone", "fwdbtn", "logout")]
    tracks = pq.read_table(out / "tracks.parquet").to_pylist()
    assert {row["track_id"]: row["name"] for row in tracks if row["artist"]} == {
        f"track{i}": f"Song {i}" for i in range(3)
    }
    dropped = {
        entry["reason"]: entry["rows"] for entry in info["funnel"] if "dropped" in entry["reason"] and entry["rows"]
    }
    assert dropped == {"dropped: episodes of podcasts": 1, "dropped: repeats of a play that was read before": 1}


def test_a_minute_of_the_account_data_stays_in_order(tmp_path):
    rows = [account_row(f"{hours(n):%Y-%m-%d %H:%M}", title=title, ms=ms) for n in range(12) for title, ms in TITLES]
    dataset, info, out = prepared(tmp_path, "spotify-account", account_export(tmp_path, rows))
    names = {row["index"]: row["name"] for row in pq.read_table(out / "tracks.parquet").to_pylist()}
    assert [names[track] for track in whole(dataset, "tracks")] == ["C", "A", "B"] * 12
    assert not info["has_skips"]
    np.testing.assert_array_equal(whole(dataset, "seconds")[:3], np.float32([1, 50, 0]))


def test_listenbrainz(tmp_path):
    listens = [listen(hours(n).timestamp() + 60 * i, msid=f"track{i}") for n in range(12) for i in range(3)]
    dataset, info, _ = prepared(tmp_path, "listenbrainz", listenbrainz_export(tmp_path, {"2024/2": listens}))
    assert len(whole(dataset, "tracks")) == 36
    assert not info["has_skips"]
    assert whole(dataset, "times")[:2].tolist() == [START.timestamp() * 1e6, (START.timestamp() + 60) * 1e6]


def test_apple_music(tmp_path):
    rows = [
        apple_row(f"{n:02}:0{i}:00", f"{n:02}:0{i}:50", 50_000, reason, f"Song {i}")
        for n in range(12)
        for i, reason in enumerate(("NATURAL_END_OF_TRACK", "TRACK_SKIPPED_FORWARDS", "PLAYBACK_MANUALLY_PAUSED"))
    ]
    dataset, _, _ = prepared(tmp_path, "apple-music", apple_export(tmp_path, rows))
    assert whole(dataset, "skips").tolist() == [schema.SKIP_PLAYED, schema.SKIP_2, schema.SKIP_UNKNOWN] * 12
    assert whole(dataset, "seconds").tolist() == [50.0] * 36


def test_a_fault_names_the_export_and_not_a_file_of_work(tmp_path):
    """And advises no option that is refused beside a source."""
    path = zipped(tmp_path / "my.zip", {"endsong_0.json": as_json([stream(), stream(track="nan")])})
    with pytest.raises(UserError) as caught:
        main(Config(out=tmp_path / "dataset", plays=path, source="spotify", min_count=1))
    assert str(caught.value) == (
        f"{path}, of its plays, row 2: track is 'nan', no track; correct or remove the rows (1 of them)"
    )
