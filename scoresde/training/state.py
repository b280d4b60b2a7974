"""What a training goes on from: weights, their average, the optimizer, and what has been measured so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoresde.training.checkpoint import FORMAT, CheckpointError, check_weights, load_weights
from scoresde.training.ema import EMA
from scoresde.training.length import Length
from scoresde.training.optimizer_state import check_optimizer_state
from scoresde.training.update import Update


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingState:
    """The parts of a training that change with every step.

    Args:
        denoiser, optimizer, seed: As in `Trainer`.
        ema, update, length: Those of the training.
    """

    denoiser: nn.Module
    ema: EMA
    optimizer: torch.optim.Optimizer
    update: Update
    length: Length
    seed: int

    def is_finite(self) -> bool:
        """Whether all weights, averages and moments are; waits for the device."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.denoiser.parameters(), *self.ema.shadow_params, *filter(torch.is_tensor, moments)]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def content(self, step: int, origin: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a checkpoint holds after a step: tensors and plain values."""
        meter = self.update.meter
        return {
            "format": FORMAT, "step": step, "seed": self.seed, "model": self.denoiser.state_dict(),
            "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict(), "sums": meter.sums,
            "summed": meter.count, "loss": self.update.loss_state(), "length": self.length.state(), "origin": origin,
        }  # fmt: skip

    def take_up(self, state: Mapping[str, Any], path: Path, log_every: float) -> int:
        """Go on from the content of a checkpoint, from `path`; returns its step.

        Args:
            log_every: Period of the rows of metrics, for a version that did not keep how many steps are in the sums.
        Raises:
            CheckpointError: If it is of another seed, model or optimizer.
        """
        meter = self.update.meter
        if state.get("seed") != self.seed:
            raise CheckpointError(f"{path} is of a run with seed {state.get('seed')}, got seed {self.seed}.")
        load_weights(self.denoiser, dict(state), ema=False)
        try:
            averaged, own = state["ema"], self.ema.state_dict()
            check_weights(averaged["params"], own["params"])
            check_weights(averaged["buffers"], own["buffers"])
            check_weights({"sums": state["sums"]}, {"sums": meter.sums})
            check_optimizer_state(self.optimizer, state["optimizer"])
            self.ema.load_state_dict(averaged)
            self.optimizer.load_state_dict(state["optimizer"])
            meter.sums = state["sums"].to(meter.sums.device)
            self.update.load_loss_state(state.get("loss", {}))
            step = int(state["step"])
            meter.count = int(state.get("summed", step % round(max(log_every, 1))))
            self.length.take_up(state.get("length"))
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{path} is of another model or optimizer: {error}.") from error
        return step
