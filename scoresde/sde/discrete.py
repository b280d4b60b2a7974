"""DDPM's tables of β as a process in continuous time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from scoresde.checks import check_numbers, check_whole, is_number
from scoresde.sde.base import SDE


@dataclass(frozen=True)
class DiscreteVPSDE(SDE):
    """A table β_1 ... β_N of DDPM as a VP process with piecewise-constant β(t), so that DDPM is exactly a
    discretisation of it.

        α²(k/N) = ᾱ_k = Π_{i≤k} (1 − β_i),     k = 0 ... N
        B(t) = −log α²(t), linear between the nodes,   σ² = 1 − α²

    Index k of the literature (1 ... N) is t = k/N; a network trained on 0-based labels sees label k − 1.

    β_N may be 1, as in tables of `rescale_zero_terminal_snr`: x_1 is pure noise then. In the last cell α falls linearly
    to 0, from √ᾱ_{N−1}, where B would be infinite: dα/dt and dσ/dt are finite, f and g end infinite.

    Args:
        betas: β_1 ... β_N, each in (0, 1) but a last one of 1: a sequence or 1-d tensor, as from `linear_betas` and its
            siblings.
        t_min: Numerical end of the data side; None is 1/N, the first noisy state of the table.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Lin et al., "Common Diffusion Noise Schedules and Sample Steps Are Flawed", 2024, arXiv:2305.08891.
    """

    betas: tuple[float, ...]
    t_min: float = None  # type: ignore[assignment]  # 1/N once constructed
    prior_std = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.betas, str | Mapping) or not isinstance(self.betas, Iterable):
            raise ValueError(f"DiscreteVPSDE needs betas to be a list of numbers, got {self.betas!r}.")
        betas = tuple(float(beta) if is_number(beta) else math.nan for beta in self.betas)
        most = len(betas) - 1 if len(betas) > 1 and betas[-1] == 1 else len(betas)
        if not betas or not all(0 < beta < 1 for beta in betas[:most]):
            bad = next((given for given, beta in zip(self.betas, betas, strict=True) if not 0 < beta < 1), "no values")
            raise ValueError(
                f"DiscreteVPSDE needs betas strictly between 0 and 1, got {bad}; the last of several may be 1. "
                f"To sample in few steps keep the long table and take a sub-sequence of its times."
            )
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "t_min", 1 / len(betas) if self.t_min is None else self.t_min)
        check_numbers(self, "0 < t_min < 1" if len(betas) > 1 else "0 < t_min <= 1")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._B(t))).to(t.dtype)

    def f(self, t: Tensor) -> Tensor:
        return (-0.5 * self._rate(t)).to(t.dtype)

    def g(self, t: Tensor) -> Tensor:
        return self._rate(t).sqrt().to(t.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if not self._to_zero:
            return super().rates(t)
        N, last = len(self.betas), self._cell(t) == len(self.betas) - 1
        alpha, sigma = self.alpha(t.double()), self.sigma(t.double())
        end = -N * torch.exp(-0.5 * _beta_tables(self.betas, t.device)[0][-2])  # α falls linearly
        alpha_rate = torch.where(last, end, -0.5 * alpha * _beta_tables(self.betas, t.device)[1][self._cell(t)])
        return alpha_rate.to(t.dtype), (-alpha * alpha_rate / sigma).to(t.dtype)

    def logsnr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._B(t)).log().to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        cumulative, rates = _beta_tables(self.betas, logsnr.device)
        B = torch.nn.functional.softplus(-logsnr.double(), threshold=700)
        k = (torch.searchsorted(cumulative, B) - 1).clamp(0, len(rates) - 1)
        inside = (B - cumulative[k]) / rates[k]
        if self._to_zero:
            inside = torch.where(rates[k] > 0, inside, -torch.expm1(0.5 * (cumulative[-2] - B)) / len(rates))
        return (k.double() / len(rates) + inside).to(logsnr.dtype)

    @property
    def _to_zero(self) -> bool:
        """Whether no signal is left at t = 1."""
        return self.betas[-1] == 1

    def _cell(self, t: Tensor) -> Tensor:
        # the nearest node within rounding belongs to the cell below it, so that t = k/N never reads β_{k+1}
        N = len(self.betas)
        return (torch.ceil(t.double() * N - 4 * N * torch.finfo(t.dtype).eps).long() - 1).clamp(0, N - 1)

    def _B(self, t: Tensor) -> Tensor:
        cumulative, rates = _beta_tables(self.betas, t.device)
        k = self._cell(t)
        B = cumulative[k] + (t.double() - k.double() / len(rates)) * rates[k]
        return torch.where(rates[k] > 0, B, B - 2 * self._left(t).log()) if self._to_zero else B

    def _rate(self, t: Tensor) -> Tensor:
        """B'(t)."""
        rate = _beta_tables(self.betas, t.device)[1][self._cell(t)]
        return torch.where(rate > 0, rate, 2 * len(self.betas) / self._left(t)) if self._to_zero else rate

    def _left(self, t: Tensor) -> Tensor:
        """α over its value at the beginning of the last cell, where it falls to 0."""
        return (len(self.betas) * (1 - t.double())).clamp_max(1)


@lru_cache(maxsize=32)
def _beta_tables(betas: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """B at the nodes 0, 1/N, ..., 1 and the rate β(t) = −N log(1 − β_k) in each cell; float64, once per device.

    A cell that B leaves for infinity has rate 0 here.
    """
    steps = -torch.log1p(-torch.tensor(betas, dtype=torch.float64))
    cumulative = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    return cumulative.to(device), torch.where(steps < torch.inf, steps * len(betas), 0).to(device)


def rescale_zero_terminal_snr(betas: Iterable[float]) -> tuple[float, ...]:
    """A table shifted and scaled so that it ends in pure noise (Lin et al. 2024, arXiv:2305.08891, Algorithm 1).

        √ᾱ_k' = (√ᾱ_k − √ᾱ_N) √ᾱ_1 / (√ᾱ_1 − √ᾱ_N),      so ᾱ_1' = ᾱ_1,  ᾱ_N' = 0,  β_N' = 1

    A network for it predicts v, x0 or the velocity: ε says nothing where there is no signal.

    Args:
        betas: β_1 ... β_N in (0, 1), two or more.
    """
    table = torch.tensor(DiscreteVPSDE(betas).betas, dtype=torch.float64)  # type: ignore[arg-type]
    if len(table) < 2 or not bool(table[-1] < 1):
        raise ValueError(
            f"rescale_zero_terminal_snr needs betas to be two or more numbers strictly between 0 and 1, got "
            f"{f'the one value {betas!r}' if len(table) < 2 else 'a last one of 1'}."
        )
    root = (1 - table).cumprod(0).sqrt()
    kept = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    return tuple((1 - torch.cat([kept[:1], kept[1:] / kept[:-1]])).tolist())


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """DDPM's table: β from `start` to `end` in equal steps (arXiv:2006.11239)."""
    _check_table("linear_betas", steps, start, end)
    return tuple(torch.linspace(start, end, steps, dtype=torch.float64).tolist())


def quadratic_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """Equal steps in √β, then squared (the `quad` schedule of DDIM's code, arXiv:2010.02502)."""
    _check_table("quadratic_betas", steps, start, end)
    return tuple(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square().tolist())


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> tuple[float, ...]:
    """Equal steps in √β with the end points of latent diffusion (arXiv:2112.10752)."""
    _check_table("scaled_linear_betas", steps, start, end)
    return quadratic_betas(steps, start, end)


def cosine_betas(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> tuple[float, ...]:
    """Improved DDPM's table, β_k = min(1 − ᾱ(k/N)/ᾱ((k−1)/N), max_beta) (arXiv:2102.09672)."""
    check_whole("cosine_betas", "1 <= steps <= 1000000", steps=steps)
    check_numbers("cosine_betas", "0 <= s < 1", "0 < max_beta < 1", s=s, max_beta=max_beta)

    def alpha_bar(u: float) -> float:
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    return tuple(min(1 - alpha_bar((k + 1) / steps) / alpha_bar(k / steps), max_beta) for k in range(steps))


def sigmoid_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """β along a sigmoid on [−6, 6], from `start` to `end`."""
    _check_table("sigmoid_betas", steps, start, end)
    ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
    return tuple((start + (end - start) * ramp).tolist())


def _check_table(owner: str, steps: int, start: float, end: float) -> None:
    check_whole(owner, "1 <= steps <= 1000000", steps=steps)
    check_numbers(owner, "0 < start <= end < 1", start=start, end=end)
