import numpy as np
import torch

from model.random_numbers import _hashed, keys_of, uniform


def test_the_hash_is_splitmix64():
    """The first three numbers after the state 0, as published with the algorithm."""
    first = [int(_hashed(np.zeros(1, np.uint64), i)[0]) for i in range(3)]
    assert first == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    key = torch.zeros(1, dtype=torch.int64)
    assert uniform(key, 0).item() == (0xE220A8397B1DCDAF >> 11) / 2**53
    assert uniform(key, 2).item() == (0x06C45D188009454F >> 11) / 2**53


def test_numbers_are_uniform_and_those_of_neighbours_have_nothing_in_common():
    rows = torch.arange(20_000)
    numbers = {
        name: uniform(keys, draw).numpy()
        for name, keys, draw in (
            ("first", keys_of(0, rows, 0), 0),
            ("next draw", keys_of(0, rows, 0), 1),
            ("next step", keys_of(0, rows, 1), 0),
            ("next row", keys_of(0, rows + 1, 0), 0),
            ("next seed", keys_of(1, rows, 0), 0),
        )
    }
    for name, values in numbers.items():
        assert values.min() >= 0
        assert values.max() < 1
        shares = np.histogram(values, 20, (0, 1))[0]
        assert ((shares - 1000) ** 2 / 1000).sum() < 45, "chi-square with 19 degrees of freedom: 0.1 % lie above 43.8"
        if name != "first":
            assert abs(np.corrcoef(values, numbers["first"])[0, 1]) < 0.03, "4 standard deviations"
    assert (numbers["next row"][:-1] == numbers["first"][1:]).all()


def test_a_key_does_not_depend_on_the_others():
    rows = torch.tensor([7, 0, 123_456_789_012])
    together = keys_of(5, rows, 3)
    assert together.tolist() == [keys_of(5, row[None], 3).item() for row in rows]
    assert len({*together.tolist(), *keys_of(6, rows, 3).tolist(), *keys_of(5, rows, 4).tolist()}) == 9
