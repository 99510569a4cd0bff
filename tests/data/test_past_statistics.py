"""What is known of plays: formulas by hand, no leaks, the order of overlapping sessions, datasets that know less."""

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
import pytest
from listening import random_listening, write_listening
from past_checks import raw_numbers

from utils.core.errors import UserError
from utils.data import past_plays
from utils.data.dataset import Dataset
from utils.data.options import PastConfig
from utils.data.past import detail_columns, past_columns, with_past
from utils.data.past_columns import DETAILS, RELATIONS, SHARED_STATISTICS, STATISTICS

SPLITS = ("train", "valid", "test")
HOUR, DAY = 3600.0, 86400.0
RUNNING = PastConfig("running")


def logit(p):
    return math.log(p / (1 - p))


def session(name, start, tracks, labels, *, split="train", user="u", seconds=60.0, gap=0.0, artist="x", album="y"):
    """Plays that follow each other, each `seconds` long."""
    return pd.DataFrame(
        {
            "split": split,
            "session": name,
            "user": user,
            "track": list(tracks),
            "artist": artist,
            "album": album,
            "label": labels,
            "time": start + (seconds + gap) * np.arange(len(labels)),
            "seconds": seconds,
        }
    )


def listening(folder, *sessions, **options):
    """A dataset of these sessions; valid and test have one of another listener if there is none."""
    found = list(sessions)
    for split in SPLITS[1:]:
        if not any((plays["split"] == split).any() for plays in sessions):
            found.append(session(f"other {split}", 9e8, "AB", [0, 1], split=split, user="other"))
    return write_listening(folder, pd.concat(found, ignore_index=True), **options)


def numbers_of(folder, config, split="train", field="past"):
    """Name -> raw numbers of all plays of a split."""
    dataset = Dataset.open(folder)
    names = (past_columns if field == "past" else detail_columns)(dataset, config)
    return dict(zip(names, raw_numbers(folder, config)[split][field].T, strict=True))


# ---------------------------------------------------------------------------------------------------- worked by hand


def test_rates_by_hand(tmp_path):
    """A was skipped, then B was not; then A, and C, which is new, on the album of both."""
    folder = listening(tmp_path / "d", session("s1", 0, "AB", [1, 0]), session("s2", 2 * HOUR, "AC", [0, 0]))
    found = numbers_of(folder, RUNNING)
    p = (1 + 8) / (2 + 20)
    long = (0.995 * 1 + 20 * p) / (0.995 + 1 + 20)
    short = (0.95 * 1 + 5 * long) / (0.95 + 1 + 5)
    artist = (1 + 4 * long) / (2 + 4)
    album = (1 + 3 * artist) / (2 + 3)
    track = (1 + 2 * album) / (1 + 2)
    rates = {
        "listener": [0.4, 0.4, p, p],
        "listener_long": [0.4, 0.4, long, long],
        "listener_short": [0.4, 0.4, short, short],
        "artist": [0.4, 0.4, artist, artist],
        "album": [0.4, 0.4, album, album],
        "track": [0.4, 0.4, track, album],
        "track_last": [0.4, 0.4, (1 + track) / 2, album],
        # A opened a session before, too; nothing is known of C after A.
        "transition": [0.4, 0.4, (1 + track) / 2, album],
        # 22:13 was too long ago: it is 00:13.
        "hour": [0.4, 0.4, long, long],
        "quarter": [0.4, 0.4, track, album],
        "last_session": [0.4, 0.4, (1 + 2 * long) / 4, (1 + 2 * long) / 4],
    }
    for name, values in rates.items():
        np.testing.assert_allclose(found[name], [logit(rate) for rate in values], rtol=1e-5, err_msg=name)


def test_a_month_halves(tmp_path):
    """The play of A ended exactly 30 days before the second session; 7 days ago there was none."""
    folder = listening(tmp_path / "d", session("s1", 0, "A", [1]), session("s2", 30 * DAY + 60, "A", [1]))
    found = numbers_of(folder, RUNNING)
    long = (1 + 20 * 9 / 21) / 21
    artist = (0.5 + 4 * long) / 4.5
    album = (0.5 + 3 * artist) / 3.5
    for name, rate in {
        "artist_month": artist,
        "album_month": album,
        "track_month": (0.5 + 2 * album) / 2.5,
    }.items():
        assert found[name][1] == pytest.approx(logit(rate), rel=1e-5), name
    assert found["track_plays_30"][1] == 0, "a play of 30 days ago is not within 30 days"
    assert found["track_plays"][1] == pytest.approx(math.log(2))
    assert found["track_since_play"][1] == pytest.approx(math.log(1 + 30 * 24), rel=1e-6)


def test_counts_ages_and_streaks_by_hand(tmp_path):
    """A is skipped, skipped, unknown, played, over ten days; then it comes again."""
    sessions = [session(f"s{i}", i * 3 * DAY, "A", [label], seconds=100.0) for i, label in enumerate([1, 1, -1, 0])]
    last = session("s9", 10 * DAY, "ABA", [0, 0, 0])
    found = {
        name: values[4:] for name, values in numbers_of(listening(tmp_path / "d", *sessions, last), RUNNING).items()
    }
    expected = {
        "track_plays": math.log(5),
        "track_labelled": math.log(4),
        "track_plays_7": math.log(4),  # of days 6 and 9; that of day 3 ended within seven days
        "track_plays_30": math.log(5),
        "track_since_play": math.log(1 + 24 - 100 / HOUR),
        "track_since_skip": math.log(1 + 7 * 24 - 100 / HOUR),
        "track_streak": -math.log(2),
        "track_new": 0,
        "artist_plays": math.log(5),
        "album_streak": -math.log(2),
        "listener_since_play": math.log(1 + 24 - 100 / HOUR),
        "transition_labelled": math.log(4),  # each opened its session
    }
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=1e-5), name
    never = math.log(1 + 5 * 365 * 24)
    assert found["track_since_play"][1] == pytest.approx(never)
    assert found["track_new"].tolist() == [0, 1, 0]
    assert found["artist_new"].tolist() == [0, 0, 0]
    assert found["track_streak"][1] == 0
    assert found["track_plays"][2] == found["track_plays"][0], "a session does not know its own plays"
    assert found["transition_labelled"][2] == 0, "A never came after B"


def test_lengths_by_hand(tmp_path):
    """Skipped after 30 s, then heard for 200 s, then left after 50 s."""
    plays = [
        session("s1", 0, "A", [1], seconds=30.0),
        session("s2", 1 * DAY, "A", [0], seconds=200.0),
        session("s3", 2 * DAY, "A", [1], seconds=50.0),
        session("s4", 3 * DAY, "AB", [0, 0], seconds=240.0),
    ]
    found = numbers_of(listening(tmp_path / "d", *plays), RUNNING)
    typical = (200 + 5 * 210) / 6
    np.testing.assert_allclose(np.exp(found["track_length"]), [210, 210, 200, 200, typical], rtol=1e-5)
    np.testing.assert_allclose(found["track_fraction"], [np.nan, 30 / 210, 1.0, 0.25, np.nan], rtol=1e-5)


def test_the_hour_before_and_after_count(tmp_path):
    """22:13 twice skipped; 23:13 knows it, 00:13 does not, 21:13 does. The quarter of 22:13 begins at 18:00."""
    plays = [session("first", 0, "AA", [1, 1])]
    plays += [session(f"s{hours}", DAY + hours * HOUR, "A", [-1]) for hours in (-5, -4, -1, 1, 2)]
    found = numbers_of(listening(tmp_path / "d", *plays), RUNNING)
    long = (1.995 + 20 * 10 / 22) / 21.995
    seen, unseen = logit((2 + 10 * long) / 12), logit(long)
    np.testing.assert_allclose(found["hour"][2:], [unseen, unseen, seen, seen, unseen], rtol=1e-5)
    at_quarter = found["quarter"][2:] > found["track"][2:] + 0.1
    assert at_quarter.tolist() == [False, True, True, True, False]


def test_relations_by_hand(tmp_path):
    one = session("s1", 0, "AABA", [0, 0, 0, 0])
    one.loc[2, ["artist", "album"]] = ["z", "y"]  # an album of the same name by another artist
    found = numbers_of(listening(tmp_path / "d", one), PastConfig(relations=True))
    expected = {
        "same_track_as_previous": [0, 1, 0, 0],
        "same_artist_as_previous": [0, 1, 0, 0],
        "same_album_as_previous": [0, 1, 0, 0],
        "same_track_as_next": [1, 0, 0, 0],
        "same_artist_as_next": [1, 0, 0, 0],
        "same_album_as_next": [1, 0, 0, 0],
        "track_before": np.log([1, 2, 1, 3]),
        "artist_before": np.log([1, 2, 1, 3]),
        "album_before": np.log([1, 2, 1, 3]),
        "position": np.log([1, 2, 3, 4]),
        "plays_left": np.log([4, 3, 2, 1]),
        "is_last": [0, 0, 0, 1],
    }
    assert tuple(expected) == RELATIONS
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def test_details_by_hand(tmp_path):
    """Of 60 s each with 20 s between them, from 22:13 on; the third has no label."""
    folder = listening(tmp_path / "d", session("s1", 0, "ABC", [1, 0, -1], gap=20.0))
    found = numbers_of(folder, PastConfig("running", details=True), field="details")
    angle = 2 * np.pi * 22 / 24
    expected = {
        "seconds": [math.log(61)] * 3,
        "fraction": [60 / 210] * 3,
        "gap": [0, math.log(21), math.log(21)],
        "residual": [2 * (1 - 0.4), 2 * (0 - 0.4), np.nan],
        "hour_sin": [math.sin(angle)] * 3,
        "hour_cos": [math.cos(angle)] * 3,
    }
    assert tuple(expected) == DETAILS
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)


def test_statistics_of_earlier_days_by_hand(tmp_path):
    """Without listeners: day one has A skipped and B not; the second session of day two does not know the first one."""
    plays = [
        session("s1", 0, "AB", [1, 0]),
        session("s2", DAY, "A", [1]),
        session("s3", DAY + HOUR, "A", [0]),
    ]
    every = pd.concat([*plays, *(session(s, 9 * DAY, "A", [0], split=s) for s in SPLITS[1:])], ignore_index=True)
    folder = write_listening(tmp_path / "d", every.drop(columns=["user", "artist", "album"]))
    found = numbers_of(folder, RUNNING)
    assert tuple(found) == tuple(name for name in SHARED_STATISTICS if not name.startswith(("artist", "album")))
    p = 9 / 22
    track = (1 + 10 * p) / 11
    for name, rates in {
        "overall": [0.4, 0.4, p, p],
        "at_position": [0.4, 0.4, (1 + 20 * p) / 21, (1 + 20 * p) / 21],
        "track_all": [0.4, 0.4, track, track],
    }.items():
        np.testing.assert_allclose(found[name], [logit(rate) for rate in rates], rtol=1e-5, err_msg=name)
    week = 0.5 ** (1 / 7)
    assert found["track_all_recent"][2] == pytest.approx(logit((week + 10 * track) / (week + 10)), rel=1e-5)
    np.testing.assert_allclose(found["track_plays"], [0, 0, math.log(2), math.log(2)], rtol=1e-6)
    np.testing.assert_allclose(found["track_since_day"][1:3], [math.log(1 + 5 * 365), math.log(2)], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------- no leaks


def sessions_of(dataset):
    """(start, split, first play, play after the last) of every session, in order of start."""
    found = []
    for split in SPLITS:
        arrays = dataset.split(split)
        for first, last in itertools.pairwise(arrays.offsets.tolist()):
            found.append((int(arrays.times[first]), split, first, last))
    return sorted(found)


def changed_from(dataset, start, rng):
    """The dataset with other labels, times, lengths and logs in sessions from `start` (microseconds) on.

    Starts stay behind `start`, in any order; those at `start` stay.
    """
    splits = {}
    for split in SPLITS:
        arrays = dataset.split(split)
        first = arrays.times[np.repeat(arrays.offsets[:-1], arrays.lengths)]
        later = first >= start
        times, seconds, n = arrays.times.copy(), arrays.seconds.copy(), later.sum()
        times[later] += rng.integers(0, 5_000_000_000, n)
        at_start = arrays.offsets[:-1][arrays.times[arrays.offsets[:-1]] == start]
        times[at_start] = start
        seconds[later] = rng.uniform(0, 4000, n)
        skips, log = arrays.skips.copy(), arrays.log.copy()
        skips[later] = rng.choice([1, 3, 255], n)
        log[later] = rng.integers(0, 3, (n, log.shape[1]))
        splits[split] = dataclasses.replace(arrays, times=times, seconds=seconds, skips=skips, log=log)
    return dataclasses.replace(dataset, **splits)


@pytest.mark.parametrize("protocol", ["running", "frozen"])
def test_nothing_of_the_session_or_later_enters(tmp_path, protocol):
    """Other labels, times, lengths and logs from a session on leave all its statistics as they are, to the bit."""
    plays = random_listening(11, n_sessions=40, n_users=2)
    dataset = Dataset.open(write_listening(tmp_path / "d", plays))
    config = PastConfig(protocol, relations=True)
    before = raw_numbers(dataset, config)
    rng = np.random.default_rng(0)
    for start, split, first, last in sessions_of(dataset):
        after = raw_numbers(changed_from(dataset, start, rng), config)
        np.testing.assert_array_equal(after[split]["past"][first:last], before[split]["past"][first:last])


@pytest.mark.parametrize("protocol", ["running", "frozen"])
def test_what_was_known_before_enters(tmp_path, protocol):
    """The label of an earlier play of the listener changes statistics; if they are frozen, only one of training."""
    dataset = Dataset.open(write_listening(tmp_path / "d", random_listening(12, n_users=2, overlap=False)))
    before = raw_numbers(dataset, PastConfig(protocol))
    sessions = sessions_of(dataset)
    users = {split: dataset.split(split).sessions["user"].to_numpy() for split in SPLITS}

    def user(split, first):
        return users[split][np.searchsorted(dataset.split(split).offsets, first)]

    for start, split, first, _ in sessions:
        arrays = dataset.split(split)
        skips = arrays.skips.copy()
        skips[first] = 3 if skips[first] == 1 else 1
        changed = dataclasses.replace(dataset, **{split: dataclasses.replace(arrays, skips=skips)})
        after = raw_numbers(changed, PastConfig(protocol))
        learnt = protocol == "running" or split == "train"
        for other_start, other, begin, end in sessions:
            is_later = other_start > start and user(other, begin) == user(split, first)
            rows = [numbers[other]["past"][begin:end] for numbers in (before, after)]
            assert (not np.array_equal(*rows, equal_nan=True)) == (is_later and learnt)


def test_details_are_of_the_play_itself(tmp_path):
    """They change with the play, and with nothing later."""
    plays = random_listening(3, n_sessions=12, n_users=1, overlap=False)
    config = PastConfig("running", details=True)
    before = raw_numbers(write_listening(tmp_path / "before", plays), config)
    row = int(plays.index[(plays["split"] == "test") & ~plays["session"].duplicated()][0])
    changed = plays.copy()
    changed.loc[row:, "label"] = 1 - plays.loc[row:, "label"].clip(0)
    changed.loc[row:, "seconds"] = plays.loc[row:, "seconds"].fillna(0) + 1
    after = raw_numbers(write_listening(tmp_path / "after", changed), config)
    for split in SPLITS[:2]:
        np.testing.assert_array_equal(after[split]["details"], before[split]["details"])
    lasted = DETAILS.index("seconds")
    assert (after["test"]["details"][:, lasted] != before["test"]["details"][:, lasted]).all()


def test_a_session_inside_another_knows_what_had_ended(tmp_path):
    """s1 has plays at 0, 600, 1200 and 1800 s, of 600 s each; s2 starts at 1300 s, when two of them have ended."""
    sessions = [session("s1", 0, "ABCD", [1, 1, 0, 1], seconds=600.0), session("s2", 1300, "A", [0])]
    sessions.append(session("s3", 5000, "A", [0]))
    found = numbers_of(listening(tmp_path / "d", *sessions), RUNNING)
    np.testing.assert_allclose(found["listener"][4], logit((2 + 8) / (2 + 20)), rtol=1e-6)
    np.testing.assert_allclose(found["listener"][5], logit((3 + 8) / (5 + 20)), rtol=1e-6)
    np.testing.assert_allclose(found["listener"][:4], logit(0.4), rtol=1e-6)


def test_sessions_that_start_together_do_not_know_each_other(tmp_path):
    """Even if their first plays end at once."""
    sessions = [session(name, 0, "AB", [1, 1], seconds=0.0) for name in ("s1", "s2")]
    found = numbers_of(listening(tmp_path / "d", *sessions, session("s3", 0.5, "A", [0])), RUNNING)
    np.testing.assert_allclose(found["listener"], [logit(0.4)] * 4 + [logit(12 / 24)], rtol=1e-6)


def test_listeners_do_not_know_each_other(tmp_path):
    """Nor do sessions without a listener."""
    sessions = [session(f"s{i}", i * DAY, "A", [1], user=user) for i, user in enumerate(["u", "v", None, None, "u"])]
    found = numbers_of(listening(tmp_path / "d", *sessions), RUNNING)
    assert found["track_new"].tolist() == [1, 1, 1, 1, 0]


def test_frozen_is_what_training_knows(tmp_path):
    sessions = [
        session(f"s{i}", i * DAY, "A", [1], split=split) for i, split in enumerate(["train", "train", "valid", "test"])
    ]
    folder = write_listening(tmp_path / "d", pd.concat(sessions, ignore_index=True))
    plays = {
        protocol: [np.expm1(numbers_of(folder, PastConfig(protocol), split)["track_plays"][-1]) for split in SPLITS]
        for protocol in ("frozen", "running")
    }
    np.testing.assert_allclose(plays["frozen"], [1, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(plays["running"], [1, 2, 3], rtol=1e-6)


def test_work_in_small_pieces_gives_the_same_bits(tmp_path, monkeypatch):
    plays = random_listening(7, n_users=5)
    folders = {"users": write_listening(tmp_path / "a", plays)}
    folders["days"] = write_listening(tmp_path / "b", plays.drop(columns="user"))
    config = PastConfig("running", relations=True, details=True)
    whole = {name: raw_numbers(folder, config) for name, folder in folders.items()}
    monkeypatch.setattr(past_plays, "PLAYS_AT_ONCE", 7)
    for name, folder in folders.items():
        found = raw_numbers(folder, config)
        for split in SPLITS:
            for field in ("past", "details"):
                np.testing.assert_array_equal(found[split][field], whole[name][split][field])


# -------------------------------------------------------------------------------------------------- what is not known


def test_columns_without_meaning_are_left_out(tmp_path):
    plays = random_listening(1)

    def columns(name, config=RUNNING, frame=plays, **options):
        return past_columns(Dataset.open(write_listening(tmp_path / name, frame, **options)), config)

    assert columns("all") == STATISTICS
    no_names = columns("names", PastConfig("running", relations=True), names=False)
    assert no_names == tuple(n for n in (*STATISTICS, *RELATIONS) if "artist" not in n and "album" not in n)
    no_times = columns("times", times=False)
    assert set(STATISTICS) - set(no_times) == {
        *(f"{kind}_month" for kind in ("track", "artist", "album")),
        *(f"{k}_{what}" for k in ("track", "artist", "album") for what in ("plays_7", "plays_30", "since_play")),
        *(f"{kind}_since_skip" for kind in ("track", "artist", "album")),
        *("hour", "quarter", "listener_since_play"),
    }
    assert set(STATISTICS) - set(columns("seconds", seconds=False)) == {"track_fraction", "track_length"}
    assert columns("listeners", frame=plays.drop(columns="user")) == SHARED_STATISTICS
    assert columns("none", PastConfig(relations=True)) == RELATIONS
    ages = ("_month", "_7", "_30", "_since_play", "_since_skip")
    assert columns("frozen", PastConfig("frozen")) == tuple(name for name in STATISTICS if not name.endswith(ages))


def test_details_without_meaning_are_left_out(tmp_path):
    plays = random_listening(1)

    def columns(name, protocol, frame=plays, **options):
        dataset = Dataset.open(write_listening(tmp_path / name, frame, **options))
        return detail_columns(dataset, PastConfig(protocol, details=True))

    assert columns("all", "running") == DETAILS
    assert columns("none", "none") == ("seconds", "gap", "hour_sin", "hour_cos")
    assert columns("times", "running", times=False) == ("seconds", "fraction", "residual")
    assert columns("listeners", "frozen", plays.drop(columns="user"), seconds=False) == (
        *("gap", "residual", "hour_sin", "hour_cos"),
    )
    with pytest.raises(UserError, match="has no times, lengths or hours"):
        columns("nothing", "none", times=False, seconds=False)


def test_without_times_sessions_come_in_their_order(tmp_path):
    """A session knows the one before it, and not the one after it."""
    sessions = [session(f"s{i}", i * DAY, "A", [label]) for i, label in enumerate([1, 0, 1])]
    found = numbers_of(listening(tmp_path / "d", *sessions, times=False), RUNNING)
    rates = [0.4, 9 / 21, 9 / 22]
    np.testing.assert_allclose(found["listener"], [logit(rate) for rate in rates], rtol=1e-6)


def test_a_track_without_identity_is_always_new(tmp_path):
    """Without `full_ids` all tracks outside the vocabulary are one id, which means nothing."""
    sessions = [session("s1", 0, "A", [1])]
    sessions += [session(f"v{i}", (i + 1) * DAY, "Z", [1], split=split) for i, split in enumerate(SPLITS[1:])]
    plays = pd.concat(sessions, ignore_index=True)
    for ids, new in ((True, 0), (False, 1)):
        found = numbers_of(write_listening(tmp_path / f"{ids}", plays, ids=ids), RUNNING, "test")
        assert found["track_new"].tolist() == [new]
        assert found["listener"][0] == pytest.approx(logit(10 / 22))


def test_skips_are_needed(tmp_path):
    dataset = Dataset.open(write_listening(tmp_path / "d", random_listening(1)))
    dataset.info["has_skips"] = False
    with pytest.raises(UserError, match="has no skips"):
        with_past(dataset, RUNNING)


def test_one_day_without_listeners_is_refused(tmp_path):
    """Nothing would be known in training, and everything later."""
    plays = random_listening(1).drop(columns="user").assign(day="20180715")
    dataset = Dataset.open(write_listening(tmp_path / "one", plays))
    with pytest.raises(UserError, match=r"not of several days.*protocol none"):
        with_past(dataset, RUNNING)
    dataset = Dataset.open(write_listening(tmp_path / "unknown", plays.assign(day="")))
    with pytest.raises(UserError, match="not of several days"):
        with_past(dataset, RUNNING)
    assert with_past(dataset, PastConfig(relations=True)).n_past == len(RELATIONS)


@pytest.mark.parametrize("split", SPLITS)
def test_a_session_without_a_day_is_refused(tmp_path, split):
    """Where days are what orders the sessions."""
    plays = random_listening(1).drop(columns="user").assign(day="20180715")
    plays.loc[plays["session"] > "s010", "day"] = "20180716"
    plays.loc[plays["session"] == plays.loc[plays["split"] == split, "session"].iloc[-1], "day"] = ""
    dataset = Dataset.open(write_listening(tmp_path / "d", plays))
    with pytest.raises(UserError, match=r"not of several days|have no day"):
        with_past(dataset, RUNNING)


def test_a_rare_track_does_not_give_its_label_away(tmp_path):
    """Without listeners, in a split by session: labels from a day on change no statistic of that day."""
    plays = random_listening(4, n_sessions=60, n_tracks=30).drop(columns="user")
    splits = dict(zip(plays["session"].unique(), np.resize(SPLITS, plays["session"].nunique()), strict=True))
    plays["split"] = plays["session"].map(splits)
    plays["day"] = (20230101 + plays["session"].str[1:].astype(int) // 12).astype(str)
    dataset = Dataset.open(write_listening(tmp_path / "d", plays))
    before = raw_numbers(dataset, RUNNING)
    days = {split: dataset.split(split).sessions["day"].to_numpy() for split in SPLITS}
    days = {split: np.repeat(days[split], dataset.split(split).lengths) for split in SPLITS}
    rng = np.random.default_rng(0)
    for day in sorted(set(plays["day"])):
        changed = {}
        for split in SPLITS:
            arrays = dataset.split(split)
            skips = np.where(days[split] >= day, rng.choice([1, 3, 255], len(arrays.skips)), arrays.skips)
            changed[split] = dataclasses.replace(arrays, skips=skips.astype(np.uint8))
        after = raw_numbers(dataclasses.replace(dataset, **changed), RUNNING)
        for split in SPLITS:
            same = (after[split]["past"] == before[split]["past"]).all(1)
            assert same[days[split] <= day].all()
            assert not same[days[split] > day].any()
