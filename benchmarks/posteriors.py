"""Posterior samplers against exact posteriors: distance, coverage and mean, for every method with its best solver.

    python benchmarks/posteriors.py [--problems FILE.npz] [--libraries scoresde,azula,deepinv] [--steps 20,100]
        [--methods NAME ...] [--json OUT]

FILE holds P problems of one shape: `w` (P, K), `mu` (P, K, d), `var` (P,), `A` (P, d_y, d), `sigma_y` (P,), `y`
(P, d_y): a prior Σ_k w_k N(μ_k, var I) and an observation y = A x0 + sigma_y n. Without it: --count random problems of
25 components for each of d = 8, 80 and d_y = 1, 2, 4. Every library gets the exact E[x0 | x_t] as a function that it
can differentiate, and no more. 500 samples of each method are compared with the exact posterior:

    sliced_w2    to 500 exact samples over 1,000 directions; median over problems
    floor        the same of 500 more exact samples
    coverage90   probability, under the exact posterior, of the central interval between the samples' 5 % and 95 %
                 quantiles, one for each coordinate; mean over coordinates and problems
    mmse_gap     squared distance of the samples' mean from the posterior's, over its total variance; median
    calls        evaluations of the denoiser per sample, and passes back through it
    exact        * if the method is exact in the limit of many steps and particles
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median
from typing import Any

import posterior_problems
import torch
from peers import posterior_methods
from posterior_problems import Judge, Problem
from posterior_rows import Count, Row, Task

COLUMNS = "library   method                solver                 steps    sliced W2  floor  coverage  mmse gap  calls"


def main(argv: list[str] | None = None) -> None:
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", ".* steps gives a standard deviation")  # the table says it
    shapes = _problems(args)
    results: list[dict[str, Any]] = []
    for problems in shapes:
        d, d_y = problems[0].size
        judges = [Judge(problem, args.samples, seed=index) for index, problem in enumerate(problems)]
        floors = [judge(judge.other) for judge in judges]
        floor = median(score["sliced_w2"] for score in floors)
        print(f"\nd = {d}, d_y = {d_y}, {len(problems)} problems; exact samples: sliced W2 {floor:.3f}, "
              f"coverage {fmean(score['coverage90'] for score in floors):.3f}\n{COLUMNS}", flush=True)  # fmt: skip
        for steps in args.steps:
            for library in args.libraries:
                for row in _chosen(posterior_methods(library), args.methods):
                    result = judged(library, row, problems, judges, steps, args.samples)
                    results.append({**result, "floor": floor, "d": d, "d_y": d_y})
                    print(_line(results[-1]), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps({"results": results}, indent=1))


def judged(
    library: str, row: Row, problems: list[Problem], judges: list[Judge], steps: int, samples: int
) -> dict[str, Any]:
    """One method on all problems of a shape."""
    scores, counts, began = [], [], time.perf_counter()
    for index, (problem, judge) in enumerate(zip(problems, judges, strict=True)):
        count = Count()
        torch.manual_seed(index)  # for libraries that know no other
        task = Task(problem, steps, samples, count, torch.Generator().manual_seed(index))
        try:
            scores.append(judge(row.run(task)))
        except FloatingPointError:  # a solver of ours that diverges says so
            scores.append(judge(torch.full((samples, problem.size[0]), torch.nan)))
        counts.append(count)
    return {
        "library": library, "method": row.method, "solver": row.solver, "steps": steps, "exact_in_the_limit": row.exact,
        "sliced_w2": median(score["sliced_w2"] for score in scores),
        "coverage90": fmean(score["coverage90"] for score in scores),
        "mmse_gap": median(score["mmse_gap"] for score in scores),
        "network_calls": fmean(count.forward for count in counts) / samples,
        "backward_passes": fmean(count.backward for count in counts) / samples,
        "seconds": (time.perf_counter() - began) / len(problems),
        "each": scores,
    }  # fmt: skip


def _chosen(rows: Iterable[Row], names: list[str]) -> list[Row]:
    return [row for row in rows if not names or any(name.lower() in row.method.lower() for name in names)]


def _line(result: dict[str, Any]) -> str:
    name = result["method"] + "*" * result["exact_in_the_limit"]
    return (
        f"{result['library']:9} {name:21} {result['solver']:22} {result['steps']:5}    {result['sliced_w2']:9.3g}"
        f"  {result['floor']:.3f}  {result['coverage90']:8.3f}  {result['mmse_gap']:8.2g}"
        f"  {result['network_calls']:.0f}+{result['backward_passes']:.0f}"
    )


def _problems(args: argparse.Namespace) -> list[list[Problem]]:
    if args.problems is not None:
        return [posterior_problems.read(args.problems)]
    family = posterior_problems.family
    return [list(family(d, d_y, args.count)) for d in args.dims for d_y in args.measured]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = {"type": lambda text: [int(part) for part in text.split(",")]}
    parser.add_argument("--problems", type=Path)
    parser.add_argument("--libraries", type=lambda text: text.split(","), default=["scoresde"])
    parser.add_argument("--steps", default=[20, 100], **numbers)
    parser.add_argument("--methods", nargs="*", default=[], help="parts of names; all if left out")
    parser.add_argument("--dims", default=[8, 80], **numbers)
    parser.add_argument("--measured", default=[1, 2, 4], **numbers)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
