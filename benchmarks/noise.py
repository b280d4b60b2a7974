"""Cost of a noise source per step, beside torch.randn.

    OMP_NUM_THREADS=1 python benchmarks/noise.py [--steps 20 40 100] [--json OUT]

Every source is made anew for each run and asked for the steps of a uniform grid, so its set-up is in the figures.
Runs of all sources alternate, and the table shows the least processor time of the thread. k-diffusion's
BrownianTreeNoiseSampler is timed if it can be imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torchsde
from torch import Tensor

from scoresde import VPSDE, gaussian_noise, per_sample_noise, uniform_grid
from scoresde.noise import brownian_motion, brownian_noise

SHAPES = [(1, 3, 32, 32), (16, 3, 64, 64)]
END = 1e-3
Source = Callable[[Tensor, Tensor], Any]


def interval(x: Tensor) -> Source:
    path = torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=(x.shape[0], x[0].numel()), dtype=x.dtype, entropy=0, tol=1e-6, halfway_tree=True
    )
    return lambda t, s: path(s, t) / (t - s).sqrt()


def motion(x: Tensor) -> Source:
    path = brownian_motion(x.flatten(1), 0, 0.0, 1.0)
    return lambda t, s: path(s, t, return_U=True)


def sources() -> dict[str, Callable[[Tensor, Tensor], Source]]:
    """Constructors from (x, times)."""
    found: dict[str, Callable[[Tensor, Tensor], Source]] = {
        "torch.randn": lambda x, times: gaussian_noise(x),
        "per_sample_noise": lambda x, times: per_sample_noise(x, 0),
        "brownian_noise(times=grid)": lambda x, times: brownian_noise(x, 0, times=times),
        "brownian_noise, depth 10": lambda x, times: brownian_noise(x, 0, depth=10),
        "brownian_noise": lambda x, times: brownian_noise(x, 0),
        "brownian_motion, W and U": lambda x, times: motion(x),
        "torchsde BrownianInterval": lambda x, times: interval(x),
    }
    try:
        sampling = importlib.import_module("k_diffusion.sampling")
    except ImportError:
        return found
    seeds = list(range(64))
    found["k-diffusion BrownianTree"] = lambda x, times: sampling.BrownianTreeNoiseSampler(
        x, times[-1], times[0], seed=seeds[: len(x)]
    )
    return found


def seconds_per_step(make: Callable[[Tensor, Tensor], Source], x: Tensor, times: Tensor) -> float:
    pairs = list(pairwise(times.unbind()))
    start = time.thread_time()
    source = make(x, times)
    for t, s in pairs:
        source(t, s)
    return (time.thread_time() - start) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 40, 100])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for shape in SHAPES:
        for steps in options.steps:
            x, times = torch.zeros(shape), uniform_grid(VPSDE(), steps, END)
            least: dict[str, float] = {}
            for _ in range(options.rounds):
                for name, make in sources().items():
                    least[name] = min(least.get(name, float("inf")), seconds_per_step(make, x, times))
            print(f"\n{'x'.join(map(str, shape))}, {steps} steps           µs a step   times randn")
            for name, seconds in least.items():
                ratio = seconds / least["torch.randn"]
                print(f"  {name:28s} {1e6 * seconds:12.1f} {ratio:12.2f}")
                results.append({"shape": shape, "steps": steps, "source": name, "seconds": seconds, "ratio": ratio})
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
