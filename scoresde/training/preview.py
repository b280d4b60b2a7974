"""Pictures that a run draws while it trains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from scoresde.streams import say
from scoresde.training.ema import EMA

Preview = Callable[[nn.Module, int], str | Path | None]  # (denoiser with averaged weights, step) -> picture


@runtime_checkable
class Redrawn(Protocol):
    """A preview whose pictures have names: on resuming, one that a kill cut off is drawn again."""

    def path(self, step: int) -> Path:
        """Where the picture of a step is; it may not exist."""


def draw(preview: Preview, denoiser: nn.Module, ema: EMA, step: int) -> Path | None:
    """The picture of a step, with averaged weights in evaluation mode; None if there is none, or no room for it."""
    mode = denoiser.training
    denoiser.eval()
    try:
        with torch.no_grad(), ema.applied(denoiser), random_state_kept(next(denoiser.parameters()).device):
            picture = preview(denoiser, step)
    except OSError as error:
        say(f"cannot write the picture of step {step} ({error.strerror or error}): training goes on.")
        return None
    finally:
        denoiser.train(mode)
    return None if picture is None else Path(picture)


def random_state_kept(device: torch.device) -> AbstractContextManager[None]:
    """The global random state is on leaving what it was on entering."""
    if device.type == "cpu":
        return torch.random.fork_rng([])
    return torch.random.fork_rng([device], device_type=device.type)
