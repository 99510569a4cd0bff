"""Logged sessions as an environment: candidates, rewards and states of small sessions, worked by hand."""

import pytest
import torch
from conftest import N_IDS, random_batch

from model.ddpg import STATE_LISTENED, STATE_SKIPPED, STATE_UNKNOWN
from utils.agents.environment import LoggedSessions
from utils.agents.options import EnvironmentConfig
from utils.core.errors import UserError
from utils.data.vocab import N_SPECIAL, PAD, UNK


def environment(task="skip", *, n_ids=N_IDS, **options):
    return LoggedSessions(n_ids, task, EnvironmentConfig(**options))


def batch_of(targets, labels):
    """Sessions with these targets, labels and random histories."""
    batch = random_batch(n=len(targets), t=len(targets[0]))
    return batch._replace(target_tracks=torch.tensor(targets), target_skips=torch.tensor(labels))


def choose(world, *tracks):
    """The places of these tracks among the candidates."""
    wanted = torch.tensor(tracks)[:, None]
    assert (world.candidates == wanted).any(1).all()
    return (world.candidates == wanted).byte().argmax(1)


TARGETS = batch_of([[7, 8, 9], [10, 11, PAD]], [[0, 1, 0], [1, 0, -1]])


def test_candidates_are_own_tracks_and_as_many_others():
    torch.manual_seed(0)
    world = environment(negatives=2, n_ids=10_000)
    world.reset(TARGETS)
    assert world.candidates.shape == (2, 9)
    first, second = (set(row[row != PAD].tolist()) for row in world.candidates)
    assert len(first) == 9
    assert first > {7, 8, 9}
    assert len(second) == 6
    assert second > {10, 11}
    assert world.left.tolist() == [3, 2]
    assert all(N_SPECIAL <= track < 10_000 for track in first | second)


def test_a_negative_is_never_one_of_the_sessions_tracks():
    world = environment(negatives=50, n_ids=N_SPECIAL + 6)
    world.reset(batch_of([[5, 6, 6]], [[0, 0, 0]]))
    candidates = world.candidates[world.candidates != PAD].tolist()
    assert sorted(track for track in candidates if track in (5, 6)) == [5, 6, 6]
    assert set(candidates) == set(range(5, 11))


def test_own_tracks_stand_anywhere():
    torch.manual_seed(0)
    world = environment()
    world.reset(batch_of([[7, PAD]] * 4000, [[0, -1]] * 4000))
    places = (world.candidates == 7).byte().argmax(1)
    assert (torch.bincount(places, minlength=4) / 4000).tolist() == pytest.approx([0.25] * 4, abs=0.03)


def test_skip_rewards_and_states_by_hand():
    torch.manual_seed(1)
    world = environment(n_ids=10_000)
    world.reset(TARGETS)
    start = world.history
    reward, done = world.step(choose(world, 8, 11))
    assert reward.tolist() == [-1, 1]
    assert done.tolist() == [False, False]
    assert world.history.tracks[:, -1].tolist() == [8, 11]
    assert world.history.skips[:, -1].tolist() == [STATE_SKIPPED, STATE_LISTENED]
    assert not world.history.log[:, -1].any()
    assert torch.equal(world.history.tracks[:, :-1], start.tracks[:, 1:])
    assert torch.equal(world.history.log[:, :-1], start.log[:, 1:])
    assert not (world.candidates == torch.tensor([[8], [11]])).any(), "executed tracks are no candidates any more"

    # A negative brings nothing, and leaves the session as it was.
    before = world.history
    stranger = next(track for track in world.candidates[0].tolist() if track not in (PAD, 7, 9))
    reward, done = world.step(choose(world, stranger, 10))
    assert reward.tolist() == [0, -1]
    assert done.tolist() == [False, True]
    assert torch.equal(world.history.tracks[0], before.tracks[0])
    assert world.history.tracks[1, -1] == 10
    assert stranger not in world.candidates[0].tolist()

    # The second session is over: nothing happens to it any more.
    before, candidates = world.history, world.candidates
    reward, done = world.step(torch.stack([(world.candidates[0] == 9).byte().argmax(), torch.tensor(0)]))
    assert reward.tolist() == [1, 0]
    assert done.tolist() == [True, False]
    assert torch.equal(world.history.tracks[1], before.tracks[1])
    assert torch.equal(world.candidates[1], candidates[1])
    assert not world.active.any()


def test_skip_reward_is_an_option():
    world = environment(skip_reward=-0.5)
    world.reset(TARGETS)
    assert world.step(choose(world, 8, 11))[0].tolist() == [-0.5, 1]
    assert world.history.skips[:, -1].tolist() == [STATE_SKIPPED, STATE_LISTENED]
    world = environment(skip_reward=0.25)
    world.reset(TARGETS)
    assert world.step(choose(world, 8, 11))[0].tolist() == [0.25, 1]
    assert world.history.skips[:, -1].tolist() == [STATE_SKIPPED, STATE_LISTENED]


def test_unknown_labels_and_tracks_are_left_out():
    batch = batch_of([[7, UNK, 9, 8]], [[0, 1, -1, 0]])
    skip, seq = environment("skip", negatives=0), environment("seq", negatives=0)
    skip.reset(batch)
    seq.reset(batch)
    assert skip.left.tolist() == [2]
    assert sorted(skip.candidates[0].tolist()) == [PAD, PAD, 7, 8]
    assert seq.left.tolist() == [3]
    assert sorted(seq.candidates[0].tolist()) == [PAD, 7, 8, 9]


def test_the_same_track_twice_has_its_own_labels():
    """The seed summed them up."""
    world = environment(negatives=0)
    world.reset(batch_of([[7, 7]], [[0, 1]]))
    rewards = [float(world.step(choose(world, 7))[0]) for _ in range(2)]
    assert sorted(rewards) == [-1, 1]


def test_seq_rewards():
    world = environment("seq", n_ids=10_000)
    world.reset(TARGETS)
    reward, _ = world.step(choose(world, 9, 11))
    assert reward.tolist() == [1, 1]
    assert world.history.tracks[:, -1].tolist() == [9, 11]
    assert world.history.skips[:, -1].tolist() == [STATE_UNKNOWN, STATE_UNKNOWN]
    stranger = next(track for track in world.candidates[0].tolist() if track not in (PAD, 7, 8))
    assert world.step(choose(world, stranger, 10))[0].tolist() == [0, 1]


def test_position_matched_rewards():
    world = environment("seq", n_ids=10_000, position_matched=True)
    world.reset(TARGETS)
    reward, _ = world.step(choose(world, 8, 10))
    assert reward.tolist() == [0, 1], "8 is the second track"
    assert world.history.tracks[:, -1].tolist() == [7, 10], "the log goes on"
    reward, done = world.step(choose(world, 8, 11))
    assert reward.tolist() == [1, 1]
    assert done.tolist() == [False, True]
    assert 9 in world.candidates[0].tolist()
    assert not {7, 8} & set(world.candidates[0].tolist())


def test_position_matched_takes_either_copy_of_a_track():
    torch.manual_seed(0)
    world = environment("seq", n_ids=10_000, position_matched=True)
    world.reset(batch_of([[7, 8, 7]] * 200, [[0, 0, 0]] * 200))
    reward, _ = world.step(choose(world, *[7] * 200))
    assert reward.tolist() == [1] * 200
    assert ((world.candidates == 7).sum(1) == 1).all()
    assert world.step(choose(world, *[7] * 200))[0].tolist() == [0] * 200, "8 is played now"
    assert world.step(choose(world, *[7] * 200))[0].tolist() == [1] * 200


def test_options_of_the_other_task_are_refused():
    for task, option in (("seq", {"skip_reward": -7.0}), ("skip", {"position_matched": True})):
        with pytest.raises(UserError, match=f"environment.{next(iter(option))} has no meaning for {task}"):
            environment(task, **option)


def test_labels_are_seen_as_rewards_only():
    """Other labels, another log: the same states and candidates until a track was executed; in seq for ever."""
    batch = random_batch(n=50)
    other = batch._replace(target_skips=torch.where(batch.target_skips >= 0, 1 - batch.target_skips, -1))
    for task in ("skip", "seq"):
        runs = []
        for seen in (batch, other):
            torch.manual_seed(0)
            world = environment(task)
            world.reset(seen)
            states = [(*world.history, world.candidates)]
            while world.active.any():
                world.step((world.candidates != PAD).byte().argmax(1))
                states.append((*world.history, world.candidates))
            runs.append(states)
        same = [all(map(torch.equal, *pair)) for pair in zip(*runs, strict=True)]
        assert same == ([True] * len(same) if task == "seq" else [True] + [False] * (len(same) - 1))


def test_every_session_ends_after_its_own_steps():
    batch = random_batch(n=200)
    world = environment()
    world.reset(batch)
    n_steps = torch.zeros(200, dtype=torch.int64)
    n_done = torch.zeros(200, dtype=torch.int64)
    while world.active.any():
        n_steps += world.active
        n_done += world.step((world.candidates != PAD).byte().argmax(1))[1]
    assert torch.equal(n_steps, (batch.target_skips >= 0).sum(1))
    assert (n_done == 1).all()


def test_where_there_is_no_candidate():
    world = environment(negatives=0)
    world.reset(TARGETS)
    empty = (world.candidates == PAD).byte().argmax(1)
    with pytest.raises(ValueError, match="no candidate"):
        world.step(torch.where(torch.tensor([False, True]), empty, 0))
