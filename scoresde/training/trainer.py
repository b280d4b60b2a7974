"""The training loop, to be read from `fit` downwards."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoresde.checks import check_choice, check_flag, check_numbers, check_whole, is_number
from scoresde.streams import say
from scoresde.training.checkpoint import (
    save_checkpoint,
    with_present_names,
)
from scoresde.training.compiled import CompiledNetwork
from scoresde.training.ema import EMA
from scoresde.training.length import Length, check_period, seconds_per_update
from scoresde.training.loggers import CSVLogger, Logger, MultiLogger, writes_rows
from scoresde.training.preview import Preview, Redrawn, draw, random_state_kept
from scoresde.training.progress import Progress
from scoresde.training.rows import last_step, set_aside
from scoresde.training.run import RunDirectory
from scoresde.training.schedule import DECAYS, learning_rate_factor
from scoresde.training.signals import Interrupted, StopSignals
from scoresde.training.state import TrainingState
from scoresde.training.update import Batch, TrainingError, Update, put_channels_last

PRECISIONS = ("float32", "bfloat16")
WHOLE = (
    "warmup >= 0", "accumulate >= 1", "seed >= 0",
)  # fmt: skip
PERIODS = ("log_every", "sample_every", "checkpoint_every", "snapshot_every")
FLAGS = ("ema_ramp", "channels_last", "compile", "progress")


class Origin(Protocol):
    """What a run is made from, its configuration and data: kept in every checkpoint, and compared on resuming."""

    def state(self) -> dict[str, Any]:
        """Plain values and tensors that say it."""

    def check(self, state: Mapping[str, Any] | None, path: Path) -> None:
        """Raise CheckpointError if that of the checkpoint at `path` is another; None if the checkpoint has none."""


class Trainer:
    """Fits a denoiser by stochastic gradient descent on a loss.

    One step: clear the gradients, accumulate them over `accumulate` batches, set the learning rate, clip the
    gradient's global norm, update the weights, update their moving average.

    Times, noise and dropout masks of step k come from (seed, k), and `batch` is a function of k. A run that
    was stopped and resumed thus equals one that was not, on a CPU bit for bit (with as many threads).
    Training stops at a loss or a gradient that is not finite, and such weights are never saved.

    Args:
        denoiser: The module to train, called by the loss.
        loss: loss(denoiser, x0, generator=..., **cond) -> (B,), see `Loss` for what it may do besides.
        optimizer: Over the denoiser's parameters; its learning rates are those after the warm-up.
        batch: Function of the micro-batch index 0, 1, 2, ... that returns x0 (B, *) and a dict of conditions.
        run: Where to write; None writes nothing.
        logger: Receives metrics and pictures; None: the run's metrics.csv.
        preview: Called as preview(denoiser, step) with averaged weights in evaluation mode; returns the path
            of a picture, or None. Called again on resuming at a step where it was due, as a kill may have cut it off;
            with a method path(step) only if that file is missing.
        steps: Number of updates; None with `minutes`.
        minutes: How long to train instead, in all: the number of steps follows from how long the first ones take, is
            corrected on the way, and is kept on resuming. The warm-up is then at most a fifth of it, and previews that
            would take more than a tenth of the time are left out.
        warmup: Updates over which the learning rate grows from 0.
        decay: Learning rate after the warm-up: "constant", or to zero as "cosine" or "linear".
        clip: Largest global gradient norm; None or negative: no clipping.
        accumulate: Batches per update.
        ema_decay: Decay of the averaged weights; None: 1 − 10/steps, an average over a tenth of the training.
        ema_ramp: Whether the decay grows with the number of updates, see `EMA`.
        precision: "float32", or "bfloat16" for autocast; weights and the loss stay float32.
        channels_last: Memory format of images and convolutions, often faster.
        compile: Compile the network with torch.compile.
        seed: Seed of times, noise and dropout.
        log_every, sample_every, checkpoint_every, snapshot_every: Periods in steps, or below 1 as shares of the
            training, and at the last step; None or 0: never, but the last step is logged and saved all the same.
            A checkpoint replaces the one before; snapshots are kept.
        device: Where to train; None: where the denoiser is.
        progress: Whether to show a bar, or lines where there is no terminal.
        origin: What the run is made from; None: whatever its checkpoint says.
    """

    def __init__(
        self, *,
        denoiser: nn.Module, loss: Callable[..., Tensor], optimizer: torch.optim.Optimizer, batch: Batch,
        run: RunDirectory | None = None, logger: Logger | None = None, preview: Preview | None = None,
        steps: int | None = None, minutes: float | None = None, warmup: int = 0, decay: str = "constant",
        clip: float | None = 1.0, accumulate: int = 1,
        ema_decay: float | None = 0.999, ema_ramp: bool = True,
        precision: str = "float32", channels_last: bool = False, compile: bool = False, seed: int = 0,
        log_every: float | None = 10, sample_every: float | None = None,
        checkpoint_every: float | None = 1000, snapshot_every: float | None = None,
        device: str | torch.device | None = None, progress: bool = True, origin: Origin | None = None,
    ) -> None:  # fmt: skip
        given = {name: value for name, value in locals().items() if name != "self"}
        check_whole("Trainer", *WHOLE, **given)
        self.length = Length(steps, minutes)
        check_choice(self, "decay", decay, DECAYS)
        check_choice(self, "precision", precision, PRECISIONS)
        if ema_decay is not None:
            check_numbers(self, "0 <= ema_decay < 1", ema_decay=ema_decay)
        for name in PERIODS:
            check_period(name, given[name])
        if clip is not None and (not is_number(clip) or clip == 0):
            raise ValueError(f"Trainer needs clip to be a positive number, or null for no clipping, got {clip!r}.")
        for name in FLAGS:
            check_flag(self, name, given[name])
        self.denoiser, self.optimizer, self.run, self.preview = denoiser, optimizer, run, preview
        self.seed, self.compile, self.progress = seed, compile, progress
        self.log_every, self.sample_every = log_every or 0, sample_every or 0
        self.checkpoint_every, self.snapshot_every = checkpoint_every or 0, snapshot_every or 0
        self.device = torch.device(next(denoiser.parameters()).device if device is None else device)
        denoiser.to(self.device)
        if channels_last:
            put_channels_last(denoiser)
        self.step = 0  # finished updates
        self.origin, self._origin_state, self._resumed = origin, None, False
        self._keeps = False  # whether last.pt is kept when it is replaced: a state that a signal had saved is not
        self._averages_a_share = ema_decay is None
        self.ema = EMA(denoiser, ema_decay or 0.0, ema_ramp)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if distributed else 0
        if logger is None and run is not None:
            logger = CSVLogger(run)
        self.logger = MultiLogger([logger] if logger is not None and self._rank == 0 else [])
        self._update = Update(
            denoiser=denoiser, loss=loss, optimizer=optimizer, batch=batch,
            factor=lambda step: learning_rate_factor(
                step, steps=self.steps, warmup=self.length.warmup(warmup), decay=decay
            ),
            clip=math.inf if clip is None or clip < 0 else float(clip), accumulate=accumulate, precision=precision,
            channels_last=channels_last, seed=seed, device=self.device, rank=self._rank,
        )  # fmt: skip
        self._meter = self._update.meter
        self._parts = TrainingState(
            denoiser=denoiser, ema=self.ema, optimizer=optimizer, update=self._update, length=self.length, seed=seed
        )

    def fit(self) -> dict[str, float]:
        """Train to the last step, from the run's checkpoint if it has one.

        Returns:
            The metrics logged last: step; loss and grad_norm, means since the row before; loss_std, the standard
            deviation of the loss between the examples of a batch; lr; examples_per_second; seconds since `fit` was
            called.
        Raises:
            TrainingError: If a loss, gradient or weight is not finite, with the step and the noise level.
            CheckpointError: If the run's checkpoint is damaged or of another model, or a new one cannot be
                written.
            Interrupted: After SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGXCPU, once the state is saved.
            InUse: If another process trains the run.
        """
        with ExitStack() as stack:
            if self.run is not None and self._rank == 0:
                stack.enter_context(self.run.locked())
            if not self._resumed:
                self.resume()
            self._resumed = False
            if self.length.finished(self.step):
                self._redo()
                self._say(f"already trained to step {self.step} of {self.steps}: nothing left to do.")
                return {"step": float(self.step)}
            network = CompiledNetwork(dict(self.denoiser.named_children()).get("net", self.denoiser), self.compile)
            stack.callback(self.logger.close)
            stack.callback(self.denoiser.train, self.denoiser.training)
            stack.enter_context(network)
            stack.enter_context(random_state_kept(self.device))
            stop = stack.enter_context(StopSignals())
            try:
                self._plan(network)
                progress = Progress(self.step, self.steps, self.progress and self._rank == 0)
                stack.callback(progress.close)
                metrics, stopped_by = self._loop(network, progress, stop)
            except TrainingError as error:
                raise TrainingError(f"{error}; {self._kept()}; check the data, or lower the learning rate.") from None
        if stopped_by is not None:
            self._say_stopped(stopped_by)
            raise Interrupted(stopped_by)
        return {"step": float(self.step), **metrics}

    def _loop(
        self, network: CompiledNetwork, progress: Progress, stop: StopSignals
    ) -> tuple[dict[str, float], int | None]:
        """(last metrics, signal that ended the loop)."""
        metrics: dict[str, float] = {}
        stopped_by = None
        self._miss_rows()
        self.logger.start(self.step)
        with network.eager():
            self._show(self._redo())
        self.denoiser.train()
        self._meter.restart()
        while self.step < self.steps and stopped_by is None:
            network.attempt(partial(self._update, self.step))
            self.ema.update(self.denoiser)
            self.step += 1
            stopped_by = stop.received  # read once: a later signal ends the next step
            progress.advance()
            if self._due(self.log_every, at_the_end=True):
                self._update.check()
                rate = float(self.optimizer.param_groups[0]["lr"])
                metrics = self._meter.means(rate)
                self.logger.log(self.step, metrics)
                progress.report(self.step, metrics["loss"], metrics["examples_per_second"], self._update.noun)
            paused = time.perf_counter()
            if self._due(self.snapshot_every):
                self._save(lambda run: run.snapshot(self.step))
            if self._due(self.checkpoint_every, at_the_end=True) or stopped_by is not None:
                self._save(lambda run: run.last)
            if self._due(self.sample_every) and self.length.has_time_for_a_picture(self.step):
                with network.eager():
                    self._show(self._draw())
            pause = time.perf_counter() - paused
            self._meter.pause(pause)
            self.length.correct(self.step, pause)
            progress.steps = self.steps
        return metrics, stopped_by

    def _plan(self, network: CompiledNetwork) -> None:
        """Start the clock; find out how many steps fit into a given time, by updates that are undone, and say it."""
        self.length.start(self.step)
        if self.length.longest_trial > 0:

            def update(step: int) -> None:
                network.attempt(partial(self._update, step))
                self._update.check()

            self.denoiser.train()
            keep = (self.denoiser, self.optimizer, self._update)
            seconds = seconds_per_update(update, self.step, keep, self.length.longest_trial)
            self._meter.forget()
            self._say(self.length.plan(self.step, seconds))
        if self._averages_a_share:
            self.ema.decay = max(0.0, 1 - 10 / self.steps)

    @property
    def steps(self) -> int:
        """Number of updates, without an end while it is not known."""
        return self.length.known

    def _kept(self) -> str:
        if self.run is not None and self.run.has_checkpoint:
            return f"the last good checkpoint is kept in {self.run.checkpoint}"
        return "no checkpoint had been saved"

    def _save(self, where: Callable[[RunDirectory], Path]) -> None:
        self._update.check()
        if not self._parts.is_finite():
            raise TrainingError(f"the weights are not finite after step {self.step}")
        if self.run is not None and self._rank == 0:
            path, last = where(self.run), self.run.last
            origin = self._origin_state if self.origin is None else self.origin.state()
            save_checkpoint(
                path,
                self._parts.content(self.step, origin),
                keep=self.run.previous if path == last and self._keeps else None,
            )
            self._keeps = self._due(self.checkpoint_every, at_the_end=True) if path == last else self._keeps

    def resume(self) -> None:
        """Take up the state of the run's checkpoint, if it has one; `fit` does so by itself.

        Raises:
            CheckpointError: As for `fit`.
        """
        self._resumed = True
        if self.run is None or not self.run.has_checkpoint:
            return
        path, state = self.run.newest_state()
        state = with_present_names(self.denoiser, state)
        self._origin_state = state.get("origin")
        if self.origin is not None:
            self.origin.check(self._origin_state, path)
        self.step = self._parts.take_up(state, path, self.log_every)
        self._keeps = path == self.run.last and self._due(self.checkpoint_every, at_the_end=True)
        if path != self.run.last and self.run.last.is_file() and self._rank == 0:
            say(f"{self.run.last} is damaged: it is {set_aside(self.run.last).name} from now on.")
        if self.step > 0 and not self.length.finished(self.step):
            of = "" if self.length.steps is None else f" of {self.steps}"
            self._say(f"going on from step {self.step}{of} ({path}).")

    def _miss_rows(self) -> None:
        """Say so if the metrics do not reach as far as they did when the state was saved."""
        logged = self.step - self._meter.count
        if self.run is not None and logged > 0 and writes_rows(self.logger):
            found = last_step(self.run.metrics, self.step)
            if found < logged:
                self._say(f"{self.run.metrics} has no rows from step {found + 1} to {logged}: they are lost.")

    def _redo(self) -> Path | None:
        """Make what a kill may have cut off after the state of this step was saved; returns its picture, if drawn."""
        if self.run is None or self.step == 0 or self._rank > 0:
            return None
        if self._due(self.snapshot_every) and not self.run.snapshot(self.step).is_file():
            self._save(lambda run: run.snapshot(self.step))
        drawn = isinstance(self.preview, Redrawn) and self.preview.path(self.step).is_file()
        return self._draw() if self._due(self.sample_every) and not drawn else None

    def _draw(self) -> Path | None:
        if self.preview is None or self._rank > 0:
            return None
        return draw(self.preview, self.denoiser, self.ema, self.step)

    def _show(self, picture: Path | None) -> None:
        if picture is not None:
            self.logger.image(self.step, picture)

    def _due(self, period: float, *, at_the_end: bool = False) -> bool:
        return self.length.due(self.step, period, at_the_end=at_the_end)

    def _say(self, sentence: str) -> None:
        if self._rank == 0:
            say(sentence)

    def _say_stopped(self, signum: int) -> None:
        then = "nothing is saved without a run directory"
        if self.run is not None:
            then = f"the state is saved in {self.run.last}: run the same command again to go on"
        self._say(f"stopped by {signal.Signals(signum).name} after step {self.step} of {self.steps}; {then}.")
