"""Our solvers whose times, or times and weights, are fitted to the model: candidates for error_vs_nfe.py."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from mixture import CountedModel, Mixture
from torch import Tensor

from scoresde import SDE, ExponentialAdams, GaussianMixtureDenoiser, Solver
from scoresde.fitting import ReferencePaths, calibrate, optimise_grid, reference_paths

PATHS, PATH_STEPS = 4096, 150
ITERATIONS, BATCHES = (500, 150), (512, 256)  # up to ten calls, and above


@dataclass
class FittedCandidate:
    """A solver fitted to paths of its own seed, which are none of those that it is judged on.

    `fit_nfe` counts single-sample calls: those of the paths and those of the fit, which also go backwards.
    """

    family: str
    sde: SDE
    denoiser_class: Any  # ExactDenoiser of error_vs_nfe.py: calls of the judged run are counted there
    kind: str
    budgets: tuple[int, ...]  # of the calls allowed: above, a fit is not worth its cost
    base: ExponentialAdams = field(default_factory=lambda: ExponentialAdams(order=4, prediction="flow", corrector=True))
    fit_nfe: int = 0
    library: str = "scoresde"

    def __post_init__(self) -> None:
        one = torch.ones((), dtype=torch.float64)
        self.alpha, self.sigma = float(self.sde.alpha(one)), float(self.sde.sigma(one))
        self.std = 1.0 if self.family == "vp" else self.sigma
        if self.kind == "calibrated":
            self.solver, self.grid = "CalibratedMultistep", "calibrated"
        else:
            self.solver, self.grid = f"ExponentialAdams({self.base.prediction}, {self.base.order})", "optimised"
        self.made: dict[tuple[str, int], Solver] = {}
        self.paths: dict[str, ReferencePaths] = {}

    def run(self, model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        key = model.problem.name, nfe
        if key not in self.made:
            self.made[key] = self._fit(model.problem, nfe)
        model.calls = 0
        return self.made[key](self.denoiser_class(model, self.sde), x)

    def _fit(self, problem: Mixture, nfe: int) -> Solver:
        exact = GaussianMixtureDenoiser(self.sde, problem.w, problem.mu, problem.var)
        if problem.name not in self.paths:
            self.paths[problem.name] = reference_paths(
                exact, problem.mu.shape[1:], PATHS, steps=PATH_STEPS, batch=1024, dtype=torch.float64,
                generator=torch.Generator().manual_seed(1000),
            )  # fmt: skip
        paths = self.paths[problem.name]
        batch, iterations = BATCHES[nfe > 10], ITERATIONS[nfe > 10]
        self.fit_nfe = len(paths) * paths.nfe + iterations * batch * nfe
        if self.kind == "calibrated":
            return calibrate(exact, nfe, paths, iterations=iterations, batch=batch)
        solver = replace(self.base, steps=nfe - 1)
        return replace(solver, grid=optimise_grid(exact, solver, paths, iterations=iterations, batch=batch))
