"""Reflow: noise and the data that a model's own flow makes of it, as pairs to train on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.denoiser import Denoiser
from scoresde.noise import stream_generator
from scoresde.solvers import ProbabilityFlowODE, Solver, StepSolver


class Pairs(NamedTuple):
    """Noise and the data it flows to, row by row: (N, *) both, in the model's scaling."""

    noise: Tensor
    x0: Tensor


@torch.no_grad()
def reflow_pairs(
    denoiser: Denoiser,
    shape: Sequence[int],
    count: int,
    *,
    solver: Solver | None = None,
    seed: int = 0,
    batch_size: int = 500,
    progress: Callable[[int], object] | None = None,
    **cond: Any,
) -> Pairs:
    """Pairs (x_1, x_0 = ODE(x_1)) of a model's own flow, for `FlowLoss` (Liu et al. 2023, §2.1).

        loss(denoiser, pairs.x0[rows], noise=pairs.noise[rows])

    Trained on them, a flow keeps the law at its end and costs no more by any convex measure, and its paths are
    straighter. Pair k is a function of (seed, k), whatever the batch, if the solver is one of its own per sample.

    Args:
        denoiser: The model, on a process that ends without signal.
        shape: Event shape.
        count: Number of pairs.
        solver: A deterministic one; None: `ProbabilityFlowODE` with tolerances of 1e-3.
        seed: Of the noise.
        batch_size: Pairs that are made at once.
        progress: Called with the number of pairs after each batch.
        cond: Conditions, each a tensor (N, *).
    References:
        Liu et al., "Flow Straight and Fast", 2023, arXiv:2209.03003.
    """
    check_whole(
        "reflow_pairs", "count >= 1", "seed >= 0", "batch_size >= 1", count=count, seed=seed, batch_size=batch_size
    )
    solver = ProbabilityFlowODE(rtol=1e-3, atol=1e-3) if solver is None else solver
    if not is_flow(solver):
        raise ValueError(f"reflow_pairs needs a deterministic solver, got {type(solver).__name__}: it adds noise.")
    if not denoiser.sde.ends_silent:
        raise ValueError(
            f"reflow_pairs needs x_1 to be the noise alone, and alpha(1) is not 0 on {type(denoiser.sde).__name__}: "
            f"use a model on StraightSDE, sde=straight."
        )
    device = next((parameter.device for parameter in denoiser.parameters()), torch.device("cpu"))
    noise, x0 = [], []
    for first in range(0, count, batch_size):
        rows = range(first, min(first + batch_size, count))
        noise.append(torch.stack([torch.randn(*shape, generator=stream_generator(seed, "pair", k)) for k in rows]))
        given = {name: value[first : rows.stop].to(device) for name, value in cond.items()}
        model = denoiser.given(**given) if given else denoiser
        x0.append(solver(model, denoiser.sde.prior_std * noise[-1].to(device)).cpu())
        if progress is not None:
            progress(len(rows))
    return Pairs(torch.cat(noise), torch.cat(x0))


def is_flow(solver: Solver) -> bool:
    """Whether a solver follows the probability flow, without noise of its own."""
    return solver.deterministic if isinstance(solver, StepSolver) else isinstance(solver, ProbabilityFlowODE)
