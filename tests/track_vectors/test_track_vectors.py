"""Track vectors: the file, its checks, neighbours by hand, the picture, the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import N_IDS, N_TRACKS, make_dataset
from matplotlib.image import imread
from safetensors import safe_open
from safetensors.torch import save_file

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.vocab import N_SPECIAL
from utils.track_vectors.__main__ import Config, main
from utils.track_vectors.files import PICTURE, VECTORS, VOCABULARY, load_vectors, save_vectors
from utils.track_vectors.neighbours import Neighbour, find_track, nearest, shared_ends
from utils.track_vectors.picture import plot_vectors


@pytest.fixture(scope="module")
def dataset(dataset_folder: Path) -> Dataset:
    return Dataset.open(dataset_folder)


@pytest.fixture
def saved(dataset: Dataset, tmp_path: Path) -> Path:
    """A file of vectors in which track t_i points in direction i degrees."""
    angle = torch.deg2rad(torch.arange(N_IDS) - N_SPECIAL)
    save_vectors(tmp_path, torch.stack([angle.cos(), angle.sin()], dim=1), dataset)
    return tmp_path / VECTORS


def test_file_and_names(dataset, tmp_path):
    vectors = torch.randn(N_IDS, 3, dtype=torch.float64, requires_grad=True)
    save_vectors(tmp_path, vectors, dataset)
    assert {path.name for path in tmp_path.iterdir()} == {VECTORS, VOCABULARY}
    with safe_open(tmp_path / VECTORS, framework="np") as file:
        assert list(file.keys()) == ["vectors"]
        assert file.metadata() == {"vocabulary_hash": dataset.vocabulary_hash, "n_ids": str(N_IDS)}
        np.testing.assert_array_equal(file.get_tensor("vectors"), vectors.detach().numpy().astype(np.float32))
    special = ["<pad>", "<mask>", "<skip>", "<unk>", "<bos>"]
    assert (tmp_path / VOCABULARY).read_text().splitlines() == special + [f"t_{i}" for i in range(N_TRACKS)]
    loaded = load_vectors(tmp_path / VECTORS, vocabulary_hash=dataset.vocabulary_hash)
    assert torch.equal(loaded.vectors, vectors.detach().float())
    assert loaded.names == special + [f"t_{i}" for i in range(N_TRACKS)]
    assert loaded.vocabulary_hash == dataset.vocabulary_hash


def test_rows_that_do_not_fit_are_not_written(dataset, tmp_path):
    for shape in ((N_IDS - 1, 2), (N_IDS,)):
        with pytest.raises(ValueError, match=f"for {N_IDS} ids"):
            save_vectors(tmp_path, torch.zeros(shape), dataset)
    assert list(tmp_path.iterdir()) == []


def broken(saved: Path, what: str) -> None:
    """Damage a file of vectors or its names."""
    vocabulary = saved.with_name(VOCABULARY)
    lines = vocabulary.read_text().splitlines()
    if what == "no file":
        saved.unlink()
    elif what == "text":
        saved.write_text("no tensors")
    elif what == "other tensors":
        save_file({"weights": torch.zeros(N_IDS, 2)}, saved)
    elif what == "no names":
        vocabulary.unlink()
    elif what == "bytes for names":
        vocabulary.write_bytes(b"\xff\xfe")
    elif what == "another track":
        vocabulary.write_text("\n".join([*lines[:-1], "t_other"]) + "\n")
    elif what == "two tracks exchanged":
        vocabulary.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]) + "\n")
    elif what == "a row too few":
        with safe_open(saved, framework="pt") as file:
            save_file({"vectors": file.get_tensor("vectors")[:-1].clone()}, saved, metadata=file.metadata())
    elif what == "no hash":
        save_file({"vectors": torch.zeros(N_IDS, 2)}, saved)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no file", "does not exist; .*train_bert_pretrain.py"),
        ("text", "is no file of track vectors"),
        ("other tensors", "is no file of track vectors"),
        ("no names", "vocabulary.txt does not exist; it names the rows"),
        ("bytes for names", "vocabulary.txt is not UTF-8 text"),
        ("another track", "vocabulary.txt does not belong to"),
        ("two tracks exchanged", "vocabulary.txt does not belong to"),
        ("a row too few", "vocabulary.txt does not belong to"),
        ("no hash", "vocabulary.txt does not belong to"),
    ],
)
def test_broken_files_are_refused(saved, what, said):
    load_vectors(saved)
    broken(saved, what)
    with pytest.raises(UserError, match=said):
        load_vectors(saved)


def test_another_vocabulary_is_refused(saved, dataset):
    with pytest.raises(UserError, match=f"another vocabulary .{dataset.vocabulary_hash[:12]}, the dataset has abc"):
        load_vectors(saved, vocabulary_hash="abcdef")


def test_neighbours_by_hand():
    vectors = torch.tensor(
        [*([[9.0, 9.0]] * N_SPECIAL), [1, 0], [0, 5], [3, 3], [-2, 0], [0.1, 0.1], [0, 0]], dtype=torch.float32
    )
    first = N_SPECIAL
    root = 2**-0.5
    found = nearest(vectors, first, 4)
    assert [neighbour.id for neighbour in found] == [first + 2, first + 4, first + 1, first + 5], "ties: smaller id"
    assert [neighbour.cosine for neighbour in found] == pytest.approx([root, root, 0, 0])
    everything = nearest(vectors, first, 99)
    assert len(everything) == 5, "without itself and the special ids, which point in the same direction as track 2"
    assert everything[-1] == Neighbour(first + 3, pytest.approx(-1.0))


def test_ties_go_to_the_smaller_id():
    found = nearest(torch.ones(N_SPECIAL + 5000, 2), N_SPECIAL + 7, 20)
    assert [neighbour.id - N_SPECIAL for neighbour in found] == [i for i in range(21) if i != 7]


def test_an_unknown_track_names_those_like_it():
    names = ["<pad>", "<mask>", "<skip>", "<unk>", "<bos>", "track_a", "track_b", "brick_b"]
    assert find_track(names, "track_b") == 6
    with pytest.raises(UserError, match=r"there is no track 'brack_b'; did you mean track_b, brick_b, track_a\?"):
        find_track(names, "brack_b")
    with pytest.raises(UserError, match=r"there is no track 'trackb'; did you mean track_b, track_a, brick_b\?"):
        find_track(names, "trackb")
    with pytest.raises(UserError, match=r"there is no track '\?'; see vocabulary\.txt"):
        find_track(names, "?")
    with pytest.raises(UserError, match=r"there is no track '<pad>'; see vocabulary\.txt"):
        find_track(names, "<pad>")


def test_shared_ends():
    assert [shared_ends("track_b", name) for name in ("track_b", "track_a", "brick_b", "x", "")] == [14, 6, 4, 0, 0]


def test_picture(dataset, tmp_path, monkeypatch, capsys):
    plot_vectors(tmp_path / PICTURE, torch.randn(N_IDS, 4), dataset)
    picture = imread(tmp_path / PICTURE)
    assert picture.shape[:2] == (900, 1050)
    assert len(np.unique(picture.reshape(-1, picture.shape[2]), axis=0)) > 20, "points in many colours"
    assert [path.name for path in tmp_path.iterdir()] == [PICTURE]


def test_the_picture_shows_the_most_played_in_the_colours_of_a_feature(dataset, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.track_vectors.picture.MOST_PLAYED", 30)
    monkeypatch.setattr("utils.track_vectors.picture.COLOURED_BY", "feature_1")
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, path, **_: drawn.append(figure) or path.touch()
    )
    vectors = torch.zeros(N_IDS, 4)
    vectors[N_SPECIAL:, 1] = torch.arange(N_TRACKS)  # one direction: the first component, all of the variance
    plot_vectors(tmp_path / PICTURE, vectors, dataset)
    axes, bar = drawn[0].axes
    (points,) = axes.collections
    x, y = np.asarray(points.get_offsets()).T
    assert np.allclose(abs(np.diff(x)), 1)
    assert np.allclose(y, 0, atol=1e-5)
    assert len(x) == 30
    assert np.array_equal(points.get_array(), dataset.features[N_SPECIAL : N_SPECIAL + 30, 1].numpy())
    assert axes.get_title() == "The 30 most played tracks"
    assert axes.get_xlabel() == "first component (100.0% of the variance)"
    assert bar.get_ylabel() == "feature_1 (standardised)"


def test_no_features_no_picture(tmp_path, capsys):
    folder = make_dataset(tmp_path / "data", n_sessions=16, n_features=0)
    plot_vectors(tmp_path / PICTURE, torch.randn(N_IDS, 4), Dataset.open(folder))
    assert not (tmp_path / PICTURE).exists()
    assert "has no audio features: no embedding.png" in capsys.readouterr().out


def test_no_two_components_no_picture(dataset, tmp_path, capsys, monkeypatch):
    plot_vectors(tmp_path / PICTURE, torch.randn(N_IDS, 1), dataset)
    assert capsys.readouterr().out == f"vectors of shape ({N_TRACKS}, 1) have no two components: no embedding.png\n"
    monkeypatch.setattr("utils.track_vectors.picture.MOST_PLAYED", 1)
    plot_vectors(tmp_path / PICTURE, torch.randn(N_IDS, 4), dataset)
    assert capsys.readouterr().out == "vectors of shape (1, 4) have no two components: no embedding.png\n"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    plot_vectors(tmp_path / PICTURE, torch.randn(N_IDS, 2), dataset)
    assert [path.name for path in tmp_path.iterdir()] == [PICTURE]


def test_command(saved, dataset_folder, dataset, capsys):
    assert [neighbour.id for neighbour in main(Config(saved, "t_10", k=3))] == [N_SPECIAL + i for i in (9, 11, 8)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["track", "cosine"]
    assert [line.split() for line in lines[1:]] == [["t_9", "1.000"], ["t_11", "1.000"], ["t_8", "0.999"]]
    main(Config(saved, "t_10", k=1, data=dataset_folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["track", "cosine", "plays", "in", "training"]
    assert lines[1].split() == ["t_9", "1.000", str(int(dataset.train_plays[N_SPECIAL + 9]))]


def test_bad_commands(saved, dataset_folder, tmp_path, capsys):
    other = shutil.copytree(dataset_folder, tmp_path / "other")
    info = json.loads((other / "dataset.json").read_text())
    info["vocabulary"]["hash"] = "0" * 64
    (other / "dataset.json").write_text(json.dumps(info))
    for more, said in [
        (["--track", "t_99"], "there is no track 't_99'; did you mean t_9"),
        (["--track", "t_9", "--k", "0"], "k is 0; it must be at least 1"),
        (["--track", "t_9", "--data", str(other)], "another vocabulary"),
        (["--track", "t_9", "--data", "nowhere"], "nowhere is no dataset folder"),
    ]:
        with pytest.raises(SystemExit) as caught:
            cli(main, Config, description="", args=["--vectors", str(saved), *more])
        assert caught.value.code == 2
        assert said in capsys.readouterr().err
