"""The textbook likelihood and ours side by side: network evaluations, wall time and accuracy.

    python benchmarks/likelihood.py [--problems digits,mixture] [--tolerances 3e-4,1e-4,1e-5] [--json OUT]

The textbook route is written plainly: scipy's RK45 with rtol = atol = 1e-5 on the batch as one vector, in t from 1e-5
to 1, a float32 model, one Rademacher probe; the drift is one network call and its product with the probe another one,
so an evaluation counts as two. Ours is `log_prob`, whose forward passes are counted, at several tolerances. Both have
the same probes, and the reference too: `log_prob` in float64 at a tolerance of 1e-8. "digits" is the newest NCSN++ run
on the digits under runs/, with dequantised test images; "mixture" a 64-d GaussianMixtureDenoiser.random.

Errors are |log p − reference| in nats. The last columns are shares of the textbook's cost. Wall times mean something
on a quiet machine only; every route is timed --repeats times, in turn, and the least counts.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde import VPSDE, Denoiser, GaussianMixtureDenoiser
from scoresde.commands.build import build
from scoresde.commands.load import load_run
from scoresde.commands.saved_config import read_config
from scoresde.likelihood.flow_density import log_prob
from scoresde.likelihood.trace import draw_probes
from scoresde.noise import sample_seeds
from scoresde.training import RunDirectory

SEED = 0


class Problem(NamedTuple):
    name: str
    denoiser: Denoiser
    x: Tensor


class Outcome(NamedTuple):
    log_prob: Tensor
    calls: float
    seconds: float


def mixture(count: int) -> Problem:
    generator = torch.Generator().manual_seed(SEED)
    denoiser = GaussianMixtureDenoiser.random(VPSDE(), 64, 10, generator=generator)
    return Problem("mixture", denoiser, denoiser.sample(count, generator=generator).float())


def digits(count: int, runs: Path) -> Problem | None:
    found = [RunDirectory(config.parent) for config in runs.rglob("config.yaml")] if runs.is_dir() else []
    fitting = [run for run in found if run.has_checkpoint and _is_digits(read_config(run))]
    if not fitting:
        print(f"digits: skipped, as there is no NCSN++ run on the digits under {runs}/ (python train.py makes one)")
        return None
    trained = load_run(max(fitting, key=lambda run: run.checkpoint.stat().st_mtime_ns).path)
    data: Any = build(trained.config["data"], "data", [])
    generator = torch.Generator().manual_seed(SEED)
    x = trained.codec.encode(data.test.x[:count], generator=generator)
    assert isinstance(trained.model, Denoiser)
    return Problem("digits", trained.model, x)


def _is_digits(config: dict[str, Any]) -> bool:
    names = [config[part].get("_target_") for part in ("task", "data", "model")]
    return names == ["scoresde.commands.TrainDenoiser", "scoresde.data.digits", "scoresde.NCSNpp"]


def textbook(problem: Problem, probe: Tensor, tolerance: float) -> Outcome:
    """scipy's RK45 on the flattened batch, two network calls per evaluation."""
    from scipy.integrate import solve_ivp

    denoiser, shape, entries, calls = problem.denoiser, problem.x.shape, problem.x.numel(), 0

    def rate(t: float, state: NDArray[np.float64]) -> NDArray[np.float64]:
        nonlocal calls
        x = torch.from_numpy(state[:entries]).reshape(shape).float()
        times = torch.full((shape[0],), t)
        with torch.no_grad():
            drift = denoiser.velocity(x, times)
        with torch.enable_grad():
            x.requires_grad_()
            product = (denoiser.velocity(x, times) * probe).sum()
            (gradient,) = torch.autograd.grad(product, x)
        calls += 2
        divergence = (gradient * probe).flatten(1).sum(1)
        return np.concatenate([drift.flatten().numpy(), divergence.numpy()]).astype(np.float64)

    start = np.concatenate([problem.x.flatten().numpy(), np.zeros(shape[0])])
    began = time.perf_counter()
    solution = solve_ivp(rate, (1e-5, 1.0), start, method="RK45", rtol=tolerance, atol=tolerance)
    end = torch.from_numpy(solution.y[:, -1])
    value = denoiser.sde.prior_log_prob(end[:entries].reshape(shape)) + end[entries:]
    return Outcome(value, calls, time.perf_counter() - began)


def ours(problem: Problem, method: str, tolerance: float) -> Outcome:
    began = time.perf_counter()
    found = log_prob(problem.denoiser, problem.x, method=method, rtol=tolerance, atol=tolerance, seeds=SEED)
    return Outcome(found.log_prob, float(found.nfe.double().mean()), time.perf_counter() - began)


def reference(problem: Problem, tolerance: float) -> Tensor:
    wide = copy.deepcopy(problem.denoiser).double()
    return log_prob(wide, problem.x.double(), method="dopri8", rtol=tolerance, atol=tolerance, seeds=SEED).log_prob


def measure(problem: Problem, args: argparse.Namespace) -> list[dict[str, Any]]:
    seeds = sample_seeds(SEED, len(problem.x), "benchmark")
    probe = draw_probes("rademacher", problem.x, 1, seeds)[:, 0]
    exact = reference(problem, args.reference)
    routes: dict[str, Callable[[], Outcome]] = {"textbook 1e-05": lambda: textbook(problem, probe, 1e-5)}
    for method in args.methods.split(","):
        for tolerance in map(float, args.tolerances.split(",")):
            routes[f"{method} {tolerance:g}"] = lambda m=method, t=tolerance: ours(problem, m, t)  # type: ignore[misc]
    outcomes: dict[str, list[Outcome]] = {name: [] for name in routes}
    for _ in range(args.repeats):
        for name, route in routes.items():
            outcomes[name].append(route())
    rows = []
    for name, tries in outcomes.items():
        error = (tries[0].log_prob.double() - exact).abs()
        rows.append(
            {
                "problem": problem.name,
                "route": name,
                "calls_per_sample": tries[0].calls,
                "seconds": min(one.seconds for one in tries),
                "median": error.median().item(),
                "rms": error.square().mean().sqrt().item(),
                "max": error.max().item(),
            }
        )
    for row in rows:
        for key in ("calls_per_sample", "seconds"):
            row[f"{key}_share"] = row[key] / rows[0][key]
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print(
        f"{'problem':9}{'route':16}{'calls':>7}{'seconds':>9}{'median':>10}{'rms':>10}{'max':>10}{'calls':>8}{'time':>8}"
    )
    for row in rows:
        errors = "".join(f"{row[key]:10.1e}" for key in ("median", "rms", "max"))
        shares = "".join(f"{row[key]:8.0%}" for key in ("calls_per_sample_share", "seconds_share"))
        cost = f"{row['calls_per_sample']:7.0f}{row['seconds']:9.2f}"
        print(f"{row['problem']:9}{row['route']:16}{cost}{errors}{shares}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="digits,mixture", help="default: %(default)s")
    parser.add_argument("--tolerances", default="1e-3,3e-4,1e-4,1e-5", help="of ours (default: %(default)s)")
    parser.add_argument("--methods", default="adams,dopri5", help="of ours (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--reference", type=float, default=1e-8, help="tolerance of the reference (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)

    torch.set_num_threads(args.threads)
    wanted = args.problems.split(",")
    problems = [digits(args.samples, args.runs)] if "digits" in wanted else []
    problems += [mixture(args.samples)] if "mixture" in wanted else []
    rows = [row for problem in problems if problem is not None for row in measure(problem, args)]
    if not rows:
        return
    print(f"{args.samples} samples, {args.threads} threads, torch {torch.__version__}; errors in nats")
    show(rows)
    if args.json:
        numbers = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
        args.json.write_text(json.dumps({**numbers, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
