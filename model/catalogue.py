"""The best tracks of a whole catalogue, exactly, and faster than scoring it in float32.

A track's score is the dot product of its vector and the state, plus the track's bias. Where the processor multiplies
bfloat16 fast, the search first computes all scores in bfloat16. A bound on the rounding error of each score tells which
few tracks may be among the best k, and only these are scored in float32. So the result is that of float32 alone, up to
the rounding of float32 itself.
Shapes: see the legend in `utils/data/batch.py`; N states, n tracks of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from model.embeddings import TrackHead
from model.random_numbers import uniform
from utils.data.vocab import N_SPECIAL

SCORES_AT_ONCE = 2**25
"""Scores that are held at once: 128 MiB in float32, 64 MiB in bfloat16."""
BLOCK = 64
"""Tracks in a block; the search first looks only at the highest score of each block."""
MAX_CANDIDATES = 512
"""At most so many tracks of a state are scored again; with more, float32 from the start is no slower."""
OUTPUT_ROUNDING = 2.0**-8
"""Largest rounding error of a number written as bfloat16, relative to the written number."""
NORM_ROUNDING = 2.0**-9
"""A generous allowance for the relative rounding error of the norms in the bound."""
UNDERFLOW = 2.0**-63
"""Smaller numbers add nothing to a norm: their squares underflow."""
_PAIRS_AT_ONCE = 2**14
"""Pairs of a state and a track that are scored again together: 16 MiB of vectors at width 256."""


def rows_at_once(n_tracks: int, most: int) -> int:
    """How many rows of `n_tracks` scores to hold at once: `most`, but no more than 256 MiB of float32."""
    return max(1, min(most, 2**26 // n_tracks))


class TopK(NamedTuple):
    """The best tracks of N states, the best first; ties go to the smaller id."""

    scores: Tensor
    """float32 (N, k)"""
    ids: Tensor
    """int64 (N, k)"""


class Catalogue:
    """The tracks that may be predicted, prepared for many searches. When the weights change, build a new one.

    Args:
        head: scores tracks.
        allowed: int64 (A,), ids of the tracks that may be predicted, none of them special; all tracks if not given.
        screen: search in bfloat16 first; by default where that is fast (see `bfloat16_is_fast`).

    Raises:
        ValueError: `allowed` is empty or holds an id that is not a track's.
    """

    def __init__(self, head: TrackHead, allowed: Tensor | None = None, *, screen: bool | None = None) -> None:
        weight, bias = head.weight.detach().float(), head.bias.detach().float()
        device, n_ids = weight.device, len(weight)
        if allowed is None:
            self.ids = torch.arange(N_SPECIAL, n_ids, device=device)
            self.weight, self.bias = weight[N_SPECIAL:], bias[N_SPECIAL:]
        else:
            self.ids = allowed.to(device).unique()  # sorted, so places are in the order of ids
            if not len(self.ids) or self.ids[0] < N_SPECIAL or self.ids[-1] >= n_ids:
                raise ValueError(f"the allowed tracks must be some of the ids {N_SPECIAL} to {n_ids - 1}")
            self.weight, self.bias = weight[self.ids], bias[self.ids]
        self.places = torch.full((n_ids,), -1, device=device)
        """int64 (V,): where an id is in `ids`, -1 if it is not."""
        self.places[self.ids] = torch.arange(len(self.ids), device=device)
        self._screened = bfloat16_is_fast(device) if screen is None else screen

    @cached_property
    def screen(self) -> Screen | None:
        """The search in bfloat16, built on first use; None if it is off or its bound is not finite."""
        screen = Screen(self.weight, self.bias) if self._screened else None
        return screen if screen is not None and screen.bound.isfinite().all() else None

    def __len__(self) -> int:
        """How many tracks may be predicted."""
        return len(self.ids)

    @torch.no_grad()
    def top_k(self, states: Tensor, k: int, forbidden: Tensor | None = None) -> TopK:
        """The k best tracks of each state.

        Args:
            states: (N, D).
            k: how many.
            forbidden: int64 (N, m), ids that may not be returned for each state; ids outside the catalogue (such as
                padding) are ignored.

        Raises:
            ValueError: m forbidden tracks might leave fewer than k.
        """
        parts = [self._top_k(*chunk, k) for chunk in self._chunks(states, k, forbidden)]
        return self._gather(parts)

    @torch.no_grad()
    def top_k_log_p(self, states: Tensor, k: int, forbidden: Tensor | None = None) -> TopK:
        """`top_k` with log-probabilities as scores, of a softmax over the catalogue without the forbidden tracks.

        Where fewer than k tracks may come next, the list ends with forbidden ones, at minus infinity.
        """
        parts = []
        for chunk in self._chunks(states, 1, forbidden):
            scores = self._scores(*chunk)
            best, places = best_of(scores, min(k, len(self)))
            highest = best[:, :1]
            parts.append((best - highest - scores.sub_(highest).exp_().sum(1, keepdim=True).log(), places))
        return self._gather(parts)

    @torch.no_grad()
    def draw(
        self,
        states: Tensor,
        forbidden: Tensor | None = None,
        *,
        top_p: float,
        temperature: float,
        keys: Tensor,
    ) -> Tensor:
        """One track for each state by nucleus sampling (Holtzman et al. 2020): int64 (N,).

        Args:
            states, forbidden: as in `top_k`.
            top_p: draw among the most probable tracks that together have at least this probability, in (0, 1].
            temperature: divides the scores, above 0.
            keys: int64 (N,), of the random numbers of each state (`random_numbers.keys_of`).

        Raises:
            ValueError: m forbidden tracks might be all, or scores are not finite.
        """
        parts: list[Tensor] = []
        for chunk in self._chunks(states, 1, forbidden):
            scores = self._scores(*chunk)
            probability = scores.sub_(scores.amax(1, keepdim=True)).div_(temperature).softmax(1)
            done = sum(map(len, parts))
            parts.append(draw_from_nucleus(probability, top_p, keys[done : done + len(scores)]))
        return self.ids[torch.cat(parts)]

    def _chunks(self, states: Tensor, k: int, forbidden: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """States (N, D) with the places of their forbidden tracks (N, m), a few rows at a time."""
        if torch.is_autocast_enabled(states.device.type):
            raise ValueError("scores in bfloat16 are not exact; search outside of autocast")
        if forbidden is None:
            forbidden = torch.zeros(len(states), 0, dtype=torch.int64, device=states.device)
        if not 1 <= k <= len(self) - forbidden.shape[1]:
            left = f"{len(self)} tracks of which {forbidden.shape[1]} may be forbidden"
            raise ValueError(f"cannot predict the {k} best of {left}")
        size = max(1, SCORES_AT_ONCE // len(self))
        yield from zip(states.float().split(size), self.places[forbidden].split(size), strict=True)

    def _gather(self, parts: list[tuple[Tensor, Tensor]]) -> TopK:
        scores, places = (torch.cat(part) for part in zip(*parts, strict=True))
        return TopK(scores, self.ids[places])

    def _scores(self, states: Tensor, forbidden: Tensor) -> Tensor:
        """Scores float32 (N, n) of all tracks, minus infinity at forbidden places (N, m)."""
        scores = torch.addmm(self.bias, states, self.weight.T)
        scores[_pairs_of(forbidden)] = -torch.inf
        return scores

    def _top_k(self, states: Tensor, forbidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and places (N, k)."""
        if self.screen is None or k > self.screen.n_blocks // 4:
            return best_of(self._scores(states, forbidden), k)
        rows, places = self.screen.candidates(states, forbidden, k)
        n_candidates = torch.bincount(rows, minlength=len(states))
        # Too many candidates, or too few because some scores are not finite: the screen does not help this state.
        lost = (n_candidates < k) | (n_candidates > MAX_CANDIDATES)
        keep = ~lost[rows]
        rows, places = rows[keep], places[keep]
        scores = self._pairs(states, rows, places)
        best = _best_of_ragged(rows, places, scores, len(states), k)
        if lost.any():
            for whole, part in zip(best, best_of(self._scores(states[lost], forbidden[lost]), k), strict=True):
                whole[lost] = part
        return best

    def _pairs(self, states: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        """Scores (M,) of M pairs of a state and a track."""
        parts = [
            (states[row] * self.weight[place]).sum(1) + self.bias[place]
            for row, place in zip(rows.split(_PAIRS_AT_ONCE), places.split(_PAIRS_AT_ONCE), strict=True)
        ]
        return torch.cat(parts)


def best_of(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest scores of each row of (N, n) and their places, both (N, k); ties go to the first place."""
    values, places = scores.topk(min(k + 1, scores.shape[1]), dim=1)
    # topk breaks ties arbitrarily. Where the last score in equals the first one out, sort the whole row.
    tied = values[:, k - 1] == values[:, k] if values.shape[1] > k else values[:, 0] != values[:, 0]
    values, places = values[:, :k], places[:, :k]
    places, order = places.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    for row in tied.nonzero()[:, 0].tolist():
        places[row] = scores[row].sort(descending=True, stable=True).indices[:k]
    return values, places


def draw_from_nucleus(probability: Tensor, top_p: float, keys: Tensor) -> Tensor:
    """A place for each row of probabilities (N, n), drawn from its nucleus by the row's own key (N,): int64 (N,).

    Nothing is sorted. A place is drawn from the whole row. It is accepted if the more probable places have less than
    `top_p` together. If not, the nucleus lies among those, and the next draw is from them. An accepted draw has the
    distribution of the nucleus, so the result has it as well. Equally probable places are all in the nucleus, or none
    of them is.

    Raises:
        ValueError: probabilities are not finite.
    """
    if not probability.sum(1).isfinite().all():
        raise ValueError("scores of tracks are not finite, so nothing can be drawn; has the training diverged?")
    drawn = torch.empty(len(probability), dtype=torch.int64, device=probability.device)
    left = torch.arange(len(probability), device=probability.device)
    # In float32 a rare track would be drawn with a probability of 0 or 2^-24; but MPS has no float64.
    dtype = torch.float32 if probability.device.type == "mps" else torch.float64
    for draw in count():
        if not len(left):
            break
        cumulative = probability.cumsum(1, dtype=dtype)
        u = uniform(keys[left.cpu()], draw)[:, None].to(dtype).to(cumulative.device)
        place = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)
        place = place.clamp_(max=probability.shape[1] - 1)
        threshold = probability.gather(1, place)
        above = probability.where(probability > threshold, 0.0)
        more = above.sum(1, keepdim=True)
        # Rounding can end a draw at a place of probability 0, which is not in the nucleus. It can also turn a very
        # small top_p into 0, but the most probable place is always in the nucleus.
        accepted = (((more < top_p) | (more == 0)) & (threshold > 0))[:, 0]
        drawn[left[accepted]] = place[accepted, 0]
        probability, left = above[~accepted], left[~accepted]
    return drawn


def _best_of_ragged(rows: Tensor, places: Tensor, scores: Tensor, n_rows: int, k: int) -> tuple[Tensor, Tensor]:
    """`best_of` for M scores in order of row and place; a row with fewer than k ends with minus infinity."""
    count = torch.bincount(rows, minlength=n_rows)
    column = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    width = max([k, *count.tolist()])
    table = torch.full((n_rows, width), -torch.inf, device=rows.device)
    table[rows, column] = scores
    table_places = torch.zeros(n_rows, width, dtype=torch.int64, device=rows.device)
    table_places[rows, column] = places
    table, order = table.sort(dim=1, descending=True, stable=True)
    return table[:, :k], table_places.gather(1, order[:, :k])


def _pairs_of(forbidden: Tensor) -> tuple[Tensor, Tensor]:
    """Places (N, m), -1 for none -> rows and places (M,)."""
    known = forbidden >= 0
    return known.nonzero()[:, 0], forbidden[known]


class Screen:
    """Scores in bfloat16, and how wrong they can be.

    Rounded vectors are w' = w - dw and x' = x - dx. The bias is b = b' + b'' + db: two bfloat16 parts, which are two
    more columns of w' against ones in x', and the rest. The exact score is
        w x + b = (w', b', b'') (x', 1, 1) + dw x + w' dx + db.
    By the Cauchy-Schwarz inequality, the last three terms are at most |dw| |x| + |w'| |dx| + |db|. Adding up D + 2
    products in float32 errs by at most gamma |(w', b', b'')| |(x', 1, 1)|, and writing the sum as bfloat16 by at most
    2^-8 of what is written.

    Args:
        weight, bias: float32 (n, D) and (n,).
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        n, d = weight.shape
        self.n_blocks = -(-n // BLOCK)
        self.vectors = torch.empty(n, d + 2, dtype=torch.bfloat16, device=weight.device)
        """bfloat16 (n, D + 2)"""
        # 2^-24 for each product and sum, and as much again for the float32 scores that the bound is about; the rest
        # covers tensor cores, which truncate instead of rounding, and the arithmetic of the bound itself.
        gamma = (d + 2) * 2.0**-22
        terms = []
        for w, b, out in zip(*(x.split(BLOCK * 256) for x in (weight, bias, self.vectors)), strict=True):
            out[:, :d] = w
            out[:, d] = b
            out[:, d + 1] = b - out[:, d].float()
            rounded = out.float()
            wrong = [(w - rounded[:, :d]).norm(dim=1), rounded[:, :d].norm(dim=1), gamma * rounded.norm(dim=1)]
            wrong.append((b - rounded[:, d] - rounded[:, d + 1]).abs())
            terms.append(torch.stack(wrong, dim=1))
        highest = functional.pad(torch.cat(terms), (0, 0, 0, -n % BLOCK)).unflatten(0, (-1, BLOCK)).amax(1)
        self.bound = highest * (1 + NORM_ROUNDING) + d**0.5 * UNDERFLOW
        """float32 (n_blocks, 4): the highest |dw|, |w'|, gamma |(w', b', b'')| and |db| of each block."""

    def candidates(self, states: Tensor, forbidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """All tracks that may be among the best k of each state, and some more; none for a state that has too many.

        Args:
            states: float32 (N, D).
            forbidden: int64 (N, m), places to leave out; -1 for none.
            k: at most n_blocks.

        Returns:
            rows and places (M,), in order of row and place.
        """
        scores = self.scores(states, forbidden)  # (n_blocks, BLOCK, N)
        highest = scores.amax(1).float()  # (n_blocks, N)
        wrong = self.wrong(states)  # (n_blocks, N)
        off = torch.add(wrong, highest.abs(), alpha=OUTPUT_ROUNDING)
        # k blocks have a track with at least this score, so a track below it is not among the best k.
        enough = (highest - off).T.topk(k, dim=1).values[:, -1]  # (N,)
        possible = (highest + off >= enough).T  # (N, n_blocks)
        possible &= possible.sum(1, keepdim=True) <= MAX_CANDIDATES
        rows, blocks = possible.nonzero(as_tuple=True)
        inside = scores[blocks, :, rows].float()  # (pairs, BLOCK)
        possible = inside + OUTPUT_ROUNDING * inside.abs() + wrong[blocks, rows, None] >= enough[rows, None]
        pair, place = possible.nonzero(as_tuple=True)
        return rows[pair], blocks[pair] * BLOCK + place

    def scores(self, states: Tensor, forbidden: Tensor) -> Tensor:
        """Scores bfloat16 (n_blocks, BLOCK, N), minus infinity at forbidden places and after the last track."""
        n = len(self.vectors)
        scores = torch.empty(self.n_blocks * BLOCK, len(states), dtype=torch.bfloat16, device=states.device)
        rounded = functional.pad(states, (0, 2), value=1.0).bfloat16()
        with _sums_in_float32():
            torch.mm(self.vectors, rounded.T.contiguous(), out=scores[:n])
        scores[n:] = -torch.inf
        rows, places = _pairs_of(forbidden)
        scores[places, rows] = -torch.inf
        return scores.view(self.n_blocks, BLOCK, -1)

    def wrong(self, states: Tensor) -> Tensor:
        """Bounds (n_blocks, N) on the error of each block's scores, before they are written as bfloat16."""
        rounded = states.bfloat16().float()
        norms = [states.norm(dim=1), (states - rounded).norm(dim=1), (rounded.norm(dim=1) ** 2 + 2).sqrt()]
        norms_of_states = torch.stack(norms) + states.shape[1] ** 0.5 * UNDERFLOW
        return torch.addmm(self.bound[:, 3:], self.bound[:, :3], norms_of_states)


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Add up products of bfloat16 matrices in float32 on CUDA too, which may round partial sums by default."""
    options = torch.backends.cuda.matmul
    before = options.allow_bf16_reduced_precision_reduction
    options.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        options.allow_bf16_reduced_precision_reduction = before


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a matrix product in bfloat16 is faster than one in float32."""
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
