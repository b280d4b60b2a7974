"""Flow-matching networks of other systems in, and denoisers out as velocity fields."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from closed_forms import SDES, exact_flow, name
from torch import Tensor, nn
from torchdiffeq import odeint

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    Denoiser,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    NetworkDenoiser,
    ProbabilityFlowODE,
    StraightSDE,
    Velocity,
    log_prob,
)
from scoresde.interop import FlowConvention, check_flow_network, flow_denoiser, velocity_field

MEAN, STD = 1.5, 0.7


def column(t: Tensor, x: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (x.ndim - 1))


def rate(x: Tensor, s: Tensor) -> Tensor:
    """E[noise − data | x = (1 − s) data + s noise] of data N(MEAN, STD²): the rate of x in s."""
    s = column(s, x)
    variance = ((1 - s) * STD) ** 2 + s**2
    off = x - (1 - s) * MEAN
    return s / variance * off - (MEAN + (1 - s) * STD**2 / variance * off)


# How each system's code trains and calls a network, with z its noise and data its data:
#   torchcfm         xt = t data + (1 − t) z, target data − z, model(t, xt)
#   flow_matching    CondOT: t data + (1 − t) z, dx_t = data − z, velocity_model(x=xt, t=t)
#   RectifiedFlow    the same, model(xt, 999 t)
#   diffusers        sigma z + (1 − sigma) data, target z − data, model(x, timestep=1000 sigma).sample
#   Flux             the same, transformer(x, timestep=sigma, return_dict=False)[0]
NETWORKS: dict[str, Callable[..., Any]] = {
    "torchcfm": lambda t, x: -rate(x, 1 - t),
    "flow_matching": lambda x, t: -rate(x, 1 - t),
    "rectified_flow": lambda x, t: -rate(x, 1 - t / 999),
    "diffusers": lambda sample, timestep: SimpleNamespace(sample=rate(sample, timestep / 1000)),
    "flux": lambda hidden_states, timestep: (rate(hidden_states, timestep),),
}


@pytest.mark.parametrize("convention", NETWORKS)
def test_a_network_of_every_system_is_the_exact_denoiser(convention: str) -> None:
    denoiser, exact = flow_denoiser(NETWORKS[convention], convention), GaussianDenoiser(StraightSDE(), MEAN, STD)
    t = torch.tensor([1e-3, 0.2, 0.5, 0.9, 1.0], dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for method in ("__call__", "eps", "v", "velocity", "score"):
        torch.testing.assert_close(getattr(denoiser, method)(x, t), getattr(exact, method)(x, t), rtol=1e-9, atol=1e-9)
    check_flow_network(denoiser, exact.sample(200, shape=(2, 3)), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("convention", NETWORKS)
@pytest.mark.parametrize("wrong", ["time", "predicts", "both", "scale"])
def test_a_network_wrapped_the_wrong_way_round_is_noticed(convention: str, wrong: str) -> None:
    """The wrong direction of time, the wrong sign, both, the wrong scale: the sentence says what to write instead."""
    right = flow_denoiser(NETWORKS[convention], convention).net.convention  # type: ignore[union-attr]
    other = "data_to_noise" if right.time == "noise_to_data" else "noise_to_data"
    sign, opposite = ("noise - data", "data - noise")[:: right.sign]
    options = {
        "time": {"time": other, "predicts": sign},
        "predicts": {"predicts": opposite},
        "both": {"time": other},
        "scale": {"scale": 1.0 if right.scale > 100 else 1000.0},
    }[wrong]
    denoiser = flow_denoiser(NETWORKS[convention], convention, **options)
    data = GaussianDenoiser(StraightSDE(), MEAN, STD).sample(200, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"check_flow_network: the network's loss on these data is") as caught:
        check_flow_network(denoiser, data, generator=torch.Generator().manual_seed(1))
    said = str(caught.value)
    turned = {key: getattr(right, key) for key in ("time", "scale") if f"{key}=" in said.partition(" with ")[2]}
    turned |= {"predicts": sign} if "predicts=" in said else {}
    for key, value in turned.items():
        assert (f"{key}={value!r}" if isinstance(value, str) else f"{key}=1") in said
    again = flow_denoiser(
        NETWORKS[convention], convention, **{**options, **turned, **({"predicts": None} if wrong == "both" else {})}
    )
    check_flow_network(again, data, generator=torch.Generator().manual_seed(1))


def test_a_velocity_network_wrapped_by_hand_is_told_in_the_words_of_velocity() -> None:
    net = type("Net", (nn.Module,), {"forward": lambda self, x, t: rate(x, t)})()
    data = GaussianDenoiser(StraightSDE(), MEAN, STD).sample(200)
    rule = Velocity(label="data_time", scale_input=False)
    with pytest.raises(ValueError, match=r"with label='time'\.$"):
        check_flow_network(NetworkDenoiser(net, StraightSDE(), rule), data)
    negated = type("Net", (nn.Module,), {"forward": lambda self, x, t: -rate(x, t)})()
    with pytest.raises(ValueError, match=r"with label='time' and the network's output negated\.$"):
        check_flow_network(NetworkDenoiser(negated, StraightSDE(), rule), data)
    with pytest.raises(ValueError, match="no other direction of time, sign or scale .* not trained for data of this"):
        check_flow_network(flow_denoiser(NETWORKS["torchcfm"], "torchcfm"), 30 * data)
    with pytest.raises(TypeError, match="needs a NetworkDenoiser that predicts Velocity"):
        check_flow_network(GaussianDenoiser(StraightSDE()), data)  # type: ignore[arg-type]


class Plain(nn.Module):
    """A network of conditions, with parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        assert x.dtype == t.dtype == self.weight.dtype
        return self.weight * x * column(t, x) + (0 if shift is None else shift.to(x.dtype))


def test_conditions_half_precision_and_outputs_of_any_form_pass_through() -> None:
    x, t, shift = torch.randn(3, 2), torch.tensor([0.2, 0.5, 0.8]), torch.tensor([[1.0], [2.0], [3.0]])
    net = Plain()
    denoiser = flow_denoiser(net)
    expected = -(0.7 * x * (1 - t[:, None]) + shift)
    torch.testing.assert_close(denoiser.velocity(x, t, shift=shift), expected)
    torch.testing.assert_close(denoiser.given(shift=shift).velocity(x, t), expected)
    assert [id(p) for p in denoiser.parameters()] == [id(net.weight)]
    for wrap in (lambda y: (y, None), lambda y: [y], lambda y: {"sample": y}, lambda y: SimpleNamespace(sample=y)):
        wrapped = flow_denoiser(lambda x, t, wrap=wrap, **cond: wrap(net(x, t, **cond)))
        torch.testing.assert_close(wrapped.velocity(x, t, shift=shift), expected)
    half = flow_denoiser(Plain().half()).velocity(x, t, shift=shift)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=2e-3, atol=2e-3)
    named = flow_denoiser(lambda *, time, state: net(state, time), call="state=x, time=t")
    torch.testing.assert_close(named.velocity(x, t), -0.7 * x * (1 - t[:, None]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: flow_denoiser(Plain(), "cfm"),
            ValueError,
            "flow_denoiser needs convention flow_matching, torchcfm, .*'cfm'",
        ),
        (
            lambda: flow_denoiser(Plain(), time="backwards"),
            ValueError,
            "time noise_to_data or data_to_noise, got 'backw",
        ),
        (lambda: flow_denoiser(Plain(), predicts="velocity"), ValueError, "predicts data - noise or noise - data, got"),
        (lambda: flow_denoiser(Plain(), scale=0), ValueError, "0 < scale <= 1e6, got scale=0"),
        (
            lambda: flow_denoiser(Plain(), call="x"),
            ValueError,
            "call to say where the state x and the time t go, .* got 'x'",
        ),
        (
            lambda: flow_denoiser(Plain(), tiem="x"),
            TypeError,
            "flow_denoiser has the options time, call, .* got tiem='x'",
        ),
        (lambda: flow_denoiser("net"), TypeError, "flow_denoiser needs a network or a function, got 'net'"),
        (lambda: velocity_field(Plain()), TypeError, "velocity_field needs a denoiser, got a Plain"),
        (
            lambda: flow_denoiser(lambda x, t: t, "flow_matching")(torch.randn(3, 2), 0.5),
            ValueError,
            r"The function, called as \(x, t\), must return the shape of the state \(3, 2\), got \(3,\): say",
        ),
        (
            lambda: flow_denoiser(lambda x, t: "y")(torch.randn(3, 2), 0.5),
            TypeError,
            "must return a tensor, a tuple that begins with one, or an object with `sample`, got a str",
        ),
        (
            lambda: velocity_field(GaussianDenoiser(StraightSDE()))(torch.randn(3, 2)),
            TypeError,
            r"This velocity field is called as \(x, t\), with conditions by name",
        ),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


# Handed out


@pytest.mark.parametrize("sde", [*SDES, StraightSDE()], ids=name)
def test_any_denoiser_is_a_field_that_torchdiffeq_integrates_from_noise_to_data(sde: SDE) -> None:
    """To where the closed form of the flow ends; a process that ends with signal differs by that at its start."""

    class Known(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.exact = sde, GaussianDenoiser(sde, MEAN, STD)

        def x0(self, x: Tensor, level: Any, **cond: Any) -> Tensor:
            return self.exact.x0(x, level)

        def eps_at(self, x: Tensor, level: Any, **cond: Any) -> Tensor:
            return self.exact.eps_at(x, level)

    field = velocity_field(Known(), "torchcfm")
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = odeint(field, x, torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=1e-7, atol=1e-7)[-1]
    least = float(sde.alpha(torch.ones(())) / sde.sigma(torch.ones(())))  # of x0 in the start
    expected = exact_flow(StraightSDE(), x, 1.0, 0.0, MEAN, STD)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5 + 3 * least + 0.02 * (sde.t_min > 1e-4))


def test_samples_of_a_field_are_those_of_our_solvers() -> None:
    law = GaussianMixtureDenoiser.random(StraightSDE(), 2, 4, generator=torch.Generator().manual_seed(0))
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y = odeint(velocity_field(law, "torchcfm"), x, times, rtol=1e-7, atol=1e-7)[-1]
    torch.testing.assert_close(y, ProbabilityFlowODE(rtol=1e-7, atol=1e-7)(law, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "convention", [*NETWORKS, FlowConvention(time="data_to_noise", predicts="data - noise")], ids=str
)
@pytest.mark.parametrize("sde", [StraightSDE(), VPSDE()], ids=name)
def test_in_and_out_again_is_the_same_denoiser(convention: str | FlowConvention, sde: SDE) -> None:
    law = GaussianMixtureDenoiser.random(sde, 2, 4, generator=torch.Generator().manual_seed(0))
    again = flow_denoiser(velocity_field(law, convention), convention)
    t = torch.tensor([0.01, 0.3, 0.8, 1.0], dtype=torch.float64)
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    there = law.on(StraightSDE())
    for method in ("__call__", "velocity", "eps", "v"):
        expected = getattr(there, method)(x, t)
        torch.testing.assert_close(getattr(again, method)(x, t), expected, rtol=1e-10, atol=1e-10)


def test_a_field_is_called_by_place_or_by_name_with_one_time_or_many() -> None:
    law = GaussianDenoiser(StraightSDE(), MEAN, STD)
    x, t = torch.randn(3, 2), torch.tensor(0.25)
    expected = -law.velocity(x, 0.75)
    field = velocity_field(law)
    for value in (field(x, t), field(x, 0.25), field(x=x, t=t), field(x, t.expand(3)), field(x, t[None])):
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(velocity_field(law, "torchcfm")(t, x), expected)
    torch.testing.assert_close(velocity_field(law, "diffusers")(x, timestep=750 * torch.ones(3)), -expected)
    torch.testing.assert_close(velocity_field(law, "diffusers")(x, 750), -expected)
    torch.testing.assert_close(field(x, 1.2), field(x, 1 - 1e-5))  # adaptive solvers step past the end


def test_what_flow_networks_gain() -> None:
    """SDE samples and a likelihood with its error of somebody else's network, each in a line; and few-step solvers."""
    denoiser = flow_denoiser(NETWORKS["torchcfm"], "torchcfm")
    start = denoiser.sde.prior_sample((2000, 1), generator=torch.Generator().manual_seed(0))
    exact = GaussianDenoiser(StraightSDE(), MEAN, STD)
    torch.manual_seed(0)
    samples = DDPM(steps=100)(denoiser, start)
    assert float(samples.mean()) == pytest.approx(MEAN, abs=0.06) and float(samples.std()) == pytest.approx(
        STD, abs=0.06
    )
    assert DDIM(steps=3)(denoiser, start[:2]).isfinite().all()
    x = exact.sample(3, shape=(4,), generator=torch.Generator().manual_seed(1))
    result = log_prob(denoiser, x, probes=2, rtol=1e-6, atol=1e-6)
    true = exact.log_prob(x, torch.tensor(1e-5))
    assert ((result.log_prob - true).abs() < 5 * result.std_error + 1e-3).all()


def test_optimal_transport_pairs_leave_the_flow_right_and_the_score_wrong() -> None:
    """Data N(0, s²) paired with noise by rank, data = s noise: u = (1 − s) noise, a straight line to the data."""
    s = 0.5
    net = flow_denoiser(lambda x, t: (s - 1) * x / ((1 - column(t, x)) + column(t, x) * s))
    x = torch.randn(2000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ProbabilityFlowODE(rtol=1e-6, atol=1e-6)(net, x), s * x, rtol=1e-4, atol=1e-4)
    torch.manual_seed(0)
    assert not 0.9 < float(DDPM(steps=100)(net, x).std()) / s < 1.1
