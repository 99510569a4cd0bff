"""Batches from hand-made sessions, their order, and what is refused."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import N_IDS, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from benchmarks.reference import collate
from utils.core.errors import UserError
from utils.data import schema
from utils.data.batch import is_skipped
from utils.data.dataloaders import SessionLoader, training_loader
from utils.data.dataset import Dataset, SessionArrays
from utils.data.options import DataConfig

N_LOG = len(schema.LOG_COLUMNS)
SKIPS = [
    [schema.SKIP_PLAYED, schema.SKIP_1, schema.SKIP_3_ONLY, schema.SKIP_2, schema.SKIP_NO_FLAG],
    [schema.SKIP_UNKNOWN, schema.SKIP_2],
    [schema.SKIP_UNKNOWN, schema.SKIP_UNKNOWN, schema.SKIP_1, schema.SKIP_UNKNOWN, schema.SKIP_3_ONLY, schema.SKIP_1],
]


def write_split(folder, lengths, skips=None):
    """Sessions in which tracks count up from 10 through all plays, and the log of a play repeats its track."""
    folder.mkdir(exist_ok=True)
    n = sum(lengths)
    tracks = np.arange(10, 10 + n, dtype=np.int32)
    np.save(folder / "tracks.npy", tracks)
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "skips.npy", np.array(skips or [0] * n, np.uint8))
    np.save(folder / "log.npy", np.repeat(tracks[:, None], N_LOG, axis=1).astype(np.uint8))
    return SessionArrays.open(folder)


@pytest.fixture
def three(tmp_path):
    """Sessions 10..14, 15..16 and 17..22."""
    return write_split(tmp_path / "three", [5, 2, 6], [code for session in SKIPS for code in session])


def only_batch(loader):
    (batch,) = loader
    return batch


def test_half(three):
    batch = only_batch(SessionLoader(three, batch_size=8, history_size=4, target_size=3))
    assert batch.history.tracks.tolist() == [[0, 0, 10, 11], [0, 0, 0, 15], [0, 17, 18, 19]]
    assert batch.target_tracks.tolist() == [[12, 13, 14], [16, 0, 0], [20, 21, 22]]
    # 255 (unknown) and no play: 0, everything else one more than its code
    assert batch.history.skips.tolist() == [[0, 0, 2, 5], [0, 0, 0, 0], [0, 0, 0, 5]]
    assert is_skipped(batch.history.skips).tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert batch.target_skips.tolist() == [[0, 1, 0], [1, -1, -1], [-1, 0, 1]]
    assert (batch.history.log == batch.history.tracks[:, :, None]).all()
    assert batch.rows.tolist() == [0, 1, 2]


def test_types(three):
    batch = only_batch(SessionLoader(three, batch_size=8))
    types = [batch.history.tracks, batch.history.skips, batch.target_tracks, batch.target_skips, batch.rows]
    assert {tensor.dtype for tensor in types} == {torch.int64}
    assert batch.history.log.dtype == torch.uint8
    assert batch.history.log.shape == (3, 10, N_LOG)


def test_long_sessions_are_truncated_around_the_cut(three):
    batch = only_batch(SessionLoader(three, batch_size=8, history_size=1, target_size=2))
    assert batch.history.tracks.tolist() == [[11], [15], [19]]
    assert batch.target_tracks.tolist() == [[12, 13], [16, 0], [20, 21]]


def test_every(three):
    loader = SessionLoader(three, batch_size=100, cut="every", history_size=3, target_size=2)
    batch = only_batch(loader)
    assert loader.n_examples == 4 + 1 + 5
    assert batch.history.tracks.tolist() == [
        *([0, 0, 10], [0, 10, 11], [10, 11, 12], [11, 12, 13]),
        [0, 0, 15],
        *([0, 0, 17], [0, 17, 18], [17, 18, 19], [18, 19, 20], [19, 20, 21]),
    ]
    assert batch.target_tracks.tolist() == [
        *([11, 12], [12, 13], [13, 14], [14, 0]),
        [16, 0],
        *([18, 19], [19, 20], [20, 21], [21, 22], [22, 0]),
    ]
    assert loader.targets().session.tolist() == [0, 0, 0, 0, 1, 2, 2, 2, 2, 2]


def test_random_cuts_are_proper_and_drawn_anew(three):
    loader = SessionLoader(three, batch_size=8, cut="random", history_size=6, target_size=6)
    seen = [set(), set(), set()]
    for _ in range(60):
        batch = only_batch(loader)
        for row, (past, future) in enumerate(zip(batch.history.tracks, batch.target_tracks, strict=True)):
            session = torch.cat([past[past > 0], future[future > 0]]).tolist()
            assert session == [list(range(10, 15)), [15, 16], list(range(17, 23))][row]
            seen[row].add(int((past > 0).sum()))
    assert seen == [{1, 2, 3, 4}, {1}, {1, 2, 3, 4, 5}]


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8).filter(lambda lengths: max(lengths) > 1),
    cut=st.sampled_from(["half", "random", "every"]),
    sizes=st.tuples(st.integers(1, 15), st.integers(1, 15)),
    batch_size=st.integers(1, 9),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_batches_equal_a_loop_over_sessions(lengths, cut, sizes, batch_size, shuffle, seed):
    """Windows over both ends of the arrays, and wider than they are, equal slices that are padded one by one."""
    n_plays = sum(lengths)
    codes = np.random.default_rng(seed).choice([0, 1, 2, 3, 4, 255], n_plays).tolist()
    history_size, target_size = sizes
    with tempfile.TemporaryDirectory() as folder:
        arrays = write_split(Path(folder) / "s", lengths, codes)
    options = {"batch_size": batch_size, "history_size": history_size, "target_size": target_size}
    loader = SessionLoader(arrays, cut=cut, shuffle=shuffle, seed=seed, **options)
    n_seen = 0
    for epoch in range(2):
        _, cuts = loader._draw_epoch()
        for batch in loader:
            n_seen += len(batch.rows)
            rows = batch.rows.numpy()
            sessions, at = loader.session[rows], cuts[rows]
            expected = collate(arrays, sessions, at, history_size=history_size, target_size=target_size)
            for ours, theirs in zip((*batch.history, *batch[1:3]), (*expected.history, *expected[1:3]), strict=True):
                assert ours.dtype == theirs.dtype
                assert torch.equal(ours, theirs)
        assert n_seen == (epoch + 1) * loader.n_examples
    assert_array_equal(arrays.tracks, np.arange(10, 10 + n_plays))


def batches_of(loader, n_epochs):
    """Everything in all batches of so many epochs, as nested lists."""
    return [[tensor.tolist() for tensor in (*b.history, *b[1:4])] for _ in range(n_epochs) for b in loader]


@pytest.fixture
def many(tmp_path):
    return write_split(tmp_path / "many", [2 + i % 5 for i in range(23)])


@pytest.mark.parametrize("cut", ["half", "random", "every"])
def test_order_depends_on_seed_and_epoch_only(many, cut):
    def loader(seed):
        return SessionLoader(many, batch_size=4, cut=cut, shuffle=True, seed=seed)

    first = batches_of(loader(1), 2)
    assert first == batches_of(loader(1), 2)
    half = len(first) // 2
    assert first[:half] != first[half:]
    assert first[:half] != batches_of(loader(2), 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_each_example_once(many, shuffle):
    loader = SessionLoader(many, batch_size=4, shuffle=shuffle)
    sizes = [len(batch.rows) for batch in loader]
    assert sizes == [4] * 5 + [3]
    assert len(loader) == 6
    rows = torch.cat([batch.rows for batch in loader]).tolist()
    assert sorted(rows) == list(range(23))
    assert (rows == list(range(23))) is not shuffle


@pytest.mark.parametrize("cut", ["half", "random", "every"])
@pytest.mark.parametrize("n_read", [0, 1, 5, 6, 7, 12])
def test_resumed_equals_uninterrupted(many, cut, n_read):
    def loader():
        return SessionLoader(many, batch_size=4 if cut != "every" else 12, cut=cut, shuffle=True, seed=3)

    def stream(source, n_batches):
        result = []
        while len(result) < n_batches:
            for batch in source:
                result.append(batch.history.tracks.tolist() + batch.target_tracks.tolist())
                if len(result) == n_batches:
                    break
        return result

    whole = stream(loader(), n_read + 9)
    interrupted, resumed = loader(), loader()
    assert stream(interrupted, n_read) == whole[:n_read]
    resumed.load_state_dict(json.loads(json.dumps(interrupted.state_dict())))
    assert stream(resumed, 9) == whole[n_read:]


def test_breaking_off_goes_on_where_it_stopped(many):
    loader = SessionLoader(many, batch_size=4)
    for batch in loader:
        if batch.rows[0] == 8:
            break
    assert loader.state_dict() == {"epoch": 0, "next_batch": 3}
    assert [batch.rows[0].item() for batch in loader] == [12, 16, 20]
    assert loader.state_dict() == {"epoch": 1, "next_batch": 0}


@pytest.mark.parametrize("cut", ["half", "every"])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_targets_equal_what_the_batches_hold(dataset_folder, cut, batch_size):
    loader = SessionLoader(Dataset.open(dataset_folder).train, batch_size=batch_size, cut=cut, target_size=7)
    targets = loader.targets()
    batches = list(loader)
    assert_array_equal(targets.tracks, torch.cat([b.target_tracks for b in batches]))
    assert_array_equal(targets.skips, torch.cat([b.target_skips for b in batches]))
    assert targets.tracks.dtype == np.int32
    assert targets.skips.dtype == np.int8
    assert len(targets.session) == loader.n_examples


@pytest.mark.parametrize("options", [{"shuffle": True}, {"cut": "random"}])
def test_targets_have_no_order_in_training_loaders(many, options):
    with pytest.raises(ValueError, match="in order only"):
        SessionLoader(many, batch_size=4, **options).targets()


def test_min_length_and_max_sessions(many):
    lengths = many.lengths
    loader = SessionLoader(many, batch_size=4, min_length=5)
    assert_array_equal(loader.session, np.flatnonzero(lengths >= 5))
    sample = SessionLoader(many, batch_size=4, max_sessions=4)
    assert sample.session.tolist() == [0, 7, 14, 22]
    assert sample.targets().tracks[:, 0].tolist() == [b for x in sample for b in x.target_tracks[:, 0].tolist()]
    assert SessionLoader(many, batch_size=4, max_sessions=100).n_examples == 23
    assert SessionLoader(many, batch_size=4, min_length=1).n_examples == 23
    with pytest.raises(UserError, match="no session of at least 7 plays"):
        SessionLoader(many, batch_size=4, min_length=7)


def test_single_plays_cannot_be_cut(tmp_path):
    loader = SessionLoader(write_split(tmp_path / "s", [1, 3, 1]), batch_size=4)
    assert only_batch(loader).history.tracks[0, -1] == 11
    with pytest.raises(UserError, match="at least 2 plays"):
        SessionLoader(write_split(tmp_path / "t", [1, 1]), batch_size=4)


def test_training_loader_follows_the_config(dataset_folder):
    data = DataConfig(train_cut="every", history_size=3, target_size=4, min_length=12)
    dataset = Dataset.open(dataset_folder)
    loader = training_loader(dataset, data, batch_size=5, seed=8)
    lengths = dataset.train.lengths
    assert loader.n_examples == (lengths - 1).sum(), "min_length is for scoring: every session trains"
    batch = next(iter(loader))
    assert batch.history.tracks.shape == (5, 3)
    assert batch.target_tracks.shape == (5, 4)
    assert (loader.seed, loader.shuffle) == (8, True)


@pytest.mark.parametrize("cut", ["half", "random", "every"])
def test_train_share_takes_the_first_sessions(dataset_folder, cut):
    dataset = Dataset.open(dataset_folder)
    data = DataConfig(train_cut=cut, train_share=0.4, history_size=20, target_size=20)
    loader = training_loader(dataset, data, batch_size=1000, seed=8)
    assert sorted(set(loader.session.tolist())) == list(range(25)), "25.6 of 64"
    last = SessionLoader(dataset.train.between(60, 64), batch_size=1000, history_size=20, target_size=20)
    sessions = set()
    for batch in map(only_batch, (loader, last)):
        whole = torch.cat([batch.history.tracks, batch.target_tracks], dim=1)
        sessions |= {tuple(row[row > 0].tolist()) for row in whole}
    tracks, offsets = dataset.train.tracks, dataset.train.offsets
    taken = [*range(25), *range(60, 64)]
    assert sessions == {tuple(tracks[offsets[s] : offsets[s + 1]].tolist()) for s in taken}
    one = training_loader(dataset, DataConfig(train_share=0.001), batch_size=5, seed=8)
    assert one.n_examples == 1, "at least one session"
    assert training_loader(dataset, DataConfig(), batch_size=5, seed=8).n_examples == 64


@pytest.mark.parametrize("share", [0, -0.5, 1.01])
def test_train_share_is_a_share(share):
    with pytest.raises(UserError, match=f"data.train_share is {share}; it must be above 0 and at most 1"):
        DataConfig(train_share=share)


@pytest.mark.parametrize(("share", "folds"), [(0.1, 1), (0.05, 2), (0.07, 3), (0.25, 1)])
def test_train_share_leaves_out_the_sessions_of_a_scorer(dataset_folder, share, folds):
    """For any number of sessions, a network knows none of those from which `training_cases` learns."""
    dataset = Dataset.open(dataset_folder)
    for n in range(10, 65):
        train = dataset.train.between(0, n)
        data = DataConfig(train_share=1 - share * folds)
        known = training_loader(replace(dataset, train=train), data, batch_size=5, seed=8).n_examples
        assert n - round(n * share * folds) - 1 <= known <= n - round(n * share * folds)


def test_dataset(dataset_folder):
    dataset = Dataset.open(dataset_folder, needs_skips=True)
    assert dataset.n_ids == N_IDS == len(dataset.features)
    assert dataset.split("valid") is dataset.valid
    plays = np.bincount(np.load(dataset_folder / "train" / "tracks.npy"), minlength=N_IDS)
    assert dataset.train_plays.tolist() == plays.tolist()
    assert len(dataset.test.sessions) == dataset.test.n_sessions == 16
    assert not dataset.train.tracks.flags.writeable, "memory-mapped, read only"


def edit_json(path, change):
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


def test_the_original_protocol_was_called_seed(tmp_path):
    folder = make_dataset(tmp_path / "older", n_sessions=8)
    for written, read in (("seed", "original"), ("original", "original"), ("temporal", "temporal")):
        edit_json(folder / "dataset.json", lambda info, protocol=written: info.update(protocol=protocol))
        assert Dataset.open(folder).info["protocol"] == read


def broken(folder, what):
    """Break one promise of a dataset folder."""
    if what == "no dataset.json":
        (folder / "dataset.json").unlink()
    elif what == "another version":
        edit_json(folder / "dataset.json", lambda info: info.update(schema_version=99))
    elif what == "no version":
        edit_json(folder / "dataset.json", lambda info: info.pop("schema_version"))
    elif what == "broken dataset.json":
        (folder / "dataset.json").write_text('{"name": "x"\n"y"')
    elif what == "no array":
        (folder / "train" / "skips.npy").unlink()
    elif what == "no features":
        (folder / "track_features.npy").unlink()
    elif what == "features of another vocabulary":
        np.save(folder / "track_features.npy", np.zeros((3, 2), np.float32))
    elif what == "broken array":
        (folder / "valid" / "tracks.npy").write_bytes(b"not an array")
    elif what == "cut array":
        content = (folder / "valid" / "tracks.npy").read_bytes()
        (folder / "valid" / "tracks.npy").write_bytes(content[: len(content) // 2])
    elif what == "arrays that do not fit":
        np.save(folder / "test" / "tracks.npy", np.load(folder / "test" / "tracks.npy")[:-1])
    elif what == "another number of log columns":
        np.save(folder / "test" / "log.npy", np.load(folder / "test" / "log.npy")[:, :-1])
    elif what == "no sessions file":
        (folder / "test" / "sessions.parquet").unlink()
    elif what == "broken sessions file":
        (folder / "test" / "sessions.parquet").write_bytes(b"PAR1 and no more")
    elif what == "session in two splits":
        rename_session(folder / "test", 3, "train_5")
    elif what == "session twice in one split":
        rename_session(folder / "valid", 0, "valid_2")
    elif what == "empty split":
        write_split(folder / "train", [])
        pd.read_parquet(folder / "train" / "sessions.parquet")[:0].to_parquet(folder / "train" / "sessions.parquet")


def rename_session(split, row, name):
    sessions = pd.read_parquet(split / "sessions.parquet")
    sessions.loc[row, "session_id"] = name
    sessions.to_parquet(split / "sessions.parquet")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no dataset.json", "is no dataset folder"),
        ("another version", "schema version 99, this code reads 1"),
        ("no version", "schema version None"),
        ("broken dataset.json", "line 2: not valid JSON"),
        ("no array", r"train/skips.npy does not exist; run python -m utils.datapreprocessing"),
        ("no features", r"track_features.npy does not exist"),
        ("features of another vocabulary", r"track_features.npy has 3 rows, the vocabulary 45"),
        ("broken array", r"valid/tracks.npy is not a readable array"),
        ("cut array", r"valid/tracks.npy is not a readable array"),
        ("arrays that do not fit", r"the arrays in .*/test do not fit each other"),
        ("another number of log columns", r"the arrays in .*/test do not fit each other"),
        ("no sessions file", r"test/sessions.parquet does not exist"),
        ("broken sessions file", r"the sessions of .*data cannot be read \(.*test/sessions.parquet"),
        ("session in two splits", "session train_5 stands more than once"),
        ("session twice in one split", "session valid_2 stands more than once"),
        ("empty split", r"/train has no sessions"),
    ],
)
def test_broken_datasets_are_refused(tmp_path, what, message):
    folder = make_dataset(tmp_path / "data", n_sessions=32)
    Dataset.open(folder)
    broken(folder, what)
    with pytest.raises(UserError, match=message):
        Dataset.open(folder)


def test_dataset_without_skips(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32, has_skips=False)
    dataset = Dataset.open(folder)
    batch = next(iter(SessionLoader(dataset.train, batch_size=4)))
    assert (batch.history.skips == 0).all()
    assert (batch.target_skips == -1).all()
    with pytest.raises(UserError, match="has no skips"):
        Dataset.open(folder, needs_skips=True)


@pytest.mark.parametrize("field", ["history_size", "target_size", "min_length"])
def test_data_config_is_checked(field):
    with pytest.raises(UserError, match=f"data.{field} is 0; it must be at least"):
        DataConfig(**{field: 0})


@pytest.mark.parametrize("scored", [[], ["valid", "tset"]])
def test_only_splits_can_be_scored(scored):
    with pytest.raises(UserError, match="it must be some of train, valid, test"):
        DataConfig(scored=scored)
