"""Adams with variable steps: the published coefficients, exactness, order, and one call per step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde import SDE, VPSDE, GaussianDenoiser, GaussianMixtureDenoiser, ProbabilityFlowODE
from scoresde.integrate.adaptive import integrate
from scoresde.integrate.methods import Adams, Field, State, _terms

WIDE = torch.float64


def field(rate: Callable[[Tensor, Tensor], Tensor]) -> Field:
    """dy/dz = rate(z, y) for states (B, 1)."""

    def slope(at: Tensor, state: State) -> State:
        return (rate(at[0][:, None], state[0]),)

    whole = Field(lambda z: z[None], slope, lambda index: whole)
    return whole


def test_weights_on_equal_steps_are_the_published_ones() -> None:
    z = torch.tensor([[0.0], [-1.0], [-2.0], [-3.0], [-4.0]], dtype=WIDE)
    bashforth = _terms(z, z[0], z[0] + 1, torch.tensor([5])).sum(0)[:, 0]
    expected = torch.tensor([1901, -2774, 2616, -1274, 251], dtype=WIDE) / 720
    torch.testing.assert_close(bashforth, expected, rtol=1e-13, atol=0)
    moulton = _terms(z + 1, z[0], z[0] + 1, torch.tensor([5])).sum(0)[:, 0]
    expected = torch.tensor([251, 646, -264, 106, -19], dtype=WIDE) / 720
    torch.testing.assert_close(moulton, expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_weights_on_any_steps_integrate_polynomials(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    steps = 0.2 + torch.rand(6, 4, generator=generator, dtype=WIDE)
    nodes = 3 - steps.cumsum(0) + steps[:1]
    nodes[count:] = nodes[0]  # these do not matter, not even if they coincide
    z, z_to = nodes[0], nodes[0] + torch.tensor([0.7, -0.4, 1.5, 0.0], dtype=WIDE)
    terms = _terms(nodes, z, z_to, torch.full((4,), count))
    assert not terms[count:].any() and not terms[:, count:].any()
    for power in range(count):
        exact = (z_to ** (power + 1) - z ** (power + 1)) / (power + 1)
        torch.testing.assert_close((terms.sum(0) * nodes**power).sum(0), exact, rtol=1e-11, atol=1e-11)
    missed = (terms.sum(0) * nodes**count).sum(0) - (z_to ** (count + 1) - z ** (count + 1)) / (count + 1)
    assert (missed[:3].abs() > 1e-3).all()


def test_a_polynomial_is_integrated_exactly_once_enough_slopes_are_known() -> None:
    method, problem = Adams(order=3), field(lambda z, y: 5 * z**3 + y * 0)
    z, y = torch.zeros(2, dtype=WIDE), torch.zeros(2, 1, dtype=WIDE)
    history = method.begin(problem, z, (y,))
    for index, h in enumerate([0.1, 0.15, 0.3, 0.2, 0.4]):
        step = torch.tensor([h, 2 * h], dtype=WIDE)
        tried = method.attempt(problem, z, step, (y,), history)
        exact = y + 1.25 * ((z + step) ** 4 - z**4)[:, None]
        assert (tried.order == min(index + 2, 4)).all()
        if index >= 2:
            torch.testing.assert_close(tried.state[0], exact, rtol=1e-13, atol=0)
        else:
            assert ((tried.state[0] - exact).abs() > 1e-6).all()
        z, y = z + step, exact
        history = method.update(history, z, tried, torch.ones(2, dtype=torch.bool))


def test_the_error_estimate_is_that_of_the_corrector_of_one_order_less() -> None:
    method, problem = Adams(order=4), field(lambda z, y: torch.cos(3 * z) * y)
    z, y = torch.zeros(1, dtype=WIDE), torch.ones(1, 1, dtype=WIDE)
    history = method.begin(problem, z, (y,))
    for h in (0.05, 0.08, 0.06, 0.1, 0.07):
        step = torch.tensor([h], dtype=WIDE)
        tried = method.attempt(problem, z, step, (y,), history)
        count = int(history.real)
        nodes = torch.cat([(z + step)[None], history.z])
        lower = _terms(nodes, z, z + step, torch.tensor([count])).sum(0)[:, 0]
        slopes = [tried.slopes[-1][0], *history.slopes[0].unbind(1)]
        less = y + sum(w * f for w, f in zip(lower, slopes, strict=True))
        torch.testing.assert_close(tried.error[0], tried.state[0] - less, rtol=1e-9, atol=1e-16)
        history = method.update(history, z + step, tried, torch.tensor([True]))
        z, y = z + step, tried.state[0]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_observed_order_on_equal_steps(order: int) -> None:
    """From exact slopes in the past; y' = cos(z) y has y = exp(sin z)."""
    problem, errors = field(lambda z, y: torch.cos(z) * y), []
    for steps in (40, 80):
        h = 2 / steps
        method = Adams(order=order)
        past = [-h * k for k in range(order)]
        slopes = (torch.tensor([[[math.cos(u) * math.exp(math.sin(u))] for u in past]], dtype=WIDE),)
        z, y = torch.zeros(1, dtype=WIDE), torch.ones(1, 1, dtype=WIDE)
        history = method.begin(problem, z, (y,))._replace(
            z=torch.tensor(past, dtype=WIDE)[:, None], slopes=slopes, real=torch.tensor([order])
        )
        for _ in range(steps):
            tried = method.attempt(problem, z, torch.tensor([h], dtype=WIDE), (y,), history)
            z, y = z + h, tried.state[0]
            history = method.update(history, z, tried, torch.tensor([True]))
        errors.append(abs(float(y) - math.exp(math.sin(2.0))))
    # in the mode predict, evaluate, correct the slope that is kept is the predictor's: order p, the corrector's p + 1
    assert order - 0.35 < math.log2(errors[0] / errors[1]) < order + 1.35


def test_a_refused_step_leaves_the_history() -> None:
    method, problem = Adams(order=3), field(lambda z, y: -y)
    z, y = torch.zeros(2, dtype=WIDE), torch.ones(2, 1, dtype=WIDE)
    history = method.begin(problem, z, (y,))
    tried = method.attempt(problem, z, torch.full((2,), 0.1, dtype=WIDE), (y,), history)
    after = method.update(history, z + 0.1, tried, torch.tensor([True, False]))
    assert after.real.tolist() == [2, 1]
    assert after.z[:, 1].equal(history.z[:, 1]) and after.z[0, 0] == 0.1 and after.z[1, 0] == 0
    assert after.slopes[0][1].equal(history.slopes[0][1])
    assert after.slopes[0][0, 0].equal(tried.slopes[-1][0][0]) and after.slopes[0][0, 1].equal(history.slopes[0][0, 0])
    one = method.select(after, torch.tensor([1]))
    assert one.real.tolist() == [1] and one.z.shape == (3, 1) and one.slopes[0].shape == (1, 3, 1)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_it_meets_the_tolerance_with_fewer_calls_than_a_pair(tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    denoiser = GaussianMixtureDenoiser.random(VPSDE(), dim=8, components=5, generator=generator)
    x = denoiser.sde.prior_sample((20, 8), generator=generator, dtype=WIDE)
    exact = ProbabilityFlowODE(rtol=1e-11, atol=1e-11)(denoiser, x)
    found = {
        method: ProbabilityFlowODE(method=method, rtol=tolerance, atol=tolerance).solution(denoiser, x)
        for method in ("adams", "dopri5")
    }
    error = (found["adams"].x - exact).square().mean(1).sqrt()
    assert float(error.median()) < 5 * tolerance
    assert found["adams"].nfe.double().mean() < 0.8 * found["dopri5"].nfe.double().mean()
    assert (found["adams"].nfe == 2 + found["adams"].accepted + found["adams"].rejected).all()  # the last one denoises


def test_every_sample_has_its_own_steps() -> None:
    denoiser = GaussianMixtureDenoiser.random(VPSDE(), dim=3, components=4, generator=torch.Generator().manual_seed(1))
    x = denoiser.sde.prior_sample((6, 3), generator=torch.Generator().manual_seed(2), dtype=WIDE)
    solver = ProbabilityFlowODE(method="adams")
    whole = solver.solution(denoiser, x)
    for row in range(6):
        alone = solver.solution(denoiser, x[row : row + 1])
        torch.testing.assert_close(alone.x[0], whole.x[row], rtol=0, atol=1e-12)
        assert alone.nfe[0] == whole.nfe[row]
    assert len(whole.nfe.unique()) > 1


def test_encoding_inverts_and_gradients_follow() -> None:
    denoiser = GaussianDenoiser(VPSDE(), 0.3, 0.6)
    x = torch.randn(4, 2, dtype=WIDE, generator=torch.Generator().manual_seed(0)).requires_grad_()
    solver = ProbabilityFlowODE(method="adams", rtol=1e-9, atol=1e-9, denoise=False)
    y = solver(denoiser, x, gradient=True)
    end = torch.tensor(solver.end(denoiser.sde), dtype=WIDE)
    expected = gaussian_flow(denoiser.sde, x.detach(), torch.tensor(1.0, dtype=WIDE), end)
    torch.testing.assert_close(y.detach(), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(solver.encode(denoiser, y.detach()), x.detach(), rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    shift = gaussian_flow(denoiser.sde, x.detach() + 1, torch.tensor(1.0, dtype=WIDE), end) - expected  # it is affine
    torch.testing.assert_close(gradient, shift, rtol=0, atol=1e-6)


def gaussian_flow(sde: SDE, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """For N(0.3, 0.6²) data: standardised coordinates are constant."""

    def moments(t: Tensor) -> tuple[Tensor, Tensor]:
        return sde.alpha(t) * 0.3, torch.hypot(sde.alpha(t) * 0.6, sde.sigma(t))

    (mean_t, std_t), (mean_s, std_s) = moments(t), moments(s)
    return mean_s + std_s / std_t * (x - mean_t)


def test_shared_steps_are_torchdiffeqs() -> None:
    with pytest.raises(ValueError, match=r"per_sample=False needs a method of torchdiffeq, got 'adams'"):
        ProbabilityFlowODE(method="adams", per_sample=False)


def test_integrate_counts_one_call_per_attempt() -> None:
    calls: list[int] = []

    def rate(z: Tensor, y: Tensor) -> Tensor:
        calls.append(len(y))
        return torch.sin(20 * z) * 50 + y * 0

    found = integrate(field(rate), (torch.zeros(1, 1, dtype=WIDE),), 0.0, 1.0, Adams(), rtol=1e-6, atol=1e-6)
    assert len(calls) == int(found.nfe) == 1 + int(found.accepted + found.rejected)
    assert float(found.state[0]) == pytest.approx(50 * (1 - math.cos(20)) / 20, abs=1e-4)
    assert np.isfinite(calls).all()
