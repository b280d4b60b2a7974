"""Every solver from no signal: t = 1 of processes with α_1 = 0, to t_end and to noise 0, and back."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from closed_forms import chain_moments, exact_flow, mixture, name
from torch import Tensor, nn

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    DPMSolverPP2M,
    Epsilon,
    EulerMaruyama,
    GaussianDenoiser,
    Grid,
    Heun,
    Interval,
    NetworkDenoiser,
    PredictorCorrector,
    ReverseDiffusion,
    Solver,
    StepSolver,
    StraightSDE,
    Velocity,
    brownian_noise,
    flow_error,
    gaussian_noise,
    logsnr_grid,
    per_sample_noise,
    uniform_grid,
)
from scoresde.analytic import exact_flow as flow_reference
from scoresde.solvers import (
    ERSDE,
    IPNDM,
    OBELM,
    SEEDS,
    AdaptiveSDE,
    AnnealedLangevin,
    DPMSolver,
    DPMSolverFast,
    DPMSolverMultistep,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    DPMSolverPPSDE,
    ExponentialAdams,
    Langevin,
    ProbabilityFlowODE,
    ReverseSDE,
    Reversible,
    RungeKutta,
    SASolver,
    SDEDPMSolverPP,
    UniPC,
    power_scale,
)
from scoresde.solvers.exponential import PREDICTIONS
from scoresde.testing import convergence_order

MEAN, STD = 2.0, 0.5


class Quarter(SDE):
    """A user's own process: α = cos ½πt, which is 6e-17 at t = 1 in floating point, and σ = 2 sin ½πt."""

    t_min = 1e-5

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(0.5 * math.pi * t)


# deterministic, with the observed order at 60 and 120 steps on equal steps in t
ORDERS: list[tuple[StepSolver, float]] = [
    (DDIM(), 1),
    (EulerMaruyama(eta=0.0), 1),
    (Heun(), 2),
    (DPMSolver(order=2), 2),
    (DPMSolver(order=3), 2),
    (DPMSolver(order=3, prediction="data"), 2),
    (DPMSolverPP2S(), 2),
    (DPMSolverPP3S(), 2),
    (DPMSolverPP2M(), 2),
    (DPMSolverPP2M(exact=True), 2),
    (DPMSolverMultistep(prediction="eps"), 2),
    (DPMSolverMultistep(order=3, prediction="eps", exact=True), 2),
    (UniPC(order=1), 2),
    (UniPC(order=2, corrector=False), 2),
    (IPNDM(), 2),
    (ExponentialAdams(order=3, prediction="eps", corrector=False), 2),
    (ExponentialAdams(order=2, prediction="data", corrector=False), 2),
    (ExponentialAdams(order=2, prediction="data", corrector=False, clock="time"), 2),
    (ExponentialAdams(order=1, corrector=False), 1),
    (ExponentialAdams(order=2, corrector=False), 2),
    (ExponentialAdams(order=2, prediction="v", corrector=True), 3),
    (ExponentialAdams(order=2, corrector=True, sigma_data=0.4), 3),
    (SEEDS(order=3, eta=0.0, prediction="eps"), 2),
    (SASolver(tau=0.0, predictor_order=2, corrector_order=0), 2),
    (SDEDPMSolverPP(eta=0.0), 2),
    (DPMSolverPPSDE(eta=0.0), 2),
    (OBELM(), 2),
    (OBELM(clock="sigma"), 2),
    (Reversible(), 2),
    (Reversible(solver=Heun()), 2),
    (RungeKutta(method="euler"), 1),
    (RungeKutta(method="heun"), 2),
]
FLOWS = [solver for solver, _ in ORDERS]
MORE = [DPMSolverFast(), DPMSolverPP3M(exact=True), UniPC(prediction="eps"), RungeKutta(), RungeKutta(method="rk4")]
CHAINS: list[StepSolver] = [
    DDIM(eta=1.0), DDIM(eta=0.3), DDPM(), DDPM(variance="large"), EulerMaruyama(), EulerMaruyama(eta=0.5),
    ReverseDiffusion(), Heun(s_churn=5.0), SEEDS(), SEEDS(order=3, prediction="eps"), SEEDS(order=1, eta=0.5),
    SASolver(predictor_order=2, corrector_order=2), SDEDPMSolverPP(), SDEDPMSolverPP(order=1, eta=0.5),
    DPMSolverPPSDE(), ERSDE(), ERSDE(scale=power_scale, order=2), ERSDE(exact=True, extrapolate=True),
    PredictorCorrector(corrector=AnnealedLangevin()),
    PredictorCorrector(corrector=AnnealedLangevin(), order="predictor_first"),
]  # fmt: skip


def start(rows: int = 32) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("solver, order", ORDERS, ids=name)
def test_order_from_no_signal(solver: StepSolver, order: float) -> None:
    """Methods in λ have a first step, and next to it steps of λ that no refinement makes short: order 2 at most."""
    sde, x = StraightSDE(), start()
    denoiser, exact = GaussianDenoiser(sde, MEAN, STD), exact_flow(sde, x, 1.0, 0.05, MEAN, STD)

    def solve(count: int) -> Tensor:
        return replace(solver, steps=count, grid=uniform_grid, t_end=0.05, denoise=False)(denoiser, x)

    low, high = (0.15, 0.75) if order == 3 else (0.15, 0.4)  # where the leading error is small
    assert -low < convergence_order(solve, exact, steps=(60, 120)) - order < high


EVERY = [*((StraightSDE(), solver) for solver in [*FLOWS, *MORE, *CHAINS]), *((Quarter(), solver) for solver in [
    DDPM(), EulerMaruyama(), EulerMaruyama(eta=0.0), ReverseDiffusion(), Heun(), ExponentialAdams(), SEEDS(), OBELM(),
    DPMSolver(), UniPC(prediction="eps"), IPNDM(), SEEDS(order=3, prediction="eps"), ERSDE(), DDIM(), RungeKutta(),
])]  # fmt: skip


@pytest.mark.parametrize("sde, solver", EVERY, ids=name)
def test_the_law_comes_back(sde: SDE, solver: StepSolver) -> None:
    """N(2, ½²): mean and std of all chains together, without Monte Carlo, on equal steps in t down to noise 0."""
    reversible = isinstance(solver, OBELM | Reversible)  # they need noise at the end
    run = replace(solver, steps=32, grid=uniform_grid, t_end=0.02 if reversible else 0.0)
    one = torch.ones((), dtype=torch.float64)
    mean, std = chain_moments(run, GaussianDenoiser(sde, MEAN, STD), 0 * one, sde.prior_std * one)
    assert abs(mean - MEAN) < 0.06 and abs(std - STD) < 0.08


@pytest.mark.parametrize(
    "solver, order",
    [(DDPM(), 1), (EulerMaruyama(), 1), (SDEDPMSolverPP(), 1.7), (SEEDS(), 1.7), (DPMSolverPPSDE(), 1.7)],
    ids=name,
)
def test_weak_order_from_no_signal(solver: StepSolver, order: float) -> None:
    sde, one = StraightSDE(), torch.ones((), dtype=torch.float64)

    def std(steps: int) -> Tensor:
        run = replace(solver, steps=steps, grid=uniform_grid, t_end=0.05, denoise=False)
        return chain_moments(run, GaussianDenoiser(sde, MEAN, STD), 0 * one, one)[1]

    found = convergence_order(std, torch.hypot(0.95 * STD * one, 0.05 * one), steps=(40, 80))
    assert order - 0.2 < found < order + 0.7


@pytest.mark.parametrize("solver", [*FLOWS, *MORE], ids=name)
def test_the_first_step_is_the_limit_of_every_exponential_step(solver: StepSolver) -> None:
    """x_s = σ_s/σ_t x + α_s x̂0, and on the straight path Euler's step of dx/dt; whoever asks for ε̂ there fails."""
    if getattr(solver, "prediction", "") == "v" or isinstance(solver, Reversible):  # along an arc; of second order
        return
    if isinstance(solver, RungeKutta) and solver.method != "euler":
        return
    x, t, s = start(4), torch.ones((), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    for sde in (StraightSDE(), Quarter()):
        denoiser = mixture(sde)
        y, _ = solver.step(denoiser, x, Interval.between(sde, t, s), unheard, None)
        if isinstance(solver, EulerMaruyama):
            torch.testing.assert_close(y, x - 0.3 * denoiser.velocity(x, t), rtol=1e-9, atol=1e-9)
        elif getattr(solver, "prediction", "") != "flow" or isinstance(sde, StraightSDE):
            expected = sde.sigma(s) / sde.prior_std * x + sde.alpha(s) * denoiser(x, t)
            torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        DDIM(eta=1.0), DDPM(), EulerMaruyama(), EulerMaruyama(eta=0.5), ReverseDiffusion(), SEEDS(),
        SEEDS(order=3, prediction="eps"), SEEDS(order=1, eta=0.5), SASolver(), SASolver(tau=0.3), SDEDPMSolverPP(),
        SDEDPMSolverPP(eta=0.5), DPMSolverPPSDE(), ERSDE(), ERSDE(scale=power_scale),
    ],
    ids=name,
)  # fmt: skip
def test_the_first_step_of_a_reverse_sde_forgets_where_it_starts(solver: StepSolver) -> None:
    """x_s = α_s x̂0 + σ_s z, for any share of noise."""
    x, z, t, s = start(4), start(4) + 1, torch.ones((), dtype=torch.float64), torch.tensor(0.7, dtype=torch.float64)
    for sde in (StraightSDE(), Quarter()):
        y, _ = solver.step(mixture(sde), x, Interval.between(sde, t, s), lambda t, s: z.clone(), None)
        expected = sde.alpha(s) * mixture(sde)(x, t) + sde.sigma(s) * z
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "solver",
    [
        DDIM(), Heun(), DPMSolver(order=3), DPMSolverPP2S(), DPMSolverPP2M(exact=True), UniPC(prediction="eps"),
        DPMSolverMultistep(order=3, prediction="eps"), IPNDM(), ExponentialAdams(prediction="eps", clock="time"),
        *(ExponentialAdams(prediction=kind) for kind in PREDICTIONS), SASolver(tau=0.0), SDEDPMSolverPP(eta=0.0),
        OBELM(), OBELM(clock="sigma"), Reversible(), Reversible(solver=Heun()), RungeKutta(), RungeKutta(method="heun"),
    ],
    ids=name,
)  # fmt: skip
def test_encoding_into_no_signal_is_undone(solver: StepSolver) -> None:
    sde = StraightSDE()
    x = sde.perturb(mixture(sde).sample(8, generator=torch.Generator().manual_seed(0)), torch.tensor(0.1), start(8))

    def around(count: int) -> Tensor:
        run = replace(solver, steps=count, grid=uniform_grid, t_end=0.1, denoise=False)
        latent = run.encode(mixture(sde), x)
        if isinstance(run, OBELM | Reversible):
            assert latent.x.isfinite().all()  # type: ignore[attr-defined]
            return run.decode(mixture(sde), latent)
        return run(mixture(sde), latent)

    if isinstance(solver, OBELM | Reversible):
        torch.testing.assert_close(around(12), x, rtol=0, atol=1e-9)
    else:
        errors = [float((around(count) - x).abs().mean()) for count in (20, 40)]
        assert errors[1] < 0.6 * errors[0] and errors[1] < 0.08


@pytest.mark.parametrize("solver", [*FLOWS, *MORE, *CHAINS, Langevin()], ids=name)
def test_by_hand_each_sample_may_have_its_own_time(solver: StepSolver) -> None:
    """The first sample starts without signal, the others with some."""
    sde, x = StraightSDE(), start(3)
    denoiser = mixture(sde)
    times = torch.linspace(1, 0.2, 5, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.9, 0.8]).double()

    def noise(t: Tensor, s: Tensor) -> Tensor:
        return torch.sin((37 * t + 91 * s).reshape(-1, 1) + torch.arange(2))

    def run(rows: slice, intervals: list[Interval]) -> Tensor:
        y, state = x[rows], None
        for interval in intervals:
            y, state = solver.step(denoiser, y, interval, noise, state)
        return y

    together = run(slice(None), [Interval.between(sde, t, s, x) for t, s in pairwise(times)])
    for k in range(3):
        own = times[:, k]
        alone = run(slice(k, k + 1), [Interval.between(sde, t, s) for t, s in pairwise(own)])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-8, atol=1e-8)


def test_other_solvers_bring_the_law_back() -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser, x = GaussianDenoiser(StraightSDE(), MEAN, STD), torch.randn(4, 128, generator=generator)
    coarse = ReverseSDE(steps=20, adaptive=True, rtol=2e-2, atol=2e-2, seed=1)
    for solver in (ProbabilityFlowODE(), AdaptiveSDE(), ReverseSDE(steps=30), coarse):
        y = solver(denoiser, x, noise=gaussian_noise(x, generator))
        assert abs(y.mean() - MEAN) < 0.07 and abs(y.std() - STD) < 0.05, solver


def test_finer_steps_along_one_brownian_path_go_to_one_limit() -> None:
    denoiser, x = GaussianDenoiser(StraightSDE(), MEAN, STD), start(4)
    path = brownian_noise(x, range(4), depth=20)

    def adaptive(tolerance: float, rows: slice = slice(None)) -> Tensor:
        return AdaptiveSDE(rtol=tolerance, atol=tolerance)(denoiser, x[rows], noise=path.select(rows))

    def srk(tolerance: float) -> Tensor:
        return ReverseSDE(adaptive=True, rtol=tolerance, atol=tolerance, seed=3)(denoiser, x)

    def grid(steps: float) -> Tensor:
        return SDEDPMSolverPP(steps=int(steps), grid=uniform_grid, t_end=0.02)(denoiser, x, noise=path)

    for solve, coarse, fine, finest in ((adaptive, 0.3, 0.03, 3e-3), (srk, 0.2, 0.03, 3e-3), (grid, 16, 64, 128)):
        limit = solve(finest)
        first, second = ((solve(step) - limit).abs().mean() for step in (coarse, fine))
        assert second < 0.7 * first and second < 0.1, solve
    torch.testing.assert_close(adaptive(0.1, slice(2, 4)), adaptive(0.1)[2:], rtol=1e-6, atol=1e-6)
    single = DDPM(steps=9)(denoiser, x[3:], noise=per_sample_noise(x[3:], [3]))
    torch.testing.assert_close(DDPM(steps=9)(denoiser, x, noise=per_sample_noise(x, range(4)))[3:], single)


@pytest.mark.parametrize(
    "solver",
    [
        Heun(), DPMSolver(order=3), UniPC(prediction="eps"), IPNDM(), ExponentialAdams(), SEEDS(), ERSDE(), DDPM(),
        EulerMaruyama(), Langevin(), OBELM(), Reversible(), RungeKutta(method="heun"),
    ],
    ids=name,
)  # fmt: skip
def test_gradients_from_no_signal(solver: StepSolver) -> None:
    gradient = "reversible" if isinstance(solver, OBELM | Reversible) else "checkpoint"
    denoiser, x = GaussianDenoiser(StraightSDE(), MEAN, STD), start(2).requires_grad_()
    run = replace(solver, steps=4, grid=uniform_grid, t_end=0.1)
    (found,) = torch.autograd.grad(run(denoiser, x, noise=per_sample_noise(x, [1, 2]), gradient=gradient).sum(), x)
    with torch.no_grad():
        ahead, behind = (run(denoiser, x + h, noise=per_sample_noise(x, [1, 2])) for h in (1e-4, -1e-4))
    torch.testing.assert_close(found.sum(), (ahead - behind).sum() / 2e-4, rtol=1e-5, atol=1e-6)


def test_flow_error_takes_the_straight_path() -> None:
    problem, x = mixture(StraightSDE()), start()
    exact = flow_reference(problem, x, rtol=1e-5)
    few, many = (flow_error(DPMSolverPP2M(steps=n), problem, x, reference=exact).median for n in (9, 36))
    assert few < 0.5 and many < 0.3 * few


def test_reverse_diffusion_without_noise_needs_steps_that_are_short_in_log_snr() -> None:
    """a = α_t/α_s and 2 − a ≈ 1/a: next to α = 0 equal steps in t have a = ½, ⅔, ... however many there are."""
    sde, x = StraightSDE(), start()
    denoiser, exact = GaussianDenoiser(sde, MEAN, STD), exact_flow(sde, x, 1.0, 0.05, MEAN, STD)

    def error(grid: Grid) -> float:
        run = ReverseDiffusion(eta=0.0, steps=400, grid=grid, t_end=0.05, denoise=False)
        return float((run(denoiser, x) - exact).square().mean().sqrt())

    assert error(logsnr_grid) < 0.05 < 0.1 < error(uniform_grid)


class _Nothing(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return 0 * x


@pytest.mark.parametrize("solver", [DDIM(), Heun(), DPMSolver(), IPNDM(), EulerMaruyama(), AdaptiveSDE()], ids=name)
def test_a_network_that_predicts_noise_is_not_asked_for_data_where_there_is_no_signal(solver: Solver) -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match="predicts Epsilon says nothing about the data where there is no signal"):
        solver(NetworkDenoiser(_Nothing(), StraightSDE(), Epsilon()), x)
    assert solver(NetworkDenoiser(_Nothing(), StraightSDE(), Velocity()), x).isfinite().all()


def unheard(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")
