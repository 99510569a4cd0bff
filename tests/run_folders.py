"""Run folders with known scores, for tests of what is reported about them."""

import json

import numpy as np

from utils.reporting.leaderboard import build_tables
from utils.reporting.runs import load_runs

DATASET = {"name": "tiny", "hash": "abcdef0123", "protocol": "temporal", "folder": "data/tiny"}


def split_scores(maa, *, n_sessions=4000, **metrics):
    """A split's scores with intervals of +- 0.01."""
    values = {"maa": maa, **metrics}
    return {
        "n_sessions": n_sessions,
        "metrics": {
            name: {
                "mean": value,
                "low": None if value is None else value - 0.01,
                "high": None if value is None else value + 0.01,
            }
            for name, value in values.items()
        },
        "by_position": {"accuracy": [maa, None, maa / 2]},
        "histogram": [0.1, 0.2, 0.3, 0.4],
        "slices": {"length": {"10": {"n": 3, "maa": maa}, "20": {"n": 1, "maa": maa / 2}}},
        "by_plays": {"0": {"n": 5, "mean": maa / 4, "low": None, "high": None}},
    }


def write_run(
    root,
    label,
    maa,
    *,
    experiment=None,
    kind="model",
    task="skip",
    stamp="20260101-000000",
    seed=1,
    scores=None,
    **extra,
):
    """Write one run folder under `root`; returns it."""
    folder = root / (experiment or label.lower().replace(" ", "_")) / stamp
    folder.mkdir(parents=True)
    result = {
        "experiment": folder.parent.name,
        "label": label,
        "task": task,
        "kind": kind,
        "dataset": DATASET,
        "seed": seed,
        "config": {"width": 8, "run": {"seed": seed, "folder": str(folder)}},
        "git_commit": "0123456789ab",
        "device": "cpu",
        "n_parameters": 1_234_567,
        "seconds": 12.0,
        "peak_memory_mib": 300,
        "best_step": 20,
        "scores": scores or {"valid": split_scores(0.99), "test": split_scores(maa)},
        **extra,
    }
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_ladder(add_run):
    """Two baselines, two models and the oracle, written in no particular order."""
    add_run("Oracle", 0.7, kind="oracle")
    add_run("Good <b>model</b>", 0.6, experiment="transformer_skip")
    add_run("Repeat last", 0.5, experiment="repeat_last_action", kind="baseline")
    add_run("Bad model", 0.45, experiment="ddpg_skip")
    add_run("Majority", 0.4, kind="baseline")


def in_one_line(text):
    """Without the line breaks that depend on the width of a table."""
    return " ".join(text.split())


def tables_of(folder):
    return build_tables(load_runs(folder)[0])


def keep_predictions(folder, average_accuracy, session=None):
    """Write what a comparison needs; sessions may give several examples, in any order. NaN: no target is known."""
    session = np.arange(len(average_accuracy)) if session is None else session
    values = np.asarray(average_accuracy, float)
    sums = np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1)
    np.savez(folder / "predictions_test.npz", sums_maa=sums, session=session)
