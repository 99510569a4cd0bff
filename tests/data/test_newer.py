"""Sessions that are newer than a dataset."""

import pytest
from listening_folders import write_listening

import evaluate
from utils.core.errors import UserError
from utils.core.files import read_json, write_json
from utils.data.dataset import Dataset, SessionArrays
from utils.data.newer import newer_sessions
from utils.data.schema import SKIP_1, SKIP_PLAYED

NAMES = [("a", "A", "B"), ("b", "B", "B")]


def sessions(*starts, split="test"):
    return [(split, "ada", start, [(0, SKIP_PLAYED), (1, SKIP_1)]) for start in starts]


@pytest.fixture
def dataset(tmp_path):
    """The last play starts at 10:03 of the third of January, in the validation split."""
    plays = [*sessions("2024-01-01T10:00", split="train"), *sessions("2024-01-03T10:00", split="valid")]
    return Dataset.open(write_listening(tmp_path / "old", [*plays, *sessions("2024-01-02T10:00")], names=NAMES))


def outside(tmp_path, *starts, **options):
    return SessionArrays.open(write_listening(tmp_path / "new", sessions(*starts), names=NAMES, **options) / "test")


def test_sessions_after_the_last_play_are_kept(dataset, tmp_path):
    arrays = outside(tmp_path, "2024-01-02T10:00", "2024-01-03T10:03", "2024-01-03T10:04", "2024-01-05T10:00")
    (arrays.folder / "new_tracks.parquet").write_text("tracks")
    newer = newer_sessions(arrays, dataset)
    assert (newer.folder / "new_tracks.parquet").read_text() == "tracks"
    assert newer.n_sessions == 2
    assert newer.offsets.tolist() == [0, 2, 4]
    assert newer.times.tolist() == arrays.times[4:].tolist()
    assert newer.tracks.tolist() == [5, 6, 5, 6]
    assert newer.skips.tolist() == [SKIP_PLAYED, SKIP_1] * 2
    assert newer.sessions["session_id"].tolist() == ["test_2", "test_3"]
    assert newer.columns_of_sessions("user")["user"].tolist() == ["ada", "ada"]


def test_a_dataset_without_test_sessions(tmp_path):
    """As `--test_fraction 0` makes it."""
    older = write_listening(tmp_path / "old", sessions("2024-01-01T10:00", split="train"), names=NAMES)
    write_json(older / "dataset.json", read_json(older / "dataset.json") | {"empty_splits": ["valid", "test"]})
    arrays = outside(tmp_path, "2024-01-01T09:00", "2024-01-01T10:03", "2024-01-01T10:04")
    assert newer_sessions(arrays, Dataset.open(older)).n_sessions == 1


def test_nothing_newer_and_no_times_are_errors(dataset, tmp_path):
    with pytest.raises(UserError, match=r"none of these 1 sessions is newer than the last play of .*old"):
        newer_sessions(outside(tmp_path / "x", "2024-01-03T10:00"), dataset)
    with pytest.raises(UserError, match="cannot be told without times"):
        newer_sessions(outside(tmp_path / "y", "2024-01-09T10:00", has_times=False), dataset)


def test_the_option_needs_sessions_from_outside():
    with pytest.raises(UserError, match="--newer is about the sessions of --plays"):
        evaluate.main(evaluate.Config("runs/x", newer=True))
