"""What is said of conditions: sizes in their own units, and rows that are none."""

import math

import numpy as np
import pytest
import torch

from scoresde.data import Column
from scoresde.data.conditions import check_conditions, condition_columns, constant_columns, stored_condition

COLUMNS = (Column(name="mass"), Column(name="kind", categories=("cat", "dog")))


def test_mean_and_std_are_those_of_every_column_to_four_digits() -> None:
    z = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, shift = torch.tensor([1e-6, 2e3]).double(), torch.tensor([3.0, 1e8]).double()
    known = condition_columns(z * scale + shift)
    mean, std = (torch.tensor(known[key], dtype=torch.float64) for key in ("condition_mean", "condition_std"))
    assert known["condition_dim"] == 2 and known["condition_categories"] is None
    torch.testing.assert_close((mean - shift) / scale, z.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(std / scale, z.std(0, correction=0), rtol=1e-3, atol=0)
    assert known == condition_columns((z * scale + shift).flip(0))  # whatever the order of the sum


def test_a_category_has_its_count_and_a_constant_its_size() -> None:
    condition = torch.tensor([[5.0, 0.0], [5.0, 1.0], [5.0, 1.0]])
    known = condition_columns(condition, COLUMNS)
    assert known["condition_categories"] == [0, 2]
    assert (known["condition_mean"], known["condition_std"]) == ([5.0, 0.0], [5.0, 1.0])
    assert constant_columns(condition, COLUMNS) == ["column 0 (mass)"]


def test_a_great_many_columns_have_one_mean_and_std() -> None:
    condition = torch.randn(20, 2, 1000, generator=torch.Generator().manual_seed(0)) * 3 + 7
    known = condition_columns(condition)
    assert known["condition_dim"] == 2000
    assert [*known["condition_mean"], *known["condition_std"]] == pytest.approx([7, 3], abs=0.1)


def test_conditions_are_kept_in_float64_where_float32_loses_them() -> None:
    small = np.random.default_rng(0).normal(size=100)
    for values, kept in ((small, torch.float32), (1e8 + small, torch.float64), (5e4 + 1e3 * small, torch.float32)):
        assert stored_condition(values).dtype == kept
    assert stored_condition(np.arange(10) + 2**40).dtype == torch.float64
    assert stored_condition((1e8 + small).astype("f4")).dtype == torch.float32
    assert stored_condition(np.full(3, 0.1)).shape == (3, 1)
    torch.testing.assert_close(stored_condition(1e8 + small)[:, 0], torch.from_numpy(1e8 + small), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 0.0], [math.nan, 1.0]], r"file: 1 of 2 rows hold NaN .* \(first nan in row 1, column 0 \(mass\)\)"),
        ([[1.0, 0.0], [1.0, 2.0]], r"a category that the column does not have \(first 2 in row 1, column 1 \(kind\)\)"),
        ([[1.0], [1.0]], "file needs 2 conditions per example, as it names, got 1"),
    ],
)
def test_rows_that_are_no_condition_are_named(values: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_conditions(torch.tensor(values), "file", COLUMNS)
