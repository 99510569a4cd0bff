"""The numbers of `utils/data/past.py` before they are standardised, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.data import past_plays
from utils.data.dataset import Dataset
from utils.data.options import PastConfig
from utils.data.past import past_columns
from utils.data.past_columns import detail_names, past_names
from utils.data.past_numbers import Work, blocks

SPLITS = ("train", "valid", "test")


def places_of(names: tuple[str, ...], config: PastConfig, folder: Path) -> list[int]:
    """Places among all `names` of the statistics that a dataset has."""
    return [names.index(name) for name in past_columns(Dataset.open(folder), config)]


def raw_numbers(dataset: Path | Dataset, config: PastConfig) -> dict[str, dict[str, np.ndarray]]:
    """split -> "past" and "details" as far as the config asks -> float32 (plays, columns); each play exactly once."""
    dataset = dataset if isinstance(dataset, Dataset) else Dataset.open(dataset)
    facts = past_plays.facts_of(dataset)
    columns = {"past": past_names(facts, config), "details": detail_names(facts, config)}
    columns = {field: names for field, names in columns.items() if names}
    sources = [dataset.split(split) for split in SPLITS]
    sizes = [len(arrays.tracks) for arrays in sources]
    found = [{field: np.full((n, len(names)), np.inf) for field, names in columns.items()} for n in sizes]
    for block in blocks(Work(sources, facts, config, past_plays.catalogue_of(dataset)), columns):
        at = 0
        for source, first, length in zip(*block.sessions[:3], strict=True):
            for field, numbers in block.numbers.items():
                rows = found[source][field][first : first + length]
                assert np.isinf(rows).all(), "a session comes twice"
                rows[:] = numbers[at : at + length]
            at += length
        assert all(len(numbers) == at for numbers in block.numbers.values())
    assert not any(np.isinf(numbers).any() for each in found for numbers in each.values()), "a session is missing"
    return dict(zip(SPLITS, found, strict=True))
