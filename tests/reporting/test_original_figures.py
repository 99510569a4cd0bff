"""The original's figures stand beside runs of the same kind, whatever their labels."""

from dataclasses import asdict
from functools import partial

import pytest
from run_folders import in_one_line, tables_of, write_run

import train_baselines
import train_bert_finetune_seq
import train_ddpg_seq
import train_ddpg_skip
import train_gru_seq
import train_lstm_seq
import train_lstm_skip
import train_seq_bert_augmented
import train_skip_bert_augmented
import train_transformer_seq
import train_transformer_skip
from utils.core.cli import parse_config
from utils.reporting.original_figures import ORIGINAL_FIGURES, original_figure
from utils.reporting.text import format_table
from utils.training.run import flat


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


def options_of(script, *arguments):
    return flat(asdict(parse_config(script.Config, list(arguments))))


BESIDE = [
    ("standard transformer", 0.571, train_transformer_skip, []),
    ("standard transformer", 0.571, train_transformer_skip, ["--model.skip_encoding", "token"]),
    ("BERT-augmented transformer", 0.441, train_skip_bert_augmented, []),
    ("bidirectional GRU", 0.613, train_lstm_skip, ["--model.cell", "gru", "--model.bidirectional", "true"]),
    (
        "bidirectional GRU",
        0.613,
        train_lstm_skip,
        ["--model.cell", "gru", "--model.bidirectional", "true", "--table.vectors", "file"],
    ),
    ("LSTM, word2vec", 0.614, train_lstm_skip, ["--table.vectors", "file"]),
    ("LSTM, skip padding", 0.611, train_lstm_skip, ["--model.skip_encoding", "token"]),
    ("LSTM, skip padding", 0.611, train_lstm_skip, []),  # its skips are embeddings
    ("LSTM, no skip padding", 0.521, train_lstm_skip, ["--model.skip_encoding", "none"]),
    ("DDPG with noise", 0.437, train_ddpg_skip, []),  # decaying
    ("DDPG with noise", 0.437, train_ddpg_skip, ["--noise.schedule", "constant"]),
    ("DDPG", 0.430, train_ddpg_skip, ["--noise.schedule", "none"]),
    ("standard transformer", 0.178, train_transformer_seq, []),
    ("BERT encoder, fine-tuned", 0.144, train_bert_finetune_seq, []),
    ("BERT-augmented transformer", 0.157, train_seq_bert_augmented, []),
    ("LSTM, word2vec", 0.008, train_lstm_seq, ["--table.vectors", "file"]),
    ("DDPG", 0.030, train_ddpg_seq, []),
]
"""The original's name and figure, and a run that they stand beside."""


@pytest.mark.parametrize(("name", "maa", "script", "arguments"), BESIDE)
def test_an_original_figure_stands_beside_a_run_of_its_kind(name, maa, script, arguments):
    figure = original_figure(script.__name__.removeprefix("train_"), options_of(script, *arguments))
    assert (figure.name, figure.maa) == (name, maa)
    assert figure.sentence == f'The original reported {maa:.3f} for its "{name}", not comparable: {figure.reason}.'
    assert not figure.reason.endswith(".")


def test_every_original_figure_stands_beside_some_run():
    assert {(figure.name, figure.maa) for figure in ORIGINAL_FIGURES} == {(name, maa) for name, maa, *_ in BESIDE}
    assert len(ORIGINAL_FIGURES) == len({(name, maa) for name, maa, *_ in BESIDE})


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (train_transformer_skip, ["--model.skip_encoding", "none"]),
        (train_lstm_skip, ["--model.cell", "gru"]),  # in one direction
        (train_gru_seq, []),
        (train_baselines, []),
    ],
)
def test_there_is_no_original_figure_of_other_models(script, arguments):
    assert original_figure(script.__name__.removeprefix("train_"), options_of(script, *arguments)) is None


def test_original_figures_do_not_go_by_labels(add_run, tmp_path):
    options = {"model": {"cell": "gru", "bidirectional": True}}
    add_run("LSTM, word2vec", 0.5, experiment="lstm_skip", config=options)
    add_run("Transformer, skips hidden", 0.5, experiment="transformer_skip")
    add_run("Standard transformer", 0.5, config={"model": {"skip_encoding": "embedding"}})
    (table,) = tables_of(tmp_path)
    found = {row.label: row.original_figure and row.original_figure.maa for row in table.rows}
    assert found == {"LSTM, word2vec": 0.613, "Transformer, skips hidden": 0.571, "Standard transformer": None}


def test_an_original_figure_is_told_once(add_run, tmp_path):
    for i, label in enumerate(("One", "Two")):
        add_run(label, 0.5 + i / 10, experiment="transformer_skip", stamp=f"2026010{i}-000000")
    text = in_one_line(format_table(tables_of(tmp_path)[0]))
    assert text.count("The original reported") == 1
    assert text.endswith("(beside One; Two).")
