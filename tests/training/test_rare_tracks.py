"""Rare tracks that share rows of a table: the embedding by hand, what learns, and the scripts that offer it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import N_IDS, make_dataset, random_batch
from model_checks import FEATURES, gradient_norms
from script_checks import TINY, given_to_fit, lines, refused, result, train
from sized_models import LSTMForSkips, SkipTransformer
from torch.testing import assert_close

import evaluate
import train_lstm_seq
import train_lstm_skip
import train_transformer_skip
from model.embeddings import TrackEmbedding, TrackHead
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.vocab import MASK, N_SPECIAL, PAD, UNK
from utils.track_vectors.files import VECTORS, save_vectors
from utils.training.checkpoint import load_checkpoint
from utils.training.losses import Negatives
from utils.training.options import TableConfig
from utils.training.seeds import each_seed
from utils.training.track_table import load_table, table_rows

N_OWN = N_SPECIAL + 30
"""Ids of the scripts' dataset with ten training plays or more."""
RECURRENT = [
    *("--model.d_model", "8", "--model.d_hidden", "6", "--train.device", "cpu"),
    *("--train.epochs", "2", "--train.batch_size", "16", "--train.lr", "0.01"),
]
SCRIPTS = {
    "transformer_skip": (train_transformer_skip, TINY),
    "lstm_skip": (train_lstm_skip, RECURRENT),
    "lstm_seq": (train_lstm_seq, RECURRENT),
}
each_script = pytest.mark.parametrize("name", SCRIPTS)


def embedding(n_own: int | None = None, n_shared: int = 0, *, features: torch.Tensor = FEATURES, sparse: bool = False):
    torch.manual_seed(0)
    return TrackEmbedding(len(features), 6, features, n_own=n_own, n_shared=n_shared, sparse=sparse)


# --- The embedding


def test_a_rare_track_is_a_shared_row_and_its_features():
    tracks = embedding(n_own=N_OWN, n_shared=3)
    weight = tracks.table.weight
    assert weight.shape == (N_OWN + 3, 6)
    projected = FEATURES @ tracks.project.weight.T
    assert_close(tracks(torch.arange(N_OWN)), weight[:N_OWN] + projected[:N_OWN])
    shared = [N_OWN, N_OWN + 1, N_OWN + 2] * 3 + [N_OWN]  # dealt out one by one to the ten tracks
    assert_close(tracks(torch.arange(N_OWN, N_IDS)), weight[shared] + projected[N_OWN:])


def test_rare_tracks_of_a_row_differ_by_their_features_only():
    tracks = embedding(n_own=N_OWN, n_shared=3)
    first, other, third = tracks(torch.tensor([[N_OWN, N_OWN + 1, N_OWN + 3]]))[0]  # (1, 3, D): any shape of ids
    assert_close(third - first, (FEATURES[N_OWN + 3] - FEATURES[N_OWN]) @ tracks.project.weight.T)
    assert (other - first - (FEATURES[N_OWN + 1] - FEATURES[N_OWN]) @ tracks.project.weight.T).abs().max() > 0.1
    alike = FEATURES.clone()
    alike[N_OWN:] = alike[N_OWN]
    vectors = embedding(n_own=N_OWN, n_shared=1, features=alike)(torch.arange(N_OWN, N_IDS))
    assert_close(vectors, vectors[:1].expand(10, 6))


def test_without_shared_rows_features_are_all_that_is_left():
    tracks = embedding(n_own=N_OWN)
    assert tracks.table.weight.shape == (N_OWN, 6)
    assert_close(tracks(torch.arange(N_OWN, N_IDS)), FEATURES[N_OWN:] @ tracks.project.weight.T)
    alone = embedding(n_own=N_SPECIAL)  # all tracks
    assert_close(alone(torch.arange(N_SPECIAL, N_IDS)), FEATURES[N_SPECIAL:] @ alone.project.weight.T)
    assert alone(torch.tensor([PAD, UNK])).tolist() == alone.table.weight[[PAD, UNK]].tolist()


def test_without_features_tracks_of_a_row_are_one():
    tracks = embedding(n_own=N_OWN, n_shared=2, features=torch.zeros(N_IDS, 0))
    vectors = tracks(torch.arange(N_OWN, N_IDS))
    assert_close(vectors, tracks.table.weight[N_OWN:].repeat(5, 1))


def test_by_default_all_is_as_it_was():
    default, same = embedding(), embedding(n_own=N_IDS)
    assert default.table.weight.shape == (N_IDS, 6)
    ids = torch.arange(N_IDS)
    assert torch.equal(default(ids), default.table.weight + default.project(FEATURES))
    assert torch.equal(default(ids), same(ids))
    assert default.state_dict().keys() == {"features", "table.weight", "project.weight"}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_shared", [0, 1, 3])
def test_rare_tracks_teach_shared_rows_and_projection(n_shared, sparse):
    tracks = embedding(n_own=N_OWN, n_shared=n_shared, sparse=sparse)
    tracks(torch.tensor([PAD, MASK, 7, N_OWN, N_OWN + 1, N_OWN + 3])).square().sum().backward()
    gradient = tracks.table.weight.grad.to_dense() if sparse else tracks.table.weight.grad
    learns = gradient.abs().sum(1).nonzero()[:, 0].tolist()
    assert learns == {0: [MASK, 7], 1: [MASK, 7, N_OWN], 3: [MASK, 7, N_OWN, N_OWN + 1]}[n_shared]
    assert tracks.project.weight.grad.abs().min() > 0
    expected = 2 * (tracks(torch.tensor([N_OWN, N_OWN + 3])).sum(0)) if n_shared else torch.zeros(0)
    if n_shared == 3:
        assert_close(gradient[N_OWN], expected)  # both tracks of the row


@pytest.mark.parametrize(
    ("n_own", "n_shared", "n_features", "said"),
    [(N_SPECIAL - 1, 1, 3, "special ids"), (N_IDS + 1, 0, 3, "in all"), (N_OWN, 0, 0, "no audio features")],
)
def test_impossible_tables(n_own, n_shared, n_features, said):
    with pytest.raises(ValueError, match=said):
        embedding(n_own=n_own, n_shared=n_shared, features=FEATURES[:, :n_features])


def test_tied_weights_need_a_row_for_each_track():
    with pytest.raises(ValueError, match="untie them"):
        TrackHead(N_IDS, 6, tie_to=embedding(n_own=N_OWN, n_shared=2))
    TrackHead(N_IDS, 6, tie_to=embedding())


@pytest.mark.parametrize("model_class", [SkipTransformer, LSTMForSkips])
def test_all_of_a_model_learns_and_its_checkpoint_loads_alone(model_class):
    torch.manual_seed(0)
    model = model_class(N_IDS, FEATURES, n_own=N_OWN, n_shared=2)
    batch = random_batch(n=40)
    norms = gradient_norms(model, model(batch.history, batch.target_tracks).square().sum())
    assert [name for name, norm in norms.items() if norm == 0] == []
    torch.manual_seed(1)
    again = model_class(N_IDS, torch.zeros_like(FEATURES), n_own=N_OWN, n_shared=2)
    again.load_state_dict(model.state_dict(), strict=True)
    outputs = [each.eval()(batch.history, batch.target_tracks) for each in (model, again)]
    assert torch.equal(*outputs)


# --- Which tracks are rare


def set_plays(folder: Path, plays: list[int]) -> None:
    """Replace the training plays of a dataset's tracks."""
    tracks = pd.read_parquet(folder / "tracks.parquet")
    tracks.assign(train_plays=plays).to_parquet(folder / "tracks.parquet", index=False)


@pytest.fixture(scope="module")
def rare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset in which 30 tracks have ten training plays or more, four some and six none; read only."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "rare")
    set_plays(folder, [*range(39, 9, -1), 9, 4, 4, 1, *[0] * 6])
    return folder


def test_rare_is_below_min_plays(rare_folder, dataset_folder):
    dataset = Dataset.open(rare_folder)
    assert table_rows(TableConfig(), dataset) == (N_IDS, 0)
    assert table_rows(TableConfig(min_plays=10), dataset) == (N_OWN, 1)
    assert table_rows(TableConfig(min_plays=9, shared_rows=7), dataset) == (N_OWN + 1, 7)
    assert table_rows(TableConfig(min_plays=1, shared_rows=0), dataset) == (N_OWN + 4, 0)
    assert table_rows(TableConfig(min_plays=10**6), dataset) == (N_SPECIAL, 1)
    with pytest.raises(UserError, match=r"min_plays is 2, and every track of .* a lower --min_count"):
        table_rows(TableConfig(min_plays=2), Dataset.open(dataset_folder))


def test_options_that_make_no_sense():
    with pytest.raises(UserError, match=r"table\.shared_rows has no meaning without table\.min_plays"):
        TableConfig(shared_rows=5)
    with pytest.raises(UserError, match=r"table\.min_plays is -1"):
        TableConfig(min_plays=-1)
    with pytest.raises(UserError, match=r"table\.shared_rows is -1"):
        TableConfig(min_plays=5, shared_rows=-1)


def test_tracks_without_plays_are_drawn_as_if_they_had_one(rare_folder):
    plays = Dataset.open(rare_folder).train_plays
    assert plays[N_SPECIAL:].min() == 0
    negatives = Negatives(plays, n=20_000, power=1.0)
    weights = plays.clamp(min=1).double()
    weights[:N_SPECIAL] = 0
    expected = 20_000 * weights / weights.sum()
    assert_close(negatives.expected, expected.float())
    torch.manual_seed(0)
    drawn = torch.bincount(negatives.draw(), minlength=N_IDS)
    assert (drawn[N_SPECIAL:] > 0).all()
    assert (drawn - expected).abs().max() < 5 * expected.max().sqrt()


def test_vectors_of_a_file_go_to_rows_of_their_own(rare_folder, tmp_path):
    save_vectors(tmp_path, torch.arange(N_IDS * 6).view(N_IDS, 6) + 1000.0, Dataset.open(rare_folder))
    tracks = embedding(n_own=N_OWN, n_shared=2)
    before = tracks.table.weight.detach().clone()
    load_table(tracks, str(tmp_path / VECTORS), Dataset.open(rare_folder))
    after = tracks.table.weight.detach()
    assert torch.equal(after[N_SPECIAL:N_OWN], torch.arange(N_IDS * 6).view(N_IDS, 6)[N_SPECIAL:N_OWN] + 1000.0)
    assert torch.equal(after[:N_SPECIAL], before[:N_SPECIAL])
    assert torch.equal(after[N_OWN:], before[N_OWN:]), "shared rows are of no track"


# --- Scripts


def options(folder: Path, tmp_path: Path, name: str, *more: str) -> list[str]:
    """Arguments of a tiny run."""
    return ["--data.folder", str(folder), "--run.folder", str(tmp_path / "runs"), *SCRIPTS[name][1], *more]


def table_of(folder: Path, name: str) -> torch.Tensor:
    table = {"transformer_skip": "decoder.tracks.table.weight"}.get(name, "tracks.table.weight")
    return load_checkpoint(folder / "best.pt")["model"][table]


@each_script
def test_a_run_resumes_and_is_scored_again(name, rare_folder, tmp_path):
    script = SCRIPTS[name][0]
    more = ["--table.min_plays", "10", "--table.shared_rows", "2"]
    (whole,) = train(script, options(rare_folder, tmp_path / "whole", name, *more))
    assert table_of(whole, name).shape == (N_OWN + 2, 8)
    (part,) = train(script, options(rare_folder, tmp_path / "part", name, *more, "--train.epochs", "1"))
    arguments = ["--config", str(part / "config.yml"), "--run.resume", str(part), "--train.epochs", "2"]
    assert train(script, arguments) == [part]
    assert lines(part) == lines(whole)
    assert result(part)["scores"] == result(whole)["scores"]
    again = evaluate.main(evaluate.Config(run=str(part), split="valid", device="cpu"))
    assert again["metrics"] == result(part)["scores"]["valid"]["metrics"]
    assert again["by_plays"] == result(part)["scores"]["valid"]["by_plays"]
    groups = {group: value["n"] for group, value in again["by_plays"].items()}
    assert groups.keys() == {"0", "1 to 4", "5 to 49"}
    assert sum(groups.values()) == sum(-(-length // 2) for length in Dataset.open(rare_folder).valid.lengths)


def test_transformer_starts_from_vectors_and_a_frozen_table_stays(rare_folder, tmp_path):
    dataset, vectors = Dataset.open(rare_folder), torch.randn(N_IDS, 8, generator=torch.manual_seed(5))
    save_vectors(tmp_path, vectors, dataset)
    more = ["--table.vectors", str(tmp_path / VECTORS), "--table.min_plays", "10", "--table.freeze"]
    for freeze in (True, False):
        arguments = options(rare_folder, tmp_path, "transformer_skip", *more, str(freeze).lower())
        folder = train(train_transformer_skip, arguments)[-1]
        table = table_of(folder, "transformer_skip")
        assert torch.equal(table[N_SPECIAL:N_OWN], vectors[N_SPECIAL:N_OWN]) == freeze
        content = result(folder)
        assert content["n_trained_parameters"] == content["n_parameters"] - freeze * table.numel()


def test_continuations_have_all_tracks_to_choose_from(rare_folder, tmp_path, monkeypatch):
    arguments = options(rare_folder, tmp_path, "lstm_seq", "--table.min_plays", "10")
    model = given_to_fit(train_lstm_seq, arguments, monkeypatch).model
    assert model.head.weight.shape == (N_IDS, 8)
    assert model.tracks.table.weight.shape == (N_OWN + 1, 8)


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("lstm_seq", ["--model.tie_weights", "true"], "model: tied weights need a row for each track"),
        ("lstm_skip", ["--table.min_plays", "0", "--table.shared_rows", "3"], "no meaning without table.min_plays"),
    ],
)
def test_bad_input(name, more, said, rare_folder, tmp_path, capsys):
    script = SCRIPTS[name][0]
    arguments = options(rare_folder, tmp_path, name, "--table.min_plays", "10", *more)
    assert said in refused(each_seed(script.main), script.Config, arguments, capsys)


def test_no_features_and_no_rows(rare_folder, tmp_path, capsys):
    folder = make_dataset(tmp_path / "plain", n_sessions=32, n_features=0)
    shutil.copy(rare_folder / "tracks.parquet", folder)
    more = ["--table.min_plays", "10", "--table.shared_rows", "0"]
    arguments = options(folder, tmp_path, "transformer_skip", *more)
    main, config = each_seed(train_transformer_skip.main), train_transformer_skip.Config
    assert "no audio features, so rare tracks need rows to share" in refused(main, config, arguments, capsys)
