"""Log-probabilities of discrete data, by a density and a dequantisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.denoiser import Denoiser
from scoresde.likelihood import flow_density
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.dequantization import Dequantization
from scoresde.likelihood.intervals import interval
from scoresde.noise.keyed import deliver, keyed_normals
from scoresde.noise.streams import sample_seeds, stream_seed


class DiscreteLogProb(NamedTuple):
    """Result of `discrete_log_prob`.

    Attributes:
        log_prob: The lower bound of log P(k) in nats, float64, (B,).
        std_error: Its standard error from the draws of x and the probes of each, (B,); the square is unbiased. NaN for
            one draw, whose error cannot be estimated.
        probe_error: The part of std_error that is due to the probes of the density alone, (B,); NaN if the density does
            not tell.
        solver_error: Estimate of the solver's error in nats, the draws' mean, (B,); NaN if the density does not tell.
        nfe: Network evaluations of each example, all draws together, (B,).
        failures: Why a row is NaN, where the density tells (`log_prob` with on_error="nan").
        freedom: Degrees of freedom of std_error: one less than the draws.
    """

    log_prob: Tensor
    std_error: Tensor
    probe_error: Tensor
    solver_error: Tensor
    nfe: Tensor
    failures: dict[int, str]
    freedom: float = math.inf

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Ends (B,) of the interval that holds the bound's expectation in a share `level` of cases."""
        return interval(self.log_prob, self.std_error, self.freedom, level)


def discrete_log_prob(
    denoiser: Denoiser,
    k: Tensor,
    dequantization: Dequantization,
    *,
    samples: int = 1,
    importance: bool = False,
    batch: int | None = None,
    dtype: torch.dtype = torch.float32,
    log_prob: Callable[..., flow_density.LogProb | Bound] | None = None,
    seeds: int | Sequence[int] | Tensor | None = None,
    generator: torch.Generator | None = None,
    **options: Any,
) -> DiscreteLogProb:
    """A lower bound of log P(k), P(k) = ∫ p(x) dx over the cell of k, estimated with draws x_j ~ q(x | k).

        log w_j  = log p(x_j) − log q(x_j | k)
        log P(k) ≥ E [1/K Σ_j log w_j]                                          (Theis et al. 2016; Ho et al. 2019)
        log P(k) ≥ E [log Σ_j w_j − log K]                                      (importance=True; Burda et al. 2016)

    The second bound grows with K and tends to log P(k); once the draws are many, half of std_error² is about what is
    left. Its error is that of the mean of the weights by the delta method. Noise of the density's own estimate counts
    as weight: probes with a standard error of s nats per draw raise it by up to ½ s², so give them s ≪ 1 or use
    divergence="exact".

    Args:
        denoiser: The model.
        k: Levels, integers, (B, *).
        dequantization: q(x | k): `UniformDequantization`, `TruncatedNormalDequantization`, a trained
            `VariationalDequantization`, or any function of that signature.
        samples: K, draws per example.
        importance: Whether to average the weights in place of their logarithms.
        batch: Rows in one call of the density: draws are put together as far as this allows; None: one draw at a time.
        dtype: Of the states x.
        log_prob: The density: called as log_prob(denoiser, x, t_start=..., generator=..., **options) and returns a
            `LogProb`, or a `Bound`, which tells no solver error. None: that of the probability flow,
            `scoresde.log_prob`.
        seeds: One per example, or one from which they are derived: draws and probes of an example then follow from its
            seed alone, not from the batch. The density gets seeds=..., one for each row, in place of generator.
        generator: For draws and probes, on k's device; not used with seeds.
        options: Passed on, for instance divergence, probes, rtol, atol.
    Returns:
        A `DiscreteLogProb`; divide by −d log 2 for bits/dim (`bits_per_dim` with levels=None).
    Raises:
        TypeError, ValueError: For continuous data, or integers outside the levels.

    References:
        Theis et al., "A note on the evaluation of generative models", 2016, arXiv:1511.01844.
        Ho et al., "Flow++", 2019, arXiv:1902.00275.
        Burda et al., "Importance Weighted Autoencoders", 2016, arXiv:1509.00519.
        Zheng et al., "Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs", 2023,
            arXiv:2305.03935.
    """
    check_whole("discrete_log_prob", "samples >= 1", "batch >= 1 or null", samples=samples, batch=batch)
    density = flow_density.log_prob if log_prob is None else log_prob
    seeds = None if seeds is None else sample_seeds(seeds, len(k), "discrete_log_prob")
    graph = torch.is_grad_enabled() and bool(options.get("create_graph", False))
    parts: list[Tensor] = []
    failures: dict[int, str] = {}
    first = 0
    while first < samples:
        draws = min(samples - first, max(1, (batch or len(k)) // len(k)))
        again = torch.arange(len(k), device=k.device).repeat(draws)
        model = denoiser if draws == 1 else denoiser.select(again, len(k))
        if model is None:  # it may hold conditions that it cannot repeat
            model, draws = denoiser, 1
        repeated = k.repeat(draws, *[1] * (k.ndim - 1))
        u, randomness = _randomness(seeds, repeated, first, draws, generator)
        with torch.set_grad_enabled(graph):
            x, log_q, t = dequantization(repeated, denoiser.sde, generator=generator, u=u, dtype=dtype)
        result = density(model, x, t_start=t, **randomness, **options)
        error: float | Tensor = math.nan
        if isinstance(result, flow_density.LogProb):
            error = result.solver_error
            failures |= {row % len(k): reason for row, reason in result.failures.items()}
        values = (result.log_prob, result.std_error, error, result.nfe)
        columns = [torch.as_tensor(value).to(log_q).expand_as(log_q) for value in values]
        columns[0] = columns[0] - log_q
        parts.append(torch.stack(columns).unflatten(1, (draws, len(k))))
        first += draws
    log_w, probe_error, solver_error, nfe = torch.cat(parts, 1)
    return _combined(log_w, probe_error, solver_error, nfe, importance, failures)


def _randomness(
    seeds: Sequence[int] | None, k: Tensor, first: int, draws: int, generator: torch.Generator | None
) -> tuple[Tensor | None, dict[str, Any]]:
    """Uniform numbers for the draws from `first` on of every example, and what the density gets for its own."""
    if seeds is None:
        return None, {"generator": generator}
    own = [(seed, draw) for draw in range(first, first + draws) for seed in seeds]
    keys = [stream_seed(seed, "dequantization", draw) for seed, draw in own]
    normals = keyed_normals(keys, k[0].numel(), torch.Generator())
    u = torch.special.ndtr(deliver(normals, k.shape, torch.float64, k.device))
    return u, {"seeds": [stream_seed(seed, "density", draw) for seed, draw in own]}


def _combined(
    log_w: Tensor, probe_error: Tensor, solver_error: Tensor, nfe: Tensor, importance: bool, failures: dict[int, str]
) -> DiscreteLogProb:
    """From values per draw, (K, B)."""
    samples = len(log_w)
    if importance:
        value = log_w.logsumexp(0) - math.log(samples)
        share = log_w.softmax(0)
        terms = samples * share  # weights over their mean
    else:
        value, share, terms = log_w.mean(0), torch.full_like(log_w, 1 / samples), log_w
    std_error = terms.std(0) / math.sqrt(samples) if samples > 1 else torch.full_like(value, math.nan)
    probe_error, solver_error = (share * probe_error).square().sum(0).sqrt(), (share * solver_error).sum(0)
    calls, freedom = nfe.sum(0).round().long(), max(samples - 1, 1)
    return DiscreteLogProb(value, std_error, probe_error, solver_error, calls, failures, freedom)
