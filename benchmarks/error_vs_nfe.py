"""How far from the exact probability flow are samplers that may call an exact model so many times?

    python benchmarks/error_vs_nfe.py [--problem FILE.npz] [--libraries scoresde,diffusers,k-diffusion,azula]
                                      [--nfe 5,10,20] [--samples 2000] [--json OUT] [--stochastic]

FILE holds a Gaussian mixture: w (K,), mu (K, d) and diagonal var (K, d); without it there are two, d2 and d64. The
model is exact, in float64, and its calls are counted. All solvers of a family start at the same noise: "vp" is
VP(0.1, 20) from x_T ~ N(0, I), "edm" is EDM from x_T ~ N(0, 80² I) down to .002. A sample's error is its rms distance
over dimensions to the exact flow at noise 0 from its own x_T, divided by the data's rms; rows have the median and the
rms over samples. --stochastic compares distributions instead (see distances.py; the row "exact" is the floor).

Peers are measured where they are installed (`pip install scoresde[peers]`), as they are, on every grid of theirs
that is listed in peers/; the tables have the best row of at most that many calls.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from distances import Judge
from fitted import FittedCandidate
from mixture import CountedModel, Mixture, built_in, flow_end, load
from torch import Tensor

from scoresde import (
    DDIM,
    DDPM,
    EDMSDE,
    SDE,
    VPSDE,
    Denoiser,
    DPMSolver,
    DPMSolverMultistep,
    DPMSolverPP2M,
    DPMSolverPP3M,
    EulerMaruyama,
    ExponentialAdams,
    Grid,
    Heun,
    ReverseDiffusion,
    Solver,
    UniPC,
    karras_grid,
    logsnr_grid,
    quadratic_grid,
    uniform_grid,
)


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
    Ours("DDIM(eta=0.5)", partial(DDIM, eta=0.5)),
    Ours("EulerMaruyama", EulerMaruyama),
    Ours("ReverseDiffusion", ReverseDiffusion),
]
GRIDS: dict[str, Grid] = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "logsnr": logsnr_grid,
    "karras": karras_grid,
}
ENDS = {"vp": {"": None, " to 1e-3": 1e-3}, "edm": {"": None}}
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
    """A solver on a grid, with the interface of `peers.Candidate`."""

    ours: Ours
    family: str
    placing: str
    t_end: float | None
    denoise: bool
    label: str = ""
    library: str = "scoresde"

    def __post_init__(self) -> None:
        self.sde, one = SDES[self.family], torch.ones((), dtype=torch.float64)
        self.alpha, self.sigma = float(self.sde.alpha(one)), float(self.sde.sigma(one))
        self.std = 1.0 if self.family == "vp" else self.sigma
        self.solver = self.ours.name
        self.grid = f"{self.placing}{self.label}{'' if self.denoise else ', no x0'}"

    def run(self, model: CountedModel, x: Tensor, nfe: int) -> Tensor:
        denoiser = ExactDenoiser(model, self.sde)
        steps = (nfe - self.denoise) // self.ours.calls
        while steps > 0:
            model.calls = 0
            solver = self.ours.make(steps=steps, grid=GRIDS[self.placing], t_end=self.t_end, denoise=self.denoise)
            result = solver(denoiser, x)
            if model.calls <= nfe:
                return result
            steps -= max(1, (model.calls - nfe) // self.ours.calls)  # a start-up that takes more calls than a step
        raise ValueError(f"{self.solver} has no run with {nfe} network calls.")


def our_candidates(stochastic: bool = False) -> Iterator[Any]:
    """Every solver on every grid, with a last call for x̂0 and without; then those fitted to the model."""
    for ours in STOCHASTIC if stochastic else DETERMINISTIC:
        for family, ends in ENDS.items():
            for placing in GRIDS:
                for label, t_end in ends.items():
                    yield from (OurCandidate(ours, family, placing, t_end, denoise, label) for denoise in (True, False))
    if not stochastic:
        for family, sde in SDES.items():
            yield FittedCandidate(family, sde, ExactDenoiser, "calibrated", most=10)
            yield FittedCandidate(family, sde, ExactDenoiser, "optimised", most=20)


class Bench:
    """One problem with its noise and its exact answers, found once for each start."""

    def __init__(self, problem: Mixture, samples: int, seed: int = 0) -> None:
        self.problem = problem
        generator = torch.Generator().manual_seed(seed)
        self.z = torch.randn(samples, problem.mu.shape[1], generator=generator, dtype=torch.float64)
        self.answers: dict[tuple[float, float], Tensor] = {}

    def answer(self, candidate: Any) -> Tensor:
        start = candidate.std / candidate.alpha, candidate.sigma / candidate.alpha
        key = round(start[0], 9), round(start[1], 9)
        if key not in self.answers:
            self.answers[key] = flow_end(self.problem, start[0] * self.z, 1.0, start[1])
        return self.answers[key]

    def run(self, candidate: Any, nfe: int, judge: Judge | None) -> dict[str, Any] | None:
        """A row, or None if the sampler has no run with so few calls."""
        model = CountedModel(self.problem)
        torch.manual_seed(nfe)
        try:
            x = candidate.run(model, candidate.std * self.z, nfe)
        except (ValueError, IndexError, FloatingPointError, RuntimeError, ZeroDivisionError) as error:
            print(f"  skipped: {candidate.library} {candidate.solver} {candidate.grid} at {nfe}: {error}"[:160])
            return None
        if model.calls > nfe:
            raise RuntimeError(f"{candidate.library} {candidate.solver} took {model.calls} calls, {nfe} allowed.")
        row = {key: getattr(candidate, key) for key in ("family", "library", "solver", "grid")}
        row |= {"nfe": model.calls, "budget": nfe}
        if getattr(candidate, "pilot_nfe", 0):
            row["pilot_nfe"] = candidate.pilot_nfe
        if judge is not None:
            return row | judge(x)
        error = (x - self.answer(candidate)).square().mean(1).sqrt() / self.problem.rms
        return row | {"median": _finite(error.median()), "rms": _finite(error.square().mean().sqrt())}


def _finite(value: Tensor) -> float:
    return float(value) if math.isfinite(value) else math.inf


def best(rows: list[dict[str, Any]], key: str, nfe: int) -> dict[str, Any] | None:
    within = [row for row in rows if row["budget"] <= nfe and math.isfinite(row[key])]
    return min(within, key=lambda row: row[key], default=None)


def tables(problem: str, rows: list[dict[str, Any]], budgets: list[int], keys: list[str]) -> list[dict[str, Any]]:
    """Print and return the best of ours and of the peers for each family, budget and key."""
    found = []
    for family in ["vp", "edm", "any"]:
        print(f"\n{problem}, {family}\n{'NFE':>4} {'':13} {'ours':>9} {'peers':>9} {'ratio':>6}  which")
        for nfe in budgets:
            for key in keys:
                of = [row for row in rows if family in ("any", row["family"])]
                ours = best([row for row in of if row["library"] == "scoresde"], key, nfe)
                theirs = best([row for row in of if row["library"] not in ("scoresde", "exact")], key, nfe)
                values = [math.nan if row is None else row[key] for row in (ours, theirs)]
                names = [f"{row['library']} {row['solver']} {row['grid']}" if row else "-" for row in (ours, theirs)]
                print(
                    f"{nfe:4d} {key:13} {values[0]:9.2g} {values[1]:9.2g} {values[0] / values[1]:6.2f}"
                    f"  {names[0].removeprefix('scoresde ')} | {names[1]}"
                )
                found.append(
                    {"problem": problem, "family": family, "nfe": nfe, "by": key, "ours": ours, "peers": theirs}
                )
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path, action="append", help="mixture to use; may be given several times")
    parser.add_argument("--libraries", help="comma-separated; default: scoresde and every peer that is installed")
    parser.add_argument("--nfe", help="network calls (default: 5,10,20,35,50,100; with --stochastic 5,10,20,50)")
    parser.add_argument("--samples", type=int, help="default: 2000, with --stochastic 10000")
    parser.add_argument("--stochastic", action="store_true", help="compare distributions of stochastic solvers")
    parser.add_argument("--solvers", help="only solvers whose name contains one of these, comma-separated")
    parser.add_argument("--json", type=Path, help="write every row here")
    args = parser.parse_args(argv)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    nfe = args.nfe or ("5,10,20,50" if args.stochastic else "5,10,20,35,50,100")
    samples = args.samples or (10_000 if args.stochastic else 2000)
    budgets = sorted({int(value) for value in nfe.split(",")})
    problems = [load(path) for path in args.problem] if args.problem else built_in()
    libraries = args.libraries.split(",") if args.libraries else ["scoresde", *peers.installed()]
    candidates: list[Any] = []
    for library in libraries:
        ours = library == "scoresde"
        candidates += our_candidates(args.stochastic) if ours else peers.candidates(library, args.stochastic)
    if args.solvers:
        candidates = [c for c in candidates if any(word in c.solver for word in args.solvers.split(","))]

    reports = []
    keys = ["sw2", "energy", "within_logvar"] if args.stochastic else ["median", "rms"]
    for problem in problems:
        began = time.perf_counter()
        bench = Bench(problem, samples)
        judge = Judge(problem) if args.stochastic else None
        rows = [row for c in candidates for nfe in budgets if (row := bench.run(c, nfe, judge)) is not None]
        if judge is not None:
            floor = judge(problem.sample(samples, seed=4))
            print(f"{problem.name}: true samples " + ", ".join(f"{key} {value:.2g}" for key, value in floor.items()))
            rows.append({"family": "any", "library": "exact", "solver": "", "grid": "", "nfe": 0, "budget": 0} | floor)
        found = tables(problem.name, rows, budgets, keys)
        print(f"{problem.name}: {len(rows)} rows in {time.perf_counter() - began:.0f} s")
        reports.append({"problem": problem.name, "samples": samples, "results": rows, "best": found})
    if args.json:
        args.json.write_text(json.dumps(reports[0] if args.problem and len(reports) == 1 else reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
