"""Animations lead from noise to the samples, whatever the solver."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from scoresde.analytic import GaussianDenoiser
from scoresde.commands.build import ConfigError
from scoresde.commands.drawing import draw, start
from scoresde.commands.trajectory import Trajectory, check_trajectory, kept, save_trajectory
from scoresde.data import Names, Split, Standardized
from scoresde.sde import SDE, VESDE, VPSDE, StraightSDE
from scoresde.solvers import DDIM, AdaptiveSDE, Heun, ProbabilityFlowODE, StepSolver

MEAN, STD = 1.0, 0.1


def exact(sde: SDE, x: torch.Tensor, t: float) -> torch.Tensor:
    """The probability flow of N(MEAN, STD²) from x at t = 1."""
    times = torch.tensor([1.0, t], dtype=torch.float64)
    alpha, sigma = sde.alpha(times), sde.sigma(times)
    std = torch.hypot(alpha * STD, sigma)
    return alpha[1] * MEAN + std[1] / std[0] * (x - alpha[0] * MEAN)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0), StraightSDE()], ids=lambda sde: type(sde).__name__)
@pytest.mark.parametrize(
    "solver",
    [DDIM(steps=400), Heun(steps=60), ProbabilityFlowODE(rtol=1e-3, atol=1e-3)],
    ids=lambda s: type(s).__name__,
)
def test_states_are_those_of_the_flow(sde: SDE, solver: Any) -> None:
    denoiser = GaussianDenoiser(sde, torch.full((2,), MEAN), torch.full((2,), STD))
    seen = Trajectory(6, sde, most=50)
    times: list[float] = []
    add = seen.add

    def noted(way: float, x: torch.Tensor, t: torch.Tensor) -> None:
        times.append(float(t))
        add(way, x, t)

    seen.add = noted  # type: ignore[method-assign]
    x = start(denoiser, (2,), 0, range(64), torch.device("cpu"))
    samples = draw(denoiser, solver, (2,), 0, range(64), torch.device("cpu"), [seen])
    if not isinstance(solver, StepSolver):
        seen.follow(solver, denoiser, x, samples)
    assert len(seen.states) == 6 and seen.whole and all(len(state.x) == 50 for state in seen.states)
    for state, t in zip(seen.states[:-1], times, strict=False):
        scale = torch.hypot(*(function(torch.tensor(t, dtype=torch.float64)) for function in (sde.alpha, sde.sigma)))
        torch.testing.assert_close(state.x * scale.float(), exact(sde, x[:50], t).float(), rtol=0.02, atol=0.03)
    torch.testing.assert_close(seen.states[-1].x, samples[:50])
    assert times == sorted(times, reverse=True) and len(set(times)) == 6


def test_a_second_batch_leaves_the_trajectory_of_the_first(tmp_path: Path) -> None:
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, torch.zeros(2), torch.ones(2))
    seen = Trajectory(4, sde, most=5)
    for part in (range(5), range(5, 10)):
        draw(denoiser, DDIM(steps=3), (2,), 0, part, torch.device("cpu"), [seen])
    assert len(seen.states) == 4


@pytest.mark.parametrize("shape", [(2,), (1, 12), (1, 4, 4), (1, 3, 3, 3)], ids=["table", "series", "image", "volume"])
def test_frames_go_from_noise_to_data(shape: tuple[int, ...], tmp_path: Path) -> None:
    sde = VPSDE()
    denoiser = GaussianDenoiser(sde, torch.full(shape, MEAN), torch.full(shape, STD))
    seen = Trajectory(5, sde, kept(shape, 64))
    draw(denoiser, DDIM(steps=8), shape, 0, range(64), torch.device("cpu"), [seen])
    data = Split(x=MEAN + STD * torch.randn(100, *shape, generator=torch.Generator().manual_seed(0)))
    codec = Standardized(mean=torch.zeros(shape), std=torch.ones(shape))
    trained: Any = SimpleNamespace(codec=codec, names=Names(), shape=shape)
    save_trajectory(tmp_path / "a.gif", seen.states, trained, data)
    with Image.open(tmp_path / "a.gif") as animation:
        frames = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(animation)]
    assert len(frames) == 5 and len({frame.shape for frame in frames}) == 1
    middle = frames[0].shape[1] // 2
    data_side = [frame[40:, : middle - 40] for frame in frames]
    assert all(np.abs(part - data_side[0]).mean() < 2 for part in data_side)  # the data stay
    changes = [np.abs(frame - frames[-1])[40:, middle:].mean() for frame in frames]
    assert changes[0] > 1 and changes[0] >= changes[-2]


def test_solvers_without_states_are_refused_in_a_sentence() -> None:
    check_trajectory(8, DDIM(), 4)
    check_trajectory(8, ProbabilityFlowODE(), 4)
    check_trajectory(None, AdaptiveSDE(), 0)
    with pytest.raises(ConfigError, match="trajectory=8 needs a solver with steps, or solver=ode: AdaptiveSDE"):
        check_trajectory(8, AdaptiveSDE(), 4)
    with pytest.raises(ConfigError, match="num_samples=0 draws none"):
        check_trajectory(8, DDIM(), 0)
