"""torch.inference_mode: what differentiates leaves it, and gives the same numbers as outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from closed_forms import mixture
from torch import Tensor

from scoresde import (
    MLP,
    VPSDE,
    ClassifierGuided,
    DPMSolverPP2M,
    Epsilon,
    NetworkDenoiser,
    ReconstructionGuided,
    elbo,
    log_prob,
)
from scoresde.covariance import HessianDiagonal
from scoresde.diagnostics import fokker_planck_residual, jacobian_asymmetry
from scoresde.fitting import optimise_grid, reference_paths
from scoresde.sde import SDE

DENOISER = mixture(VPSDE())
FIXED: dict[str, Any] = {"method": "rk4", "steps": 2}


class ByFormula(SDE):
    """VP from α and σ alone: f and g come from derivatives."""

    t_min = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-2.5 * t.square())

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-5 * t.square()))


NET = MLP(shape=(2,), width=8, depth=1, condition_dim=2).double()
torch.nn.init.normal_(NET.output.weight, generator=torch.Generator().manual_seed(0))


def conditioned(x: Tensor, t: Tensor) -> Tensor:
    denoiser = NetworkDenoiser(NET, VPSDE(), Epsilon()).given(condition=x + 1)
    return log_prob(denoiser, x, **FIXED, seeds=0).log_prob


def fitted(x: Tensor, t: Tensor) -> Tensor:
    paths = reference_paths(DENOISER, (2,), 8, steps=4, generator=torch.Generator().manual_seed(0))
    return torch.tensor(optimise_grid(DENOISER, DPMSolverPP2M(steps=3), paths, iterations=2, batch=4).logsnr)


CASES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "exact": lambda x, t: log_prob(DENOISER, x, divergence="exact", **FIXED).log_prob,
    "hutchinson": lambda x, t: log_prob(DENOISER, x, probes=2, seeds=1, **FIXED).log_prob,
    "bound condition": conditioned,
    "elbo": lambda x, t: elbo(DENOISER, x, samples=2, generator=torch.Generator().manual_seed(0)).log_prob,
    "classifier": lambda x, t: ClassifierGuided(DENOISER, lambda x, t: -(x * x * t).sum(1))(x, t),
    "classifier in a run": lambda x, t: DPMSolverPP2M(steps=3)(
        ClassifierGuided(DENOISER, lambda x, t: -(x * x * t).sum(1)), x
    ),
    "one time per sample": lambda x, t: ClassifierGuided(DENOISER, lambda x, t: -(x * x * t[:, None]).sum(1))(
        x, t.expand(len(x))
    ),
    "reconstruction": lambda x, t: ReconstructionGuided(DENOISER, lambda x: -x.square().sum(1))(x, t),
    "Hessian": lambda x, t: HessianDiagonal(DENOISER).covariance_diag(x, t),
    "asymmetry": lambda x, t: jacobian_asymmetry(DENOISER, x, t, probes=None).antisymmetric,
    "Fokker-Planck": lambda x, t: fokker_planck_residual(DENOISER, x, t, probes=None).residual,
    "fit": fitted,
    "rates": lambda x, t: ByFormula().g(t),
}


@pytest.mark.parametrize("case", CASES)
def test_inference_mode_changes_no_number(case: str) -> None:
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = CASES[case](x, torch.tensor(0.4, dtype=torch.float64))
    with torch.inference_mode():
        found = CASES[case](x.clone(), torch.tensor(0.4, dtype=torch.float64))
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not found.requires_grad
    with torch.inference_mode():
        made_there = x.clone()
    torch.testing.assert_close(CASES[case](made_there, torch.tensor(0.4, dtype=torch.float64)), expected)


def test_a_model_made_in_inference_mode_is_named() -> None:
    with torch.inference_mode():
        net = MLP(shape=(2,), width=8, depth=1)
        torch.nn.init.normal_(net.output.weight)
        denoiser = NetworkDenoiser(net, VPSDE(), Epsilon())
        with pytest.raises(RuntimeError, match=r"log_prob differentiates a model .* make or load it outside"):
            log_prob(denoiser, torch.randn(2, 2), **FIXED)
