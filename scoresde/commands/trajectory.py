"""`trajectory=...` of `sample.py`: how samples come out of noise, as an animation."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from scoresde.commands.build import ConfigError
from scoresde.commands.load import TrainedModel
from scoresde.commands.looks import kind_of, model_values, shown
from scoresde.data import Split
from scoresde.denoiser import Denoiser
from scoresde.files import write_atomically
from scoresde.pictures.frames import frame
from scoresde.progress import Progress
from scoresde.sde import SDE
from scoresde.solvers import ProbabilityFlowODE, Solver, StepSolver
from scoresde.solvers.base import Step

SHOWN = {"table": 500, "series": 64, "image": 36, "volume": 4}
MOST_NOISE = 12.0  # −log SNR from which on a process without signal at t = 1 is followed
FRAME, LAST = 90, 2500  # milliseconds


@dataclass(frozen=True)
class State:
    """Of samples on their way: scaled to the size of data, (B, *); `way` is 0 for noise and 1 for the samples."""

    way: float
    x: Tensor


class Trajectory:
    """States of the first batch, as many as there are to be frames; told of every step of the solver.

    Args:
        frames: How many.
        sde: The process.
        most: Samples that are kept.
    """

    def __init__(self, frames: int, sde: SDE, most: int) -> None:
        self.frames, self.sde, self.most = frames, sde, most
        self.states: list[State] = []

    @property
    def whole(self) -> bool:
        return bool(self.states) and self.states[-1].way == 1

    def __call__(self, step: Step, of: int) -> None:
        if self.whole or step.index not in {round(of * k / (self.frames - 1)) for k in range(self.frames)}:
            return
        self.add(step.index / of, step.x, step.t)

    def add(self, way: float, x: Tensor, t: Tensor) -> None:
        scale = 1.0 if way == 1 else float(torch.hypot(self.sde.alpha(t), self.sde.sigma(t)))
        self.states.append(State(way, (x[: self.most] / scale).cpu()))

    def follow(self, solver: ProbabilityFlowODE, denoiser: Denoiser, x: Tensor, samples: Tensor) -> None:
        """From x to samples by an ODE solver, which keeps no states: solved anew to each of some times."""
        ends = self.sde.logsnr(torch.tensor([1.0, max(solver.end(self.sde), self.sde.t_min)], dtype=torch.float64))
        levels = torch.linspace(max(float(ends[0]), -MOST_NOISE), float(ends[1]), self.frames, dtype=torch.float64)
        self.add(0.0, x, torch.ones((), dtype=torch.float64))
        with Progress("trajectory", self.frames - 1, "frames") as progress:
            for k, t in enumerate(self.sde.time(levels[1:-1]), 1):
                state = replace(solver, t_end=float(t), denoise=False)(denoiser, x)
                self.add(k / (self.frames - 1), state, t)
                progress.advance()
        self.add(1.0, samples, torch.zeros((), dtype=torch.float64))


def check_trajectory(frames: int | None, solver: Solver, n: int) -> None:
    """Raise ConfigError if no trajectory can be shown."""
    if frames is None:
        return
    if n == 0:
        raise ConfigError(f"trajectory={frames} is of samples, and num_samples=0 draws none: leave it out.")
    if not isinstance(solver, StepSolver | ProbabilityFlowODE):
        raise ConfigError(
            f"trajectory={frames} needs a solver with steps, or solver=ode: {type(solver).__name__} chooses steps for "
            f"every sample by itself and keeps none of the states between."
        )


def save_trajectory(path: Path, states: Sequence[State], trained: TrainedModel, split: Split | None) -> None:
    """A GIF: noise, the states between, and the samples for a while; the data stay beside them."""
    end = model_values(trained.codec, states[-1].x)
    pictures = []
    for state in states:
        look = shown(trained.codec, model_values(trained.codec, state.x), names=trained.names, split=split, most=2000)
        look = replace(look, note=_words(state.way), ranges=end)
        pictures.append(frame(look, SHOWN[look.kind]))
    save_animation(path, pictures)


def save_animation(path: Path, pictures: Sequence[Image.Image]) -> None:
    """A GIF that begins again after a while."""
    few = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
    buffer = io.BytesIO()
    durations = [FRAME] * (len(few) - 1) + [LAST]
    few[0].save(buffer, "GIF", save_all=True, append_images=few[1:], duration=durations, loop=0, disposal=2)
    write_atomically(path, buffer.getvalue())


def kept(shape: tuple[int, ...], n: int) -> int:
    """Samples of a trajectory: a square number of images."""
    kind = kind_of(shape)
    most = min(SHOWN[kind], n)
    return max(1, math.isqrt(most) ** 2) if kind == "image" else most


def _words(way: float) -> str:
    return "noise" if way == 0 else f"{100 * way:.0f} % of the way" if way < 1 else "done"
