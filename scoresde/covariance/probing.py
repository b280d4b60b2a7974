"""The covariance that a score network already contains: the diagonal of its Jacobian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.covariance.covariance_denoiser import CovarianceDenoiser, DataRange
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.noise.keyed import hashed_signs
from scoresde.noise.streams import stream_seed
from scoresde.sde import expand
from scoresde.sde.clock import last_signal, nearest_signal
from scoresde.sde.levels import Level


class HessianDiagonal(CovarianceDenoiser):
    """A denoiser with the covariance that the Hessian of log p_t gives, estimated anew in every call.

        Cov[x0 | x_t] = (σ²/α) ∂x̂0/∂x = (σ²/α²)(I + σ² ∇² log p_t)       (Meng et al. 2021)
        diag(J) ≈ mean over v of v ⊙ (Jᵀ v),   v of independent signs      (Hutchinson; Bekas et al. 2007)

    Needs no training, and one backward pass per probe. Errors of the estimate are Σ_{j≠i} J_ij² per probe, and clipping
    them at 0 adds a bias where they are large; `isotropic` averages the diagonal over the entries of an event, which
    leaves little of either. The signs are a fixed function of (seed, t, place), the same for all samples: a sample
    does not depend on its batch mates. Where a process ends without signal, 1/α is infinite, and the level of
    α/σ = 10⁻³ is asked in place of those with less, at the same x/σ.

    Args:
        denoiser: Gives x̂0; differentiable in x.
        probes: Sign vectors per call; None is the exact diagonal, one backward pass per entry of an event.
        data_range: (low, high) of the data, (−1, 1) for images; None leaves out the upper bound.
        isotropic: One variance per sample instead of one per entry.
        seed: Of the sign vectors.

    References:
        Meng et al., "Estimating High Order Gradients of the Data Distribution by Denoising", 2021, arXiv:2111.04726.
        Ou et al., "Improving Probabilistic Diffusion Models With Optimal Diagonal Covariance Matching", 2024,
        arXiv:2406.10808.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        probes: int | None = 1,
        data_range: DataRange | None = None,
        *,
        isotropic: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(denoiser, data_range)
        check_whole(self, "probes >= 1 or null", "seed >= 0", probes=probes, seed=seed)
        self.probes, self.isotropic, self.seed, self.last = probes, isotropic, seed, last_signal(self.sde)

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        if self.last < 1:
            x, level = nearest_signal(self.sde, x, Level.at(self.sde, t, x), self.last)
            t = level.time
        x0_hat, diagonal = jacobian_diagonal(self.denoiser, x, t, probes=self.probes, seed=self.seed, **cond)
        if self.isotropic:
            diagonal = diagonal.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))
        wide = t.double()
        return x0_hat, self.bounded(expand(self.sde.sigma(wide).square() / self.sde.alpha(wide), x) * diagonal)


@differentiates
def jacobian_diagonal(
    denoiser: Denoiser, x: Tensor, t: Tensor, *, probes: int | None = 1, seed: int = 0, **cond: Any
) -> tuple[Tensor, Tensor]:
    """x̂0 and the diagonal of ∂x̂0/∂x, both (B, *): unbiased from sign vectors, or exact with probes=None.

    One call of the denoiser, and one backward pass per probe or entry. Keeps the graph of neither.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0_hat = denoiser(x, t, **cond)
    entries = x[0].numel()
    count = entries if probes is None else probes
    diagonal = torch.zeros_like(x, requires_grad=False)
    for index in range(count):
        if probes is None:
            v = torch.zeros_like(x.detach())
            v.flatten(1)[:, index] = 1
        else:
            v = hashed_signs(t, x.shape[1:], stream_seed(seed, "probe", index)).to(x.device, x.dtype).expand_as(x)
        (column,) = torch.autograd.grad(x0_hat, x, v, retain_graph=index + 1 < count)
        diagonal += v * column
    return x0_hat.detach(), diagonal if probes is None else diagonal / probes
