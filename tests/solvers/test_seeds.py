"""SEEDS against a transcription of its paper, stage by stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name, replay
from torch import Tensor

from scoresde import SDE, Denoiser, StepSolver
from scoresde.sde.quadrature import gauss_legendre
from scoresde.solvers.exponential import kernel_moments
from scoresde.solvers.seeds import SEEDS

UNEVEN = torch.tensor([1.0, 0.85, 0.4, 0.33, 0.1, 0.02], dtype=torch.float64)
LAST = len(UNEVEN) - 1


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


class Linear:
    """The linear SDE for η = 1 between levels, and the φ-functions of SEEDS, in "data" or "eps"."""

    def __init__(self, sde: SDE, prediction: str) -> None:
        self.sde, self.eps = sde, prediction == "eps"

    def gap(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.log(self.sde.alpha(b) / self.sde.sigma(b)) - torch.log(self.sde.alpha(a) / self.sde.sigma(a))

    def move(self, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        factor = self.sde.alpha(b) / self.sde.alpha(a)
        return (factor if self.eps else (self.sde.sigma(b) / self.sde.sigma(a)) ** 2 / factor) * y

    def noise(self, a: Tensor, b: Tensor, z: Tensor) -> Tensor:
        h = self.gap(a, b)
        return self.sde.sigma(b) * (torch.exp(2 * h) - 1 if self.eps else 1 - torch.exp(-2 * h)).sqrt() * z

    def gain(self, u: Tensor) -> Tensor:
        return -2 * self.sde.sigma(u) if self.eps else self.sde.alpha(u)

    def phi_1(self, h: Tensor) -> Tensor:
        return torch.exp(h) - 1 if self.eps else 1 - torch.exp(-2 * h)

    def phi_2(self, h: Tensor) -> Tensor:
        return (torch.exp(h) - 1) / h - 1 if self.eps else 1 - self.phi_1(h) / (2 * h)


def seeds(denoiser: Denoiser, x: Tensor, noises: Tensor, order: int, prediction: str) -> Tensor:
    """Stage by stage, every noise carried on by the linear SDE."""
    sde, part = denoiser.sde, Linear(denoiser.sde, prediction)
    model = denoiser.eps if prediction == "eps" else denoiser
    for z, s, t in zip(noises, UNEVEN[:-1], UNEVEN[1:], strict=True):
        h = part.gap(s, t)
        m_1, to_t = model(x, s), part.move(s, t, x)
        if order == 1:
            x = to_t + part.gain(t) * part.phi_1(h) * m_1 + part.noise(s, t, z[0])
            continue
        r = 1 / 2 if order == 2 else 1 / 3
        u = sde.time(sde.logsnr(s) + 2 * r * h)
        n_u = part.noise(s, u, z[0])
        m_2 = model(part.move(s, u, x) + part.gain(u) * part.phi_1(r * h) * m_1 + n_u, u)
        if order == 2:
            n_t = part.move(u, t, n_u) + part.noise(u, t, z[1])
            x = to_t + part.gain(t) * (part.phi_1(h) * m_1 + 2 * part.phi_2(h) * (m_2 - m_1)) + n_t
            continue
        v = sde.time(sde.logsnr(s) + 4 / 3 * h)
        n_v = part.move(u, v, n_u) + part.noise(u, v, z[1])
        rise = part.phi_1(2 / 3 * h) * m_1 + 2 * part.phi_2(2 / 3 * h) * (m_2 - m_1)
        m_3 = model(part.move(s, v, x) + part.gain(v) * rise + n_v, v)
        n_t = part.move(v, t, n_v) + part.noise(v, t, z[2])
        x = to_t + part.gain(t) * (part.phi_1(h) * m_1 + 1.5 * part.phi_2(h) * (m_3 - m_1)) + n_t
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_seeds_stage_by_stage_on_an_uneven_grid(sde: SDE, prediction: str, order: int) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, order, 8, 2, dtype=torch.float64)
    solver = on_uneven_grid(SEEDS(order=order, prediction=prediction), denoise=False)
    y = solver(denoiser, x, noise=replay(noises.flatten(0, 1)))
    torch.testing.assert_close(y, seeds(denoiser, x, noises, order, prediction), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("decay", [-30.0, -1.0, -1e-3, 1e-9, 0.5, 1.99, 2.01, 40.0])
def test_kernel_moments_are_their_integrals(decay: float) -> None:
    u, masses = gauss_legendre(200)
    for n, value in enumerate(kernel_moments(torch.tensor(decay, dtype=torch.float64), 4)):
        integral = (masses * decay * torch.exp(-decay * (1 - u)) * u**n).sum()
        torch.testing.assert_close(value, integral, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SEEDS(order=4), "SEEDS needs order 1, 2 or 3, got 4"),
        (lambda: SEEDS(prediction="v"), "SEEDS needs prediction data or eps, got 'v'"),
        (lambda: SEEDS(eta=-1.0), "SEEDS needs 0 <= eta <= 1, got eta=-1.0"),
    ],
)
def test_wrong_arguments_of_seeds_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
