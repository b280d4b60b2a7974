"""Whether the probability flow and the reverse SDE of a model have the same marginals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoresde.denoiser import Denoiser
from scoresde.noise import gaussian_noise
from scoresde.sde import logsnr_grid
from scoresde.solvers import ExponentialAdams, SDEDPMSolverPP, StepSolver

DIRECTIONS = 128
SPLITS = 20  # random halves of the SDE's samples


@dataclass(frozen=True, kw_only=True)
class MarginalGap:
    """Result of `marginal_gap`: distances at noise levels from noise to data, in units of the samples' rms spread.

    Args:
        logsnr: The levels, (L,), increasing.
        sliced: Sliced Wasserstein distance between samples of the ODE and of the SDE, (L,).
        sliced_floor: The same between two halves of the SDE's samples: what as many samples of one law have.
        sliced_floor_std: Scatter of that over random halves; a gap within two of them is none.
        mean: Rms over entries of the difference of the means, (L,).
        mean_floor: The same between two halves.
        spread: log of the ratio of rms spreads, ODE to SDE, (L,); below 0 the ODE's samples are the narrower.
        spread_floor: Standard deviation of the same between two halves.
    """

    logsnr: Tensor
    sliced: Tensor
    sliced_floor: Tensor
    sliced_floor_std: Tensor
    mean: Tensor
    mean_floor: Tensor
    spread: Tensor
    spread_floor: Tensor


def sliced_wasserstein(x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """√ of the squared Wasserstein-2 distance of projections, averaged over directions; 0-d.

    Args:
        x, y: As many samples of each, (N, *).
        directions: Unit vectors, (d, K).
    """
    if x.shape != y.shape:
        raise ValueError(
            f"sliced_wasserstein needs as many samples of each, got {tuple(x.shape)} and {tuple(y.shape)}."
        )
    first, second = (value.flatten(1).to(directions) @ directions for value in (x, y))
    return (first.sort(0).values - second.sort(0).values).square().mean().sqrt()


@torch.no_grad()
def marginal_gap(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    samples: int = 512,
    steps: int = 40,
    levels: int = 8,
    ode: StepSolver | None = None,
    sde: StepSolver | None = None,
    batch_size: int = 256,
    cond: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int], object] | None = None,
) -> MarginalGap:
    """Distance between the marginals of the probability-flow ODE and of the reverse SDE, with its noise floor.

    Both have the marginals of the forward process where the score is exact. An error of the score moves them apart, as
    the SDE corrects its samples on the way and the ODE carries them along; so likelihoods by the ODE are then not those
    of the SDE's samples. The starts are independent; 2 · samples of the SDE give two halves for the noise floor.
    Errors of the solvers count too: a gap that shrinks with more steps is theirs.

    Args:
        denoiser: The model.
        shape: Event shape.
        samples: Samples of the ODE and of each half of the SDE's.
        steps: Steps of both, equal in log-SNR.
        levels: Number of noise levels compared, the last one at t_min.
        ode, sde: Solvers, whose own steps and grids are replaced; None is `ExponentialAdams` and `SDEDPMSolverPP`.
        batch_size: Samples drawn at once.
        cond: Conditions, one row per sample (samples, *): the same for all three sets.
        dtype, device: Of the samples.
        generator: On that device.
        progress: Called with the number of samples done.
    """
    if samples < 2 or not 1 <= levels <= steps:
        raise ValueError(
            f"marginal_gap needs at least 2 samples and 1 <= levels <= steps, got samples={samples}, levels={levels}, "
            f"steps={steps}."
        )
    options: dict[str, Any] = {"steps": steps, "grid": logsnr_grid, "t_end": denoiser.sde.t_min, "denoise": False}
    flow = replace(ExponentialAdams() if ode is None else ode, **options)
    noisy = replace(SDEDPMSolverPP() if sde is None else sde, **options)
    indices = [round(steps * (k + 1) / levels) for k in range(levels)]

    def draw(solver: StepSolver) -> list[Tensor]:
        parts: list[list[Tensor]] = [[] for _ in indices]
        plan = solver.plan(denoiser, device=device)  # of the process and the times, whatever the conditions
        for first in range(0, samples, batch_size):
            rows = slice(first, min(first + batch_size, samples))
            x = denoiser.sde.prior_sample((rows.stop - first, *shape), generator=generator, device=device, dtype=dtype)
            given = denoiser.given(**{key: value[rows] for key, value in cond.items()}) if cond else denoiser
            for step in solver.trajectory(given, x, noise=gaussian_noise(x, generator), plan=plan):
                if step.index in indices:
                    parts[indices.index(step.index)].append(step.x)
            if progress is not None:
                progress(len(x))
        return [torch.cat(part).flatten(1).double() for part in parts]

    from_ode, one, other = draw(flow), draw(noisy), draw(noisy)
    unit = torch.randn(from_ode[0].shape[1], DIRECTIONS, generator=generator, dtype=torch.float64, device=device)
    unit = unit / unit.norm(dim=0)
    rows = [_compare(*sets, unit, generator) for sets in zip(from_ode, one, other, strict=True)]
    times = logsnr_grid(denoiser.sde, steps, denoiser.sde.t_min)[indices]
    columns = torch.stack(rows).cpu().unbind(1)
    names = ("sliced", "sliced_floor", "sliced_floor_std", "mean", "mean_floor", "spread", "spread_floor")
    return MarginalGap(logsnr=denoiser.sde.logsnr(times), **dict(zip(names, columns, strict=True)))


def _compare(x: Tensor, one: Tensor, other: Tensor, unit: Tensor, generator: torch.Generator | None) -> Tensor:
    """The columns of `MarginalGap` at one level, from samples of the ODE and two sets of the SDE, all (N, d)."""
    scale = torch.cat([one, other]).var(0).mean().sqrt()
    gaps, floors = [], []
    for _ in range(SPLITS):
        # row by row, so that every half has one sample of each condition
        swapped = torch.rand(len(x), 1, generator=generator, device=x.device) < 0.5
        half, rest = torch.where(swapped, other, one), torch.where(swapped, one, other)
        gaps.append(_distances(x, half, unit, scale))
        floors.append(_distances(half, rest, unit, scale))
    gap, floor = torch.stack(gaps).mean(0), torch.stack(floors)
    (sliced, mean, _), scatter = floor.mean(0), floor.std(0)
    spread_floor = floor[:, 2].square().mean().sqrt()
    return torch.stack([gap[0], sliced, scatter[0], gap[1], mean, gap[2], spread_floor])


def _distances(x: Tensor, y: Tensor, unit: Tensor, scale: Tensor) -> Tensor:
    means = (x.mean(0) - y.mean(0)).square().mean().sqrt() / scale
    spreads = 0.5 * (x.var(0).mean() / y.var(0).mean()).log()
    return torch.stack([sliced_wasserstein(x, y, unit) / scale, means, spreads])
