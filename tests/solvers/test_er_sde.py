"""ER-SDE against the authors' loop, and the order of its published third-order form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from closed_forms import MEAN, SDES, STD, chain_moments, mixture, moments, name, replay
from torch import Tensor

from scoresde import SDE, VPSDE, Denoiser, GaussianDenoiser, StepSolver, logsnr_grid
from scoresde.solvers.er_sde import ERSDE, er_sde_scale, power_scale
from scoresde.testing import convergence_order

UNEVEN = torch.tensor([1.0, 0.85, 0.4, 0.33, 0.1, 0.02], dtype=torch.float64)
LAST = len(UNEVEN) - 1
REVERSE_SDE = partial(power_scale, exponent=2.0)
ODE = partial(power_scale, exponent=1.0)


def on_uneven_grid(solver: StepSolver, denoise: bool = True) -> StepSolver:
    return replace(solver, steps=LAST, grid=lambda sde, steps, t_end: UNEVEN, t_end=float(UNEVEN[-1]), denoise=denoise)


def er_sde(denoiser: Denoiser, x: Tensor, noises: Tensor, order: int, phi: Any) -> Tensor:
    """The authors' loop for x/α and ρ = σ/α, with their divided differences and a fine sum for their integrals."""
    sde = denoiser.sde
    rho = sde.sigma(UNEVEN) / sde.alpha(UNEVEN)
    x = x / sde.alpha(UNEVEN[0])
    old = old_d = None
    for i in range(LAST):
        x0 = denoiser(x * sde.alpha(UNEVEN[i]), UNEVEN[i])
        r = phi(rho[i + 1]) / phi(rho[i])
        step = r * x + (1 - r) * x0 + (rho[i + 1] ** 2 - rho[i] ** 2 * r**2).clamp_min(0).sqrt() * noises[i]
        fine = torch.logspace(rho[i + 1].log10().item(), rho[i].log10().item(), 40001, dtype=torch.float64)
        if order > 1 and old is not None:
            d = (x0 - old) / (rho[i] - rho[i - 1])
            s_int = torch.trapezoid(1 / phi(fine), fine)
            step = step + (rho[i + 1] - rho[i] + s_int * phi(rho[i + 1])) * d
            if order > 2 and old_d is not None:
                dd = 2 * (d - old_d) / (rho[i] - rho[i - 2])
                s_d_int = torch.trapezoid((fine - rho[i]) / phi(fine), fine)
                step = step + ((rho[i + 1] - rho[i]) ** 2 / 2 + s_d_int * phi(rho[i + 1])) * dd
            old_d = d
        x, old = step, x0
    return x * sde.alpha(UNEVEN[-1])


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("scale", [er_sde_scale, REVERSE_SDE], ids=["er_sde_5", "sde"])
def test_er_sde_is_the_authors_loop_on_an_uneven_grid(sde: SDE, order: int, scale: Any) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    noises = torch.randn(LAST, 8, 2, dtype=torch.float64)
    y = on_uneven_grid(ERSDE(order=order, scale=scale), denoise=False)(denoiser, x, noise=replay(noises))
    torch.testing.assert_close(y, er_sde(denoiser, x, noises, order, scale), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact, order", [(False, 2), (True, 3)])
def test_published_er_sde_3_is_of_second_order_and_exact_of_third(exact: bool, order: int) -> None:
    sde = VPSDE()
    denoiser, (_, std) = GaussianDenoiser(sde, MEAN, STD), moments(sde, 0.05)
    solver = ERSDE(order=3, exact=exact, scale=ODE, grid=logsnr_grid, t_end=0.05, denoise=False)

    def solve(steps: int) -> Tensor:
        return chain_moments(replace(solver, steps=steps), denoiser, *moments(sde, 1.0))[1]

    assert convergence_order(solve, std, steps=(160, 320)) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ERSDE(order=0), "ERSDE needs order 1, 2 or 3, got 0"),
        (
            lambda: ERSDE(scale=torch.sqrt)(mixture(VPSDE()), torch.zeros(1, 2)),
            r"ERSDE needs a noise scale φ\(ρ\) that grows at least as fast as ρ.*power_scale",
        ),
    ],
)
def test_wrong_arguments_of_er_sde_are_named(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
