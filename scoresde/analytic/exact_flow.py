"""The exact probability flow of a known law, and how far a solver ends from it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoresde.analytic.analytic_denoiser import LEAST_SIGNAL, AnalyticDenoiser
from scoresde.analytic.gaussian import GaussianDenoiser
from scoresde.denoiser import Denoiser
from scoresde.sde import VESDE, StraightSDE

if TYPE_CHECKING:
    from scoresde.solvers import Solver

FLOW_BATCH = 1000  # paths that share their adaptive steps


@dataclass(frozen=True)
class FlowError:
    """Result of `flow_error`; distances are root mean squares over the entries of an event, in units of the data's rms.

    Attributes:
        median: Of the samples' distances: the typical path.
        rms: Root mean square of the distances: dominated by paths near the boundary between two modes.
        nfe: Network calls per sample.
        per_sample: The distances, (n,).
    """

    median: float
    rms: float
    nfe: float
    per_sample: Tensor


@torch.no_grad()
def flow_error(
    solver: Solver,
    denoiser: Denoiser,
    x: Tensor | None = None,
    *,
    n: int = 2000,
    reference: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> FlowError:
    """Distance of a solver's output to the exact probability-flow solution at noise 0 from the same x_1.

        problem = GaussianMixtureDenoiser.random(VPSDE(), 64, 10)
        x = VPSDE().prior_sample((2000, 64), dtype=torch.float64)
        reference = exact_flow(problem, x)
        for solver in (DDIM(steps=20), Heun(steps=10)):
            print(solver, flow_error(solver, problem, x, reference=reference))

    Meant for deterministic solvers: the noise of a stochastic one counts as error. A call of forward, eps, score or
    velocity is one network call, and `covariance_diag` none, as a variance head shares the network's call.

    Args:
        solver: Any solver.
        denoiser: An exact denoiser.
        x: Starts at t = 1, (n, *); None draws n from the prior, in float64.
        n: Number of starts to draw.
        reference: `exact_flow(denoiser, x)`, if it is known already; needs x.
        generator: Source of the starts, on the denoiser's device.
    """
    if x is None:
        if reference is not None or not isinstance(denoiser, AnalyticDenoiser):
            raise ValueError(
                f"flow_error needs x with {'a reference' if reference is not None else type(denoiser).__name__}, "
                f"got None. Pass the starts that belong to it, for example sde.prior_sample((n, d))."
            )
        buffer = next(denoiser.buffers())
        x = denoiser.sde.prior_sample(
            (n, *denoiser.event_shape), generator=generator, device=buffer.device, dtype=buffer.dtype
        )
    reference = exact_flow(denoiser, x) if reference is None else reference
    rows: list[int] = []
    error = (solver(_counted(denoiser, rows), x) - reference).flatten(1).square().mean(1).sqrt()
    scale = denoiser.rms() if isinstance(denoiser, AnalyticDenoiser) else float(reference.square().mean().sqrt())
    error = error / scale
    return FlowError(float(error.median()), float(error.square().mean().sqrt()), sum(rows) / len(x), error)


@torch.no_grad()
def exact_flow(denoiser: Denoiser, x: Tensor, *, rtol: float = 1e-9, noise_end: float | None = None) -> Tensor:
    """The probability-flow solution at noise 0 from x at t = 1, in float64.

        dx̄ = ε̂ d(σ/α),   x̄ = x/α            from σ_1/α_1 to `noise_end`, then x̂0

    Closed form for `GaussianDenoiser`. Otherwise an adaptive solve; its end is off by O((noise_end / std)²) std, 1e-8
    of the smallest standard deviation of a mixture by default. An `AnalyticDenoiser` is solved with α = 1, or
    on the straight path if its SDE ends without signal, so noise_end may be below the least noise of its SDE; any other
    is solved on its own SDE, down to t = 0 at most.

    Args:
        denoiser: A denoiser with an exact score.
        x: States at t = 1 of its SDE, (B, *).
        rtol: Tolerance of the solve.
        noise_end: σ/α of the last call; None is 1e-4 of the law's finest scale, or 1e-4 for other denoisers.
    """
    from scoresde.solvers import ProbabilityFlowODE  # laws are there without solvers

    atol = rtol
    one = torch.ones((), dtype=torch.float64, device=x.device)
    alpha, sigma = denoiser.sde.alpha(one), denoiser.sde.sigma(one)
    if isinstance(denoiser, GaussianDenoiser):
        alpha = torch.maximum(alpha, LEAST_SIGNAL * sigma)
        return denoiser.flow(x.double() / alpha, sigma / alpha)
    if isinstance(denoiser, AnalyticDenoiser):
        noise_end = 1e-4 * denoiser.finest_scale() if noise_end is None else noise_end
        atol = rtol * min(1.0, denoiser.rms())
        if denoiser.sde.ends_silent:
            denoiser, x, t_end = denoiser.on(StraightSDE()), x.double() / sigma, noise_end / (1 + noise_end)
        else:
            process = VESDE(sigma_min=noise_end, sigma_max=float(sigma / alpha))
            denoiser, x, t_end = denoiser.on(process), x.double() / alpha, 0.0
    else:
        logsnr = -2 * math.log(1e-4 if noise_end is None else noise_end)
        x, t_end = x.double(), float(denoiser.sde.time(torch.tensor(logsnr, dtype=torch.float64)).clamp(0, 0.5))
    solver = ProbabilityFlowODE(method="dopri8", rtol=rtol, atol=atol, t_end=t_end)
    return torch.cat([solver(denoiser, some) for some in x.split(FLOW_BATCH)])


def _counted(denoiser: Denoiser, rows: list[int]) -> Denoiser:
    """The same denoiser, which notes the number of rows of each of its calls."""
    counted = copy.copy(denoiser)

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: Tensor, t: Any, **cond: Any) -> Any:
            rows.append(len(x))
            return method(x, t, **cond)

        return call

    def select(index: Tensor, batch: int) -> Denoiser | None:
        part = denoiser.select(index, batch)
        return None if part is None else _counted(part, rows)

    for name in (
        "forward", "x0", "eps", "eps_at", "v", "v_at", "score", "score_at", "velocity", "velocity_at",
        "mean_and_covariance",
    ):  # fmt: skip
        # of the original, so that calls among them count once
        object.__setattr__(counted, name, counting(getattr(denoiser, name)))
    object.__setattr__(counted, "select", select)
    return counted
