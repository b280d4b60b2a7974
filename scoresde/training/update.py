"""One update of the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.denoiser import Denoiser
from scoresde.guidance import EmbeddingPair, NoisyClassifier
from scoresde.losses.loss import DrawsTimes, KeepsState
from scoresde.noise import stream_generator, stream_seed
from scoresde.training.meter import Meter

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes
Batch = Callable[[int], tuple[Tensor, dict[str, Any]]]  # micro-batch index -> (x0 (B, *), conditions)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is kept."""


def put_channels_last(module: nn.Module) -> None:
    """Lay out the kernels of convolutions of images and volumes with the channels last."""
    for parameter in module.parameters():
        if parameter.ndim in CHANNELS_LAST:
            parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.ndim])


@dataclass(kw_only=True, eq=False, repr=False)
class Update:
    """One step of stochastic gradient descent, as a function of its index.

    Clear the gradients, accumulate them over batches, set the learning rate, clip the gradient's global norm,
    step. Times, noise and dropout masks of micro-batch k come from (seed, k, rank).

    Args:
        denoiser, loss, optimizer, batch, accumulate, precision, channels_last, seed, device: As in `Trainer`.
        factor: Factor of the learning rates at an update, counted from 0.
        clip: Largest global gradient norm, which may be infinite.
        rank: Number of this process among those that train together.
    """

    denoiser: nn.Module
    loss: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    batch: Batch
    factor: Callable[[int], float]
    clip: float
    accumulate: int
    precision: str
    channels_last: bool
    seed: int
    device: torch.device
    rank: int

    def __post_init__(self) -> None:
        self.meter, self.noun = Meter(self.device), "examples"
        self.checks_every_step = self.device.type == "cpu"  # elsewhere reading a value would wait for the device
        self._rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def __call__(self, step: int) -> None:
        self.optimizer.zero_grad()
        losses = []
        for index in self._indices(step):
            x0, cond = self._micro_batch(index)
            torch.manual_seed(stream_seed(self.seed, "network", index, self.rank))  # dropout
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
                each = self.loss(self.denoiser, x0, generator=self._generator(index), **cond)
            torch.autograd.backward(each.mean() / self.accumulate)
            losses.append(each.detach())
            self.noun = "images" if x0.ndim == 4 else "examples"
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.factor(step)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.clip)
        self.meter.record(step, torch.cat(losses), norm)
        if self.checks_every_step:
            self.check()
        self.optimizer.step()

    def check(self) -> None:
        """Raise TrainingError if a loss or gradient was not finite, naming the step and the noise level."""
        trouble = self.meter.trouble()
        if trouble is not None:
            step, example, loss_is_finite = trouble
            what = "the gradient" if loss_is_finite else "the loss"
            raise TrainingError(f"{what} is not finite at step {step + 1}{self._noise_level(step, example)}")

    def loss_state(self) -> dict[str, Any]:
        """What the loss has learned so far; empty for a loss that keeps no state."""
        return self.loss.state_dict() if isinstance(self.loss, KeepsState) else {}

    def load_loss_state(self, state: dict[str, Any]) -> None:
        if isinstance(self.loss, KeepsState):
            self.loss.load_state_dict(state)

    def _noise_level(self, step: int, example: int) -> str:
        """The time of the worst example, drawn once more from the step's generator."""
        if not (
            isinstance(self.denoiser, Denoiser | NoisyClassifier | EmbeddingPair) and isinstance(self.loss, DrawsTimes)
        ):
            return ""
        sde = self.denoiser.sde
        for index in self._indices(step):
            x0, _ = self._micro_batch(index)
            if example < len(x0):
                t = self.loss.draw(sde, x0, self._generator(index))[0][example].double()
                return f", t = {t.item():.4g}, sigma/alpha = {(sde.sigma(t) / sde.alpha(t)).item():.4g}"
            example -= len(x0)
        return ""

    def _indices(self, step: int) -> range:
        return range(step * self.accumulate, (step + 1) * self.accumulate)

    def _micro_batch(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        x0, cond = self.batch(index)
        layout = CHANNELS_LAST.get(x0.ndim, torch.preserve_format) if self.channels_last else torch.preserve_format
        x0 = x0.to(self.device, non_blocking=True, memory_format=layout)
        cond = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in cond.items()
        }
        return x0, cond

    def _generator(self, index: int) -> torch.Generator:
        return stream_generator(self.seed, "noise", index, self.rank, device=self.device)
