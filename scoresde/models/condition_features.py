"""What a network is conditioned on, in the data's own units, as features of size one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_list, check_numbers, is_whole


class ConditionFeatures(nn.Module):
    """Standardised numbers and one-hot categories of a condition vector; no parameters.

        number      (c − mean)/std
        category    e_c of K

    The numbers come first. Mean and std are applied in the condition's own dtype, at least float32, so that float64
    conditions such as 1e8 + small lose nothing, and whatever dtype the network is turned into they stay exact.

    Args:
        owner: Name of the network, for messages.
        dim: Length of the condition vector.
        mean, std: One per column, or one for all; None: 0 and 1. Those of categories are not used.
        categories: Per column, 0 for a number or the number K of categories, which are 0..K−1; None: all are numbers.
    """

    mean: Tensor
    std: Tensor
    numbers: Tensor
    column_of: Tensor
    value_of: Tensor

    def __init__(
        self, owner: str, dim: int, mean: Sequence[float] | None, std: Sequence[float] | None,
        categories: Sequence[int] | None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.owner, self.dim = owner, dim
        self.categories = _checked_categories(owner, dim, categories)
        scales = {"mean": _checked(owner, "condition_mean", mean, dim, 0.0),
                  "std": _checked(owner, "condition_std", std, dim, 1.0)}  # fmt: skip
        for value in scales["std"]:
            check_numbers(owner, "0 < condition_std < inf", condition_std=value)
        self.as_they_are = mean is None and std is None
        for name, values in scales.items():  # as bits, which .half() and .double() leave alone
            self._keep(name, torch.tensor(values, dtype=torch.float64).view(torch.int64))
        kinds = list(enumerate(self.categories))
        self._keep("numbers", torch.tensor([j for j, count in kinds if count == 0], dtype=torch.int64))
        pairs = [(j, k) for j, count in kinds for k in range(count)]
        self._keep("column_of", torch.tensor([j for j, _ in pairs], dtype=torch.int64))
        self._keep("value_of", torch.tensor([k for _, k in pairs], dtype=torch.int64))
        self.features = len(self.numbers) + len(pairs)

    def _keep(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)  # the configuration says it

    def forward(self, condition: Tensor) -> Tensor:
        """Args: condition (B, dim), finite -> (B, features)."""
        wide = condition.to(torch.promote_types(condition.dtype, torch.float32))
        if not condition.is_floating_point():
            wide = condition.double()
        if not self.as_they_are:
            mean, std = (bits.view(torch.float64).to(wide.dtype) for bits in (self.mean, self.std))
            scaled = (wide - mean) / std
        else:
            scaled = wide
        if not any(self.categories):
            return scaled
        one_hot = (wide[:, self.column_of] == self.value_of).to(scaled.dtype)
        return torch.cat([scaled[:, self.numbers], one_hot], 1)

    def check(self, condition: Tensor, absent: Tensor | None) -> None:
        """Raise for values that are no condition; only the CPU's are looked at, which costs nothing there.

        Args:
            condition: (B, dim).
            absent: Rows that stand for no condition, (B,); None: there are none.
        Raises:
            ValueError: With the first of them, its row and its column.
        """
        if condition.device.type != "cpu" or torch.compiler.is_compiling():
            return
        try:
            wrong = self._first_wrong(condition.detach(), absent)
        except RuntimeError:  # of tensors inside torch.func.vmap
            return
        if wrong is not None:
            row, column, value, needs = wrong
            raise ValueError(f"{self.owner} needs {needs}, got {value:g} in row {row}, column {column}.")

    def _first_wrong(self, condition: Tensor, absent: Tensor | None) -> tuple[int, int, float, str] | None:
        bad = ~condition.isfinite()
        if absent is not None:
            bad &= ~absent[:, None]
        needs = "conditions that are finite numbers"
        if any(self.categories) and not bool(bad.any()):
            counts = torch.tensor(self.categories)
            outside = (condition != condition.round()) | (condition < 0) | (condition >= counts)
            bad = outside & (counts > 0) & torch.isfinite(condition)
            needs = "categories that are numbered from 0 up to those of condition_categories"
        if not bool(bad.any()):
            return None
        row, column = bad.nonzero()[0].tolist()
        return row, column, float(condition[row, column]), needs


def _checked(owner: str, name: str, values: Any, dim: int, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,)
    numbers = check_list(owner, name, values)
    if len(numbers) not in (1, dim):
        raise ValueError(f"{owner} needs {name} to be one number for each of condition_dim={dim}, or one for all, "
                         f"got {len(numbers)}.")  # fmt: skip
    return numbers


def _checked_categories(owner: str, dim: int, categories: Any) -> tuple[int, ...]:
    if categories is None:
        return (0,) * dim
    counts = check_list(owner, "condition_categories", categories)
    if len(counts) != dim or not all(is_whole(count) and 0 <= count <= 2**20 for count in counts):
        raise ValueError(
            f"{owner} needs condition_categories to be a whole number for each of condition_dim={dim}, 0 for a number "
            f"and K for K categories, got {categories!r}."
        )
    return tuple(int(count) for count in counts)
