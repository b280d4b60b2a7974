"""Is each solver's default grid about the best that is shipped for it, on every process?

    python benchmarks/default_grids.py [--problem FILE.npz] [--run RUN] [--processes vp,straight,...]
                                       [--calls 5,10,20,50] [--samples 300] [--json OUT]

Deterministic solvers, as `Solver(steps=...)` and on every grid that is shipped, with the same number of network calls
on one model: exact Gaussian mixtures (FILE has w, mu and diagonal var, as for error_vs_nfe.py; without it d2 and d64),
and with --run a trained network, whose reference is a fine solve. The number is the median over samples of the distance
to the flow's end from the same start, relative to the data's rms. A row has the default's error, and the best grid's.

The tables end with the three promises: the worst ratio of default to best grid of each solver, solvers of second and
higher order that are behind the midpoint rule in equal steps of t, and `ExponentialAdams()` beside the best of all.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mixture import built_in, load
from torch import Tensor

from scoresde import (
    DDIM,
    EDMSDE,
    SDE,
    VESDE,
    VPSDE,
    CosineSDE,
    Denoiser,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    ExponentialAdams,
    GaussianMixtureDenoiser,
    Heun,
    StepSolver,
    StraightSDE,
    SubVPSDE,
    UniPC,
    flow_error,
    karras_grid,
    logsnr_grid,
    uniform_grid,
)  # fmt: skip
from scoresde.analytic import exact_flow
from scoresde.sde import Grid, balanced_grid, few_step_grid, long_step_grid, quadratic_grid, vp_grid
from scoresde.solvers import IPNDM, DPMSolverFast, RungeKutta

PROCESSES: dict[str, SDE] = {
    "vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(), "edm": EDMSDE(), "cosine": CosineSDE(),
    "straight": StraightSDE(),
}  # fmt: skip
GRIDS: dict[str, Grid] = {
    "balanced": balanced_grid, "long_step": long_step_grid, "uniform": uniform_grid, "quadratic": quadratic_grid,
    "vp": vp_grid, "few_step": few_step_grid, "logsnr": logsnr_grid, "karras": karras_grid,
}  # fmt: skip
RATIO = 1.5  # of the default's error to the best grid's, at most


@dataclass(frozen=True)
class Row:
    """One solver at so many calls on one problem: the median errors of its default grid and of each that is shipped."""

    problem: str
    process: str
    solver: str
    calls: int
    default: float
    grids: dict[str, float]

    @property
    def best(self) -> str:
        return min(self.grids, key=lambda name: self.grids[name])

    @property
    def ratio(self) -> float:
        return self.default / self.grids[self.best]


@dataclass(frozen=True)
class Candidate:
    """make(steps=..., [grid=...]), its network calls per step, and its order."""

    make: Callable[..., StepSolver]
    calls: int = 1
    order: int = 2


SOLVERS = {
    "DDIM": Candidate(DDIM, order=1),
    "midpoint, equal steps of t": Candidate(partial(RungeKutta, grid=uniform_grid), 2),
    "RungeKutta(midpoint)": Candidate(RungeKutta, 2),
    "RungeKutta(heun)": Candidate(partial(RungeKutta, method="heun"), 2),
    "Heun": Candidate(Heun, 2),
    "DPMSolver": Candidate(DPMSolver, 2),
    "DPMSolverFast": Candidate(DPMSolverFast),
    "DPMSolverPP2S": Candidate(DPMSolverPP2S, 2),
    "DPMSolverPP3S": Candidate(DPMSolverPP3S, 3),
    "DPMSolverPP2M": Candidate(DPMSolverPP2M),
    "DPMSolverPP3M": Candidate(DPMSolverPP3M),
    "DPMSolverMultistep": Candidate(DPMSolverMultistep),
    "UniPC": Candidate(UniPC),
    "IPNDM": Candidate(IPNDM),
    "ExponentialAdams": Candidate(ExponentialAdams),
}
MIDPOINT, OURS = "midpoint, equal steps of t", "ExponentialAdams"


class Problem:
    """A model under a process, starts at t = 1, and where the exact flow takes them."""

    def __init__(self, name: str, process: str, denoiser: Denoiser, start: Tensor, end: Tensor) -> None:
        self.name, self.process, self.denoiser, self.start, self.end = name, process, denoiser, start, end

    def error(self, candidate: Candidate, calls: int, grid: Grid | None = None) -> float:
        """Median error with at most so many calls, the last of them to noise 0; infinite if it takes more."""
        steps = (calls - 1) // candidate.calls
        if not steps:
            return math.inf
        solver = candidate.make(steps=steps) if grid is None else candidate.make(steps=steps, grid=grid)
        try:
            found = flow_error(solver, self.denoiser, self.start, reference=self.end)
        except FloatingPointError:
            return math.inf
        return found.median if found.nfe <= calls else math.inf

    def row(self, name: str, calls: int) -> Row:
        candidate = SOLVERS[name]
        errors = {key: self.error(candidate, calls, grid) for key, grid in GRIDS.items()}
        return Row(self.name, self.process, name, calls, self.error(candidate, calls), errors)


def mixtures(paths: list[Path], processes: list[str], samples: int) -> Iterator[Problem]:
    """The exact mixtures of the files, or d2 and d64, under each process."""
    for mixture in [load(path) for path in paths] or built_in():
        for process in processes:
            sde = PROCESSES[process]
            denoiser = GaussianMixtureDenoiser(sde, mixture.w, mixture.mu, mixture.var)
            shape, generator = (samples, mixture.mu.shape[1]), torch.Generator().manual_seed(1)
            start = sde.prior_sample(shape, generator=generator, dtype=torch.float64)
            yield Problem(mixture.name, process, denoiser, start, exact_flow(denoiser, start))


def network(run: Path, processes: list[str], samples: int) -> Iterator[Problem]:
    """The averaged network of a run under each process, beside 300 steps of a third-order method."""
    from scoresde.commands.load import load_run

    trained = load_run(run)
    model: Any = trained.model
    if trained.config["model"].get("num_classes") is not None:
        model = model.given(label=None)
    for process in processes:
        denoiser, generator = model.on(PROCESSES[process]), torch.Generator().manual_seed(1)
        start = PROCESSES[process].prior_sample((samples, *trained.shape), generator=generator)
        yield Problem(run.name, process, denoiser, start, ExponentialAdams(steps=300)(denoiser, start))


def promises(rows: list[Row]) -> list[str]:
    """The three promises as sentences, with the cells in which one does not hold."""
    lines = []
    for name in SOLVERS:
        own = [row for row in rows if row.solver == name and math.isfinite(row.default)]
        if own and name != MIDPOINT:
            worst, above = max(own, key=lambda row: row.ratio), sum(row.ratio > RATIO for row in own)
            where = f"{worst.problem} {worst.process} {worst.calls} calls: {worst.best}"
            lines.append(
                f"{name:27} worst default/best {worst.ratio:5.2f} ({where}), {above} of {len(own)} above {RATIO}"
            )
    cells: dict[tuple[str, str, int], dict[str, float]] = {}
    for row in rows:
        cells.setdefault((row.problem, row.process, row.calls), {})[row.solver] = row.default
    for name, candidate in SOLVERS.items():
        behind = [
            (cell[name] / cell[MIDPOINT], key)
            for key, cell in cells.items()
            if candidate.order > 1 and name in cell and MIDPOINT in cell and cell[name] > cell[MIDPOINT]
        ]
        if behind and name != MIDPOINT:
            ratio, key = max(behind)
            lines.append(
                f"{name:27} behind {MIDPOINT} in {len(behind)} of {len(cells)} cells, at most {ratio:.2f} times {key}"
            )
    for key, cell in cells.items():
        best = min(cell, key=lambda name: cell[name])
        if OURS in cell and cell[OURS] > RATIO * cell[best]:
            lines.append(f"{OURS:27} {cell[OURS] / cell[best]:.2f} times {best} in {key}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path, action="append", default=[])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--processes", default=",".join(PROCESSES))
    parser.add_argument("--calls", default="5,10,20,50")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    processes, counts = args.processes.split(","), [int(word) for word in args.calls.split(",")]
    problems = mixtures(args.problem, processes, args.samples)
    if args.run is not None:
        problems = network(args.run, processes, args.samples)
    rows = []
    for problem in problems:
        print(f"\n{problem.name}, {problem.process}: median error on the default grid (best grid, its error)")
        for name in SOLVERS:
            own = [problem.row(name, calls) for calls in counts]
            rows += own
            print(
                f"{name:27}" + "".join(f"{row.default:9.2g} ({row.best} {row.grids[row.best]:.2g})" for row in own),
                flush=True,
            )
    print("\n" + "\n".join(promises(rows)))
    if args.json:
        results = [{**vars(row), "best": row.best, "ratio": row.ratio} for row in rows]
        args.json.write_text(json.dumps({"results": results, "promises": promises(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
