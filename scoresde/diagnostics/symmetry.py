"""Whether a model's score is a gradient: the asymmetry of its Jacobian."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.covariance.moments import Examples
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.diagnostics.noise_bins import Curve, Progress, directions, logsnr_edges, measured, root_curve
from scoresde.sde import expand


class Asymmetry(NamedTuple):
    """Result of `jacobian_asymmetry`, with J = σ ∂ε̂/∂x; both (B,), unbiased with random probes.

    Attributes:
        antisymmetric: ‖J − Jᵀ‖_F².
        symmetric: ‖J + Jᵀ‖_F².
    """

    antisymmetric: Tensor
    symmetric: Tensor

    @property
    def ratio(self) -> Tensor:
        """‖J − Jᵀ‖_F / ‖J + Jᵀ‖_F, (B,)."""
        return (self.antisymmetric / self.symmetric).sqrt()


@differentiates
def jacobian_asymmetry(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    *,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> Asymmetry:
    """How far the Jacobian of the score is from symmetric, as that of any gradient is.

        ‖J ∓ Jᵀ‖_F² = E‖(J ∓ Jᵀ) v‖²,   v of independent signs,        J = σ ∂ε̂/∂x = −σ² ∂s/∂x

    The ratio of the two is 0 for ∇ log p of any p; a linear score turned by an angle θ in the plane has |tan θ|. Jᵀ v
    is one backward pass, J v another one through it.

    Args:
        denoiser: The model, twice differentiable.
        x: States, (B, *).
        t: Their times, () or (B,).
        probes: Number of random sign vectors; None is exact, one vector per entry.
        generator: For the probes, on the device of x.
    """
    sigma = expand(denoiser.sde.sigma(t.double()).detach(), x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = denoiser.eps(x, t, **cond)
        w = torch.zeros_like(x, requires_grad=True)
        (row,) = torch.autograd.grad(eps, x, w, create_graph=True)  # Jᵀ w, linear in w
    minus, plus = x.new_zeros(len(x)), x.new_zeros(len(x))
    for v in directions(x.detach(), probes, generator):
        (left,) = torch.autograd.grad(eps, x, v, retain_graph=True)
        (right,) = torch.autograd.grad(row, w, v, retain_graph=True)
        minus = minus + (sigma * (right - left)).square().flatten(1).sum(1)
        plus = plus + (sigma * (right + left)).square().flatten(1).sum(1)
    return Asymmetry(minus / (probes or 1), plus / (probes or 1))


def asymmetry_by_noise(
    denoiser: Denoiser,
    examples: Examples,
    *,
    bins: int | Tensor = 24,
    probes: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Curve:
    """√(E‖J − Jᵀ‖_F² / E‖J + Jᵀ‖_F²) in bins of log-SNR, at noisy examples; 0 for exact scores.

    Args:
        denoiser, probes: As for `jacobian_asymmetry`.
        examples, bins, generator, progress: As for `loss_by_noise`.
    """
    edges = logsnr_edges(denoiser.sde, bins)
    options: dict[str, Any] = {"probes": probes, "generator": generator}
    table = measured(
        denoiser.sde, examples, edges, lambda at: jacobian_asymmetry(denoiser, at.x, at.t, **options, **at.cond),
        "asymmetry_by_noise", generator=generator, progress=progress,
    )  # fmt: skip
    return root_curve(edges, *table)
