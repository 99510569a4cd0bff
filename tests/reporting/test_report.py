"""Leaderboards and the report page, from run folders with known scores."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import report
from utils.core.cli import cli
from utils.core.errors import UserError
from utils.reporting.charts import interval_strip, row_styles
from utils.reporting.comparisons import seed_error
from utils.reporting.leaderboard import build_tables, run_records
from utils.reporting.learning_curves import mean_of_curve, read_history, series
from utils.reporting.original_figures import ORIGINAL_FIGURES, original_figure
from utils.reporting.runs import load_runs, stamp_order
from utils.reporting.text import align, format_count, format_memory, format_metric, format_seconds, format_table

DATASET = {"name": "tiny", "hash": "abcdef0123", "protocol": "temporal", "folder": "data/tiny"}


def split_scores(maa, **metrics):
    """A split's scores with intervals of +- 0.01."""
    values = {"maa": maa, **metrics}
    return {
        "n_sessions": 4,
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


@pytest.fixture
def add_run(tmp_path):
    """A function that writes one run folder under tmp_path and returns it."""

    def add(
        label, maa, *, experiment=None, kind="model", task="skip", stamp="20260101-000000", seed=1, scores=None, **extra
    ):
        folder = tmp_path / (experiment or label.lower().replace(" ", "_")) / stamp
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

    return add


@pytest.fixture
def ladder(add_run):
    """Two baselines, two models and the oracle, written in no particular order."""
    add_run("Oracle", 0.7, kind="oracle")
    add_run("Good <b>model</b>", 0.6, experiment="transformer_skip")
    add_run("Repeat last", 0.5, kind="baseline")
    add_run("Bad model", 0.45, experiment="ddpg_skip")
    add_run("Majority", 0.4, kind="baseline")


def tables_of(folder):
    return build_tables(load_runs(folder)[0])


def test_rows_go_from_the_floor_to_the_ceiling(ladder, tmp_path):
    (table,) = tables_of(tmp_path)
    assert [row.label for row in table.rows] == ["Majority", "Repeat last", "Bad model", "Good <b>model</b>", "Oracle"]
    assert [row.gap_closed for row in table.rows] == pytest.approx([-0.5, 0.0, -0.25, 0.5, 1.0])
    assert (table.split, table.metric) == ("test", "maa")


def test_no_gap_without_oracle(add_run, tmp_path):
    add_run("Repeat last", 0.5, kind="baseline")
    add_run("Model", 0.6)
    (table,) = tables_of(tmp_path)
    assert [row.gap_closed for row in table.rows] == [None, None]
    assert "gap closed" not in format_table(table)


def test_seeds_of_one_configuration_share_a_row(add_run, tmp_path):
    add_run("Model", 0.1, stamp="20260101-000000", seed=1)  # superseded by the same seed
    add_run(
        "Model", 0.2, stamp="20260101-000001", seed=3, config={"width": 4, "run": {"seed": 3}}
    )  # another configuration
    add_run("Model", 0.5, stamp="20260101-000002", seed=2)
    add_run("Model", 0.6, stamp="20260101-000003", seed=1)
    runs, _ = load_runs(tmp_path)
    (table,) = build_tables(runs)
    (row,) = table.rows
    assert [run.result["seed"] for run in row.runs] == [1, 2]
    assert row.metrics["maa"] == pytest.approx((0.55, 0.54, 0.56))
    assert row.spread["maa"] == pytest.approx(0.1 / math.sqrt(2))
    assert "2 (sd 0.071)" in format_table(table)
    shown = {record["folder"][-6:]: record["shown"] for record in run_records(runs, [table])}
    assert shown == {"000000": False, "000001": False, "000002": True, "000003": True}


def test_tables_by_dataset_task_and_prefixes(add_run, tmp_path):
    prefixes = {"test": split_scores(0.1), "test_prefixes": split_scores(0.3, **{"mrr@20": 0.2, "hr@20": 0.4})}
    add_run("A", 0.1, task="seq", scores=prefixes, experiment="transformer_seq")
    add_run("B", 0.2, task="skip")
    add_run("C", 0.2, task="skip", dataset=DATASET | {"hash": "other"})
    tables = tables_of(tmp_path)
    assert [(t.task, t.split, t.metric) for t in tables] == [
        ("skip", "test", "maa"),
        ("seq", "test", "maa"),
        ("seq", "test_prefixes", "mrr@20"),
        ("skip", "test", "maa"),
    ]
    assert "reported by seed" in format_table(tables[1])
    assert "after every prefix" in format_table(tables[2])
    assert "reported by seed" not in format_table(tables[2])


def test_valid_is_shown_where_test_was_not_scored(add_run, tmp_path):
    add_run("A", 0.3, scores={"valid": split_scores(0.3)})
    (table,) = tables_of(tmp_path)
    assert table.split == "valid"
    assert "valid sessions" in format_table(table)


def test_what_cannot_be_read_is_named(add_run, tmp_path):
    good = add_run("Good", 0.5)
    (tmp_path / "a" / "unfinished").mkdir(parents=True)
    broken, lacking, odd = (add_run(name, 0.5) / "result.json" for name in ("broken", "lacking", "odd"))
    broken.write_text('{"label":\n 1,,}')
    lacking.write_text(json.dumps({"label": "x", "dataset": {"name": "y"}}))
    odd.write_text(json.dumps(json.loads((good / "result.json").read_text()) | {"kind": "prophet"}))
    runs, notes = load_runs(tmp_path)
    assert [run.result["label"] for run in runs] == ["Good"]
    text = "\n".join(notes)
    assert len(notes) == 4
    assert "unfinished is not finished" in text
    assert f"{broken}, line 2: not valid JSON" in text
    assert f"{lacking} lacks experiment, task, kind, seed, scores, dataset.hash, dataset.protocol" in text
    assert f"{odd} kind is 'prophet', not one of baseline, model, oracle" in text


def test_no_runs_is_an_error_with_a_cure(tmp_path, capsys):
    with pytest.raises(UserError, match="make demo"):
        load_runs(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli(report.main, report.Config, description="", args=["--runs", str(tmp_path / "none")])
    assert caught.value.code == 2
    assert "none is not a folder" in capsys.readouterr().err


def test_stamps_sort_by_time():
    names = ["20260102-000000", "20260101-000000-10", "20260101-000000-2", "20260101-000000"]
    assert sorted(map(Path, names), key=stamp_order) == [Path(name) for name in reversed(names)]


def keep_predictions(folder, average_accuracy, session=None):
    """Write what a comparison needs; sessions may give several examples, in any order. NaN: no target is known."""
    session = np.arange(len(average_accuracy)) if session is None else session
    values = np.asarray(average_accuracy, float)
    sums = np.stack([np.nan_to_num(values), ~np.isnan(values)], axis=1)
    np.savez(folder / "predictions_test.npz", sums_maa=sums, session=session)


def test_paired_comparison_is_session_by_session(add_run, tmp_path):
    scores = np.linspace(0.1, 0.8, 50)
    keep_predictions(add_run("Repeat last", 0.5, kind="baseline"), scores)
    keep_predictions(add_run("Weak", 0.55), scores + 0.05)
    keep_predictions(add_run("Best", 0.6), scores + 0.1)
    (table,) = tables_of(tmp_path)
    pairs = [(c.better, c.worse) for c in table.comparisons]
    assert pairs == [("Best", "Weak"), ("Best", "Repeat last")]
    # The same difference in every session leaves nothing to chance, although the scores themselves spread widely.
    assert table.comparisons[0].difference == pytest.approx((0.05, 0.05, 0.05))
    assert table.comparisons[1].difference == pytest.approx((0.1, 0.1, 0.1))
    assert (
        "Best is better than Repeat last by 0.100 [0.100, 0.100] MAA (50 sessions, paired; one seed)."
        in format_table(table)
    )


def test_all_seeds_are_compared(add_run, tmp_path):
    """The same difference in every session: what chance there is, is that of the seeds."""
    scores = np.linspace(0.1, 0.8, 50)
    for seed, more in [(1, 0.1), (2, 0.2), (3, 0.06)]:
        keep_predictions(add_run("Best", 0.6, seed=seed, stamp=f"2026010{seed}-000000"), scores + more)
        keep_predictions(add_run("Weak", 0.55, seed=seed, stamp=f"2026010{seed}-000000"), scores)
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    half = 4.302653 * np.std([0.1, 0.2, 0.06], ddof=1) / math.sqrt(3)  # Student's t with two degrees of freedom
    assert comparison.difference == pytest.approx((0.12, 0.12 - half, 0.12 + half))
    assert "Best and Weak cannot be told apart: 0.120 [-0.059, 0.299] MAA (50 sessions, paired; 3 seeds)." in (
        format_table(table)
    )
    for seed in (4, 5, 6, 7):
        keep_predictions(add_run("Best", 0.6, seed=seed, stamp=f"2026010{seed}-000000"), scores + 0.12)
    assert "Best is better than Weak by 0.120" in format_table(tables_of(tmp_path)[0])


def test_a_comparison_tells_of_the_whole_of_training(add_run, tmp_path):
    """The mean of all validations, of each seed: the runner-up at the end was better on the way."""
    scores = np.linspace(0.1, 0.8, 50)
    curves = {"Best": [[0.1, 0.6], [0.2, 0.7]], "Weak": [[0.4, 0.5], [0.4, 0.7]]}
    for (label, seeds), more in zip(curves.items(), (0.1, 0.0), strict=True):
        for seed, values in enumerate(seeds, start=1):
            run = add_run(label, 0.5 + more, seed=seed, stamp=f"2026010{seed}-000000")
            keep_predictions(run, scores + more)
            lines = [{"step": step, "split": "valid", "maa": value} for step, value in enumerate(values)]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (table,) = tables_of(tmp_path)
    assert table.comparisons[0].curves == (pytest.approx(0.4), pytest.approx(0.5))
    assert "2 seeds). Mean of all validations in training: 0.400 and 0.500." in format_table(table)
    (run / "metrics.jsonl").write_text('{"step": 1, "split": "valid", "maa": 0.4}\n')  # the last of Weak: no curve
    assert "validations" not in format_table(tables_of(tmp_path)[0])


def test_seeds_that_started_from_runs_of_their_own_are_one_row(add_run, tmp_path):
    for seed, start in [(1, "long-1"), (2, "long-2"), (3, "short-3"), (4, "20260101-000004")]:
        config = {"pretrained": f"runs/bert/{start}", "run": {"seed": seed}}
        add_run("BERT", 0.5 + seed / 100, seed=seed, stamp=f"2026010{6 - seed}-000000", config=config)
    (table,) = tables_of(tmp_path)
    (row,) = table.rows
    assert [run.result["seed"] for run in row.runs] == [1, 2], "not of a shorter pre-training, nor of a stamp"


def test_error_of_seeds():
    assert seed_error({1: 0.5}, {1: 0.4}) == seed_error({2: 0.5}, {1: 0.4}) == 0
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4, 2: 0.6}) == pytest.approx(0), "they rise and fall together"
    alone = 12.706205 * math.sqrt(0.02 / 2)  # variance 0.02, one degree of freedom
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4}) == pytest.approx(alone)
    assert seed_error({1: 0.5, 2: 0.7}, {1: 0.4, 3: 0.6}) == pytest.approx(alone * math.sqrt(2))


def test_a_comparison_is_a_ratio_of_sums_in_the_metric_of_the_table(add_run, tmp_path):
    """Sessions with more prefixes count more, and the table of all prefixes goes by MRR@20."""
    for label, right in [("Best", [1.0, 3.0]), ("Weak", [0.5, 0.0])]:
        folder = add_run(label, 0.6)
        path = folder / "result.json"
        result = json.loads(path.read_text())
        metric = {"mean": sum(right) / 4, "low": None, "high": None}
        result |= {"task": "seq", "scores": {"test": result["scores"]["test"]}}
        result["scores"]["test_prefixes"] = {"n_sessions": 2, "metrics": {"mrr@20": metric}}
        path.write_text(json.dumps(result))
        sums = np.array([[right[0], 1], [right[1], 3]])
        session = np.array([4, 8, 8, 8])
        np.savez(folder / "predictions_test_prefixes.npz", **{"sums_mrr@20": sums, "session": session})
    (comparison,) = tables_of(tmp_path)[1].comparisons
    assert comparison.metric == "mrr@20"
    assert comparison.difference.mean == pytest.approx(3.5 / 4)
    assert "MRR@20 (2 sessions, paired; one seed)" in format_table(tables_of(tmp_path)[1])


def test_any_two_rows_can_be_compared(ladder, add_run, tmp_path, capsys):
    for label, more in [("A", 0.0), ("B", 0.03), ("C", 0.05)]:
        keep_predictions(add_run(label, 0.7 + more), np.linspace(0.1, 0.8, 50) + more)
    report.main(report.Config(tmp_path, compare=[("B", "A"), ("A", "nobody"), ("B", "C"), ("B", "A")], html=False))
    out = capsys.readouterr().out
    assert out.count("B is better than A by 0.030") == 1
    assert out.count("C is better than B by 0.020") == 1, "the two best are compared anyway"
    assert "note: no table has predictions of both 'A' and 'nobody': not compared" in out


def test_a_difference_that_may_be_chance_is_called_so(add_run, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.2, 200)
    keep_predictions(add_run("Majority", 0.5, kind="baseline"), np.full(200, 0.5))
    keep_predictions(add_run("Model", 0.49), 0.5 + noise - noise.mean() - 0.01)
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    assert (comparison.better, comparison.worse) == ("Majority", "Model")
    assert comparison.difference.mean == pytest.approx(0.01)
    assert comparison.difference.low < 0 < comparison.difference.high
    assert "Majority and Model cannot be told apart" in format_table(table)


def test_comparison_takes_the_sessions_that_both_have(add_run, tmp_path):
    keep_predictions(add_run("Majority", 0.5, kind="baseline"), [0.0, 0.4, 0.5], session=np.array([5, 7, 9, 9]))
    keep_predictions(add_run("Model", 0.6), [0.9, np.nan, 0.7], session=np.array([9, 5, 3]))  # of sessions 3, 5, 9
    (table,) = tables_of(tmp_path)
    (comparison,) = table.comparisons
    assert comparison.n_sessions == 1  # 9 alone: 5 has no score, 3 and 7 are in one run only
    assert comparison.difference.mean == pytest.approx(0.7 - 0.5)


def test_terminal_table_is_aligned_and_explains_the_seed(ladder, tmp_path):
    lines = format_table(tables_of(tmp_path)[0]).splitlines()
    assert lines[0] == "Which tracks will be skipped?  tiny, temporal protocol, test sessions"
    table = lines[1:10]  # header, three rules, five rows
    assert len({len(line) for line in table}) == 1
    assert [line.split("  ")[0] for line in table if line[0] not in " -"] == [
        "Majority",
        "Repeat last",
        "Bad model",
        "Good <b>model</b>",
        "Oracle",
    ]
    assert "0.600 [0.590, 0.610]" in table[6]
    assert table[6].endswith("0.571 (b)")
    assert lines[-1].startswith('  b reported by the seed for its "standard transformer", not comparable: ')


def test_align():
    assert align([["", "x"], [], ["ab", "1.5"]]) == "      x\n-------\nab  1.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_count(None), "-"),
        (format_count(999), "999"),
        (format_count(12_345), "12 k"),
        (format_count(999_600), "1 M"),
        (format_count(1_234_567), "1.23 M"),
        (format_seconds(0.123), "0.1 s"),
        (format_seconds(9.96), "10 s"),
        (format_seconds(150), "2 min"),
        (format_seconds(7200), "2.0 h"),
        (format_memory(512), "512 MiB"),
        (format_memory(1536), "1.5 GiB"),
        (format_metric(None), "-"),
    ],
)
def test_formats(text, expected):
    assert text == expected


def test_metric_without_value_is_a_dash(add_run, tmp_path):
    add_run("A", 0.5, scores={"test": split_scores(0.5, first_accuracy=None, accuracy=0.5)})
    add_run("B", 0.4, scores={"test": split_scores(0.4, first_accuracy=0.3)})
    (table,) = tables_of(tmp_path)
    assert "first_accuracy" not in table.rows[1].metrics
    assert "  -  " in format_table(table)


def test_original_figures_stand_beside_the_right_runs():
    assert original_figure("transformer_skip", "Transformer, skip embeddings").maa == 0.571
    assert original_figure("transformer_skip", "Transformer, skips hidden") is None
    assert original_figure("transformer_skip", "Transformer, skips: none") is None
    assert original_figure("lstm_skip", "bi-GRU, word2vec").maa == 0.613
    assert original_figure("lstm_skip", "GRU, both directions").maa == 0.613
    assert original_figure("lstm_skip", "GRU") is None
    assert original_figure("lstm_skip", "LSTM, word2vec").maa == 0.614
    assert original_figure("lstm_skip", "LSTM, skip tokens, log hidden").maa == 0.611
    assert original_figure("lstm_skip", "LSTM, skips and log hidden").maa == 0.521
    assert original_figure("lstm_skip", "LSTM, log hidden") is None  # its skips are embeddings
    assert original_figure("ddpg_skip", "DDPG, decaying noise").maa == 0.437
    assert original_figure("ddpg_skip", "DDPG, no noise").maa == 0.430
    assert original_figure("markov", "Markov") is None
    assert all(0 < figure.maa < 1 and figure.reason and not figure.reason.endswith(".") for figure in ORIGINAL_FIGURES)


def test_interval_strip_places_dots_on_one_scale(ladder, tmp_path):
    (table,) = tables_of(tmp_path)
    strip = interval_strip(table, row_styles(table))
    # Ends of all intervals: 0.39 and 0.71; 6 % of their distance is left free at both sides.
    low, width = 0.39 - 0.06 * 0.32, 1.12 * 0.32
    dot = strip["dots"][3]
    assert dot["x"] == pytest.approx(100 * (0.6 - low) / width, abs=0.01)
    assert dot["left"] + dot["width"] / 2 == pytest.approx(dot["x"], abs=0.02)
    assert strip["guides"] == [strip["dots"][1]["x"], strip["dots"][4]["x"]]
    assert [text for _, text in strip["ticks"]] == ["0.4", "0.5", "0.6", "0.7"]


def test_recorded_values_become_curves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "epoch": 1, "split": "train", "loss": 0.7},
        {"step": 10, "epoch": 1, "split": "valid", "log_loss": 0.6, "maa": None},
        {"step": 20, "epoch": 2, "split": "valid", "perplexity": math.e**2, "maa": 0.5},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    history = read_history(path)
    assert series(history, "train", "loss") == [(10, 0.7)]
    assert series(history, "valid", "loss") == [(10, 0.6), (20, pytest.approx(2.0))]
    assert series(history, "valid", "maa") == [(20, 0.5)]
    assert mean_of_curve(path, "loss") == pytest.approx(1.3)
    assert mean_of_curve(path, "maa") is None, "one value is no curve"
    path.write_text('{"step": 1}\n{"step": 2, ')
    with pytest.raises(UserError, match="line 2"):
        read_history(path)


class Page(HTMLParser):
    """Counts tags, collects addresses and text, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "br", "hr", "link", "img", "path", "use", "rect", "line"})

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.addresses, self.text, self.ids = [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_command_writes_page_and_json(ladder, add_run, tmp_path, capsys):
    trained = add_run("Curved", 0.55, experiment="transformer_skip", stamp="20260101-000009")
    lines = [{"step": s, "epoch": 1, "split": "valid", "log_loss": 0.6, "maa": 0.5} for s in (10, 20, 30)]
    (trained / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "broken" / "run").mkdir(parents=True)
    report.main(report.Config(runs=tmp_path))
    out = capsys.readouterr().out
    assert "Which tracks will be skipped?" in out
    assert "run is not finished (no result.json); left out" in out

    records = json.loads((tmp_path / "leaderboard.json").read_text())
    assert len(records) == 6
    record = next(record for record in records if record["label"] == "Bad model")
    folder = str(tmp_path / "ddpg_skip" / "20260101-000000")
    assert record == {
        "folder": folder,
        "experiment": "ddpg_skip",
        "label": "Bad model",
        "kind": "model",
        "task": "skip",
        "dataset": "tiny",
        "dataset_hash": "abcdef0123",
        "protocol": "temporal",
        "split": "test",
        "n_sessions": 4,
        "metrics": {"maa": {"mean": 0.45, "low": 0.44, "high": 0.46}},
        "seconds": 12.0,
        "peak_memory_mib": 300,
        "n_parameters": 1_234_567,
        "seed": 1,
        "git_commit": "0123456789ab",
        "shown": True,
    }

    html = (tmp_path / "report.html").read_text()
    page = Page(html)
    assert all(address.startswith("#") for address in page.addresses)  # no network
    assert {address[1:] for address in page.addresses} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "url(http" not in html
    assert "@import" not in html
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "Good <b>model</b>" in "".join(page.text)  # escaped: it arrives as text
    text = " ".join(" ".join(page.text).split())
    assert "Session length sessions 10 3 20 1" in text
    assert "Training plays of the track: accuracy plays 0 5" in text
    assert "#0400" not in html  # every placeholder colour became a variable
    assert "#010101" not in html
    assert "prefers-color-scheme: dark" in html
    # Two charts of answers and two learning curves, beside the swatches of table and legend.
    assert page.tags.count("svg") == 2 + 2 + 2 * 6


def test_page_can_be_left_out(ladder, tmp_path):
    report.main(report.Config(runs=tmp_path, html=False))
    assert not (tmp_path / "report.html").exists()
    assert (tmp_path / "leaderboard.json").exists()
