"""A denoiser of one process asked on another."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from closed_forms import SDES, name
from torch import Tensor, nn
from torchdiffeq import odeint

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VESDE,
    VPSDE,
    Denoiser,
    Epsilon,
    GaussianMixtureDenoiser,
    Guided,
    NetworkDenoiser,
    ProbabilityFlowODE,
    Score,
    StraightSDE,
    VPrediction,
    log_prob,
)
from scoresde.covariance import HessianDiagonal, LearnedRange
from scoresde.denoiser import KnowsCovariance, OnProcess

ALL = [*SDES, StraightSDE()]


def mixture(sde: SDE) -> GaussianMixtureDenoiser:
    return GaussianMixtureDenoiser.random(sde, dim=2, components=4, generator=torch.Generator().manual_seed(0))


def states(sde: SDE, t: Tensor) -> Tensor:
    noise = torch.randn(len(t), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return sde.perturb(mixture(sde).sample(len(t), generator=torch.Generator().manual_seed(2)), t, noise)


@pytest.mark.parametrize("other", ALL, ids=name)
def test_at_equal_noise_it_is_the_same_law_on_another_process(other: SDE) -> None:
    """Every pair of processes, against the closed form of the law on the second, wherever the first has that level."""
    for own in ALL:
        exact, denoiser = mixture(other), OnProcess.of(mixture(own), other)
        t = torch.tensor([1e-3, 0.05, 0.3, 0.6, 0.9, 0.99], dtype=torch.float64)
        ends = own.logsnr(torch.tensor([1.0, own.t_min], dtype=torch.float64))
        t = t[(ends[0] <= other.logsnr(t)) & (other.logsnr(t) <= ends[1])]
        x = states(other, t)
        for method in ("__call__", "eps", "v", "score", "velocity", "covariance", "covariance_diag"):
            actual, expected = (getattr(model, method)(x, t) for model in (denoiser, exact))
            torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()), msg=method)
    assert len(t) >= 2


def test_beyond_its_own_levels_it_is_asked_at_the_nearer_end() -> None:
    """VP has σ/α from 1e-3 to 152: the straight path asks for 1e-5 and for no signal at all."""
    exact, denoiser = mixture(StraightSDE()), OnProcess.of(mixture(VPSDE()), StraightSDE())
    own = denoiser.denoiser
    one = torch.ones((), dtype=torch.float64)
    x = states(StraightSDE(), torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(denoiser(x, one), own(VPSDE().sigma(one) * x, one), rtol=1e-12, atol=0)
    assert 0 < (denoiser(x, one) - exact(x, one)).abs().max() < 3 / 152 * exact.rms()  # α_1/σ_1 of the data are lost
    torch.testing.assert_close(denoiser.eps(x, one), x, rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser.v(x, one), -denoiser(x, one), rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser.velocity(x, one), x - denoiser(x, one), rtol=1e-12, atol=0)

    # below: the score stays what it is at t_min, here to (1e-3/0.01)²: 0.01 is the law's finest scale; the rest follows
    t = torch.full((5,), 1e-5, dtype=torch.float64)
    x = states(StraightSDE(), t)
    for method, error in (("score", 0.02), ("eps", 1e-4), ("__call__", 1e-9), ("v", 1e-4)):
        actual, expected = (getattr(model, method)(x, t) for model in (denoiser, exact))
        assert 0 < (actual - expected).abs().max() < error * expected.abs().max().clamp_min(1), method
    for method in ("covariance", "covariance_diag"):
        actual, expected = (getattr(model, method)(x, t) for model in (denoiser, exact))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-14)
    alpha, sigma, x0, eps = 1 - 1e-5, 1e-5, denoiser(x, t), denoiser.eps(x, t)
    torch.testing.assert_close(alpha * x0 + sigma * eps, x, rtol=1e-14, atol=0)
    torch.testing.assert_close(denoiser.v(x, t), alpha * eps - sigma * x0, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_samples_and_likelihoods_are_those_of_the_law(sde: SDE) -> None:
    """The law known on the straight path, solved on another process: the flow of its closed form there."""
    exact, denoiser = mixture(sde), OnProcess.of(mixture(StraightSDE()), sde)
    x = sde.prior_sample((3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = ProbabilityFlowODE()  # the same steps of the same flow: a loose tolerance tells as much
    torch.testing.assert_close(solver(denoiser, x), solver(exact, x), rtol=1e-5, atol=1e-5)
    data, options = exact.sample(3), {"divergence": "exact"}
    values = [log_prob(model, data, **options).log_prob for model in (denoiser, exact)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)


def test_a_law_known_on_vp_is_sampled_and_scored_on_the_straight_path() -> None:
    vp, straight = VPSDE(), StraightSDE()
    exact, denoiser = mixture(vp), OnProcess.of(mixture(vp), straight)
    one = torch.ones((), dtype=torch.float64)
    x, t = vp.prior_sample((3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64), vp.logsnr(one)
    start, end = float(straight.time(t)), float(straight.time(vp.logsnr(torch.tensor(1e-3, dtype=torch.float64))))
    matched = x * float(straight.alpha(torch.tensor(start)) / vp.alpha(one))
    options = {"rtol": 1e-6, "atol": 1e-6, "options": {"step_t": torch.tensor([end], dtype=torch.float64)}}
    times = torch.tensor([start, end], dtype=torch.float64)
    y = odeint(lambda t, x: denoiser.velocity(x, t.clamp(0, 1)), matched, times, **options)[-1]
    known = ProbabilityFlowODE(rtol=1e-6, atol=1e-6, t_end=1e-3, denoise=False)(exact, x)
    factor = float(straight.alpha(torch.tensor(end)) / vp.alpha(torch.tensor(1e-3, dtype=torch.float64)))
    torch.testing.assert_close(y, known * factor, rtol=1e-4, atol=1e-4)

    # from pure noise the start is that of VP but for what signal VP has left at t = 1, α = 1/152
    whole = ProbabilityFlowODE()
    assert (whole(denoiser, x) - whole(exact, x)).abs().max() < 0.1
    data = exact.sample(3, generator=torch.Generator().manual_seed(3))
    values = [
        log_prob(model, data, divergence="exact", rtol=1e-4, atol=1e-4, t_start=1e-3).log_prob
        for model in (denoiser, mixture(straight))
    ]
    torch.testing.assert_close(*values, rtol=0, atol=5e-3)


class Network(nn.Module):
    """Some function of its input and label."""

    def forward(self, x: Tensor, label: Tensor, shift: Tensor | None = None) -> Tensor:
        return torch.sin(2 * x + label[:, None].tanh()) + (0 if shift is None else shift)


def test_a_network_that_predicts_noise_goes_on_the_straight_path() -> None:
    denoiser = NetworkDenoiser(Network(), VPSDE(), Epsilon())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="predicts Epsilon says nothing about the data where there is no signal"):
        NetworkDenoiser(Network(), StraightSDE(), Epsilon())(x, 1.0)
    on = denoiser.on(StraightSDE())
    assert on.velocity(x, 1.0).isfinite().all() and DDIM(steps=5)(on, x).isfinite().all()
    # what a network predicts may depend on the scale of x, as the score does: it is asked in its own
    for rule in (Epsilon(), Score(), VPrediction()):
        known = NetworkDenoiser(Network(), VPSDE(), rule)
        t = torch.tensor(0.3, dtype=torch.float64)
        s = VESDE().time(VPSDE().logsnr(t))
        torch.testing.assert_close(known.on(VESDE())(x / float(VPSDE().alpha(t)), s), known(x, t), rtol=1e-4, atol=1e-4)


def test_every_run_asks_as_single_calls_do() -> None:
    """A level is matched once for a whole run, on any grid, and one by one by hand."""
    on = NetworkDenoiser(Network(), VPSDE(), VPrediction()).double().on(StraightSDE())
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps = list(DDIM(steps=4).trajectory(on, x))
    for before, after in pairwise(steps[:-1]):
        u = on.velocity(before.x, before.t)
        torch.testing.assert_close(
            after.x, before.x + (after.t - before.t) * u, rtol=1e-12, atol=1e-12
        )  # DDIM is Euler


def test_wrappers_go_on_another_process_with_what_they_wrap() -> None:
    denoiser, sde = NetworkDenoiser(Network(), VPSDE(), VPrediction()).double(), StraightSDE()
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=torch.float64)
    shift = torch.full((4, 2), 0.3, dtype=torch.float64)

    bound = denoiser.given(shift=shift)
    for one in (bound.on(sde), denoiser.on(sde).given(shift=shift)):
        torch.testing.assert_close(one(x, t), denoiser.on(sde)(x, t, shift=shift), rtol=1e-12, atol=1e-12)
    guided = Guided(bound, denoiser, 2.0, (0.2, 5.0))
    apart = Guided(bound.on(sde), denoiser.on(sde), 2.0, (0.2, 5.0))
    for method in ("__call__", "eps", "v"):
        expected = getattr(apart, method)(x, t)
        torch.testing.assert_close(getattr(guided.on(sde), method)(x, t), expected, rtol=1e-9, atol=1e-9)

    rows = torch.tensor([2, 0])
    part = bound.on(sde).select(rows, 4)
    assert part is not None
    torch.testing.assert_close(part(x[rows], t[rows]), bound.on(sde)(x, t)[rows])
    assert denoiser.on(VPSDE()) is denoiser and denoiser.on(sde).on(VPSDE()) is denoiser


def test_a_covariance_goes_along_and_a_learned_range_does_not() -> None:
    denoiser = NetworkDenoiser(Network(), VPSDE(), VPrediction()).double()
    wrapped, apart = HessianDiagonal(denoiser, None).on(VESDE()), HessianDiagonal(denoiser.on(VESDE()), None)
    assert isinstance(wrapped, KnowsCovariance)
    x, t = torch.randn(4, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    expected = apart.covariance_diag(x, t)
    assert expected.max() > 0
    torch.testing.assert_close(wrapped.covariance_diag(x, t), expected, rtol=1e-9, atol=1e-12)

    class Twice(Network):
        def forward(self, x: Tensor, label: Tensor, **cond: Any) -> Tensor:
            return torch.cat([super().forward(x, label), 0 * x], 1)

    learned: Denoiser = LearnedRange(Twice(), VPSDE(), VPrediction(), steps=10)
    with pytest.raises((TypeError, ValueError), match="(?s)variance.*learned"):
        DDPM(steps=4, variance="learned")(learned.on(VESDE()), 50 * x.float())
