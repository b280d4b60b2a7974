"""Solvers with an exact inverse: round trips to rounding with any number of steps, whatever the network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde import SDE, expand
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Levels
from scoresde.solvers.ancestral import DDIM
from scoresde.solvers.base import Plan, Step, StepSolver
from scoresde.solvers.tabulated import TabulatedSolver, linear


class ReversibleState(NamedTuple):
    """A state, and what a reversible solver needs besides to follow its own path back exactly.

    Args:
        x: The state itself, (B, *): data at t_end, the latent at t = 1.
        residual: Of the size of one step's error, (B, *). None is zero: the state does not come from this solver.
    """

    x: Tensor
    residual: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class ReversibleSolver(StepSolver):
    """A solver whose steps have an exact inverse, `Plan.inverse`, that needs no smoothness of the network.

        latent = solver.encode(denoiser, x)             data x at t_end to the latent at t = 1
        x      = solver.decode(denoiser, latent)        the same x, to rounding
        sample = solver(denoiser, latent)               and on to x̂0 with `denoise`, which has no inverse

    A latent is a `ReversibleState`; a plain tensor stands for one without residual, and `latent.x` alone is an
    ordinary latent, good to the order of the solver. `transport` gives the residual at the data end too, for round
    trips that start from a latent.
    """

    deterministic: ClassVar[bool] = True

    def __call__(self, denoiser: Denoiser, x: Tensor | ReversibleState, **options: Any) -> Tensor:
        """Integrate from x at t = 1, a tensor (B, *) or a latent, to data (B, *). Options as in `StepSolver`."""
        x, residual = _state(x)
        plan = options.pop("plan", None) or self.plan(denoiser, device=x.device)
        return super().__call__(denoiser, x, plan=_started(plan, residual), **options)

    def trajectory(self, denoiser: Denoiser, x: Tensor | ReversibleState, **options: Any) -> Iterator[Step]:
        """Yield x at every time of the grid, from a tensor or a latent. Options as in `StepSolver`."""
        x, residual = _state(x)
        plan = options.pop("plan", None) or self.plan(denoiser, device=x.device)
        return super().trajectory(denoiser, x, plan=_started(plan, residual), **options)

    def encode(self, denoiser: Denoiser, x: Tensor | ReversibleState) -> ReversibleState:  # type: ignore[override]
        """The latent at t = 1 of data x (B, *) at t_end."""
        return self.transport(denoiser, x, backward=True)

    def decode(self, denoiser: Denoiser, latent: Tensor | ReversibleState) -> Tensor:
        """The data (B, *) at t_end of a latent at t = 1: the exact inverse of `encode`, without the call at t_end."""
        return self.transport(denoiser, latent).x

    @torch.no_grad()
    def transport(
        self, denoiser: Denoiser, start: Tensor | ReversibleState, *, backward: bool = False
    ) -> ReversibleState:
        """From t = 1 to t_end, or from t_end to t = 1 if `backward`; each is the exact inverse of the other."""
        x, residual = _state(start)
        plan = self.plan(denoiser, device=x.device)
        first = plan.times[0]
        if not backward:
            plan, state = _started(plan, residual), None
            x = x if plan.start is None else plan.start(denoiser.sde, x, torch.ones_like(first), first)
            for index in range(len(plan.times) - 1):
                x, state = plan.stride(index, x, _no_noise, state)
            return ReversibleState(x, self._residual(plan, x, state))
        assert plan.inverse is not None
        state = self._history(plan, x, residual)
        for index in reversed(range(len(plan.times) - 1)):
            x, state = plan.inverse(index, x, state)
        x = x if plan.start is None else plan.start(denoiser.sde, x, first, torch.ones_like(first))
        return ReversibleState(x, state)

    def _residual(self, plan: Plan, x: Tensor, state: Any) -> Tensor:
        """The residual at the data end of what the last step returned."""
        return state  # type: ignore[no-any-return]

    def _history(self, plan: Plan, x: Tensor, residual: Tensor | None) -> Any:
        """What the last step must have returned besides x, from the residual at the data end."""
        return residual

    def _plan_ends(self, denoiser: Denoiser, backward: bool) -> None:
        if backward:
            raise ValueError(f"{type(self).__name__} runs back through the inverse of its steps: call encode.")
        if not float(denoiser.sde.sigma(torch.tensor(self.end(denoiser.sde), dtype=torch.float64))) > 0:
            raise ValueError(
                f"{type(self).__name__} needs noise at the data end: σ is 0 at t_end={self.end(denoiser.sde)}. "
                f"Use t_end > 0, for example the SDE's t_min={denoiser.sde.t_min:g}."
            )

    @abstractmethod
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        """Prepare a run whose plan has an inverse."""


@dataclass(frozen=True, kw_only=True)
class Reversible(ReversibleSolver):
    """Any deterministic one-step solver Φ made exactly reversible, by coupling two copies y, z of the state.

        y_s = Φ_t→s(z_t) + λ κ (y_t − z_t)                                          (McCallum & Foster 2024)
        z_s = y_s + κ (z_t − Φ_s→t(y_s))                         κ = c_s/c_t,   c = √(ν σ),   ν² = α² + σ²
        x   = (y + z)/2

    Twice the network calls of Φ. The mean is second order already for Φ = DDIM (λ → 1), which then is the cheapest; its
    residual is y − z. The paper's increments are taken in the coordinates x/c: along a direction in which Φ contracts
    by r, a difference y − z is multiplied by λ κ²/r, so c must fall like the square root of what the flow contracts
    most, σ, or differences grow; in x and in x/α they grow by up to σ_1/σ_end.

    Args:
        solver: The one-step solver Φ; its own steps, grid and ends are not used.
        coupling: λ in (0, 1]. Below 1 it damps differences by λ per step when sampling, and encoding multiplies them by
            1/λ, as it does rounding errors: keep λ^(−steps) small.

    References:
        McCallum and Foster, "Efficient, Accurate and Stable Gradients for Neural ODEs", 2024, arXiv:2410.11648.
    """

    steps: int = 20
    grid: Grid = karras_grid
    solver: StepSolver = field(default_factory=DDIM)
    coupling: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.coupling <= 1:
            raise ValueError(f"Reversible needs 0 < coupling <= 1, got coupling={self.coupling}.")
        if not self.solver.deterministic or getattr(self.solver, "memory", 0) > 0:
            raise ValueError(
                f"Reversible needs a deterministic one-step solver, got {type(self.solver).__name__}: it adds noise or "
                f"looks back at earlier steps. Use DDIM(eta=0) or Heun."
            )

    def step(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, noise: NoiseSource, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        kappa = expand(_scale(denoiser.sde, s, 0.5) / _scale(denoiser.sde, t, 0.5), x)
        return self._down(
            lambda x: self.solver.step(denoiser, x, t, s, noise, None)[0],
            lambda x: self.solver.step(denoiser, x, s, t, noise, None)[0],
            kappa, x, state,
        )  # fmt: skip

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        self._plan_ends(denoiser, backward)
        inner = replace(self.solver, steps=self.steps, grid=self.grid, t_end=self.t_end, denoise=False)
        down = inner.plan(denoiser, device=device)
        up = inner.plan(denoiser, device=device, backward=True)
        times = self._times(denoiser.sde, False)
        landing = self._lands(denoiser.sde, times, False)
        scales = _scale(denoiser.sde, times, 0.5)
        kappas: list[float] = (scales[1:] / scales[:-1]).tolist()

        def maps(index: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], float]:
            return (
                lambda x: down.stride(index, x, _no_noise, None)[0],
                lambda x: up.stride(len(kappas) - 1 - index, x, _no_noise, None)[0],
                kappas[index],
            )

        def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
            if index == len(kappas):
                return down.denoiser(x, down.times[-1]), state
            return self._down(*maps(index), x, state)

        def inverse(index: int, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self._up(*maps(index), x, state)

        return Plan(down.denoiser, down.times, stride, landing, inverse, self._start())

    def _down(
        self, down: Callable[[Tensor], Tensor], up: Callable[[Tensor], Tensor], kappa: Any, x: Tensor, d: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """From the mean x and the difference d = y − z at t to those at s."""
        z = x if d is None else x - 0.5 * d
        y_s = down(z) if d is None else down(z) + self.coupling * kappa * d
        d_s = kappa * (up(y_s) - z)
        return y_s - 0.5 * d_s, d_s

    def _up(
        self, down: Callable[[Tensor], Tensor], up: Callable[[Tensor], Tensor], kappa: Any, x: Tensor, d: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The inverse of `_down`."""
        y_s = x if d is None else x + 0.5 * d
        z = up(y_s) if d is None else up(y_s) - d / kappa
        d_t = (y_s - down(z)) / (self.coupling * kappa)
        return z + 0.5 * d_t, d_t


@dataclass(frozen=True, kw_only=True)
class OBELM(TabulatedSolver, ReversibleSolver):
    """Optimal bidirectional explicit linear two-step solver; second order, one network call per step both ways.

        x_s = Φ_t→s(x_t) + γ (x_u − Φ_t→u(x_t))                   Φ the DDIM step, one x̂0(x_t) for both; u > t > s
        γ   = c_s/c_u (h/h')²,   h = w_s − w_t,   h' = w_t − w_u

    The bracket is the error of the step back to u, so γ is what cancels the error of the step to s: to leading order in
    any clock w and any scale c. The first step is DDIM's.

        "flow"     w = asinh ½ logsnr,  c = ν^(3/4) σ^(1/4),  ν² = α² + σ²
        "sigma"    w = σ/α,  c = α:  the published O-BELM              (Wang et al. 2024)

    Residuals (what x_t differs by from a DDIM step) are multiplied by γ per step, by its inverse when encoding. Over a
    run the product is (c_end/c_1) (h_last/h_first)²: near 1 with "flow"; as small as (σ_end/σ_1)² with "sigma", whose
    latents of given data are that much less accurate.

    Args:
        clock: "flow" or "sigma".

    References:
        Wang et al., "BELM: Bidirectional Explicit Linear Multi-step Sampler for Exact Inversion in Diffusion Models",
            2024, arXiv:2410.07273.
        Zhang et al., "Exact Diffusion Inversion via Bi-directional Integration Approximation", 2023, arXiv:2307.10829.
    """

    lands: ClassVar[bool] = False

    steps: int = 40
    grid: Grid = karras_grid
    clock: str = "flow"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clock not in ("flow", "sigma"):
            raise ValueError(f"OBELM needs clock 'flow' or 'sigma', got {self.clock!r}.")

    @property
    def memory(self) -> int:
        return 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        ratio = levels.sigma[1:] / levels.sigma[:-1]  # Φ_t→s = ratio x + push x̂0
        push = levels.alpha[1:] - ratio * levels.alpha[:-1]
        back = levels.sigma[:-1] / levels.sigma[1:]
        pull = levels.alpha[:-1] - back * levels.alpha[1:]
        gamma = self._gamma(levels)
        keep, now, before = ratio, push, torch.ones_like(ratio)  # a residual at the start is added as it is
        keep = torch.cat([keep[:1], ratio[1:] - gamma * back[:-1]])
        now = torch.cat([now[:1], push[1:] - gamma * pull[:-1]])
        return keep, now, torch.cat([before[:1], gamma])

    def update(
        self,
        denoiser: Denoiser,
        x: Tensor,
        t: Tensor,
        s: Tensor,
        row: tuple[Any, ...],
        noise: NoiseSource,
        state: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        keep, now, before = row
        x0_hat = denoiser(x, t)
        x_s = linear((keep, x), (now, x0_hat)) if state is None else linear((keep, x), (now, x0_hat), (before, state))
        return x_s, x

    @torch.no_grad()
    def plan(self, denoiser: Denoiser, *, device: Any = None, backward: bool = False) -> Plan:
        self._plan_ends(denoiser, backward)
        plan = super().plan(denoiser, device=device)
        columns = self.table(Levels.of(denoiser.sde, self._times(denoiser.sde, False)))
        rows = list(zip(*(column.tolist() for column in columns), strict=True))

        def inverse(index: int, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            keep, now, before = rows[index]
            x0_hat = plan.denoiser(state, plan.times[index])
            return state, linear((1 / before, x), (-keep / before, state), (-now / before, x0_hat))

        return replace(plan, inverse=inverse)

    def _gamma(self, levels: Levels) -> Tensor:
        if self.clock == "sigma":
            clock, scale = levels.ratio, levels.alpha
        else:
            clock, scale = torch.asinh(levels.lam), _scale(levels.sde, levels.t, 0.25)
        h = clock.diff(dim=0)
        return scale[2:] / scale[:-2] * (h[1:] / h[:-1]).square()

    def _residual(self, plan: Plan, x: Tensor, state: Any) -> Tensor:
        return state - self._back(plan, x)  # type: ignore[no-any-return]

    def _history(self, plan: Plan, x: Tensor, residual: Tensor | None) -> Any:
        back = self._back(plan, x)
        return back if residual is None else back + residual

    def _back(self, plan: Plan, x: Tensor) -> Tensor:
        """Φ of the last interval, from the data end to the time before."""
        keep, now, _ = (float(column[0]) for column in self.table(self._last(plan)))
        return linear((keep, x), (now, plan.denoiser(x, plan.times[-1])))

    def _last(self, plan: Plan) -> Levels:
        return Levels.of(plan.denoiser.sde, torch.stack([plan.times[-1], plan.times[-2]]).cpu())


def _scale(sde: SDE, t: Tensor, power: float) -> Tensor:
    """c = ν^(1 − power) σ^power in float64, shape of t."""
    alpha, sigma = sde.alpha(t.double()), sde.sigma(t.double())
    return torch.hypot(alpha, sigma) ** (1 - power) * sigma**power


def _state(x: Tensor | ReversibleState) -> ReversibleState:
    return x if isinstance(x, ReversibleState) else ReversibleState(x)


def _started(plan: Plan, residual: Tensor | None) -> Plan:
    """The same run with a residual at its start."""
    if residual is None:
        return plan

    def stride(index: int, x: Tensor, noise: NoiseSource, state: Any) -> tuple[Tensor, Any]:
        return plan.stride(index, x, noise, residual if index == 0 else state)

    return replace(plan, stride=stride)


def _no_noise(t: Tensor, s: Tensor) -> Tensor:
    raise AssertionError("A deterministic solver asked for noise.")
