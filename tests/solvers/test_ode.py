from __future__ import annotations

from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, exact_flow, mixture, moments, name
from torch import Tensor

from scoresde import SDE, VESDE, VPSDE, Denoiser, DiscreteVPSDE, GaussianDenoiser, ProbabilityFlowODE, linear_betas

ADAPTIVE = ["dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun"]
FIXED = ["euler", "midpoint", "heun2", "heun3", "rk4"]


class Recording(Denoiser):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.inner, self.sde, self.times = denoiser, denoiser.sde, []  # type: ignore[var-annotated]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.times.append(float(t))
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


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=name)
def test_a_sample_alone_is_the_sample_in_a_batch_to_tolerance(sde: SDE) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(50, 2, dtype=torch.float64)
    solver = ProbabilityFlowODE(rtol=1e-5, atol=1e-5, denoise=False)
    together, alone = solver(denoiser, x), solver(denoiser, x[:1])
    assert float((together[:1] - alone).abs().max()) < 3e-4
    # the norm is the worst sample's: padding a batch with easy copies cannot loosen its steps
    hard = torch.cat([x[:1], torch.zeros(49, 2, dtype=torch.float64)])
    exact = ProbabilityFlowODE(rtol=1e-10, atol=1e-10, denoise=False)(denoiser, x[:1])
    assert float((solver(denoiser, hard)[:1] - exact).abs().max()) < 3e-4


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
        ({"method": "rk45"}, "needs a torchdiffeq method: adaptive dopri5.* or fixed-step euler.*got 'rk45'"),
        ({"method": "rk4"}, "fixed-step method 'rk4' needs steps of at least 1, got None"),
        ({"method": "rk4", "steps": 0}, "needs steps of at least 1, got 0"),
        ({"steps": 10}, "chooses its own steps with 'dopri5': set rtol and atol"),
        ({"atol": -1.0}, "needs rtol > 0 and atol > 0, got rtol=1e-05, atol=-1.0"),
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

    with pytest.raises(FloatingPointError, match=r"ProbabilityFlowODE stopped .* returned NaN or infinity"):
        ProbabilityFlowODE()(Broken(), torch.randn(2, 2))
