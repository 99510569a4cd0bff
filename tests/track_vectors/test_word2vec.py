"""word2vec on sessions: what gensim is given, what is learned, the files, the table of a model that starts from it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import N_IDS, N_TRACKS, make_dataset
from script_checks import refused
from tqdm import tqdm

from model.embeddings import TrackEmbedding
from utils.core.cli import parse_config
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL, UNK
from utils.track_vectors import __main__ as neighbours_command
from utils.track_vectors import word2vec
from utils.track_vectors.files import VECTORS, VOCABULARY, load_vectors, save_vectors
from utils.track_vectors.neighbours import nearest
from utils.track_vectors.word2vec import Config, Documents, train_vectors
from utils.training.track_table import load_table


@pytest.fixture(scope="module")
def dataset(dataset_folder: Path) -> Dataset:
    return Dataset.open(dataset_folder)


def changed_tracks(dataset: Dataset, tmp_path: Path, **ids: int) -> Dataset:
    """A copy of a dataset in which some ids of the training sessions are replaced: t_3=9 makes track 3's plays 9."""
    folder = Path(shutil.copytree(dataset.folder, tmp_path / "changed"))
    tracks = np.load(folder / "train" / "tracks.npy")
    for name, new in ids.items():
        tracks[tracks == int(name.removeprefix("t_"))] = new
    np.save(folder / "train" / "tracks.npy", tracks)
    return Dataset.open(folder)


# --- What is read


@pytest.mark.parametrize("at_once", [1, 7, 64, 4096])
def test_sessions_are_all_their_tracks(at_once, dataset, tmp_path, monkeypatch):
    """Skipped or not, but without the special ids, again and again; the bar counts each session."""
    monkeypatch.setattr(word2vec, "SESSIONS_AT_ONCE", at_once)
    changed = changed_tracks(dataset, tmp_path, t_11=UNK).train
    expected = [
        [track for track in changed.tracks[start:end].tolist() if track >= N_SPECIAL]
        for start, end in pairwise(changed.offsets)
    ]
    with tqdm(file=StringIO()) as bar:
        sessions = Documents(changed, bar)
        assert list(sessions) == expected
        assert list(sessions) == expected
        assert bar.n == 2 * len(expected)
    assert all(type(track) is int for session in expected for track in session)
    assert sum(len(session) for session in expected) < len(changed.tracks)


# --- What is learned


def around(vectors: torch.Tensor, track: int) -> float:
    """The mean distance on the circle of ids between a track and its six nearest neighbours."""
    steps = [abs(neighbour.id - track) for neighbour in nearest(vectors, track, 6)]
    return float(np.mean([min(step, N_TRACKS - step) for step in steps]))


@pytest.mark.parametrize("skip_gram", [False, True])
def test_tracks_that_are_played_together_are_near(skip_gram, dataset):
    """Documents walk up the ids; by chance the distance is 10."""
    config = Config(d_model=16, window=3, epochs=60, skip_gram=skip_gram)
    vectors = train_vectors(dataset.train, N_IDS, config)
    assert vectors.shape == (N_IDS, 16)
    assert vectors.dtype == torch.float32
    assert np.mean([around(vectors, track) for track in range(N_SPECIAL, N_IDS)]) < 4


def test_the_same_seed_gives_the_same_vectors(dataset):
    first, second = (train_vectors(dataset.train, N_IDS, Config(d_model=8)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "option", [{"window": 2}, {"skip_gram": True}, {"negatives": 2}, {"epochs": 3}, {"lr": 0.05}, {"seed": 2}]
)
def test_every_option_counts(option, dataset):
    before = train_vectors(dataset.train, N_IDS, Config(d_model=8))
    after = train_vectors(dataset.train, N_IDS, Config(d_model=8, **option))
    assert (before - after).abs().max() > 1e-5


def test_rows_of_ids_that_were_never_played_are_zero(dataset, tmp_path):
    changed = changed_tracks(dataset, tmp_path, t_11=12, t_20=UNK)
    vectors = train_vectors(changed.train, N_IDS, Config(d_model=8))
    unseen = [*range(N_SPECIAL), 11, 20]
    assert (~vectors.any(1)).nonzero()[:, 0].tolist() == unseen


def test_training_without_any_track_is_refused(dataset, tmp_path):
    nothing = changed_tracks(dataset, tmp_path, **{f"t_{i}": UNK for i in range(N_SPECIAL, N_IDS)})
    with pytest.raises(UserError, match="train has no track of the vocabulary"):
        train_vectors(nothing.train, N_IDS, Config())


# --- The command


def run(dataset_folder: Path, out: Path, *more: str) -> Path:
    given = ["--data.folder", str(dataset_folder), "--out", str(out), "--d_model", "8", *more]
    return word2vec.main(parse_config(Config, given))


def test_files_and_the_commands_that_read_them(dataset, dataset_folder, tmp_path, capsys):
    out = run(dataset_folder, tmp_path / "vectors")
    assert {path.name for path in out.iterdir()} == {VECTORS, VOCABULARY, "embedding.png", "config.yml"}
    assert f"64 sessions, {N_TRACKS} of {N_TRACKS} tracks, " in capsys.readouterr().out
    loaded = load_vectors(out / VECTORS, vocabulary_hash=dataset.vocabulary_hash)
    assert torch.equal(loaded.vectors, train_vectors(dataset.train, N_IDS, Config(d_model=8)))
    neighbours = neighbours_command.main(neighbours_command.Config(out / VECTORS, "t_7", k=3))
    assert neighbours == nearest(loaded.vectors, N_SPECIAL + 7, 3)
    again = parse_config(Config, ["--config", str(out / "config.yml")])
    assert (again.d_model, again.data.folder) == (8, str(dataset_folder))
    word2vec.main(replace(again, out=str(tmp_path / "again")))
    assert torch.equal(load_vectors(tmp_path / "again" / VECTORS).vectors, loaded.vectors)


def test_the_folder_is_named_by_the_dataset(dataset_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(dataset_folder, Path(""), "--out", "") == Path("runs/word2vec/tiny")
    assert (tmp_path / "runs" / "word2vec" / "tiny" / VECTORS).exists()


def test_a_dataset_without_features_has_no_picture(tmp_path):
    folder = make_dataset(tmp_path / "data", n_sessions=32, n_features=0, has_skips=False)
    out = run(folder, tmp_path / "vectors")
    assert {path.name for path in out.iterdir()} == {VECTORS, VOCABULARY, "config.yml"}


def test_an_existing_folder_is_replaced_only_if_asked(dataset_folder, tmp_path):
    out = run(dataset_folder, tmp_path / "vectors")
    before = load_vectors(out / VECTORS).vectors
    with pytest.raises(UserError, match="exists already"):
        run(dataset_folder, out, "--seed", "2")
    run(dataset_folder, out, "--seed", "2", "--overwrite", "true")
    assert not torch.equal(load_vectors(out / VECTORS).vectors, before)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--d_model", "0"], "--d_model is 0; it must be at least 1"),
        (["--window", "0"], "--window is 0"),
        (["--negatives", "0"], "--negatives is 0"),
        (["--epochs", "0"], "--epochs is 0"),
        (["--workers", "0"], "--workers is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--lr", "0"], "--lr is 0.0; it must be positive"),
        (["--data.folder", "nowhere"], "nowhere is no dataset folder"),
        (["--data.train_cut", "half"], "train_cut"),
    ],
)
def test_bad_input(more, named, dataset_folder, tmp_path, capsys):
    given = ["--data.folder", str(dataset_folder), "--out", str(tmp_path / "out"), *more]
    assert named in refused(word2vec.main, Config, given, capsys)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


# --- The table of a model


def test_a_table_starts_from_the_file(dataset, tmp_path):
    save_vectors(tmp_path, torch.arange(N_IDS * 4).view(N_IDS, 4) + 1000.0, dataset)
    tracks = TrackEmbedding(N_IDS, 4, torch.zeros(N_IDS, 0))
    table = tracks.table
    before = table.weight.detach().clone()
    load_table(tracks, "", dataset)
    assert torch.equal(table.weight, before)
    load_table(tracks, str(tmp_path / VECTORS), dataset)
    assert torch.equal(table.weight[N_SPECIAL:], torch.arange(N_IDS * 4).view(N_IDS, 4)[N_SPECIAL:] + 1000.0)
    assert torch.equal(table.weight[:N_SPECIAL], before[:N_SPECIAL]), "special ids have no vectors in the file"
    assert table.weight.requires_grad


def test_a_table_of_another_width_is_refused(dataset, tmp_path):
    save_vectors(tmp_path, torch.zeros(N_IDS, 4), dataset)
    with pytest.raises(UserError, match=r"4 dimensions, the model's tracks have 6; add --model\.d_model 4"):
        load_table(TrackEmbedding(N_IDS, 6, torch.zeros(N_IDS, 0)), str(tmp_path / VECTORS), dataset)


def test_vectors_are_as_long_as_random_ones(dataset):
    vectors = train_vectors(dataset.train, N_IDS, Config(d_model=8))
    lengths = vectors[vectors.any(1)].norm(dim=1)
    assert float(lengths.square().mean()) == pytest.approx(1, rel=1e-5)


def test_vectors_that_explode_are_refused(dataset):
    with pytest.raises(UserError, match="lower --lr, which is 1000000"):
        train_vectors(dataset.train, N_IDS, Config(d_model=8, lr=1e6))
