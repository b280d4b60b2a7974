"""The denoising loss by noise level, and what the best denoiser would have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoresde.analytic import AnalyticDenoiser
from scoresde.covariance.moments import Examples
from scoresde.denoiser import Denoiser
from scoresde.diagnostics.noise_bins import Curve, Noisy, Progress, logsnr_edges, mean_curve, measured
from scoresde.sde import expand


@dataclass(frozen=True, kw_only=True)
class LossByNoise:
    """Result of `loss_by_noise`.

    Args:
        loss: E‖ε − ε̂‖²/d of each bin.
        nats: What each bin contributes to the bound on −log p, ½ Δlogsnr d loss, in nats per example.
        optimum: The least loss that any denoiser can have on the reference's data; None without a reference.
        excess: loss − optimum, measured as E‖ε̂ − E[ε | x_t]‖²/d; None without a reference.
        total: The sum of `nats`: the diffusion term of the bound, nats per example.
        total_std_error: Its standard error over examples; the bins share them, so theirs do not add in quadrature.
        entries: d, entries of an event.
    """

    loss: Curve
    nats: Curve
    optimum: Curve | None
    excess: Curve | None
    total: float
    total_std_error: float
    entries: int


@torch.no_grad()
def loss_by_noise(
    denoiser: Denoiser,
    examples: Examples,
    *,
    bins: int | Tensor = 24,
    reference: AnalyticDenoiser | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> LossByNoise:
    """E‖ε − ε̂(x_t, t)‖²/d in bins of log-SNR, next to the optimum where the distribution of the data is known.

        −log p(x0) ≤ ... + ½ ∫ E‖ε − ε̂‖² dlogsnr                     (Kingma et al. 2021, eq. 15)
        E‖ε − ε̂‖² = E tr Cov[ε | x_t] + E‖ε̂ − E[ε | x_t]‖²,         Cov[ε | x_t] = (α²/σ²) Cov[x0 | x_t]

    The first term is the optimum, the second the excess; ½ ∫ of the second is a path measure's KL divergence, nats
    that training could still gain. Both are computed at the same x_t as the loss, so the excess has a small error.

    Args:
        denoiser: The model.
        examples: Batches of x0 (B, *) in the model's scaling, or of pairs (x0, conditions), on the model's device.
        bins: Number of equal bins of log-SNR between t = 1 and t_min, or their edges (bins + 1,), increasing.
        reference: What the examples come from.
        generator: For levels and noise, on the device of the examples.
        progress: Called with the number of noisy examples done.
    Raises:
        ValueError: If there are fewer than two examples.

    References:
        Kingma et al., "Variational Diffusion Models", 2021, arXiv:2107.00630.
    """
    edges = logsnr_edges(denoiser.sde, bins)
    exact, entries = None if reference is None else reference.on(denoiser.sde), 0

    def columns(at: Noisy) -> list[Tensor]:
        nonlocal entries
        entries = at.x[0].numel()
        eps = denoiser.eps(at.x, at.t, **at.cond)
        if exact is None:
            return [_mean_square(at.noise - eps)]
        optimum, excess = optimal_loss(exact, at.x, at.t), _mean_square(eps - exact.eps(at.x, at.t))
        return [_mean_square(at.noise - eps), optimum, excess]

    table = measured(denoiser.sde, examples, edges, columns, "loss_by_noise", generator=generator, progress=progress)
    loss = mean_curve(edges, table[0])
    half = 0.5 * edges.diff() * entries
    per_example = (half[:, None] * table[0]).sum(0)
    return LossByNoise(
        loss=loss,
        nats=Curve(edges=edges, value=half * loss.value, std_error=half * loss.std_error),
        optimum=None if exact is None else mean_curve(edges, table[1]),
        excess=None if exact is None else mean_curve(edges, table[2]),
        total=float(per_example.mean()),
        total_std_error=float(per_example.std()) / len(per_example) ** 0.5,
        entries=entries,
    )


@torch.no_grad()
def optimum_by_noise(
    exact: AnalyticDenoiser,
    examples: Examples,
    *,
    bins: int | Tensor = 24,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Curve:
    """The least loss on a known distribution in bins of log-SNR, from examples of it; arguments as before."""
    edges = logsnr_edges(exact.sde, bins)
    table = measured(
        exact.sde, examples, edges, lambda at: [optimal_loss(exact, at.x, at.t)],
        "optimum_by_noise", generator=generator, progress=progress,
    )  # fmt: skip
    return mean_curve(edges, table[0])


def optimal_loss(exact: AnalyticDenoiser, x: Tensor, t: Tensor) -> Tensor:
    """E[‖ε − E[ε | x_t]‖²/d | x_t = x] = (α²/σ²) tr Cov[x0 | x_t = x] / d: x (B, *), t () or (B,) -> (B,)."""
    snr = expand(exact.sde.logsnr(t.double()).exp(), x)
    return (snr * exact.covariance_diag(x, t)).flatten(1).mean(1)


def gaussian_loss(variances: Tensor, edges: Tensor) -> Tensor:
    """The loss of the best linear denoiser, averaged over each bin: the optimum itself for Gaussian data.

        E‖ε − ε̂‖²/d = mean_i SNR v_i / (1 + SNR v_i)
        ∫ of it over logsnr = mean_i log(1 + SNR v_i)

    Args:
        variances: v_i, eigenvalues of the covariance of the data, (d,), none negative.
        edges: Of the bins in log-SNR, (bins + 1,).
    Returns:
        (bins,), float64.
    """
    areas = torch.nn.functional.softplus(edges.double()[:, None] + variances.double().log()[None, :]).mean(1)
    return areas.diff() / edges.double().diff()


def _mean_square(error: Tensor) -> Tensor:
    return error.square().flatten(1).mean(1)
