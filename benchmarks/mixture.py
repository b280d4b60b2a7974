"""Gaussian mixtures as a measuring instrument: exact model, exact probability flow, distances between samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint


@dataclass(frozen=True)
class Mixture:
    """Data from Σ_k w_k N(μ_k, diag(v_k)) in float64: w (K,), mu (K, d), var (K, d)."""

    name: str
    w: Tensor
    mu: Tensor
    var: Tensor

    @property
    def rms(self) -> float:
        """√(E‖x0‖² / d)."""
        return float((self.w @ (self.mu.square() + self.var)).mean().sqrt())

    def sample(self, n: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.w, n, replacement=True, generator=generator)
        z = torch.randn(n, self.mu.shape[1], generator=generator, dtype=torch.float64)
        return self.mu[k] + self.var[k].sqrt() * z

    def responsibilities(self, x: Tensor, alpha: float, sigma: float) -> tuple[Tensor, Tensor]:
        """Posterior weights (B, K) of the components given x_t = α x0 + σ ε, and their precisions (K, d).

        The squares are expanded so that the work is matrix products: Σ (x − αμ)²/v = x²·(1/v) − 2x·(αμ/v) + Σ (αμ)²/v.
        """
        variance = alpha**2 * self.var + sigma**2
        precision = variance.reciprocal()
        shift = alpha * self.mu * precision
        constant = self.w.log() - 0.5 * (variance.log().sum(1) + alpha * (self.mu * shift).sum(1))
        log_joint = torch.addmm(constant, x.square(), precision.T, alpha=-0.5).addmm_(x, shift.T)
        return log_joint.softmax(1), precision

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[ε | x_t = x] = σ Σ_k r_k (x − α μ_k) / (α² v_k + σ²), x (B, d) float64."""
        r, precision = self.responsibilities(x, alpha, sigma)
        pull = r @ (alpha * self.mu * precision)
        return (r @ precision).mul_(x).sub_(pull).mul_(sigma)

    def eps_rows(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`eps` with a noise level per sample: alpha and sigma (B,)."""
        alpha, sigma = alpha[:, None, None], sigma[:, None, None]
        variance = alpha.square() * self.var + sigma.square()
        z = x[:, None] - alpha * self.mu
        r = (self.w.log() - 0.5 * (z.square() / variance + variance.log()).sum(2)).softmax(1)
        return torch.einsum("bk,bkd->bd", r, z / variance) * sigma[:, 0]

    def spread(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """Diagonal of Cov[x0 | x_t = x], (B, d)."""
        r, precision = self.responsibilities(x, alpha, sigma)
        gain = alpha * self.var * precision
        offset = self.mu * (1 - alpha * gain)
        mean = r @ offset + (r @ gain) * x
        second = r @ (offset.square() + sigma**2 * self.var * precision) + x * (
            2 * r @ (offset * gain) + x * (r @ gain**2)
        )
        return (second - mean.square()).clamp_min(0)

    def save(self, path: Path) -> None:
        np.savez(path, w=self.w.numpy(), mu=self.mu.numpy(), var=self.var.numpy())


class CountedModel:
    """The exact model of a mixture, in the forms that libraries ask for; counts its calls."""

    def __init__(self, problem: Mixture) -> None:
        self.problem, self.calls = problem, 0

    def eps(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        self.calls += 1
        return self.problem.eps(x.double(), alpha, sigma)

    def denoised(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x0 | x_t = x]."""
        return (x.double() - sigma * self.eps(x, alpha, sigma)) / alpha


def load(path: Path) -> Mixture:
    """A problem from an .npz file with w (K,), mu (K, d) and var (K, d)."""
    with np.load(path) as arrays:
        w, mu, var = (torch.from_numpy(arrays[key]).double() for key in ("w", "mu", "var"))
    if mu.ndim != 2 or w.shape != mu.shape[:1] or var.shape != mu.shape:
        shapes = ", ".join(str(tuple(value.shape)) for value in (w, mu, var))
        raise ValueError(f"{path} needs w (K,), mu (K, d) and var (K, d), got {shapes}.")
    return Mixture(path.stem, w / w.sum(), mu, var)


def built_in(seed: int = 0) -> list[Mixture]:
    """d2: 8 round-ish components, std .03 to .15. d64: 10 components whose stds, .01 to .3, are a permutation each."""
    generator = torch.Generator().manual_seed(seed)

    def weights(k: int) -> Tensor:
        w = torch.rand(k, generator=generator, dtype=torch.float64) + 0.2
        return w / w.sum()

    mu = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    std = 0.03 * 5 ** torch.rand(8, 2, generator=generator, dtype=torch.float64)
    plane = Mixture("d2", weights(8), mu, std.square())

    mu = torch.randn(10, 64, generator=generator, dtype=torch.float64)
    ladder = 0.01 * 30 ** torch.linspace(0, 1, 64, dtype=torch.float64)
    std = torch.stack([ladder[torch.randperm(64, generator=generator)] for _ in range(10)])
    return [plane, Mixture("d64", weights(10), mu, std.square())]


def flow_end(problem: Mixture, x: Tensor, alpha: float, sigma: float, tolerance: float = 1e-10) -> Tensor:
    """The exact probability-flow solution at noise 0 from x (B, d) at (α, σ), by dopri8.

    With y = x/α and r = σ/α = c sinh z the flow is dy/dz = ε̂ c cosh z, smooth down to z = 0 for mixtures.
    """
    c = 0.01
    start = math.asinh(sigma / alpha / c)

    def rate(z: Tensor, y: Tensor) -> Tensor:
        r = c * math.sinh(float(z))
        return problem.eps(y, 1.0, r) * (c * math.cosh(float(z)))

    def worst(y: Tensor) -> Tensor:
        return y.square().mean(1).amax().sqrt()

    times = torch.tensor([start, 0.0], dtype=torch.float64)
    options = {"norm": worst, "step_t": times[1:]}
    chunks = [odeint(rate, y, times, rtol=tolerance, atol=tolerance, method="dopri8", options=options)[-1]
              for y in (x / alpha).split(512)]  # fmt: skip
    return torch.cat(chunks)
