"""Flow-matching networks of other systems as denoisers, and denoisers as the velocity fields of other systems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_numbers, owner_name
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.parameterization import Velocity
from scoresde.sde import StraightSDE

TIMES, SIGNS = ("noise_to_data", "data_to_noise"), ("data - noise", "noise - data")


@dataclass(frozen=True, kw_only=True)
class FlowConvention:
    """How a flow-matching network is called and what it predicts, on the straight path x = (1 − t) x0 + t ε.

        time            the network's own time             its prediction, if it is the rate of x in its own time
        data_to_noise   t                                  dx/dt = ε − x0
        noise_to_data   τ = 1 − t                          dx/dτ = x0 − ε

    Args:
        time: Which way its time runs.
        call: The places or names of state and time: "x, t", "t, x", "x, timestep=t", "hidden_states=x, timestep=t".
        scale: It is given its time times this: 1, or 1000.
        predicts: "data - noise" or "noise - data"; None: the rate of x in its own time, as in every system listed here.
    """

    time: str = "noise_to_data"
    call: str = "x, t"
    scale: float = 1.0
    predicts: str | None = None

    def __post_init__(self) -> None:
        check_choice("a flow-matching network", "time", self.time, TIMES)
        check_numbers("a flow-matching network", "0 < scale <= 1e6", scale=self.scale)
        if self.predicts is not None:
            check_choice("a flow-matching network", "predicts", self.predicts, SIGNS)
        if not isinstance(self.call, str) or sorted(what for _, what in self.places) != ["t", "x"]:
            raise ValueError(
                f"a flow-matching network needs call to say where the state x and the time t go, as 'x, t', 't, x' or "
                f"'x, timestep=t', got {self.call!r}."
            )

    @property
    def places(self) -> list[tuple[str, str]]:
        """(name, "x" or "t") in the order of the call; the name is empty for what goes by its place."""
        parts = [part.rpartition("=") for part in self.call.split(",")]
        return [(name.strip(), what.strip()) for name, _, what in parts]

    @property
    def sign(self) -> int:
        """Of ε − x0 in what it predicts."""
        return 1 if (self.predicts or SIGNS[TIMES.index(self.time)]) == "noise - data" else -1


# Read in the code of: torchcfm's ConditionalFlowMatcher and UNetModel; flow_matching's CondOTProbPath and ODESolver;
# RectifiedFlow's loss; diffusers' FlowMatchEulerDiscreteScheduler with the pipelines of Stable Diffusion 3 and Flux.
CONVENTIONS = {
    "flow_matching": FlowConvention(),
    "torchcfm": FlowConvention(call="t, x"),
    "rectified_flow": FlowConvention(scale=999.0),
    "diffusers": FlowConvention(time="data_to_noise", call="x, timestep=t", scale=1000.0),
    "flux": FlowConvention(time="data_to_noise", call="x, timestep=t"),
}


@runtime_checkable
class HasSample(Protocol):
    """What diffusers' models return: an object whose `sample` is the prediction."""

    sample: Tensor


class FlowNetwork(nn.Module):
    """A flow-matching network of another system as the network of `Velocity`: (x, label, **cond) -> ε − x0.

    Args:
        net: A module or function, called as the convention says, and with conditions by name; returns a tensor, a tuple
            that begins with it, or something that has it as `sample`.
        convention: Of the network.
    """

    def __init__(self, net: Callable[..., Any], convention: FlowConvention) -> None:
        super().__init__()
        self.net, self.convention = net, convention

    def forward(self, x: Tensor, label: Tensor, **cond: Any) -> Tensor:
        values = {"x": x, "t": label}
        placed = [values[what] for name, what in self.convention.places if not name]
        named = {name: values[what] for name, what in self.convention.places if name}
        output = _prediction(self.net(*placed, **named, **cond), self.net)
        if output.shape != x.shape:
            raise ValueError(
                f"{_name(self.net)}, called as ({self.convention.call}), must return the shape of the state "
                f"{tuple(x.shape)}, got {tuple(output.shape)}: say with call=... where state and time go, or pass a "
                f"function."
            )
        return self.convention.sign * output


def flow_denoiser(
    net: Callable[..., Any], convention: str | FlowConvention = "flow_matching", **options: Any
) -> NetworkDenoiser:
    """A flow-matching network of another system as a denoiser on `StraightSDE`: `flow_denoiser(net, "torchcfm")`.

                           time            call              scale   systems
        "flow_matching"    noise to data   x, t              1       flow_matching, SiT
        "torchcfm"         noise to data   t, x              1       torchcfm
        "rectified_flow"   noise to data   x, t              999     RectifiedFlow
        "diffusers"        data to noise   x, timestep=t     1000    FlowMatchEulerDiscreteScheduler, Stable Diffusion 3
        "flux"             data to noise   x, timestep=t     1       Flux

    All of them predict the rate of x in their own time, so that direction and sign turn together. Conditions are given
    by name to the denoiser, and passed on. Where mini-batch optimal transport or reflow paired data with noise, the
    flow is right and the score is not, as x_t is no longer α x0 + σ ε with independent ε: use `ProbabilityFlowODE`.

    Args:
        net: A module or function; parameters are shared, and may be of half precision.
        convention: A name of this table, or a `FlowConvention`.
        options: Of `FlowConvention`, where the network differs from it.
    Returns:
        A `NetworkDenoiser`. `check_flow_network` tells whether direction, sign and scale are right.

    References:
        Lipman et al., "Flow Matching for Generative Modeling", 2023, arXiv:2210.02747.
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
        Tong et al., "Improving and Generalizing Flow-Based Generative Models", 2024, arXiv:2302.00482.
        Esser et al., "Scaling Rectified Flow Transformers", 2024, arXiv:2403.03206.
    """
    if not callable(net):
        raise TypeError(f"flow_denoiser needs a network or a function, got {net!r}.")
    chosen = _convention("flow_denoiser", convention, options)
    label = "time" if chosen.time == "data_to_noise" else "data_time"
    rule = Velocity(label=label, label_scale=chosen.scale, scale_input=False)
    return NetworkDenoiser(FlowNetwork(net, chosen), StraightSDE(), rule)


class VelocityField(nn.Module):
    """A denoiser as the velocity field of another system, on the straight path; made by `velocity_field`."""

    def __init__(self, denoiser: Denoiser, convention: FlowConvention) -> None:
        super().__init__()
        straight = isinstance(denoiser.sde, StraightSDE)
        self.denoiser, self.convention = denoiser if straight else denoiser.on(StraightSDE()), convention

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """The prediction of the convention: state (B, *) and time () or (B,) as its `call` says, conditions by name."""
        places = self.convention.places
        given = {what: value for (_, what), value in zip(places, args, strict=False)}
        names = {**{name: what for name, what in places if name}, "x": "x", "t": "t"}
        given |= {names[name]: named.pop(name) for name in list(named) if name in names}
        if len(args) > 2 or set(given) != {"x", "t"}:
            raise TypeError(f"This velocity field is called as ({self.convention.call}), with conditions by name.")
        x, time = given["x"], torch.as_tensor(given["t"], device=given["x"].device).double() / self.convention.scale
        t = time if self.convention.time == "data_to_noise" else 1 - time
        t = t.reshape(()) if t.numel() == 1 else t
        # adaptive solvers try times beyond the last
        return self.convention.sign * self.denoiser.velocity(x, t.clamp(self.denoiser.sde.t_min, 1), **named)


def velocity_field(
    denoiser: Denoiser, convention: str | FlowConvention = "flow_matching", **options: Any
) -> VelocityField:
    """Any denoiser as a velocity field that other systems integrate: `odeint(velocity_field(d, "torchcfm"), x, t)`.

        data_to_noise   u(x, t) = E[ε − x0 | x_t = x]            noise_to_data   −u(x, 1 − τ)

    A denoiser of another process is put on the straight path first, see `OnProcess`. `flow_denoiser` of the result,
    with the same convention, is the denoiser again.

    Args:
        denoiser: Of any process; parameters are shared.
        convention, options: How the field is to be called and what it predicts, as for `flow_denoiser`.
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"velocity_field needs a denoiser, got a {type(denoiser).__name__}.")
    return VelocityField(denoiser, _convention("velocity_field", convention, options))


def _convention(owner: str, convention: str | FlowConvention, options: Mapping[str, Any]) -> FlowConvention:
    if not isinstance(convention, FlowConvention):
        check_choice(owner, "convention", convention, tuple(CONVENTIONS))
        convention = CONVENTIONS[convention]
    unknown = [name for name in options if name not in vars(convention)]
    if unknown:
        raise TypeError(
            f"{owner} has the options {', '.join(vars(convention))}, got {unknown[0]}={options[unknown[0]]!r}."
        )
    return replace(convention, **options)


def _prediction(output: Any, net: Callable[..., Any]) -> Tensor:
    """The tensor in what a network returns."""
    if isinstance(output, Mapping):
        output = output.get("sample")
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    elif isinstance(output, HasSample) and not isinstance(output, Tensor):
        output = output.sample
    if not isinstance(output, Tensor):
        raise TypeError(
            f"{_name(net)} must return a tensor, a tuple that begins with one, or an object with `sample`, got "
            f"a {type(output).__name__}."
        )
    return output


def _name(net: Callable[..., Any]) -> str:
    return owner_name(net) if isinstance(net, nn.Module) else "The function"
