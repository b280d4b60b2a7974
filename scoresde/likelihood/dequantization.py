"""Dequantisation: noise that makes discrete data continuous, so that a density bounds their probability."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_numbers
from scoresde.likelihood.cells import Cells
from scoresde.sde import SDE


class Dequantized(NamedTuple):
    """A draw x ~ q(x | k).

    Attributes:
        x: Continuous data in the model's scaling, (B, *).
        log_q: log q(x | k) in nats, float64, (B,).
        t: The time at which x lives; None is the SDE's t_min.
    """

    x: Tensor
    log_q: Tensor
    t: float | None


Dequantization = Callable[..., Dequantized]  # (k (B, *), sde, *, generator=None, u=None, dtype=float32) -> Dequantized


class _Cellwise(Cells, ABC):
    """A dequantisation that turns one uniform number into one entry."""

    def __call__(
        self,
        k: Tensor,
        sde: SDE,
        *,
        generator: torch.Generator | None = None,
        u: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Dequantized:
        """Draw x for k (B, *), integers in 0..levels−1; u (B, *) in [0, 1) replaces the uniform numbers."""
        k = checked_levels(type(self).__name__, k, self)
        return self._draw(k, sde, uniforms(k, generator, u), dtype)

    @abstractmethod
    def _draw(self, k: Tensor, sde: SDE, u: Tensor, dtype: torch.dtype) -> Dequantized: ...


@dataclass(frozen=True, kw_only=True)
class UniformDequantization(_Cellwise):
    """Uniform noise over the cell of each level.

        x = lo + (k + u) w,   u ~ U(0, 1)                               (Uria et al. 2013; Theis et al. 2016, §3.1)
        log q(x | k) = −d log w

    Args:
        levels, value_range: See `Cells`.

    References:
        Uria et al., "RNADE: The real-valued neural autoregressive density-estimator", 2013, arXiv:1306.0186.
        Theis et al., "A note on the evaluation of generative models", 2016, arXiv:1511.01844.
    """

    def _draw(self, k: Tensor, sde: SDE, u: Tensor, dtype: torch.dtype) -> Dequantized:
        log_q = u.new_full(k.shape[:1], -k[0].numel() * math.log(self.width))
        return Dequantized(self.inside(k, u, dtype), log_q, None)


@dataclass(frozen=True, kw_only=True)
class TruncatedNormalDequantization(_Cellwise):
    """The forward process's own noise, cut where the cells end: at t the data need no other noise.

        x = α c_k + σ ε,   ε ~ N(0, 1) on (−τ, τ),   τ = α w / (2σ)                (Zheng et al. 2023)
        log q(x | k) = Σ [−½ε² − ½log 2π − log σ − log Z],   Z = erf(τ/√2)

    c_k is the centre of the cell. x lives at time t, in cells of width α w: the density to ask for is that of x_t, and
    bits/dim have no further offset. As σ grows q becomes uniform over the cell.

    Args:
        levels, value_range: See `Cells`.
        t: The time; None is the SDE's t_min.

    References:
        Zheng et al., "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023,
            arXiv:2305.03935.
    """

    t: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "0 <= t < 1 or null")

    def _draw(self, k: Tensor, sde: SDE, u: Tensor, dtype: torch.dtype) -> Dequantized:
        alpha, sigma = self._alpha_sigma(sde, k.device)
        tau = alpha * self.width / (2 * sigma)
        mass = torch.erf(tau / math.sqrt(2))
        open_unit = (2 * u - 1).clamp_min(-1 + 2**-53)  # rand may return 0, where the quantile of N(0, 1) is infinite
        eps = (math.sqrt(2) * torch.erfinv(mass * open_unit)).clamp(-tau, tau)
        each = -0.5 * eps.square() - 0.5 * math.log(2 * math.pi) - (sigma * mass).log()
        x = alpha * self.centre(k, torch.float64) + sigma * eps
        return Dequantized(x.to(dtype), each.flatten(1).sum(1), self.t)

    def _alpha_sigma(self, sde: SDE, device: torch.device) -> tuple[Tensor, Tensor]:
        t = sde.t_min if self.t is None else self.t
        time = torch.tensor(t, dtype=torch.float64, device=device)
        alpha, sigma = sde.alpha(time).detach(), sde.sigma(time).detach()
        if not bool(sigma > 0):
            raise ValueError(
                f"TruncatedNormalDequantization needs σ > 0 at t={t:g}, where {type(sde).__name__} has "
                f"σ={float(sigma):g}: raise t, or the SDE's t_min."
            )
        return alpha, sigma


def uniforms(k: Tensor, generator: torch.Generator | None, u: Tensor | None) -> Tensor:
    """The given numbers, or uniform ones on [0, 1) from a generator on k's device: float64, the shape of k."""
    if u is None:
        return torch.rand(k.shape, generator=generator, dtype=torch.float64, device=k.device)
    return u.to(k.device, torch.float64)


def checked_levels(owner: str, k: Tensor, cells: Cells) -> Tensor:
    """The levels as int64.

    Raises:
        TypeError: For continuous data.
        ValueError: For integers outside 0..levels−1, or without a batch axis.
    """
    if k.is_floating_point() or k.is_complex():
        raise TypeError(
            f"{owner} needs integers from 0 to {cells.levels - 1}, got continuous data ({k.dtype}) with a level "
            f"count of {cells.levels}: leave the count out, log_prob gives the density of continuous data; "
            f"levels stored as floats need .long() first."
        )
    if k.ndim < 2 or k.numel() == 0:
        raise ValueError(f"{owner} needs levels of shape (B, *), got {tuple(k.shape)}.")
    k = k.long()
    outside = (k < 0) | (k >= cells.levels)
    if bool(outside.any()):
        where = tuple(outside.nonzero()[0].tolist())
        raise ValueError(
            f"{owner} needs integers from 0 to {cells.levels - 1}, got integers outside the range: the first is "
            f"{int(k[where])} at index {where}. Pass the number of levels that the data have."
        )
    return k
