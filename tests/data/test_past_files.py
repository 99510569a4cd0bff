"""Where the past of a dataset is kept, when it is made again, and the past of sessions from outside."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from listening import random_listening, write_listening
from past_checks import raw_numbers

from utils.core.errors import UserError
from utils.data.dataloaders import SessionLoader
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import PastConfig
from utils.data.past import detail_columns, past_columns, past_of, with_past

SPLITS = ("train", "valid", "test")
ALL = PastConfig("running", relations=True, details=True)


@pytest.fixture
def folder(tmp_path):
    return write_listening(tmp_path / "d", random_listening(21, n_sessions=60))


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nothing_asked_is_nothing_done(folder):
    dataset = Dataset.open(folder)
    assert with_past(dataset, PastConfig()) is dataset
    assert past_of(dataset.test, dataset, PastConfig()) is dataset.test
    assert not (folder / "past").exists()


def test_values_are_standardised_over_the_training_split(folder):
    dataset = with_past(Dataset.open(folder), ALL)
    raw = raw_numbers(folder, ALL)
    for field in ("past", "details"):
        own = raw["train"][field].astype(np.float64)
        mean, deviation = np.nanmean(own, 0), np.nanstd(own, 0)
        assert (deviation > 0.01).all()
        for split in SPLITS:
            expected = np.nan_to_num(((raw[split][field] - mean) / deviation).clip(-5, 5))
            found = getattr(dataset.split(split), field)
            assert found.dtype == np.float16
            np.testing.assert_allclose(found, expected, atol=4e-3)
    clipped = raw["test"]["past"] > np.nanmean(raw["train"]["past"], 0) + 5 * np.nanstd(raw["train"]["past"], 0)
    assert (np.asarray(dataset.test.past)[clipped] == 5).all()


def test_extreme_and_missing_numbers(folder):
    """A column that is the same for all plays is 0; one far outside is 5."""
    constant = np.load(folder / "train" / "log.npy")
    constant[:, 7] = 12  # the hour of the day
    np.save(folder / "train" / "log.npy", constant)
    test = np.load(folder / "test" / "seconds.npy")
    test[:2] = 1e7, np.nan
    np.save(folder / "test" / "seconds.npy", test)
    config = PastConfig(details=True)
    dataset = with_past(Dataset.open(folder), config)
    names = detail_columns(dataset, config)
    assert (dataset.train.details[:, names.index("hour_sin")] == 0).all()
    assert dataset.test.details[:2, names.index("seconds")].tolist() == [5, 0]


def test_files(folder):
    """Each kind of numbers has a folder of its own, whole or absent, with what says what it is."""
    dataset = with_past(Dataset.open(folder), ALL)
    home = folder / "past" / "v1"
    each = ["past.json", "test.npy", "train.npy", "valid.npy"]
    assert files_of(home) == [f"{name}/{file}" for name in ("running-details", "running-relations") for file in each]
    about = json.loads((home / "running-relations" / "past.json").read_text())
    assert set(about) == {"version", "identity", "columns", "mean", "deviation"}
    assert tuple(about["columns"]) == past_columns(dataset, ALL)
    assert len(about["mean"]) == len(about["deviation"]) == dataset.n_past == 54
    assert dataset.n_details == 6
    with_past(Dataset.open(folder), PastConfig("frozen"))
    with_past(Dataset.open(folder), PastConfig(relations=True))
    assert sorted(path.name for path in home.iterdir()) == [
        "frozen",
        "none-relations",
        "running-details",
        "running-relations",
    ]


def test_columns_do_not_depend_on_each_other(folder):
    """Statistics and relations are the same alone and together."""
    both = with_past(Dataset.open(folder), PastConfig("running", relations=True)).train.past
    statistics = with_past(Dataset.open(folder), PastConfig("running")).train.past
    relations = with_past(Dataset.open(folder), PastConfig(relations=True)).train.past
    np.testing.assert_array_equal(both, np.concatenate([statistics, relations], axis=1))


def test_made_once_and_again_when_the_dataset_is_another(folder):
    def changed():
        with_past(Dataset.open(folder), ALL)
        return (folder / "past" / "v1" / "running-details" / "past.json").stat().st_ino

    first = changed()
    assert changed() == first
    skips = np.load(folder / "test" / "skips.npy")
    skips[-1] = 1 if skips[-1] != 1 else 3
    np.save(folder / "test" / "skips.npy", skips)
    assert changed() != first
    path = folder / "past" / "v1" / "running-details" / "past.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "columns": about["columns"][::-1]}))
    with_past(Dataset.open(folder), ALL)
    assert json.loads(path.read_text()) == about, "other columns are made anew"
    path.unlink()  # not made to the end
    with pytest.raises(UserError, match=r"holds no past\.json"):
        changed()


def test_any_other_file_is_noticed_though_it_is_as_large(folder):
    """Nothing but the time of its last change, or the content of dataset.json, tells it."""
    path = folder / "past" / "v1" / "none-relations" / "past.json"

    def identity():
        with_past(Dataset.open(folder), PastConfig(relations=True))
        return json.loads(path.read_text())["identity"]

    seen = [identity()]
    files = [folder / "tracks.parquet", folder / "new_tracks.parquet"]
    files += [
        folder / "valid" / f"{name}.npy" for name in ("tracks", "full_ids", "offsets", "skips", "times", "seconds")
    ]
    files += [folder / "train" / "log.npy", folder / "test" / "sessions.parquet"]
    for file in files:
        about = file.stat()
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns + 1_000))
        seen.append(identity())
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert identity() == seen[0], f"{file} is as it was"
    info = folder / "dataset.json"
    about = info.stat()
    info.write_text(info.read_text().replace('"name": "', '"name": "x', 1))
    os.utime(info, ns=(about.st_atime_ns, about.st_mtime_ns))
    seen.append(identity())
    assert len(set(seen)) == len(files) + 2


@pytest.mark.parametrize("keeps_times", [True, False])
def test_a_copy_has_the_same_past(folder, keeps_times):
    """It is computed again where the copy has other times (cp without -p)."""
    expected = np.array(with_past(Dataset.open(folder), ALL).test.past)
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copy2 if keeps_times else shutil.copy)
    path = copy / "past" / "v1" / "running-details" / "past.json"
    before = path.stat().st_ino
    np.testing.assert_array_equal(with_past(Dataset.open(copy), ALL).test.past, expected)
    assert (path.stat().st_ino == before) is keeps_times


def test_another_dataset_under_the_same_name(folder):
    """Nothing of the older past is used."""
    before = np.array(with_past(Dataset.open(folder), ALL).test.past)
    kept = folder.parent / "kept"
    shutil.move(folder / "past", kept)
    shutil.rmtree(folder)
    write_listening(folder, random_listening(22, n_sessions=60))
    expected = np.array(with_past(Dataset.open(folder), ALL).test.past)
    shutil.rmtree(folder / "past")
    shutil.move(kept, folder / "past")
    found = np.array(with_past(Dataset.open(folder), ALL).test.past)
    assert before.shape != found.shape or not np.array_equal(before, found)
    np.testing.assert_array_equal(found, expected)


def test_a_folder_that_cannot_be_written(folder):
    (folder / "past").write_text("")
    with pytest.raises(UserError, match=r"the past cannot be written under .*d \(.+\); make the folder writable"):
        with_past(Dataset.open(folder), ALL)
    assert files_of(folder / "train") == files_of(folder / "test")


def test_a_past_that_is_there_needs_no_writing(folder, monkeypatch):
    with_past(Dataset.open(folder), ALL)
    monkeypatch.setattr("utils.data.past.atomic_folder", None)
    assert with_past(Dataset.open(folder), ALL).n_past == 54


def test_batches_have_the_past_of_their_plays(folder):
    dataset = with_past(Dataset.open(folder), ALL)
    arrays = dataset.test
    loader = SessionLoader(arrays, batch_size=3)
    batch = next(iter(loader))
    first, last = arrays.offsets[loader.session[0]], arrays.offsets[loader.session[0] + 1]
    cut = (last - first) // 2
    np.testing.assert_array_equal(batch.past.plays[0, 10 : 10 + last - first - cut], arrays.past[first + cut : last])
    np.testing.assert_array_equal(batch.past.plays[0, 10 - cut : 10], arrays.past[first : first + cut])
    np.testing.assert_array_equal(batch.past.details[0, 10 - cut :], arrays.details[first : first + cut])


# ------------------------------------------------------------------------------------------------------- from outside


@pytest.mark.parametrize("protocol", ["running", "frozen", "none"])
@pytest.mark.parametrize("unknown", ["", "user", "times"])
def test_sessions_from_outside_are_as_those_of_the_dataset(tmp_path, protocol, unknown):
    """The test split as if it came from outside: the dataset's copies of its sessions do not count."""
    plays = random_listening(21, n_sessions=60)
    if unknown == "user":
        plays = plays.drop(columns="user")
    folder = write_listening(tmp_path / "d", plays, times=unknown != "times")
    config = dataclasses.replace(ALL, protocol=protocol)
    dataset = with_past(Dataset.open(folder), config)
    shutil.copytree(folder / "test", tmp_path / "outside")
    found = past_of(SessionArrays.open(tmp_path / "outside"), dataset, config)
    np.testing.assert_array_equal(found.past, dataset.test.past)
    np.testing.assert_array_equal(found.details, dataset.test.details)


def test_sessions_from_outside_know_the_dataset_and_each_other(tmp_path):
    """Two sessions of a listener after the dataset's: with tracks that are new to it, whose names are told."""
    plays = random_listening(23, n_sessions=60, overlap=False)
    folder = write_listening(tmp_path / "d", plays)
    more = plays[plays["split"] == "test"].iloc[:2].assign(user="u0", label=1, seconds=30.0)
    more = more.assign(session=["x1", "x2"], time=[1e8, 1e8 + 100], track=["t00", "new"], artist="a0", album="b0")
    outside = write_listening(tmp_path / "other", pd.concat([plays, more], ignore_index=True))
    arrays = SessionArrays.open(outside / "test")
    n_old, names = len(arrays.tracks) - 2, pd.read_parquet(outside / "new_tracks.parquet")
    split = tmp_path / "split"
    shutil.copytree(outside / "test", split)
    # As evaluate.py writes outside sessions: ids of the dataset, then those of its own new tracks.
    ids = pd.concat([pd.read_parquet(folder / f"{name}.parquet")["track_id"] for name in ("tracks", "new_tracks")])
    ids = {track: 5 + i for i, track in enumerate([*ids, "new"])}
    for name, values in {
        "tracks": [ids["t00"], 3],
        "full_ids": [ids["t00"], ids["new"]],
        "skips": arrays.skips[n_old:],
        "times": arrays.times[n_old:],
        "seconds": arrays.seconds[n_old:],
        "log": arrays.log[n_old:],
        "offsets": [0, 1, 2],
    }.items():
        np.save(split / f"{name}.npy", np.asarray(values, getattr(arrays, name).dtype))
    arrays.sessions.iloc[-2:].to_parquet(split / "sessions.parquet", index=False)
    names[names["track_id"] == "new"].to_parquet(split / "new_tracks.parquet", index=False)

    def of_outside(protocol):
        config = PastConfig(protocol)
        dataset = with_past(Dataset.open(folder), config)
        scale = json.loads((folder / "past" / "v1" / protocol / "past.json").read_text())
        found = past_of(SessionArrays.open(split), dataset, config)
        assert found.past.shape == (2, {"running": 42, "frozen": 26}[protocol])
        raw = found.past * np.array(scale["deviation"]) + np.array(scale["mean"])
        return dict(zip(scale["columns"], raw.T, strict=True))

    def expected(column, known):
        return np.log1p((known[column] == more[column].iloc[0]).sum())

    own = plays[plays["user"] == "u0"]
    running, frozen = of_outside("running"), of_outside("frozen")
    for found, known in ((running, own), (frozen, own[own["split"] == "train"])):
        assert found["track_plays"][0] == pytest.approx(expected("track", known), abs=2e-3)
        assert found["artist_plays"][0] == pytest.approx(expected("artist", known), abs=2e-3)
    # The first session had ended when the second one started; its artist is that of the new track.
    after = np.log1p((own["artist"] == "a0").sum() + 1)
    assert running["artist_plays"][1] == pytest.approx(after, abs=2e-3)
    assert frozen["artist_plays"][1] == pytest.approx(frozen["artist_plays"][0])
    assert running["track_plays"][1] == pytest.approx(0, abs=2e-3)
    after = np.log1p(((own["artist"] == "a0") & (own["album"] == "b0")).sum() + 1)
    assert running["album_plays"][1] == pytest.approx(after, abs=2e-3)


def test_sessions_from_outside_need_what_the_dataset_has(folder, tmp_path):
    dataset = Dataset.open(folder)
    shutil.copytree(folder / "test", tmp_path / "outside")
    arrays = dataclasses.replace(SessionArrays.open(tmp_path / "outside"), times=None)
    with pytest.raises(UserError, match="has no times, but the dataset has"):
        past_of(arrays, dataset, ALL)
    table = pd.read_parquet(tmp_path / "outside" / "sessions.parquet")
    table.drop(columns="user").to_parquet(tmp_path / "outside" / "sessions.parquet", index=False)
    with pytest.raises(UserError, match="has no column user"):
        past_of(SessionArrays.open(tmp_path / "outside"), dataset, ALL)


def test_an_id_that_no_table_names(folder):
    ids = np.load(folder / "train" / "full_ids.npy")
    ids[0] = 1000
    np.save(folder / "train" / "full_ids.npy", ids)
    with pytest.raises(UserError, match=r"full_ids.npy has a track that new_tracks.parquet lacks"):
        with_past(Dataset.open(folder), ALL)
