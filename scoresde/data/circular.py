"""Columns of angles, whose density is a sum over turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_CIRCULAR = 4  # columns: the density of one example is then a sum of 81 terms


@dataclass(frozen=True, kw_only=True, eq=False)
class Circular:
    """Columns of angles: θ and θ + period are the same.

        y = θ + k period with probability w(a),     a = (y − c)/period
        w(a) = 1 for |a| ≤ ¼,     ½ (1 + cos(2π (|a| − ¼))) for ¼ < |a| < ¾,     0 beyond

    with the circular mean c of the data. The turns of an angle have w = 1 between them, so Σ_k p(θ + k period) of the
    density p(θ mod period) w is that of the angle: the density on the circle is the sum of the model's over turns,
    exactly, and what a model is trained on has no edge where the circle is cut. The three turns around c are added.

    Args:
        columns: Which, by number.
        values: Period, c, and the lower end of the range that angles come back in, (len(columns), 3) float64.
    """

    columns: tuple[int, ...]
    values: Tensor

    @classmethod
    def fit(cls, x: Tensor, periods: Mapping[int, float]) -> Circular:
        """The circular mean and the range of training data (N, C)."""
        rows = []
        for column, period in periods.items():
            angle = x[:, column].double()
            turn = angle * (2 * math.pi / period)
            centre = torch.atan2(turn.sin().mean(), turn.cos().mean()) * (period / (2 * math.pi))
            signed = bool(angle.min() < 0) and bool(angle.abs().max() <= period / 2)
            rows.append([period, float(centre), -period / 2 if signed else 0.0])
        return cls(columns=tuple(periods), values=torch.tensor(rows, dtype=torch.float64))

    def near(self, x: Tensor) -> Tensor:
        """The turn of each angle that is nearest to the centre, (B, len(columns))."""
        period, centre, _ = self._values(x)
        return x - ((x - centre) / period).round() * period

    def weight(self, y: Tensor) -> Tensor:
        """w(y), (B, len(columns))."""
        period, centre, _ = self._values(y)
        ramp = (((y - centre) / period).abs() - 0.25).clamp(0, 0.5)
        return 0.5 * (1 + torch.cos(2 * math.pi * ramp))

    def draw(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """One of the two turns of each angle."""
        period, centre, _ = self._values(x)
        near = self.near(x)
        device = x.device if generator is None else generator.device
        u = torch.rand(x.shape, generator=generator, device=device, dtype=torch.float64).to(x.device)
        other = near - torch.where(near < centre, -1.0, 1.0) * period
        return torch.where(u < self.weight(near), near, other)

    def wrap(self, y: Tensor) -> Tensor:
        """Angles within one period."""
        period, _, low = self._values(y)
        return low + torch.remainder(y - low, period)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of y over examples and turns, (len(columns),) each."""
        turns = [self.near(x) + k * self._values(x)[0] for k in (-1, 0, 1)]
        weights = [self.weight(turn) for turn in turns]
        mean = sum(((w * y).mean(0) for w, y in zip(weights, turns, strict=True)), torch.zeros(()))
        square = sum(((w * (y - mean).square()).mean(0) for w, y in zip(weights, turns, strict=True)), torch.zeros(()))
        return mean, square.sqrt()

    @property
    def periods(self) -> Tensor:
        return self.values[:, 0]

    def _values(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        period, centre, low = self.values.to(like.device).unbind(1)
        return period, centre, low
