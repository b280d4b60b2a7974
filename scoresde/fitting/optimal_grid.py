"""Grids that minimise a bound on −log p over all sub-sequences of a table of noise levels, by dynamic programming."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoresde.checks import check_choice
from scoresde.covariance.moments import SecondMoment, interpolate
from scoresde.sde import SDE

COSTS = ("optimal", "small", "large")


@torch.no_grad()
def optimal_grid(sde: SDE, steps: int, t_end: float, *, moments: SecondMoment, variance: str = "optimal") -> Tensor:
    """The grid with the least bound on −log p, over all choices of times from a table of noise levels.

        J(s, t) = log(1 − (1 − SNR_t/SNR_s) E‖ε̂_t‖²/d),       β_{t|s} Γ_t in the literature's symbols
        K steps: the path of least Σ J from t = 1 to t_end      (Bao et al. 2022, §4; Watson et al. 2021)

    Improves likelihoods of few steps; it does not improve the look of images. As a grid of any step solver:
    `grid=partial(optimal_grid, moments=moments)`. Where σ is 0 at t_end, the path ends at the lowest level of the table
    and one step goes on to t_end: `steps` network calls with `t_end=0, denoise=False`. Where there is no signal at
    t = 1, the noisiest level of the table stands for it.

    Args:
        sde, steps, t_end: As for every grid.
        moments: The table of `second_moment`; its levels are the candidates, N of them, at a cost of steps N².
        variance: "optimal" is J, repaired where the table is impossible (`repaired_path`); "small" and "large" take the
            whole bound with DDPM's fixed variances (`bound_costs`).
    Raises:
        ValueError: If the table has too few levels.

    References:
        Bao et al., "Analytic-DPM", 2022, arXiv:2201.06503.
        Watson et al., "Learning to Efficiently Sample from Diffusion Probabilistic Models", 2021, arXiv:2106.03802.
    """
    check_choice("optimal_grid", "variance", variance, tuple(COSTS))
    times = sde.time(moments.logsnr.cpu())
    noisy = float(sde.sigma(torch.tensor(t_end, dtype=torch.float64))) > 0
    inner = times[(times > t_end + 1e-9) & (times < 1 - 1e-9)]
    if sde.ends_silent:
        inner = inner[sde.logsnr(inner) > moments.logsnr.min().cpu() + 1e-9]
    times = torch.cat([inner.new_tensor([t_end] if noisy else []), inner, inner.new_ones(1)])
    nodes = steps + 1 if noisy else steps
    if nodes > len(times):
        raise ValueError(
            f"optimal_grid places at most {len(times) - noisy} steps on {len(times)} noise levels, got steps={steps}: "
            f"use fewer steps, or second_moment with more levels."
        )
    logsnr = _logsnr(sde, times, moments)
    if nodes == 1:
        path = torch.tensor([len(times) - 1])
    elif variance == "optimal":
        path = repaired_path(logsnr, interpolate(logsnr, moments.logsnr.cpu(), moments.value.cpu()), nodes)
    else:
        path = least_cost_path(bound_costs(sde, times, moments, variance), nodes)
    chosen = times[path].flip(0)
    return chosen if noisy else torch.cat([chosen, chosen.new_tensor([t_end])])


def variance_costs(logsnr: Tensor, second: Tensor) -> Tensor:
    """J[s, t] = log(1 − (1 − SNR_t/SNR_s) E‖ε̂_t‖²/d) for levels s < t, +inf elsewhere; (N, N).

    Up to terms that add up to the same for every path, 2 KL per entry of a step with the optimal variance. +inf also
    where the logarithm does not exist.
    """
    share = -torch.expm1(logsnr[None, :] - logsnr[:, None]) * second[None, :]
    return _upper(torch.where(share < 1, torch.log1p(-share), torch.inf))


def bound_costs(sde: SDE, times: Tensor, moments: SecondMoment, variance: str) -> Tensor:
    """KL(q(x_s | x_t, x0) ‖ p(x_s | x_t)) of DDPM's steps in nats per entry, for levels s < t; +inf elsewhere.

        ½ (log(V/β̃) − 1 + (β̃ + (α_s (1 − r))² mse_t)/V),     mse_t = (σ_t²/α_t²) E‖ε − ε̂‖²/d,   r = SNR_t/SNR_s

    V is β̃ ("small"), β ("large"), or β̃ + (α_s (1 − r))² mse_t ("optimal"), which minimises it.

    Args:
        sde: The forward process.
        times: Levels from little to much noise, (N,).
        moments: For the error of ε̂.
        variance: Which V.
    """
    logsnr = _logsnr(sde, times, moments)
    error = interpolate(logsnr, moments.logsnr.cpu(), moments.error.cpu())
    removed = -torch.expm1(logsnr[None, :] - logsnr[:, None]).clamp_max(0)
    small = sde.sigma(times).square()[:, None] * removed
    unknown = (sde.alpha(times)[:, None] * removed).square() * (torch.exp(-logsnr) * error)[None, :]
    large = sde.sigma(times).square()[None, :] * removed
    chosen = {"small": small, "large": large, "optimal": small + unknown}[variance]
    return _upper(0.5 * (torch.log(chosen / small) - 1 + (small + unknown) / chosen))


def least_cost_path(costs: Tensor, nodes: int) -> Tensor:
    """Indices 0 = i_1 < ... < i_nodes = N − 1 with the least sum of costs[i_k, i_{k+1}], by dynamic programming.

    Args:
        costs: (N, N), +inf where there is no edge.
        nodes: Number of indices, 2 to N.
    """
    N = len(costs)
    if not 2 <= nodes <= N:
        raise ValueError(f"least_cost_path needs 2 to {N} nodes for {N} levels, got {nodes}.")
    best, parents = costs[0], []
    for _ in range(nodes - 2):
        best, parent = (best[:, None] + costs).min(0)
        parents.append(parent)
    path = [N - 1]
    for parent in reversed(parents):
        path.append(int(parent[path[-1]]))
    return torch.tensor([0, *reversed(path)], device=costs.device)


def repaired_path(logsnr: Tensor, second: Tensor, nodes: int) -> Tensor:
    """The least path under `variance_costs`, also where the table is not that of any ε̂.

    E‖ε̂‖²/d cannot exceed 1. If it does at the noisy end, from the level g on (counted from 1), the last
    b = 2(N − g + 1) levels are left out of the search, which gets ⌈(1 − 0.8 b/N) K⌉ of the K nodes; the rest are evenly
    spaced over the levels left out (Analytic-DPM's code).
    """
    N = len(logsnr)
    wrong = (second > 1).nonzero()
    bad = min(2 * (N - int(wrong[0])), N - 2) if len(wrong) else 0
    if nodes == N or bad == 0:
        return least_cost_path(variance_costs(logsnr, second), nodes) if nodes < N else torch.arange(N)
    searched = min(max(math.ceil((1 - 0.8 * bad / N) * nodes), nodes - bad, 2), nodes - 1, N - bad)
    if searched < 2:  # two nodes in all: the ends
        return torch.tensor([0, N - 1])
    rest = nodes - searched
    if rest > bad:
        searched, rest = nodes - bad, bad
    head = least_cost_path(variance_costs(logsnr[: N - bad], second[: N - bad].clamp_max(1)), searched)
    tail = [round(N - bad / rest * k) - 1 for k in range(rest)]
    return torch.cat([head, torch.tensor(tail[::-1])])


def _logsnr(sde: SDE, times: Tensor, moments: SecondMoment) -> Tensor:
    logsnr = sde.logsnr(times)
    return logsnr.clamp_min(float(moments.logsnr.min())) if sde.ends_silent else logsnr


def _upper(costs: Tensor) -> Tensor:
    return torch.where(torch.ones_like(costs, dtype=torch.bool).triu(1), costs, torch.inf)
