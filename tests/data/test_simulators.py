"""Simulators: pairs are functions of (seed, index), and known posteriors are those of their simulators."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scoresde.data import LinearGaussian, Simulator, TwoMoons, pairs, simulator
from scoresde.data.simulators import simulated
from scoresde.diagnostics import posterior_calibration


@pytest.mark.parametrize("source", [TwoMoons(), LinearGaussian(dim=3)], ids=lambda source: type(source).__name__)
def test_a_pair_is_a_function_of_seed_and_index(source: Simulator) -> None:
    large, small = simulated(source, 200, 3), simulated(source, 70, 3)
    assert torch.equal(large.x[:70], small.x) and torch.equal(large.condition[:70], small.condition)  # type: ignore[index]
    assert not torch.equal(simulated(source, 70, 4).x, small.x)
    data = simulator(source, size=70, test_size=5, seed=3)
    assert torch.equal(data.train.x, small.x) and len(data.test) == 5
    assert not torch.isin(data.test.x, data.train.x).any()
    assert len(simulator(source, size=70, test_size=0).test) == 0


@pytest.mark.parametrize("source", [TwoMoons(), LinearGaussian(dim=3)], ids=lambda source: type(source).__name__)
def test_exact_posteriors_are_calibrated(source: Simulator) -> None:
    data, generator = simulated(source, 150, 0), torch.Generator().manual_seed(0)
    assert data.condition is not None
    draws = [source.posterior(x[None].double(), 49, generator) for x in data.condition]
    found = posterior_calibration(torch.stack([d for d in draws if d is not None], 1), data.x.double(), data.condition)
    assert found.uniformity.p > 0.01 and found.tarp_p > 0.01


def test_two_moons_explain_their_observation() -> None:
    """Every draw of the posterior has noise on the crescent, in both signs of θ_1 + θ_2, and inside the prior."""
    x, generator = torch.tensor([[0.0, 0.0]]).double(), torch.Generator().manual_seed(1)
    theta = TwoMoons().posterior(x, 500, generator)
    assert theta is not None
    noise = x + torch.stack([theta.sum(1).abs(), theta[:, 0] - theta[:, 1]], 1) / 2**0.5 - torch.tensor([0.25, 0.0])
    assert (noise.norm(dim=1) - 0.1).abs().max() < 0.05 and (noise[:, 0] >= 0).all() and (theta.abs() <= 1).all()
    assert (theta.sum(1) > 0).double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert TwoMoons().posterior(torch.zeros(2, 2), 5, generator) is None
    assert TwoMoons().posterior(torch.tensor([[9.0, 9.0]]), 5, generator) is None


def test_the_linear_gaussian_posterior_is_that_of_the_joint_law() -> None:
    source = LinearGaussian(dim=2, prior_variance=0.4, noise_variance=0.1)
    x = torch.tensor([[1.0, 0.0], [0.5, 0.3], [0.8, -0.2]]).double()
    joint = torch.full((4, 4), 0.4).double() + torch.diag(torch.tensor([0.0, 0.1, 0.1, 0.1]).double())
    gain = joint[0, 1:] @ torch.linalg.inv(joint[1:, 1:])
    mean, variance = source.posterior_moments(x)
    torch.testing.assert_close(mean, gain @ x)
    assert variance == pytest.approx(float(0.4 - gain @ joint[1:, 0]))
    draws = source.posterior(x, 4000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(draws.var(0), torch.full((2,), variance).double(), atol=0, rtol=0.08)


class Broken(Simulator):
    def __init__(self, theta: Any, x: Any) -> None:
        self.theta, self.x = theta, x

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return self.theta(n)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        return self.x(theta)


def test_a_file_of_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    theta, x = rng.normal(size=(40, 2)), rng.normal(size=(40, 5))
    np.savez(tmp_path / "pairs.npz", theta=theta, x=x, more=np.zeros(3))
    data = pairs(tmp_path / "pairs.npz", test_fraction=0.25)
    assert data.shape == (2,) and len(data.test) == 10 and data.train.condition is not None
    row = int(np.abs(theta - data.train.x[0].numpy()).sum(1).argmin())
    np.testing.assert_allclose(data.train.condition[0], x[row], rtol=1e-6)

    np.savez(tmp_path / "alone.npz", x=x)
    np.savez(tmp_path / "uneven.npz", theta=theta[:9], x=x)
    np.savez(tmp_path / "bad.npz", theta=np.where(theta > 2, np.nan, theta) * np.inf, x=x)
    (tmp_path / "text.npz").write_text("no file of numpy's")
    for name, message in (("alone", "needs the arrays theta and x, got x"), ("uneven", "as many real rows"),
                          ("bad", "theta: 40 of 40 rows hold NaN"), ("text", "not a whole .npz")):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            pairs(tmp_path / f"{name}.npz")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulator(3), "needs a simulator with _target_"),
        (lambda: simulator(Broken(lambda n: torch.zeros(3), lambda t: t)), "to return n rows, got shapes"),
        (
            lambda: simulator(Broken(lambda n: torch.rand(n), lambda t: t / 0)),
            "Broken.simulate returned NaN or infinity",
        ),
        (lambda: simulator(TwoMoons(), size=1), "2 <= size"),
        (lambda: LinearGaussian(dim=0), "LinearGaussian needs 1 <= dim"),
        (lambda: LinearGaussian(noise_variance=0.0), "0 < noise_variance"),
    ],
)
def test_bad_input_gets_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
