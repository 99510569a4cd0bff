"""Which tracks and artists a listener now skips and did not before, and how sure that is.

Each track has a skip rate before and a skip rate now. Two answers are possible. Either nothing changed: both are one
rate. Or something did: they are two rates. Each rate has the same Beta prior around the rate of the artist's other
tracks, which is itself shrunk to the listener's. The counts say how likely they are under either answer (a
Beta-binomial each, so the ratio has a closed form); how many tracks change at all is learned from all tracks of the
listener. What is reported, the probability that the rate rose, is the probability that something changed, times the
probability that the second of the two rates is the higher one. A track with few plays stays near its artist, and among
hundreds of tracks the luckiest does not look like a change. Skips of one session come together, so each session counts
once, with the share of its plays that was skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import betainc, betaincinv, betaln, expit, logit

from utils.data.vocab import N_SPECIAL
from utils.reporting.heard import Plays, TrackNames
from utils.reporting.skip_rates import QUARTERS, Rate, hours, rates

TRACK_PRIOR, ARTIST_PRIOR = 2.0, 4.0
"""How many sessions the prior of a track (around its artist) and of an artist (around the listener) is worth."""
CHANGED, UNCHANGED = 1.0, 9.0
"""What is believed of how many tracks change before any is looked at: one in ten, worth ten tracks."""
QUANTILES = 200
"""Points of the integral over a posterior."""
SURE = 0.8
"""Least probability of a change that is listed."""
MOST_ROWS = 20
MONTH_US = 365.2425 / 12 * 86_400_000_000


class Counts(NamedTuple):
    """Skips and all plays with a known end, of each of N things, before and now: (N,) each. Either plays, or sessions,
    in which the plays of a thing add up to one."""

    skipped_before: np.ndarray
    all_before: np.ndarray
    skipped_now: np.ndarray
    all_now: np.ndarray

    def of(self, which: np.ndarray | int) -> Counts:
        """The counts of some things, or of one."""
        return Counts(*(each[which] for each in self))


class Posterior(NamedTuple):
    """What the counts say, float64 (N,) each."""

    rose: np.ndarray
    """Probability that the skip rate is higher now."""
    fell: np.ndarray
    rate_before: np.ndarray
    """Likely skip rate (posterior mean), if something changed."""
    rate_now: np.ndarray
    low: np.ndarray
    """Ends of the 95 % interval of `rate_now`."""
    high: np.ndarray

    def of(self, which: int) -> Posterior:
        """What the counts of one thing say."""
        return Posterior(*(each[which] for each in self))


class Things(NamedTuple):
    """The tracks or the artists of a listener."""

    key: np.ndarray
    """int64 (n,): which of them each play is of."""
    plays: Counts
    sessions: Counts
    prior: np.ndarray
    """float64 (N,): skip rate that is expected of each before its own plays are seen."""
    strength: float
    """Sessions that the prior is worth."""
    names: Callable[[int], tuple[str, str]]
    """Name and artist of one of them."""


class Change(NamedTuple):
    """A track or an artist whose skip rate changed."""

    name: str
    artist: str
    """"" for artists."""
    plays: Counts
    """Its own, numbers."""
    rate_before: float
    rate_now: float
    interval: tuple[float, float]
    """Of `rate_now`, 95 %."""
    probability: float
    last_kept: np.datetime64 | None
    """When it was last played without a skip."""
    mostly: str
    """The quarter of the day in which it is now skipped most, with its share of these skips; "" without any."""


class Changes(NamedTuple):
    """What a listener skips now and did not before, and the other way round."""

    now_from: np.datetime64
    """Where "now" begins; it ends with the last play."""
    last: np.datetime64
    skipped_now: dict[str, list[Change]]
    """"tracks" and "artists", the surest first."""
    back: dict[str, list[Change]]
    """The same for what was skipped and is not now."""
    overall: list[Rate]
    """Skip rates of all plays, before and now."""
    compared: dict[str, int]
    """How many tracks and artists were played in enough sessions, both before and now."""


def split_time(time: np.ndarray, months: float) -> np.datetime64:
    """Where "now" begins: `months` before the last play, or at the middle of the plays' time if that is later."""
    first, last = time[0], time[-1]
    return max(last - np.timedelta64(round(months * MONTH_US), "us"), first + (last - first) // 2)


def habits_changed(plays: Plays, names: TrackNames, *, months: float, min_sessions: int) -> Changes | None:
    """Compare a listener's last months with the time before; None without times or known skips.

    Args:
        plays: of the listener.
        names: of all tracks.
        months: length of "now".
        min_sessions: fewest sessions with a known end of a track or artist, before and now, for it to be compared.
    """
    if plays.time is None or not plays.known.any():
        return None
    now_from = split_time(plays.time, months)
    is_now = (plays.time >= now_from)[np.searchsorted(plays.session, plays.session)]  # sessions are not cut in two
    artist_of, artist_names = names.artists()
    artist = artist_of[plays.track]
    known = plays.known & (plays.track >= N_SPECIAL)
    by_artist = known & (artist >= 0)
    of_tracks = partial(count, plays, plays.track, known, is_now, len(artist_of))
    of_artists = partial(count, plays, artist, by_artist, is_now, len(artist_names))
    plays_of_tracks, plays_of_artists = of_tracks(once=False), of_artists(once=False)
    things = {
        "tracks": Things(
            key=plays.track,
            plays=plays_of_tracks,
            sessions=of_tracks(once=True),
            prior=track_prior(plays_of_tracks, plays_of_artists, artist_of),
            strength=TRACK_PRIOR,
            names=lambda track: (names.name(track), names.artist(track)),
        ),
        "artists": Things(
            key=artist,
            plays=plays_of_artists,
            sessions=of_artists(once=True),
            prior=others_rate(plays_of_artists),
            strength=ARTIST_PRIOR,
            names=lambda number: (artist_names[number], ""),
        ),
    }
    overall = rates(plays, is_now.astype(np.int64), ["before", "now"])
    changes = Changes(now_from, plays.time[-1], {}, {}, overall, {})
    for what, each in things.items():
        heard = np.minimum(each.sessions.all_before, each.sessions.all_now)
        enough = np.flatnonzero(heard > min_sessions - 0.5)  # sums of fractions
        found = posterior(each.sessions.of(enough), each.prior[enough], each.strength)
        up = (found.rate_now >= 0.5) & (found.rate_before < 0.5)
        down = (found.rate_now < 0.5) & (found.rate_before >= 0.5)
        changes.compared[what] = len(enough)
        for rows, probability, eligible in ((changes.skipped_now, found.rose, up), (changes.back, found.fell, down)):
            rows[what] = [
                change(each, int(enough[i]), found.of(i), float(probability[i]), plays, is_now)
                for i in surest(probability, eligible, each.sessions.all_now[enough])
            ]
    return changes


def change(
    things: Things, which: int, found: Posterior, probability: float, plays: Plays, is_now: np.ndarray
) -> Change:
    """What is told of one track or artist; `found` is its own posterior."""
    mine = things.key == which
    name, artist = things.names(which)
    return Change(
        name=name,
        artist=artist,
        plays=things.plays.of(which),
        rate_before=float(found.rate_before),
        rate_now=float(found.rate_now),
        interval=(float(found.low), float(found.high)),
        probability=probability,
        last_kept=last_kept(plays, mine),
        mostly=mostly(plays, mine & is_now),
    )


def surest(probability: np.ndarray, eligible: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """Places of at most `MOST_ROWS` changes that are sure enough: the surest first, of equally sure ones those with
    more sessions now."""
    listed = np.flatnonzero(eligible & (probability >= SURE))
    return listed[np.lexsort((-sessions[listed], -probability[listed]))][:MOST_ROWS]


def count(plays: Plays, thing: np.ndarray, counted: np.ndarray, is_now: np.ndarray, n: int, *, once: bool) -> Counts:
    """Count the skips and plays of n things, before and now.

    Args:
        plays: of the listener.
        thing: which of them each play is of, int64 (n_plays,); -1 where `counted` is false.
        counted: which plays count, bool (n_plays,).
        is_now: which plays are now, bool (n_plays,).
        n: number of things.
        once: whether each session counts once: the plays of a thing in it share the weight of one.
    """
    pair = (plays.session * n + thing)[counted]
    _, place, together = np.unique(pair, return_inverse=True, return_counts=True)
    weight = np.zeros(len(thing))
    weight[counted] = 1 / together[place] if once else 1

    def total(which: np.ndarray) -> np.ndarray:
        return np.bincount(thing[which], weights=weight[which], minlength=n)

    before, now = counted & ~is_now, counted & is_now
    return Counts(total(before & plays.skipped), total(before), total(now & plays.skipped), total(now))


def others_rate(counts: Counts) -> np.ndarray:
    """Skip rate of everything but each thing, with one skip and one other play added: float64 (N,)."""
    skipped, everything = (counts[i] + counts[i + 2] for i in range(2))
    return (skipped.sum() - skipped + 1) / (everything.sum() - everything + 2)


def track_prior(of_tracks: Counts, of_artists: Counts, artist_of: np.ndarray) -> np.ndarray:
    """The skip rate that is expected of each track before its own plays are seen, float64 (N,): that of the other
    tracks of its artist, shrunk to that of all other tracks."""
    everything = others_rate(of_tracks)
    if not len(of_artists.all_now):
        return everything
    known, artist = artist_of >= 0, np.maximum(artist_of, 0)
    skipped, heard = (
        np.where(known, (of_artists[i] + of_artists[i + 2])[artist] - of_tracks[i] - of_tracks[i + 2], 0)
        for i in range(2)
    )
    return (skipped + ARTIST_PRIOR * everything) / (heard + ARTIST_PRIOR)


def posterior(counts: Counts, prior: np.ndarray, strength: float) -> Posterior:
    """What the counts say of each rate before and now.

    Args:
        counts: of N things.
        prior: expected rate of each, float64 (N,).
        strength: sessions that the prior is worth.
    """
    a, b = strength * prior, strength * (1 - prior)
    s0, n0, s1, n1 = counts
    a0, b0, a1, b1 = a + s0, b + n0 - s0, a + s1, b + n1 - s1
    evidence = betaln(a0, b0) + betaln(a1, b1) - betaln(a, b) - betaln(a0 + s1, b0 + n1 - s1)
    changed = probability_of_change(evidence)
    points = (np.arange(QUANTILES) + 0.5) / QUANTILES
    higher = betainc(a0[:, None], b0[:, None], betaincinv(a1[:, None], b1[:, None], points)).mean(1)
    return Posterior(
        rose=changed * higher,
        fell=changed * (1 - higher),
        rate_before=a0 / (a0 + b0),
        rate_now=a1 / (a1 + b1),
        low=betaincinv(a1, b1, 0.025),
        high=betaincinv(a1, b1, 0.975),
    )


def probability_of_change(evidence: np.ndarray) -> np.ndarray:
    """The probability that each thing's rate changed, float64 (N,).

    Args:
        evidence: logarithm of how much likelier the counts are under two rates than under one, (N,).

    The share of things that change is the most likely one given all of them (expectation-maximisation), with
    `CHANGED` and `UNCHANGED` for a prior.
    """
    share = CHANGED / (CHANGED + UNCHANGED)
    for _ in range(100):
        changed = expit(logit(share) + evidence)
        share = (CHANGED + changed.sum()) / (CHANGED + UNCHANGED + len(evidence))
    return expit(logit(share) + evidence)


def last_kept(plays: Plays, mine: np.ndarray) -> np.datetime64 | None:
    """When a thing was last played without a skip; None if never."""
    assert plays.time is not None
    kept = plays.time[mine & plays.known & ~plays.skipped]
    return kept[-1] if len(kept) else None


def mostly(plays: Plays, mine: np.ndarray) -> str:
    """The quarter of the day with most of a thing's skips, with its share of them; "" without any."""
    assert plays.time is not None
    quarter = hours(plays.time[mine & plays.known & plays.skipped]) // 6
    skips = np.bincount(quarter, minlength=len(QUARTERS))
    return f"{QUARTERS[skips.argmax()].split(',')[0]}, {skips.max()} of {skips.sum()}" if len(quarter) else ""
