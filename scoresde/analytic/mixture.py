"""Gaussian mixtures."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.analytic.analytic_denoiser import AnalyticDenoiser, Rowwise, blockwise
from scoresde.analytic.gaussian import principal_axes
from scoresde.sde import SDE

BLOCK_ENTRIES = 2**17  # entries of a (rows, K, d) temporary: it stays in a core's cache


class GaussianMixtureDenoiser(AnalyticDenoiser):
    """Exact denoiser of data from a mixture Σ_k w_k N(μ_k, Σ_k).

        p_t(x)        = Σ_k w_k N(x; α μ_k, α² Σ_k + σ² I)
        E[x0 | x_t]   = Σ_k r_k(x_t) m_k,   m_k = μ_k + α Σ_k (α² Σ_k + σ² I)⁻¹ (x_t − α μ_k)
        Cov[x0 | x_t] = Σ_k r_k (σ² Σ_k (α² Σ_k + σ² I)⁻¹ + (m_k − x̂0)(m_k − x̂0)ᵀ)

    with r_k the responsibilities. Full covariances are diagonalised once, so a call costs a rotation into each
    component's axes.

    Args:
        sde: The forward process.
        weights: (K,), positive; normalised here.
        means: (K, d).
        covs: (K, d, d) full, or (K, d) diagonals. Events may have any shape with d entries.
    """

    weights: Tensor
    means: Tensor
    axes: Tensor | None
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
        variances, axes = (covs, None) if covs.ndim == 2 else principal_axes("GaussianMixtureDenoiser", covs)
        if not bool((weights > 0).all()) or not bool((variances > 0).all()):
            raise ValueError("GaussianMixtureDenoiser needs positive weights and positive-definite covariances.")
        self.register_buffer("weights", weights / weights.sum())
        self.register_buffer("means", means)
        self.register_buffer("axes", axes)  # columns are eigenvectors; None when the covariances are diagonal
        self.register_buffer("variances", variances)

    @classmethod
    def random(
        cls,
        sde: SDE,
        dim: int,
        components: int,
        *,
        std: tuple[float, float] = (0.01, 0.3),
        generator: torch.Generator | None = None,
    ) -> GaussianMixtureDenoiser:
        """A test problem of many scales: means from N(0, I), unequal weights, diagonal covariances.

        The standard deviations of all entries of all components are a geometric ladder over `std`, shuffled.

        Args:
            sde: The forward process.
            dim: Entries of an event, d.
            components: Number of components, K.
            std: Smallest and largest standard deviation.
            generator: Makes the problem reproducible.
        """
        device = None if generator is None else generator.device
        count, (low, high) = components * dim, map(math.log, std)
        order = torch.randperm(count, generator=generator, device=device)
        ladder = torch.linspace(low, high, count, dtype=torch.float64, device=device).exp()[order]
        weights = 0.5 + torch.rand(components, generator=generator, dtype=torch.float64, device=device)
        means = torch.randn(components, dim, generator=generator, dtype=torch.float64, device=device)
        return cls(sde, weights, means, ladder.reshape(components, dim).square())

    @property
    def event_shape(self) -> torch.Size:
        """(d,)."""
        return self.means.shape[1:]

    def rms(self) -> float:
        energy = self.means.square().sum(1) + self.variances.sum(1)
        return math.sqrt(float(self.weights @ energy) / self.means.shape[1])

    def finest_scale(self) -> float:
        return math.sqrt(float(self.variances.min()))

    def _mean(self, y: Tensor, s: Tensor) -> Tensor:
        def mean(y: Tensor, s: Tensor) -> tuple[Tensor]:
            z, log_joint, noisy = self._components(y, s)
            return (_average(log_joint.softmax(1), self._posterior_means(z, noisy)),)

        return self._blockwise(mean, y, s)[0].reshape(y.shape)

    def _pull(self, y: Tensor, s: Tensor) -> Tensor:
        def pull(y: Tensor, s: Tensor) -> tuple[Tensor]:
            z, log_joint, noisy = self._components(y, s)
            return (_average(log_joint.softmax(1), self._from_axes(z / noisy)),)

        return self._blockwise(pull, y, s)[0].reshape(y.shape)

    def _log_density(self, y: Tensor, s: Tensor) -> Tensor:
        return self._blockwise(lambda y, s: (self._components(y, s)[1].logsumexp(1),), y, s)[0]

    def _covariance(self, y: Tensor, s: Tensor) -> Tensor:
        def covariance(y: Tensor, s: Tensor) -> tuple[Tensor]:
            responsibility, means, within = self._posterior(y, s)
            if self.axes is None:
                inside = torch.diag_embed(_average(responsibility, within))
            else:
                inside = torch.einsum("bk,kij,bkj,klj->bil", responsibility, self.axes, within, self.axes)
            offset = means - _average(responsibility, means)[:, None]
            return (inside + (responsibility[..., None] * offset).mT @ offset,)

        return self._blockwise(covariance, y, s)[0]

    def _mean_and_variance(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        def moments(y: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
            responsibility, means, within = self._posterior(y, s)
            if self.axes is not None:
                within = torch.einsum("kij,bkj->bki", self.axes.square(), within)
            mean = _average(responsibility, means)
            return mean, _average(responsibility, within + (means - mean[:, None]).square())

        mean, variance = self._blockwise(moments, y, s)
        return mean.reshape(y.shape), variance.reshape(y.shape)

    def _draw(self, n: int, shape: torch.Size, generator: torch.Generator | None) -> Tensor:
        self._check_event(shape)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64, device=self.means.device)
        z = z * self.variances[k].sqrt()
        if self.axes is not None:
            z = torch.einsum("nij,nj->ni", self.axes[k], z)
        return (self.means[k] + z).reshape(n, *shape)

    def _components(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """y − μ_k along each component's axes (B, K, d), log w_k N_k (B, K), their variances (K, d) or (B, K, d)."""
        noisy = self.variances + _level(s).square()
        z = y[:, None] - self.means
        if self.axes is not None:
            z = torch.einsum("kij,bki->bkj", self.axes, z)
        log_norm = self.weights.log() - 0.5 * (noisy.log().sum(-1) + z.shape[-1] * math.log(2 * math.pi))
        return z, log_norm - 0.5 * (z.square() / noisy).sum(-1), noisy

    def _posterior_means(self, z: Tensor, noisy: Tensor) -> Tensor:
        """m_k, (B, K, d)."""
        return self.means + self._from_axes(self.variances / noisy * z)

    def _posterior(self, y: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r_k (B, K), m_k and the variances of x0 inside each component along its axes, both (B, K, d)."""
        z, log_joint, noisy = self._components(y, s)
        within = (_level(s).square() * self.variances / noisy).expand_as(z)
        return log_joint.softmax(1), self._posterior_means(z, noisy), within

    def _from_axes(self, z: Tensor) -> Tensor:
        return z if self.axes is None else torch.einsum("kij,bkj->bki", self.axes, z)

    def _blockwise(self, function: Rowwise, y: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        return blockwise(function, y, s, rows=BLOCK_ENTRIES // self.means.numel())


def _average(responsibility: Tensor, values: Tensor) -> Tensor:
    """Σ_k r_k v_k, (B, d)."""
    return torch.einsum("bk,bkd->bd", responsibility, values)


def _level(s: Tensor) -> Tensor:
    """s with room for components; a number stays one, which may live on another device."""
    return s if s.ndim == 0 else s[..., None]
