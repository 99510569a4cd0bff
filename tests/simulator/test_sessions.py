"""The simulated world and its sessions: tracks, lists, and what is skipped."""

import numpy as np
import pandas as pd
import pytest

from utils.data import schema
from utils.simulator.behaviour import Behaviour, Situation, level_probabilities, observed_logit, taste_prior
from utils.simulator.lists import CHARTS, MAX_LIST, MIN_LIST, N_CLUSTERS, RADIO, Lists
from utils.simulator.sessions import BACK, JUMP, NEXT, RESTART, START, SWITCH, draw_sessions
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
