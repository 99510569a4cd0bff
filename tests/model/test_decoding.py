"""Decoding: step by step as teacher-forced, and greedy, beam and nucleus continuations against brute force."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import pytest
import torch
from conftest import N_IDS, random_batch
from sized_models import SeqTransformer
from torch import Tensor
from torch.testing import assert_close

from model.catalogue import Catalogue
from model.decoding import beam_search, greedy, recent, sample, select
from utils.data.batch import History
from utils.data.vocab import N_SPECIAL, PAD

SIZES = {"d_model": 16, "n_heads": 2, "n_layers": 2, "d_ff": 24}


def lively_model(n_ids: int = N_IDS, seed: int = 0, **options) -> SeqTransformer:
    """An untrained model whose continuations differ from session to session."""
    torch.manual_seed(seed)
    model = SeqTransformer(n_ids, torch.randn(n_ids, 3), **SIZES | options).eval()
    with torch.no_grad():
        model.decoder.tracks.table.weight.mul_(10)
        model.decoder.positions.mul_(50)
        model.head.bias.normal_()
        model.head.bias[:N_SPECIAL] = 100
        for layer in model.decoder.layers:
            layer.cross_attention.output.weight.mul_(20)
    return model


def log_p_of(
    model: SeqTransformer, history: History, tracks: Tensor, allowed: Tensor | None = None, no_repeat: int = 0
) -> Tensor:
    """Log-probabilities (B, T) of continuations (B, T), teacher-forced and renormalised over what may come next."""
    with torch.no_grad():
        logits = model.logits(model(history, model.previous_tracks(history, tracks))).double()  # (B, T, V)
    if allowed is not None:
        logits[..., ~torch.isin(torch.arange(logits.shape[2]), allowed)] = -torch.inf
    session, past = torch.cat([history.tracks, tracks], dim=1).tolist(), history.tracks.shape[1]
    for row, ids in enumerate(session):
        for step in range(tracks.shape[1]):
            end = past + step
            logits[row, step, ids[max(0, end - no_repeat) : end]] = -torch.inf
    return logits.log_softmax(2).gather(2, tracks[..., None])[..., 0].float()


# --- Steps


@pytest.mark.parametrize(
    "options",
    [{}, {"start": "bos", "tie_weights": True}, {"skip_encoding": "embedding", "use_log": True, "n_layers": 3}],
    ids=str,
)
@pytest.mark.parametrize("n", [1, 6])
@torch.no_grad()
def test_steps_are_teacher_forcing(n, options):
    batch, model = random_batch(n=n, seed=2), lively_model(**options)
    assert (batch.history.tracks == PAD).any() or n == 1
    previous = model.previous_tracks(batch.history, batch.target_tracks)
    expected = model(batch.history, previous)  # (B, T, D)
    state = model.begin(batch.history)
    for step, tracks in enumerate(previous.T):
        states, state = model.step(state, tracks)
        assert_close(states, expected[:, step], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_of_the_history_is_honoured():
    batch, model = random_batch(), lively_model()
    tracks = greedy(model, batch.history, 5)
    for row, length in enumerate((batch.history.tracks != PAD).sum(1).tolist()):
        alone = History(*(tensor[row : row + 1, 10 - length :] for tensor in batch.history))
        assert_close(greedy(model, alone, 5), tracks[row : row + 1])


@torch.no_grad()
def test_rows_of_a_state_can_be_reordered_repeated_and_dropped():
    batch, model = random_batch(), lively_model()
    rows = torch.tensor([3, 3, 0, 5])
    previous = model.previous_tracks(batch.history, batch.target_tracks)
    expected = model(batch.history, previous)
    state = model.begin(batch.history)
    for step in range(4):
        _, state = model.step(state, previous[:, step])
    states, _ = model.step(select(state, rows), previous[rows, 4])
    assert_close(states, expected[rows, 4], atol=1e-5, rtol=1e-5)


def test_select_goes_into_any_nesting():
    class Pair(NamedTuple):
        left: Tensor
        right: list

    x = torch.arange(6).view(3, 2)
    state = select((Pair(x, [x + 10, (x,)]), x[:, 0]), torch.tensor([2, 0]))
    assert isinstance(state, tuple)
    assert isinstance(state[0], Pair)
    assert isinstance(state[0].right, list)
    assert state[0].left.tolist() == [[4, 5], [0, 1]]
    assert state[0].right[0].tolist() == [[14, 15], [10, 11]]
    assert state[0].right[1][0].tolist() == [[4, 5], [0, 1]]
    assert state[1].tolist() == [4, 0]


# --- Greedy


@pytest.mark.parametrize("start", ["last", "bos"])
@pytest.mark.parametrize("tie_weights", [False, True])
@pytest.mark.parametrize("screen", [False, True])
@torch.no_grad()
def test_greedy_is_the_argmax_of_its_own_teacher_forcing(start, tie_weights, screen, monkeypatch):
    monkeypatch.setattr("model.catalogue.BLOCK", 4)
    model, batch = lively_model(start=start, tie_weights=tie_weights), random_batch(n=12)
    tracks = greedy(model, batch.history, 10, catalogue=Catalogue(model.head, screen=screen))
    states = model(batch.history, model.previous_tracks(batch.history, tracks))
    assert_close(model.logits(states).argmax(-1), tracks)
    assert tracks.shape == (12, 10)
    assert len({tuple(row) for row in tracks.tolist()}) > 6
    assert_close(greedy(model, batch.history, 4), tracks[:, :4])


def test_recent_tracks():
    session = torch.tensor([[5, 6, 7]])
    assert [recent(session, n).tolist() for n in (0, 1, 3, 9)] == [[[]], [[7]], [[5, 6, 7]], [[5, 6, 7]]]


@pytest.mark.parametrize("no_repeat", [1, 3, 14])
@torch.no_grad()
def test_greedy_under_constraints_is_brute_force(no_repeat):
    model, history = lively_model(), random_batch(n=8).history
    allowed = torch.arange(N_SPECIAL, N_IDS, 2)  # odd ids
    session = history.tracks
    for _ in range(6):
        previous = torch.cat([model.start(history), session[:, 10:]], dim=1)
        logits = model.logits(model(history, previous)[:, -1])
        logits[:, ::2] = -torch.inf
        logits.scatter_(1, session[:, -no_repeat:], -torch.inf)
        session = torch.cat([session, logits.argmax(1, keepdim=True)], dim=1)
    found = greedy(model, history, 6, catalogue=Catalogue(model.head, allowed), no_repeat=no_repeat)
    assert_close(found, session[:, 10:])
    if no_repeat == 1:
        assert not torch.equal(found, greedy(model, history, 6, catalogue=Catalogue(model.head, allowed)))


@pytest.mark.parametrize("way", ["greedy", "beam", "sample"])
def test_no_way_repeats_or_leaves_the_allow_list(way):
    model, history = lively_model(), random_batch(n=8).history
    allowed = torch.arange(20, 34)
    options = {"catalogue": Catalogue(model.head, allowed), "no_repeat": 13}
    if way == "greedy":
        tracks = greedy(model, history, 10, **options)
    elif way == "beam":
        tracks = beam_search(model, history, 10, width=3, **options).tracks
    else:
        tracks = sample(model, history, 10, top_p=1.0, seed=0, rows=torch.arange(8), **options)
    assert torch.isin(tracks, allowed).all()
    for continuation in tracks.flatten(0, -2).tolist():
        assert len(set(continuation)) == 10, "13 tracks back is all of the continuation"
    options["no_repeat"] = 14
    with pytest.raises(ValueError, match="of 14 tracks of which"):
        greedy(model, history, 10, **options)


# --- Beam search


@pytest.mark.parametrize("no_repeat", [0, 2])
@pytest.mark.parametrize("seed", range(4))
def test_a_beam_that_is_wide_enough_finds_the_most_probable_continuation(seed, no_repeat):
    n_tracks, length = 6, 3
    model = lively_model(N_SPECIAL + n_tracks + 2, seed)
    allowed = torch.arange(N_SPECIAL, N_SPECIAL + n_tracks)  # two more tracks are not
    generator = torch.Generator().manual_seed(seed)
    history = random_batch(n=3, seed=seed).history
    history = history._replace(tracks=torch.randint(N_SPECIAL, N_SPECIAL + n_tracks, (3, 10), generator=generator))
    every = torch.tensor(list(product(allowed.tolist(), repeat=length)))  # (216, 3)
    beams = beam_search(
        model, history, length, width=n_tracks**2, catalogue=Catalogue(model.head, allowed), no_repeat=no_repeat
    )
    for row in range(3):
        alike = History(*(tensor[row : row + 1].expand(len(every), *tensor.shape[1:]) for tensor in history))
        total = log_p_of(model, alike, every, allowed, no_repeat).sum(1)
        best = total.argsort(descending=True)[:10]
        assert_close(beams.log_probability[row, :10], total[best], atol=1e-4, rtol=1e-4)
        assert_close(beams.tracks[row, :10], every[best])


@pytest.mark.parametrize("no_repeat", [0, 4])
def test_log_probabilities_of_beams_are_those_of_teacher_forcing(no_repeat):
    model, history = lively_model(), random_batch(n=5).history
    allowed = torch.arange(10, 40)
    catalogue = Catalogue(model.head, allowed)
    beams = beam_search(model, history, 7, width=6, catalogue=catalogue, no_repeat=no_repeat)
    assert beams.tracks.shape == (5, 6, 7)
    assert (beams.log_probability.diff(dim=1) <= 0).all(), "the best first"
    for rank in range(6):
        expected = log_p_of(model, history, beams.tracks[:, rank], allowed, no_repeat).sum(1)
        assert_close(beams.log_probability[:, rank], expected, atol=1e-4, rtol=1e-4)
    for tracks in beams.tracks.tolist():
        assert len({tuple(continuation) for continuation in tracks}) == 6


@pytest.mark.parametrize("no_repeat", [0, 3])
def test_a_beam_of_one_is_greedy(no_repeat):
    model, history = lively_model(), random_batch(n=12).history
    beams = beam_search(model, history, 10, width=1, no_repeat=no_repeat)
    assert_close(beams.tracks[:, 0], greedy(model, history, 10, no_repeat=no_repeat))


def test_wider_beams_find_more_probable_continuations():
    mean = []
    for width in (1, 4, 16, 50):
        found = [beam_search(lively_model(seed=s), random_batch(n=20).history, 5, width=width) for s in range(3)]
        mean.append(float(torch.cat([beams.log_probability[:, 0] for beams in found]).mean()))
    assert mean[0] + 0.05 < mean[1] <= mean[2] <= mean[3]


def test_sessions_are_searched_in_chunks(monkeypatch):
    model, history = lively_model(), random_batch(n=7).history
    whole = beam_search(model, history, 4, width=5)
    monkeypatch.setattr("model.decoding.BEAMS_AT_ONCE", 12)
    chunked = beam_search(model, history, 4, width=5)
    assert_close(chunked.tracks, whole.tracks)
    assert_close(chunked.log_probability, whole.log_probability)


def test_a_beam_wider_than_there_are_continuations():
    model, history = lively_model(N_SPECIAL + 3), random_batch(n=2).history
    history = history._replace(tracks=history.tracks.clamp(max=N_SPECIAL + 2))
    beams = beam_search(model, history, 2, width=50)
    assert beams.tracks.shape == (2, 9, 2)
    assert_close(beams.log_probability.exp().sum(1), torch.ones(2))


@pytest.mark.parametrize("no_repeat", [2, 4])
def test_beams_are_not_lost_to_tracks_that_could_not_come_anyway(no_repeat):
    """What is forbidden may be outside the allow-list, padding or double: five tracks are left after this history."""
    model, n_tracks, length = lively_model(N_SPECIAL + 15, seed=1), 5, 3
    allowed = torch.arange(N_SPECIAL, N_SPECIAL + n_tracks)
    history = random_batch(n=2).history
    history = history._replace(tracks=torch.full_like(history.tracks, N_SPECIAL + 12))
    every = torch.tensor(list(product(allowed.tolist(), repeat=length)))  # (125, 3)
    beams = beam_search(
        model, history, length, width=200, catalogue=Catalogue(model.head, allowed), no_repeat=no_repeat
    )
    alike = History(*(tensor[:1].expand(len(every), *tensor.shape[1:]) for tensor in history))
    total = log_p_of(model, alike, every, allowed, no_repeat).sum(1)
    possible = torch.tensor([len(set(tracks)) == length for tracks in every.tolist()])
    assert (beams.log_probability[0] > -torch.inf).sum() == possible.sum() == 60
    assert_close(beams.log_probability[0, :60], total[possible].sort(descending=True).values, atol=1e-4, rtol=1e-4)


def test_a_model_says_how_far_it_can_continue():
    model, history = lively_model(), random_batch(n=2).history
    with pytest.raises(ValueError, match=r"built to continue sessions by 10 tracks \(target_size\)"):
        greedy(model, history, 11)


# --- Nucleus sampling


def test_a_tiny_nucleus_and_a_low_temperature_are_greedy():
    model, history = lively_model(), random_batch(n=12).history
    for options in ({"top_p": 1e-6}, {"top_p": 1.0, "temperature": 1e-4}):
        drawn = sample(model, history, 10, seed=0, rows=torch.arange(12), **options)
        assert_close(drawn, greedy(model, history, 10))


def test_the_seed_decides_what_is_drawn():
    model, history = lively_model(), random_batch(n=12).history
    first, again, other = (sample(model, history, 6, top_p=0.9, seed=seed, rows=torch.arange(12)) for seed in (1, 1, 2))
    assert_close(first, again)
    assert (first != other).float().mean() > 0.3


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.8, 1.0), (0.5, 2.0)])
def test_frequencies_are_those_of_the_renormalised_nucleus(top_p, temperature):
    model, n = lively_model(), 20_000
    allowed = torch.arange(8, 40)
    one = random_batch(n=1).history
    history = History(*(tensor.expand(n, *tensor.shape[1:]) for tensor in one))
    drawn = sample(
        model,
        history,
        1,
        top_p=top_p,
        temperature=temperature,
        seed=0,
        rows=torch.arange(n),
        catalogue=Catalogue(model.head, allowed),
        no_repeat=2,
    )
    with torch.no_grad():
        logits = model.logits(model(one, model.start(one)))[0, 0] / temperature
    logits[:8] = logits[40:] = -torch.inf
    logits[one.tracks[0, -2:]] = -torch.inf
    p = logits.softmax(0)
    highest, order = p.sort(descending=True)
    inside = order[(highest.cumsum(0) - highest) < top_p]
    expected = torch.zeros(N_IDS).index_copy(0, inside, p[inside] / p[inside].sum())
    assert len(inside) > 2
    counts = torch.bincount(drawn[:, 0], minlength=N_IDS)
    assert (counts[expected == 0] == 0).all()
    off = (counts / n - expected).abs()
    assert (off <= 4.5 * (expected * (1 - expected) / n).sqrt()).all()
