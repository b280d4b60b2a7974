"""Denoisers in closed form: exact scores for tests, documentation and benchmarks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.sde import SDE, expand


class GaussianDenoiser(Denoiser):
    """Exact denoiser of data x0 ~ N(mean, diag(std²)).

        E[x0 | x_t] = mean + α std² / (α² std² + σ²) (x_t − α mean)

    Args:
        sde: The forward process.
        mean, std: Floats or tensors that broadcast to the event shape; std positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, sde: SDE, mean: float | Tensor = 0.0, std: float | Tensor = 1.0) -> None:
        super().__init__()
        self.sde = sde
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))
        if not bool((self.std > 0).all()):
            raise ValueError(f"GaussianDenoiser needs std > 0, got {self.std.min().item():g}.")

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = expand(self.sde.alpha(t.double()), x), expand(self.sde.sigma(t.double()), x)
        mean, variance = self.mean.to(x.dtype), self.std.square().to(x.dtype)
        return mean + alpha * variance / (alpha.square() * variance + sigma.square()) * (x - alpha * mean)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        # σ (x − α mean) / (α² std² + σ²): the difference x − α x̂0 would cancel as σ → 0
        alpha, sigma = expand(self.sde.alpha(t.double()), x), expand(self.sde.sigma(t.double()), x)
        mean, variance = self.mean.to(x.dtype), self.std.square().to(x.dtype)
        return sigma / (alpha.square() * variance + sigma.square()) * (x - alpha * mean)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, x (B, *) -> (B,)."""
        alpha, sigma = expand(self.sde.alpha(t.double()), x), expand(self.sde.sigma(t.double()), x)
        std = torch.hypot(alpha * self.std.to(x.dtype), sigma)
        z = (x - alpha * self.mean.to(x.dtype)) / std
        terms = -0.5 * z.square() - std.log() - 0.5 * math.log(2 * math.pi)
        return terms.expand(x.shape).flatten(1).sum(1)


class GaussianMixtureDenoiser(Denoiser):
    """Exact denoiser of data from a mixture Σ_k w_k N(μ_k, Σ_k).

        p_t(x)      = Σ_k w_k N(x; α μ_k, α² Σ_k + σ² I)
        E[x0 | x_t] = Σ_k r_k(x_t) (μ_k + α Σ_k (α² Σ_k + σ² I)⁻¹ (x_t − α μ_k)),   r_k the responsibilities

    Covariances are diagonalised once, so a call costs a rotation into each component's axes.

    Args:
        sde: The forward process.
        weights: (K,), positive; normalised here.
        means: (K, d).
        covs: (K, d, d) full, or (K, d) diagonals. Events may have any shape with d entries.
    """

    weights: Tensor
    means: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, sde: SDE, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        super().__init__()
        self.sde = sde
        weights, means, covs = (torch.as_tensor(value, dtype=torch.float64) for value in (weights, means, covs))
        if means.ndim != 2 or weights.shape != means.shape[:1] or covs.shape[:2] != means.shape:
            raise ValueError(
                f"GaussianMixtureDenoiser needs weights (K,), means (K, d) and covs (K, d) or (K, d, d), "
                f"got {tuple(weights.shape)}, {tuple(means.shape)}, {tuple(covs.shape)}."
            )
        if covs.ndim == 2:
            variances, axes = covs, None
        else:
            variances, axes = torch.linalg.eigh(covs)
        if not bool((weights > 0).all()) or not bool((variances > 0).all()):
            raise ValueError("GaussianMixtureDenoiser needs positive weights and positive-definite covariances.")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("axes", axes)  # columns are eigenvectors; None when the covariances are diagonal
        self.register_buffer("variances", variances)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        flat = x.flatten(1)
        alpha = expand(self.sde.alpha(t), flat).to(x.dtype)
        z, log_joint, variances = self._components(flat, t)
        responsibility = log_joint.softmax(1)
        gain = alpha[..., None] * self.variances.to(x.dtype) / variances
        posterior = self._rotate_back(gain * z) + self.means.to(x.dtype)
        return (responsibility[..., None] * posterior).sum(1).reshape(x.shape)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        # −σ ∇ log p_t: the difference x − α x̂0 would cancel as σ → 0
        z, log_joint, variances = self._components(x.flatten(1), t)
        pull = (log_joint.softmax(1)[..., None] * self._rotate_back(z / variances)).sum(1)
        return expand(self.sde.sigma(t), x) * pull.reshape(x.shape)

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """log p_t(x) in nats, x (B, *) -> (B,)."""
        return self._components(x.flatten(1), t)[1].logsumexp(1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draws of x0, shape (n, d), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64, device=self.means.device)
        z = z * self.variances[k].sqrt()
        if self.axes is not None:
            z = torch.einsum("nij,nj->ni", self.axes[k], z)
        return self.means[k] + z

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centred coordinates in each component's axes (B, K, d), log w_k N_k (B, K), their variances (·, K, d)."""
        # cast before adding a dimension: a 0-d float64 time follows x's dtype, a 1-d one would not
        alpha, sigma = (expand(value, x).to(x.dtype)[..., None] for value in (self.sde.alpha(t), self.sde.sigma(t)))
        variances = alpha.square() * self.variances.to(x.dtype) + sigma.square()
        z = x[:, None] - alpha * self.means.to(x.dtype)
        if self.axes is not None:
            z = torch.einsum("kij,bki->bkj", self.axes.to(x.dtype), z)
        log_normal = -0.5 * (z.square() / variances + variances.log() + math.log(2 * math.pi)).sum(-1)
        return z, log_normal + self.weights.to(x.dtype).log(), variances

    def _rotate_back(self, z: Tensor) -> Tensor:
        return z if self.axes is None else torch.einsum("kij,bkj->bki", self.axes.to(z.dtype), z)
