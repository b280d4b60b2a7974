"""UniPC against a second transcription of the paper's algorithm."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from closed_forms import SDES, mixture, name
from torch import Tensor

from scoresde import SDE, VPSDE, Denoiser
from scoresde.sde.grids import Grid
from scoresde.sde.levels import Levels
from scoresde.solvers.adams import ExponentialAdams
from scoresde.solvers.dpm_solver_pp import DPMSolverMultistep
from scoresde.solvers.unipc import UniPC

UNEVEN = torch.tensor([1.0, 0.8, 0.35, 0.3, 0.25, 0.12, 0.02], dtype=torch.float64)


def placed(times: Tensor) -> Grid:
    return lambda sde, steps, t_end: times


def unipc(
    denoiser: Denoiser, x: Tensor, times: Tensor, orders: list[int], variant: str, prediction: str, corrector: bool
) -> Tensor:
    """Algorithms 1 and 2 of the paper with its R, φ and B; the buffer holds the values at the predicted states."""
    sde = denoiser.sde
    alpha, sigma, lam = sde.alpha(times), sde.sigma(times), torch.log(sde.alpha(times) / sde.sigma(times))

    def q(x: Tensor, i: int) -> Tensor:
        return denoiser(x, times[i]) if prediction == "data" else denoiser.eps(x, times[i])

    buffer = [q(x, 0)]
    for i in range(1, len(times)):
        p, h = orders[i - 1], lam[i] - lam[i - 1]
        hh = -h if prediction == "data" else h
        B = hh if variant == "bh1" else torch.expm1(hh)
        if prediction == "data":
            base = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(hh) * buffer[-1]
            front = -alpha[i] * B
        else:
            base = alpha[i] / alpha[i - 1] * x - sigma[i] * torch.expm1(hh) * buffer[-1]
            front = -sigma[i] * B
        r = [(lam[i - 1 - m] - lam[i - 1]) / h for m in range(1, p)]
        D = [(buffer[-1 - m] - buffer[-1]) / r[m - 1] for m in range(1, p)]

        def solve(nodes: list[Tensor], hh: Tensor = hh, B: Tensor = B) -> list[Tensor]:
            if len(nodes) == 1:
                return [torch.tensor(0.5, dtype=torch.float64)]
            rows, right, value = [], [], (torch.exp(hh) - 1) / hh - 1  # h φ_{k+1}
            for k in range(1, len(nodes) + 1):
                rows.append(torch.stack([node ** (k - 1) for node in nodes]))
                right.append(value * math.factorial(k) / B)
                value = value / hh - 1 / math.factorial(k + 1)
            return list(torch.linalg.solve(torch.stack(rows), torch.stack(right)))

        x_new = base
        if p > 1:
            x_new = base + front * sum(a * d for a, d in zip(solve(r), D, strict=True))
        if i < len(times) - 1:
            buffer.append(q(x_new, i))
            if corrector:
                D = [*D, buffer[-1] - buffer[-2]]
                x_new = base + front * sum(a * d for a, d in zip(solve([*r, torch.ones_like(h)]), D, strict=True))
        x = x_new
    return x


@pytest.mark.parametrize("sde", SDES, ids=name)
@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_papers_algorithm_on_an_uneven_grid(sde: SDE, prediction: str, variant: str, order: int) -> None:
    denoiser, x = mixture(sde), sde.prior_std * torch.randn(8, 2, dtype=torch.float64)
    count = len(UNEVEN) - 1
    for corrector in (True, False):
        for lower in (True, False):
            solver = UniPC(
                order=order, variant=variant, prediction=prediction, corrector=corrector, lower_order_final=lower,
                steps=count, grid=placed(UNEVEN), denoise=False,
            )  # fmt: skip
            orders = [min(i + 1, order, count - i if lower else order) for i in range(count)]
            expected = unipc(denoiser, x, UNEVEN, orders, variant, prediction, corrector)
            torch.testing.assert_close(solver(denoiser, x), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
def test_a_run_goes_on_to_no_noise_in_one_call_per_step(prediction: str, variant: str, corrector: bool) -> None:
    """From the corrected state at t_end and x̂0 of the predicted one: the predicted x'_s is where the call was made."""
    sde, calls = VPSDE(), 0

    class Counting(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.inner = sde, mixture(sde)

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return self.inner(x, t)

        def eps(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            nonlocal calls
            calls += 1
            return self.inner.eps(x, t)

    x, last = torch.randn(8, 2, dtype=torch.float64), UNEVEN[-1]
    solver = UniPC(
        variant=variant, prediction=prediction, corrector=corrector, steps=len(UNEVEN) - 1, grid=placed(UNEVEN)
    )
    y = solver(Counting(), x)
    assert calls == len(UNEVEN)
    predicted = replace(solver, denoise=False)(mixture(sde), x)
    if prediction == "data" or not corrector:
        torch.testing.assert_close(y, mixture(sde)(predicted, last), rtol=1e-9, atol=1e-9)
    zero = torch.cat([UNEVEN, UNEVEN.new_zeros(1)])
    again = replace(solver, steps=len(UNEVEN), grid=placed(zero))(mixture(sde), x)
    torch.testing.assert_close(again, y, rtol=1e-9, atol=1e-9)


def test_the_variants_differ_only_where_there_is_one_term() -> None:
    denoiser, x = mixture(VPSDE()), torch.randn(8, 2, dtype=torch.float64)
    common: dict[str, Any] = {"steps": 6, "grid": placed(UNEVEN), "denoise": False, "corrector": False}
    one, two = (UniPC(order=2, variant=variant, **common)(denoiser, x) for variant in ("bh1", "bh2"))
    assert float((one - two).abs().max()) > 1e-3
    midpoint = DPMSolverMultistep(order=2, steps=6, grid=placed(UNEVEN), denoise=False)(denoiser, x)
    torch.testing.assert_close(two, midpoint, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", ["data", "eps"])
@pytest.mark.parametrize("order", [3, 4])
def test_full_systems_are_the_exact_integrals_of_exponential_adams(prediction: str, order: int) -> None:
    """The weights alone, since the start-up differs: one step with a full history, predicted and corrected."""
    levels = Levels.of(VPSDE(), UNEVEN)
    ours = UniPC(order=order, prediction=prediction).weights(levels)
    adams = ExponentialAdams(order=order, prediction=prediction, corrector=True).weights(levels)
    for mine, theirs in zip(ours["predict"], (adams["keep"], *adams["predict"]), strict=True):
        torch.testing.assert_close(mine[-1], theirs[-1], rtol=1e-7, atol=1e-9)
    for mine, theirs in zip(ours["correct"], (adams["keep"], *adams["correct"]), strict=True):  # of the step before
        torch.testing.assert_close(mine[-1], theirs[-2], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"order": 0}, "UniPC needs 1 <= order <= 9, a whole number, got order=0"),
        ({"order": 2.0}, "got order=2.0"),
        ({"variant": "bh3"}, "UniPC needs variant bh1 or bh2, got 'bh3'"),
        ({"prediction": "v"}, "UniPC needs prediction data or eps, got 'v'"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        UniPC(**options)
