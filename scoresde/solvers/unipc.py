"""UniPC: a multistep predictor and a corrector that reuses the next step's network call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_whole
from scoresde.denoiser import Denoiser
from scoresde.noise.sources import NoiseSource
from scoresde.sde.grids import Grid, balanced_grid
from scoresde.sde.levels import Interval, Levels, Weights
from scoresde.solvers.base import StepSolver, linear
from scoresde.solvers.exponential import predicted, shares, transfer
from scoresde.solvers.long_steps import norm, share, too_long

FEW = 3  # steps


@dataclass(frozen=True, kw_only=True)
class UniPC(StepSolver):
    """The unified predictor-corrector of order p + 1; deterministic, one network call per step.

        D_m = q(λ_t + r_m h) − q_t                 r_1, ..., r_{p−1} < 0 at earlier steps, r_p = 1 at the predicted x'_s
        predict    x'_s = a x_t + b q_t + b B/β Σ_{m<p} a_m D_m/r_m                      (Zhao et al. 2023, UniP-p)
        correct    x_s  = a x_t + b q_t + b B/β Σ_{m≤p} a*_m D_m/r_m                     (UniC-p)
        Σ_m r_m^(k−1) a_m B = z k! φ_{k+1}(z)      k = 1, 2, ...: as many equations as terms;      β = z φ_1(z)

    with q = x̂0 or ε̂ and a, b, z, φ as in `scoresde.solvers.exponential`. Where there is one term, a_1 = ½ as published:
    only there does B matter. The corrector is applied when q has been asked for at x'_s for the next step, so the last
    step has none, and states of a trajectory are the predicted ones. Without the corrector the order is p. The first
    steps are of lower order, and a step to σ_s = 0 is of first and has no corrector, as are steps of a run of at most
    three that are too long for their order (`scoresde.solvers.long_steps`). The very first step limits the whole to
    order 3, or 2 without the corrector, which shows only with many steps or where a run starts at little noise.

    Args:
        order: p, at least 1.
        variant: "bh1", B = z, or "bh2", B = e^z − 1.
        prediction: What is q: "data" or "eps".
        corrector: Whether to correct.
        lower_order_final: Whether the last steps of a run fall to order 1, as is common below 15 steps.

    References:
        Zhao et al., "UniPC: A Unified Predictor-Corrector Framework", 2023, arXiv:2302.04867.
    """

    steps: int = 20
    grid: Grid = balanced_grid
    order: int = 3
    variant: str = "bh2"
    prediction: str = "data"
    corrector: bool = True
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "1 <= order <= 9")
        check_choice(self, "variant", self.variant, ("bh1", "bh2"))
        check_choice(self, "prediction", self.prediction, ("data", "eps"))

    @property
    def deterministic(self) -> bool:
        return True

    def step(
        self, denoiser: Denoiser, x: Tensor, interval: Interval, noise: NoiseSource, state: Any
    ) -> tuple[Tensor, Any]:
        visited, history, before = ((), (), None) if state is None else state
        w = interval.weights(self, visited)
        history = (predicted(denoiser, x, interval.t, self.prediction), *history)
        if self.corrector and before is not None:  # x'_t becomes x_t: once more the step before, which began there
            x = linear(*zip(w.correct, (before, *history), strict=False))
        x_s = linear(*zip(w.predict, (x, *history), strict=False))
        return x_s, ((interval.t, *visited[: self.order - 1]), history[: self.order], x)

    def weights(self, levels: Levels) -> Weights:
        """predict: of x_t, q_t and the p − 1 values before. correct: of x before, q_t and the p values before."""
        t, s = levels[:-1], levels[1:]
        h = s.lam - t.lam
        finite = torch.isfinite(h)
        a, b = transfer(t, s, self.prediction, -torch.expm1(-h))
        z = torch.where(finite, h if self.prediction == "eps" else -h, 1)
        orders = self._orders(finite, levels.whole)
        ratios = [(_earlier(t.lam, back, math.nan) - t.lam) / h for back in range(1, self.order)]
        ratios = [torch.where(torch.isfinite(r) & (r < 0), r, -back) for back, r in enumerate(ratios, 1)]
        q = share(levels, self.prediction) * norm(levels)  # of standard normal data, and the factors of their state
        known = [_earlier(q[:-1], back, 0.0) / norm(t) for back in range(self.order)]
        first, few = a + b * known[0], finite & (len(finite) - int(torch.isinf(s.lam[-1]).all()) <= FEW)

        def kept(weights: list[Tensor], values: list[Tensor], now: int) -> tuple[Tensor, list[Tensor]]:
            """The step's factor and weights; those of the first order where it is too long."""
            factor = a + b * sum(weight * value for weight, value in zip(weights, values, strict=True))
            long = few & too_long(t, s, first, factor, most=0.5)
            ones = [torch.where(long, float(k == now), weight) for k, weight in enumerate(weights)]
            return torch.where(long, first, factor), [a, *(b * weight for weight in ones)]

        factor, predict = kept(self._weights(z, orders, ratios, corrects=False), known, 0)
        if not self.corrector:
            return {"predict": predict}
        known = [factor * share(s, self.prediction), *known]
        _, correct = kept(self._weights(z, orders, ratios, corrects=True), known, 1)
        return {"predict": predict, "correct": [_earlier(weight, 1, 0.0) for weight in correct]}

    def _orders(self, finite: Tensor, whole_run: bool) -> Tensor:
        """As many as there are levels to look back on, of which one without signal is none; 0 where h is infinite."""
        count = len(finite)
        index = torch.arange(count, device=finite.device).reshape(-1, *[1] * (finite.ndim - 1))
        orders = (index + finite[:1]).clamp(1, self.order)
        if self.lower_order_final and whole_run:
            orders = torch.minimum(orders, count - index)
        return torch.where(finite, orders, 0)

    def _weights(self, z: Tensor, orders: Tensor, ratios: list[Tensor], *, corrects: bool) -> list[Tensor]:
        """Weights of q at s (for the corrector), at t, and at the p − 1 levels before, in units of b."""
        phis = shares(z, self.order)
        terms = [torch.zeros_like(z) for _ in range(self.order)]  # a_m/r_m: first of s, then of the levels before
        for order in range(1, self.order + 1):
            nodes = [*([torch.ones_like(z)] if corrects else []), *ratios[: order - 1]]
            first = 0 if corrects else 1
            for index, value in enumerate(self._solve(z, nodes, phis)):
                terms[first + index] = torch.where(orders == order, value / nodes[index], terms[first + index])
        now = 1 - torch.stack(terms).sum(0)
        return [terms[0], now, *terms[1:]] if corrects else [now, *terms[1:]]

    def _solve(self, z: Tensor, nodes: list[Tensor], phis: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """a_m B/β, from the Vandermonde system of the nodes r_m."""
        if not nodes:
            return ()
        if len(nodes) == 1:
            half = torch.full_like(z, 0.5)
            return (half if self.variant == "bh2" else half * z / torch.expm1(z),)
        powers = torch.arange(len(nodes), device=z.device).unsqueeze(-1)
        right = torch.stack([math.factorial(k + 1) * phis[k] for k in range(len(nodes))], -1)
        return torch.linalg.solve(torch.stack(nodes, -1).unsqueeze(-2) ** powers, right).unbind(-1)


def _earlier(values: Tensor, back: int, missing: float) -> Tensor:
    """Entry i − back in place of entry i, and `missing` before the first."""
    pad = torch.full_like(values[:back], missing)
    return torch.cat([pad, values[: max(len(values) - back, 0)]])
