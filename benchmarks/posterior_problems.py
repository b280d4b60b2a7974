"""Linear-Gaussian inverse problems under a mixture prior, whose posterior is a mixture that is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.noise import stream_generator

SCALE = math.sqrt(129)  # to unit standard deviation per coordinate, of even weights
FIELDS = ("w", "mu", "var", "A", "sigma_y", "y")


@dataclass(frozen=True)
class Problem:
    """x0 ~ Σ_k w_k N(μ_k, var I),  y = A x0 + sigma_y n, in float64.

        p(x0 | y) = Σ_k w'_k N(m_k, C),     w'_k ∝ w_k N(y; A μ_k, var A Aᵀ + sigma_y² I)

    Args:
        w, mu, var: (K,), (K, d) and a number.
        A, sigma_y, y: (d_y, d), a number and (d_y,).
    """

    w: Tensor
    mu: Tensor
    var: float
    A: Tensor
    sigma_y: float
    y: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """d and d_y."""
        return self.mu.shape[1], len(self.y)

    def denoised(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x_t = x], x (B, d); alpha and sigma are numbers or (B, 1).

        Components of one variance: |x|² is the same for all of them, so that the work is two matrix products.
        """
        noisy = alpha**2 * self.var + sigma**2
        log_joint = self.w.log() + alpha / noisy * (x @ self.mu.T) - 0.5 * alpha**2 / noisy * self.mu.square().sum(1)
        return (sigma**2 * log_joint.softmax(1) @ self.mu + alpha * self.var * x) / noisy

    def posterior(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (K,), means (K, d) and the covariance (d, d), which all components share."""
        cov_y = self.var * self.A @ self.A.T + self.sigma_y**2 * torch.eye(len(self.A), dtype=torch.float64)
        gain = torch.linalg.solve(cov_y, self.var * self.A).T
        residual = self.y - self.mu @ self.A.T
        fit = -0.5 * (torch.linalg.solve(cov_y, residual.T).T * residual).sum(1)
        cov = self.var * (torch.eye(self.mu.shape[1], dtype=torch.float64) - gain @ self.A)
        return (self.w.log() + fit).softmax(0), self.mu + residual @ gain.T, 0.5 * (cov + cov.T)

    def log_evidence(self) -> float:
        """log p(y)."""
        cov_y = self.var * self.A @ self.A.T + self.sigma_y**2 * torch.eye(len(self.A), dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(self.mu @ self.A.T, cov_y)
        return float((self.w.log() + law.log_prob(self.y)).logsumexp(0))


def family(d: int, d_y: int, count: int, seed: int = 0) -> Iterator[Problem]:
    """25 components on a lattice, weights and observations at random."""
    for index in range(count):
        generator = stream_generator(seed, "posteriors", d, d_y, index)

        def uniform(n: int, generator: torch.Generator = generator) -> Tensor:
            return torch.rand(n, generator=generator, dtype=torch.float64)

        lattice = torch.cartesian_prod(*[torch.arange(-2, 3, dtype=torch.float64)] * 2)
        mu, w, var = 8 * lattice.repeat(1, d // 2) / SCALE, uniform(25), 1 / SCALE**2
        w = w / w.sum()
        U, _, Vt = torch.linalg.svd(torch.randn(d_y, d, generator=generator, dtype=torch.float64), full_matrices=False)
        s = uniform(d_y).sort(descending=True).values
        A, sigma_y = U @ torch.diag(s) @ Vt, float(uniform(1) * s.max()) / SCALE
        k = torch.multinomial(w, 1, generator=generator)[0]
        noise = torch.randn(d + d_y, generator=generator, dtype=torch.float64)
        x0 = mu[k] + var**0.5 * noise[:d]
        yield Problem(w, mu, var, A, sigma_y, A @ x0 + sigma_y * noise[d:])


def read(path: Path) -> list[Problem]:
    """The problems of a file: `w` (P, K), `mu` (P, K, d), `var` (P,), `A` (P, d_y, d), `sigma_y` (P,), `y` (P, d_y)."""
    with np.load(path, allow_pickle=False) as file:
        if missing := [name for name in FIELDS if name not in file]:
            raise SystemExit(f"{path} needs arrays {', '.join(FIELDS)}: {', '.join(missing)} missing.")
        w, mu, var, A, sigma_y, y = (torch.as_tensor(np.asarray(file[name]), dtype=torch.float64) for name in FIELDS)
    count, d, d_y = len(w), mu.shape[-1], y.shape[-1]
    shapes = ((count, w.shape[-1]), (count, w.shape[-1], d), (count,), (count, d_y, d), (count,), (count, d_y))
    for name, value, expected in zip(FIELDS, (w, mu, var, A, sigma_y, y), shapes, strict=True):
        if tuple(value.shape) != expected:
            raise SystemExit(f"{path} needs {name} of shape {expected}, got {tuple(value.shape)}.")
    return [Problem(w[i] / w[i].sum(), mu[i], float(var[i]), A[i], float(sigma_y[i]), y[i]) for i in range(count)]


class Judge:
    """Compares samples with the exact posterior of a problem.

    Args:
        problem: The problem.
        count: Number of samples that are compared.
        directions: Of the sliced distance.
        seed: Of the exact samples and of the directions.
    """

    def __init__(self, problem: Problem, count: int = 500, directions: int = 1000, seed: int = 0) -> None:
        self.weights, self.means, self.cov = problem.posterior()
        generator = torch.Generator().manual_seed(seed)
        slices = torch.randn(problem.mu.shape[1], directions, generator=generator, dtype=torch.float64)
        self.slices = slices / slices.norm(dim=0)
        root = torch.linalg.cholesky(self.cov)
        self.exact, self.other = (self._draw(root, count, generator) for _ in range(2))
        self.projected = (self.exact @ self.slices).sort(0).values

    def __call__(self, x: Tensor) -> dict[str, float]:
        if not bool(torch.isfinite(x).all()):
            return {"sliced_w2": math.inf, "coverage90": 0.0, "mmse_gap": math.inf}
        return {"sliced_w2": self.sliced_w2(x), "coverage90": self.coverage(x), "mmse_gap": self.mmse_gap(x)}

    def sliced_w2(self, x: Tensor) -> float:
        """√ of the squared Wasserstein-2 distance to exact samples averaged over directions."""
        return float(((x @ self.slices).sort(0).values - self.projected).square().mean().sqrt())

    def coverage(self, x: Tensor, mass: float = 0.9) -> float:
        """Posterior probability of the central interval between the samples' quantiles, averaged over coordinates."""
        ends = torch.quantile(x, torch.tensor([0.5 - mass / 2, 0.5 + mass / 2], dtype=x.dtype), dim=0)
        z = (ends[:, None] - self.means) / self.cov.diagonal().sqrt()
        below = torch.einsum("k,ekd->ed", self.weights, torch.special.ndtr(z))
        return float((below[1] - below[0]).mean())

    def mmse_gap(self, x: Tensor) -> float:
        """‖mean − posterior mean‖² over the posterior's total variance."""
        mean = self.weights @ self.means
        total = self.cov.trace() + self.weights @ (self.means - mean).square().sum(1)
        return float((x.mean(0) - mean).square().sum() / total)

    def _draw(self, root: Tensor, count: int, generator: torch.Generator) -> Tensor:
        k = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        z = torch.randn(count, len(root), generator=generator, dtype=torch.float64)
        return self.means[k] + z @ root.T
