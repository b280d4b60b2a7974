"""Optimal trajectories: brute force over all sub-sequences, closed-form KL of Gaussian chains, the published repair."""

from __future__ import annotations

import time
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor

from scoresde import DDPM, SDE, VESDE, VPSDE, DiscreteVPSDE, GaussianDenoiser, cosine_betas, linear_betas
from scoresde.covariance import SecondMoment
from scoresde.fitting.optimal_grid import (
    bound_costs,
    least_cost_path,
    optimal_grid,
    repaired_path,
    variance_costs,
)

STDS = torch.tensor([0.1, 0.6, 1.5], dtype=torch.float64)  # unequal, so that one variance for all is not exact


def gaussian_table(sde: SDE, levels: int) -> SecondMoment:
    """The exact table of N(0, diag(STDS²)) data at levels equally spaced in logsnr, or the states of a table of β."""
    if isinstance(sde, DiscreteVPSDE):
        times = torch.arange(1, levels + 1, dtype=torch.float64) / levels
    else:
        ends = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))
        times = sde.time(torch.linspace(ends[0], ends[1], levels, dtype=torch.float64))
    signal = (sde.alpha(times)[:, None] * STDS).square()
    error = (signal / (signal + sde.sigma(times)[:, None].square())).mean(1)
    return SecondMoment(logsnr=sde.logsnr(times), value=1 - error, std_error=0 * error, error=error, samples=1)


def total(costs: Tensor, path: Tensor | tuple[int, ...]) -> float:
    return sum(float(costs[i, j]) for i, j in pairwise(path))


@pytest.mark.parametrize("nodes", [2, 3, 5, 8, 9])
def test_the_path_is_the_best_of_all_sub_sequences(nodes: int) -> None:
    for seed in range(5):
        costs = torch.rand(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        costs = torch.where(torch.ones(9, 9).triu(1) > 0, costs, torch.inf)
        path = least_cost_path(costs, nodes)
        every = [(0, *middle, 8) for middle in combinations(range(1, 8), nodes - 2)]
        best = min(every, key=lambda candidate: total(costs, candidate))
        assert tuple(path.tolist()) == best
    with pytest.raises(ValueError, match=r"needs 2 to 9 nodes for 9 levels, got 10"):
        least_cost_path(costs, 10)


def exact_kl(sde: SDE, t: Tensor, s: Tensor) -> Tensor:
    """KL per entry of a step with the exact mean and the best common variance, from the covariance of (x_s, x_t, x0).

    ½ log V/β̃ with V the mean of Var(x_s | x_t) over entries and β̃ = Var(x_s | x_t, x0).
    """
    a, kernel_std = sde.transition(s, t)  # x_t = a x_s + b z
    var_s = (sde.alpha(s) * STDS).square() + sde.sigma(s).square()
    given_t = var_s - (a * var_s).square() / (a**2 * var_s + kernel_std**2)
    var_s0 = sde.sigma(s).square()
    given_both = var_s0 - (a * var_s0).square() / (a**2 * var_s0 + kernel_std**2)
    return 0.5 * (given_t.mean() / given_both).log()


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_costs_are_the_closed_form_kl_of_gaussian_chains(sde: SDE) -> None:
    table = gaussian_table(sde, 1000 if isinstance(sde, DiscreteVPSDE) else 40)
    keep = torch.arange(0, len(table.logsnr), len(table.logsnr) // 20)
    times, logsnr = sde.time(table.logsnr)[keep], table.logsnr[keep]
    N = len(times)
    exact = torch.full((N, N), torch.inf, dtype=torch.float64)
    for i in range(N):
        for j in range(i + 1, N):
            exact[i, j] = exact_kl(sde, times[j], times[i])
    kl = bound_costs(sde, times, table, "optimal")
    torch.testing.assert_close(kl, exact, rtol=1e-4, atol=1e-9)

    # the literature's J differs from it by terms that telescope: all paths with equal ends differ equally
    costs = variance_costs(logsnr, table.value[keep])
    for path in ((0, 3, N - 1), (0, 1, 2, 9, N - 1), tuple(range(N))):
        ends = total(0.5 * costs, (0, N - 1)) - total(kl, (0, N - 1))
        assert total(0.5 * costs, path) - total(kl, path) == pytest.approx(ends, abs=1e-6)
    # "optimal" minimises the bound over the step variance
    for fixed in ("small", "large"):
        worse = bound_costs(sde, times, table, fixed)
        upper = torch.ones(N, N).triu(1) > 0
        assert bool((worse[upper] >= kl[upper] - 1e-12).all()) and float((worse[upper] - kl[upper]).max()) > 0.01


def test_costs_in_the_papers_symbols() -> None:
    """J(s, t) = log(1 − β_{t|s} Γ_t), Γ_t = E‖ε‖²/(d β̄_t), by index of a DDPM table."""
    betas = torch.tensor(linear_betas(50, 1e-3, 0.1), dtype=torch.float64)
    abar = torch.cumprod(1 - betas, 0)
    table = gaussian_table(DiscreteVPSDE(tuple(betas.tolist())), 50)
    costs = variance_costs(table.logsnr, table.value)
    for s, t in ((1, 2), (3, 40), (1, 50), (20, 21)):
        beta = 1 - abar[t - 1] / abar[s - 1]
        expected = torch.log(1 - beta * table.value[t - 1] / (1 - abar[t - 1]))
        torch.testing.assert_close(costs[s - 1, t - 1], expected)


@pytest.mark.parametrize("sde", [DiscreteVPSDE(linear_betas()), DiscreteVPSDE(cosine_betas()), VPSDE(), VESDE()])
def test_grids_are_better_than_even_spacing_and_improve_with_steps(sde: SDE) -> None:
    table = gaussian_table(sde, 1000 if isinstance(sde, DiscreteVPSDE) else 150)
    previous = torch.inf
    for steps in (2, 5, 10, 25):
        grid = optimal_grid(sde, steps, sde.t_min, moments=table)
        assert grid.shape == (steps + 1,) and float(grid[0]) == 1 and float(grid[-1]) == sde.t_min
        assert bool((grid.diff() < 0).all())
        bound = sum(float(exact_kl(sde, t, s)) for t, s in pairwise(grid))
        even = torch.linspace(1, sde.t_min, steps + 1, dtype=torch.float64)
        even_bound = sum(float(exact_kl(sde, t, s)) for t, s in pairwise(even))
        assert bound < previous and bound < (0.999 if steps > 2 else 1.0) * even_bound + 1e-9
        previous = bound


def test_nodes_are_the_states_of_the_table_and_the_grid_serves_any_step_solver() -> None:
    sde = DiscreteVPSDE(linear_betas())
    table = gaussian_table(sde, 1000)
    for t_end, denoise in ((0.0, False), (sde.t_min, True)):
        grid = partial(optimal_grid, moments=table)
        times = grid(sde, 10, t_end)
        assert len(times) == 11 and float(times[0]) == 1 and float(times[-1]) == t_end
        labels = times[:-1] * 1000
        torch.testing.assert_close(labels, labels.round(), rtol=0, atol=1e-8)
        if t_end == 0:
            assert round(float(labels[-1])) == 1  # the lowest state, then the data
        solver = DDPM(variance="optimal", steps=10, grid=grid, t_end=t_end, denoise=denoise)
        y = solver(GaussianDenoiser(sde, 0.0, STDS), torch.randn(4000, 3))
        torch.testing.assert_close(y.std(0).double(), STDS, rtol=0.05, atol=0)
    assert optimal_grid(sde, 1, 0.0, moments=table).tolist() == [1.0, 0.0]
    assert optimal_grid(sde, 1, 0.2, moments=table).tolist() == [1.0, 0.2]
    full = optimal_grid(sde, 1000, 0.0, moments=table)
    torch.testing.assert_close(full, torch.arange(1000, -1, -1, dtype=torch.float64) / 1000, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_baseline_searches_the_whole_bound_of_a_fixed_variance(variance: str) -> None:
    sde = VPSDE()
    table = gaussian_table(sde, 12)
    times = sde.time(table.logsnr)
    times[0], times[-1] = sde.t_min, 1.0
    costs = bound_costs(sde, times, table, variance)
    every = [(0, *middle, 11) for middle in combinations(range(1, 11), 3)]
    best = min(every, key=lambda candidate: total(costs, candidate))
    grid = optimal_grid(sde, 4, sde.t_min, moments=table, variance=variance)
    torch.testing.assert_close(grid, times[list(best)].flip(0))
    if variance == "small":
        assert not torch.equal(grid, optimal_grid(sde, 4, sde.t_min, moments=table))


def test_an_impossible_table_is_repaired_as_published() -> None:
    """By hand: N = 20, E‖ε‖²/d > 1 from g = 18 on, b = 6, and ⌈(1 − 0.8 · 0.3) K⌉ of K nodes are searched for."""
    table = gaussian_table(VPSDE(), 20)
    value = table.value.clone()
    value[17:] = 1.001
    for nodes, searched, tail in ((8, 7, [20]), (12, 10, [17, 20]), (5, 4, [20]), (19, 13, [15, 16, 17, 18, 19, 20])):
        path = (repaired_path(table.logsnr, value, nodes) + 1).tolist()
        if nodes != 19:
            assert path[searched:] == tail
            head = least_cost_path(variance_costs(table.logsnr[:14], value[:14]), searched) + 1
            assert path[:searched] == head.tolist() and path[searched - 1] == 14
        assert len(path) == nodes and path[0] == 1 and path[-1] == 20 and all(i < j for i, j in pairwise(path))
    for nodes in range(2, 21):
        for g in range(20):
            broken = torch.where(torch.arange(20) >= g, 1.01, table.value)
            path = repaired_path(table.logsnr, broken, nodes).tolist()
            assert len(path) == nodes and path[0] == 0 and path[-1] == 19 and all(i < j for i, j in pairwise(path))


def test_a_thousand_levels_take_no_time() -> None:
    sde = DiscreteVPSDE(linear_betas())
    table = gaussian_table(sde, 1000)
    start = time.perf_counter()
    optimal_grid(sde, 50, 0.0, moments=table)
    assert time.perf_counter() - start < 5


def test_wrong_arguments_are_named() -> None:
    table = gaussian_table(VPSDE(), 10)
    with pytest.raises(ValueError, match=r"places at most 9 steps on 10 noise levels, got steps=10: use fewer steps"):
        optimal_grid(VPSDE(), 10, 1e-5, moments=table)
    with pytest.raises(ValueError, match=r"variance optimal, small or large, got 'best'"):
        optimal_grid(VPSDE(), 4, 1e-5, moments=table, variance="best")
