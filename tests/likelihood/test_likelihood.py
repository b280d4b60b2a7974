from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from closed_forms import MEAN, STD, exact_flow, mixture, name
from torch import Tensor, nn

from scoresde import (
    EDM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    GaussianDenoiser,
    NetworkDenoiser,
    SubVPSDE,
    bits_per_dim,
    elbo,
    log_prob,
    vlb,
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
    assert torch.equal(result.std_error, torch.zeros_like(result.log_prob)) and int(result.nfe.min()) > 0


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
    weight = torch.randn(6, 6, dtype=torch.float64) / 2.5

    class Mixing(Denoiser):
        """Entries depend on each other, so the trace is not a sum of elementwise derivatives."""

        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = sde, GaussianDenoiser(sde, MEAN, STD)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            bend = torch.tanh(x.flatten(1) @ weight).reshape(x.shape)
            return self.exact(x, t) - sde.sigma(t) / sde.alpha(t) * bend

    x = torch.randn(3, 1, 2, 3, dtype=torch.float64)
    whole = log_prob(Mixing(), x, divergence="exact", method="rk4", steps=10)
    monkeypatch.setattr("scoresde.likelihood.trace.TRACE_CHUNK_ENTRIES", 4 * x.numel())  # 6 = 4 + 2
    chunked = log_prob(Mixing(), x, divergence="exact", method="rk4", steps=10)
    torch.testing.assert_close(chunked.log_prob, whole.log_prob, rtol=1e-12, atol=1e-12)

    # The same integral with the trace from the full Jacobian, by autograd of the flow itself: log |det dx_1/dx|.
    def flow(x: Tensor) -> Tensor:
        return rk4_flow(Mixing(), x[None])[0]

    jacobian = torch.func.jacrev(flow)(x[0]).reshape(6, 6)
    latent = rk4_flow(Mixing(), x[:1])
    expected = sde.prior_log_prob(latent) + torch.linalg.slogdet(jacobian).logabsdet
    fine = log_prob(Mixing(), x[:1], divergence="exact", method="rk4", steps=250)
    torch.testing.assert_close(fine.log_prob, expected, rtol=0, atol=1e-6)


def rk4_flow(denoiser: Denoiser, x: Tensor, steps: int = 200) -> Tensor:
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


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=name)
@pytest.mark.parametrize("law", ["diagonal", "full"])
def test_thousand_points_and_their_tails_are_within_the_tolerances(sde: SDE, law: str) -> None:
    """Standard deviations from 0.03 to 1, a quarter of the points 4 standard deviations away in every direction."""
    std = torch.logspace(-1.5, 0, 16, dtype=torch.float64)
    axes = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).Q
    if law == "diagonal":
        denoiser, axes = GaussianDenoiser(sde, torch.linspace(-1, 1, 16).double(), std), torch.eye(16).double()
    else:
        denoiser = GaussianDenoiser(sde, torch.linspace(-1, 1, 16).double(), cov=(axes * std.square()) @ axes.T)
    white = torch.randn(1000, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    white[:250] = 4 * white[:250].sign()
    mean = torch.linspace(-1, 1, 16).double()
    x = mean + (white * std) @ axes.T

    ends = torch.tensor([sde.t_min, 1.0], dtype=torch.float64)
    alpha, sigma = sde.alpha(ends), sde.sigma(ends)
    stretch = torch.hypot(alpha[1] * std, sigma[1]) / torch.hypot(alpha[0] * std, sigma[0])
    latent = alpha[1] * mean + (((x - alpha[0] * mean) @ axes) * stretch) @ axes.T
    exact = sde.prior_log_prob(latent) + stretch.log().sum()
    for tolerance, rows, bound in ((1e-5, slice(None), 1e-3), (1e-8, slice(200, 300), 1e-5)):
        found = log_prob(denoiser, x[rows], divergence="exact", rtol=tolerance, atol=tolerance)
        error = (found.log_prob - exact[rows]).abs()
        assert float(error.max()) < bound
        ratio = found.solver_error / error
        assert float((ratio > 1).double().mean()) > 0.95
        assert 1 < float(ratio.log().mean().exp()) < 100


def test_float32_differs_by_rounding_alone() -> None:
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    denoiser = perceptron()
    wide, narrow = (
        log_prob(copy.deepcopy(denoiser).to(dtype), x.to(dtype), seeds=1, probes=2)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.log_prob.dtype == narrow.latent.dtype == narrow.std_error.dtype == torch.float32
    torch.testing.assert_close(narrow.log_prob.double(), wide.log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(narrow.std_error.double(), wide.std_error, rtol=0, atol=1e-4)


def perceptron() -> NetworkDenoiser:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2))

        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return self.layers(torch.cat([x, c_noise[:, None]], 1))

    torch.manual_seed(0)
    return NetworkDenoiser(Net().double(), VPSDE(), EDM())


def test_one_probe_has_no_standard_error_and_probes_follow_the_generator() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(3, 2, dtype=torch.float64)
    one, again = (log_prob(denoiser, x, generator=torch.Generator().manual_seed(5), rtol=1e-3, atol=1e-3) for _ in "ab")
    assert bool(one.std_error.isnan().all()) and torch.equal(one.log_prob, again.log_prob)


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "exact"},
        {"probes": 2, "probe": "orthogonal"},
        {"divergence": "hutch++", "probes": 4, "probe": "gaussian"},
        {"below": "decoder", "divergence": "exact"},
    ],
    ids=str,
)
def test_a_point_has_the_same_value_in_every_batch(options: dict[str, Any]) -> None:
    """Alone, among others, in another order, and next to points that take many more steps."""
    denoiser = mixture(VESDE())
    x = denoiser.sample(8, generator=torch.Generator().manual_seed(4)) * torch.linspace(0.1, 4, 8).double()[:, None]
    seeds, order = torch.arange(8) * 31 + 7, torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    batch = log_prob(denoiser, x, seeds=seeds, **options)
    assert len(set(batch.nfe.tolist())) > 2
    shuffled = log_prob(denoiser, x[order], seeds=seeds[order], **options)
    for column, other in zip(batch[:6], shuffled[:6], strict=True):
        torch.testing.assert_close(other, column[order], rtol=0, atol=1e-9, equal_nan=True)  # type: ignore[union-attr,index]
    for k in (0, 3, 7):
        alone = log_prob(denoiser, x[k : k + 1], seeds=seeds[k : k + 1], **options)
        for column, other in zip(batch[:6], alone[:6], strict=True):
            torch.testing.assert_close(other[0], column[k], rtol=0, atol=1e-9, equal_nan=True)  # type: ignore[index]


def test_seeds_come_from_the_generator_in_the_order_of_samples() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(5, 2, dtype=torch.float64)
    drawn = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(9))
    given, from_generator = (
        log_prob(denoiser, x, rtol=1e-3, atol=1e-3, **options)
        for options in ({"seeds": drawn}, {"generator": torch.Generator().manual_seed(9)})
    )
    assert torch.equal(given.log_prob, from_generator.log_prob)


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
        ({"divergence": "trace"}, "divergence hutchinson, exact or hutch\\+\\+, got 'trace'"),
        ({"probe": "uniform"}, "probe rademacher, gaussian or orthogonal, got 'uniform'"),
        ({"probes": 0}, "log_prob with divergence hutchinson needs probes >= 1, a whole number, got probes=0"),
        (
            {"divergence": "hutch++", "probes": 2},
            r"with divergence hutch\+\+ needs probes >= 3",
        ),
        ({"below": "zero"}, "below density or decoder, got 'zero'"),
        ({"on_error": "skip"}, "on_error raise or nan, got 'skip'"),
        ({"seeds": [1, 2, 3]}, "log_prob needs one seed per sample: expected 2, got 3"),
        ({"method": "rk45"}, "log_prob needs a method: adaptive adams, dopri5.*got 'rk45'"),
        ({"method": "rk4"}, "fixed-step method rk4 needs 1 <= steps <= 1000000, a whole number, got steps=None"),
        ({"steps": 10}, "chooses its own steps with 'adams'"),
        ({"rtol": 0.0}, "0 < rtol < 1, got rtol=0.0"),
        ({"t_start": 0.0}, "log_prob needs t_min <= t_start < 1, got t_min=1e-05, t_start=0.0"),
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
        with pytest.raises(ValueError, match=r"Cells needs (levels|value_range) "):
            bits_per_dim(torch.zeros(1), (2,), **options)  # type: ignore[arg-type]


class Broken(Denoiser):
    """Gaussian data, but NaN for samples whose first entry is above 3 (below t_bad)."""

    sde = VPSDE()

    def __init__(self, *, selects: bool = True, t_bad: float = 1.0) -> None:
        super().__init__()
        self.inner, self.selects, self.t_bad = GaussianDenoiser(self.sde, 0.0, 0.5), selects, t_bad

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        bad = (x[:, :1] > 3) & (t.reshape(-1, 1) < self.t_bad)
        return torch.where(bad, torch.nan, self.inner(x, t))

    def select(self, index: Tensor, batch: int) -> Denoiser | None:
        return self if self.selects else None


def test_a_model_that_returns_nan_stops_with_a_sentence() -> None:
    with pytest.raises(
        FloatingPointError, match=r"log_prob stopped .* the denoiser returned NaN or infinity for sample 1"
    ):
        log_prob(Broken(), torch.tensor([[0.0, 0.0], [4.0, 0.0]]))
    with pytest.raises(FloatingPointError, match=r"log_prob found NaN or infinity for sample 1"):
        log_prob(Broken(), torch.tensor([[0.0, 0.0], [4.0, 0.0]]), method="rk4", steps=3)


@pytest.mark.parametrize("selects", [True, False])
@pytest.mark.parametrize("options", [{}, {"method": "rk4", "steps": 40}], ids=str)
def test_rows_that_fail_get_nan_and_stop_no_other(selects: bool, options: dict[str, Any]) -> None:
    x = torch.tensor([[0.1, 0.2], [4.0, 0.0], [0.3, float("nan")], [-0.4, 0.5], [0.6, 0.1]], dtype=torch.float64)
    found = log_prob(Broken(selects=selects), x, on_error="nan", seeds=range(5), below="decoder", probes=2, **options)
    good = torch.tensor([0, 3, 4])
    alone = log_prob(Broken(), x[good], seeds=[0, 3, 4], below="decoder", probes=2, **options)
    for column, other in zip(found[:6], alone[:6], strict=True):
        torch.testing.assert_close(column[good], other, rtol=0, atol=1e-12, equal_nan=True)  # type: ignore[index]
    for column in (found.log_prob, found.std_error, found.latent[:, 0], found.solver_error, found.below):
        assert bool(column[[1, 2]].isnan().all())
    assert sorted(found.failures) == [1, 2]
    assert "NaN or infinity for sample 1" in found.failures[1] and "in row 2" in found.failures[2]


def test_a_tolerance_that_cannot_be_met_is_a_failure_of_its_row() -> None:
    class Rough(Denoiser):
        sde = VPSDE()

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            rough = (x[:, :1] > 3) & (torch.sin(1e9 * x).sum(1, keepdim=True) > 0)
            return 0.5 * x + rough * x.square()

    x = torch.tensor([[0.1, 0.2], [4.0, 0.0]], dtype=torch.float64)
    found = log_prob(Rough(), x, divergence="exact", on_error="nan")
    assert list(found.failures) == [1] and "cannot meet rtol=1e-05" in found.failures[1]
    assert found.log_prob.isnan().tolist() == [False, True]


@pytest.mark.parametrize("sde", [VPSDE(t_min=1e-3), VESDE()], ids=name)
def test_the_decoder_term_is_a_bound_with_its_parts_in_closed_form(sde: SDE) -> None:
    """For N(m, s²) data: q(x_ε|x0), p(x0|x_ε) = N(x̂0, σ²/α²) and the density of x_ε are all normal."""
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.full((4000, 2), 0.9, dtype=torch.float64)
    found = log_prob(denoiser, x, divergence="exact", below="decoder", seeds=1)
    t = torch.tensor(sde.t_min, dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    spread = sigma / alpha
    noisy_std = torch.hypot(alpha * STD, sigma)
    gain = STD**2 / (STD**2 + spread**2)  # of x̂0 − MEAN = gain (x_ε/α − MEAN)
    off = (1 - gain) * (0.9 - MEAN)
    reconstruction = -0.5 * (off**2 + (gain * spread) ** 2) / spread**2 - spread.log()
    posterior = -0.5 - sigma.log()
    below = 2 * (reconstruction - posterior)
    torch.testing.assert_close(found.below.mean(), below, rtol=0, atol=4 * float(found.below.std()) / 4000**0.5 + 1e-9)

    latent = exact_flow(sde, alpha * 0.9, sde.t_min, 1.0)
    one, wide = torch.ones((), dtype=torch.float64), sde.prior_std
    scale = torch.hypot(sde.alpha(one) * STD, sde.sigma(one))
    energy = latent**2 + (scale * sigma / noisy_std) ** 2
    density = 2 * (-0.5 * energy / wide**2 - 0.5 * math.log(2 * math.pi) - math.log(wide) + (scale / noisy_std).log())
    total = float(density + below)
    assert float(found.log_prob.mean()) == pytest.approx(total, abs=4 * float(found.log_prob.std()) / 4000**0.5 + 1e-3)
    x = denoiser.sample(4000, shape=(2,), generator=torch.Generator().manual_seed(2))
    truth = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)
    loss = truth - log_prob(denoiser, x, divergence="exact", below="decoder", seeds=1).log_prob
    assert -4 * float(loss.std()) / 4000**0.5 < float(loss.mean()) < 0.05  # on average over the data
    plain = log_prob(denoiser, x[:1], divergence="exact")
    assert int(found.nfe[0]) > 1 and torch.equal(plain.below, torch.zeros(1, dtype=torch.float64))


def test_the_decoder_is_asked_for_x0_given_its_mean_and_std() -> None:
    sde = VPSDE()
    asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def decoder(x0: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        asked.append((x0, mean, std))
        return x0.new_full((3,), 5.0)

    denoiser, x = GaussianDenoiser(sde, MEAN, STD), torch.randn(3, 2, dtype=torch.float64)
    found = log_prob(denoiser, x, divergence="exact", below="decoder", decoder=decoder, t_start=0.1, seeds=3)
    t = torch.tensor(0.1, dtype=torch.float64)
    ((x0, mean, std),) = asked
    assert torch.equal(x0, x) and float(std) == pytest.approx(float(sde.sigma(t) / sde.alpha(t)))
    noisy = (mean - denoiser(torch.zeros(1, 2).double(), t)) / (
        denoiser(torch.ones(1, 2).double(), t) - denoiser(torch.zeros(1, 2).double(), t)
    )
    z = (noisy - sde.alpha(t) * x) / sde.sigma(t)
    log_q = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi) - sde.sigma(t).log()).sum(1)
    torch.testing.assert_close(found.below, 5.0 - log_q, rtol=1e-9, atol=1e-9)
    density = log_prob(denoiser, noisy, divergence="exact", t_start=0.1)
    torch.testing.assert_close(found.log_prob, density.log_prob + found.below, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.nfe, density.nfe + 1)


@pytest.mark.parametrize("below", ["density", "decoder"])
def test_noise_that_is_lost_in_the_data_s_rounding_is_named(below: str) -> None:
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    sde = VPSDE(t_min=1e-18)
    with pytest.raises(
        ValueError, match=r"torch.float32 can tell from none: σ/α = .* Use t_start=.* or float64"
    ) as error:
        log_prob(GaussianDenoiser(sde), x, below=below)
    enough = float(str(error.value).split("t_start=")[-1].split(" ")[0])
    assert 0 < enough < 1e-10
    for options, data in (({"t_start": enough}, x), ({}, x.double())):
        assert bool(log_prob(GaussianDenoiser(sde), data, below=below, **options).log_prob.isfinite().all())  # type: ignore[arg-type]


def test_gradient_by_x_is_the_score() -> None:
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, MEAN, STD)
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    found = log_prob(denoiser, x, divergence="exact", create_graph=True, rtol=1e-7, atol=1e-7)
    (gradient,) = torch.autograd.grad(found.log_prob.sum(), x)
    ends = torch.tensor([sde.t_min, 1.0], dtype=torch.float64)
    stds = torch.hypot(sde.alpha(ends) * STD, sde.sigma(ends))
    latent = exact_flow(sde, x.detach(), sde.t_min, 1.0)
    torch.testing.assert_close(gradient, -latent * stds[1] / stds[0] / sde.prior_std**2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"divergence": "exact"},
        {"probes": 2},
        {"method": "rk4", "steps": 12, "divergence": "exact"},
        {"divergence": "exact", "below": "decoder", "t_start": 0.01},
    ],
    ids=str,
)
def test_gradients_by_parameters_and_data_equal_finite_differences(options: dict[str, Any]) -> None:
    denoiser, x = perceptron(), torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tight: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9} if "steps" not in options else {}

    def value(**more: Any) -> Tensor:
        return log_prob(denoiser, x, seeds=4, **options, **tight, **more).log_prob.sum()

    weight = next(denoiser.parameters())
    x.requires_grad_()
    by_weight, by_x = torch.autograd.grad(value(create_graph=True), [weight, x])
    directions = [torch.randn(t.shape, generator=torch.Generator().manual_seed(2)).double() for t in (weight, x)]
    ends = []
    for sign in (1, -2):  # there, and on the other side
        with torch.no_grad():
            for tensor, direction in zip((weight, x), directions, strict=True):
                tensor.add_(sign * 1e-5 * direction)
        ends.append(float(value()))
    slope = (ends[0] - ends[1]) / 2e-5
    along = [float((g * d).sum()) for g, d in zip((by_weight, by_x), directions, strict=True)]
    assert sum(along) == pytest.approx(slope, rel=2e-4, abs=1e-6) and min(map(abs, along)) > 0.01


def test_without_create_graph_nothing_is_kept() -> None:
    denoiser, x = perceptron(), torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    for divergence, probes in (("exact", 1), ("hutchinson", 2), ("hutch++", 3)):
        found = log_prob(denoiser, x, divergence=divergence, probes=probes)
        assert not any(column.requires_grad for column in found[:6])  # type: ignore[union-attr]


def test_one_forward_pass_per_evaluation() -> None:
    class Counting(Denoiser):
        sde = VPSDE()

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.rows = mixture(self.sde), 0

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            self.rows += len(x)
            return self.inner(x, t)

        def select(self, index: Tensor, batch: int) -> Denoiser | None:
            return self

    for options in ({"divergence": "exact"}, {"probes": 3}, {"method": "rk4", "steps": 5}, {"below": "decoder"}):
        denoiser = Counting()
        found = log_prob(denoiser, torch.randn(1, 2, dtype=torch.float64), **options)  # type: ignore[arg-type]
        assert denoiser.rows == int(found.nfe)


@pytest.mark.parametrize("method", ["dopri8", "bosh3", "fehlberg2", "adaptive_heun"])
def test_every_pair_agrees(method: str) -> None:
    """Stages that neither the result nor the error holds have no trace; which they are differs from pair to pair."""
    denoiser = mixture(VPSDE())
    x = denoiser.sample(6, generator=torch.Generator().manual_seed(1))
    tolerance = {"dopri8": 1e-7, "bosh3": 1e-5}.get(method, 1e-4)
    found = log_prob(denoiser, x, divergence="exact", method=method, rtol=tolerance, atol=tolerance)
    exact = log_prob(denoiser, x, divergence="exact", rtol=1e-9, atol=1e-9).log_prob
    torch.testing.assert_close(found.log_prob, exact, rtol=0, atol={"dopri8": 1e-6, "bosh3": 1e-3}.get(method, 2e-2))


def test_a_failure_ends_the_work_on_its_row() -> None:
    denoiser, calls = Broken(), []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    log_prob(denoiser, torch.full((1, 2), 4.0), on_error="nan")
    assert len(calls) == 2  # the first slope and the one attempted step


@pytest.mark.parametrize("t_start", [-1.0, 0.0, 5e-4, 1.0, 2.0, math.nan, -math.inf, "early", True])
@pytest.mark.parametrize("estimate", [log_prob, elbo, vlb], ids=["log_prob", "elbo", "vlb"])
def test_a_likelihood_begins_between_t_min_and_one(estimate: Any, t_start: Any) -> None:
    """−1 gave a number: on this SDE the noise of a negative time is that of a positive one."""
    denoiser, x = GaussianDenoiser(VPSDE(t_min=1e-3), 0.0, 1.0), torch.zeros(2, 2)
    estimate(denoiser, x, t_start=1e-3, **({} if estimate is not vlb else {"steps": 3}))
    estimate(denoiser, x, t_start=0.5, **({} if estimate is not vlb else {"steps": 3}))
    with pytest.raises(ValueError, match=f"{estimate.__name__} needs t_min <= t_start < 1, got t_min=0.001, t_start="):
        estimate(denoiser, x, t_start=t_start)
