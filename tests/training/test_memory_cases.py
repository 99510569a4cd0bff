"""A scorer's cases: what the memory behind them may know, and what it may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from conftest import N_IDS, make_dataset
from numpy.testing import assert_array_equal

from model.candidates import CandidateFinder, Candidates
from model.scorer import CandidateScorer, candidate_loss, popularity, take
from utils.core.errors import UserError
from utils.data.dataset import Dataset
from utils.data.options import DataConfig
from utils.data.vocab import N_SPECIAL, UNK
from utils.training.memory_cases import (
    Cases,
    case_loss,
    memory_of,
    predict_next,
    training_cases,
    validate_next,
    validation_cases,
)
from utils.training.options import CasesConfig

TWO_FOLDS = CasesConfig(share=0.25, folds=2)
"""Of 64 sessions: those from 32 on with a memory of the first 32, those from 48 on with one of the first 48."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """64 training sessions that walk up the ids, with some unknown tracks."""
    folder = make_dataset(tmp_path_factory.mktemp("data") / "walks")
    return changed(Dataset.open(folder), lambda session: np.random.default_rng(0).random(len(session)) < 0.05, UNK)


def changed(dataset: Dataset, where: Callable[[np.ndarray], np.ndarray], track: int) -> Dataset:
    """The dataset with other training plays: `where` gets the session of each play (n_events,)."""
    train = dataset.train
    session = np.repeat(np.arange(train.n_sessions), train.lengths)
    return replace(dataset, train=replace(train, tracks=np.where(where(session), track, train.tracks).astype(np.int32)))


def cases_of(dataset: Dataset, config: CasesConfig = TWO_FOLDS, **options: int) -> Cases:
    return training_cases(
        dataset, DataConfig(history_size=6), config, network=None, **{"batch_size": 16, "seed": 3} | options
    )


def of_sessions(cases: Cases, first: int, end: int, *, offset: int = 32) -> Candidates:
    """The candidates of all prefixes of some training sessions."""
    session = cases.loader.session + offset
    return take(cases.candidates, np.flatnonzero((session >= first) & (session < end)))


def same(one: Candidates, two: Candidates) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.fixture(scope="module")
def cases(dataset: Dataset) -> Cases:
    return cases_of(dataset)


def test_cases_are_all_prefixes_in_the_order_of_the_loader(dataset: Dataset, cases: Cases) -> None:
    lengths = dataset.train.lengths[32:]
    assert len(cases.targets) == cases.loader.n_examples == (lengths - 1).sum()
    assert len(cases.candidates.starts) - 1 == len(cases.targets)
    tracks, offsets = dataset.train.tracks, dataset.train.offsets
    expected = [tracks[offsets[s] + 1 : offsets[s + 1]] for s in range(32, 64)]
    assert_array_equal(cases.targets, np.concatenate(expected))
    seen = []
    for batch in cases.loader:
        rows = batch.rows.numpy()
        assert_array_equal(batch.target_tracks[:, 0], cases.targets[rows])
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(cases.targets)))
    assert seen != sorted(seen)
    assert batch.history.tracks.shape[1] == 6


@pytest.mark.parametrize(("first", "known"), [(32, 32), (48, 48)])
def test_candidates_are_those_of_a_memory_of_the_sessions_before_the_fold(dataset, cases, first, known) -> None:
    train = dataset.train
    finder = CandidateFinder(memory_of([train.between(0, known)], dataset.n_ids))
    session = train.tracks[train.offsets[first + 2] : train.offsets[first + 3]]
    history = np.zeros((len(session) - 1, 6), np.int32)
    for i in range(1, len(session)):
        past = session[max(0, i - 6) : i]
        history[i - 1, 6 - len(past) :] = past
    assert same(finder(history), of_sessions(cases, first + 2, first + 3))


def test_no_case_knows_its_fold_or_a_later_session(dataset: Dataset, cases: Cases) -> None:
    """Later folds change no bit of an earlier one, and sessions of the same fold none of each other."""
    later = cases_of(changed(dataset, lambda session: session >= 48, N_SPECIAL + 7))
    assert same(of_sessions(later, 32, 48), of_sessions(cases, 32, 48))
    assert not same(of_sessions(later, 48, 64), of_sessions(cases, 48, 64)), "their own histories changed"
    for one in (32, 40, 47, 48, 63):
        others = cases_of(changed(dataset, lambda session, one=one: session == one, N_SPECIAL + 7))
        end = 48 if one < 48 else 64
        for start, stop in ((32, one), (one + 1, end)):
            assert same(of_sessions(others, start, stop), of_sessions(cases, start, stop)), one
        if one < 48:
            assert not same(of_sessions(others, 48, 64), of_sessions(cases, 48, 64)), "an earlier fold is known"


def test_no_case_knows_its_own_next_track(dataset: Dataset, cases: Cases) -> None:
    """The last play of each session is only ever a target."""
    train = dataset.train
    last = np.zeros(len(train.tracks), bool)
    last[train.offsets[49:] - 1] = True
    other = cases_of(changed(dataset, lambda session: last, N_SPECIAL + 7))
    assert (other.targets != cases.targets).any()
    assert same(other.candidates, cases.candidates)


def test_earlier_sessions_are_known(dataset: Dataset, cases: Cases) -> None:
    for one in (0, 31):
        earlier = cases_of(changed(dataset, lambda session, one=one: session == one, N_SPECIAL + 7))
        for first, end in ((32, 48), (48, 64)):
            assert not same(of_sessions(earlier, first, end), of_sessions(cases, first, end))


def test_one_fold_is_the_last_part(dataset: Dataset, cases: Cases) -> None:
    last = cases_of(dataset, CasesConfig(share=0.25))
    assert same(last.candidates, of_sessions(cases, 48, 64))
    assert len(last.targets) == (dataset.train.lengths[48:] - 1).sum()


def test_few_cases_are_of_evenly_spaced_sessions(dataset: Dataset, cases: Cases) -> None:
    few = cases_of(dataset, replace(TWO_FOLDS, max_cases=120))
    sessions = np.unique(few.loader.session)
    of_session = (dataset.train.lengths[32:] - 1).mean()
    assert len(sessions) == int(120 / of_session)
    assert (sessions[0], sessions[-1]) == (0, 31)
    assert np.ptp(np.diff(sessions)) <= 1
    for session in sessions + 32:
        assert same(of_sessions(few, session, session + 1), of_sessions(cases, session, session + 1))


def test_a_fold_may_have_no_case(dataset: Dataset, cases: Cases) -> None:
    one = cases_of(dataset, replace(TWO_FOLDS, max_cases=1))
    assert_array_equal(np.unique(one.loader.session), [0])
    assert same(one.candidates, of_sessions(cases, 32, 33))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CasesConfig(share=0.005),
            "has 64 training sessions, too few for cases.folds 1 of cases.share 0.005; make the",
        ),
        (CasesConfig(share=0.01, folds=3), "too few for cases.folds 3 of cases.share 0.01"),
        (CasesConfig(share=0.999), "too few for cases.folds 1 of cases.share 0.999"),
    ],
)
def test_too_few_sessions(dataset: Dataset, config: CasesConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cases_of(dataset, config)


@pytest.mark.parametrize("options", [{"share": 0.5, "folds": 2}, {"share": 0.0}, {"share": -0.1}])
def test_folds_must_leave_sessions_to_remember(options) -> None:
    with pytest.raises(UserError, match=f"cases.share is {options['share']} and cases.folds .* smaller than 1"):
        CasesConfig(**options)
    with pytest.raises(UserError, match=r"cases\.max_cases is 0"):
        CasesConfig(max_cases=0)


@pytest.fixture
def scorer(cases: Cases) -> CandidateScorer:
    made = CandidateScorer(n_features=cases.candidates.features.shape[1], n_members=1, d_hidden=8, dropout=0.0)
    made.standardise(cases.candidates)
    return made


def test_the_loss_is_of_the_cases_in_the_batch(cases: Cases, scorer: CandidateScorer) -> None:
    batch = next(iter(cases.loader))
    rows = batch.rows.numpy()
    loss, count = case_loss(scorer, batch, cases)
    expected, _ = candidate_loss(scorer, take(cases.candidates, rows), batch.target_tracks[:, 0].numpy())
    assert loss == expected
    assert count == (batch.target_tracks >= N_SPECIAL).sum()


def test_validation_has_the_whole_memory(dataset: Dataset, scorer: CandidateScorer) -> None:
    both = memory_of([dataset.train, dataset.valid], dataset.n_ids)
    assert both.n_sessions == 64 + 16
    memory = both.first(64)
    for built, cut in zip(memory_of([dataset.train], dataset.n_ids), memory, strict=True):
        assert_array_equal(built, cut)
    valid = validation_cases(dataset, DataConfig(history_size=6, valid_sessions=5), CandidateFinder(memory))
    assert len(np.unique(valid.loader.session)) == 5
    found = predict_next(scorer, valid, popularity(memory))
    assert found.tracks.shape == (len(valid.targets), 1)
    assert np.isfinite(found.log_probability).all()
    metrics = validate_next(scorer, valid, memory, dataset)
    assert metrics["hr@1"] == pytest.approx(scores_by_session(found.rank < 1, valid.loader.session), abs=1e-6)


def scores_by_session(values: np.ndarray, session: np.ndarray) -> float:
    """Mean of all cases."""
    assert len(values) == len(session)
    return float(np.mean(values))


def test_without_validation_sessions_there_is_nothing_to_watch(dataset: Dataset, scorer: CandidateScorer) -> None:
    empty = replace(dataset, valid=dataset.valid.between(0, 0))
    memory = memory_of([dataset.train], N_IDS)
    valid = validation_cases(empty, DataConfig(), CandidateFinder(memory))
    assert valid is None
    assert validate_next(scorer, valid, memory, empty) == {}
