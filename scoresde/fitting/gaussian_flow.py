"""The exact probability flow of Gaussian data: a first stretch of sampling that needs no network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.sde import SDE
from scoresde.sde.grids import Start


@dataclass(frozen=True, eq=False)
class GaussianFlow(Start):
    """Exact probability flow of N(mean, Σ_k variance_k u_k u_kᵀ + rest (I − Σ_k u_k u_kᵀ)) data.

        x_s − α_s m = Σ_k w_s(v_k)/w_t(v_k) u_k u_kᵀ (x_t − α_t m) + the same with `rest`,        w(v)² = α² v + σ²

    While σ/α is much larger than the data, every data set looks like a Gaussian with its mean and covariance, so a run
    may follow this flow down to a few times the data's standard deviation and spend its network calls below.

    Args:
        mean: (*), the event shape.
        axes: u, orthonormal rows, (r, d).
        variances: (r,).
        rest: Variance along all other directions.

    References:
        Wang and Vastola, "The Unreasonable Effectiveness of Gaussian Score Approximation for Diffusion Models", 2024,
        arXiv:2412.09726.
    """

    mean: Tensor
    axes: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def of(cls, samples: Tensor, *, mean: Tensor | None = None, rank: int = 128) -> GaussianFlow:
        """The Gaussian with the mean and the leading principal components of data, shape (n, *)."""
        if samples.shape[0] < 2:
            raise ValueError(f"GaussianFlow.of needs at least 2 samples to see a variance, got {samples.shape[0]}.")
        mean = samples.double().mean(0) if mean is None else mean.double()
        centred = (samples.double() - samples.double().mean(0)).flatten(1)
        n, d = centred.shape
        rank = min(rank, n - 1, d)
        _, values, axes = torch.linalg.svd(centred / (n - 1) ** 0.5, full_matrices=False)
        variances = values.square()[:rank]
        left = centred.square().sum() / (n - 1) - variances.sum()
        rest = max(float(left) / (d - rank), 0.0) if d > rank else 0.0
        return cls(mean, axes[:rank], variances, rest)

    @property
    def std(self) -> float:
        """Root mean square standard deviation over all directions."""
        d = self.mean.numel()
        return float((self.variances.sum() + (d - len(self.variances)) * self.rest) / d) ** 0.5

    def __call__(self, sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Take x (B, *) from t to s, both () in float64."""
        if x.shape[1:] != self.mean.shape:
            raise ValueError(
                f"GaussianFlow was made for events of shape {tuple(self.mean.shape)}, got x of shape {tuple(x.shape)}: "
                f"make one from samples of this shape."
            )
        alpha_t, alpha_s, sigma_t, sigma_s = sde.alpha(t), sde.alpha(s), sde.sigma(t), sde.sigma(s)
        variances = torch.cat([self.variances, self.variances.new_tensor([self.rest])]).to(alpha_t)
        widths = (alpha_s.square() * variances + sigma_s.square()) / (alpha_t.square() * variances + sigma_t.square())
        scales = widths.sqrt()
        common = scales[-1]
        mean, axes, extra = self.mean.to(x), self.axes.to(x), (scales[:-1] - common).to(x)
        z = (x - alpha_t * mean).flatten(1)
        moved = common * z + (z @ axes.T * extra) @ axes
        return alpha_s * mean + moved.reshape(x.shape)
