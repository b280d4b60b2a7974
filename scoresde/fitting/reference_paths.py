"""Reference paths: starts from the prior and where the probability flow of a model takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_whole
from scoresde.denoiser import Denoiser, devices_named
from scoresde.denoiser.inference_mode import differentiates
from scoresde.fitting.gaussian_flow import GaussianFlow
from scoresde.sde.grids import logsnr_grid
from scoresde.solvers.adams import ExponentialAdams


@dataclass(frozen=True, eq=False)
class ReferencePaths:
    """Ends of fine runs of a model.

    Args:
        start: x at t = 1, (P, *).
        end: Data at noise 0 from there, (P, *).
        gaussian: The flow of Gaussian data with the mean and principal components of the ends.
        nfe: Network calls that every path cost.
        cond: Conditions of the paths, each (P, *).
    """

    start: Tensor
    end: Tensor
    gaussian: GaussianFlow
    nfe: int
    cond: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.start)

    def given(self, denoiser: Denoiser, rows: Tensor | slice) -> Denoiser:
        """The denoiser with the conditions of some paths."""
        return denoiser.given(**{key: value[rows] for key, value in self.cond.items()}) if self.cond else denoiser

    @property
    def rms(self) -> float:
        """Root mean square of the data."""
        return float(self.end.square().mean().sqrt())


@differentiates
@torch.no_grad()
def reference_paths(
    denoiser: Denoiser,
    shape: Sequence[int],
    count: int = 256,
    *,
    steps: int = 100,
    batch: int = 256,
    generator: torch.Generator | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    progress: Callable[[int], Any] | None = None,
    cond: Mapping[str, Tensor] | None = None,
) -> ReferencePaths:
    """Run `count` starts with a fine solver of third order.

    The mean of the ends is improved by that of x̂0 at t = 1, which scatters far less.

    Args:
        denoiser: The model.
        shape: Event shape.
        count: Number of paths; more make few-step errors of rare paths count.
        steps: Steps of the fine runs; their own error must be well below that of the solver to be fitted.
        batch: Paths per network call.
        progress: Called with the number of paths done since the last call.
        cond: Conditions, one row per path, (count, *).
    """
    check_whole("reference_paths", "count >= 2", "batch >= 1", count=count, batch=batch)
    check_choice("reference_paths", "dtype", dtype, (None, torch.float32, torch.float64))
    fine = ExponentialAdams(steps=steps, order=3, prediction="v", corrector=True, grid=logsnr_grid)
    sde = denoiser.sde
    ends, means = [], []
    source = generator and torch.empty(0, device=generator.device)
    with devices_named("reference_paths", denoiser, paths=torch.empty(0, device=device), generator=source):
        x = sde.prior_sample((count, *shape), generator=generator, device=device, dtype=dtype)
        cond = {key: value.to(x.device) for key, value in (cond or {}).items()}
        for first in range(0, count, batch):
            rows = slice(first, min(first + batch, count))
            given = denoiser.given(**{key: value[rows] for key, value in cond.items()}) if cond else denoiser
            part = x[rows]
            one = torch.ones((), dtype=torch.float64, device=x.device)
            means.append(given(part, one).double().sum(0))
            ends.append(fine(given, part))
            if progress is not None:
                progress(len(part))
    end = torch.cat(ends)
    gaussian = GaussianFlow.of(end.cpu(), mean=(torch.stack(means).sum(0) / count).cpu())
    return ReferencePaths(x, end, gaussian, steps + 2, cond)
