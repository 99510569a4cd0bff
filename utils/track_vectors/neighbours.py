"""Which tracks are near a track, by the cosine of their vectors."""

from __future__ import annotations

from difflib import get_close_matches
from heapq import nlargest
from itertools import takewhile
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import normalize

from utils.core.errors import UserError
from utils.data.vocab import N_SPECIAL
from utils.track_vectors.files import VOCABULARY


class Neighbour(NamedTuple):
    """A track near another."""

    id: int
    cosine: float


def find_track(names: list[str], track: str) -> int:
    """The id of a track.

    Raises:
        UserError: there is no such track; names those that look like it.
    """
    try:
        return names.index(track, N_SPECIAL)
    except ValueError:
        # `get_close_matches` would take seconds for all names, so it gets the 100 most similar.
        alike = nlargest(100, names[N_SPECIAL:], key=lambda name: shared_ends(track, name))
        close = get_close_matches(track, alike, n=3)
        cure = f"did you mean {', '.join(close)}?" if close else f"see {VOCABULARY} beside the vectors"
        raise UserError(f"there is no track {track!r}; {cure}") from None


def shared_ends(a: str, b: str) -> int:
    """How many characters two names share at their beginning and at their end."""
    return sum(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=False)))
        for both in ((a, b), (a[::-1], b[::-1]))
    )


def nearest(vectors: Tensor, track: int, k: int) -> list[Neighbour]:
    """The tracks whose vectors have the highest cosine with that of `track`, without itself and the special ids.

    Args:
        vectors: float (V, D).
        track: an id.
        k: how many; fewer if there are not as many. Ties go to the smaller id.
    """
    unit = normalize(vectors.float(), dim=1)
    cosine = unit[N_SPECIAL:] @ unit[track]  # (V - N_SPECIAL,)
    order = cosine.argsort(descending=True, stable=True) + N_SPECIAL
    order = order[order != track][:k]
    return [Neighbour(int(i), float(cosine[i - N_SPECIAL])) for i in order]
