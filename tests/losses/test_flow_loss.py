"""Flow matching: the loss up to t = 1, its laws of time, what it is equal to, noise paired with the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import (
    DDPM,
    EDM,
    MLP,
    SDE,
    VPSDE,
    Data,
    Denoiser,
    DenoisingLoss,
    NetworkDenoiser,
    Parameterization,
    ProbabilityFlowODE,
    StraightSDE,
    Velocity,
    VPrediction,
    edm_weighting,
    log_prob,
    lognormal_times,
    uniform_times,
)
from scoresde.commands.fill import fill
from scoresde.data import digits
from scoresde.losses import (
    FlowLoss,
    Loss,
    flow_weighting,
    logit_normal_times,
    mode_times,
    optimal_pairing,
    shifted_times,
    velocity_weighting,
)
from scoresde.losses.loss import check_law

PATH = StraightSDE()
CPU = torch.device("cpu")
U = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


class CosinePath(SDE):
    """α = cos ½πt, σ = sin ½πt: a process of a user's own that ends without signal."""

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)


def network(sde: SDE, rule: Parameterization, dtype: torch.dtype = torch.float64) -> NetworkDenoiser:
    torch.manual_seed(0)
    net = MLP(shape=(3,), width=16, depth=1).double()
    torch.nn.init.normal_(net.output.weight)
    return NetworkDenoiser(net, sde, rule).to(dtype)


def batch(count: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x0, noise = (torch.randn(count, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0.to(dtype), noise.to(dtype)


def noise_level(sde: SDE, t: Tensor) -> Tensor:
    """σ/α."""
    return torch.exp(-0.5 * sde.logsnr(t.double()))


# The loss


@pytest.mark.parametrize("rule", [Velocity(), VPrediction(), Data(), EDM()], ids=lambda rule: type(rule).__name__)
def test_flow_loss_is_the_squared_error_of_the_velocity_whatever_the_network_predicts(rule: Parameterization) -> None:
    (x0, noise), t = batch(), torch.tensor([1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-9], dtype=torch.float64)
    denoiser = network(PATH, rule)
    error = denoiser.velocity(PATH.perturb(x0, t, noise), t) - (noise - x0)
    torch.testing.assert_close(FlowLoss().at(denoiser, x0, t, noise), error.square().mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("sde", [PATH, CosinePath()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    "loss", [FlowLoss(), DenoisingLoss(weighting=edm_weighting)], ids=lambda loss: type(loss).__name__
)
def test_single_precision_is_enough_up_to_the_end_of_the_signal(sde: SDE, loss: Any) -> None:
    t = torch.tensor([1e-4, 0.3, 0.99, 1 - 1e-5, 1 - 6e-8, 1.0])
    values = [loss.at(network(sde, Velocity(), dtype), *batch(6, dtype)[:1], t.to(dtype), batch(6, dtype)[1])
              for dtype in (torch.float32, torch.float64)]  # fmt: skip
    torch.testing.assert_close(values[0].double(), values[1], rtol=2e-4, atol=0)
    assert bool((values[1] > 0).all())
    check_law(loss, sde, CPU)


def test_times_are_drawn_below_the_end_of_the_signal_alone() -> None:
    end: Any = lambda sde, u: torch.ones_like(u)  # noqa: E731
    x0 = torch.zeros(4, 1)
    assert float(FlowLoss(time=end).draw(PATH, x0)[0].max()) == 1 - 2**-24
    assert float(FlowLoss(time=end).draw(PATH, x0.double())[0].max()) == 1 - 2**-53
    assert float(FlowLoss(time=end).draw(VPSDE(), x0)[0].max()) == 1


# What it is equal to


def test_known_losses_are_weightings_of_the_same_error() -> None:
    (x0, noise), t = batch(4), torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64)
    for sde in (VPSDE(), PATH):
        denoiser = network(sde, VPrediction())
        flow = DenoisingLoss(weighting=flow_weighting).at(denoiser, x0, t, noise)
        x, (alpha, sigma) = sde.perturb(x0, t, noise), (sde.alpha(t), sde.sigma(t))
        eps = (denoiser.eps(x, t) - noise).square().mean(1)
        data = (denoiser(x, t) - x0).square().mean(1)
        v = (denoiser.v(x, t) - alpha[:, None] * noise + sigma[:, None] * x0).square().mean(1)
        torch.testing.assert_close(FlowLoss().at(denoiser, x0, t, noise), flow, rtol=1e-12, atol=0)
        torch.testing.assert_close(flow, ((alpha + sigma) / alpha).square() * eps, rtol=1e-9, atol=0)
        torch.testing.assert_close(flow, ((alpha + sigma) / sigma).square() * data, rtol=1e-9, atol=0)
        torch.testing.assert_close(flow, ((alpha + sigma) / (alpha**2 + sigma**2)).square() * v, rtol=1e-9, atol=0)
        ratio = noise_level(sde, t)
        edm = DenoisingLoss(weighting=partial(edm_weighting, sigma_data=0.5)).at(denoiser, x0, t, noise)
        torch.testing.assert_close(flow / edm, (1 + ratio) ** 2 * 0.25 / (ratio**2 + 0.25), rtol=1e-9, atol=0)


def test_expectations_depend_on_the_weight_of_every_log_snr_alone() -> None:
    """½ ∫ w(λ) E‖ε − ε̂‖² dλ (Kingma and Gao 2023, arXiv:2303.00848): of straight paths w = e^(−λ/2)."""

    def expected(sde: SDE, law: Callable[[SDE, Tensor], Tensor], weighting: Any) -> float:
        t = law(sde, U)
        snr = sde.logsnr(t).exp() * 0.6
        return float((weighting(sde, t) * snr / (1 + snr)).mean())  # of Gaussian data of variance 0.6

    uniform = expected(PATH, uniform_times, flow_weighting)
    logsnr = torch.linspace(-60, 60, 40_001, dtype=torch.float64)
    curve = 0.5 * torch.exp(-0.5 * logsnr) * 0.6 * logsnr.exp() / (1 + 0.6 * logsnr.exp())
    assert uniform == pytest.approx(float(torch.trapezoid(curve, logsnr)), rel=1e-4)
    v_of_cosine = expected(CosinePath(), uniform_times, velocity_weighting)  # v-prediction on the cosine schedule
    assert v_of_cosine == pytest.approx(2 / math.pi * uniform, rel=1e-4)

    def logit_normal(sde: SDE, t: Tensor) -> Tensor:
        normal = torch.distributions.Normal(torch.tensor(-0.4).double(), torch.tensor(0.8).double())
        return flow_weighting(sde, t) * normal.log_prob(torch.logit(t)).exp() / (t * (1 - t))

    drawn = expected(PATH, partial(logit_normal_times, mean=-0.4, std=0.8), flow_weighting)
    assert drawn == pytest.approx(expected(PATH, uniform_times, logit_normal), rel=1e-4)


@pytest.mark.parametrize("rule", [EDM(), Velocity()], ids=lambda rule: type(rule).__name__)
def test_a_network_learns_the_same_at_equal_noise_on_every_process(rule: Parameterization) -> None:
    (x0, noise), ratio = batch(4), torch.tensor([0.01, 0.3, 1.0, 90.0], dtype=torch.float64)
    for weighting in (edm_weighting, flow_weighting):
        one, other = (
            DenoisingLoss(weighting=weighting).at(network(sde, rule), x0, sde.time(-2 * ratio.log()), noise)
            for sde in (VPSDE(), PATH)
        )
        torch.testing.assert_close(one, other, rtol=1e-7, atol=0)


# Laws of time


def test_logit_normal_times_are_those_of_the_paper_and_log_normal_in_the_noise() -> None:
    u = torch.tensor([0.0227501, 0.1586553, 0.5, 0.8413447, 0.9772499], dtype=torch.float64)
    expected = torch.sigmoid(0.4 + 0.7 * torch.tensor([-2.0, -1, 0, 1, 2], dtype=torch.float64))
    torch.testing.assert_close(logit_normal_times(PATH, u, mean=0.4, std=0.7), expected, rtol=0, atol=1e-6)
    for sde in (PATH, VPSDE()):
        t = logit_normal_times(sde, u, mean=0.4, std=0.7)
        torch.testing.assert_close(t, lognormal_times(sde, u, mean=0.4, std=0.7), rtol=0, atol=0)
        torch.testing.assert_close(noise_level(sde, t), expected / (1 - expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.8, 1.29, 1.75])
def test_mode_times_are_those_of_the_paper(scale: float) -> None:
    u = 1 - U  # the paper's u runs from noise to data
    expected = 1 - u - scale * (torch.cos(0.5 * math.pi * u).square() - 1 + u)
    t = mode_times(PATH, U, scale=scale)
    torch.testing.assert_close(t, expected.clamp(1e-5, 1), rtol=0, atol=1e-9)
    assert bool((t.diff() >= 0).all())
    ratio = noise_level(VPSDE(), mode_times(VPSDE(), U[2000:-2000], scale=scale))
    torch.testing.assert_close(ratio, (expected / (1 - expected))[2000:-2000], rtol=1e-6, atol=0)


@pytest.mark.parametrize("base", [uniform_times, logit_normal_times])
def test_shifted_times_move_towards_noise(base: Any) -> None:
    u = torch.tensor([0.1, 0.4, 0.8], dtype=torch.float64)
    t, s = base(PATH, u), 3.0
    shifted = shifted_times(PATH, u, base=base, shift=s)
    torch.testing.assert_close(shifted, s * t / (1 + (s - 1) * t), rtol=1e-9, atol=0)
    assert bool((shifted > t).all())
    sde = VPSDE()
    ratio = noise_level(sde, shifted_times(sde, u, base=base, shift=s)) / noise_level(sde, base(sde, u))
    torch.testing.assert_close(ratio, torch.full_like(u, s), rtol=1e-5, atol=0)
    by_size = shifted_times(PATH, u, base=base, shift=None, size=64 * 144, base_size=1024)
    torch.testing.assert_close(by_size, shifted, rtol=0, atol=0)
    assert shifted_times(PATH, torch.tensor([0.0, 1.0]), base=base).tolist() == pytest.approx([3e-5, 1.0], abs=0.02)


def test_the_size_of_the_data_is_filled_in() -> None:
    config = {"model": {}, "parameterization": {}, "loss": {"time": {"size": None, "shift": None}}}
    assert fill(config, digits(), labelled=False)["loss"]["time"] == {"size": 64, "shift": None}


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (partial(shifted_times, shift=0), "shifted_times needs 1e-6 <= shift <= 1e6, or null, got shift=0"),
        (partial(shifted_times, shift=-3.0), "shifted_times needs 1e-6 <= shift <= 1e6, or null, got shift=-3.0"),
        (partial(shifted_times, shift=None), "shifted_times with shift=null needs size"),
        (partial(shifted_times, size=0), "shifted_times needs size >= 1, a whole number, or null, got size=0"),
        (partial(logit_normal_times, std=-1), "logit_normal_times needs 0 <= std <= 30, got std=-1"),
        (partial(mode_times, scale=2), "mode_times needs -1 <= scale <= 1.751938, got scale=2"),
    ],
)
def test_wrong_laws_are_named(law: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("+", r"\+")):
        check_law(FlowLoss(time=law), PATH, CPU)


# Noise that is paired with the data


def test_optimal_pairing_is_the_best_of_all_orders_of_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(6, 2, 2, generator=generator) for _ in range(2))
    paired = optimal_pairing(x0, noise)
    cost = float((paired - x0).square().sum())
    assert cost == pytest.approx(
        min(float((noise[list(order)] - x0).square().sum()) for order in permutations(range(6)))
    )
    assert sorted(paired.flatten().tolist()) == sorted(noise.flatten().tolist()) and cost < float(
        (noise - x0).square().sum()
    )


def test_the_noise_is_permuted_and_nothing_else() -> None:
    x0, seen = torch.randn(40, 2, dtype=torch.float64), {}

    class Spy(Denoiser):
        sde = PATH

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            seen.update(x=x, t=t, **cond)
            return x

    for coupling in ("independent", "optimal_transport"):
        loss, label = FlowLoss(coupling=coupling), torch.arange(40)
        loss(Spy(), x0, generator=torch.Generator().manual_seed(3), label=label)
        t, noise = loss.draw(PATH, x0, torch.Generator().manual_seed(3))
        assert torch.equal(seen["label"], label) and torch.equal(seen["x"], PATH.perturb(x0, t, noise))
        drawn = FlowLoss().draw(PATH, x0, torch.Generator().manual_seed(3))
        assert torch.equal(t, drawn[0]) and torch.equal(noise, drawn[1]) == (coupling == "independent")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FlowLoss(coupling="best"), "FlowLoss needs coupling independent or optimal_transport, got 'best'"),
        (lambda: check_law(FlowLoss(coupling="optimal_transport"), PATH, CPU, 1),
         "coupling=optimal_transport needs batches of at least 2 examples, got batch_size=1"),
        (lambda: check_law(FlowLoss(coupling="optimal_transport"), VPSDE(), CPU),
         r"FlowLoss with coupling=optimal_transport needs x_1 to be the noise alone, and alpha\(1\) is not 0 on VPSDE"),
        (lambda: FlowLoss()(network(VPSDE(), Data()), *batch()[:1], noise=batch()[1]), "noise of its own needs x_1"),
        (lambda: FlowLoss(coupling="optimal_transport")(network(PATH, Data()), batch()[0], noise=batch()[1]),
         "FlowLoss with coupling=optimal_transport got noise that is paired already"),
    ],
)  # fmt: skip
def test_pairs_that_make_no_sense_are_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


class Coupled(Denoiser):
    """What noise paired with N(0, s²) in the best way leads to: x0 = s ε, so x_t = ((1 − t) s + t) ε."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.sde, self.std = PATH, std

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        width = (1 - t) * self.std + t
        return self.std * x / (width if t.ndim == 0 else width[:, None])


def test_of_coupled_noise_the_flow_and_its_density_hold_and_the_score_does_not() -> None:
    std, generator = 0.3, torch.Generator().manual_seed(0)
    denoiser, x = Coupled(std), torch.randn(1000, 1, generator=generator, dtype=torch.float64)
    sampled = ProbabilityFlowODE(rtol=1e-6, atol=1e-6)(denoiser, x[:9])
    torch.testing.assert_close(sampled, std * x[:9], rtol=1e-5, atol=1e-5)  # straight: each x_1 to its own data point
    exact = torch.distributions.Normal(0.0, math.hypot(std * (1 - 1e-5) + 1e-5, 0))
    found = log_prob(denoiser, std * x[:9], divergence="exact", rtol=1e-6, atol=1e-6).log_prob
    torch.testing.assert_close(found, exact.log_prob(std * x[:9, 0]), rtol=0, atol=1e-4)
    stochastic = DDPM(steps=40)(denoiser, x)
    assert abs(float(stochastic.std()) / std - 1) > 0.2  # of samples by the score that it does not have

    x0, noise = (torch.randn(512, 1, generator=generator, dtype=torch.float64) for _ in range(2))
    losses = [
        float(FlowLoss(coupling=coupling)(denoiser, std * x0, generator=torch.Generator().manual_seed(1)).mean())
        for coupling in ("independent", "optimal_transport")
    ]
    assert losses[1] < 0.02 < 0.2 < losses[0]  # what is left are the ends of a finite batch
    assert isinstance(FlowLoss(), Loss) and noise.shape == x0.shape
