"""Which tracks are now skipped: posteriors by hand, and histories in which something does or does not change."""

import numpy as np
import pytest
from listening_folders import write_listening

from utils.data.dataset import Dataset
from utils.data.schema import SKIP_1, SKIP_PLAYED, SKIP_UNKNOWN
from utils.reporting.changed_habits import (
    Counts,
    count,
    habits_changed,
    mostly,
    others_rate,
    posterior,
    probability_of_change,
    split_time,
    track_prior,
)
from utils.reporting.heard import Plays, TrackNames, plays_of

KEPT, SKIPPED = SKIP_PLAYED, SKIP_1


def counts(*columns):
    return Counts(*(np.array(column, float) for column in columns))


def test_posterior_of_one_thing_by_hand():
    """Kept twice before, skipped twice now, and a uniform prior."""
    found = posterior(counts([0], [2], [2], [2]), np.array([0.5]), 2.0)
    # B(1,3) B(3,1) / (B(1,1) B(3,3)) = (1/9) / (1/30): 10/3 times likelier under two rates than under one.
    # The share s that changes solves 11 s = 1 + p with p = (10/3) s / ((10/3) s + 1 - s): 77 s^2 + 16 s - 3 = 0.
    share = (-16 + np.sqrt(16**2 + 4 * 77 * 3)) / 154
    changed = 11 * share - 1
    # Of Beta(3, 1) and Beta(1, 3) the first is higher with probability 1 - 3 B(3, 4) = 0.95.
    assert found.rose == pytest.approx(0.95 * changed, rel=1e-3)
    assert found.fell == pytest.approx(0.05 * changed, rel=1e-2)
    assert (found.rate_before, found.rate_now) == (pytest.approx(0.25), pytest.approx(0.75))
    assert (found.low, found.high) == (pytest.approx(0.025 ** (1 / 3)), pytest.approx(0.975 ** (1 / 3)))


def test_a_prior_draws_few_plays_to_itself():
    some = counts([0, 0], [0, 0], [1, 20], [1, 20])
    found = posterior(some, np.array([0.2, 0.2]), 2.0)
    assert found.rate_now == pytest.approx([(1 + 0.4) / 3, (20 + 0.4) / 22])


def test_change_is_believed_more_where_more_changes():
    alone = probability_of_change(np.array([2.0] + [-2.0] * 50))
    among = probability_of_change(np.array([2.0] + [6.0] * 50))
    assert alone[0] < 0.3 < 0.9 < among[0]


def test_priors_leave_out_a_tracks_own_plays():
    of_tracks = counts([1, 2, 0], [4, 2, 0], [1, 0, 3], [2, 2, 5])  # 2 of 6, 2 of 4, 3 of 5
    assert others_rate(of_tracks) == pytest.approx([6 / 11, 6 / 13, 5 / 12])
    artist_of = np.array([0, 0, -1])  # the first two are of one artist: 4 of 10
    of_artists = counts([3], [6], [1], [4])
    expected = [(2 + 4 * 6 / 11) / (4 + 4), (2 + 4 * 6 / 13) / (6 + 4), 5 / 12]
    assert track_prior(of_tracks, of_artists, artist_of) == pytest.approx(expected)
    nobody = Counts(*np.zeros((4, 0)))
    assert track_prior(of_tracks, nobody, np.full(3, -1)) == pytest.approx([6 / 11, 6 / 13, 5 / 12])


def test_each_session_counts_once():
    n = 6
    plays = Plays(
        session=np.array([0, 0, 0, 1, 1, 2]),
        position=np.zeros(n, int),
        track=np.array([5, 5, 6, 5, 5, 5]),
        skipped=np.array([True, False, True, True, True, False]),
        known=np.array([True, True, True, True, False, True]),
        time=None,
        log=np.zeros((n, 12), np.uint8),
    )
    now = np.array([False] * 3 + [True] * 3)
    of_plays = count(plays, plays.track, plays.known, now, 7, once=False)
    assert [each[5] for each in of_plays] == [1, 2, 1, 2]
    of_sessions = count(plays, plays.track, plays.known, now, 7, once=True)
    assert [each[5] for each in of_sessions] == [0.5, 1, 1, 2]
    assert [each[6] for each in of_sessions] == [1, 1, 0, 0]


def test_now_is_half_of_the_history_at_most():
    days = np.datetime64("2024-01-01", "us") + np.arange(101) * np.timedelta64(1, "D")
    assert split_time(days, 24) == days[50]
    assert split_time(days, 12 * 20 / 365.2425) == days[80]


def history(folder, tracks, *, days=360, names=None, rng=None):
    """Sessions of a year, one a day at 20:00, with all tracks; `tracks` says (rate before, rate now) of each."""
    rng = rng or np.random.default_rng(0)
    start = np.datetime64("2023-01-01T20:00", "us")
    sessions = []
    for day in range(days):
        split = "train" if day < 0.8 * days else "valid" if day < 0.9 * days else "test"
        rates = [rate[day >= days / 2] for rate in tracks]
        plays = [(i, SKIPPED if rng.random() < rate else KEPT) for i, rate in enumerate(rates) if rng.random() < 0.2]
        plays += [(len(tracks), KEPT)] if not plays else []
        sessions.append((split, "ada", start + np.timedelta64(day, "D"), plays))
    names = names or [(f"t{i}", f"Song {i}", f"Artist {i % 7}") for i in range(len(tracks) + 1)]
    return Dataset.open(write_listening(folder, sessions, names=names))


def told(dataset):
    return habits_changed(plays_of(dataset, "ada", "UTC"), TrackNames(dataset), months=6, min_sessions=3)


def test_what_changed_is_found_and_what_did_not_is_not(tmp_path):
    tracks = [(0.3, 0.3)] * 60
    tracks[7], tracks[11] = (0.0, 1.0), (1.0, 0.0)
    dataset = history(tmp_path / "mine", tracks)
    changes = told(dataset)
    (now,), (back,) = changes.skipped_now["tracks"], changes.back["tracks"]
    assert (now.name, now.artist, back.name) == ("Song 7", "Artist 0", "Song 11")
    plays = plays_of(dataset, "ada", "UTC")
    mine = plays.track == 7 + 5
    before = int((mine & (plays.time < changes.now_from)).sum())
    assert tuple(now.plays) == (0, before, int(mine.sum()) - before, int(mine.sum()) - before)
    assert now.last_kept == plays.time[mine & ~plays.skipped][-1] < changes.now_from
    assert now.mostly == f"evening, {mine.sum() - before} of {mine.sum() - before}"
    assert now.probability > 0.99
    assert changes.compared["tracks"] == 60
    assert changes.compared["artists"] == 7


def test_a_steady_listener_changes_nothing(tmp_path):
    """Three hundred tracks with a steady rate each: the luckiest of them is not taken for a change."""
    rng = np.random.default_rng(1)
    changes = told(history(tmp_path / "mine", [(rate, rate) for rate in rng.beta(2, 3, 300)], rng=rng))
    assert changes.skipped_now == {"tracks": [], "artists": []}
    assert changes.back == {"tracks": [], "artists": []}


def test_plays_with_an_unknown_end_and_unknown_tracks_do_not_count(tmp_path):
    times = [f"2024-0{month}-1{day}T08:00" for month in range(1, 9) for day in range(5)]
    sessions = [
        ("train", "ada", time, [(0, KEPT if i < 20 else SKIPPED), (1, SKIP_UNKNOWN)]) for i, time in enumerate(times)
    ]
    sessions += [(split, "ada", f"2024-09-01T0{i}:00", [(0, SKIPPED)]) for i, split in enumerate(("valid", "test"))]
    dataset = Dataset.open(write_listening(tmp_path / "mine", sessions, names=[("a", None, None), ("b", None, None)]))
    changes = told(dataset)
    (now,) = changes.skipped_now["tracks"]
    assert (now.name, now.artist, tuple(now.plays)) == ("a", "", (0, 20, 22, 22))
    assert changes.compared == {"tracks": 1, "artists": 0}
    assert [(rate.plays, rate.rate) for rate in changes.overall] == [(20, 0.0), (22, 1.0)]


def test_nothing_is_told_without_times(tmp_path):
    sessions = [(split, "ada", "2024-01-01T00:00", [(0, KEPT)]) for split in ("train", "valid", "test")]
    dataset = Dataset.open(write_listening(tmp_path / "mine", sessions, names=[("a", "A", "B")], has_times=False))
    assert told(dataset) is None


def test_the_quarter_with_most_skips():
    time = np.array(["2024-01-01T05:59", "2024-01-01T06:00", "2024-01-02T11:59", "2024-01-02T23:00"], "datetime64[us]")
    skipped = np.array([True, True, True, False])
    plays = Plays(*[np.arange(4)] * 3, skipped, np.ones(4, bool), time, np.zeros((4, 12), np.uint8))
    assert mostly(plays, np.ones(4, bool)) == "morning, 2 of 3"
    assert mostly(plays, ~skipped) == ""
