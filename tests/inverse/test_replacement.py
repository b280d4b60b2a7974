"""Replacement, ILVR and RePaint: exact identities, and the exact law of a run on Gaussian data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import DDIM, DDPM, SDE, VESDE, VPSDE, Denoiser, GaussianDenoiser, Langevin, PredictorCorrector, Solver
from scoresde.inverse import (
    ILVR,
    Blur,
    DownSample,
    Function,
    Grayscale,
    Mask,
    Matrix,
    Measurement,
    PoissonNoise,
    RePaint,
    Replacement,
)
from scoresde.noise import per_sample_noise
from scoresde.sde import StraightSDE
from scoresde.solvers import (
    ERSDE,
    OBELM,
    SEEDS,
    AnnealedLangevin,
    DPMSolverPP2M,
    EulerMaruyama,
    ExponentialAdams,
    Heun,
    ProbabilityFlowODE,
    Reversible,
    SASolver,
    StepSolver,
    UniPC,
)

MASK = torch.tensor([1, 1, 0, 0])
Y = torch.tensor([[1.5, -0.4, 0, 0]]).double()
MEAN = torch.tensor([0.5, -0.3, 0.2, 1.0]).double()
SDES = [VPSDE(), VESDE(sigma_max=20.0), StraightSDE()]
ANY_STEP = [
    DDPM(steps=7), DDIM(steps=7), Heun(steps=7), DPMSolverPP2M(steps=7), UniPC(steps=7), ExponentialAdams(steps=7),
    SASolver(steps=7), ERSDE(steps=7), SEEDS(steps=7), EulerMaruyama(steps=7),
    PredictorCorrector(steps=7, corrector=AnnealedLangevin()),
    PredictorCorrector(steps=7, corrector=AnnealedLangevin(), order="predictor_first"),
]  # fmt: skip


def keyed(x: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Noise that is a function of the times alone, whoever else has asked for some."""

    def draw(t: Tensor, s: Tensor) -> Tensor:
        seed = int(1e9 * float(t)) + 7 * int(1e9 * float(s))
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)

    return draw


def start(sde: SDE, rows: int = 3, seed: int = 0) -> Tensor:
    return sde.prior_sample((rows, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize("solver", ANY_STEP, ids=lambda solver: type(solver).__name__)
def test_independent_unknown_parts_go_the_solvers_own_way_and_known_ones_end_at_y(sde: SDE, solver: StepSolver) -> None:
    denoiser, x = GaussianDenoiser(sde, MEAN, torch.tensor([1.0, 0.5, 0.7, 1.2])), start(sde)
    conditioned = Replacement(measurement=Measurement(Mask(MASK), Y, 0.0), solver=solver)
    found, plain = conditioned(denoiser, x, noise=keyed(x)), solver(denoiser, x, noise=keyed(x))
    assert torch.allclose(found[:, 2:], plain[:, 2:], rtol=0, atol=1e-12)
    assert torch.equal(found[:, :2], Y[:, :2].expand(3, 2))
    assert conditioned.calls == solver.calls
    assert len(list(conditioned.trajectory(denoiser, x))) == len(list(solver.trajectory(denoiser, x)))


def test_known_parts_of_a_state_have_the_noise_of_their_level() -> None:
    sde, x = VPSDE(), start(VPSDE())
    denoiser, z = GaussianDenoiser(sde, MEAN), torch.randn(3, 4).double()
    steps = list(Replacement(measurement=Measurement(Mask(MASK), Y, 0.1), solver=DDPM(steps=5)).trajectory(
        denoiser, x, noise=lambda t, s: z
    ))  # fmt: skip
    for step in steps[1:-2]:
        alpha, sigma = sde.alpha(step.t), sde.sigma(step.t)
        known = alpha * Y + (sigma**2 - (0.1 * alpha) ** 2).sqrt() * z
        assert torch.allclose(step.x[:, :2], known[:, :2], rtol=1e-12)


@pytest.mark.parametrize("order", ["corrector_first", "predictor_first"])
def test_the_known_part_is_replaced_after_the_predictor_and_after_the_corrector(order: str) -> None:
    sde, x, seen = VPSDE(), start(VPSDE()), []

    class Watching(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.prior = sde, GaussianDenoiser(sde, MEAN)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.append((float(t), x[:, :2]))
            return self.prior(x, t)

    solver = PredictorCorrector(steps=4, corrector=Langevin(), order=order)
    Replacement(measurement=Measurement(Mask(MASK), Y, 0.0), solver=solver)(Watching(), x, noise=lambda t, s: 0 * x)
    assert len(seen) == 9
    for t, known in seen:
        assert torch.allclose(known, sde.alpha(torch.tensor(t).double()) * Y[:, :2].expand(3, 2), rtol=1e-6)


def test_as_published_is_the_loop_of_score_sde() -> None:
    """controllable_generation.py: corrector, then predictor, each followed by the replacement at that time."""
    sde, x, mask = VPSDE(), start(VPSDE()), MASK.double()
    cov = torch.eye(4).double() + 0.5
    denoiser, noise = GaussianDenoiser(sde, MEAN, cov=cov), keyed(x)
    solver = PredictorCorrector(steps=6, predictor=EulerMaruyama(), corrector=AnnealedLangevin())
    published = Replacement(measurement=Measurement(Mask(MASK), Y, 0.0), solver=solver, as_published=True)
    found = published(denoiser, x, noise=noise)

    times = torch.linspace(1, sde.t_min, 7, dtype=torch.float64)
    x = Y * mask + x * (1 - mask)
    for t, s in pairwise(times):
        known = sde.alpha(t) * Y + sde.sigma(t) * noise(t, t)
        e = 2 * (sde.alpha(t) / sde.alpha(s) * 0.16 * sde.sigma(t)) ** 2
        x = x + e * denoiser.score(x, t) + (2 * e).sqrt() * noise(t, t)
        x = x * (1 - mask) + known * mask
        h, g = t - s, sde.g(t)
        x = x - h * (sde.f(t) * x - g**2 * denoiser.score(x, t)) + g * h.sqrt() * noise(t, s)
        x = x * (1 - mask) + known * mask
    mean = x * (1 - mask) + sde.alpha(s) * Y * mask  # from the noisy x: the denoising reaches no unknown entry
    assert torch.allclose(found, mean, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(
        replace(published, as_published=False)(denoiser, start(sde), noise=noise), mean, atol=1e-3
    )


def test_colourisation_is_the_rotation_of_channels_of_score_sde() -> None:
    sde, grey = VPSDE(), Grayscale((3, 2, 1))
    a = torch.tensor([[0.57735, -0.81650, 0.0], [0.57735, 0.40825, 0.70711], [0.57735, 0.40825, -0.70711]]).double()
    y = torch.tensor([[[[0.3], [-0.2]]]]).double()
    x = torch.randn(2, 3, 2, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cov = torch.eye(6).double() + 0.3
    denoiser, z = GaussianDenoiser(sde, torch.zeros(3, 2, 1), cov=cov), torch.randn(2, 3, 2, 1).double()
    found = Replacement(measurement=Measurement(grey, y, 0.0), solver=DDPM(steps=3))
    states = [step.x for step in found.trajectory(denoiser, x, noise=lambda t, s: z)]
    assert torch.allclose(grey(states[-1]), y.expand(2, 1, 2, 1), rtol=1e-12)

    (t,) = {step.t for index, step in enumerate(found.trajectory(denoiser, x)) if index == 2}
    slots = torch.einsum("bchw,ck->bkhw", states[2], a)
    known = sde.alpha(t) * y + sde.sigma(t) * torch.einsum("bchw,ck->bkhw", z, a)[:, :1]
    assert torch.allclose(slots[:, :1], known, rtol=1e-4, atol=1e-4)  # the published digits


@pytest.mark.parametrize(
    "operator",
    [
        Mask(torch.tensor([[[1, 0], [1, 0]]])),
        DownSample((1, 2, 2), 2),
        Matrix(torch.tensor([[1.0, 2, 0, 1]]), (1, 2, 2)),
    ],
)
def test_ilvr_is_replacement_where_noise_is_none(operator: Any) -> None:
    sde, x = VESDE(sigma_max=20.0), start(VESDE(sigma_max=20.0)).reshape(3, 1, 2, 2)
    cov = torch.eye(4).double() + 0.5
    denoiser = GaussianDenoiser(sde, torch.zeros(1, 2, 2), cov=cov)
    measurement = Measurement(operator, operator(torch.tensor([[[[0.5, 1.0], [-0.7, 0.1]]]]).double()), 0.0)
    replaced = Replacement(measurement=measurement, solver=DDPM(steps=5))(denoiser, x, noise=keyed(x))
    refined = ILVR(measurement=measurement, solver=DDPM(steps=5))(denoiser, x, noise=keyed(x))
    assert torch.allclose(refined, replaced, rtol=0, atol=1e-10)
    assert torch.allclose(operator(refined), measurement.y.expand_as(operator(refined)), atol=1e-12)
    loose = ILVR(measurement=measurement, solver=DDPM(steps=5), t_stop=0.5)(denoiser, x, noise=keyed(x))
    assert (operator(loose) - measurement.y).abs().max() > 1e-3


def test_ilvr_keeps_what_a_blur_leaves_of_the_reference() -> None:
    sde, blur = VPSDE(), Blur((1, 4, 4), std=0.7)
    reference = torch.randn(1, 1, 4, 4).double()
    measurement = Measurement(blur, blur(reference), 0.0)
    x = ILVR(measurement=measurement, solver=DDIM(steps=5))(GaussianDenoiser(sde), torch.randn(2, 1, 4, 4).double())
    assert torch.allclose(blur(x), blur(reference).expand_as(x), atol=1e-9)


def missing(solver: Callable[[Measurement], Solver], correlation: float = 0.8) -> float:
    """The share of the posterior's mean shift that a run without any noise leaves out; exact, as all is linear."""
    cov = torch.tensor([[1.0, correlation], [correlation, 1.0]]).double()
    denoiser, x = GaussianDenoiser(VPSDE(), torch.zeros(2), cov=cov), torch.zeros(1, 2).double()
    measurement = Measurement(Mask(torch.tensor([1, 0])), torch.tensor([[1.0, 0]]).double(), 0.0)
    found = solver(measurement)(denoiser, x, noise=lambda t, s: torch.zeros_like(x))
    return 1 - float(found[0, 1]) / correlation


def test_shares_of_a_correlated_mean_that_replacement_and_resampling_leave_out() -> None:
    for steps in (50, 200):
        assert 0.35 < missing(lambda m, n=steps: Replacement(measurement=m, solver=DDPM(steps=n))) < 0.5
    five, twenty = (
        missing(lambda m, u=u: RePaint(measurement=m, steps=40, jump=1, resamplings=u)) for u in (5, 20)
    )  # fmt: skip
    assert 0.06 < five < 0.14
    assert 0.02 < twenty < 0.04


def test_repaint_visits_and_calls_are_those_of_the_paper() -> None:
    measurement = Measurement(Mask(MASK), Y, 0.0)
    plan = RePaint(measurement=measurement).plan(GaussianDenoiser(VPSDE()))
    up = [interval.s.t > interval.t.t for interval in plan.intervals]
    assert len(up) - sum(up) == 2411
    assert sum(up) == 24 * 9  # of 10 steps each: 4570 transitions in all
    small = RePaint(measurement=measurement, steps=5, jump=2, resamplings=2)
    order = [round(5 * (1 - float(t)) + 0.01) for t in small.plan(GaussianDenoiser(VPSDE())).times]
    assert order == [0, 1, 2, 3, 1, 2, 3, 4, 5, 3, 4, 5]
    once, x = replace(small, resamplings=1), start(VPSDE())
    plain = Replacement(measurement=measurement, solver=DDPM(steps=5))
    results = [solver(GaussianDenoiser(VPSDE(), MEAN), x, noise=keyed(x)) for solver in (once, plain)]
    assert torch.equal(*results)


def test_a_step_up_is_the_forward_process() -> None:
    sde, x, z = VPSDE(), start(VPSDE()), torch.randn(3, 4).double()
    solver = RePaint(measurement=Measurement(Mask(MASK), Y, 0.0), steps=6, jump=3, resamplings=2)
    steps = list(solver.trajectory(GaussianDenoiser(sde, MEAN), x, noise=lambda t, s: z))
    (index,) = [k for k, (a, b) in enumerate(pairwise(steps)) if b.t > a.t and k > 3][:1]
    low, high = steps[index], steps[index + 1]
    kernel = sde.transition(low.t, high.t)
    assert torch.allclose(high.x, kernel.scale * low.x + kernel.std * z, rtol=1e-9)


@pytest.mark.parametrize("make", [
    lambda m: Replacement(measurement=m, solver=DDPM(steps=4)), lambda m: ILVR(measurement=m, solver=DDPM(steps=4)),
    lambda m: RePaint(measurement=m, steps=4, jump=2, resamplings=2),
])  # fmt: skip
def test_a_sample_depends_on_its_own_noise_mask_and_y_alone(make: Callable[[Measurement], Solver]) -> None:
    denoiser = GaussianDenoiser(VPSDE(), torch.zeros(4), cov=torch.eye(4).double() + 0.5)
    masks, seeds = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 0]]), [11, 12, 13]
    y, x = masks * torch.randn(3, 4).double(), start(VPSDE())
    whole = make(Measurement(Mask(masks, (4,)), y, 0.0))(denoiser, x, noise=per_sample_noise(x, seeds))
    for k in range(3):
        one = Measurement(Mask(masks, (4,)), y, 0.0).select(torch.tensor([k]), 3)
        alone = make(one)(denoiser, x[k : k + 1], noise=per_sample_noise(x[k : k + 1], seeds[k : k + 1]))
        assert torch.allclose(alone[0], whole[k], rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_of_the_state_stays(dtype: torch.dtype) -> None:
    x, measurement = start(VPSDE()).to(dtype), Measurement(Mask(MASK), Y, 0.0)
    for solver in (Replacement(measurement=measurement), RePaint(measurement=measurement, steps=3, jump=1)):
        assert solver(GaussianDenoiser(VPSDE()), x).dtype == dtype


def test_bad_arguments_are_named_in_one_sentence() -> None:
    exact, noisy = Measurement(Mask(MASK), Y, 0.0), Measurement(Mask(MASK), Y, 0.1)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: Replacement(measurement=noisy, as_published=True), "Replacement needs a measurement without noise"),
        (lambda: ILVR(measurement=noisy), "ILVR needs a measurement without noise"),
        (lambda: Replacement(measurement=noisy, solver=DDIM()), "needs a solver that draws noise .* got DDIM"),
        (lambda: Replacement(measurement=exact, solver=ProbabilityFlowODE()), "needs solver to be a solver with steps"),
        (lambda: Replacement(measurement=exact, solver=OBELM()), "changes the state between steps, which OBELM"),
        (lambda: Replacement(measurement=exact, solver=Reversible()), "changes the state between steps"),
        (lambda: Replacement(measurement=Y), "needs measurement to be a Measurement"),
        (lambda: ILVR(measurement=exact, t_stop=1.0), "needs 0 <= t_stop < 1"),
        (lambda: RePaint(measurement=exact, resamplings=0), "needs 1 <= resamplings"),
        (lambda: RePaint(measurement=exact, steps=5, jump=6), "needs 1 <= jump <= steps"),
        (lambda: Replacement(measurement=Measurement(Mask(MASK), Y.abs(), PoissonNoise(1.0))), "needs Gaussian noise"),
        (lambda: Replacement(measurement=Measurement(Function(torch.sin, (4,)), Y, 0.1)), "needs a linear operator"),
        (lambda: Replacement(measurement=exact)(GaussianDenoiser(VPSDE()), torch.zeros(2, 3)), r"\(B, 4\)"),
        (
            lambda: RePaint(measurement=Measurement(Mask(MASK), Y.repeat(3, 1), 0.0))(
                GaussianDenoiser(VPSDE()), torch.zeros(2, 4)
            ),
            r"B that of y \(3\), or one y for all",
        ),
        (lambda: RePaint(measurement=exact).encode(GaussianDenoiser(VPSDE()), Y), "cannot encode"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
