"""CPU time that a sampler adds to each network call, on one thread.

    python benchmarks/overhead.py [--libraries scoresde,diffusers,k-diffusion,azula] [--steps 20] [--json OUT]

The network is trivial: it returns a tensor that was there before. The time of a whole run, set-up included, is divided
by its network calls; the table has the minimum over repeats in microseconds, for 1×3×32×32 and 16×3×64×64 float32.
"bare" is a denoiser that is the trivial network, "ε-network" a NetworkDenoiser with an ε-prediction around it; "plan"
leaves out the set-up, which `solver.plan(denoiser)` did once. "by hand" is the arithmetic alone in a Python loop: the
floor for any sampler of as many terms.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import peers
import torch
from torch import Tensor, nn

from scoresde import (
    DDIM,
    DDPM,
    SDE,
    VPSDE,
    Denoiser,
    DPMSolverPP2M,
    Epsilon,
    Heun,
    NetworkDenoiser,
    SASolver,
    UniPC,
    karras_grid,
)
from scoresde.solvers.base import StepSolver

SHAPES = [(1, 3, 32, 32), (16, 3, 64, 64)]
Network = Callable[..., Tensor]
Run = Callable[[Network, Tensor, int], Tensor]

# name, class, options
OURS: list[tuple[str, Callable[..., StepSolver], dict[str, Any]]] = [
    ("DDIM", DDIM, {}),
    ("Heun", Heun, {}),
    ("DPMSolverPP2M", DPMSolverPP2M, {}),
    ("DDPM", DDPM, {}),
    ("UniPC", UniPC, {}),
    ("SASolver", SASolver, {}),
]


class Constant:
    """A network that returns a tensor it has, and counts its calls."""

    def __init__(self, output: Tensor) -> None:
        self.output, self.calls = output, 0

    def __call__(self, x: Tensor, t: Any) -> Tensor:
        self.calls += 1
        return self.output


class Bare(Denoiser):
    """A denoiser that is the network itself, whatever is asked of it."""

    def __init__(self, network: Network, sde: SDE) -> None:
        super().__init__()
        self.network, self.sde = network, sde

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.network(x, t)

    def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.network(x, t)


class Module(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.network(x, c_noise)


def our_denoiser(kind: str, network: Network) -> Denoiser:
    return Bare(network, VPSDE()) if kind == "bare" else NetworkDenoiser(Module(network), VPSDE(), Epsilon())


def our_runs(network: Network, steps: int) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    for name, make, options in OURS:
        solver = make(steps=steps - 1, grid=karras_grid, **options)
        for kind in ("bare", "ε-network"):
            denoiser = our_denoiser(kind, network)
            yield f"{name}, {kind}", partial(solver, denoiser)
            yield f"{name}, {kind}, plan", partial(solver, denoiser, plan=solver.plan(denoiser))


def by_hand(network: Network, steps: int) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    def two_terms(x: Tensor) -> Tensor:
        for _ in range(steps):
            x = torch.add(0.9 * x, network(x, 0.5), alpha=0.1)
        return x

    def three_terms(x: Tensor) -> Tensor:
        before = network(x, 0.5)
        for _ in range(steps - 1):
            now = network(x, 0.5)
            x = torch.add(torch.add(0.9 * x, now, alpha=0.1), before, alpha=0.05)
            before = now
        return x

    def with_noise(x: Tensor) -> Tensor:
        for _ in range(steps):
            x = torch.add(torch.add(0.9 * x, network(x, 0.5), alpha=0.1), torch.randn_like(x), alpha=0.1)
        return x

    yield "a x + b m (DDIM)", two_terms
    yield "a x + b m + c m' (2M)", three_terms
    yield "a x + b m + c z (DDPM)", with_noise


def peer_runs(library: str, network: Network, steps: int) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    for name, run in peers.adaptor(library).overhead():
        yield name, lambda x, run=run: run(network, x, steps)


def measure(run: Callable[[Tensor], Tensor], x: Tensor, network: Constant, seconds: float) -> tuple[float, int]:
    """Microseconds of CPU time per network call, the minimum over repeats; and the calls of a run."""
    before = network.calls
    run(x)
    nfe = network.calls - before
    least, began = float("inf"), time.perf_counter()
    while least == float("inf") or time.perf_counter() - began < seconds:
        start = time.process_time_ns()
        run(x)
        least = min(least, time.process_time_ns() - start)
    return least / nfe / 1000, nfe


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--libraries", help="comma-separated; default: scoresde and every peer that is installed")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=0.5, help="time for the repeats of a cell (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the numbers here")
    args = parser.parse_args(argv)

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    libraries = args.libraries.split(",") if args.libraries else ["scoresde", *peers.installed()]
    table: dict[tuple[str, str], list[float]] = {}
    results = []
    for shape in SHAPES:
        x, network = torch.randn(shape), Constant(torch.randn(shape))
        for library in ["by hand", *libraries]:
            own = {"by hand": by_hand, "scoresde": our_runs}.get(library) or partial(peer_runs, library)
            for name, run in own(network, args.steps):
                microseconds, nfe = measure(run, x, network, args.seconds)
                table.setdefault((library, name), []).append(microseconds)
                results.append(
                    {"library": library, "solver": name, "shape": shape, "us_per_call": microseconds, "nfe": nfe}
                )

    columns = "".join(f"{'×'.join(map(str, shape)):>14}" for shape in SHAPES)
    print(f"microseconds of CPU time per network call, 1 thread, {args.steps} steps, torch {torch.__version__}")
    print(f"{'':42}{columns}")
    for (library, name), cells in table.items():
        print(f"{library:12}{name:30}" + "".join(f"{cell:14.1f}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps({"steps": args.steps, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
