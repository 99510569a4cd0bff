"""The simulated log's columns, with the quirks of MSSD's."""

import numpy as np
import pytest

from utils.simulator import log_columns
from utils.simulator.behaviour import Behaviour
from utils.simulator.log_columns import draw_log, log_table
from utils.simulator.sessions import draw_sessions
from utils.simulator.world import build_world, random_uuids


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


@pytest.fixture(scope="module")
def lists(world):
    return world.lists(0)


@pytest.fixture(scope="module")
def sessions(world, lists):
    return draw_sessions(world, lists, Behaviour(), np.random.default_rng(0), 6000)


@pytest.fixture(scope="module")
def log(sessions):
    return draw_log(np.random.default_rng(1), sessions)


@pytest.fixture(scope="module")
def frame(world, sessions, log):
    ids = np.char.add(b"0_", np.sort(random_uuids(np.random.default_rng(2), 6000)))
    return log_table(world, np.random.default_rng(3), sessions, log, ids, 0).to_pandas()


def test_flags_are_cumulative_and_some_rows_have_none(frame):
    assert (frame["skip_2"] | ~frame["skip_1"]).all()
    assert (frame["skip_3"] | ~frame["skip_2"]).all()
    assert not (frame["skip_3"] & frame["not_skipped"]).any()
    none = ~(frame["skip_3"] | frame["not_skipped"])
    assert 0.01 < none.mean() < 0.025


def test_log_columns_follow(frame):
    end, start = frame["hist_user_behavior_reason_end"], frame["hist_user_behavior_reason_start"]
    assert frame.loc[end == "fwdbtn", "skip_3"].all()
    assert frame.loc[end == "trackdone", "not_skipped"].all()
    inner = frame["session_position"].shift(-1) == frame["session_position"] + 1
    following = start.shift(-1)[inner]
    before = end[inner]
    for reason, share in (("fwdbtn", 0.99), ("trackdone", 0.99), ("backbtn", 1.0)):
        assert (following[before == reason] == reason).mean() >= share
    assert set(following[before == "endplay"]) <= {"clickrow", "clickside", "popup", "uriopen"}
    switched = frame["context_switch"] == 1
    assert set(start[switched]) <= {"clickrow", "clickside", "popup", "uriopen"}
    assert (frame.loc[frame["session_position"] == 1, "context_switch"] == 0).all()


def test_pause_flags_are_nested_and_first_rows_often_have_none(frame):
    short, long = frame["short_pause_before_play"] == 1, frame["long_pause_before_play"] == 1
    silent = (frame["no_pause_before_play"] == 0) & ~short & ~long
    assert (short & long).sum() > 1000
    assert (short & ~long).any()
    assert (long & ~short).any()
    first = frame["session_position"] == 1
    assert 0.5 < silent[first].mean() < 0.7
    assert not silent[~first].any()


def test_sessions_change_inside(frame):
    grouped = frame.groupby("session_id")
    assert 1.09 < grouped["hist_user_behavior_is_shuffle"].nunique().mean() < 1.16
    assert 1.25 < grouped["context_type"].nunique().mean() < 1.34
    assert 1.005 < grouped["date"].nunique().mean() < 1.025
    assert grouped["track_id_clean"].nunique().lt(grouped.size()).mean() > 0.3  # the same track several times
    late = frame.loc[frame["date"] == "2018-07-16", "session_id"].unique()
    hours = frame[frame["session_id"].isin(late)].groupby("session_id")["hour_of_day"]
    assert (hours.first() >= 21).all()
    assert (hours.last() <= 3).all()


def test_garbage_dates_and_premium_changes(world, sessions, log, monkeypatch):
    monkeypatch.setattr(log_columns, "GARBAGE_DATE_SHARE", 0.02)
    monkeypatch.setattr(log_columns, "PREMIUM_CHANGE_SHARE", 0.5)
    ids = np.char.add(b"0_", np.sort(random_uuids(np.random.default_rng(2), 6000)))
    frame = log_table(world, np.random.default_rng(3), sessions, log, ids, 0).to_pandas()
    garbage = ~frame["date"].isin(["2018-07-15", "2018-07-16"])
    assert 0.018 < garbage.mean() < 0.022
    assert frame["date"].min() < "1972"
    assert frame["date"].max() > "2029"
    assert frame["date"].between("1969-12-31", "2032-05-26").all()
    assert 0.45 < (frame.groupby("session_id")["premium"].nunique() == 2).mean() < 0.55
    first = frame.groupby("session_id")["premium"].first().to_numpy()
    assert (first == sessions.premium).all()
