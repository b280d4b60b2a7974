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
from pathlib import Path
from typing import Any

import peers
import torch
from distances import Judge
from mixture import CountedModel, Mixture, built_in, flow_end, load
from ours import our_candidates
from torch import Tensor


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
        if getattr(candidate, "fit_nfe", 0):
            row["fit_nfe"] = candidate.fit_nfe
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
        pairs = [(c, nfe) for c in candidates for nfe in budgets if nfe in (getattr(c, "budgets", ()) or (nfe,))]
        rows = [row for c, nfe in pairs if (row := bench.run(c, nfe, judge)) is not None]
        if judge is not None:
            floor = judge(problem.sample(samples, seed=4))
            print(f"{problem.name}: true samples " + ", ".join(f"{key} {value:.2g}" for key, value in floor.items()))
            rows.append({"family": "any", "library": "exact", "solver": "", "grid": "", "nfe": 0, "budget": 0} | floor)
        found = tables(problem.name, rows, budgets, keys)
        print(f"{problem.name}: {len(rows)} rows in {time.perf_counter() - began:.0f} s")
        reports.append({"problem": problem.name, "samples": samples, "results": rows, "best": found})
    if args.json:
        every = [{"problem": report["problem"], **row} for report in reports for row in report["results"]]
        content = (
            reports[0] if len(reports) == 1 else {"results": every, "best": [e for r in reports for e in r["best"]]}
        )
        args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
