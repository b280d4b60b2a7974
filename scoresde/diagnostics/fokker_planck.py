"""Whether a model's scores at different noise levels belong to one diffusion: the score Fokker-Planck equation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.covariance.moments import Examples
from scoresde.denoiser import Denoiser
from scoresde.denoiser.inference_mode import differentiates
from scoresde.diagnostics.noise_bins import Curve, Progress, directions, logsnr_edges, logsnr_ends, measured, root_curve
from scoresde.sde import expand

STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # fourth-order central difference


class FokkerPlanckResidual(NamedTuple):
    """Result of `fokker_planck_residual`.

    Attributes:
        residual: r at every entry, (B, *); with random probes an unbiased estimate of it.
        mean_square: ‖r‖²/d, (B,); with random probes an unbiased estimate of it, which may be negative, and NaN for
            one probe, whose scatter is not known.
    """

    residual: Tensor
    mean_square: Tensor


@differentiates
def fokker_planck_residual(
    denoiser: Denoiser,
    x: Tensor,
    t: Tensor,
    *,
    probes: int | None = None,
    spacing: float = 0.05,
    generator: torch.Generator | None = None,
    **cond: Any,
) -> FokkerPlanckResidual:
    """Residual of the score Fokker-Planck equation, in the units of ε and the clock n = −½ logsnr = log(σ/α).

        r = ∂ε̂/∂n − ε̂ + σ ∇‖ε̂‖² − σ² ∇ div ε̂,               ∂/∂n along x/α = constant
        r = −(2σ³/g²) (∂_t s − ∇[½ g² (div s + ‖s‖²) − ⟨f x, s⟩ − div(f x)])       (Lai et al. 2022, eq. 8)

    with s = −ε̂/σ. Scores of data at all noise levels, whatever the data, have r = 0: q_s(x/α) solves the heat
    equation. In this clock r is the same for every SDE. ε̂ has entries of order 1, so ‖r‖²/d = 0.01 means that over
    one e-fold of σ/α the model departs from its own diffusion by a tenth of the noise. The second formula holds for
    fields that are gradients; for others it has f (Jᵀ − J) x more, which depends on the SDE (see
    `jacobian_asymmetry` for that defect). ∂/∂n is a fourth-order central difference; float32 models resolve
    r to about 1e-4, and less at the lowest noise levels.

    Args:
        denoiser: The model, twice differentiable in x.
        x: States, (B, *).
        t: Their times, () or (B,).
        probes: Number of random sign vectors for div; None is the exact divergence, d of them.
        spacing: Step of the difference in n; two steps must fit between t and 0, and between t and 1.
        generator: For the probes, on the device of x.
    Raises:
        ValueError: If t is too near to 0 or 1.

    References:
        Lai et al., "FP-Diffusion: Improving Score-based Diffusion Models by Enforcing the Underlying Score
        Fokker-Planck Equation", 2022, arXiv:2210.04296.
    """
    sigma = expand(denoiser.sde.sigma(t.double()).detach(), x)
    rate = _rate(denoiser, x.detach(), t, spacing, cond)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        eps = denoiser.eps(x, t, **cond)
        (pull,) = torch.autograd.grad(eps.square().sum(), x, retain_graph=True)
        fixed = rate - eps.detach() + sigma * pull
        total, squares = torch.zeros_like(fixed), torch.zeros_like(fixed)
        for v in directions(x.detach(), probes, generator):
            bend = -sigma.square() * _gradient_of_form(eps, x, v)
            total, squares = total + bend, squares + bend.square()
    if probes is None:
        residual = fixed + total
        return FokkerPlanckResidual(residual, residual.square().flatten(1).mean(1))
    residual = fixed + total / probes
    scatter = (squares - total.square() / probes) / (probes * (probes - 1)) if probes > 1 else squares + torch.nan
    return FokkerPlanckResidual(residual, (residual.square() - scatter).flatten(1).mean(1))


def fokker_planck_by_noise(
    denoiser: Denoiser,
    examples: Examples,
    *,
    bins: int | Tensor = 24,
    probes: int | None = None,
    spacing: float = 0.05,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Curve:
    """√(E‖r‖²/d) in bins of log-SNR, with r the `fokker_planck_residual` at noisy examples; 0 for exact scores.

    Args:
        denoiser, probes, spacing: As for `fokker_planck_residual`; random probes need to be at least two.
        examples, bins, generator, progress: As for `loss_by_noise`.
    """
    if probes is not None and probes < 2:
        raise ValueError(f"fokker_planck_by_noise needs at least 2 probes, or None for all entries, got {probes}.")
    edges = logsnr_edges(denoiser.sde, bins)
    margin = 4.01 * spacing  # two steps in n, doubled in logsnr
    options: dict[str, Any] = {"probes": probes, "spacing": spacing, "generator": generator}
    table = measured(
        denoiser.sde, examples, edges,
        lambda at: [fokker_planck_residual(denoiser, at.x, at.t, **options, **at.cond).mean_square],
        "fokker_planck_by_noise", margin=margin, generator=generator, progress=progress,
    )  # fmt: skip
    return root_curve(edges, table[0])


@torch.no_grad()
def _rate(denoiser: Denoiser, x: Tensor, t: Tensor, spacing: float, cond: dict[str, Any]) -> Tensor:
    """∂ε̂/∂n along x/α = constant."""
    sde, wide = denoiser.sde, t.double()
    logsnr, alpha = sde.logsnr(wide), sde.alpha(wide)
    low, high = logsnr_ends(sde)
    reach = 4 * spacing * (1 - 1e-6)
    if not bool(((logsnr - reach >= low) & (logsnr + reach <= high)).all()):
        raise ValueError(
            f"fokker_planck_residual needs room for a difference over logsnr ± {4 * spacing:g} between t_min and 1, "
            f"got logsnr from {float(logsnr.min()):.4g} to {float(logsnr.max()):.4g} in a process from "
            f"{low:.4g} to {high:.4g}: choose t inside, or a smaller spacing."
        )
    total = torch.zeros_like(x)
    for offset, weight in STENCIL:
        near = sde.time(logsnr - 2 * offset * spacing)
        y = expand(sde.alpha(near) / alpha, x) * x
        total = total + weight / spacing * denoiser.eps(y, near, **cond)
    return total


def _gradient_of_form(eps: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """∇(vᵀ (∂ε̂/∂x) v) at constant v, (B, *)."""
    (row,) = torch.autograd.grad(eps, x, v, create_graph=True)
    if not row.requires_grad:  # linear in x
        return torch.zeros_like(v)
    (bend,) = torch.autograd.grad((row * v).sum(), x, retain_graph=True, materialize_grads=True)
    return bend
