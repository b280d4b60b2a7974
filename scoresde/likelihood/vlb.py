"""The variational bound of a discrete chain, L_0 + L_1 + ... + L_T, for any variance of its reverse steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.denoiser import Denoiser
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import chain_times, check_chain, prior_kl, reconstruction, transition_kl
from scoresde.likelihood.decoder import Decoder, gaussian_decoder
from scoresde.likelihood.intervals import pooled_freedom
from scoresde.sde.grids import Grid, uniform_grid


@torch.no_grad()
def vlb(
    denoiser: Denoiser,
    x: Tensor,
    *,
    steps: int = 1000,
    grid: Grid = uniform_grid,
    t_start: float | None = None,
    variance: str = "small",
    decoder: Decoder = gaussian_decoder,
    decoder_variance: float | str | None = None,
    samples: int = 1,
    draws: int | None = None,
    probabilities: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Bound:
    """Variational bound of a chain of T = steps states 1 = t_T > ... > t_1: the likelihood of ancestral sampling.

        −log p(x0) ≤ KL(q(x_T | x0) ‖ π) + Σ_k E KL(q(x_k | x_{k+1}, x0) ‖ N(μ, Σ)) − E log p(x0 | x_1)
        μ = α_s (1 − r) x̂0 + (α_t σ_s²)/(α_s σ_t²) x_t,   r = SNR_t/SNR_s           (Ho et al. 2020, eq. 5)

    The prior term is exact. Expectations are over x_t ~ q(x_t | x0), one independent noise per state and sample; the
    transitions are exact given x_t. On a `DiscreteVPSDE` of N betas, steps = N and the default grid are the table's
    own chain.

    Args:
        denoiser: The model.
        x: Data in the model's own scaling, (B, *), float32 or float64.
        steps: T, at least 2: network calls per sample.
        grid: Places the states from 1 to t_start; a `subsequence_grid` takes `steps` states of its long chain.
        t_start: Time of the last state, t_1; None is the SDE's t_min, or 1/T on the default grid where the process ends
            without signal.
        variance: Σ of a step: "small" β̃, "large" β, "learned" (a `LearnedRange`), "optimal" (β̃ plus what the
            denoiser's diagonal of Cov[x0 | x_t] adds) or "full" (the same of a denoiser with a method `covariance`
            that returns (B, d, d)).
        decoder: p(x0 | x_1) about x̂0: `gaussian_decoder` makes it a density, the others a probability.
        decoder_variance: Variance of p(x0 | x_1). None: as the steps have it, see `decoder_nll`; "posterior": β̃ between
            the two last states of the SDE's own table (Analytic-DPM); or a number.
        samples: Noises per state; two or more give a standard error.
        draws: Estimate the sum from this many transitions per example, stratified over k; None takes all.
        probabilities: With draws: of every transition, (T − 1,) in the order of the terms; None is uniform.
        generator: For the noises and draws, on x's device.
    Returns:
        A `Bound` with terms "prior" (B,), "transitions" (B, T − 1), column k − 1 for the step into t_k, and
        "reconstruction" (B,). With `draws`, an entry is an unbiased estimate that is 0 if it was not drawn.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
    """
    check_chain(denoiser, variance, decoder_variance)
    times = chain_times(denoiser.sde, steps, grid, t_start).to(x.device)
    _check_draws(samples, draws, probabilities, len(times) - 1)
    total = x.new_zeros(x.shape[0], len(times) - 1, dtype=torch.float64)
    first: Tensor | None = None
    sums = x.new_zeros(2, 1 + (len(times) - 1 if draws is None else draws), x.shape[0], dtype=torch.float64)

    def noisy(t: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return denoiser.sde.perturb(x, t, noise)

    recon = x.new_zeros(x.shape[0], dtype=torch.float64)
    for _ in range(samples):
        columns = []
        for k, weight in _schedule(x, len(times) - 1, draws, probabilities, generator):
            t, s = times[k], times[k + 1]
            kl = weight * transition_kl(denoiser, x, noisy(t), t, s, variance=variance).double()
            state = len(times) - 2 - k
            if isinstance(state, int):
                total[:, state] += kl
            else:
                total.scatter_add_(1, state[:, None], kl[:, None])
            columns.append(kl)
        nll = reconstruction(
            denoiser, x, noisy(times[-1]), times[-1], before=times[-2],
            variance=variance, decoder=decoder, decoder_variance=decoder_variance,
        ).double()  # fmt: skip
        recon += nll
        values = torch.stack([*columns, nll])
        first = values if first is None else first
        offset = values - first  # against the first draw, so that nothing cancels
        sums += torch.stack([offset, offset.square()])

    prior, total, recon = prior_kl(denoiser.sde, x, times[0]).double(), total / samples, recon / samples
    calls = samples * sums.shape[1]
    std_error, freedom = _std_error(sums, samples)
    return Bound(
        -(prior + total.sum(1) + recon).to(x.dtype),
        std_error.to(x.dtype),
        {"prior": prior.to(x.dtype), "transitions": total.to(x.dtype), "reconstruction": recon.to(x.dtype)},
        torch.full((x.shape[0],), calls, device=x.device),
        freedom,
        std_error.to(x.dtype),
    )


def _std_error(moments: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Of a sum of independent columns, from Σ and Σ² of the draws of each, (2, K, B), and its degrees of freedom."""
    sums, squares = moments
    if samples == 1:
        return torch.full_like(sums[0], math.nan), torch.ones_like(sums[0])
    deviations = (squares - sums.square() / samples).clamp_min(0)
    variances = deviations / (samples * (samples - 1))
    return variances.sum(0).sqrt(), pooled_freedom(variances, samples - 1)


def _schedule(
    x: Tensor, count: int, draws: int | None, probabilities: Tensor | None, generator: torch.Generator | None
) -> list[tuple[int | Tensor, float | Tensor]]:
    """Transitions to visit, one for all or (B,), counted from the noise; weights that make their sum unbiased."""
    if draws is None:
        return [(k, 1.0) for k in range(count)]
    share = torch.ones(count, dtype=torch.float64) if probabilities is None else probabilities.double().flip(0)
    share = (share / share.sum()).to(x.device)
    cell = torch.rand(draws, x.shape[0], generator=generator, dtype=torch.float64, device=x.device)
    u = (torch.arange(draws, device=x.device)[:, None] + cell) / draws
    k = torch.searchsorted(share.cumsum(0), u, right=True).clamp(max=count - 1)
    return list(zip(k, 1 / (draws * share[k]), strict=True))


def _check_draws(samples: int, draws: int | None, probabilities: Tensor | None, count: int) -> None:
    check_whole("vlb", "samples >= 1", "draws >= 1 or null", samples=samples, draws=draws)
    if probabilities is None:
        return
    if draws is None:
        raise ValueError("vlb takes probabilities of transitions only with draws: pass draws, the number to visit.")
    if probabilities.shape != (count,) or not bool((probabilities > 0).all()):
        raise ValueError(
            f"vlb needs one positive probability for each of the {count} transitions, got shape "
            f"{tuple(probabilities.shape)} with smallest value {probabilities.min().item():g}."
        )
