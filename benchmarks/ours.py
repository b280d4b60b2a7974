"""Solvers and grids of this library that error_vs_nfe.py measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from fitted import FittedCandidate
from mixture import CountedModel
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    ERSDE,
    SDE,
    SEEDS,
    VPSDE,
    Denoiser,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    ExponentialAdams,
    Grid,
    Heun,
    SASolver,
    SDEDPMSolverPP,
    Solver,
    UniPC,
    few_step_grid,
    karras_grid,
    logsnr_grid,
    quadratic_grid,
    uniform_grid,
    vp_grid,
)  # fmt: skip


@dataclass(frozen=True)
class Ours:
    """A solver of this library: make(steps=..., grid=..., t_end=..., denoise=...), and its calls per step."""

    name: str
    make: Callable[..., Solver]
    calls: int = 1


DETERMINISTIC = [
    Ours("DDIM", DDIM),
    Ours("Heun", Heun, 2),
    Ours("DPMSolverPP2M", DPMSolverPP2M),
    Ours("DPMSolverPP3M", DPMSolverPP3M),
    Ours("DPMSolverMultistep(eps, 3)", partial(DPMSolverMultistep, order=3, prediction="eps")),
    Ours("DPMSolver(3)", partial(DPMSolver, order=3), 3),
    Ours("ExponentialAdams()", ExponentialAdams),
    Ours("UniPC(2)", partial(UniPC, order=2)),
    Ours("UniPC(3)", partial(UniPC, order=3)),
    *(
        Ours(
            f"ExponentialAdams({prediction}, {order}{'' if corrector else ', no corrector'})",
            partial(ExponentialAdams, prediction=prediction, order=order, corrector=corrector),
        )
        for prediction, order, corrector in [
            ("v", 2, True),
            ("v", 3, True),
            ("v", 4, True),
            ("v", 2, False),
            ("v", 3, False),
            ("flow", 1, True),
            ("flow", 2, False),
            ("flow", 3, True),
            ("flow", 4, True),
            ("flow", 4, False),
            ("eps", 2, False),
            ("eps", 3, True),
            ("data", 3, True),
            ("data", 4, True),
        ]
    ),
]
STOCHASTIC = [
    Ours("DDPM", DDPM),
    Ours("SDEDPMSolverPP(2)", partial(SDEDPMSolverPP, order=2)),
    Ours("SDEDPMSolverPP(3)", partial(SDEDPMSolverPP, order=3)),
    Ours("SDEDPMSolverPP(3, eta=0.5)", partial(SDEDPMSolverPP, order=3, eta=0.5)),
    Ours("SDEDPMSolverPP(3, exact, eta=0.5)", partial(SDEDPMSolverPP, order=3, exact=True, eta=0.5)),
    Ours("SEEDS(3)", partial(SEEDS, order=3), 3),
    Ours("ERSDE(3)", partial(ERSDE, order=3)),
    Ours("SASolver", SASolver),
    *(
        Ours(
            f"SASolver(ratio, tau={tau} in {low}-{high})",
            partial(SASolver, clock="ratio", tau=tau, interval=(low, high)),
        )
        for tau, low, high in [(1.0, 0.05, 1.0), (0.6, 0.05, 5.0)]
    ),
    Ours("DDPM(optimal), oracle", partial(DDPM, variance="optimal")),
    Ours("DDIM(optimal), oracle", partial(DDIM, variance="optimal")),
]
GRIDS: dict[str, Grid] = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "logsnr": logsnr_grid,
    "karras": karras_grid,
    "vp": vp_grid,
    "few_step": few_step_grid,
}
ENDS = {"vp": (None, 0.0105), "edm": (None,)}  # σ/α where a deterministic run ends; None is the process's own
# Of stochastic runs, by the calls allowed: the fewer they are, the earlier a run does best to end.
STOCHASTIC_ENDS: dict[tuple[int, ...], tuple[float | None, ...]] = {
    tuple(range(1, 8)): (0.05, 0.1),
    tuple(range(8, 15)): (0.02, 0.05),
    tuple(range(15, 35)): (0.006, 0.02),
    tuple(range(35, 1001)): (None, 0.006),
}
SDES: dict[str, SDE] = {"vp": VPSDE(beta_min=0.1, beta_max=20.0), "edm": EDMSDE(sigma_min=0.002, sigma_max=80.0)}


class ExactDenoiser(Denoiser):
    """The exact model as one of our denoisers. A covariance asked for with a mean costs no call of its own."""

    def __init__(self, model: CountedModel, sde: SDE) -> None:
        super().__init__()
        self.model, self.sde = model, sde

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self._levels(t)
        if t.ndim == 0:
            return self.model.eps(x, float(alpha), float(sigma))
        self.model.calls += 1
        return self.model.problem.eps_rows(x, alpha, sigma)

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = (value if t.ndim == 0 else value[:, None] for value in self._levels(t))
        return (x - sigma * self.eps(x, t)) / alpha

    def covariance_diag(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        alpha, sigma = self._levels(t)
        return self.model.problem.spread(x, float(alpha), float(sigma))

    def mean_and_covariance(self, x: Tensor, t: Tensor, **cond: Any) -> tuple[Tensor, Tensor]:
        return self(x, t), self.covariance_diag(x, t)

    def _levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.sde.alpha(t.double()), self.sde.sigma(t.double())


@dataclass
class OurCandidate:
    """A solver on a grid, with the interface of `peers.Candidate`. `end` is σ/α; None is the process's own."""

    ours: Ours
    family: str
    placing: str
    end: float | None
    denoise: bool
    budgets: tuple[int, ...] = ()  # of the calls allowed; () is any
    library: str = "scoresde"

    def __post_init__(self) -> None:
        self.sde, one = SDES[self.family], torch.ones((), dtype=torch.float64)
        self.alpha, self.sigma = float(self.sde.alpha(one)), float(self.sde.sigma(one))
        self.std = 1.0 if self.family == "vp" else self.sigma
        self.solver = self.ours.name
        ending = "" if self.end is None else f" to {self.end:g}"
        self.grid = f"{self.placing}{ending}{'' if self.denoise else ', no x0'}"

    def run(self, model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        denoiser = ExactDenoiser(model, self.sde)
        t_end = None if self.end is None else float(self.sde.time(torch.tensor(-2 * math.log(self.end)).double()))
        steps = (nfe - self.denoise) // self.ours.calls
        while steps > 0:
            model.calls = 0
            solver = self.ours.make(steps=steps, grid=GRIDS[self.placing], t_end=t_end, denoise=self.denoise)
            result = solver(denoiser, x)
            if model.calls <= nfe:
                return result
            steps -= max(1, (model.calls - nfe) // self.ours.calls)  # a start-up that takes more calls than a step
        raise ValueError(f"{self.solver} has no run with {nfe} network calls.")


def our_candidates(stochastic: bool = False) -> Iterator[Any]:
    """Every solver on every grid, with a last call for x̂0 and without; then those fitted to the model."""
    if stochastic:
        for ours in STOCHASTIC:
            for family in SDES:
                for placing in ("quadratic", "logsnr"):
                    for budgets, ends in STOCHASTIC_ENDS.items():
                        yield from (OurCandidate(ours, family, placing, end, True, budgets) for end in ends)
        return
    for ours in DETERMINISTIC:
        for family, ends in ENDS.items():
            for placing in GRIDS:
                for end in ends:
                    yield from (OurCandidate(ours, family, placing, end, denoise) for denoise in (True, False))
    for family, sde in SDES.items():
        yield FittedCandidate(family, sde, ExactDenoiser, "calibrated", budgets=tuple(range(2, 11)))
        yield FittedCandidate(family, sde, ExactDenoiser, "optimised", budgets=tuple(range(5, 26)))
