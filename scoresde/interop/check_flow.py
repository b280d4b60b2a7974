"""Whether a flow-matching network was wrapped the right way round."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import NetworkDenoiser
from scoresde.interop.flow import SIGNS, TIMES, FlowNetwork
from scoresde.parameterization import Velocity
from scoresde.sde import StraightSDE

ASKED = (0.1, 0.3, 0.7, 0.9)  # times on the straight path
SCALES = (1.0, 1000.0)
BETTER, WORST = 1.25, 2.0  # how much less another choice must leave; how much more than Gaussian data a network may


@torch.no_grad()
def check_flow_network(
    denoiser: NetworkDenoiser, x0: Tensor, *, generator: torch.Generator | None = None, **cond: Any
) -> None:
    """Raise one sentence if direction of time, sign or scale of a flow-matching network are wrong, by its loss on data.

        E‖û − (ε − x0)‖²/d at t = 0.1, 0.3, 0.7, 0.9,       beside what the best linear û of these data leaves

    Every other choice is tried: with labels t and 1 − t, times 1 and 1000, of either sign. 16 network calls.

    Args:
        denoiser: What `flow_denoiser` made, or another `NetworkDenoiser` with a `Velocity` parameterization.
        x0: Data that the network was trained for, in its own scaling, (B, *); a few hundred entries in all suffice.
        generator: Of the noise.
        cond: Conditions.
    Raises:
        TypeError: If the denoiser predicts something else.
        ValueError: If another choice fits better, with the option to turn; or if none fits.
    """
    if not isinstance(denoiser, NetworkDenoiser) or not isinstance(denoiser.parameterization, Velocity):
        raise TypeError("check_flow_network needs a NetworkDenoiser that predicts Velocity, as flow_denoiser makes.")
    rule, net, sde = denoiser.parameterization, denoiser.net, StraightSDE()
    noise = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
    scales = [rule.label_scale, *(scale for scale in SCALES if not 0.9 < scale / rule.label_scale < 1.1)]
    left: dict[tuple[str, float, int], float] = {}
    for label in (rule.label, "time" if rule.label == "data_time" else "data_time"):
        for scale in scales:
            other = NetworkDenoiser(net, sde, replace(rule, label=label, label_scale=scale))
            predicted = [other.velocity((1 - t) * x0 + t * noise, t, **cond) for t in ASKED]
            for sign in (1, -1):
                losses = torch.stack([(sign * u - (noise - x0)).double().square().mean() for u in predicted])
                left[label, scale, sign] = losses.mean().nan_to_num(nan=math.inf).item()
    allowed, own = _left_by_gaussian(x0), (rule.label, rule.label_scale, 1)
    best = min(left, key=lambda choice: left[choice])
    if left[own] <= min(BETTER * left[best], WORST * allowed):
        return
    what = f"the network's loss on these data is {left[own]:.3g} per entry, where noise leaves {allowed:.3g} at most"
    if left[best] > WORST * allowed:
        raise ValueError(
            f"check_flow_network: {what}, and no other direction of time, sign or scale makes it less than "
            f"{left[best]:.3g}: it is not trained for data of this scale on the straight path."
        )
    raise ValueError(f"check_flow_network: {what}; it is {left[best]:.3g} with {_options(denoiser, own, best)}.")


def _left_by_gaussian(x0: Tensor) -> float:
    """The mean square error of the best û that is linear in x, for data of this mean and variance."""
    variance = float(x0.double().var(correction=0))
    parts = []
    for t in ASKED:
        covariance, total = t - (1 - t) * variance, (1 - t) ** 2 * variance + t**2
        parts.append(1 + variance - covariance**2 / total)
    return sum(parts) / len(parts)


def _options(denoiser: NetworkDenoiser, own: tuple[str, float, int], best: tuple[str, float, int]) -> str:
    """What to write, in the words of `flow_denoiser` or of `Velocity`."""
    words, flow = [], denoiser.net.convention if isinstance(denoiser.net, FlowNetwork) else None
    if best[0] != own[0]:
        words.append(f"label={best[0]!r}" if flow is None else f"time={TIMES[best[0] == 'time']!r}")
    if flow is None:
        words += [f"label_scale={best[1]:g}"] * (best[1] != own[1]) + ["the network's output negated"] * (best[2] < 0)
    else:
        words += [f"scale={best[1]:g}"] * (best[1] != own[1])
        sign = flow.sign * best[2]
        if sign != replace(flow, time=TIMES[best[0] == "time"], predicts=None).sign or flow.predicts is not None:
            words.append(f"predicts={SIGNS[sign > 0]!r}")
    return " and ".join(words)
