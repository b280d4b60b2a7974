"""What the wrappers that add a covariance to a denoiser have in common."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, TypeVar

from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde.levels import Level

Wrapper = TypeVar("Wrapper", bound="CovarianceDenoiser")
DataRange = tuple[float, float]  # (low, high) of every entry of the data, in the model's own scaling


class CovarianceDenoiser(Denoiser):
    """A denoiser around another one that also knows the diagonal of Cov[x0 | x_t].

        0 ≤ Cov[x0 | x_t]_ii ≤ ((high − low)/2)²                    (data in [low, high]^d)

    Estimates are clipped to these bounds.

    Args:
        denoiser: Gives x̂0.
        data_range: (low, high) of the data, (−1, 1) for images; None leaves out the upper bound.

    References:
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
    """

    def __init__(self, denoiser: Denoiser, data_range: DataRange | None = None) -> None:
        super().__init__()
        if data_range is not None and not data_range[0] < data_range[1]:
            raise ValueError(f"{type(self).__name__} needs data_range (low, high) with low < high, got {data_range}.")
        self.sde, self.denoiser = denoiser.sde, denoiser
        self.data_range = None if data_range is None else (float(data_range[0]), float(data_range[1]))

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.x0(x, level, **cond)

    def eps_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.eps_at(x, level, **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.denoiser.v_at(x, level, **cond)

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Diagonal of Cov[x0 | x_t = x]; broadcasts against x."""
        return self.mean_and_covariance(x, t, **cond)[1]

    @abstractmethod
    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        """x̂0 (B, *) and the diagonal of Cov[x0 | x_t = x], with one call of the denoiser."""

    def around(self: Wrapper, denoiser: Denoiser) -> Wrapper:
        """The same covariance for another denoiser; all else is shared."""
        other = copy.copy(self)
        other._modules = {**self._modules, "denoiser": denoiser}
        return other

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        inner = self.denoiser.select(index, batch)
        return None if inner is None else self.around(inner)

    def bounded(self, covariance: Tensor) -> Tensor:
        """Clipped to what data in `data_range` allow."""
        if self.data_range is None:
            return covariance.clamp_min(0)
        low, high = self.data_range
        return covariance.clamp(0, ((high - low) / 2) ** 2)
