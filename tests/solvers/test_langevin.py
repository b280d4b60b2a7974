"""Langevin correctors: their formulas, their stationary law, and predictor-corrector sampling for every SDE."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, FromScore, mixture, moments, name, replay
from torch import Tensor

from scoresde import (
    DDIM,
    SDE,
    VESDE,
    VPSDE,
    AnnealedLangevin,
    DiscreteVPSDE,
    DPMSolverPP2M,
    EulerMaruyama,
    GaussianDenoiser,
    Interval,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    StepSolver,
    SubVPSDE,
    linear_betas,
    logsnr_grid,
)

T, S = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.49, dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_langevin_is_the_published_update_with_each_samples_own_norms(sde: SDE) -> None:
    denoiser = mixture(sde)
    x, z = torch.randn(6, 1, 2, dtype=torch.float64) * sde.prior_std, torch.randn(2, 6, 1, 2, dtype=torch.float64)
    solver = Langevin(snr=0.2, inner_steps=2, max_ratio=math.inf)
    y, _ = solver.step(denoiser, x, Interval.between(denoiser, T, S), replay(z), None)

    kept = (sde.alpha(T) / sde.alpha(S)).square()
    for row in range(6):
        state = x[row : row + 1]
        for k in range(2):
            score = denoiser.score(state, T)
            e = 2 * kept * (0.2 * z[k, row].norm() / score.norm()).square()
            state = state + e * score + (2 * e).sqrt() * z[k, row]
        torch.testing.assert_close(y[row : row + 1], state, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_max_ratio_bounds_the_step_by_that_of_annealed_langevin(sde: SDE) -> None:
    flat = FromScore(sde, lambda x, t: torch.full_like(x, 1e-9))  # by chance near 0: the published step has no bound
    x, z = torch.zeros(3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    bounded, _ = Langevin(snr=0.2, max_ratio=4.0).step(flat, x, Interval.between(flat, T, S), replay(z[None]), None)
    annealed, _ = AnnealedLangevin(snr=0.2).step(flat, x, Interval.between(flat, T, S), replay(z[None]), None)
    torch.testing.assert_close(bounded, 2 * annealed, rtol=1e-6, atol=1e-12)  # √4: the noise term is all there is


def test_the_transition_scale_is_the_tables_one_minus_beta() -> None:
    sde = DiscreteVPSDE(linear_betas())
    denoiser, x, z = (
        GaussianDenoiser(sde),
        torch.randn(2, 3, dtype=torch.float64),
        torch.randn(2, 3, dtype=torch.float64),
    )
    t, s = torch.tensor([0.8, 0.799], dtype=torch.float64)  # β_800
    y, _ = AnnealedLangevin(snr=0.1).step(denoiser, x, Interval.between(denoiser, t, s), replay(z[None]), None)
    e = 2 * (1 - sde.betas[799]) * (0.1 * sde.sigma(t)).square()
    torch.testing.assert_close(y, x + e * denoiser.score(x, t) + (2 * e).sqrt() * z, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_annealed_langevin_leaves_the_marginal_in_place(sde: SDE) -> None:
    """x ← x + e s(x) + √(2e) z on a Gaussian of variance v settles at v / (1 − e/(2v)): exact, no Monte Carlo."""
    denoiser, snr = GaussianDenoiser(sde, MEAN, STD), 0.1
    mean, std = moments(sde, T)
    probe = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    noise = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    out = AnnealedLangevin(snr=snr).step(denoiser, probe, Interval.between(denoiser, T, T), lambda t, s: noise, None)[
        0
    ][:, 0]
    shift, keep, kick = out[0], out[1] - out[0], out[2] - out[0]
    e, v = 2 * (snr * sde.sigma(T)).square(), std.square()

    torch.testing.assert_close(shift / (1 - keep), mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(kick.square() / (1 - keep.square()), v / (1 - e / (2 * v)), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("corrector", [Langevin(snr=0.1), AnnealedLangevin(snr=0.1)], ids=["langevin", "annealed"])
def test_correctors_pull_wrong_samples_to_the_marginal(sde: SDE, corrector: StepSolver) -> None:
    """Started at twice the spread and the wrong mean, many corrections at one level reach p_t; 64 entries per event."""
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, T)
    x, noise = mean + std + 2 * std * torch.randn(60, 64, dtype=torch.float64), lambda t, s: torch.randn_like(x)
    for _ in range(400):
        x, _ = corrector.step(denoiser, x, Interval.between(denoiser, T, T), noise, None)
    bias = 0.03  # of the discretisation: v / (1 − e/(2v)), and the scatter of the norms
    assert abs(float((x.mean() - mean) / std)) < 4 / 3840**0.5 + bias
    assert abs(float(x.std() / std) - 1) < 4 / 7680**0.5 + bias


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "solver",
    [
        PredictorCorrector(corrector=Langevin(snr=0.1)),
        PredictorCorrector(corrector=AnnealedLangevin(snr=0.1), order="predictor_first"),
        PredictorCorrector(predictor=EulerMaruyama(), corrector=Langevin(snr=0.1, inner_steps=2)),
    ],
    ids=["rd+langevin", "rd+ald", "em+langevin"],
)
def test_predictor_corrector_samples_the_marginal(sde: SDE, solver: PredictorCorrector) -> None:
    denoiser, (mean, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 1.0)
    end_mean, end_std = moments(sde, 0.05)
    x = mean + std * torch.randn(200, 64, dtype=torch.float64)
    solver = type(solver)(**{**vars(solver), "steps": 200, "grid": logsnr_grid, "t_end": 0.05, "denoise": False})
    y = solver(denoiser, x)
    bias = 0.04
    assert abs(float((y.mean() - end_mean) / end_std)) < 4 / 12_800**0.5 + bias
    assert abs(float(y.std() / end_std) - 1) < 4 / 25_600**0.5 + bias


def test_orders_of_prediction_and_correction() -> None:
    """corrector_first corrects at t; predictor_first corrects at s with a = 1."""
    sde = SubVPSDE()
    denoiser, x, z = mixture(sde), torch.randn(3, 2, dtype=torch.float64), torch.randn(2, 3, 2, dtype=torch.float64)
    ald, predictor = AnnealedLangevin(), ReverseDiffusion()

    first, _ = PredictorCorrector(corrector=ald).step(denoiser, x, Interval.between(denoiser, T, S), replay(z), None)
    expected, _ = ald.step(denoiser, x, Interval.between(denoiser, T, S), replay(z[:1]), None)
    expected, _ = predictor.step(denoiser, expected, Interval.between(denoiser, T, S), replay(z[1:]), None)
    torch.testing.assert_close(first, expected)

    second, _ = PredictorCorrector(corrector=ald, order="predictor_first").step(
        denoiser, x, Interval.between(denoiser, T, S), replay(z), None
    )
    expected, _ = predictor.step(denoiser, x, Interval.between(denoiser, T, S), replay(z[:1]), None)
    e = 2 * (0.16 * sde.sigma(S)).square()
    expected = expected + e * denoiser.score(expected, S) + (2 * e).sqrt() * z[1]
    torch.testing.assert_close(second, expected)


def test_a_multistep_predictor_keeps_its_history() -> None:
    sde = VPSDE()
    denoiser, x = mixture(sde), torch.randn(3, 2, dtype=torch.float64)
    nothing = AnnealedLangevin(snr=1e-12)
    silent: Any = lambda t, s: torch.zeros_like(x)  # noqa: E731
    options: dict[str, Any] = {"steps": 6, "grid": logsnr_grid, "t_end": 0.01, "denoise": False}
    pc = PredictorCorrector(predictor=DPMSolverPP2M(), corrector=nothing, **options)
    torch.testing.assert_close(
        pc(denoiser, x, noise=silent), DPMSolverPP2M(**options)(denoiser, x), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Langevin(snr=0.0), "Langevin needs 0 < snr <= 100, got snr=0.0"),
        (
            lambda: AnnealedLangevin(inner_steps=0),
            "AnnealedLangevin needs inner_steps >= 1, a whole number, got inner_steps=0",
        ),
        (lambda: PredictorCorrector(order="both"), "order corrector_first or predictor_first, got 'both'"),
    ],
)
def test_wrong_arguments_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_ve_and_single_precision_keep_float32() -> None:
    sde = VESDE()
    solver = PredictorCorrector(predictor=DDIM(), steps=5)
    y = solver(mixture(sde), 50 * torch.randn(4, 2))
    assert y.dtype == torch.float32 and isinstance(y, Tensor) and bool(y.isfinite().all())
