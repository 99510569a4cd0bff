"""The picture of the skip task: what is drawn, and when there is none."""

import math
from functools import partial

import pytest
from matplotlib.figure import Figure
from run_folders import tables_of, write_ladder, write_run

import report
from utils.reporting.picture import plot_accuracy_by_position


@pytest.fixture
def add_run(tmp_path):
    return partial(write_run, tmp_path)


@pytest.fixture
def ladder(add_run):
    write_ladder(add_run)


def drawn_on(monkeypatch):
    """Label -> y of the lines that a picture is saved with."""
    lines = {}
    savefig = Figure.savefig

    def recorded(figure, *arguments, **options):
        if options["format"] == "png":  # the page's charts are SVG
            (axes,) = figure.axes
            labels = [text.get_text() for text in axes.texts]
            lines.update(zip(labels, [line.get_ydata().tolist() for line in axes.lines], strict=True))
        return savefig(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    return lines


def test_the_picture_shows_repeat_last_the_best_model_and_the_optimum(ladder, tmp_path, monkeypatch, capsys):
    lines = drawn_on(monkeypatch)
    report.main(report.Config(runs=tmp_path))
    picture = tmp_path / "accuracy_by_position.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"wrote {picture}" in capsys.readouterr().out
    assert lines == {
        label: [maa, pytest.approx(math.nan, nan_ok=True), maa / 2]
        for label, maa in (("Repeat last", 0.5), ("Good <b>model</b>", 0.6), ("Oracle", 0.7))
    }
    before = picture.read_bytes()
    report.main(report.Config(runs=tmp_path))
    assert picture.read_bytes() == before, "the same runs make the same picture"


def test_the_picture_shows_what_there_is(add_run, tmp_path, monkeypatch):
    lines = drawn_on(monkeypatch)
    add_run("Majority", 0.6, kind="baseline")
    add_run("Model", 0.5)
    report.main(report.Config(runs=tmp_path))
    assert list(lines) == ["Model"]


def test_labels_of_the_axis_are_exact(add_run, tmp_path, monkeypatch):
    labels = {}
    savefig = Figure.savefig

    def recorded(figure, *arguments, **options):
        savefig(figure, *arguments, **options)
        if options["format"] == "png":
            axis = figure.axes[0].yaxis
            labels.update(zip(axis.get_ticklocs(), (text.get_text() for text in axis.get_ticklabels()), strict=True))

    monkeypatch.setattr(Figure, "savefig", recorded)
    add_run("Model", 0.4)  # ticks every 2.5 %
    report.main(report.Config(runs=tmp_path))
    assert len(labels) > 3
    for place, label in labels.items():
        assert float(label.removesuffix(" %")) == pytest.approx(100 * place)


def test_without_a_skip_table_there_is_no_picture(add_run, tmp_path, monkeypatch, capsys):
    lines = drawn_on(monkeypatch)
    add_run("Model", 0.5, task="seq")
    report.main(report.Config(runs=tmp_path))
    assert lines == {}
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "accuracy_by_position.png").exists()
    assert ".png" not in capsys.readouterr().out


def test_without_anything_to_draw_there_is_no_picture(add_run, tmp_path, monkeypatch):
    lines = drawn_on(monkeypatch)
    add_run("Majority", 0.6, kind="baseline")
    (table,) = tables_of(tmp_path)
    assert not plot_accuracy_by_position(tmp_path / "p.png", table)
    assert lines == {}
    assert not (tmp_path / "p.png").exists()
