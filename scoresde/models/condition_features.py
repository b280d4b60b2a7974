"""What a network is conditioned on, in its own units, as features of size one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.checks import check_list, is_whole


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
        prefix, size: What the network's options are called, for messages: prefix + "mean", and the length.
    """

    mean: Tensor
    std: Tensor
    numbers: Tensor
    column_of: Tensor
    value_of: Tensor

    def __init__(
        self, owner: str, dim: int, mean: Sequence[float] | None, std: Sequence[float] | None,
        categories: Sequence[int] | None, *, prefix: str = "condition_", size: str = "condition_dim",
    ) -> None:  # fmt: skip
        super().__init__()
        self.owner, self.dim, self.prefix = owner, dim, prefix
        self.categories = _checked_categories(owner, f"{prefix}categories", categories, f"{size}={dim}", dim)
        given = {"mean": (mean, 0.0), "std": (std, 1.0)}
        scales = {
            key: _checked(owner, f"{prefix}{key}", values, f"{size}={dim}", dim, default)
            for key, (values, default) in given.items()
        }
        for value in scales["std"]:
            if not 0 < value < math.inf:
                raise ValueError(f"{owner} needs 0 < {prefix}std < inf, got {prefix}std={value!r}.")
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

    def check(
        self, condition: Tensor, absent: Tensor | None, what: str = "conditions", place: str = "column", each: int = 1
    ) -> None:
        """Raise for values that are no condition; only the CPU's are looked at, which costs nothing there.

        Args:
            condition: (B · each, dim).
            absent: Rows that stand for no condition, (B · each,); None: there are none.
            what, place: What they are, and what an entry of a row is called.
            each: Rows of one example.
        Raises:
            ValueError: With the first of them, its example and its place.
        """
        if condition.device.type != "cpu" or torch.compiler.is_compiling():
            return
        try:
            wrong = self._first_wrong(condition.detach(), absent, what)
        except RuntimeError:  # of tensors inside torch.func.vmap
            return
        if wrong is not None:
            row, column, value, needs = wrong
            raise ValueError(f"{self.owner} needs {needs}, got {value:g} in row {row // each}, {place} {column}.")

    def _first_wrong(self, condition: Tensor, absent: Tensor | None, what: str) -> tuple[int, int, float, str] | None:
        bad = ~condition.isfinite()
        if absent is not None:
            bad &= ~absent[:, None]
        needs = f"{what} that are finite numbers"
        if any(self.categories) and not bool(bad.any()):
            counts = torch.tensor(self.categories)
            outside = (condition != condition.round()) | (condition < 0) | (condition >= counts)
            bad = outside & (counts > 0) & torch.isfinite(condition)
            needs = f"categories that are numbered from 0 up to those of {self.prefix}categories"
        if not bool(bad.any()):
            return None
        row, column = bad.nonzero()[0].tolist()
        return row, column, float(condition[row, column]), needs


def _checked(owner: str, name: str, values: Any, size: str, dim: int, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,)
    numbers = check_list(owner, name, values)
    if len(numbers) not in (1, dim):
        raise ValueError(
            f"{owner} needs {name} to be one number for each of {size}, or one for all, got {len(numbers)}."
        )
    return numbers


def _checked_categories(owner: str, name: str, categories: Any, size: str, dim: int) -> tuple[int, ...]:
    if categories is None:
        return (0,) * dim
    counts = check_list(owner, name, categories)
    if len(counts) != dim or not all(is_whole(count) and 0 <= count <= 2**20 for count in counts):
        raise ValueError(
            f"{owner} needs {name} to be a whole number for each of {size}, 0 for a number and K for K categories, "
            f"got {categories!r}."
        )
    return tuple(int(count) for count in counts)
