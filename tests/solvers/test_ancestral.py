"""DDPM and DDIM against the textbook updates; stochastic steps against exact moments."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name, replay
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    Denoiser,
    DiscreteVPSDE,
    EulerMaruyama,
    GaussianDenoiser,
    Interval,
    ReverseDiffusion,
    Solver,
    StepSolver,
    SubVPSDE,
    linear_betas,
    logsnr_grid,
    subsequence_grid,
)
from scoresde.testing import convergence_order

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ABAR = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - BETAS, 0)])  # ᾱ_0 = 1, ᾱ_1, ..., ᾱ_1000
TABLE = DiscreteVPSDE(linear_betas())


class ByIndex(Denoiser):
    """A nonlinear ε-network that knows its table index n = 1 ... 1000 only."""

    def __init__(self) -> None:
        super().__init__()
        self.sde, self.asked = TABLE, []  # type: ignore[var-annotated]

    def network(self, x: Tensor, n: int) -> Tensor:
        return torch.tanh(x) * (1 - ABAR[n]).sqrt() + 0.1 * torch.cos(x.flip(1) + n / 300)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        n = round(float(t) * 1000)
        assert abs(float(t) * 1000 - n) < 1e-9
        self.asked.append(n)
        return (x - (1 - ABAR[n]).sqrt() * self.network(x, n)) / ABAR[n].sqrt()


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_thousand_ddpm_steps_are_ho_et_als_algorithm_2(variance: str) -> None:
    denoiser = ByIndex()
    x, noises = torch.randn(4, 3, dtype=torch.float64), torch.randn(1000, 4, 3, dtype=torch.float64)
    solver = DDPM(variance=variance, steps=1000, t_end=0.0, denoise=False)
    y = solver(denoiser, x, noise=replay(noises))

    for i, n in enumerate(range(1000, 0, -1)):
        beta = BETAS[n - 1]
        mean = (x - beta / (1 - ABAR[n]).sqrt() * denoiser.network(x, n)) / (1 - beta).sqrt()
        posterior = beta * (1 - ABAR[n - 1]) / (1 - ABAR[n])
        std = (posterior if variance == "small" else beta).sqrt()
        x = mean + (std * noises[i] if n > 1 else 0)
    assert denoiser.asked == list(range(1000, 0, -1))
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "even"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [20, 50])
def test_ddim_on_sub_sequences_is_song_et_als_equation_12(spacing: str, eta: float, steps: int) -> None:
    denoiser = ByIndex()
    x, noises = torch.randn(4, 3, dtype=torch.float64), torch.randn(steps, 4, 3, dtype=torch.float64)
    solver = DDIM(
        eta=eta, steps=steps, t_end=0.0, denoise=False, grid=partial(subsequence_grid, length=1000, spacing=spacing)
    )
    y = solver(denoiser, x, noise=replay(noises))

    if spacing == "uniform":
        labels = list(range(0, 1000, 1000 // steps))
    elif spacing == "quadratic":
        labels = [999 * i * i // (steps - 1) ** 2 for i in range(steps)]  # the paper's end at 0.8 · 1000
        for i in range(1, steps):
            labels[i] = max(labels[i], labels[i - 1] + 1)
    else:
        labels = [round(i * 999 / (steps - 1)) for i in range(steps)]
    tau = [label + 1 for label in labels]  # the paper's indices 1 ... 1000, increasing
    assert denoiser.asked == tau[::-1] and len(tau) == steps

    for i, (now, then) in enumerate(zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True)):
        a, b = ABAR[now], ABAR[then]
        eps = denoiser.network(x, now)
        sigma = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        predicted = (x - (1 - a).sqrt() * eps) / a.sqrt()
        x = b.sqrt() * predicted + (1 - b - sigma**2).clamp_min(0).sqrt() * eps
        if eta:
            x = x + sigma * noises[i]
    torch.testing.assert_close(y, x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(sde: SDE) -> None:
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    denoiser, x, z = mixture(sde), torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)

    ddim, _ = DDIM(eta=1.0).step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: z, None)
    ddpm, _ = DDPM().step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: z, None)
    torch.testing.assert_close(ddim, ddpm, rtol=1e-9, atol=1e-9)

    # q(x_s | x_t, x0_hat), written from Bayes' rule rather than from either paper's formula
    forward, prior_var = sde.transition(s, t), sde.sigma(s).square()
    precision = forward.scale.square() / forward.std.square() + 1 / prior_var
    mean = (forward.scale / forward.std.square() * x + sde.alpha(s) / prior_var * denoiser(x, t)) / precision
    torch.testing.assert_close(ddpm, mean + precision.rsqrt() * z, rtol=1e-9, atol=1e-9)

    # the large variance: of x_t given x_s, in the scale of x_t
    large, _ = DDPM(variance="large").step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: z, None)
    torch.testing.assert_close(large, mean + forward.std * z, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver",
    [
        EulerMaruyama(), EulerMaruyama(eta=0.6), ReverseDiffusion(), ReverseDiffusion(eta=0.6), DDPM(),
        DDPM(variance="large"), DDIM(eta=1.0), DDIM(eta=0.5),
    ],
    ids=name,
)  # fmt: skip
def test_moments_of_the_whole_chain_converge_at_weak_order_one(sde: SDE, solver: StepSolver) -> None:
    """Without Monte Carlo: the chain is affine in its noises, so its moments follow from its responses to each."""
    end = 0.05
    denoiser, prior = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    exact = torch.stack(moments(sde, end))

    def solve(steps: int) -> Tensor:
        return torch.stack(chain_moments(
            replace(solver, steps=steps, grid=logsnr_grid, t_end=end, denoise=False), denoiser, *prior
        ))  # fmt: skip

    assert convergence_order(solve, exact, steps=(200, 400)) > 0.8  # a lost factor leaves a constant error: order 0
    torch.testing.assert_close(solve(400), exact, rtol=0.1, atol=0)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("solver", [EulerMaruyama(), DDPM(), DDIM(eta=1.0), ReverseDiffusion()], ids=name)
def test_monte_carlo_agrees_with_the_exact_moments_of_the_chain(sde: SDE, solver: StepSolver) -> None:
    solver = replace(solver, steps=30, grid=logsnr_grid, t_end=0.05, denoise=True)
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    start = mean + std * torch.randn(4000, 2, dtype=torch.float64)
    y = solver(denoiser, start)

    chain_mean, chain_std = chain_moments(solver, denoiser, mean, std)
    assert abs(float((y.mean() - chain_mean) / chain_std)) * 8000**0.5 < 4
    assert abs(float(y.std() / chain_std) - 1) * 16000**0.5 < 4


def test_eta_blends_between_the_ode_and_the_sde_with_the_same_marginals() -> None:
    """(1 + η²)/2 on the score and η on the noise keep p_t: a wrong square shifts the variance at every η."""
    sde = SubVPSDE()
    denoiser, prior = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    for eta in (0.3, 0.7, 1.0):
        fine = EulerMaruyama(eta=eta, steps=2000, grid=logsnr_grid, t_end=0.05, denoise=False)
        _, std = chain_moments(fine, denoiser, *prior)
        assert float(std) == pytest.approx(float(moments(sde, 0.05)[1]), rel=5e-3)


def test_every_sample_may_have_its_own_times() -> None:
    sde, z = VPSDE(), torch.randn(4, 2, 3, dtype=torch.float64)
    t = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=torch.float64)
    s = torch.tensor([0.8, 0.1, 0.25, 0.0], dtype=torch.float64)
    denoiser, x = GaussianDenoiser(sde, MEAN, STD), torch.randn(4, 2, 3, dtype=torch.float64)
    for solver in (EulerMaruyama(), ReverseDiffusion(), DDPM(), DDPM(variance="large"), DDIM(eta=0.5)):
        together, _ = solver.step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: z, None)
        for k in range(4):
            alone, _ = solver.step(
                denoiser,
                x[k : k + 1],
                Interval.between(denoiser, t[k], s[k], x[k : k + 1]),
                lambda t, s, k=k: z[k : k + 1],
                None,
            )
            torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "make, words",
    [
        (
            lambda: DDPM(variance="best"),
            "DDPM needs variance small, large, optimal or learned, got 'best'",
        ),
        (lambda: DDIM(eta=1.5), "DDIM needs 0 <= eta <= 1, got eta=1.5"),
        (lambda: EulerMaruyama(eta=-0.1), "EulerMaruyama needs 0 <= eta <= 1"),
        (lambda: ReverseDiffusion(eta=2.0), "ReverseDiffusion needs 0 <= eta <= 1"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_solvers_are_values() -> None:
    assert DDIM(eta=0.5) == DDIM(eta=0.5) and isinstance(DDIM(), Solver) and hash(DDPM()) == hash(DDPM())
