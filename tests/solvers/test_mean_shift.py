"""Discrete classifier guidance against its formula, the score form and exact posteriors of a Gaussian."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import replay
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    ClassifierGuided,
    EulerMaruyama,
    GaussianDenoiser,
    Interval,
    ReverseDiffusion,
    StraightSDE,
    logsnr_grid,
)
from scoresde.solvers import GaussianStepSolver, MeanShift

MEAN, STD, NOISE, Y = 0.4, 0.8, 0.5, 1.3  # x0 ~ N(MEAN, STD²), y = x0 + N(0, NOISE²) = Y
VAR = 1 / (1 / STD**2 + 1 / NOISE**2)
POSTERIOR = VAR * (MEAN / STD**2 + Y / NOISE**2), VAR**0.5


class Exact:
    """log p(y | x_t) of that observation, and its gradient: y | x_t ~ N(E[x0 | x_t], Var[x0 | x_t] + NOISE²)."""

    def __init__(self, sde: SDE) -> None:
        self.sde, self.asked = sde, []  # type: ignore[var-annotated]

    def parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        total = alpha**2 * STD**2 + sigma**2
        mean = MEAN + alpha * STD**2 / total * (x - alpha * MEAN)
        return mean, STD**2 * sigma**2 / total + NOISE**2, alpha * STD**2 / total

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.asked.append(t)
        mean, variance, _ = self.parts(x, t)
        return (-0.5 * (Y - mean) ** 2 / variance).sum(1)

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        mean, variance, slope = self.parts(x, t)
        return slope * (Y - mean) / variance


def interval(sde: SDE, t: float = 0.5, s: float = 0.4) -> Interval:
    return Interval.between(sde, torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64))


@pytest.mark.parametrize(
    "solver",
    [DDPM(), DDPM(variance="large"), DDIM(eta=0.7), EulerMaruyama(), ReverseDiffusion(eta=0.5)],
    ids=lambda solver: type(solver).__name__,
)
@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0)], ids=lambda sde: type(sde).__name__)
def test_the_mean_moves_by_the_variance_times_the_gradient(solver: GaussianStepSolver, sde: SDE) -> None:
    """With the variance read off the step itself, as what one unit of noise does."""
    prior, potential, step = GaussianDenoiser(sde, MEAN, STD), Exact(sde), interval(sde)
    x = torch.randn(4, 2, dtype=torch.float64)

    def moved(solver: Any, z: float) -> Tensor:
        return solver.step(prior, x, step, lambda t, s: torch.full_like(x, z), None)[0]  # type: ignore[no-any-return]

    mean, std = moved(solver, 0.0), moved(solver, 1.0) - moved(solver, 0.0)
    for at, (where, level) in {"mean": (mean, step.s), "state": (x, step.t)}.items():
        shifted = MeanShift(solver=solver, log_prob=potential, scale=1.7, at=at)
        expected = mean + 1.7 * std**2 * potential.gradient(where, level.time)
        torch.testing.assert_close(moved(shifted, 0.0), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(moved(shifted, 1.0), expected + std, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_score_add_moves_the_mean_by_beta_over_root_alpha_whatever_the_variance(variance: str) -> None:
    sde, x = VPSDE(), torch.randn(4, 2, dtype=torch.float64)
    prior, potential, step = GaussianDenoiser(sde, MEAN, STD), Exact(sde), interval(sde)
    solver = DDPM(variance=variance)
    mean = solver.mean_and_std(prior, x, step)[0]
    beta, root_alpha = step.t.sigma**2 * step.removed, step.t.alpha / step.s.alpha

    guided = solver.mean_and_std(ClassifierGuided(prior, potential, 1.7), x, step)[0]

    torch.testing.assert_close(guided - mean, 1.7 * beta / root_alpha * potential.gradient(x, step.t.time))
    assert step.s.sigma**2 * step.removed == pytest.approx(beta * (step.s.sigma / step.t.sigma) ** 2)  # β̃ < β


def test_ddim_of_the_score_form_is_algorithm_2() -> None:
    """x_s = √ᾱ_s (x − √(1−ᾱ_t) ε̂)/√ᾱ_t + √(1−ᾱ_s) ε̂ with ε̂ = ε(x) − √(1−ᾱ_t) s ∇ log p(y | x_t = x)."""
    sde, x = VPSDE(), torch.randn(4, 2, dtype=torch.float64)
    prior, potential, step = GaussianDenoiser(sde, MEAN, STD), Exact(sde), interval(sde)
    t, s = step.t, step.s
    eps = prior.eps(x, t.time) - (1 - t.alpha**2) ** 0.5 * 1.7 * potential.gradient(x, t.time)
    expected = s.alpha * (x - (1 - t.alpha**2) ** 0.5 * eps) / t.alpha + (1 - s.alpha**2) ** 0.5 * eps

    ours, _ = DDIM().step(ClassifierGuided(prior, potential, 1.7), x, step, replay(x[:0]), None)

    torch.testing.assert_close(ours, expected)


def errors(form: str, variance: str, steps: int) -> tuple[float, float]:
    """Of the mean in posterior standard deviations, and of the standard deviation relatively: exact, no samples."""
    sde = VPSDE()
    prior, potential = GaussianDenoiser(sde, MEAN, STD), Exact(sde)
    ddpm = DDPM(variance=variance, steps=steps, grid=logsnr_grid)
    shift = MeanShift(solver=ddpm, log_prob=potential, at="mean" if form == "score" else form)
    solver, denoiser = (ddpm, ClassifierGuided(prior, potential)) if form == "score" else (shift, prior)
    mean, var = 0.0, 1.0
    x, z = torch.tensor([[0.0, 1, 0], [0, 0, 1]], dtype=torch.float64)[:, :, None]
    for step in solver.plan(denoiser).intervals:  # x_s = offset + slope x + std z
        offset, at_one, noisy = solver.step(denoiser, x, step, lambda t, s: z, None)[0].flatten().tolist()
        mean, var = offset + (at_one - offset) * mean, (at_one - offset) ** 2 * var + (noisy - offset) ** 2
    return (mean - POSTERIOR[0]) / POSTERIOR[1], var**0.5 / POSTERIOR[1] - 1


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("form", ["score", "mean", "state"])
def test_both_forms_reach_the_posterior_to_first_order_in_the_steps(form: str, variance: str) -> None:
    """The score form by its standard deviation, as its mean is exact in any number of steps."""
    which = 1 if form == "score" else 0
    coarse, fine = errors(form, variance, 40), errors(form, variance, 80)
    assert math.log2(coarse[which] / fine[which]) == pytest.approx(1, abs=0.15)
    assert abs(fine[0]) < 0.2 and abs(fine[1]) < 0.08
    assert form != "score" or abs(coarse[0]) < 1e-4  # the start is N(0, 1), not α_1 x0 + σ_1 ε


def test_the_shift_by_the_small_variance_is_too_small_in_few_steps() -> None:
    """At 10 steps Σ = β̃ stops 0.65 posterior standard deviations short, towards the prior, and Σ = β goes past it."""
    assert errors("mean", "small", 10)[0] < -0.5
    assert errors("mean", "large", 10)[0] > 0.5


def test_it_asks_one_forward_and_one_backward_pass_per_step_and_none_of_the_last() -> None:
    sde = VPSDE()
    potential = Exact(sde)
    solver = MeanShift(solver=DDPM(steps=5), log_prob=potential)

    out = solver(GaussianDenoiser(sde, MEAN, STD), torch.randn(3, 2))

    assert solver.steps == 5 and len(potential.asked) == 5 and not out.requires_grad
    times = solver.plan(GaussianDenoiser(sde)).times
    torch.testing.assert_close(torch.stack(potential.asked), torch.stack(times[1:]))  # levels of arrival
    with torch.inference_mode():
        assert solver(GaussianDenoiser(sde, MEAN, STD), torch.randn(3, 2)).isfinite().all()


def test_from_no_signal_it_is_finite() -> None:
    sde = StraightSDE()
    for at in ("mean", "state"):
        for ddpm in (DDPM(steps=5), EulerMaruyama(steps=5)):
            solver = MeanShift(solver=ddpm, log_prob=lambda x, t: -(x - 1).square().sum(1), at=at)
            assert solver(GaussianDenoiser(sde, MEAN, STD), torch.randn(3, 2)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": DDIM()}, "for others use ClassifierGuided"),
        ({"solver": None}, "for others use ClassifierGuided"),
        ({"log_prob": 3}, "log_prob to be a function"),
        ({"scale": math.nan}, "scale"),
        ({"at": "start"}, "at mean or state, got 'start'"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MeanShift(**({"solver": DDPM(), "log_prob": Exact(VPSDE())} | options))
    with pytest.raises(ValueError, match=r"MeanShift needs one log-probability per sample: expected shape \(3,\)"):
        MeanShift(solver=DDPM(steps=2), log_prob=lambda x, t: x)(GaussianDenoiser(VPSDE()), torch.randn(3, 2))
