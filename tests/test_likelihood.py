from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from closed_forms import MEAN, STD, exact_flow, mixture, name
from torch import Tensor

from scoresde import (
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    GaussianDenoiser,
    SubVPSDE,
    bits_per_dim,
    log_prob,
)

SDES = [VPSDE(), SubVPSDE(), VESDE(), EDMSDE(), CosineSDE()]


def exact_log_prob(denoiser: Any, x: Tensor, latent: Tensor) -> Tensor:
    """log p(x) of the probability-flow ODE with the Gaussian prior at t = 1."""
    sde = denoiser.sde
    start, end = torch.tensor([sde.t_min, 1.0], dtype=torch.float64)
    return denoiser.log_prob(x, start) - denoiser.log_prob(latent, end) + sde.prior_log_prob(latent)


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize(
    "options, tolerance", [({}, 1e-3), ({"rtol": 1e-8, "atol": 1e-8}, 1e-5)], ids=["default", "tight"]
)
@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)], ids=str)
def test_gaussian_data(sde: SDE, options: dict[str, float], tolerance: float, shape: tuple[int, ...]) -> None:
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = MEAN + STD * torch.randn(6, *shape, dtype=torch.float64)

    result = log_prob(denoiser, x, divergence="exact", **options)
    latent = exact_flow(sde, x, sde.t_min, 1.0)
    torch.testing.assert_close(result.log_prob, exact_log_prob(denoiser, x, latent), rtol=0, atol=tolerance)
    torch.testing.assert_close(result.latent, latent, rtol=0, atol=tolerance * sde.prior_std)
    assert torch.equal(result.std_error, torch.zeros_like(result.log_prob)) and result.nfe > 0


@pytest.mark.parametrize("sde", SDES, ids=name)
def test_mixture_data(sde: SDE) -> None:
    denoiser = mixture(sde)
    x = denoiser.sample(24, generator=torch.Generator().manual_seed(1))

    tight = log_prob(denoiser, x, divergence="exact", rtol=1e-8, atol=1e-8)
    exact = exact_log_prob(denoiser, x, tight.latent)
    torch.testing.assert_close(tight.log_prob, exact, rtol=0, atol=1e-5)
    default = log_prob(denoiser, x, divergence="exact")
    torch.testing.assert_close(default.log_prob, exact, rtol=0, atol=1e-3)
    single = log_prob(denoiser, x.float(), divergence="exact")
    assert single.log_prob.dtype == torch.float32
    torch.testing.assert_close(single.log_prob.double(), exact, rtol=0, atol=1e-3)


def test_exact_trace_takes_chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sde = VPSDE()
    weight = torch.randn(16, 16, dtype=torch.float64) / 4

    class Mixing(Denoiser):
        """Entries depend on each other, so the trace is not a sum of elementwise derivatives."""

        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = sde, GaussianDenoiser(sde, MEAN, STD)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            bend = torch.tanh(x.flatten(1) @ weight).reshape(x.shape)
            return self.exact(x, t) - sde.sigma(t) / sde.alpha(t) * bend

    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    whole = log_prob(Mixing(), x, divergence="exact", method="rk4", steps=10)
    monkeypatch.setattr("scoresde.likelihood.probability_flow.TRACE_CHUNK_ENTRIES", 3 * x.numel())  # 16 = 5 · 3 + 1
    chunked = log_prob(Mixing(), x, divergence="exact", method="rk4", steps=10)
    torch.testing.assert_close(chunked.log_prob, whole.log_prob, rtol=1e-12, atol=1e-12)

    # The same integral with the trace from the full Jacobian, by autograd of the flow itself: log |det dx_1/dx|.
    def flow(x: Tensor) -> Tensor:
        return rk4_flow(Mixing(), x[None])[0]

    jacobian = torch.func.jacrev(flow)(x[0]).reshape(16, 16)
    latent = rk4_flow(Mixing(), x[:1])
    expected = sde.prior_log_prob(latent) + torch.linalg.slogdet(jacobian).logabsdet
    fine = log_prob(Mixing(), x[:1], divergence="exact", method="rk4", steps=400)
    torch.testing.assert_close(fine.log_prob, expected, rtol=0, atol=1e-6)


def rk4_flow(denoiser: Denoiser, x: Tensor, steps: int = 400) -> Tensor:
    """dx/dt in log-SNR, written from the velocity: dx/dl = velocity / (dl/dt), dl/dt = −g²/σ²."""
    sde = denoiser.sde
    ends = sde.logsnr(torch.tensor([sde.t_min, 1.0], dtype=torch.float64))
    h = (ends[1] - ends[0]) / steps

    def rate(logsnr: Tensor, x: Tensor) -> Tensor:
        t = sde.time(logsnr)
        return denoiser.velocity(x, t) / -(sde.g(t) / sde.sigma(t)).square()

    for k in range(steps):
        a = ends[0] + k * h
        k1 = rate(a, x)
        k2 = rate(a + h / 2, x + h / 2 * k1)
        k3 = rate(a + h / 2, x + h / 2 * k2)
        k4 = rate(a + h, x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_its_standard_error_covers(probe: str) -> None:
    denoiser = mixture(VPSDE())
    x = denoiser.sample(400, generator=torch.Generator().manual_seed(2))
    exact = log_prob(denoiser, x, divergence="exact", rtol=1e-4, atol=1e-4).log_prob
    result = log_prob(
        denoiser, x, probes=20, probe=probe, rtol=1e-4, atol=1e-4, generator=torch.Generator().manual_seed(3)
    )
    z = (result.log_prob - exact) / result.std_error
    varied = result.std_error > 1e-3  # solver error decides where the probes agree
    assert float(varied.double().mean()) > 0.5
    assert 0.90 <= float((z[varied].abs() < 2).double().mean()) <= 0.98
    pooled = (result.log_prob - exact).mean() / (result.std_error.square().sum().sqrt() / 400)
    assert abs(float(pooled)) < 4


def test_one_probe_has_no_standard_error_and_probes_follow_the_generator() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(3, 2, dtype=torch.float64)
    one, again = (log_prob(denoiser, x, generator=torch.Generator().manual_seed(5), rtol=1e-3, atol=1e-3) for _ in "ab")
    assert bool(one.std_error.isnan().all()) and torch.equal(one.log_prob, again.log_prob)


def test_a_point_alone_has_the_log_prob_it_has_in_a_batch() -> None:
    denoiser = mixture(VESDE())
    x = denoiser.sample(8, generator=torch.Generator().manual_seed(4))
    batch, alone = log_prob(denoiser, x, divergence="exact"), log_prob(denoiser, x[:1], divergence="exact")
    torch.testing.assert_close(batch.log_prob[:1], alone.log_prob, rtol=0, atol=1e-3)


def test_t_start_moves_the_data_side() -> None:
    sde = VPSDE()
    denoiser, x = GaussianDenoiser(sde, MEAN, STD), torch.randn(4, 2, dtype=torch.float64)
    result = log_prob(denoiser, x, divergence="exact", t_start=0.1)
    start, end = torch.tensor([0.1, 1.0], dtype=torch.float64)
    latent = exact_flow(sde, x, 0.1, 1.0)
    exact = denoiser.log_prob(x, start) - denoiser.log_prob(latent, end) + sde.prior_log_prob(latent)
    torch.testing.assert_close(result.log_prob, exact, rtol=0, atol=1e-3)


def test_bits_per_dim_adds_the_width_of_a_level() -> None:
    nats = torch.tensor([-3.0, 5.0], dtype=torch.float64)
    bits = -nats / (12 * math.log(2))
    for options, offset in [
        ({}, 7.0),
        ({"value_range": (0.0, 1.0)}, 8.0),
        ({"value_range": (-2.0, 2.0)}, 6.0),
        ({"levels": 17, "value_range": (0.0, 17.0)}, 0.0),
        ({"levels": 17}, math.log2(17) - 1),
    ]:
        value = bits_per_dim(nats, (3, 2, 2), **options)  # type: ignore[arg-type]
        torch.testing.assert_close(value, bits + offset, rtol=1e-14, atol=1e-14)


def test_bits_per_dim_of_uniform_data_is_log2_of_the_levels() -> None:
    """Levels drawn uniformly, dequantised: density 1/(high − low) per entry."""
    nats = -8 * torch.tensor([2.0], dtype=torch.float64).log()
    assert float(bits_per_dim(nats, (8,), levels=32)) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"divergence": "trace"}, "divergence 'hutchinson' or 'exact', got 'trace'"),
        ({"probe": "uniform"}, "probe 'rademacher' or 'gaussian', got 'uniform'"),
        ({"probes": 0}, "probes >= 1, got 0"),
        ({"method": "rk45"}, "log_prob needs a torchdiffeq method: adaptive dopri5.*got 'rk45'"),
        ({"method": "rk4"}, "fixed-step method 'rk4' needs steps of at least 1, got None"),
        ({"steps": 10}, "chooses its own steps with 'dopri5'"),
        ({"rtol": 0.0}, "rtol > 0 and atol > 0, got rtol=0.0"),
        ({"t_start": 0.0}, "log_prob needs noise at the data end: σ is 0 at t_end=0.0 of VPSDE. Use t_end > 0"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        log_prob(GaussianDenoiser(VPSDE()), torch.zeros(2, 2), **options)


def test_wrong_data_are_named() -> None:
    denoiser, x = GaussianDenoiser(VPSDE()), torch.zeros(3, 2)
    x[1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"finite data, got NaN or infinity in row 1"):
        log_prob(denoiser, x)
    with pytest.raises(ValueError, match=r"shape \(B, \*\) in float32 or float64, got shape \(3,\)"):
        log_prob(denoiser, torch.zeros(3))
    with pytest.raises(ValueError, match=r"in torch.float16"):
        log_prob(denoiser, torch.zeros(3, 2, dtype=torch.float16))
    for options in ({"levels": 1}, {"value_range": (1.0, -1.0)}):
        with pytest.raises(ValueError, match=r"bits_per_dim needs levels >= 2 and low < high"):
            bits_per_dim(torch.zeros(1), (2,), **options)  # type: ignore[arg-type]


def test_a_model_that_returns_nan_stops_with_a_sentence() -> None:
    class Broken(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x * float("nan")

    with pytest.raises(FloatingPointError, match=r"log_prob stopped .* the denoiser returned NaN or infinity"):
        log_prob(Broken(), torch.zeros(2, 2))
