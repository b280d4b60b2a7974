"""The training loop, to be read from `fit` downwards."""

from __future__ import annotations

import hashlib
import math
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.training.checkpoint import (
    FORMAT,
    CheckpointError,
    load_checkpoint,
    load_weights,
    save_checkpoint,
)
from scoresde.training.ema import EMA
from scoresde.training.loggers import CSVLogger, Logger, MultiLogger
from scoresde.training.progress import Progress
from scoresde.training.run import RunDirectory
from scoresde.training.signals import Interrupted, StopSignals

Batch = Callable[[int], tuple[Tensor, dict[str, Any]]]  # micro-batch index -> (x0 (B, *), conditions)
Preview = Callable[[nn.Module, int], Path | None]  # (denoiser with averaged weights, step) -> picture on disk


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is kept."""


def learning_rate_factor(step: int, *, steps: int, warmup: int = 0, decay: str = "constant") -> float:
    """Factor of the learning rate at update `step`, counted from 0.

        min(step / warmup, 1) · h((step − warmup) / (steps − warmup)),      h = 1 until the warm-up is over
        h(p) = 1 (constant),   1 − p (linear),   (1 + cos πp) / 2 (cosine)

    The warm-up is that of the score_sde reference: the first update has factor 0.
    """
    if step < warmup:
        return step / warmup
    p = (step - warmup) / max(steps - warmup, 1)
    return {"constant": 1.0, "linear": 1 - p, "cosine": 0.5 * (1 + math.cos(math.pi * p))}[decay]


class Trainer:
    """Fits a denoiser by stochastic gradient descent on a loss.

    One step: clear the gradients, accumulate them over `accumulate` batches, set the learning rate, clip the
    gradient's global norm, update the weights, update their moving average.

    Step k draws its times, its noise and its dropout masks from (seed, k) and `batch` is a function of k, so that a
    run that was stopped and resumed equals one that was not: bit for bit on a CPU with the same number of threads.
    Training stops at a loss or a gradient that is not finite, and such weights are never saved.

    Args:
        denoiser: The module to train, called by the loss.
        loss: loss(denoiser, x0, generator=..., **cond) -> (B,). If it has `draw`, errors name the noise level.
        optimizer: Over the denoiser's parameters; its learning rates are those after the warm-up.
        batch: Function of the micro-batch index 0, 1, 2, ... that returns x0 (B, *) and a dict of conditions.
        run: Where to write; None writes nothing.
        logger: Receives metrics and pictures; None: the run's metrics.csv.
        preview: Called as preview(denoiser, step) with averaged weights; returns the path of a picture, or None.
        steps: Number of updates.
        warmup: Updates over which the learning rate grows from 0.
        decay: Learning rate after the warm-up: "constant", or to zero as "cosine" or "linear".
        clip: Largest global gradient norm; None or negative: no clipping.
        accumulate: Batches per update.
        ema_decay: Decay of the averaged weights.
        ema_ramp: Whether the decay grows with the number of updates, see `EMA`.
        precision: "float32", or "bfloat16" for autocast; weights and the loss stay float32.
        channels_last: Memory format of images and convolutions, often faster.
        compile: Compile the network with torch.compile.
        seed: Seed of times, noise and dropout.
        log_every, sample_every, checkpoint_every, snapshot_every: Periods in steps; None or 0: never (the last step is
            always logged and saved). A checkpoint replaces the one before, snapshots are kept.
        device: Where to train; None: where the denoiser is.
        progress: Whether to show a bar, or lines where there is no terminal.
    """

    def __init__(
        self,
        *,
        denoiser: nn.Module,
        loss: Callable[..., Tensor],
        optimizer: torch.optim.Optimizer,
        batch: Batch,
        run: RunDirectory | None = None,
        logger: Logger | None = None,
        preview: Preview | None = None,
        steps: int,
        warmup: int = 0,
        decay: str = "constant",
        clip: float | None = 1.0,
        accumulate: int = 1,
        ema_decay: float = 0.999,
        ema_ramp: bool = True,
        precision: str = "float32",
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
        log_every: int | None = 10,
        sample_every: int | None = None,
        checkpoint_every: int | None = 1000,
        snapshot_every: int | None = None,
        device: str | torch.device | None = None,
        progress: bool = True,
    ) -> None:
        for name, value, least in (("steps", steps, 1), ("accumulate", accumulate, 1), ("warmup", warmup, 0)):
            _check_integer(name, value, least)
        periods = {
            "log_every": log_every,
            "sample_every": sample_every,
            "checkpoint_every": checkpoint_every,
            "snapshot_every": snapshot_every,
        }
        for name, period in periods.items():
            _check_integer(name, period or 0, 0)
        _check_integer("seed", seed, 0)
        if decay not in ("constant", "cosine", "linear"):
            raise ValueError(f"Trainer needs decay to be one of constant, cosine, linear, got {decay!r}.")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"Trainer needs precision to be float32 or bfloat16, got {precision!r}.")
        if clip is not None and (isinstance(clip, (bool, str)) or not clip == clip):
            raise ValueError(f"Trainer needs clip to be a number or None, got {clip!r}.")
        self.denoiser, self.loss, self.optimizer, self.batch = denoiser, loss, optimizer, batch
        self.run, self.logger, self.preview = run, logger, preview
        self.steps, self.warmup, self.decay, self.accumulate = steps, warmup, decay, accumulate
        self.clip = math.inf if clip is None or clip < 0 else float(clip)
        self.precision, self.channels_last, self.compile, self.seed = precision, channels_last, compile, seed
        self.log_every, self.sample_every = log_every, sample_every
        self.checkpoint_every, self.snapshot_every = checkpoint_every, snapshot_every
        first = next(denoiser.parameters(), None)
        self.device = torch.device(device or (first.device if first is not None else "cpu"))
        denoiser.to(self.device)
        if channels_last:
            denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = EMA(denoiser, ema_decay, ema_ramp)
        self._rates = [float(group["lr"]) for group in optimizer.param_groups]
        self._rank = torch.distributed.get_rank() if _distributed() else 0
        self._progress = progress and self._rank == 0
        self._sums = torch.zeros(2, device=self.device)  # loss and gradient norm since the last logged step
        self._trouble = torch.full((3,), -1, device=self.device)  # step, example, 1 if its loss is finite
        self._step = 0
