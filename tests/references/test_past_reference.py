"""The compiled passes over plays beside plain ones, which look at all earlier plays anew for each session."""

import math
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from listening import START, random_listening, write_listening
from past_checks import places_of, raw_numbers

from utils.data.options import PastConfig
from utils.data.past_columns import RELATIONS, SHARED_STATISTICS, STATISTICS

DAY = 86400.0
NEVER = math.log(1 + 5 * 365 * 24)


def logit(p):
    return math.log(p / (1 - p))


def hour(time):
    return datetime.fromtimestamp(START + time, UTC).hour


def weighted(known, decay):
    """Labelled plays and skips, each weighted by `decay` for every labelled play after it."""
    labels = [play.label for play in known if play.label >= 0]
    weights = [decay**age for age in range(len(labels) - 1, -1, -1)]
    return sum(weights), sum(w * y for w, y in zip(weights, labels, strict=True))


def aged(known, now):
    """Labelled plays and skips with a half-life of 30 days."""
    weights = [(0.5 ** ((now - play.end) / (30 * DAY)), play.label) for play in known if play.label >= 0]
    return sum(w for w, _ in weights), sum(w * y for w, y in weights)


def counted(known):
    labels = [play.label for play in known if play.label >= 0]
    return len(labels), sum(labels)


def towards(prior, weight, pair):
    n, s = pair
    return (s + weight * prior) / (n + weight)


def streak(known):
    labels = [play.label for play in known if play.label >= 0]
    run = 0
    for label in reversed(labels):
        if label != labels[-1]:
            break
        run += 1
    return 0.0 if not labels else math.log(1 + run) * (1 if labels[-1] == 1 else -1)


def since(now, times):
    return math.log(1 + min((now - max(times)) / 3600, 5 * 365 * 24)) if times else NEVER


def of_kinds(play):
    """Track, artist and album of a play, None where unknown; albums of one name by two artists are two albums."""
    artist, album = (None if pd.isna(name) else name for name in (play.artist, play.album))
    return {"track": play.track, "artist": artist, "album": album and (artist, album)}


def is_same(play, other, kind):
    mine = of_kinds(play)[kind]
    return mine is not None and of_kinds(other)[kind] == mine


def with_ends(plays):
    """Adds when each play's outcome is known, its session's start, the previous track ("" in front of the first)."""
    ends = plays["time"] + plays["seconds"].fillna(0)
    return plays.assign(
        end=ends.groupby(plays["session"]).cummax(),
        start=plays.groupby("session")["time"].transform("first"),
        previous=plays.groupby("session")["track"].shift().fillna(""),
    )


def statistics(known, play, now):
    """STATISTICS of one play by their definitions; `known` are the listener's earlier plays, in order."""
    p = towards(0.4, 20, counted(known))
    p_long = towards(p, 20, weighted(known, 0.995))
    p_short = towards(p_long, 5, weighted(known, 0.95))
    same = {kind: [old for old in known if is_same(play, old, kind)] for kind in ("track", "artist", "album")}
    a = towards(p_long, 4, counted(same["artist"]))
    b = towards(a, 3, counted(same["album"]))
    r = towards(b, 2, counted(same["track"]))
    a_month = towards(p_long, 4, aged(same["artist"], now))
    b_month = towards(a_month, 3, aged(same["album"], now))
    r_month = towards(b_month, 2, aged(same["track"], now))
    moves = [old for old in same["track"] if old.previous == play.previous]
    near = [old for old in known if (hour(old.time) - hour(now)) % 24 in (0, 1, 23)]
    quarter = [old for old in same["track"] if hour(old.time) // 6 == hour(now) // 6]
    last = []
    for old in reversed(known):
        if old.session != known[-1].session:
            break
        last.append(old)
    rates = [
        *(p, p_long, p_short, a, b, r, a_month, b_month, r_month),
        towards(r, 1, weighted(same["track"], 0.7)),
        towards(r, 1, counted(moves)),
        towards(p_long, 10, counted(near)),
        towards(r, 2, counted(quarter)),
        towards(p_long, 2, counted(last)),
    ]
    values = [logit(rate) for rate in rates]
    for kind in ("track", "artist", "album"):
        old = same[kind]
        values += [
            math.log(1 + len(old)),
            math.log(1 + counted(old)[0]),
            math.log(1 + sum(x.end > now - 7 * DAY for x in old)),
            math.log(1 + sum(x.end > now - 30 * DAY for x in old)),
            since(now, [x.end for x in old]),
            since(now, [x.end for x in old if x.label == 1]),
            streak(old),
            float(not old),
        ]
    heard = [x.seconds for x in known if x.label == 0 and x.seconds > 0]
    whole = [x.seconds for x in same["track"] if x.label == 0 and x.seconds > 0]
    skipped = [x.seconds for x in same["track"] if x.label != 0 and x.seconds > 0]
    length = max(whole) if whole else max([(sum(heard) + 5 * 210) / (len(heard) + 5), *skipped])
    lasted = [x.seconds for x in same["track"] if not math.isnan(x.seconds)]
    values += [
        min(lasted[-1] / length, 1) if lasted else math.nan,
        math.log(length),
        math.log(1 + counted(moves)[0]),
        since(now, [x.end for x in known]),
    ]
    return values


def expected_statistics(plays, protocol):
    """One row a play, in the order of `plays`."""
    plays = with_ends(plays)
    rows = list(plays.itertuples())
    found = []
    for play in rows:
        now = play.start
        known = [old for old in rows if old.user == play.user and old.end <= now and old.start < now]
        if protocol == "frozen":
            known = [old for old in known if old.split == "train"]
        found.append(statistics(sorted(known, key=lambda old: (old.end, old.start)), play, now))
    return np.array(found)


def in_dataset_order(plays, split):
    """Row numbers of a split's plays, in the order of its arrays."""
    plays = plays.reset_index(drop=True)
    start = plays.groupby("session")["time"].transform("first")
    plays = plays.assign(start=start, at=plays.index).sort_values(["start", "session", "at"])
    return plays.index[plays["split"] == split].to_numpy()


@pytest.mark.parametrize("protocol", ["running", "frozen"])
@pytest.mark.parametrize("seed", range(3))
def test_statistics_are_their_definitions(tmp_path, seed, protocol):
    plays = random_listening(seed)
    assert with_ends(plays).groupby("user").apply(lambda own: (own["end"].diff() < 0).any()).any(), "none overlap"
    folder, config = write_listening(tmp_path / "d", plays), PastConfig(protocol)
    found = raw_numbers(folder, config)
    expected = expected_statistics(plays, protocol)[:, places_of(STATISTICS, config, folder)]
    assert expected.shape[1] == {"running": 42, "frozen": 26}[protocol]
    for split in ("train", "valid", "test"):
        np.testing.assert_allclose(
            found[split]["past"], expected[in_dataset_order(plays, split)], rtol=2e-5, atol=2e-5, err_msg=split
        )


def test_relations_are_their_definitions(tmp_path):
    plays = random_listening(5)
    found = raw_numbers(write_listening(tmp_path / "d", plays), PastConfig(relations=True))
    for split in ("train", "valid", "test"):
        own = plays.loc[in_dataset_order(plays, split)]
        expected = []
        for _, session in own.groupby("session", sort=False):
            rows = list(session.itertuples())
            for i, play in enumerate(rows):
                values = []
                for other in (rows[i - 1] if i else None, rows[i + 1] if i + 1 < len(rows) else None):
                    for kind in ("track", "artist", "album"):
                        values.append(float(other is not None and is_same(play, other, kind)))
                for kind in ("track", "artist", "album"):
                    values.append(math.log(1 + sum(is_same(play, other, kind) for other in rows[:i])))
                expected.append([*values, math.log(1 + i), math.log(len(rows) - i), float(i + 1 == len(rows))])
        np.testing.assert_allclose(found[split]["past"], expected, rtol=1e-6)
    assert len(RELATIONS) == 12
    assert len(STATISTICS) == 42


def expected_shared(plays, protocol):
    """SHARED_STATISTICS of every play, from all plays of earlier days."""
    position = plays.groupby("session").cumcount()
    plays = plays.assign(position=position.clip(upper=19))
    day = pd.to_datetime(plays["day"]).map(pd.Timestamp.toordinal)
    plays = plays.assign(number=day)
    rows = list(plays.itertuples())
    found = []
    for play in rows:
        known = [old for old in rows if old.number < play.number and (protocol == "running" or old.split == "train")]
        p = towards(0.4, 20, counted(known))
        values = [logit(p), logit(towards(p, 20, counted([old for old in known if old.position == play.position])))]
        columns = {}
        above = p
        for kind, weight in (("artist", 20), ("album", 20), ("track", 10)):
            same = [old for old in known if is_same(play, old, kind)]
            above = towards(above, weight, counted(same))
            ages = [(0.5 ** ((play.number - old.number) / 7), old.label) for old in same if old.label >= 0]
            recent = towards(above, 10, (sum(w for w, _ in ages), sum(w * y for w, y in ages)))
            last = math.log(1 + play.number - max(old.number for old in same)) if same else math.log(1 + 5 * 365)
            counts = [math.log(1 + len(same)), math.log(1 + counted(same)[0])]
            columns[kind] = [logit(above), logit(recent), *counts, last]
        found.append([*values, *columns["track"], *columns["artist"], *columns["album"]])
    return np.array(found)


@pytest.mark.parametrize("protocol", ["running", "frozen"])
def test_statistics_of_all_listeners_are_their_definitions(tmp_path, protocol):
    plays = random_listening(2, n_sessions=60).drop(columns="user")
    start = plays.groupby("session")["time"].transform("first")
    plays["day"] = pd.to_datetime(START + start // (5 * DAY) * 5 * DAY, unit="s").dt.strftime("%Y%m%d")
    folder, config = write_listening(tmp_path / "d", plays), PastConfig(protocol)
    found = raw_numbers(folder, config)
    expected = expected_shared(plays, protocol)[:, places_of(SHARED_STATISTICS, config, folder)]
    assert expected.shape[1] == {"running": 17, "frozen": 11}[protocol]
    for split in ("train", "valid", "test"):
        np.testing.assert_allclose(
            found[split]["past"], expected[in_dataset_order(plays, split)], rtol=2e-5, atol=2e-5, err_msg=split
        )
