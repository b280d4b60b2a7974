"""Multistep solvers: DPM-Solver and DPM-Solver++ of orders 2 and 3, and iPNDM; one network call per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, karras_grid
from scoresde.sde.levels import Levels
from scoresde.solvers.tabulated import TabulatedSolver, linear
from scoresde.solvers.transfer import Transfer, check_choice, earlier, ends, orders_of_a_run, predict


@dataclass(frozen=True, kw_only=True)
class DPMSolverMultistep(TabulatedSolver):
    """Multistep DPM-Solver; deterministic, one network call per step.

        d_1 = (q − q')/r'                           r' = h'/h, r'' = h''/h, the steps before against this one
        2   x_s = a x_t + b (q + ½ d_1)
        3   d_2 = (d_1 − (q' − q'')/r'')/(r' + r'')
            x_s = a x_t + b (q + φ_2/φ_1 (d_1 + r' d_2) + φ_3/φ_1 d_2)

    where q is x̂0 or ε̂, primes are the values of earlier steps, and a, b, φ are those of `scoresde.solvers.transfer`.
    The published third-order step is this one and converges with order 2: the curvature of q is 2 d_2, not d_2. The
    first steps, and a step to σ_s = 0, are of lower order; where a run starts at little noise, the very first limits
    the whole to order 2. Good at 10-30 steps.

    Args:
        order: 2 or 3.
        prediction: What is q: "data" (DPM-Solver++) or "eps" (DPM-Solver).
        exact: Whether to integrate the line or parabola through the values of q exactly: φ_2/φ_1 for ½ (diffusers'
            solver_type "heun") and 2 φ_3/φ_1 for φ_3/φ_1, which is of order 3; below 20 steps the published weights
            are often the better ones.
        lower_order_final: Whether the last steps of a run fall to order 2 and 1, as is common below 15 steps.

    References:
        Lu et al., "DPM-Solver", 2022, arXiv:2206.00927.
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095, Algorithm 2.
    """

    deterministic: ClassVar[bool] = True

    steps: int = 20
    grid: Grid = karras_grid
    order: int = 2
    prediction: str = "data"
    exact: bool = False
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (2, 3))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    @property
    def memory(self) -> int:
        return self.order - 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        step = Transfer.between(*ends(levels), self.prediction)
        orders = orders_of_a_run(step, self.order, self.steps if self.lower_order_final else None)
        h = torch.where(step.finite, levels.lam.diff(dim=0), 1)
        slope, curve = step.shares(2)
        one_back = torch.where(orders >= 2, h / earlier(h, 1, 1.0), 0)  # 1/r'
        d_1 = one_back * (slope if self.exact else 0.5)
        if self.order == 2:
            return step.keep, step.gain * (1 + d_1), -step.gain * d_1
        two_back = h / earlier(h, 2, 1.0)  # 1/r''
        both = 1 / (1 / torch.where(orders >= 2, one_back, 1) + 1 / two_back)  # 1/(r' + r'')
        bend = both * (slope * earlier(h, 1, 1.0) / h + curve * (2 if self.exact else 1))  # of d_1 − d_1'
        third = orders == 3
        near = torch.where(third, one_back * (slope + bend), d_1)
        far = torch.where(third, two_back * bend, 0)
        return step.keep, step.gain * (1 + near), -step.gain * (near + far), step.gain * far

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        keep, *weights = row
        history = (predict(denoiser, x, t, self.prediction), *(state or ()))
        x_s = linear((keep, x), *zip(weights, history, strict=False))
        return x_s, history[: len(weights) - 1]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP2M(DPMSolverMultistep):
    """Second-order multistep DPM-Solver++; deterministic, one network call per step.

        D   = x̂0(x_t) + h / (2 h') (x̂0(x_t) − x̂0')               h = λ_s − λ_t,  λ = ½ logsnr
        x_s = σ_s/σ_t x_t − α_s (e^(−h) − 1) D                     (Lu et al. 2022, Algorithm 2)

    where primes are the previous step's values; the first step has D = x̂0 (first order), and so has a step to σ_s = 0.
    Good at 10-30 steps.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    order: ClassVar[int] = 2  # type: ignore[misc]
    prediction: ClassVar[str] = "data"  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP3M(DPMSolverMultistep):
    """Third-order multistep DPM-Solver++; deterministic, one network call per step.

    `DPMSolverMultistep(order=3)` with x̂0 for q. As published it converges with order 2, with `exact` with order 3.

    References:
        Lu et al., "DPM-Solver++", 2022, arXiv:2211.01095.
    """

    order: ClassVar[int] = 3  # type: ignore[misc]
    prediction: ClassVar[str] = "data"  # type: ignore[misc]


_ADAMS_BASHFORTH = {
    1: (1.0, 0.0, 0.0, 0.0),
    2: (3 / 2, -1 / 2, 0.0, 0.0),
    3: (23 / 12, -16 / 12, 5 / 12, 0.0),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True, kw_only=True)
class IPNDM(TabulatedSolver):
    """Improved pseudo linear multistep method: DDIM with ε̂ extrapolated as by Adams and Bashforth.

        x_s = α_s/α_t x_t + (σ_s − α_s σ_t/α_t) ε',      ε' = (55 ε̂ − 59 ε̂' + 37 ε̂'' − 9 ε̂''')/24

    The weights are those of equal steps: of full order on a grid that is uniform in σ/α, of second order on others. The
    first steps, and a step to σ_s = 0, are of lower order.

    Args:
        order: From 1 to 4.

    References:
        Liu et al., "Pseudo Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv:2202.09778.
        Zhang and Chen, "Fast Sampling of Diffusion Models with Exponential Integrator", 2023, arXiv:2204.13902.
    """

    deterministic: ClassVar[bool] = True

    steps: int = 20
    grid: Grid = karras_grid
    order: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "order", self.order, (1, 2, 3, 4))

    @property
    def memory(self) -> int:
        return self.order - 1

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        step = Transfer.between(*ends(levels), "eps")
        weights = torch.tensor([_ADAMS_BASHFORTH[order][: self.order] for order in range(1, 5)], dtype=torch.float64)
        chosen = weights.to(step.z.device)[orders_of_a_run(step, self.order, None) - 1]
        return step.keep, *(step.gain * weight for weight in chosen.unbind(-1))

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        keep, *weights = row
        history = (denoiser.eps(x, t), *(state or ()))
        x_s = linear((keep, x), *zip(weights, history, strict=False))
        return x_s, history[: len(weights) - 1]
