"""UniPC: a multistep predictor and a corrector that reuses the next step's network call."""

from __future__ import annotations

import math
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
class UniPC(TabulatedSolver):
    """The unified predictor-corrector of order p + 1; deterministic, one network call per step.

        D_m = q(λ_t + r_m h) − q_t                 r_1, ..., r_{p−1} < 0 at earlier steps, r_p = 1 at the predicted x'_s
        predict    x'_s = a x_t + b q_t + b B/β Σ_{m<p} a_m D_m/r_m                      (Zhao et al. 2023, UniP-p)
        correct    x_s  = a x_t + b q_t + b B/β Σ_{m≤p} a*_m D_m/r_m                     (UniC-p)
        Σ_m r_m^(k−1) a_m B = z k! φ_{k+1}(z)      k = 1, 2, ...: as many equations as terms;      β = z φ_1(z)

    with q = x̂0 or ε̂ and a, b, z, φ as in `scoresde.solvers.transfer`. Where there is one term, a_1 = ½ as in the paper:
    only there does B matter. The corrector is applied when q has been asked for at x'_s for the next step, so the last
    step has none, and states of a trajectory are the predicted ones. Without the corrector the order is p. The first
    steps are of lower order, and a step to σ_s = 0 of first; the very first limits the whole to order 3, or 2 without
    the corrector, which shows only with many steps or where a run starts at little noise.

    Args:
        order: p, at least 1.
        variant: "bh1", B = z, or "bh2", B = e^z − 1.
        prediction: What is q: "data" or "eps".
        corrector: Whether to correct.
        lower_order_final: Whether the last steps of a run fall to order 1, as is common below 15 steps.

    References:
        Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", 2023, arXiv:2302.04867.
    """

    deterministic: ClassVar[bool] = True

    steps: int = 20
    grid: Grid = karras_grid
    order: int = 3
    variant: str = "bh2"
    prediction: str = "data"
    corrector: bool = True
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.order, bool) or not isinstance(self.order, int) or self.order < 1:
            raise ValueError(f"UniPC needs order to be a whole number of at least 1, got {self.order!r}.")
        check_choice(self, "variant", self.variant, ("bh1", "bh2"))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    @property
    def memory(self) -> int:
        return self.order

    def table(self, levels: Levels) -> tuple[Tensor, ...]:
        step = Transfer.between(*ends(levels), self.prediction)
        orders = orders_of_a_run(step, self.order, self.steps if self.lower_order_final else None)
        ratios = self._ratios(levels, step)
        predicted = self._weights(step, orders, ratios, corrects=False)
        if not self.corrector:
            return step.keep, *predicted
        corrected = self._weights(step, orders, ratios, corrects=True)
        finite = step.finite
        again = (torch.where(finite, column, 0) for column in (step.keep, *corrected))
        return step.keep, *predicted, *(earlier(column, 1, 0.0) for column in (*again, (~finite).to(step.z.dtype)))

    def update(
        self, denoiser: Denoiser, x: Tensor, t: Tensor, s: Tensor, row: tuple[Any, ...], noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        keep, *weights = row
        past, before = ((), None) if state is None else state
        history = (predict(denoiser, x, t, self.prediction), *past)
        if self.corrector and before is not None:
            again, *corrections, stay = weights[self.order :]
            x = linear((again, before), (stay, x), *zip(corrections, history, strict=False))
        history = history[: self.order]
        x_s = linear((keep, x), *zip(weights[: self.order], history, strict=False))
        return x_s, (history, x if self.corrector else None)

    def _ratios(self, levels: Levels, step: Transfer) -> list[Tensor]:
        """r_1, ..., r_{p−1} of every step, and stand-ins where there is no such level."""
        start, h = levels.lam[:-1], torch.where(step.finite, levels.lam.diff(dim=0), 1)
        ratios = []
        for back in range(1, self.order):
            ratio = (earlier(start, back, math.nan) - start) / h
            ratios.append(torch.where(torch.isfinite(ratio), ratio, -back))
        return ratios

    def _weights(self, step: Transfer, orders: Tensor, ratios: list[Tensor], *, corrects: bool) -> list[Tensor]:
        """Weights of q at s (for the corrector), at t, and at the p − 1 levels before."""
        shares = step.shares(self.order)
        terms = [torch.zeros_like(step.z) for _ in range(self.order)]  # a_m/r_m: first of s, then of the levels before
        for order in range(1, self.order + 1):
            nodes = [*([torch.ones_like(step.z)] if corrects else []), *ratios[: order - 1]]
            first = 0 if corrects else 1
            for index, value in enumerate(self._solve(step, nodes, shares)):
                terms[first + index] = torch.where(orders == order, value / nodes[index], terms[first + index])
        now = 1 - torch.stack(terms).sum(0)
        ordered = (terms[0], now, *terms[1:]) if corrects else (now, *terms[1:])
        return [step.gain * weight for weight in ordered]

    def _solve(self, step: Transfer, nodes: list[Tensor], shares: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """a_m B/β, from the Vandermonde system of the nodes r_m."""
        if not nodes:
            return ()
        if len(nodes) == 1:
            half = torch.full_like(step.z, 0.5)
            return (half if self.variant == "bh2" else half * step.z / torch.expm1(step.z),)
        count = range(len(nodes))
        system = torch.stack(nodes, -1).unsqueeze(-2) ** torch.arange(len(nodes), device=step.z.device).unsqueeze(-1)
        right = torch.stack([math.factorial(k + 1) * shares[k] for k in count], -1)
        return torch.linalg.solve(system, right).unbind(-1)
