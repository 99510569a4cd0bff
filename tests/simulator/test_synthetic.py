import csv
import gzip
import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from utils.core.errors import UserError
from utils.data import schema
from utils.simulator import __main__ as simulator
from utils.simulator import log_columns, log_files
from utils.simulator.__main__ import Config
from utils.simulator.behaviour import Behaviour, Situation, level_probabilities, observed_logit, taste_prior
from utils.simulator.figures import MARGINALS, PLAYS_BY_RANK, real_plays
from utils.simulator.lists import CHARTS, MAX_LIST, MIN_LIST, N_CLUSTERS, RADIO, Lists
from utils.simulator.log_columns import draw_log, log_table
from utils.simulator.mssd_figures import real_figures, simulated_figures, solve_base
from utils.simulator.sessions import BACK, JUMP, NEXT, RESTART, START, SWITCH, draw_sessions
from utils.simulator.world import build_world, random_uuids

SMALL = {"sessions": 400, "test_sessions": 60, "tracks": 1000, "days": 2, "splits": 2, "processes": 1}


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("raw") / "small"
    simulator.main(Config(out=str(out), **SMALL))
    return out


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ----- files -----


def test_folder_holds_exactly_mssds_files(folder):
    days = ("20180715", "20180716")
    expected = {
        "data_mini/training_set/log_mini.csv",
        "data_mini/track_features/tf_mini.csv",
        "track_features/tf_000000000000.csv",
        "track_features/tf_000000000001.csv",
        "hidden_truth/world.json",
    }
    for day in days:
        expected |= {f"training_set_{s}/log_{s}_{day}_000000000000.csv" for s in (0, 1)}
        expected |= {f"test_set/log_{part}_{day}_000000000000.csv" for part in ("prehistory", "input")}
        expected |= {f"hidden_truth/test_set/second_half_{day}.parquet"}
        for name in ("training_set_0", "training_set_1", "test_set"):
            expected |= {f"hidden_truth/{name}/{kind}_{day}.parquet" for kind in ("listeners", "propensities")}
    assert set(digests(folder)) == expected


def test_training_log_has_mssds_columns_and_order(folder):
    path = folder / "training_set_1" / "log_1_20180716_000000000000.csv"
    with open(path) as file:
        assert tuple(next(csv.reader(file))) == schema.SESSION_COLUMNS
    frame = pd.read_csv(path)
    assert frame["session_id"].nunique() == 100
    assert (
        frame["session_id"]
        .str.fullmatch(r"1_[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
        .all()
    )
    assert frame["session_id"].is_monotonic_increasing
    assert frame["session_position"].equals(frame.groupby("session_id").cumcount() + 1)
    assert (frame.groupby("session_id")["session_length"].transform("size") == frame["session_length"]).all()
    assert frame["session_length"].between(10, 20).all()
    assert set(frame["context_type"]) <= set(schema.CONTEXT_TYPES)
    assert set(frame["hist_user_behavior_reason_start"]) <= set(schema.REASONS_START)
    assert set(frame["hist_user_behavior_reason_end"]) <= set(schema.REASONS_END)
    raw = path.read_text()
    assert '"' not in raw
    assert ",true," in raw
    assert "True" not in raw


def test_session_ids_are_unique_over_all_files(folder):
    ids = []
    for path in [*folder.glob("training_set_*/log_*"), *folder.glob("test_set/log_prehistory_*")]:
        ids += pd.read_csv(path)["session_id"].unique().tolist()
    assert len(ids) == len(set(ids)) == 460


def test_test_set_is_cut_at_half_and_its_truth_is_apart(folder):
    past = pd.read_csv(folder / "test_set" / "log_prehistory_20180715_000000000000.csv")
    future = pd.read_csv(folder / "test_set" / "log_input_20180715_000000000000.csv")
    truth = pq.read_table(folder / "hidden_truth" / "test_set" / "second_half_20180715.parquet").to_pandas()
    assert tuple(past.columns) == tuple(truth.columns) == schema.SESSION_COLUMNS
    assert tuple(future.columns) == schema.INPUT_COLUMNS
    assert (past["session_position"] <= past["session_length"] // 2).all()
    assert (future["session_position"] > future["session_length"] // 2).all()
    sizes = past.groupby("session_id").size() + future.groupby("session_id").size()
    assert (sizes == past.groupby("session_id")["session_length"].first()).all()
    pd.testing.assert_frame_equal(truth[list(schema.INPUT_COLUMNS)], future, check_dtype=False)


def test_track_features_cover_all_tracks_and_are_sorted(folder):
    parts = [pd.read_csv(path) for path in sorted((folder / "track_features").iterdir())]
    table = pd.concat(parts, ignore_index=True)
    assert tuple(table.columns) == schema.FEATURE_COLUMNS
    assert table["track_id"].is_monotonic_increasing
    assert table["track_id"].nunique() == len(table) == 1000
    assert not table.isna().any().any()
    assert (table.drop(columns=["track_id", "mode"]).std() > 0).all()
    assert set(table["mode"]) == {"major", "minor"}
    played = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")["track_id_clean"]
    assert played.isin(table["track_id"]).all()


def test_mini_set_is_the_head_of_the_first_log_spelt_differently(folder):
    mini_path = folder / "data_mini" / "training_set" / "log_mini.csv"
    text = mini_path.read_text()
    assert ",True," in text
    assert "true" not in text
    first = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")
    mini = pd.read_csv(mini_path)
    pd.testing.assert_frame_equal(mini, first.head(len(mini)))
    features = pd.read_csv(folder / "data_mini" / "track_features" / "tf_mini.csv")
    assert set(features["track_id"]) == set(mini["track_id_clean"])


def test_mini_set_stops_at_a_session_border(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "MINI_SESSIONS", 7)
    out = tmp_path / "raw"
    simulator.main(Config(out=str(out), **SMALL))
    mini = pd.read_csv(out / "data_mini" / "training_set" / "log_mini.csv")
    assert mini["session_id"].nunique() == 7
    assert (mini.groupby("session_id").size() == mini.groupby("session_id")["session_length"].first()).all()


def test_same_bytes_whatever_the_processes_and_other_bytes_for_another_seed(folder, tmp_path):
    simulator.main(Config(out=str(tmp_path / "two"), **SMALL | {"processes": 2}))
    assert digests(tmp_path / "two") == digests(folder)
    simulator.main(Config(out=str(tmp_path / "seed"), **SMALL | {"seed": 1}))
    other = digests(tmp_path / "seed")
    assert all(other[name] != digest for name, digest in digests(folder).items())


def test_gzip_holds_the_same_rows(folder, tmp_path):
    simulator.main(Config(out=str(tmp_path / "gz"), gzip=True, **SMALL))
    for name in ("training_set_0/log_0_20180715_000000000000.csv", "test_set/log_input_20180716_000000000000.csv"):
        packed = (tmp_path / "gz" / f"{name}.gz").read_bytes()
        assert gzip.decompress(packed) == (folder / name).read_bytes()
        assert packed[4:8] == b"\0\0\0\0"  # no time: the same bytes at any hour
    mini = "data_mini/training_set/log_mini.csv"
    assert (tmp_path / "gz" / mini).read_bytes() == (folder / mini).read_bytes()


def test_chunks_do_not_show(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(log_files, "CHUNK_SESSIONS", 33)
    simulator.main(Config(out=str(tmp_path / "chunks"), **SMALL))
    frame = pd.read_csv(tmp_path / "chunks" / "training_set_0" / "log_0_20180715_000000000000.csv")
    assert frame["session_id"].nunique() == 100
    assert frame["session_id"].is_monotonic_increasing


def test_hidden_truth_lets_the_world_be_rebuilt(folder):
    truth = json.loads((folder / "hidden_truth" / "world.json").read_text())
    again = build_world(seed=truth["seed"], n_tracks=truth["n_tracks"])
    ids = pd.read_csv(folder / "track_features" / "tf_000000000000.csv")["track_id"]
    assert ids.isin(again.track_ids.astype(str)).all()
    listeners = pq.read_table(folder / "hidden_truth" / "training_set_0" / "listeners_20180715.parquet").to_pandas()
    log = pd.read_csv(folder / "training_set_0" / "log_0_20180715_000000000000.csv")
    assert listeners["session_id"].tolist() == log["session_id"].unique().tolist()
    assert truth["rows"] == sum(len(pd.read_csv(path)) for path in folder.glob("*_set*/log_*"))


def test_sessions_are_spread_evenly():
    config = Config(sessions=1001, test_sessions=5, days=3, splits=2)
    jobs = list(simulator.jobs_of(config))
    training = [job.n_sessions for job in jobs if job.split < log_files.TEST]
    assert sum(training) == 1001
    assert set(training) == {166, 167}
    assert sum(job.n_sessions for job in jobs if job.split == log_files.TEST) == 5


def test_bad_sizes_are_user_errors(tmp_path):
    with pytest.raises(UserError, match="--tracks 999"):
        build_world(seed=0, n_tracks=999)
    with pytest.raises(UserError, match="--splits 11"):
        Config(splits=11)
    with pytest.raises(UserError, match="exists already"):
        simulator.main(Config(out=str(tmp_path), **SMALL))


# ----- quirks -----


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


# ----- the generator -----


def test_uuids_have_the_right_shape_and_are_distinct():
    ids = random_uuids(np.random.default_rng(0), 5000).astype(str)
    assert len(set(ids)) == 5000
    assert all(text[14] == "4" and text[19] in "89ab" and len(text) == 36 for text in ids)


def test_lists_are_even_distinct_and_of_the_right_size(world, lists):
    assert lists.sizes.min() >= MIN_LIST
    assert lists.sizes.max() <= MAX_LIST
    assert (lists.sizes % 2 == 0).all()
    for j in range(len(lists)):
        tracks = lists.tracks[lists.offsets[j] : lists.offsets[j + 1]]
        assert len(np.unique(tracks)) == lists.sizes[j]
    assert np.allclose(np.bincount(lists.kinds, weights=lists.probabilities)[[0, 1, 3, 4, 5]], 1)


def test_every_track_is_in_a_list(world, lists):
    assert len(np.unique(lists.tracks)) == world.n_tracks


def test_charts_drift_from_day_to_day(world):
    def chart(day):
        lists = world.lists(day)
        return set(lists.tracks[lists.offsets[lists.first[CHARTS]] :][:50].tolist())

    assert chart(0) == chart(0)
    assert 30 < len(chart(0) & chart(1)) < 50
    assert len(chart(0) & chart(10)) < len(chart(0) & chart(1))


def test_lists_draw_by_weight_within_the_kind():
    lists = Lists(np.array([2, 2, 2]), np.arange(6), np.array([0, 0, 1]), np.array([1.0, 3.0, 5.0]))
    assert lists.draw(np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.26, 0.999, 0.0, 0.999])).tolist() == [0, 1, 1, 2, 2]


def steps_in_lists(sessions, lists, world):
    """(step, position moved to, position moved from, size) for each play of an ordered list after the first."""
    rows = []
    for s, t in zip(*np.nonzero((sessions.lists >= 0) & ~sessions.shuffle), strict=True):
        step = sessions.transition[s, t]
        if t >= sessions.length[s] or step in (START, SWITCH):
            continue
        j = sessions.lists[s, t]
        tracks = lists.tracks[lists.offsets[j] : lists.offsets[j + 1]].tolist()
        rows.append((step, tracks.index(sessions.tracks[s, t]), tracks.index(sessions.tracks[s, t - 1]), len(tracks)))
    return np.array(rows)


def test_ordered_lists_are_played_in_a_circle(world, lists, sessions):
    few = type(sessions)(*(values[:600] for values in sessions))
    step, to, origin, size = steps_in_lists(few, lists, world).T
    moved = (to - origin) % size
    assert (moved[step == NEXT] == 1).all()
    assert (moved[step == BACK] == size[step == BACK] - 1).all()
    assert (moved[step == RESTART] == 0).all()
    assert len(np.unique(moved[step == JUMP])) > 20
    assert (step == BACK).sum() > 50


def test_shuffle_alternates_halves_or_is_uniform_and_its_propensities_are_right(world, lists, sessions):
    same_half = {True: [], False: []}
    for s in range(3000):
        if not sessions.shuffle[s, 0] or sessions.lists[s, 0] < 0:
            continue
        j = sessions.lists[s, 0]
        tracks = lists.tracks[lists.offsets[j] : lists.offsets[j + 1]].tolist()
        size, uniform = len(tracks), bool(sessions.uniform_shuffle[s])
        if uniform:
            assert sessions.propensity[s, 0] == pytest.approx(1 / size)
        else:
            assert np.isnan(sessions.propensity[s, 0])
        if (sessions.transition[s, 1:3] == NEXT).all():
            halves = [tracks.index(track) >= size // 2 for track in sessions.tracks[s, :3]]
            same_half[uniform].append(halves[0] == halves[1])
            assert uniform or (halves[0] != halves[1] and halves[1] != halves[2])
            assert len(set(sessions.tracks[s, :3])) == 3
            if uniform:
                assert sessions.propensity[s, 1:3].tolist() == pytest.approx([1 / (size - 1), 1 / (size - 2)])
    assert len(same_half[True]) > 100
    assert 0.4 < np.mean(same_half[True]) < 0.6
    assert 0.25 < sessions.uniform_shuffle.mean() < 0.35


def test_propensities_weigh_off_policy(world, lists):
    """Weighted by inverse propensities, the plays of a set of tracks number what could be chosen of the set."""
    sessions = draw_sessions(world, lists, Behaviour(), np.random.default_rng(5), 20_000)
    chosen = ~np.isnan(sessions.propensity[:, 1]) & (sessions.transition[:, 1] == NEXT) & (sessions.lists[:, 1] >= 0)
    weight = 1 / sessions.propensity[chosen, 1].astype(float)
    j = sessions.lists[chosen, 1]
    member = lists.tracks % 2 == 0
    even = np.add.reduceat(member, lists.offsets[:-1])[j] - (sessions.tracks[chosen, 0] % 2 == 0)
    estimate = weight * (sessions.tracks[chosen, 1] % 2 == 0)
    error = (estimate - even).mean() / ((estimate - even).std() / np.sqrt(chosen.sum()))
    assert chosen.sum() > 800
    assert abs(error) < 4


def test_radio_walks_among_near_clusters(world, sessions):
    on_radio = (sessions.context == RADIO)[:, 1:] & (sessions.transition[:, 1:] == NEXT)
    now, before = world.cluster[sessions.tracks[:, 1:]][on_radio], world.cluster[sessions.tracks[:, :-1]][on_radio]
    assert (now == before).mean() == pytest.approx(0.85, abs=0.015)
    repeated = (sessions.context == RADIO)[:, 1:] & np.isin(sessions.transition[:, 1:], (BACK, RESTART))
    assert (sessions.tracks[:, 1:] == sessions.tracks[:, :-1])[repeated].all()


def test_the_probability_of_a_skip_is_the_documented_formula(world, sessions):
    """Recompute the logit of single plays by hand, then compare predicted and realised rates in bins."""
    behaviour = Behaviour()
    rng = np.random.default_rng(0)
    values, _ = behaviour.propensities()
    predicted, happened = [], []
    for s in rng.choice(6000, 1500, replace=False):
        length, tracks = int(sessions.length[s]), sessions.tracks[s]
        hour, premium, context = int(sessions.start_second[s] // 3600), int(sessions.premium[s]), sessions.context[s, 0]
        suits = (world.hour_taste[hour] + world.premium_taste[premium] + world.context_taste[context]) / np.sqrt(3)
        inner = world.taste[tracks] - world.cluster_taste[world.cluster[tracks]]
        for t in range(length):
            rise = np.tanh(6 * ((t + 0.5) / length - 0.3))
            logit = behaviour.base[t] + values[sessions.listener_propensity[s]]
            logit += behaviour.type_effect * (-1.0, rise, -rise, 1.0)[sessions.listener_type[s]]
            logit += behaviour.own_effect * world.own[tracks[t]]
            taste = world.taste[tracks[t]]
            logit -= behaviour.match_effect * taste @ world.listener_taste[sessions.listener_taste[s]]
            logit -= behaviour.situation_effect * taste @ suits
            logit -= behaviour.coherence_effect / 3 * sum(inner[t] @ inner[i] for i in range(5) if i != t)
            logit += behaviour.repeat_effect * (tracks[t] in tracks[:t])
            logit += behaviour.premium_effect * (premium - 0.816)
            if t:
                logit += behaviour.persistence * (1 if sessions.level[s, t - 1] >= schema.SKIP_2 else -1)
            predicted.append(1 / (1 + np.exp(-logit)))
            happened.append(sessions.level[s, t] >= schema.SKIP_2)
    predicted, happened = np.array(predicted), np.array(happened)
    bins = np.digitize(predicted, np.linspace(0.1, 0.9, 9))
    for b in range(10):
        inside = bins == b
        p = predicted[inside]
        assert abs(happened[inside].sum() - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())


def test_taste_prior_and_levels_are_distributions(world, sessions):
    prior = taste_prior(world, Behaviour(), sessions.tracks)
    assert prior.shape == (6000, N_CLUSTERS)
    assert np.allclose(prior.sum(axis=1), 1)
    drawn = np.bincount(sessions.listener_taste, minlength=N_CLUSTERS)
    assert np.abs(drawn - prior.sum(axis=0)).max() < 4 * np.sqrt(prior.sum(axis=0)).max()
    levels = level_probabilities(Behaviour())
    assert np.allclose(levels.sum(axis=-1), 1)
    assert (levels >= 0).all()
    assert (levels[:, 1, :, : schema.SKIP_2] == 0).all()


def test_listener_types_are_what_they_are_called(sessions):
    played = np.arange(20) < sessions.length[:, None]
    early = np.arange(20) < (sessions.length // 2)[:, None]
    skipped = sessions.level >= schema.SKIP_2
    rates = np.array(
        [
            [skipped[chosen][(played & part)[chosen]].mean() for part in (early, ~early)]
            for chosen in (sessions.listener_type == k for k in range(4))
        ]
    )
    assert (rates[0] < 0.4).all()
    assert (rates[3] > 0.6).all()
    assert rates[1, 0] < rates[1, 1] - 0.15
    assert rates[2, 0] > rates[2, 1] + 0.15


def test_skips_of_the_observed_part_use_no_later_track(world, sessions):
    tracks = sessions.tracks[:50].copy()
    situation = Situation(sessions.premium[:50], np.zeros(50, dtype=int), sessions.context[:50, 0])
    before = observed_logit(world, Behaviour(), tracks, situation)
    tracks[:, 12] = (tracks[:, 12] + 1) % world.n_tracks
    after = observed_logit(world, Behaviour(), tracks, situation)
    assert np.array_equal(before[:, :12], after[:, :12])
    assert (before[:, 12] != after[:, 12]).all()


def test_features_tell_the_taste(world):
    features = pd.DataFrame(world.audio_features()).drop(columns="mode")
    x = (features - features.mean()) / features.std()
    x = np.column_stack([x, np.ones(len(x))])
    for dimension in range(world.taste.shape[1]):
        taste = world.taste[:, dimension]
        residual = taste - x @ np.linalg.lstsq(x, taste, rcond=None)[0]
        assert 1 - residual.var() / taste.var() > 0.8


# ----- calibration -----


def test_simulated_figures_are_near_the_real_ones(world):
    simulated = simulated_figures(world, Behaviour(), n_sessions=40_000, n_oracle=5_000, seed=3)
    real = real_figures(world.n_tracks)
    outside = {
        name: (figure.real, simulated[name])
        for name, figure in real.items()
        if abs(simulated[name] - figure.real) > figure.tolerance
    }
    assert outside == {}
    assert len(real) > 100


def test_solve_base_finds_the_real_rates(world):
    flat = replace(Behaviour(), base=(0.5,) * 20)
    solved = solve_base(world, flat, n_sessions=10_000, rounds=4)
    assert np.array(solved.base) == pytest.approx(np.array(Behaviour().base), abs=0.25)


def test_popularity_interpolates_the_real_curve():
    assert real_plays(np.array([1, 10, 1_326_951])).round().tolist() == [7857731, 3747048, 24]
    total = real_plays(np.arange(1, 3_604_455)).sum()
    assert total == pytest.approx(2_072_002_577, rel=0.05)  # all plays of the real training set
    assert max(PLAYS_BY_RANK) == 3_604_454


@pytest.mark.parametrize("name", list(MARGINALS))
def test_marginals_keep_their_quartiles(name):
    marginal = MARGINALS[name]
    quantiles = marginal.quantile(np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = [marginal.low, marginal.q25, marginal.median, marginal.q75, marginal.high]
    assert quantiles.tolist() == pytest.approx(expected)
    assert (np.diff(marginal.quantile(np.linspace(0, 1, 1001))) >= 0).all()


def test_a_large_world_is_a_matter_of_course():
    world = build_world(seed=1, n_tracks=103_000)
    sessions = draw_sessions(world, world.lists(0), Behaviour(), np.random.default_rng(0), 3000)
    played = np.arange(20) < sessions.length[:, None]
    assert (sessions.level[played] >= schema.SKIP_2).mean() == pytest.approx(0.509, abs=0.03)
    assert len(np.unique(sessions.tracks[played])) > 10_000
