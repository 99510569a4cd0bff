"""Plays of a listener, when they are skipped, and how the command tells it."""

import numpy as np
import pytest
from listening_folders import us, write_listening

from utils.core.cli import cli
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.schema import LOG_COLUMNS, REASONS_START, SKIP_1, SKIP_2, SKIP_3_ONLY, SKIP_PLAYED, SKIP_UNKNOWN
from utils.reporting import listening
from utils.reporting.heard import TrackNames, listeners, local_times, plays_of
from utils.reporting.skip_rates import Rate, extremes, heat_map, hours, rates, skip_habits, weekday_of

KEPT, SKIPPED = SKIP_PLAYED, SKIP_1


@pytest.fixture
def two(tmp_path):
    """Ada listens before and after Bob; her first session is in the test split."""
    sessions = [
        ("train", "ada", "2024-01-02T10:00", [(0, KEPT), (1, SKIP_2), (2, SKIP_3_ONLY)]),
        ("train", "bob", "2024-01-03T10:00", [(1, KEPT), (1, KEPT)]),
        ("train", None, "2024-01-04T10:00", [(0, KEPT)]),
        ("valid", "ada", "2024-01-05T10:00", [(0, SKIP_UNKNOWN)]),
        ("test", "ada", "2024-01-01T10:00", [(1, SKIPPED)]),
    ]
    names = [("id0", "Song", "Band"), ("id1", None, None)]
    return Dataset.open(write_listening(tmp_path / "two", sessions, names=names, new=[("id2", "New", "Band")]))


def test_plays_of_a_listener_are_in_order_of_time(two):
    assert listeners(two) == {"ada": 5, "bob": 2, None: 1}
    plays = plays_of(two, "ada", "UTC")
    assert plays.track.tolist() == [6, 5, 6, 7, 5]
    assert plays.session.tolist() == [0, 1, 1, 1, 2]
    assert plays.position.tolist() == [0, 0, 1, 2, 0]
    assert plays.skipped.tolist() == [True, False, True, False, False]
    assert plays.known.tolist() == [True, True, True, True, False]
    assert plays.time[3] == np.datetime64("2024-01-02T10:06")
    assert plays_of(two, None, "UTC").track.tolist() == [5]


def test_names_of_known_and_new_tracks(two):
    names = TrackNames(two)
    assert [(names.name(i), names.artist(i)) for i in (5, 6, 7)] == [("Song", "Band"), ("id1", ""), ("New", "Band")]
    artist, called = names.artists()
    assert artist.tolist() == [-1] * 5 + [0, -1, 0]
    assert called == ["Band"]


def test_an_older_folder_has_one_listener_and_no_names(dataset_folder):
    dataset = Dataset.open(dataset_folder)
    n = sum(len(dataset.split(split).tracks) for split in ("train", "valid", "test"))
    assert listeners(dataset) == {None: n}
    plays = plays_of(dataset, None, "UTC")
    assert len(plays.track) == n
    assert plays.time is None
    names = TrackNames(dataset)
    assert (names.name(5), names.artist(5), names.artists()[0].max()) == ("t_0", "", -1)
    habits = skip_habits(plays)
    assert habits.heat_map is None
    assert habits.months == []
    assert [rate.label for rate in habits.shuffle] == ["in order", "shuffled"]
    assert sum(rate.plays for rate in habits.shuffle) < n == habits.overall.plays


def test_local_times_know_summer():
    times = np.array([us("2024-03-31T00:30"), us("2024-03-31T01:30"), us("2024-12-31T23:30")])
    expected = np.array(["2024-03-31T01:30", "2024-03-31T03:30", "2025-01-01T00:30"], "datetime64[us]")
    assert (local_times(times, "Europe/Berlin") == expected).all()
    with pytest.raises(UserError, match="--time_zone Mars/Base is no time zone"):
        local_times(times, "Mars/Base")


def test_hours_and_weekdays():
    time = np.array(["1969-12-29T23:59", "2024-02-29T00:00", "2024-03-03T12:30"], "datetime64[us]")
    assert hours(time).tolist() == [23, 0, 12]
    assert weekday_of(time).tolist() == [0, 3, 6]  # Monday, Thursday, Sunday


def test_rates_by_hand(two):
    plays = plays_of(two, "ada", "UTC")
    whole = rates(plays, np.zeros(5, int), ["all"], fewest=1)
    assert [(rate.label, rate.plays, rate.rate) for rate in whole] == [("all", 4, 0.5)]
    parts = rates(plays, np.array([1, 0, 0, -1, 1]), ["a", "b", "c"], fewest=1)
    assert [(rate.label, rate.plays, rate.rate) for rate in parts] == [("a", 2, 0.5), ("b", 1, 1.0)]
    assert rates(plays, np.zeros(5, int), ["all"], fewest=5) == []


def test_an_interval_is_over_sessions(tmp_path):
    """Whole sessions are skipped or kept: a hundred sessions of ten plays are worth a hundred plays, not a thousand."""
    sessions = [
        ("train", "ada", f"2024-01-{1 + i // 10:02d}T{i % 10:02d}:00", [(0, SKIPPED if i % 2 else KEPT)] * 10)
        for i in range(100)
    ]
    sessions += [(split, "bob", "2024-01-01T00:00", [(0, KEPT)]) for split in ("valid", "test")]
    dataset = Dataset.open(write_listening(tmp_path / "mine", sessions, names=[("a", "A", "B")]))
    rate = skip_habits(plays_of(dataset, "ada", "UTC")).overall
    assert (rate.plays, rate.rate) == (1000, 0.5)
    assert rate.high - rate.low == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.1)


def test_parts_that_differ_from_the_rest():
    overall = Rate("all", 100, 0.5, 0.4, 0.6)
    parts = [Rate("a", 9, 0.8, 0.6, 0.9), Rate("b", 9, 0.9, 0.51, 1), Rate("c", 9, 0.6, 0.5, 0.7)]
    parts.append(Rate("d", 9, 0.1, 0.0, 0.4))
    assert extremes(parts, overall) == ([parts[1], parts[0]], [parts[3]])


def test_heat_map_by_hand(two):
    plays = plays_of(two, "ada", "UTC")
    cells = heat_map(plays, np.array([0, 0, 0, 6, 6]), np.array([23, 23, 1, 0, 0]))
    assert (cells.plays[0, 23], cells.skipped[0, 23], cells.plays[6, 0], cells.plays.sum()) == (2, 1, 1, 4)
    assert np.isnan(cells.rate).all(), "five plays are wanted in a cell"
    assert cells._replace(plays=cells.plays * 5, skipped=cells.skipped * 5).rate[0, 23] == 0.5


@pytest.fixture
def risen(tmp_path):
    """A year of one listener; a track with an awkward name is skipped in its second half, always in the evening."""
    start = np.datetime64("2023-01-01T19:00", "us")
    reason = {
        "hist_user_behavior_reason_start": 1 + REASONS_START.index("fwdbtn"),
        "hist_user_behavior_is_shuffle": 2,
    }
    rng = np.random.default_rng(0)
    sessions = []
    for day in range(0, 364, 2):
        others = [(int(i), SKIPPED if rng.random() < 0.3 else KEPT) for i in rng.choice(np.arange(1, 30), 3)]
        split = "train" if day < 300 else "valid" if day < 330 else "test"
        plays = [(0, SKIPPED if day >= 182 else KEPT, reason), *others]
        sessions.append((split, "<i>ada</i>", start + np.timedelta64(day, "D"), plays))
    sessions.append(("train", "bob", start, [(1, KEPT)]))
    names = [("t0", "<script>[b]&x", "A <b>band")]
    names += [(f"t{i}", f"Song {i}", f"Band {i % 5}") for i in range(1, 30)]
    return write_listening(tmp_path / "year", sessions, names=names)


def test_command_tells_what_is_skipped_and_when(risen, tmp_path, capsys):
    page = tmp_path / "out" / "listening.html"
    listening.main(listening.Config(risen, html=page, time_zone="Europe/Berlin", listeners=1))
    out = capsys.readouterr().out
    assert "<i>ada</i>: 728 plays in 182 sessions, 1 Jan 2023 to 29 Dec 2023 (year, times in Europe/Berlin)" in out
    first = out.index("Tracks now skipped, and not before")
    row = out[first : out.index("Artists now skipped")]
    assert "<script>[b]&x" in row, "markup of the terminal is not interpreted"
    assert "0 of 91" in row
    assert "91 of 91" in row
    assert "100 %" in row
    assert "30 Jun 2023" in row, "the last time that it was not skipped"
    assert "evening, 91 of 91" in row
    assert "Chance alone may explain about 0.0 of 1 row." in " ".join(row.split())
    assert max(map(len, out.splitlines()[:-1])) <= 100

    html = page.read_text()
    assert "<script" not in html
    assert "A &lt;b&gt;band" in html
    assert "<b>band" not in html
    assert "<i>ada" not in html
    assert "&lt;script&gt;[b]&amp;x" in html
    assert "&lt;i&gt;ada&lt;/i&gt;" in html
    assert "<td>0 of 91</td><td>91 of 91</td>" in html
    assert html.count("<svg") >= 2
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "skipped forward" in html
    assert 'title="' in html[html.index('class="heat"') :]


def test_listeners_are_chosen(two, capsys):
    listening.main(listening.Config(two.folder, listeners=1))
    out = capsys.readouterr().out
    assert "ada: 5 plays" in out
    assert "bob" not in out
    assert "2 listeners with fewer plays are left out" in out
    listening.main(listening.Config(two.folder, listener="bob"))
    assert "bob: 2 plays in 1 sessions" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no listener 'eve'; it has 3: ada, bob"):
        listening.main(listening.Config(two.folder, listener="eve"))


def test_a_history_without_skips_is_told_so(two, capsys):
    path = two.folder / "dataset.json"
    path.write_text(path.read_text().replace('"has_skips": true', '"has_skips": false'))
    listening.main(listening.Config(two.folder))
    assert "has no skips" in capsys.readouterr().out


def test_options_that_make_no_sense_are_named(two, capsys):
    with pytest.raises(SystemExit) as caught:
        cli(listening.main, listening.Config, description="", args=["--data", str(two.folder), "--min_sessions", "0"])
    assert caught.value.code == 2
    assert "--min_sessions is 0" in capsys.readouterr().err


def test_the_log_is_found_by_name(two):
    plays = plays_of(two, "ada", "UTC")
    log = np.arange(5 * len(LOG_COLUMNS)).reshape(5, -1).astype(np.uint8)
    place = list(LOG_COLUMNS).index("hour_of_day")
    assert (plays._replace(log=log).log_codes("hour_of_day") == log[:, place]).all()
