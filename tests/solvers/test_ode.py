from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, exact_flow, mixture, moments, name
from torch import Tensor

from scoresde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    DiscreteVPSDE,
    GaussianDenoiser,
    ProbabilityFlowODE,
    SubVPSDE,
    expand,
    linear_betas,
)

ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]


class Recording(Denoiser):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde = denoiser, denoiser.sde
        self.times: list[float] = []
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.times.extend(t.flatten().tolist())
        self.rows.append(len(x))
        return self.inner(x, t, **cond)


def start(sde: SDE, rows: int = 32) -> Tensor:
    mean, std = moments(sde, 1.0)
    return mean + std * torch.randn(rows, 2, dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-7])
def test_error_follows_the_tolerance(sde: SDE, tolerance: float) -> None:
    x, end = start(sde), max(sde.t_min, 1e-4)
    solver = ProbabilityFlowODE(rtol=tolerance, atol=tolerance, t_end=end, denoise=False)
    y = solver(GaussianDenoiser(sde, MEAN, STD), x)
    assert float((y - exact_flow(sde, x, 1.0, end)).abs().max()) < 30 * tolerance


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("method", [*ADAPTIVE, *FIXED])
def test_the_denoiser_is_never_asked_outside_its_times(sde: SDE, method: str) -> None:
    denoiser = Recording(mixture(sde))
    options: dict[str, Any] = {"steps": 7} if method in FIXED else {"rtol": 1e-2, "atol": 1e-2}
    solver = ProbabilityFlowODE(method=method, t_end=0.03, **options)
    x = solver(denoiser, sde.prior_std * torch.randn(4, 2, dtype=torch.float64))
    solver.encode(denoiser, x)
    assert 0.03 <= min(denoiser.times) <= 0.0301 and 0.9999 <= max(denoiser.times) <= 1


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_encoding_inverts_decoding(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(16, 2, dtype=torch.float64)
    solver = ProbabilityFlowODE(rtol=1e-9, atol=1e-9, denoise=False)
    torch.testing.assert_close(solver.encode(denoiser, solver(denoiser, x)), x, rtol=0, atol=2e-5 * sde.prior_std)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_sample_does_not_depend_on_its_batch(method: str, backward: bool) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(20, 2, dtype=torch.float64)
    solver = ProbabilityFlowODE(method=method, rtol=1e-4, atol=1e-4)
    together = solver.solution(denoiser, x, backward=backward)
    assert len(set(together.nfe.tolist())) > 1
    for k in (0, 7):
        alone = solver.solution(denoiser, x[k : k + 1], backward=backward)
        torch.testing.assert_close(together.x[k : k + 1], alone.x, rtol=1e-12, atol=1e-12)
        assert (together.nfe[k], together.accepted[k], together.rejected[k]) == (*alone[1:],)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_shared_steps_are_those_of_the_worst_sample(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(50, 2, dtype=torch.float64)
    solver = ProbabilityFlowODE(rtol=1e-5, atol=1e-5, denoise=False, per_sample=False)
    # the norm is the worst sample's: padding a batch with easy copies cannot loosen its steps
    hard = torch.cat([x[:1], torch.zeros(49, 2, dtype=torch.float64)])
    exact = ProbabilityFlowODE(rtol=1e-10, atol=1e-10, denoise=False)(denoiser, x[:1])
    assert float((solver(denoiser, hard)[:1] - exact).abs().max()) < 3e-4
    shared, own = solver.solution(denoiser, x), replace(solver, per_sample=True).solution(denoiser, x)
    assert len(set(shared.nfe.tolist())) == 1
    assert shared.nfe[0] == 1 + 6 * (shared.accepted[0] + shared.rejected[0])
    assert own.nfe.double().mean() < 0.7 * shared.nfe[0] and own.nfe.max() <= shared.nfe[0]


@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_own_and_shared_steps_have_one_limit(method: str) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(6, 2, dtype=torch.float64)
    own, shared = (
        ProbabilityFlowODE(method=method, rtol=1e-11, atol=1e-11, per_sample=per_sample)(denoiser, x)
        for per_sample in (True, False)
    )
    torch.testing.assert_close(own, shared, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method, finest", [("dopri5", 7), ("dopri8", 7), ("bosh3", 6), ("adaptive_heun", 5)])
def test_ten_times_the_tolerance_is_five_times_the_error(method: str, finest: int) -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(40, 2, dtype=torch.float64)
    exact = ProbabilityFlowODE(method="dopri8", rtol=1e-11, atol=1e-11)(denoiser, x)

    def error(digits: int) -> float:
        y = ProbabilityFlowODE(method=method, rtol=10.0**-digits, atol=10.0**-digits)(denoiser, x)
        return float((y - exact).norm(dim=1).median())

    coarsest = finest - 3
    assert error(finest) < error(coarsest) / 5**3
    assert error(finest) < 20 * 10.0**-finest


def test_all_processes_cost_the_same() -> None:
    """With one range of σ/α they are one problem; with their own starts nearly so."""

    def at_level(sde: SDE) -> float:
        return float(sde.time(torch.tensor(2 * math.log(1 / 0.02), dtype=torch.float64)))

    def cost(sde: SDE) -> tuple[Tensor, Tensor]:
        z = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        solver = ProbabilityFlowODE(rtol=1e-4, atol=1e-4, t_end=at_level(sde))
        found = solver.solution(
            mixture(sde), z * float(torch.hypot(*(f(torch.ones(()).double()) for f in (sde.alpha, sde.sigma))))
        )
        return found.nfe, found.x

    widest = float(torch.exp(-VPSDE().logsnr(torch.ones((), dtype=torch.float64)) / 2))
    nfe, x = cost(VPSDE())
    for same in (VESDE(sigma_max=widest), EDMSDE(sigma_max=widest)):
        other_nfe, other_x = cost(same)
        assert torch.equal(other_nfe, nfe)
        torch.testing.assert_close(other_x, x, rtol=0, atol=1e-7)
    for sde in (SubVPSDE(), VESDE(), EDMSDE(), CosineSDE()):
        assert float(cost(sde)[0].double().mean() / nfe.double().mean()) == pytest.approx(1, abs=0.12), sde


def test_the_report_counts_calls() -> None:
    denoiser, x = Recording(mixture(VPSDE())), torch.randn(1, 2, dtype=torch.float64)
    for denoise in (False, True):
        for method, stages in (("dopri5", 6), ("bosh3", 3), ("adaptive_heun", 1)):
            denoiser.rows.clear()
            solver = ProbabilityFlowODE(method=method, rtol=1e-3, atol=1e-3, denoise=denoise)
            found = solver.solution(denoiser, x)
            assert found.nfe.tolist() == [len(denoiser.rows)]
            assert found.nfe - int(denoise) == 1 + stages * (found.accepted + found.rejected)
    fixed = ProbabilityFlowODE(method="rk4", steps=5).solution(denoiser, x)
    assert (int(fixed.nfe), int(fixed.accepted), int(fixed.rejected)) == (21, 5, 0)


@pytest.mark.parametrize("per_sample", [True, False])
def test_gradients_are_those_of_finite_differences(per_sample: bool) -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    class Bent(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return torch.tanh(scale * x) * expand(self.sde.alpha(t), x)

    solver = ProbabilityFlowODE(rtol=1e-9, atol=1e-9, t_end=0.05, per_sample=per_sample)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(3, 2, dtype=torch.float64)
    assert not solver(Bent(), x).requires_grad
    by_x, by_scale = torch.autograd.grad((solver(Bent(), x, gradient=True) * weights).sum(), (x, scale))

    def value(dx: Tensor, dscale: float) -> float:
        with torch.no_grad():
            scale.add_(dscale)
            result = float((solver(Bent(), x + dx) * weights).sum())
            scale.sub_(dscale)
        return result

    direction = torch.randn(3, 2, dtype=torch.float64)
    slope = (value(1e-4 * direction, 0) - value(-1e-4 * direction, 0)) / 2e-4
    assert float((by_x * direction).sum()) == pytest.approx(slope, rel=1e-5)
    slope = (value(0 * direction, 1e-4) - value(0 * direction, -1e-4)) / 2e-4
    assert float(by_scale) == pytest.approx(slope, rel=1e-5)


def test_a_fixed_step_equals_its_formula_written_from_the_velocity_in_t() -> None:
    """One Euler step of y = x/ν in z: d(x/ν)/dt from f, g and the velocity, times dt/dz with ½ logsnr = sinh z."""
    for sde in SDES:
        denoiser, x = mixture(sde), sde.prior_std * torch.randn(4, 2, dtype=torch.float64)
        one, end = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
        z, z_end = torch.asinh(sde.logsnr(one) / 2), torch.asinh(sde.logsnr(end) / 2)
        nu, nu_end = (torch.hypot(sde.alpha(t), sde.sigma(t)) for t in (one, end))
        nu_slope = (sde.f(one) * nu**2 + sde.g(one) ** 2 / 2) / nu  # (α²)' = 2fα², (σ²)' = 2fσ² + g²
        dt_dz = -2 * torch.cosh(z) * (sde.sigma(one) / sde.g(one)) ** 2
        slope = dt_dz * (denoiser.velocity(x, one) / nu - x * nu_slope / nu**2)
        y = ProbabilityFlowODE(method="euler", steps=1, t_end=0.4, denoise=False)(denoiser, x)
        torch.testing.assert_close(y, nu_end * (x / nu + (z_end - z) * slope), rtol=1e-9, atol=1e-9)


def test_denoise_is_one_more_call_at_the_end() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(4, 2, dtype=torch.float64)
    plain = ProbabilityFlowODE(t_end=0.1, denoise=False)(denoiser, x)
    torch.testing.assert_close(
        ProbabilityFlowODE(t_end=0.1)(denoiser, x), denoiser(plain, torch.tensor(0.1, dtype=torch.float64))
    )


def test_events_of_any_shape_and_single_precision() -> None:
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    for shape in ((3, 5), (2, 1, 4, 4), (2, 1, 2, 2, 2)):
        x = torch.randn(shape)
        y = ProbabilityFlowODE(t_end=1e-3, denoise=False)(denoiser, x)
        assert y.dtype == torch.float32
        torch.testing.assert_close(y.double(), exact_flow(sde, x.double(), 1.0, 1e-3), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"method": "rk45"}, "needs a method: adaptive adams, dopri5.* or fixed-step euler.*got 'rk45'"),
        ({"method": "rk4"}, "fixed-step method rk4 needs 1 <= steps <= 1000000, a whole number, got steps=None"),
        ({"method": "rk4", "steps": 0}, "needs 1 <= steps <= 1000000, a whole number, got steps=0"),
        ({"steps": 10}, "chooses its own steps with 'dopri5': set rtol and atol"),
        ({"atol": -1.0}, "needs 0 < atol < 1, got atol=-1.0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ProbabilityFlowODE(**options)


def test_no_noise_at_the_end_and_broken_models_are_named() -> None:
    denoiser = mixture(DiscreteVPSDE(linear_betas()))
    with pytest.raises(
        ValueError, match=r"ProbabilityFlowODE needs noise at the data end: σ is 0 at t_end=0.0.*t_min=0.001"
    ):
        ProbabilityFlowODE(t_end=0.0)(denoiser, torch.randn(2, 2))

    class Broken(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x * float("nan")

    for per_sample in (True, False):
        with pytest.raises(FloatingPointError, match=r"ProbabilityFlowODE stopped .* returned NaN or infinity"):
            ProbabilityFlowODE(per_sample=per_sample)(Broken(), torch.randn(2, 2))
    with pytest.raises(TypeError, match=r"needs a float32 or float64 state, got torch.float16"):
        ProbabilityFlowODE()(Broken(), torch.randn(2, 2).half())


def test_the_time_and_the_sample_that_fail_are_named() -> None:
    class BreaksInTheMiddle(Denoiser):
        sde, inner = VPSDE(), mixture(VPSDE())

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            late = (t < 0.3) & (torch.arange(len(x)) == 2)
            return torch.where(late[:, None], float("nan"), self.inner(x, t))

    with pytest.raises(FloatingPointError, match=r"stopped at t = 0\.(2\d+): .* NaN or infinity for sample 2\. Check"):
        ProbabilityFlowODE(rtol=1e-4, atol=1e-4)(BreaksInTheMiddle(), torch.randn(4, 2, dtype=torch.float64))

    class Erratic(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return 1e4 * torch.randn_like(x)

    words = r"stopped at t = .* after \d+ steps and \d+ rejected ones: .* cannot meet rtol=1e-09, atol=1e-09 in torch"
    with pytest.raises(FloatingPointError, match=words):
        ProbabilityFlowODE(rtol=1e-9, atol=1e-9)(Erratic(), torch.randn(2, 2, dtype=torch.float64))
