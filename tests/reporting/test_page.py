"""The report page: its charts, and what stands in it."""

import json
import math
from functools import partial
from html.parser import HTMLParser

import pytest
from run_folders import split_scores, tables_of, write_ladder, write_run

import report
from utils.core.errors import UserError
from utils.reporting.charts import interval_strip, row_styles
from utils.reporting.learning_curves import mean_of_curve, read_history, series


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def ladder(add_run):
    write_ladder(add_run)


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
        "past": "none",
        "split": "test",
        "n_sessions": 4000,
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
    assert '<th scope="col">the<br>original</th>' in html
    assert "0.571 (" in text
    assert 'The original reported 0.430 for its "DDPG", not comparable' in text
    assert "Session length sessions 10 3 20 1" in text
    assert "Training plays of the track: accuracy plays 0 5" in text
    assert "#0400" not in html  # every placeholder colour became a variable
    assert "#010101" not in html
    assert "prefers-color-scheme: dark" in html
    # Two charts of answers and two learning curves, beside the swatches of table and legend.
    assert page.tags.count("svg") == 2 + 2 + 2 * 6


def test_listeners_are_a_slice_with_their_own_names(add_run, tmp_path):
    scores = split_scores(0.5)
    scores["slices"] = {"listener": {"ada_l": {"n": 30, "maa": 0.6}, "<i>bob": {"n": 10, "maa": 0.2}}}
    add_run("A", 0.5, scores={"test": scores})
    report.main(report.Config(runs=tmp_path))
    text = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).text).split())
    assert "Listener sessions <i>bob 10 ada_l 30 A 0.200 0.600" in text


def test_tracks_outside_the_vocabulary_are_called_new(add_run, tmp_path):
    scores = split_scores(0.5)
    scores["by_plays"]["unknown"] = {"n": 7, "mean": 0.25, "low": None, "high": None}
    add_run("A", 0.5, scores={"test": scores})
    report.main(report.Config(runs=tmp_path))
    text = " ".join(" ".join(Page((tmp_path / "report.html").read_text()).text).split())
    assert "Training plays of the track: accuracy plays 0 5 new tracks 7 A 0.125 0.250" in text


def test_page_can_be_left_out(ladder, tmp_path):
    report.main(report.Config(runs=tmp_path, html=False))
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob("*.png"))
    assert (tmp_path / "leaderboard.json").exists()
