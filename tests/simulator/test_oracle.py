import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from utils import datapreprocessing
from utils.core.errors import UserError
from utils.data.options import DataConfig
from utils.data.schema import SKIP_2
from utils.evaluation.metrics import average_accuracy
from utils.preprocessing.options import Config as PreprocessingConfig
from utils.simulator import __main__ as simulator
from utils.simulator import log_files
from utils.simulator.behaviour import Behaviour, level_probabilities, observed_logit, taste_prior
from utils.simulator.lists import MAX_LIST, RADIO, Lists
from utils.simulator.mssd_figures import oracle_view
from utils.simulator.oracle import Config, main
from utils.simulator.oracle_logs import first_half, read_logs
from utils.simulator.sessions import (
    BACK,
    JUMP,
    NEXT,
    RESTART,
    SHUFFLE_OFF_TO_ON,
    SHUFFLE_ON_TO_OFF,
    START,
    SWITCH,
    TRANSITIONS,
    draw_sessions,
)
from utils.simulator.skip_oracle import SkipPosterior, best_decisions, expected_accuracy, skip_posterior
from utils.simulator.track_oracle import N_STEPS, ContinuationOracle, FirstHalf, cursor_moves, first_steps
from utils.simulator.world import build_world
from utils.training.options import RunConfig


@pytest.fixture(scope="module")
def world():
    return build_world(seed=0, n_tracks=5000)


@pytest.fixture(scope="module")
def sessions(world):
    return draw_sessions(world, world.lists(4), Behaviour(), np.random.default_rng(11), 6000)


def of_length(sessions, length):
    return np.flatnonzero(sessions.length == length)[:1200]


@pytest.fixture(scope="module")
def scored(world, sessions):
    """(posterior, truth, repeat-last) of the sessions of 20 plays."""
    rows = of_length(sessions, 20)
    skipped = sessions.level[rows] >= SKIP_2
    posterior = skip_posterior(world, Behaviour(), **oracle_view(sessions, rows, 20))
    return posterior, skipped[:, 10:], skipped[:, 9]


def maa(decisions, truth):
    right = decisions == truth
    return average_accuracy(right, np.ones_like(right))


# ----- skip: exactness -----


def brute_force(world, behaviour, view):
    """P(each label sequence of the second half | first half) of the only session in `view`, by enumeration."""
    length, cut = view["length"], view["length"] // 2
    observed = observed_logit(world, behaviour, view["tracks"], view["situation"])[0]
    levels = level_probabilities(behaviour)
    values, chances = behaviour.propensities()
    prior = taste_prior(world, behaviour, view["tracks"])[0]
    likes = world.taste[view["tracks"][0]].astype(float) @ world.listener_taste.T
    profile = behaviour.profile(np.arange(length), np.array(length))
    sequences = np.array(list(itertools.product([0, 1], repeat=length - cut)))
    total = np.zeros(len(sequences))
    for kind, q, taste in itertools.product(range(4), range(len(values)), range(len(prior))):
        weight = behaviour.type_shares[kind] * chances[q] * prior[taste]
        logit = observed + profile[:, kind] + values[q] - behaviour.match_effect * likes[:, taste]
        previous = 0
        for t in range(cut):
            y = int(view["level"][0, t] >= SKIP_2)
            p = 1 / (1 + np.exp(-(logit[t] + behaviour.persistence * previous)))
            weight *= (p if y else 1 - p) * levels[kind, y, int(view["broken"][0, t]), view["level"][0, t]]
            previous = 2 * y - 1
        chance = np.full(len(sequences), weight)
        last = np.full(len(sequences), previous)
        for i in range(length - cut):
            p = 1 / (1 + np.exp(-(logit[cut + i] + behaviour.persistence * last)))
            chance *= np.where(sequences[:, i] == 1, p, 1 - p)
            last = 2 * sequences[:, i] - 1
        total += chance
    return sequences, total / total.sum()


@pytest.fixture(scope="module", params=[10, 11])
def enumerated(request, world, sessions):
    behaviour = replace(Behaviour(), n_propensities=3)
    view = oracle_view(sessions, of_length(sessions, request.param)[:1], request.param)
    return skip_posterior(world, behaviour, **view), *brute_force(world, behaviour, view)


def test_probabilities_and_pairs_equal_enumeration(enumerated):
    posterior, sequences, chance = enumerated
    assert posterior.probability[0] == pytest.approx(chance @ sequences, abs=1e-12)
    assert posterior.pairwise[0] == pytest.approx((sequences.T * chance) @ sequences, abs=1e-12)


def test_expected_accuracy_equals_enumeration(enumerated):
    posterior, sequences, chance = enumerated
    decisions = sequences.astype(bool)
    expected = [chance @ maa(np.broadcast_to(decision, sequences.shape), decisions) for decision in decisions]
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx(expected, abs=1e-12)
    assert (best_decisions(posterior)[0] == decisions[np.argmax(expected)]).all()


def test_expected_accuracy_by_hand():
    # Two targets: the first is a skip with 0.6, the second always does the same. Saying skip, skip: all right with 0.6.
    posterior = SkipPosterior(np.array([[0.6, 0.6]]), np.array([[[0.6, 0.6], [0.6, 0.6]]]))
    decisions = np.array([[True, True], [True, False], [False, True], [False, False]])
    # Of (right, wrong) AA is 1/2, of (wrong, right) 1/4.
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx([0.6, 0.4, 0.35, 0.4], abs=0.11)
    exact = [0.6 * 1, 0.6 * 0.5 + 0.4 * 0.25, 0.4 * 0.5 + 0.6 * 0.25, 0.4 * 1]
    assert expected_accuracy(posterior, decisions)[0] == pytest.approx(exact)


def test_decisions_may_differ_from_thresholds():
    # Alone, the second target is more likely played; but when the first guess is right, it is rather skipped.
    posterior = SkipPosterior(np.array([[0.55, 0.49]]), np.array([[[0.55, 0.45], [0.45, 0.49]]]))
    assert best_decisions(posterior).tolist() == [[True, True]]


# ----- skip: optimality -----


def test_no_flip_and_no_random_decision_is_expected_to_score_higher(scored):
    posterior = SkipPosterior(*(part[:200] for part in scored[0]))
    best = best_decisions(posterior)
    everything = np.array(list(itertools.product([False, True], repeat=10)))
    number = (best * 2 ** np.arange(9, -1, -1)).sum(axis=1)
    value = expected_accuracy(posterior, everything)
    mine = value[np.arange(200), number]
    for bit in range(10):
        assert (value[np.arange(200), number ^ (1 << bit)] <= mine + 1e-12).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert (value[np.arange(200), rng.integers(0, 1024, 200)] <= mine + 1e-12).all()


def test_expected_score_is_the_realised_score(scored):
    posterior, truth, _ = scored
    best = best_decisions(posterior)
    everything = np.array(list(itertools.product([False, True], repeat=10)))
    expected = expected_accuracy(posterior, everything).max(axis=1)
    gap = maa(best, truth) - expected
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap))


def test_no_perturbation_of_the_decisions_scores_higher(world, sessions, scored):
    """Realised scores: each perturbation changes decisions that were optimal, so it may win only within noise."""
    posterior, truth, last = scored
    best = best_decisions(posterior)
    mine = maa(best, truth)
    rng = np.random.default_rng(0)
    margin = np.abs(posterior.probability - 0.5)
    rows = of_length(sessions, 20)
    unsure = best.copy()
    unsure[np.arange(len(best)), margin.argmin(axis=1)] ^= True
    unfiltered = oracle_view(sessions, rows, 20)
    shuffled = dict(unfiltered, level=unfiltered["level"][rng.permutation(len(rows))])
    other_tracks = dict(unfiltered, tracks=unfiltered["tracks"].copy())
    other_tracks["tracks"][:, 10:] = unfiltered["tracks"][rng.permutation(len(rows)), 10:]
    blind = skip_posterior(world, replace(Behaviour(), propensity_sd=0.01, type_effect=0.0), **unfiltered)
    candidates = {
        "least certain flipped": unsure,
        "random flips": best ^ (rng.random(best.shape) < 0.1),
        "threshold at one half": posterior.probability >= 0.5,
        "another session's history": best_decisions(skip_posterior(world, Behaviour(), **shuffled)),
        "another session's targets": best_decisions(skip_posterior(world, Behaviour(), **other_tracks)),
        "no listener": best_decisions(blind),
        "repeat last": np.repeat(last[:, None], 10, axis=1),
        "all skipped": np.ones_like(best),
    }
    for name, decisions in candidates.items():
        difference = maa(decisions, truth) - mine
        assert difference.mean() < 2.5 * difference.std() / np.sqrt(len(rows)), name
    for name in ("another session's history", "another session's targets", "no listener", "repeat last"):
        assert maa(candidates[name], truth).mean() < mine.mean() - 0.02, name


def test_probabilities_are_calibrated(scored):
    posterior, truth, _ = scored
    p, y = posterior.probability.ravel(), truth.ravel()
    bins = np.digitize(p, np.linspace(0.1, 0.9, 9))
    for b in range(10):
        inside = bins == b
        assert inside.sum() > 300
        # Targets of a session are dependent: three times the independent error, and more, is allowed.
        assert abs(y[inside].mean() - p[inside].mean()) < 4.5 * np.sqrt(0.25 / inside.sum()) + 0.005


def test_levels_tell_the_type_of_listener(world, sessions):
    """The skip level matters beyond skip_2: it is part of what the filter sees."""
    rows = of_length(sessions, 20)[:50]
    view = oracle_view(sessions, rows, 20)
    swapped = dict(view, level=np.where(view["level"] == 4, 3, view["level"]))
    one, other = (skip_posterior(world, Behaviour(), **v).probability for v in (view, swapped))
    assert np.abs(one - other).max() > 0.005


# ----- seq -----


def view_of(sessions, row):
    cut = sessions.length[row] // 2
    steps = sessions.transition[row, :cut].copy()
    steps[steps == RESTART] = BACK  # the log does not tell them apart
    after = {RESTART: BACK, SWITCH: JUMP}.get(int(sessions.after[row, cut - 1]), int(sessions.after[row, cut - 1]))
    return FirstHalf(sessions.tracks[row, :cut], steps, sessions.context[row, :cut], sessions.shuffle[row, :cut], after)


@pytest.fixture(scope="module")
def continuation(world):
    return ContinuationOracle(world, world.lists(4))


def dense(continuation, first):
    """(K, N) the whole distribution."""
    tracks, probability, fallback = continuation.distribution(first)
    values = continuation._shared(fallback.ordered, fallback.shuffled, fallback.radio, slice(None))
    values[:, tracks] = probability
    return values


def test_first_step_follows_the_end_reason():
    assert first_steps(NEXT) == {NEXT: 1, BACK: 0, RESTART: 0, JUMP: 0, SWITCH: 0}
    assert first_steps(BACK)[BACK] == first_steps(BACK)[RESTART] == 0.5
    assert first_steps(JUMP)[JUMP] + first_steps(JUMP)[SWITCH] == pytest.approx(1)
    assert first_steps(JUMP)[JUMP] / first_steps(JUMP)[SWITCH] == pytest.approx(TRANSITIONS[JUMP] / TRANSITIONS[SWITCH])


def test_cursor_moves_by_hand():
    step = {NEXT: 0.5, BACK: 0.2, RESTART: 0.1, JUMP: 0.15, SWITCH: 0.05}
    moves = cursor_moves([step, step])
    assert moves.displacement[1].tolist() == pytest.approx([0, 0.2, 0.1, 0.5, 0])
    assert moves.displacement[2].tolist() == pytest.approx([0.04, 0.04, 0.21, 0.1, 0.25])
    assert moves.jumped.tolist() == pytest.approx([0, 0.15, 0.95 * 0.15 + 0.15 * 0.8])
    assert moves.displacement[2].sum() + moves.jumped[2] == pytest.approx(0.95**2)


def test_distributions_sum_to_one(continuation, sessions):
    for row in range(150):
        values = dense(continuation, view_of(sessions, row))
        assert values.min() >= 0
        assert values.sum(axis=1) == pytest.approx(np.ones(N_STEPS), abs=1e-9)


def test_predictions_and_ranks_equal_the_sorted_distribution(continuation, sessions):
    for row in range(60):
        first = view_of(sessions, row)
        true_next = int(sessions.tracks[row, sessions.length[row] // 2])
        guess, values = continuation.predict(first, true_next), dense(continuation, first)
        assert guess.probability == pytest.approx(values.max(axis=1))
        assert values[np.arange(N_STEPS), guess.tracks] == pytest.approx(values.max(axis=1))
        score = values[0, true_next]
        assert guess.rank == (values[0] > score).sum() + ((values[0] == score).sum() - 1) / 2


def test_only_eligible_tracks_are_predicted_and_ranked(world, continuation, sessions):
    row = next(r for r in range(100) if sessions.context[r, 0] != RADIO and not sessions.shuffle[r, :10].any())
    first, true_next = view_of(sessions, row), int(sessions.tracks[row, sessions.length[row] // 2])
    free = continuation.predict(first, true_next)
    eligible = np.ones(world.n_tracks, dtype=bool)
    eligible[free.tracks] = False
    bound = ContinuationOracle(world, world.lists(4), eligible)
    guess = bound.predict(first, true_next)
    assert eligible[guess.tracks].all()
    values = np.where(eligible, dense(continuation, first), -1)
    assert guess.probability == pytest.approx(values.max(axis=1))
    assert bound.predict(first, int(free.tracks[0])).rank == np.inf


@pytest.fixture(scope="module")
def guesses(continuation, sessions):
    """(first halves, tracks (S, K), their probabilities, second best tracks, true tracks, known) of 1,500 sessions."""
    found, chance, second, truth = (np.zeros((1500, N_STEPS), dtype) for dtype in (int, float, int, int))
    known = np.arange(N_STEPS) < (sessions.length[:1500] - sessions.length[:1500] // 2)[:, None]
    views = []
    for row in range(1500):
        cut, length = sessions.length[row] // 2, sessions.length[row]
        views.append(view_of(sessions, row))
        guess = continuation.predict(views[-1], int(sessions.tracks[row, cut]))
        found[row], chance[row] = guess.tracks, guess.probability
        truth[row, : length - cut] = sessions.tracks[row, cut:length]
        if row < 400:
            second[row] = np.argsort(-dense(continuation, views[-1]), axis=1)[:, 1]
    return views, found, chance, second, truth, known


def test_track_probabilities_are_calibrated(guesses):
    """In every kind of session and at every step, the best track comes as often as its probability says."""
    views, found, chance, _, truth, known = guesses
    kind = [
        (view.context[-1] == RADIO, bool(view.shuffle[-1]) and view.context[-1] != RADIO, view.after) for view in views
    ]
    groups = {
        f"{name} {after}": [k[:2] == which and k[2] == after for k in kind]
        for name, which in {"ordered": (False, False), "shuffled": (False, True), "radio": (True, False)}.items()
        for after in (NEXT, BACK, JUMP)
    }
    groups |= {f"step {k}": np.arange(N_STEPS) == k for k in range(N_STEPS)}
    for name, group in groups.items():
        chosen = known & (np.array(group)[:, None] if len(group) == len(views) else group)
        p, right = chance[chosen], (found == truth)[chosen]
        # Steps of a session are dependent, which at most doubles the error of ten of them.
        assert abs(right.sum() - p.sum()) < 8 * np.sqrt((p * (1 - p)).sum()) + 1, name
    p, right = chance[known], (found == truth)[known]
    for low, high in itertools.pairwise((0, 0.03, 0.1, 0.25, 0.5, 0.8, 1.01)):
        inside = (p >= low) & (p < high)
        assert abs(right[inside].mean() - p[inside].mean()) < 6 * np.sqrt(0.25 / inside.sum()), (low, high)


def test_no_other_guess_scores_higher(guesses):
    _, found, _, second, truth, known = guesses
    mine = (found == truth)[known].mean()
    assert mine > 0.25
    assert (second == truth)[:400][known[:400]].mean() < (found == truth)[:400][known[:400]].mean() - 0.1
    shifted = np.roll(found, 1, axis=1)
    other = np.roll(found, 1, axis=0)
    assert (shifted == truth)[known].mean() < mine - 0.1
    assert (other == truth)[known].mean() < mine - 0.2


def test_the_only_list_that_fits_is_found(world, continuation):
    """A stretch of ten tracks of one playlist in order: the next one has all the mass of a plain next step."""
    lists = continuation.lists
    j = int(lists.first[1]) + 7
    tracks = lists.tracks[lists.offsets[j] : lists.offsets[j + 1]]
    steps = np.array([0] + [NEXT] * 9)
    first = FirstHalf(tracks[:10], steps, np.full(10, lists.kinds[j]), np.zeros(10, dtype=bool), NEXT)
    guess = continuation.predict(first, int(tracks[10]))
    assert guess.tracks.tolist() == tracks[10:20].tolist()
    assert guess.probability[0] == pytest.approx(1.0, abs=1e-6)
    assert guess.rank == 0
    again = continuation.predict(first._replace(after=BACK), int(tracks[8]))
    assert set(again.tracks[:1]) <= {tracks[8], tracks[9]}
    assert again.probability[0] == pytest.approx(0.5, abs=1e-6)


def test_order_tells_two_lists_of_the_same_tracks_apart(world):
    first_order, other_order = np.arange(20), np.array([0, 2, 1, *range(3, 20)])
    lists = Lists(
        np.array([20, 20]), np.concatenate([first_order, other_order]), np.array([1, 1]), np.array([1.0, 1.0])
    )
    oracle = ContinuationOracle(world, lists)
    contexts, ordered = np.array([1, 1]), np.array([False, False])
    guess = oracle.predict(FirstHalf(np.array([0, 1]), np.array([START, NEXT]), contexts, ordered, NEXT), 2)
    assert (guess.tracks[0], guess.probability[0]) == (2, pytest.approx(1.0))
    guess = oracle.predict(FirstHalf(np.array([1, 0]), np.array([START, BACK]), contexts, ordered, NEXT), 1)
    assert (guess.tracks[0], guess.probability[0]) == (1, pytest.approx(1.0))
    # A jump keeps the list but not the place: both lists are as likely as before.
    guess = oracle.predict(FirstHalf(np.array([0, 5]), np.array([START, JUMP]), contexts, ordered, NEXT), 6)
    assert (guess.tracks[0], guess.probability[0]) == (6, pytest.approx(1.0))
    distribution = dense(oracle, FirstHalf(np.array([5, 0]), np.array([START, JUMP]), contexts, ordered, NEXT))
    assert distribution[0, [1, 2]] == pytest.approx([0.5, 0.5])


def test_lists_whose_cursor_could_come_round_are_refused(world):
    """Of 18 tracks, a shuffled list could play again what the first half played: nine steps and ten more."""
    sizes, kinds, weights = np.array([20, 18]), np.array([1, 1]), np.ones(2)
    with pytest.raises(ValueError, match="a list has 18 tracks; all must have 20 or more"):
        ContinuationOracle(world, Lists(sizes, np.arange(38), kinds, weights))
    ContinuationOracle(world, Lists(sizes + np.array([0, 2]), np.arange(40), kinds, weights))


def test_shuffle_button_at_fresh_contexts_by_hand(continuation):
    p = TRANSITIONS[SWITCH]
    on = continuation.fallback(NEXT, True, -1)
    assert (on.ordered[0], on.shuffled[0]) == (pytest.approx(np.zeros(N_STEPS)), 0)  # a plain next comes first
    assert on.ordered[1, :2].tolist() == pytest.approx([p * SHUFFLE_ON_TO_OFF, 0])
    assert on.shuffled[1] == pytest.approx(p * (1 - SHUFFLE_ON_TO_OFF))
    off = continuation.fallback(NEXT, False, -1)
    assert off.ordered[1, :2].tolist() == pytest.approx([p * (1 - SHUFFLE_OFF_TO_ON), 0])
    assert off.shuffled[1] == pytest.approx(p * SHUFFLE_OFF_TO_ON)
    # One step later: no second switch, or a second one that flips the button again.
    stayed = (1 - p) * off.ordered[1, 0]
    is_off = (1 - p) + off.ordered[1, 0]  # before the step
    again = p * (is_off * (1 - SHUFFLE_OFF_TO_ON) + off.shuffled[1] * SHUFFLE_ON_TO_OFF)
    assert off.ordered[2, :3].tolist() == pytest.approx([again, stayed, 0])


# ----- on a dataset -----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("oracle")
    simulator.main(
        simulator.Config(out=str(root / "raw"), sessions=1500, test_sessions=0, tracks=1000, days=5, processes=1)
    )
    datapreprocessing.main(PreprocessingConfig(raw=root / "raw", out=root / "data"))
    return root


@pytest.fixture(scope="module")
def results(folders):
    config = Config(
        raw=str(folders / "raw"),
        data=DataConfig(folder=str(folders / "data"), scored=["valid", "test"]),
        run=RunConfig(folder=str(folders / "runs")),
    )
    return main(config)


def test_run_folders_hold_the_contract(folders, results):
    for task, result in zip(("skip", "seq"), results, strict=True):
        (path,) = (folders / "runs" / f"oracle_{task}").glob("*/result.json")
        assert json.loads(path.read_text()) == result
        assert (result["kind"], result["task"], set(result["scores"])) == ("oracle", task, {"valid", "test"})
        label = {"skip": "the simulator's optimum", "seq": "best track at each position"}[task]
        assert (result["experiment"], result["label"]) == (f"oracle_{task}", f"Oracle ({label})")
        assert result["scores"]["test"]["n_sessions"] == 300
    skip, seq = (result["scores"]["test"]["metrics"] for result in results)
    assert 0.6 < skip["maa"]["mean"] < 0.76
    assert skip["auc"]["mean"] > 0.8
    assert 0.4 < seq["first_accuracy"]["mean"] < 0.75
    assert seq["hr@20"]["mean"] > seq["hr@1"]["mean"] > 0.4


def test_logs_are_read_back_as_they_were_drawn(folders):
    world = build_world(seed=0, n_tracks=1000)
    job = log_files.Job(day=2, split=0, n_sessions=300)
    ((drawn, table),) = log_files.job_chunks(world, Behaviour(), job, seed=0)
    ids = table["session_id"].to_pandas().unique()
    order = np.random.default_rng(0).permutation(300)
    logs = read_logs(folders / "raw", world, pd.DataFrame({"session_id": ids[order], "day": "20180717"}))
    assert (logs.length == drawn.length[order]).all()
    played = np.arange(20) < logs.length[:, None]
    past = np.arange(20) < (logs.length // 2)[:, None]
    assert (logs.tracks == drawn.tracks[order])[played].all()
    assert (logs.level == drawn.level[order])[past].all()
    assert (logs.context == drawn.context[order])[past].all()
    assert (logs.shuffle == drawn.shuffle[order])[past].all()
    assert (logs.situation.hour == drawn.start_second[order] // 3600).all()
    assert (logs.situation.premium == drawn.premium[order]).all()
    assert (logs.day == 2).all()
    for row in range(100):
        mine, theirs = first_half(logs, row), view_of(drawn, order[row])
        assert (mine.steps == theirs.steps).all()
        assert mine.after == theirs.after
    # Nothing of the second half but its tracks.
    for values in (logs.level, logs.steps, logs.after, logs.context, logs.shuffle):
        assert not values[~past].any()


def test_second_half_logs_cannot_matter(folders, tmp_path):
    shutil.copytree(folders / "raw", tmp_path / "raw")
    for path in (tmp_path / "raw").glob("training_set_0/*.csv"):
        frame = pd.read_csv(path)
        late = frame["session_position"] > frame["session_length"] // 2
        flags = ["skip_1", "skip_2", "skip_3", "not_skipped", "hist_user_behavior_is_shuffle", "premium"]
        frame.loc[late, flags] = ~frame.loc[late, flags]
        frame.loc[late, ["hist_user_behavior_reason_start", "hist_user_behavior_reason_end"]] = "backbtn"
        frame.loc[late, "context_switch"] = 1
        frame.loc[late, "hour_of_day"] = 3
        frame.loc[late, "context_type"] = "charts"
        frame.to_csv(path, index=False)
    world = build_world(seed=0, n_tracks=1000)
    sessions = pd.read_parquet(folders / "data" / "test" / "sessions.parquet")
    for mine, theirs in zip(*(read_logs(root / "raw", world, sessions) for root in (folders, tmp_path)), strict=True):
        assert np.array_equal(np.asarray(mine), np.asarray(theirs))


def test_bad_input_is_a_user_error(folders, tmp_path):
    world = build_world(seed=0, n_tracks=1000)
    with pytest.raises(UserError, match="1 sessions of the dataset are not in"):
        read_logs(folders / "raw", world, pd.DataFrame({"session_id": ["0_x"], "day": ["20180715"]}))
    with pytest.raises(UserError, match=r"no training_set_\*/log_\*_20300101"):
        read_logs(folders / "raw", world, pd.DataFrame({"session_id": ["0_x"], "day": ["20300101"]}))
    ids = pd.read_parquet(folders / "data" / "test" / "sessions.parquet")[:3]
    with pytest.raises(UserError, match="is not of this world"):
        read_logs(folders / "raw", build_world(seed=1, n_tracks=1000), ids)
    with pytest.raises(UserError, match=r"world\.json does not exist"):
        main(Config(raw=str(tmp_path), data=DataConfig(folder=str(folders / "data"))))
    with pytest.raises(UserError, match="whole halves"):
        Config(data=DataConfig(history_size=5))


def test_lists_fit_the_padding(world):
    assert world.lists(0).sizes.max() <= MAX_LIST
