"""The catalogue: exact top-k behind a bfloat16 screen, on heads that are made to mislead it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from model.catalogue import OUTPUT_ROUNDING, Catalogue, Screen, best_of, draw_from_nucleus, rows_at_once
from model.embeddings import TrackHead
from model.random_numbers import keys_of
from utils.data.vocab import N_SPECIAL, PAD

D = 12


def make_head(weight: Tensor, bias: Tensor) -> TrackHead:
    """A head of tracks with these vectors (n, D) and biases (n,); the special ids would win if they were let."""
    n, d = weight.shape
    head = TrackHead(n + N_SPECIAL, d)
    with torch.no_grad():
        head.weight.fill_(1e3)
        head.bias.fill_(1e9)
        head.weight[N_SPECIAL:] = weight
        head.bias[N_SPECIAL:] = bias
    return head


def adversary(kind: str, seed: int, n: int = 700, n_states: int = 9, d: int = D) -> tuple[TrackHead, Tensor]:
    """A head of n tracks, and states. All but `normal` and `huge` have scores that float32 sums without rounding, so
    that any order of summation gives the same and ties are ties."""
    generator = torch.Generator().manual_seed(seed)

    def whole(size: int, *shape: int) -> Tensor:
        return torch.randint(-size, size + 1, shape, generator=generator).float()

    weight, bias, states = whole(2000, n, d) / 64, whole(500, n) / 16, whole(40, n_states, d) / 8
    if kind == "normal":
        weight, bias = torch.randn(n, d, generator=generator), torch.randn(n, generator=generator)
        states = torch.randn(n_states, d, generator=generator)
    elif kind == "near ties":  # closer than a bfloat16 can tell
        weight = whole(8, 1, d).expand(n, d).clone()
        weight[:, 0] = 1 + torch.randperm(n, generator=generator) / 4096
        bias, states = torch.full((n,), 0.75), whole(2, n_states, d) + 0.5
    elif kind == "identical":
        weight, bias = weight[:5].repeat(n // 5, 1), bias[:5].repeat(n // 5)
    elif kind == "huge":  # a few norms that would drown a bound shared by all
        weight[torch.randint(0, n, (9,), generator=generator)] *= 2.0**20
        states[::2] *= 2.0**20
    elif kind == "bias":
        weight, bias = whole(3, n, d) / 256, 256 + torch.randperm(n, generator=generator) / 512
    elif kind == "cancelling":  # scores near 0 of long vectors: the errors are large beside the scores
        states = states[:1] + whole(1, n_states, d) / 64
        bias = whole(8, n) / 64 - weight @ states[0]
    elif kind == "tiny":  # squares of the rounding errors are too small for float32
        weight, bias = weight * 2.0**-75, bias * 2.0**-75
    elif kind == "zero":
        weight, bias = torch.zeros(n, d), torch.zeros(n)
    return make_head(weight, bias), states


KINDS = ["normal", "whole", "near ties", "identical", "huge", "bias", "cancelling", "tiny", "zero"]


def exact_top_k(
    head: TrackHead, states: Tensor, k: int, allowed: Tensor | None = None, forbidden: Tensor | None = None
):
    """By float32 dot products, one for each track, and a stable sort: scores and ids (N, k)."""
    scores = (states[:, None] * head.weight).sum(2) + head.bias
    out = torch.ones(scores.shape, dtype=torch.bool)
    out[:, N_SPECIAL:] = False
    if allowed is not None:
        out |= ~torch.isin(torch.arange(scores.shape[1]), allowed)
    if forbidden is not None:
        out.scatter_(1, forbidden, torch.ones_like(forbidden, dtype=torch.bool))
    return tuple(x[:, :k] for x in scores.masked_fill(out, -torch.inf).sort(dim=1, descending=True, stable=True))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 4 tracks, so that small catalogues have many; few candidates are already too many."""
    monkeypatch.setattr("model.catalogue.BLOCK", 4)
    monkeypatch.setattr("model.catalogue.MAX_CANDIDATES", 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [4, 64])
@torch.no_grad()
def test_screened_top_k_is_exact(kind, block, monkeypatch):
    monkeypatch.setattr("model.catalogue.BLOCK", block)
    for seed in range(12):
        head, states = adversary(kind, seed, n=700 if seed % 2 else 64 * 9)
        catalogue = Catalogue(head, screen=True)
        for k in (1, 2) if block == 64 else (1, 7, 30):
            assert k <= catalogue.screen.n_blocks // 4, "else nothing is screened"
            scores, ids = exact_top_k(head, states, k)
            found = catalogue.top_k(states, k)
            assert_close(found.scores, scores, rtol=1e-5, atol=1e-5)  # lost states are scored by a matrix product
            assert_close(found.ids, ids)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_plain_top_k_is_exact(kind):
    for seed in range(5):
        head, states = adversary(kind, seed, n=300)
        for k in (1, 7, 299, 300):
            found, (scores, ids) = Catalogue(head, screen=False).top_k(states, k), exact_top_k(head, states, k)
            assert_close(found.scores, scores, rtol=1e-5, atol=1e-5)
            assert_close(found.ids, ids)


@pytest.mark.parametrize("screen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_forbidden_and_allowed_tracks(kind, screen, small_blocks):
    generator = torch.Generator().manual_seed(0)
    head, states = adversary(kind, 3)
    n_ids = len(head.bias)
    allowed = N_SPECIAL + torch.randperm(n_ids - N_SPECIAL, generator=generator)[:300]
    best = exact_top_k(head, states, 8, allowed)[1]
    # The best ones, twice, padding, tracks outside the allow-list, and some that differ from state to state.
    strangers = torch.randint(0, n_ids, (len(states), 5), generator=generator)
    forbidden = torch.cat([best, best[:, :3], torch.full((len(states), 2), PAD), strangers], dim=1)
    for some in (allowed, None):
        for k in (1, 9):
            found = Catalogue(head, some, screen=screen).top_k(states, k, forbidden)
            assert_close(found.ids, exact_top_k(head, states, k, some, forbidden)[1])
            assert not (found.ids[:, :, None] == forbidden[:, None]).any()


@pytest.mark.parametrize("screen", [False, True])
def test_asking_for_more_than_there_is(screen):
    head, states = adversary("normal", 0, n=20)
    allowed = torch.tensor([7, 9, 9, 12])
    catalogue = Catalogue(head, allowed, screen=screen)
    assert len(catalogue) == 3
    assert catalogue.top_k(states, 3).ids.sort(1).values.tolist() == [[7, 9, 12]] * len(states)
    with pytest.raises(ValueError, match="cannot predict the 4 best of 3 tracks"):
        catalogue.top_k(states, 4)
    with pytest.raises(ValueError, match="cannot predict the 1 best of 3 tracks of which 3 may be forbidden"):
        catalogue.top_k(states, 1, torch.full((len(states), 3), 7))
    for wrong in ([], [4, 8], [8, 25]):
        with pytest.raises(ValueError, match="must be some of the ids 5 to 24"):
            Catalogue(head, torch.tensor(wrong, dtype=torch.int64))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("tiny", "zero")])
@pytest.mark.parametrize(("d", "n_states"), [(1, 3), (64, 1), (64, 9), (256, 70)])
def test_no_bfloat16_score_is_further_off_than_the_bound(kind, d, n_states):
    closest = 0.0
    for seed in range(5):
        head, states = adversary(kind, seed, d=d, n_states=n_states)
        catalogue = Catalogue(head, screen=True)
        off, allowance = errors(catalogue, states)
        assert (off <= allowance).all()
        closest = max(closest, float((off / allowance).max()))
    assert closest > 0.05, "a bound that is far too wide would make everything a candidate"


def errors(catalogue: Catalogue, states: Tensor) -> tuple[Tensor, Tensor]:
    """How far bfloat16 scores are off, and how far they may be: (n, N)."""
    screen, n = catalogue.screen, len(catalogue)
    assert screen is not None
    scores = screen.scores(states, torch.zeros(len(states), 0, dtype=torch.int64)).flatten(0, 1)[:n].double()
    exact = catalogue.weight.double() @ states.double().T + catalogue.bias.double()[:, None]
    wrong = screen.wrong(states).repeat_interleave(len(scores) // screen.n_blocks + 1, 0)[:n]
    return (scores - exact).abs(), wrong + scores.abs() * OUTPUT_ROUNDING


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


@pytest.mark.parametrize("term", ["|dw| |x|", "|w'| |dx|", "gamma", "|db|"])
def test_every_term_of_the_bound_is_needed(term, monkeypatch):
    """For each there is a head of which only this term tells the error: without it the bound is broken."""
    monkeypatch.setattr("model.catalogue.BLOCK", 1)
    generator = torch.Generator().manual_seed(0)
    weight, states = torch.randn(400, 256, generator=generator), torch.randn(3, 256, generator=generator)
    if term != "|dw| |x|":
        weight = bf16(weight)
    if term != "|w'| |dx|":
        states = bf16(states)
    bias = -(weight @ states[0])  # so that the score itself, by which the output is rounded, is near 0
    bias = bf16(bias) + bf16(bias - bf16(bias))
    if term == "|db|":  # a bias of 1 + 1.5 * 2^-9 + 2^-17, of which the last part is lost
        weight, states = torch.tensor([[-1.0, -1.5 * 2.0**-9]]), torch.ones(1, 2)
        bias = torch.tensor([1 + 1.5 * 2.0**-9 + 2.0**-17])
    for scale in (2.0**-75, 1.0):  # squares of the smaller numbers vanish
        catalogue = Catalogue(make_head(weight * scale, bias * scale), screen=True)
        off, allowance = errors(catalogue, states[:1])
        assert (off <= allowance).all()
    catalogue.screen.bound[:, ["|dw| |x|", "|w'| |dx|", "gamma", "|db|"].index(term)] = 0
    off, allowance = errors(catalogue, states[:1])
    assert (off > allowance).any()


@torch.no_grad()
def test_without_the_bound_near_ties_are_missed(monkeypatch, small_blocks):
    head, states = adversary("cancelling", 0)
    expected = exact_top_k(head, states, 3)[1]
    assert_close(Catalogue(head, screen=True).top_k(states, 3).ids, expected)
    monkeypatch.setattr(Screen, "wrong", lambda self, states: torch.zeros(self.n_blocks, len(states)))
    assert not torch.equal(Catalogue(head, screen=True).top_k(states, 3).ids, expected)


@torch.no_grad()
def test_only_few_tracks_are_scored_again():
    head, states = adversary("normal", 0, n=20_000, n_states=30, d=64)
    catalogue = Catalogue(head, screen=True)
    rows, _ = catalogue.screen.candidates(states, torch.zeros(30, 0, dtype=torch.int64), 10)
    assert 10 * 30 <= len(rows) < 60 * 30


@torch.no_grad()
def test_states_with_too_many_candidates_are_not_scored_twice(monkeypatch, small_blocks):
    head, states = adversary("normal", 0)
    states[[0, 4]] = 0
    head.bias[N_SPECIAL:] = 1  # the two states like all 700 tracks alike
    catalogue = Catalogue(head, screen=True)
    scored = []
    pairs = catalogue._pairs
    monkeypatch.setattr(catalogue, "_pairs", lambda s, rows, places: (scored.append(rows), pairs(s, rows, places))[1])
    assert catalogue.top_k(states, 2).ids[[0, 4]].tolist() == [[5, 6], [5, 6]]
    assert not torch.isin(torch.tensor([0, 4]), scored[0]).any()
    assert torch.bincount(scored[0]).max() <= 100
    rows, _ = catalogue.screen.candidates(states, torch.zeros(len(states), 0, dtype=torch.int64), 2)
    assert not torch.isin(torch.tensor([0, 4]), rows).any(), "nor are they all held"


@torch.no_grad()
def test_states_and_candidates_in_chunks(monkeypatch, small_blocks):
    head, states = adversary("normal", 0, n_states=11)
    for screen in (False, True):
        catalogue = Catalogue(head, screen=screen)
        whole = catalogue.top_k(states, 5), catalogue.top_k_log_p(states, 5)
        with monkeypatch.context() as patch:
            patch.setattr("model.catalogue.SCORES_AT_ONCE", 3 * 700)
            patch.setattr("model.catalogue._PAIRS_AT_ONCE", 4)
            for chunked, expected in zip(
                (catalogue.top_k(states, 5), catalogue.top_k_log_p(states, 5)), whole, strict=True
            ):
                assert_close(chunked.ids, expected.ids)
                assert_close(chunked.scores, expected.scores)
    assert Catalogue(head).top_k(states[:0], 5).ids.shape == (0, 5)


def test_scores_that_are_not_finite_do_not_hang_or_hide():
    head, states = adversary("whole", 0)
    states[0], states[1] = torch.nan, 1e38
    found, plain = (Catalogue(head, screen=screen).top_k(states, 2) for screen in (True, False))
    assert_close(found.ids[2:], plain.ids[2:])
    assert found.ids.min() >= N_SPECIAL
    assert (found.ids[:, 0] != found.ids[:, 1]).all()
    with pytest.raises(ValueError, match="not finite"):
        Catalogue(head).draw(states, top_p=0.5, temperature=1.0, keys=keys_of(0, torch.arange(len(states)), 0))


@pytest.mark.parametrize("bad", [-torch.inf, torch.nan])
def test_one_score_that_is_not_finite_hides_no_other(bad):
    """A track is masked by a bias of minus infinity: those beside it are found all the same."""
    torch.manual_seed(0)
    head, states = TrackHead(3000, 8), torch.randn(4, 8)
    with torch.no_grad():
        head.bias[100] = bad
    before = Catalogue(head, screen=False).top_k(states, 5) if bad == -torch.inf else None
    found = Catalogue(head, screen=True)
    assert found.screen is None
    if before is not None:
        assert_close(found.top_k(states, 5).ids, before.ids)


def test_the_screen_is_built_by_the_first_search_that_needs_it(monkeypatch):
    built = []
    monkeypatch.setattr("model.catalogue.Screen", lambda *weights: built.append(1) or Screen(*weights))
    head, states = adversary("normal", 0)
    catalogue = Catalogue(head, screen=True)
    catalogue.top_k_log_p(states, 3)
    catalogue.draw(states, top_p=0.5, temperature=1.0, keys=keys_of(0, torch.arange(len(states)), 0))
    assert built == []
    for _ in range(2):
        catalogue.top_k(states, 1)
    assert built == [1]


def test_rows_at_once_by_hand():
    assert [rows_at_once(n, 512) for n in (1, 103_000, 2**18, 2**26, 2**30)] == [512, 512, 256, 1, 1]
    assert rows_at_once(3_700_000, 256) == 18


def test_scores_are_not_searched_under_autocast():
    head = TrackHead(30, 8)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="outside of autocast"):
        Catalogue(head).top_k(torch.randn(2, 8), 1)


@torch.no_grad()
def test_log_probabilities_of_tracks_that_may_not_come_are_minus_infinity():
    head, states = TrackHead(12, 4), torch.randn(3, 4)
    forbidden = torch.tensor([[5, 6, 6], [0, 0, 0], [7, 8, 9]])
    log_p, ids = Catalogue(head).top_k_log_p(states, 7, forbidden)
    assert ids.sort().values.tolist() == [list(range(5, 12))] * 3
    assert (log_p == -torch.inf).sum(1).tolist() == [2, 0, 3]
    assert_close(log_p.exp().sum(1), torch.ones(3))


@torch.no_grad()
def test_log_probabilities_are_renormalised_over_what_may_come():
    head, states = adversary("normal", 1, n=50)
    allowed = torch.arange(N_SPECIAL, N_SPECIAL + 20)
    forbidden = torch.full((len(states), 2), 6)
    forbidden[0, 1] = 9
    log_p, ids = Catalogue(head, allowed).top_k_log_p(states, 18, forbidden)
    scores = head(states)[:, N_SPECIAL : N_SPECIAL + 20]
    scores[:, 6 - N_SPECIAL] = -torch.inf
    scores[0, 9 - N_SPECIAL] = -torch.inf
    expected = scores.log_softmax(1)
    assert_close(log_p, expected.gather(1, ids - N_SPECIAL))
    assert_close(log_p, expected.topk(18, dim=1).values)
    assert_close(log_p[0].exp().sum().item(), 1.0)


def test_best_of_by_hand():
    scores = torch.tensor([[1.0, 3, 3, 2, 3], [5, 4, 4, 4, 4], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]])
    values, places = best_of(scores, 2)
    assert places.tolist() == [[1, 2], [0, 1], [0, 1], [4, 3]]
    assert values.tolist() == [[3, 3], [5, 4], [0, 0], [5, 4]]
    assert best_of(scores, 5)[1][0].tolist() == [1, 2, 4, 3, 0]


@pytest.mark.parametrize(
    ("top_p", "nucleus"),
    [(1e-6, [0.4]), (0.4, [0.4]), (0.41, [0.4, 0.3]), (0.75, [0.4, 0.3, 0.2]), (0.95, [0.4, 0.3, 0.2, 0.1])],
)
def test_nucleus_by_hand(top_p, nucleus):
    p = torch.tensor([0.1, 0.4, 0.0, 0.2, 0.3])
    n = 20_000
    drawn = draw_from_nucleus(p.expand(n, 5), top_p, keys_of(0, torch.arange(n), 0))
    frequency = torch.bincount(drawn, minlength=5) / n
    expected = torch.where(p >= min(nucleus), p, 0) / sum(nucleus)
    expected[2] = 0
    assert (frequency[expected == 0] == 0).all()
    # 4.5 standard deviations
    assert ((frequency - expected).abs() <= 4.5 * (expected * (1 - expected) / n).sqrt()).all()


def test_a_place_without_probability_is_never_drawn(monkeypatch):
    """Not even if the random number, by rounding, points behind everything."""
    random = iter([1.0, 0.0])
    monkeypatch.setattr("model.catalogue.uniform", lambda keys, draw: torch.full(keys.shape, next(random)))
    probability = torch.tensor([[0.5, 0.25, 0.2499, 0.0]])
    assert draw_from_nucleus(probability, 1.0, torch.zeros(1, dtype=torch.int64)).tolist() == [0]


def test_a_rare_place_is_drawn_by_its_own_random_numbers(monkeypatch):
    """In float32, 2^-26 adds nothing to a sum near 1: of these 4,096 places only the last could be drawn."""
    probability = torch.tensor([[1 - 2.0**-14, *[2.0**-26] * 4096]])
    number = 1 - 2.0**-15
    monkeypatch.setattr("model.catalogue.uniform", lambda keys, _: torch.full(keys.shape, number, dtype=torch.float64))
    assert draw_from_nucleus(probability, 1.0, torch.zeros(1, dtype=torch.int64)).tolist() == [2049]


@pytest.mark.parametrize("top_p", [1e-50, 1e-6])
def test_the_smallest_nucleus_is_the_best_track(top_p):
    p = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    assert draw_from_nucleus(p, top_p, keys_of(0, torch.arange(2), 0)).tolist() == [1, 0]


def test_the_lowest_temperature_draws_the_best_track():
    torch.manual_seed(0)
    head, states = TrackHead(30, 8), 1e4 * torch.randn(5, 8)
    catalogue = Catalogue(head)
    drawn = catalogue.draw(states, top_p=1.0, temperature=1e-36, keys=keys_of(0, torch.arange(5), 0))
    assert_close(drawn, catalogue.top_k(states, 1).ids[:, 0])
