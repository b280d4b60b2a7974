"""Guided denoisers and solvers fit together, or one sentence says what does not."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from scoresde import (
    DDIM,
    VPSDE,
    ClassifierGuided,
    Denoiser,
    DPMSolverPP2M,
    GaussianDenoiser,
    GaussianMixtureDenoiser,
    Heun,
    ReconstructionGuided,
    uniform_grid,
)
from scoresde.commands.build import build
from scoresde.inverse import MMPS, GaussianPosterior, Matrix, Measurement

CONF = Path(__file__).parents[2] / "conf/solver"
SDE = VPSDE()
STD, NOISE, Y = 0.3, 0.1, 0.8  # of the components, and of the observation of the first coordinate
MEANS, WEIGHTS = torch.tensor([[0.7, 0.4], [-0.7, -0.4]]).double(), torch.tensor([0.6, 0.4]).double()
PRIOR = GaussianMixtureDenoiser(SDE, WEIGHTS, MEANS, torch.full((2, 2), STD**2))


def log_likelihood(x0: Tensor) -> Tensor:
    return -0.5 * ((x0[:, 0] - Y) / NOISE).square()


def truth() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior, a mixture of two Gaussians."""
    gain = STD**2 / (STD**2 + NOISE**2)
    weights = (WEIGHTS.log() - 0.5 * (Y - MEANS[:, 0]).square() / (STD**2 + NOISE**2)).softmax(0)
    means = MEANS + torch.stack([gain * (Y - MEANS[:, 0]), torch.zeros(2)], 1)
    mean = weights @ means
    variance = torch.tensor([STD**2 * (1 - gain), STD**2]) + weights @ (means - mean).square()
    return mean, variance.sqrt()


TOLD = ("ddim_subsequence", "dpmpp_sde")  # too coarse for so sharp an observation
SLOW = ("annealed_langevin", "ddpm", "euler_maruyama", "langevin", "pc", "reverse_diffusion")  # 1000 steps and more
FAST = sorted({path.stem for path in CONF.glob("*.yaml")}.difference(SLOW, TOLD))


@pytest.mark.parametrize("name", FAST)
def test_every_solver_samples_the_posterior_of_a_sharp_observation(name: str) -> None:
    solver = build(yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")), "solver", ())
    guided = ReconstructionGuided(PRIOR, log_likelihood)
    x = torch.randn(800, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)

    samples = solver(guided, x)

    mean, std = truth()
    assert float(((samples.mean(0) - mean) / std).abs().max()) < 0.3
    assert float((samples.std(0) / std - 1).abs().max()) < 0.15


@pytest.mark.parametrize("name", [*TOLD, "langevin"])
@pytest.mark.parametrize("method", ["reconstruction", "matching"])
def test_a_solver_that_is_too_coarse_says_which_to_take(name: str, method: str) -> None:
    solver = build(yaml.safe_load((CONF / f"{name}.yaml").read_text(encoding="utf-8")), "solver", ())
    measurement = Measurement(Matrix(torch.tensor([[2.0, 0.0]])), torch.tensor([[2 * Y]]).double(), 2 * NOISE)
    guided = {"reconstruction": ReconstructionGuided(PRIOR, log_likelihood), "matching": MMPS(PRIOR, measurement)}
    if name == "langevin":
        solver = replace(solver, steps=100)
    with pytest.warns(UserWarning, match=r"a standard deviation of 0\.1, .* take DPMSolverPP2M"):
        solver(guided[method], torch.randn(2, 2).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solver(PRIOR, torch.randn(2, 2).double())


def test_one_number_of_y_is_moment_matching() -> None:
    """Along v = C a the likelihood of one number is all there is: 1 + h is (aᵀ C a + NOISE²)/NOISE²."""
    x, t = torch.randn(4, 2).double(), torch.tensor([0.9, 0.5, 0.2, 0.05]).double()
    measurement = Measurement(Matrix(torch.tensor([[1.0, 0.0]])), torch.tensor([[Y]]).double(), NOISE)
    guided = ReconstructionGuided(PRIOR, log_likelihood)
    for exact in (MMPS(PRIOR, measurement), GaussianPosterior(PRIOR, measurement)):
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=1e-8, atol=1e-8)


def test_scale_is_a_power_of_the_likelihood() -> None:
    x, t = torch.randn(4, 2).double(), torch.tensor(0.3).double()
    scaled = ReconstructionGuided(PRIOR, log_likelihood, scale=4.0)
    sharper = ReconstructionGuided(PRIOR, lambda x0: 4 * log_likelihood(x0))
    torch.testing.assert_close(scaled(x, t), sharper(x, t), rtol=1e-9, atol=1e-9)
    linear = lambda x0: x0.sum(1)  # noqa: E731
    torch.testing.assert_close(
        ReconstructionGuided(PRIOR, linear)(x, t), ReconstructionGuided(PRIOR, linear, plug_in=True)(x, t)
    )


def test_a_result_needs_no_gradient_unless_something_asks() -> None:
    x, t = torch.randn(4, 2).double(), torch.tensor(0.3).double()
    assert not ReconstructionGuided(PRIOR, log_likelihood)(x, t).requires_grad
    assert ReconstructionGuided(PRIOR, log_likelihood)(x.clone().requires_grad_(), t).requires_grad

    class Shifted(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.sde, self.shift = SDE, nn.Parameter(torch.ones(2).double())

        def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return PRIOR(x, t) + self.shift

    guided = ReconstructionGuided(network := Shifted(), log_likelihood)
    value = guided(x, t)[:, 0].sum()
    (gradient,) = torch.autograd.grad(value, network.shift)
    with torch.no_grad():
        value = value.detach()
        network.shift[0] += 1e-6
        higher = guided(x, t)[:, 0].sum()
    assert float((higher - value) / 1e-6) == pytest.approx(float(gradient[0]), rel=1e-4)


@pytest.mark.parametrize("solver", [DPMSolverPP2M(), DDIM(steps=50), Heun(steps=20)], ids=lambda s: type(s).__name__)
def test_a_log_prob_that_does_not_know_the_noise_is_noticed(solver: Callable[..., Tensor]) -> None:
    guided = ClassifierGuided(PRIOR, lambda x, t: log_likelihood(x))
    with pytest.raises(FloatingPointError, match="must know the noise|the gradient of ClassifierGuided is not"):
        solver(guided, torch.randn(8, 2).double())


def test_values_far_from_zero_are_fine_if_the_data_are_there() -> None:
    prior = GaussianDenoiser(SDE, 500.0, 1.0)
    guided = ReconstructionGuided(prior, lambda x0: -0.5 * (x0[:, 0] - 501).square())
    assert float(DDIM(steps=10)(guided, torch.randn(4, 2).double()).mean()) == pytest.approx(500, abs=5)


@pytest.mark.parametrize("guide", ["classifier", "reconstruction"])
def test_a_gradient_that_is_nan_names_its_step_and_time(guide: str) -> None:
    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        return (x * 0).sum(1).sqrt() if float(t) < 0.5 else 0 * x.sum(1)  # the root has no gradient at 0

    def of_x0(x0: Tensor) -> Tensor:
        return (x0 * 0).sum(1).sqrt()

    guided = ClassifierGuided(PRIOR, log_prob) if guide == "classifier" else ReconstructionGuided(PRIOR, of_x0)
    step = "7 of 10" if guide == "classifier" else "1 of 10"
    words = f"at step {step}, from t = .*the gradient of {type(guided).__name__} is not"
    with pytest.raises(FloatingPointError, match=words):
        DDIM(steps=10, grid=uniform_grid)(guided, torch.randn(3, 2).double())
