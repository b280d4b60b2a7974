"""Reverse steps with the optimal variance: exact marginals, the papers' discrete formulas, bounds, network calls."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name, replay
from torch import Tensor, nn

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    DiscreteVPSDE,
    Epsilon,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Interval,
    NetworkDenoiser,
    StepSolver,
    karras_grid,
    linear_betas,
    logsnr_grid,
    subsequence_grid,
)
from scoresde.covariance import AnalyticVariance, HessianDiagonal, LearnedRange, SecondMoment, VarianceHead

TABLE = DiscreteVPSDE(linear_betas())
ABAR = torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - torch.tensor(linear_betas()).double(), 0)])
OPTIMAL = [DDPM(variance="optimal"), *(DDIM(eta=eta, variance="optimal") for eta in (0.0, 0.4, 1.0))]


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("solver", OPTIMAL, ids=["DDPM", "DDIM-0", "DDIM-0.4", "DDIM-1"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_gaussian_data_are_sampled_exactly_at_any_number_of_steps(sde: SDE, solver: StepSolver, steps: int) -> None:
    """The exact x0 | x_t is Gaussian with constant variance, so every reverse step is the exact conditional law."""
    denoiser, prior = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    solver = replace(solver, steps=steps, t_end=0.05, denoise=False, grid=logsnr_grid)
    for spread in (denoiser, HessianDiagonal(denoiser)):
        torch.testing.assert_close(
            torch.stack(chain_moments(solver, spread, *prior)), torch.stack(moments(sde, 0.05)), rtol=1e-9, atol=1e-9
        )
    for other in (DDPM(), DDPM(variance="large"), DDIM()):
        coarse = replace(other, steps=steps, t_end=0.05, denoise=False, grid=logsnr_grid)
        assert abs(float(chain_moments(coarse, denoiser, *prior)[1] / moments(sde, 0.05)[1]) - 1) > 0.01


class ByIndex(Denoiser):
    """A nonlinear ε-network that knows its table index n = 1 ... 1000 only."""

    def __init__(self) -> None:
        super().__init__()
        self.sde = TABLE

    def network(self, x: Tensor, n: int) -> Tensor:
        return torch.tanh(x) * (1 - ABAR[n]).sqrt() + 0.1 * torch.cos(x.flip(1) + n / 300)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        n = round(float(t) * 1000)
        return (x - (1 - ABAR[n]).sqrt() * self.network(x, n)) / ABAR[n].sqrt()


def table_moments() -> SecondMoment:
    """An arbitrary table with impossible entries at both ends, which the clipping must repair."""
    value = torch.linspace(0.2, 1.02, 1000, dtype=torch.float64)
    times = torch.arange(1, 1001, dtype=torch.float64) / 1000
    return SecondMoment(logsnr=TABLE.logsnr(times), value=value, std_error=value * 0, error=1 - value, samples=10)


@pytest.mark.parametrize("eta", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("y", [None, 1.0, 2.0])
def test_whole_chains_are_analytic_dpms_in_its_own_symbols(eta: float | None, y: float | None) -> None:
    """Second transcription: E‖ε‖²/d by index, ᾱ and β̄, x̂0 in [−1, 1], Cov in [0, 1], last noise; None is DDPM."""
    steps, net, table = 10, ByIndex(), table_moments()
    options: dict[str, Any] = {
        "variance": "optimal", "clip_denoised": (-1, 1), "clip_last_noise": y, "steps": steps, "t_end": 0.0,
        "denoise": False, "grid": partial(subsequence_grid, spacing="even"),
    }  # fmt: skip
    solver: StepSolver = DDPM(**options) if eta is None else DDIM(eta=eta, **options)
    x, noises = torch.randn(4, 3, dtype=torch.float64), torch.randn(steps, 4, 3, dtype=torch.float64)
    ours = solver(AnalyticVariance(net, table, (-1.0, 1.0)), x, noise=replay(noises))

    tau = [round(i * 999 / (steps - 1)) + 1 for i in range(steps)]
    clipped_cov = clipped_noise = 0
    for i, (n, m) in enumerate(zip(tau[::-1], [*tau[:-1][::-1], 0], strict=True)):
        a_n, b_n, a_m, b_m = ABAR[n], 1 - ABAR[n], ABAR[m], 1 - ABAR[m]
        alpha, beta = a_n / a_m, 1 - a_n / a_m  # α_{n|m}, β_{n|m}
        eps = net.network(x, n)
        x0 = ((x - b_n.sqrt() * eps) / a_n.sqrt()).clamp(-1, 1)
        if eta is None:
            mean = a_m.sqrt() * beta / b_n * x0 + alpha.sqrt() * b_m / b_n * x
            lam2 = beta * b_m / b_n
        else:
            lam2 = eta**2 * beta * b_m / b_n
            mean = a_m.sqrt() * x0 + (b_m - lam2).sqrt() * eps
        gamma = table.value[n - 1] / b_n
        cov = b_n / a_n * (1 - b_n * gamma)
        clipped_cov += int(not 0 <= cov <= 1)
        variance = lam2 + (a_m.sqrt() - ((b_m - lam2) * a_n / b_n).sqrt()) ** 2 * cov.clamp(0, 1)
        if 0 <= cov <= 1:  # the closed forms of Theorem 1, written with Γ
            general = lam2 + ((b_n / alpha).sqrt() - (b_m - lam2).sqrt()) ** 2 * (1 - b_n * gamma)
            torch.testing.assert_close(variance, general)
            if eta in (None, 1.0):
                torch.testing.assert_close(variance, beta / alpha * (1 - beta * gamma))
        if m == tau[0] and y is not None:
            limit = (y * 2 / 255 * (torch.pi / 2) ** 0.5) ** 2
            clipped_noise += int(variance > limit)
            variance = variance.clamp(max=limit)
        x = mean + (variance.sqrt() * noises[i] if m > 0 else 0)
    assert clipped_cov >= 2 and clipped_noise == (y is not None)
    torch.testing.assert_close(ours, x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_the_variance_lies_between_theorem_2s_bounds(sde: SDE, eta: float) -> None:
    """From data at ±1 with equal weights, the largest variance in [−1, 1], and from a narrow interval."""
    t, s = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    alpha_t, alpha_s, sigma_t, sigma_s = sde.alpha(t), sde.alpha(s), sde.sigma(t), sde.sigma(s)
    lam2 = eta**2 * sigma_s**2 * (1 - (alpha_t * sigma_s / sigma_t / alpha_s) ** 2)
    gain = alpha_s - (sigma_s**2 - lam2).sqrt() * alpha_t / sigma_t
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None] * torch.hypot(alpha_t, sigma_t)
    for width in (1.0, 0.1):
        points = width * torch.tensor([[-1.0], [1.0]])
        denoiser = GaussianMixtureDenoiser(sde, torch.ones(2), points, torch.full((2, 1), 1e-12))
        step = DDIM(eta=eta, variance="optimal")
        mean, _ = step.step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: torch.zeros_like(x), None)
        noisy, _ = step.step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s: torch.ones_like(x), None)
        variance = (noisy - mean).square()
        assert bool((variance >= lam2 - 1e-12).all())
        assert bool((variance <= lam2 + gain**2 * width**2 + 1e-9).all())
        assert bool((variance.mean() <= lam2 + (gain * sigma_t / alpha_t) ** 2).all())
        if float(sde.logsnr(t)) < 0:
            assert float(variance.max()) > float(lam2 + 0.9 * gain**2 * width**2)  # and the bound is sharp


class Counting(nn.Module):
    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.calls, self.channels = 0, channels
        self.weight = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        self.calls += 1
        return (self.weight * torch.tanh(x)).repeat(1, self.channels)


def test_one_network_call_gives_mean_and_variance() -> None:
    sde, x = VPSDE(), torch.randn(8, 2)
    head = Counting()
    levels = torch.tensor([5.0, -5.0])
    table = SecondMoment(
        logsnr=levels, value=torch.tensor([0.3, 0.9]), std_error=levels * 0, error=torch.tensor([0.7, 0.1]), samples=9
    )
    for wrap in (
        lambda d: AnalyticVariance(d, table),
        lambda d: AnalyticVariance(d, table).given(label=None),
        lambda d: HessianDiagonal(d, probes=3),
        lambda d: VarianceHead(d, head),
    ):
        for solver in (DDPM(variance="optimal", steps=10), DDIM(variance="optimal", steps=10)):
            net = Counting()
            head.calls = 0
            y = solver(wrap(NetworkDenoiser(net, sde, Epsilon())), x)
            assert net.calls == 11 and head.calls in (0, 10) and y.dtype == torch.float32
    net = Counting(channels=2)
    DDPM(variance="learned", steps=10)(LearnedRange(net, sde, Epsilon()), x)
    assert net.calls == 11


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_a_run_and_single_steps_agree_for_every_source_of_variance(sde: SDE) -> None:
    """The run has its coefficients as tabulated numbers; steps by hand compute them, for times per sample too."""
    exact = mixture(sde)
    logsnr = sde.logsnr(torch.tensor([sde.t_min, 0.2, 1.0], dtype=torch.float64))
    value = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    table = SecondMoment(logsnr=logsnr, value=value, std_error=value * 0, error=1 - value, samples=10)
    x, z = torch.randn(3, 2, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    head = VarianceHead(exact, Counting().double())
    for denoiser in (exact, AnalyticVariance(exact, table), HessianDiagonal(exact), head):
        for solver in (DDPM(variance="optimal"), DDIM(eta=0.3, variance="optimal", clip_denoised=(-2.0, 2.0))):
            solver = replace(solver, steps=4, t_end=0.1, denoise=False, grid=karras_grid)
            run = list(solver.trajectory(denoiser, x, noise=replay(z)))
            y = x
            for k in range(4):
                t, s = run[k].t.expand(3), run[k + 1].t.expand(3)
                together, _ = solver.step(
                    denoiser, y, Interval.between(denoiser, t, s, y), lambda t, s, k=k: z[k], None
                )
                y, _ = solver.step(
                    denoiser, y, Interval.between(denoiser, run[k].t, run[k + 1].t, y), lambda t, s, k=k: z[k], None
                )
                torch.testing.assert_close(y, run[k + 1].x, rtol=1e-9, atol=1e-9)
                torch.testing.assert_close(together, y, rtol=1e-9, atol=1e-9)


class ByRange(nn.Module):
    """An ε-network with a constant second half."""

    def __init__(self, r: float) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        return torch.cat([0.2 * torch.tanh(x), torch.full_like(x, self.r)], dim=1)


@pytest.mark.parametrize("sde", [TABLE, VPSDE(), VESDE()], ids=name)
def test_the_learned_range_interpolates_the_logarithms_of_both_variances(sde: SDE) -> None:
    x, noises = torch.randn(4, 3, dtype=torch.float64), torch.randn(9, 4, 3, dtype=torch.float64)
    options: dict[str, Any] = {"steps": 8, "grid": logsnr_grid, "t_end": 0.01}

    def run(variance: str, r: float) -> Tensor:
        return DDPM(variance=variance, **options)(LearnedRange(ByRange(r), sde, Epsilon()), x, noise=replay(noises))

    torch.testing.assert_close(run("learned", -1.0), run("small", 0.0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(run("learned", 1.0), run("large", 0.0), rtol=1e-12, atol=1e-12)

    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    ones = torch.ones_like(x)
    stds = {}
    for label, variance, r in (("small", "small", 0.0), ("large", "large", 0.0), ("mid", "learned", -0.5)):
        solver, denoiser = DDPM(variance=variance), LearnedRange(ByRange(r), sde, Epsilon())
        steps = [
            solver.step(denoiser, x, Interval.between(denoiser, t, s, x), lambda t, s, k=k: k * ones, None)[0]
            for k in (0, 1)
        ]
        stds[label] = steps[1] - steps[0]
    torch.testing.assert_close(stds["mid"], stds["large"] ** 0.25 * stds["small"] ** 0.75, rtol=1e-9, atol=0)


class GaussianRange(nn.Module):
    """Exact ε̂ of N(0, STD²) data on TABLE, and the r whose Σ is the optimal variance of the chain's own step."""

    def forward(self, x: Tensor, c_noise: Tensor, **cond: Any) -> Tensor:
        n = int((ABAR[1:].sub(1 / (1 + (8 * c_noise[0]).exp())).abs()).argmin()) + 1
        a, b = ABAR[n], 1 - ABAR[n]
        x_t = x * (a + b).sqrt()
        m = max(n - 1, 0)
        b_m = (1 - ABAR[m]) if m else None
        if b_m is None:  # no posterior variance in the step to the data: the head is asked for half of it
            a_m = (a).sqrt()
            b_m = 1 - a_m
        else:
            a_m = ABAR[m]
        beta = 1 - a / a_m
        cov = b * STD**2 / (a * STD**2 + b)
        small = beta * b_m / b
        best = small + a_m * (beta / b) ** 2 * cov
        v = (best / small).log() / (beta / small).log()
        return torch.cat([x_t * b.sqrt() / (a * STD**2 + b), torch.full_like(x, float(2 * v - 1))], dim=1)


def test_the_learned_range_tells_the_covariance_and_so_the_variance_of_longer_steps() -> None:
    denoiser = LearnedRange(GaussianRange(), TABLE, Epsilon())
    exact, x = GaussianDenoiser(TABLE, 0.0, STD), torch.randn(2, 3, dtype=torch.float64)
    for n in (2, 3, 50, 500, 1000):
        t = torch.tensor(n / 1000, dtype=torch.float64)
        torch.testing.assert_close(denoiser(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
        expected = exact.covariance_diag(x, t).expand_as(x)
        torch.testing.assert_close(denoiser.covariance_diag(x, t), expected, rtol=1e-6, atol=0)
    solver = DDPM(variance="optimal", steps=5, t_end=0.1, denoise=False, grid=partial(subsequence_grid, spacing="even"))
    _, std = chain_moments(solver, denoiser, torch.tensor(0.0), moments(TABLE, 1.0, 0.0)[1])
    learned = replace(solver, variance="learned")
    assert float(std) == pytest.approx(float(moments(TABLE, 0.1, 0.0)[1]), rel=1e-6)
    _, respaced = chain_moments(learned, denoiser, torch.tensor(0.0), moments(TABLE, 1.0, 0.0)[1])
    assert abs(float(respaced / moments(TABLE, 0.1, 0.0)[1]) - 1) > 0.005


def sliced_w2(x: Tensor, y: Tensor) -> float:
    directions = nn.functional.normalize(torch.randn(64, x.shape[1], dtype=x.dtype), dim=1)
    projected = [(points @ directions.T).sort(0).values for points in (x, y)]
    return float((projected[0] - projected[1]).square().mean().sqrt())


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_the_optimal_variance_is_closer_to_a_mixture_than_both_fixed_ones(steps: int) -> None:
    sde = VPSDE()
    denoiser, n = mixture(sde), 6000
    data = denoiser.sample(n)
    start = sde.prior_sample((n, 2), dtype=torch.float64)
    distance = {
        variance: sliced_w2(DDPM(variance=variance, steps=steps, t_end=0.001)(denoiser, start), data)
        for variance in ("small", "large", "optimal")
    }
    assert distance["optimal"] < 0.9 * min(distance["small"], distance["large"])


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: DDPM(variance="best"), "DDPM needs variance small, large, optimal or learned, got 'best'"),
        (lambda: DDIM(variance="large"), "DDIM needs variance small or optimal, got 'large'"),
        (
            lambda: DDPM(clip_denoised=(1, -1)),
            r"needs clip_denoised \[low, high\] with -inf < low < high < inf, got \[1, -1\]",
        ),
        (lambda: DDIM(clip_last_noise=0), "DDIM needs 0 < clip_last_noise < inf, or null, got clip_last_noise=0"),
        (lambda: VarianceHead(mixture(VPSDE()), Counting(), kind="x"), "VarianceHead needs kind npr or sn"),
        (
            lambda: HessianDiagonal(mixture(VPSDE()), 0),
            "HessianDiagonal needs probes >= 1, a whole number, or null",
        ),
        (lambda: HessianDiagonal(mixture(VPSDE()), data_range=(1.0, 1.0)), "HessianDiagonal needs data_range"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_denoiser_without_what_a_variance_needs_is_told_what_to_wrap() -> None:
    plain, x = NetworkDenoiser(Counting(), VPSDE(), Epsilon()), torch.randn(2, 2)
    for denoiser in (plain, plain.given(label=None)):
        for solver in (DDPM(variance="optimal"), DDIM(variance="optimal")):
            with pytest.raises(TypeError, match=r"needs a denoiser that knows its covariance.*AnalyticVariance"):
                solver(denoiser, x)
        with pytest.raises(TypeError, match=r"variance='learned' needs a network that predicts it, a LearnedRange"):
            DDPM(variance="learned")(denoiser, x)
        with pytest.raises(TypeError, match=r"knows only x̂0: wrap it in AnalyticVariance"):
            denoiser.mean_and_covariance(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"twice the channels of its input \(2, 2\), got \(2, 2\)"):
        LearnedRange(Counting(), VPSDE(), Epsilon())(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"knows no length of its chain: pass steps=1000"):
        LearnedRange(ByRange(0.0), VPSDE(), Epsilon()).covariance_diag(x, torch.tensor(0.5))


def test_optimal_ddim_is_stochastic_and_a_solver_is_still_a_value() -> None:
    assert DDIM().deterministic and not DDIM(variance="optimal").deterministic
    assert DDPM(clip_denoised=[-1, 1]) == DDPM(clip_denoised=(-1.0, 1.0))  # type: ignore[arg-type]  # as YAML has it
    assert hash(DDPM(clip_denoised=[-1, 1])) == hash(DDPM(clip_denoised=(-1.0, 1.0)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"DDIM cannot encode"):
        DDIM(variance="optimal").encode(GaussianDenoiser(VPSDE()), torch.randn(2, 2))
