from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, moments, name, predicted
from closed_forms import PARAMETERIZATIONS as SIX
from torch import Tensor, nn

from scoresde import (
    EDM,
    MLP,
    SDE,
    VESDE,
    VPSDE,
    Data,
    Denoiser,
    Epsilon,
    GaussianDenoiser,
    NetworkDenoiser,
    Parameterization,
    Score,
    StraightSDE,
    VPrediction,
    logsnr_grid,
)

PARAMETERIZATIONS = [Epsilon(), Data(), VPrediction(), Score(), EDM(), EDM(sigma_data=1.7)]


class Ideal(nn.Module):
    """The network that a parameterization needs for exact data, written from its inputs (c_in x, c_noise) alone."""

    def __init__(self, parameterization: Parameterization, mean: float, std: float) -> None:
        super().__init__()
        self.parameterization, self.mean, self.std = parameterization, mean, std

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        ratio = torch.exp(4 * c_noise).reshape(-1, *[1] * (scaled.ndim - 1))  # σ/α; VP has α² + σ² = 1
        alpha = (1 + ratio.square()).rsqrt()
        sigma = ratio * alpha
        x = scaled / self.parameterization.c_in(alpha, sigma)
        gain = alpha * self.std**2 / ((alpha * self.std).square() + sigma.square())
        x0_hat = self.mean + gain * (x - alpha * self.mean)
        c_skip, c_out = self.parameterization.skip_out(alpha, sigma)
        return (x0_hat - c_skip * x) / c_out


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_score_eps_and_velocity_are_those_of_the_marginal(sde: SDE) -> None:
    class Plain(Denoiser):
        """Only `forward`, so that the base class's methods are what is tested."""

        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = sde, GaussianDenoiser(sde, MEAN, STD)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return self.exact(x, t)

    denoiser, t = Plain(), torch.tensor([0.01, 0.2, 0.7, 1.0], dtype=torch.float64)
    mean, std = moments(sde, t)
    x = mean[:, None] + std[:, None] * torch.randn(4, 3, dtype=torch.float64)
    score = -(x - mean[:, None]) / std[:, None].square()

    torch.testing.assert_close(denoiser.score(x, t), score, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(denoiser.eps(x, t), -sde.sigma(t)[:, None] * score, rtol=1e-7, atol=1e-9)

    def rows(u: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = moments(sde, u)
        return mean + 0 * u, std

    # the velocity moves standardised coordinates nowhere: x' = m' + (x − m) v'/(2v)
    u = (t - 1e-9).requires_grad_()
    rates = [torch.autograd.grad(value.sum(), u, allow_unused=True, materialize_grads=True)[0] for value in rows(u)]
    expected = rates[0][:, None] + (x - mean[:, None]) / std[:, None] * rates[1][:, None]
    torch.testing.assert_close(denoiser.velocity(x, t), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS, ids=str)
def test_a_network_of_any_parameterization_is_the_exact_denoiser(parameterization: Parameterization) -> None:
    sde = VPSDE()
    exact = GaussianDenoiser(sde, MEAN, STD)
    denoiser = NetworkDenoiser(Ideal(parameterization, MEAN, STD), sde, parameterization)
    x, t = torch.randn(5, 2, 3, dtype=torch.float64), torch.tensor([1e-3, 0.05, 0.4, 0.8, 1.0], dtype=torch.float64)

    torch.testing.assert_close(denoiser(x, t), exact(x, t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(denoiser.eps(x, t), exact.eps(x, t), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(denoiser.score(x, t), exact.score(x, t), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(denoiser(x, t[2]), exact(x, t[2]), rtol=1e-8, atol=1e-8)


class Perfect(nn.Module):
    """What each parameterization predicts of Gaussian data, by the field's definitions, at one level of one process."""

    def __init__(self, rule: Parameterization, sde: SDE, t: Tensor) -> None:
        super().__init__()
        self.rule, self.exact, self.t = rule, GaussianDenoiser(sde, MEAN, STD), t

    def forward(self, scaled: Tensor, c_noise: Tensor) -> Tensor:
        alpha, sigma = (value[:, None] for value in (self.exact.sde.alpha(self.t), self.exact.sde.sigma(self.t)))
        x = scaled / self.rule.c_in(alpha, sigma)
        return predicted(self.rule, self.exact(x, self.t), self.exact.eps(x, self.t), alpha, sigma)


@pytest.mark.parametrize("sde", [*SDES, StraightSDE()], ids=name)
@pytest.mark.parametrize("rule", SIX, ids=lambda rule: type(rule).__name__)
def test_six_parameterizations_of_one_predictor_are_one_denoiser(rule: Parameterization, sde: SDE) -> None:
    t = torch.tensor([0.01, 0.3, 0.8, 1.0], dtype=torch.float64)
    exact, denoiser = GaussianDenoiser(sde, MEAN, STD), NetworkDenoiser(Perfect(rule, sde, t), sde, rule)
    x = sde.perturb(torch.randn(4, 3).double(), t, torch.randn(4, 3).double())
    silent = sde.ends_silent and isinstance(rule, Epsilon | Score)
    for method in ("__call__", "eps", "v", "velocity", "score"):
        if silent and method not in ("eps", "score"):
            with pytest.raises(
                ValueError, match=rf"predicts {type(rule).__name__} says nothing .* alpha is 0 at t = 1"
            ):
                getattr(denoiser, method)(x, t)
            continue
        torch.testing.assert_close(getattr(denoiser, method)(x, t), getattr(exact, method)(x, t), rtol=1e-7, atol=1e-7)


def test_the_same_network_on_another_clock_gives_the_same_answer() -> None:
    class Slow(SDE):
        """VP on the clock √t."""

        def alpha(self, t: Tensor) -> Tensor:
            return VPSDE().alpha(t.square())

        def sigma(self, t: Tensor) -> Tensor:
            return VPSDE().sigma(t.square())

    net, x = nn.Sequential(nn.Linear(3, 3)).double(), torch.randn(4, 3, dtype=torch.float64)
    net_of = type("Net", (nn.Module,), {"forward": lambda self, x, c: net(x) * c[:, None]})()
    t = torch.tensor(0.3, dtype=torch.float64)
    a = NetworkDenoiser(net_of, VPSDE(), EDM())
    b = NetworkDenoiser(net_of, Slow(), EDM())

    torch.testing.assert_close(a(x, t), b(x, t.sqrt()), rtol=1e-12, atol=1e-12)
    grid = logsnr_grid(VPSDE(), 5, 1e-3)
    torch.testing.assert_close(a(x, grid[2]), b(x, Slow().time(VPSDE().logsnr(grid[2]))), rtol=1e-9, atol=1e-9)


def test_eps_of_an_eps_network_is_the_network_to_the_last_digit_near_the_data() -> None:
    net = type("Net", (nn.Module,), {"forward": lambda self, x, c: torch.sin(3 * x)})()
    for sde in (VPSDE(), VESDE()):
        denoiser = NetworkDenoiser(net, sde, Epsilon())
        x, t = torch.randn(64, 3), torch.tensor(1e-5)
        alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
        expected = torch.sin(3 * (Epsilon().c_in(alpha, sigma).float() * x))
        assert float((denoiser.eps(x, t) - expected).abs().max()) < 1e-6


def test_given_binds_conditions_and_shares_parameters() -> None:
    class Shifted(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.weight = VPSDE(), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor, t: Tensor, *, label: Tensor | None = None, **cond: Any) -> Tensor:
            return self.weight * (x if label is None else x + label)

    denoiser, x, t = Shifted(), torch.randn(3, 2), torch.tensor(0.5)
    bound = denoiser.given(label=torch.tensor(2.0))

    torch.testing.assert_close(bound(x, t), x + 2)
    torch.testing.assert_close(bound.eps(x, t), denoiser.eps(x, t, label=torch.tensor(2.0)))
    torch.testing.assert_close(bound.score(x, t), denoiser.score(x, t, label=torch.tensor(2.0)))
    torch.testing.assert_close(bound.velocity(x, t), denoiser.velocity(x, t, label=torch.tensor(2.0)))
    assert [id(p) for p in bound.parameters()] == [id(denoiser.weight)] and bound.sde == denoiser.sde


def test_a_network_of_another_shape_is_named() -> None:
    net = type("Flat", (nn.Module,), {"forward": lambda self, x, c: x[:, :1]})()
    with pytest.raises(ValueError, match=r"Flat must return the shape of its input \(4, 3\), got \(4, 1\): build"):
        NetworkDenoiser(net, VPSDE(), Epsilon())(torch.randn(4, 3), torch.tensor(0.5))


@pytest.mark.parametrize("method", ["__call__", "eps", "score", "velocity"])
@pytest.mark.parametrize("exact", [True, False])
def test_a_number_is_a_time(method: str, exact: bool) -> None:
    denoiser: Denoiser = GaussianDenoiser(VPSDE(), MEAN, STD)
    if not exact:
        denoiser = NetworkDenoiser(Ideal(EDM(), MEAN, STD), VPSDE(), EDM())
    x = torch.randn(4, 3)
    ask = getattr(denoiser, method)
    torch.testing.assert_close(ask(x, 0.5), ask(x, torch.full((4,), 0.5)))
    torch.testing.assert_close(ask(x, 1), ask(x, torch.tensor(1.0)))
    for wrong in ("a", None, True, [0.5]):
        with pytest.raises(TypeError, match=r"a time in \[0, 1\], a number or a tensor of shape \(\) or \(4,\)"):
            ask(x, wrong)
    for outside in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"t must be a time in \[0, 1\], got"):
            ask(x, outside)
        for tensor in (torch.tensor(outside), torch.tensor([0.1, outside, 0.2, 0.3])):
            with pytest.raises(ValueError, match=r"t must hold times in \[0, 1\], got"):
                ask(x, tensor)


def test_times_inside_vmap_are_taken_as_they_are() -> None:
    denoiser, x = GaussianDenoiser(VPSDE(), MEAN, STD), torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    each = torch.func.vmap(lambda row, time: denoiser(row[None], time)[0])(x, t)
    torch.testing.assert_close(each, denoiser(x, t))


def test_a_single_condition_as_long_as_the_batch_is_shared_by_all_rows() -> None:
    """An adaptive solver goes on with one row of two: a vector stays whole, and rows are chosen of what has rows."""
    net = MLP(width=4, depth=1, condition_dim=2)
    torch.nn.init.normal_(net.output.weight)
    model, x, c = NetworkDenoiser(net, VPSDE(), EDM()), torch.ones(2, 2), torch.tensor([[1.0, -3.0], [2.0, 0.5]])
    for condition, expected in ((c[0], c[:1]), (c, c[1:])):
        part = model.given(condition=condition).select(torch.tensor([1]), 2)
        assert part is not None
        torch.testing.assert_close(part(x[1:], 0.5), model(x[1:], 0.5, condition=expected))
