"""Forward processes dx = f(t) x dt + g(t) dw on t in [0, 1]: 0 is data, 1 is noise."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.quadrature import LinearSDEQuadrature


class Kernel(NamedTuple):
    """Gaussian transition kernel q(x_s | x_t) = N(scale · x_t, std² I)."""

    scale: Tensor
    std: Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """Reshape times so that they broadcast against states.

    Args:
        t: Times, shape () or (B,).
        x: States, shape (B, *).
    Returns:
        t unchanged, or with shape (B, 1, ..., 1) and the dtype of x.
    Raises:
        ValueError: If t is neither a scalar nor one time per sample.
    """
    if t.ndim == 0:
        return t
    if t.shape != x.shape[:1]:
        raise ValueError(
            f"t must be a scalar or one time per sample: expected shape () or ({x.shape[0] if x.ndim else 0},) "
            f"for x of shape {tuple(x.shape)}, got {tuple(t.shape)}. "
            f"Pass t.flatten() if each sample has its own time."
        )
    return t.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


class SDE(ABC):
    """A linear forward process, defined by either of two pairs of formulas.

        dx = f(t) x dt + g(t) dw,        x_t | x_0 ~ N(α_t x_0, σ_t² I)
        f = (log α)'                      (σ²)' = 2 f σ² + g²

    A subclass writes `alpha` and `sigma` (f and g follow by differentiation), or `f` and `g` (α and σ follow by
    quadrature, in float64, from α_0 = 1 and σ_0 = `sigma_start`). All methods are elementwise: any shape of t, and
    the dtype and device of t. `scoresde.testing.check_sde` tells whether a subclass is consistent.

    Attributes:
        t_min: Numerical end of the data side: solvers stop and likelihoods start here.
        sigma_start: σ_0 of a process given by f and g.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    t_min: float = 1e-5
    sigma_start: float = 0.0

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        has = {name: getattr(cls, name) is not getattr(SDE, name) for name in ("alpha", "sigma", "f", "g")}
        if not (has["alpha"] and has["sigma"]) and not (has["f"] and has["g"]):
            written = ", ".join(name for name, given in has.items() if given) or "none of them"
            raise TypeError(
                f"{cls.__name__} needs two formulas, alpha and sigma or f and g, got {written}. "
                f"Write one whole pair as methods of t."
            )

    def alpha(self, t: Tensor) -> Tensor:
        """α_t, the coefficient of x_0 in x_t."""
        return self._quadrature.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """σ_t, the standard deviation of x_t given x_0."""
        return self._quadrature.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        """f(t) = d/dt log α_t."""
        return _value_and_rate(lambda u: self.alpha(u).log(), t)[1]

    def g(self, t: Tensor) -> Tensor:
        """g(t) = √(d(σ_t²)/dt − 2 f σ_t²)."""
        variance, rate = _value_and_rate(lambda u: self.sigma(u).square(), t)
        return (rate - 2 * self.f(t) * variance).clamp_min(0).sqrt()

    def drift(self, x: Tensor, t: Tensor) -> Tensor:
        """f(t) x, shape (B, *)."""
        return expand(self.f(t), x) * x

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t), the shape of t."""
        return self.g(t)

    def logsnr(self, t: Tensor) -> Tensor:
        """log(α_t² / σ_t²), strictly decreasing in t."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def time(self, logsnr: Tensor) -> Tensor:
        """Inverse of `logsnr`: by bisection in float64, so values outside the process give 0 or 1."""
        target = logsnr.detach().double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        for _ in range(100):
            mid = 0.5 * (low + high)
            noisier = self.logsnr(mid) < target
            low, high = torch.where(noisier, low, mid), torch.where(noisier, mid, high)
        return (0.5 * (low + high)).to(logsnr.dtype)

    def transition(self, t: Tensor, s: Tensor) -> Kernel:
        """Kernel of x_s given x_t, for s ≥ t.

        scale = α_s / α_t
        std²  = σ_s² − scale² σ_t² = −σ_s² expm1(logsnr_s − logsnr_t)
        """
        shrink = -torch.expm1(self.logsnr(s) - self.logsnr(t))
        return Kernel(self.alpha(s) / self.alpha(t), self.sigma(s) * shrink.clamp_min(0).sqrt())

    def perturb(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = α_t x_0 + σ_t ε, shape (B, *)."""
        return expand(self.alpha(t), x0) * x0 + expand(self.sigma(t), x0) * noise

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std² I) for x_1; σ_1 unless a process says otherwise."""
        return float(self.sigma(torch.ones((), dtype=torch.float64)))

    def prior_sample(
        self,
        shape: Sequence[int],
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draw x_1 from the prior, shape `shape`."""
        return self.prior_std * torch.randn(tuple(shape), generator=generator, device=device, dtype=dtype)

    def prior_log_prob(self, x: Tensor) -> Tensor:
        """Log density of the prior in nats, x (B, *) -> (B,)."""
        z = x.flatten(1) / self.prior_std
        return -0.5 * z.square().sum(1) - z.shape[1] * (0.5 * math.log(2 * math.pi) + math.log(self.prior_std))

    @cached_property
    def _quadrature(self) -> LinearSDEQuadrature:
        return LinearSDEQuadrature(self.f, self.g, self.sigma_start)


def _value_and_rate(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """function(t) and its derivative, for an elementwise function."""
    value, pull_back = torch.func.vjp(function, t)[:2]
    return value, pull_back(torch.ones_like(value))[0]


def _check_range(owner: str, low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"{owner} needs 0 < {low_name} < {high_name}, got {low_name}={low}, {high_name}={high}.")


def _check_t_min(sde: SDE) -> None:
    if not 0 < sde.t_min < 1:
        raise ValueError(
            f"{type(sde).__name__} needs t_min between 0 and 1, got t_min={sde.t_min}. The usual value is 1e-5."
        )


@dataclass(frozen=True, kw_only=True)
class VPSDE(SDE):
    """Variance-preserving SDE, the continuous limit of DDPM.

        dx  = -½ β(t) x dt + √β(t) dw                              (Song et al. 2021, eq. 11)
        α_t = e^(−B(t)/2)
        σ_t = √(1 − e^(−B(t)))
        β(t) = beta_min + (beta_max − beta_min) t,   B(t) = ∫₀ᵗ β

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), larger than beta_min.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        _check_range("VPSDE", "beta_min", self.beta_min, "beta_max", self.beta_max)
        _check_t_min(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._B(t)))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(self._beta(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._B(t)).log()

    def time(self, logsnr: Tensor) -> Tensor:
        return _linear_beta_time(self, torch.nn.functional.softplus(-logsnr))

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _B(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()


@dataclass(frozen=True, kw_only=True)
class SubVPSDE(SDE):
    """Sub-variance-preserving SDE: VP drift with a smaller diffusion.

        dx  = -½ β(t) x dt + √(β(t) (1 − e^(−2B(t)))) dw          (Song et al. 2021, §3.4)
        α_t = e^(−B(t)/2)
        σ_t = 1 − e^(−B(t))
        β(t) = beta_min + (beta_max − beta_min) t,   B(t) = ∫₀ᵗ β

    Its variance is below VP's at every t, which helps likelihoods.

    Args:
        beta_min: β(0), positive.
        beta_max: β(1), larger than beta_min.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        _check_range("SubVPSDE", "beta_min", self.beta_min, "beta_max", self.beta_max)
        _check_t_min(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t))

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._B(t))

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-self._beta(t) * torch.expm1(-2 * self._B(t)))

    def time(self, logsnr: Tensor) -> Tensor:
        return _linear_beta_time(self, 2 * torch.asinh(0.5 * torch.exp(-0.5 * logsnr)))  # σ/α = 2 sinh(B/2)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _B(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t.square()


def _linear_beta_time(sde: VPSDE | SubVPSDE, B: Tensor) -> Tensor:
    """The t with B(t) = beta_min t + ½ (beta_max − beta_min) t², the root written without cancellation."""
    return 2 * B / (sde.beta_min + torch.sqrt(sde.beta_min**2 + 2 * (sde.beta_max - sde.beta_min) * B))


@dataclass(frozen=True, kw_only=True)
class VESDE(SDE):
    """Variance-exploding SDE, the continuous limit of SMLD.

        dx  = σ_t √(2 log(sigma_max/sigma_min)) dw                 (Song et al. 2021, eq. 9)
        α_t = 1
        σ_t = sigma_min (sigma_max/sigma_min)^t

    σ_0 is sigma_min, not 0: data at t = 0 already carry that noise.

    Args:
        sigma_min: Smallest noise level, positive.
        sigma_max: Largest noise level; the greatest distance between two data points is a good choice.
        t_min: Numerical end of the data side.

    References:
        Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv:2011.13456.
        Song and Ermon, "Improved Techniques for Training Score-Based Generative Models", 2020, arXiv:2006.09011.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_range("VESDE", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        _check_t_min(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._log_ratio)

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.sqrt(2 * self._log_ratio)

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

    def time(self, logsnr: Tensor) -> Tensor:
        return (-0.5 * logsnr - math.log(self.sigma_min)) / self._log_ratio

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True, kw_only=True)
class EDMSDE(SDE):
    """The process of Karras et al., x_t = x_0 + σ_t ε, on a clock in which their sampling steps are uniform.

        α_t = 1
        σ_t = (sigma_min^(1/ρ) + t (sigma_max^(1/ρ) − sigma_min^(1/ρ)))^ρ       (Karras et al. 2022, eq. 5)

    Args:
        sigma_min: Smallest noise level, positive.
        sigma_max: Largest noise level.
        rho: ρ; larger values spend more time at small noise.
        t_min: Numerical end of the data side.

    References:
        Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, arXiv:2206.00364.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        _check_range("EDMSDE", "sigma_min", self.sigma_min, "sigma_max", self.sigma_max)
        _check_t_min(self)
        if not self.rho > 0:
            raise ValueError(f"EDMSDE needs rho > 0, got rho={self.rho}. The usual value is 7.")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self._root(t) ** self.rho

    def f(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def g(self, t: Tensor) -> Tensor:
        return self.sigma(t) * torch.sqrt(2 * self.rho * self._slope / self._root(t))

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * self._root(t).log()

    def time(self, logsnr: Tensor) -> Tensor:
        return (torch.exp(-0.5 * logsnr / self.rho) - self.sigma_min ** (1 / self.rho)) / self._slope

    def _root(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 / self.rho) + t * self._slope

    @property
    def prior_std(self) -> float:
        return self.sigma_max

    @property
    def _slope(self) -> float:
        return self.sigma_max ** (1 / self.rho) - self.sigma_min ** (1 / self.rho)


@dataclass(frozen=True, kw_only=True)
class CosineSDE(SDE):
    """Variance-preserving process with the cosine schedule of Improved DDPM.

        α_t = cos θ_t / cos θ_0,   σ_t² = 1 − α_t²                 (Nichol and Dhariwal 2021, eq. 17)
        θ_t = θ_0 + t (θ_1 − θ_0),  θ_0 = s/(1+s) · π/2

    The published θ_1 = π/2 has α_1 = 0, where ε-prediction is undefined; θ_1 is the angle at which logsnr equals
    `logsnr_min` instead. The default −20 is where clipping β at 0.999 stops the published 1000-step table
    (ᾱ = 2.4e-9), and moves the clock by 3e-5.

    Args:
        s: Offset that keeps β small near the data.
        logsnr_min: logsnr at t = 1.
        t_min: Numerical end of the data side.

    References:
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    s: float = 0.008
    logsnr_min: float = -20.0
    t_min: float = 1e-5
    prior_std = 1.0

    def __post_init__(self) -> None:
        _check_t_min(self)
        if not 0 < self.s < 1:
            raise ValueError(f"CosineSDE needs 0 < s < 1, got s={self.s}. The published value is 0.008.")
        if not -60 < self.logsnr_min < 0:
            raise ValueError(f"CosineSDE needs -60 < logsnr_min < 0, got logsnr_min={self.logsnr_min}.")

    def alpha(self, t: Tensor) -> Tensor:
        # cos θ as a sine of the small angle π/2 − θ: exact digits near t = 1
        return torch.sin((math.pi / 2 - self._theta1) + (1 - t) * self._span) / math.cos(self._theta0)

    def sigma(self, t: Tensor) -> Tensor:
        # cos²θ_0 − cos²θ = sin(θ − θ_0) sin(θ + θ_0)
        turn = t * self._span
        return torch.sqrt(torch.sin(turn) * torch.sin(2 * self._theta0 + turn)) / math.cos(self._theta0)

    def f(self, t: Tensor) -> Tensor:
        return -self._span / torch.tan((math.pi / 2 - self._theta1) + (1 - t) * self._span)

    def g(self, t: Tensor) -> Tensor:
        return torch.sqrt(-2 * self.f(t))

    def time(self, logsnr: Tensor) -> Tensor:
        wide = logsnr.double()
        variance = torch.sigmoid(-wide)
        sine = torch.sqrt(math.sin(self._theta0) ** 2 + math.cos(self._theta0) ** 2 * variance)
        theta = torch.atan2(sine, math.cos(self._theta0) * torch.sigmoid(wide).sqrt())
        # near t = 0 the difference of angles cancels; sin(θ − θ_0) = cos²θ_0 σ² / sin(θ + θ_0) does not
        turn = torch.asin((math.cos(self._theta0) ** 2 * variance / torch.sin(theta + self._theta0)).clamp(-1, 1))
        turn = torch.where(variance < 0.5, turn, theta - self._theta0)
        return (turn / self._span).to(logsnr.dtype)

    def _theta(self, alpha: float) -> float:
        return math.pi / 2 - math.asin(alpha * math.cos(self._theta0))

    @property
    def _theta0(self) -> float:
        return self.s / (1 + self.s) * math.pi / 2

    @property
    def _theta1(self) -> float:
        return self._theta(math.sqrt(1 / (1 + math.exp(-self.logsnr_min))))

    @property
    def _span(self) -> float:
        return self._theta1 - self._theta0


@dataclass(frozen=True)
class DiscreteVPSDE(SDE):
    """A table β_1 ... β_N of DDPM as a VP process with piecewise-constant β(t), so that DDPM is exactly a
    discretisation of it.

        α²(k/N) = ᾱ_k = Π_{i≤k} (1 − β_i),     k = 0 ... N
        B(t) = −log α²(t), linear between the nodes,   σ² = 1 − α²

    Index k of the literature (1 ... N) is t = k/N; a network trained on 0-based labels sees label k − 1.

    Args:
        betas: β_1 ... β_N, each in (0, 1): a sequence or 1-d tensor, as from `linear_betas` and its siblings.
        t_min: Numerical end of the data side; None is 1/N, the first noisy state of the table.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    betas: tuple[float, ...]
    t_min: float = None  # type: ignore[assignment]  # 1/N once constructed
    prior_std = 1.0

    def __post_init__(self) -> None:
        betas = tuple(float(beta) for beta in self.betas)
        if not betas or not all(0 < beta < 1 for beta in betas):
            bad = next((beta for beta in betas if not 0 < beta < 1), "no values")
            raise ValueError(
                f"DiscreteVPSDE needs betas strictly between 0 and 1, got {bad}. "
                f"To sample in few steps keep the long table and take a sub-sequence of its times."
            )
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "t_min", 1 / len(betas) if self.t_min is None else float(self.t_min))
        if not 0 < self.t_min < 1 and len(betas) > 1:
            _check_t_min(self)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._B(t)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._B(t))).to(t.dtype)

    def f(self, t: Tensor) -> Tensor:
        return (-0.5 * self._rate(t)).to(t.dtype)

    def g(self, t: Tensor) -> Tensor:
        return self._rate(t).sqrt().to(t.dtype)

    def logsnr(self, t: Tensor) -> Tensor:
        return -torch.expm1(self._B(t)).log().to(t.dtype)

    def time(self, logsnr: Tensor) -> Tensor:
        cumulative, rates = _beta_tables(self.betas, logsnr.device)
        B = torch.nn.functional.softplus(-logsnr.double(), threshold=700)
        k = (torch.searchsorted(cumulative, B) - 1).clamp(0, len(rates) - 1)
        return (k.double() / len(rates) + (B - cumulative[k]) / rates[k]).to(logsnr.dtype)

    def _cell(self, t: Tensor) -> Tensor:
        # the nearest node within rounding belongs to the cell below it, so that t = k/N never reads β_{k+1}
        N = len(self.betas)
        return (torch.ceil(t.double() * N - 4 * N * torch.finfo(t.dtype).eps).long() - 1).clamp(0, N - 1)

    def _B(self, t: Tensor) -> Tensor:
        cumulative, rates = _beta_tables(self.betas, t.device)
        k = self._cell(t)
        return cumulative[k] + (t.double() - k.double() / len(rates)) * rates[k]

    def _rate(self, t: Tensor) -> Tensor:
        return _beta_tables(self.betas, t.device)[1][self._cell(t)]


@lru_cache(maxsize=32)
def _beta_tables(betas: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """B at the nodes 0, 1/N, ..., 1 and the rate β(t) = −N log(1 − β_k) in each cell; float64, once per device."""
    steps = -torch.log1p(-torch.tensor(betas, dtype=torch.float64))
    cumulative = torch.cat([steps.new_zeros(1), steps.cumsum(0)])
    return cumulative.to(device), (steps * len(betas)).to(device)


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """DDPM's table: β from `start` to `end` in equal steps (arXiv:2006.11239)."""
    return tuple(torch.linspace(start, end, steps, dtype=torch.float64).tolist())


def quadratic_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """Equal steps in √β, then squared (the `quad` schedule of DDIM's code, arXiv:2010.02502)."""
    return tuple(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square().tolist())


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> tuple[float, ...]:
    """Equal steps in √β with the end points of latent diffusion (arXiv:2112.10752)."""
    return quadratic_betas(steps, start, end)


def cosine_betas(steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> tuple[float, ...]:
    """Improved DDPM's table, β_k = min(1 − ᾱ(k/N)/ᾱ((k−1)/N), max_beta) (arXiv:2102.09672)."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + s) / (1 + s) * math.pi / 2) ** 2

    return tuple(min(1 - alpha_bar((k + 1) / steps) / alpha_bar(k / steps), max_beta) for k in range(steps))


def sigmoid_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> tuple[float, ...]:
    """β along a sigmoid on [−6, 6], from `start` to `end`."""
    ramp = torch.sigmoid(torch.linspace(-6, 6, steps, dtype=torch.float64))
    return tuple((start + (end - start) * ramp).tolist())
