"""Parameters and simulated observations: θ is the data, x its condition, for simulation-based inference."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import check_flag, check_numbers, check_whole
from scoresde.data.bounded import TooLarge, member_names, read_members
from scoresde.data.conditions import check_conditions, stored_condition
from scoresde.data.dataset import TEST_FRACTION, Dataset, Split, check_finite, check_split, find, split_indices, take
from scoresde.data.scaling import check_scaling, fit_codec
from scoresde.noise import stream_generator

BLOCK = 64  # pairs that are simulated together


class Simulator(ABC):
    """A prior p(θ) and a program that draws x ~ p(x | θ); its density need not be known.

    Both methods draw from `generator` alone, so that pair k is a function of (seed, k).
    """

    @abstractmethod
    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """θ ~ p(θ), (n, *)."""

    @abstractmethod
    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """x ~ p(x | θ), θ (n, *) -> (n, *)."""

    def posterior(self, observations: Tensor, n: int, generator: torch.Generator) -> Tensor | None:
        """Exact draws from p(θ | x_1, ..., x_k), where that is possible, (n, *); None where it is not.

        Args:
            observations: k independent observations of one θ, (k, *).
            n, generator: How many draws, and their randomness.
        """
        return None


@dataclass(frozen=True, kw_only=True)
class TwoMoons(Simulator):
    """A posterior of two crescents (sbibm's two moons): θ ~ U(−1, 1)².

        x = (r cos a + ¼ − |θ_1 + θ_2|/√2,  r sin a + (θ_2 − θ_1)/√2),    a ~ U(−π/2, π/2),  r ~ N(0.1, 0.01²)

    References:
        Greenberg et al., "Automatic Posterior Transformation", 2019, arXiv:1905.07488, App. D.
        Lueckmann et al., "Benchmarking Simulation-Based Inference", 2021, arXiv:2101.04653, T.8.
    """

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return 2 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 1

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        along, across = theta.sum(1).abs() / math.sqrt(2), (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
        return self._crescent(len(theta), generator) + torch.stack([-along, across], 1)

    def posterior(self, observations: Tensor, n: int, generator: torch.Generator) -> Tensor | None:
        """Of one observation: the noise that would explain it, where it lies inside the prior, at either sign."""
        if len(observations) != 1:
            return None

        def draw(count: int) -> Tensor:
            moved = self._crescent(count, generator) - observations.double()  # |θ_1 + θ_2|/√2 and (θ_1 − θ_2)/√2
            sign = 2 * torch.randint(0, 2, (count,), generator=generator).double() - 1
            total = torch.where(moved[:, 0] >= 0, sign * moved[:, 0], math.inf)
            return torch.stack([total + moved[:, 1], total - moved[:, 1]], 1) / math.sqrt(2)

        return _accepted(draw, lambda theta: (theta.abs() <= 1).all(1), n)

    @staticmethod
    def _crescent(n: int, generator: torch.Generator) -> Tensor:
        angle = math.pi * (torch.rand(n, generator=generator, dtype=torch.float64) - 0.5)
        radius = 0.1 + 0.01 * torch.randn(n, generator=generator, dtype=torch.float64)
        return torch.stack([radius * angle.cos() + 0.25, radius * angle.sin()], 1)


@dataclass(frozen=True, kw_only=True)
class LinearGaussian(Simulator):
    """x = θ + noise, all Gaussian (sbibm's Gaussian linear): the posterior is known for any number of observations.

        θ ~ N(0, prior_variance I),   x ~ N(θ, noise_variance I)
        p(θ | x_1...x_k) = N(v Σ_j x_j/noise_variance, v I),   1/v = 1/prior_variance + k/noise_variance

    Args:
        dim: Entries of θ and x.
        prior_variance, noise_variance: Of every entry.

    References:
        Lueckmann et al., "Benchmarking Simulation-Based Inference", 2021, arXiv:2101.04653, T.1.
    """

    dim: int = 10
    prior_variance: float = 0.1
    noise_variance: float = 0.1

    def __post_init__(self) -> None:
        check_whole(self, "1 <= dim <= 100000")
        check_numbers(self, "0 < prior_variance <= 1e9", "0 < noise_variance <= 1e9")

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        return self.prior_variance**0.5 * self._normal(n, generator)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        return theta + self.noise_variance**0.5 * self._normal(len(theta), generator)

    def posterior(self, observations: Tensor, n: int, generator: torch.Generator) -> Tensor:
        mean, variance = self.posterior_moments(observations)
        return mean + variance**0.5 * self._normal(n, generator)

    def posterior_moments(self, observations: Tensor) -> tuple[Tensor, float]:
        """Mean (dim,) and variance of every entry."""
        variance = 1 / (1 / self.prior_variance + len(observations) / self.noise_variance)
        return variance / self.noise_variance * observations.double().sum(0), variance

    def _normal(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, self.dim, generator=generator, dtype=torch.float64)


def simulator(
    simulator: Simulator, size: int = 10_000, test_size: int = 1000, seed: int = 0, standardize: bool = True,
    transform: str | None = None,
) -> Dataset:  # fmt: skip
    """Pairs of parameters and simulations, made once: θ is what is modelled, x the condition.

    Pair k is a function of (seed, k): a larger table starts with the smaller one. The test pairs come from streams of
    their own.

    Args:
        simulator: A `Simulator`.
        size, test_size: Training and test pairs.
        seed: Of all draws.
        standardize, transform: Of θ, as for `array`; "quantile" maps a bounded prior to a normal one.
    """
    if not isinstance(simulator, Simulator):
        raise ValueError(
            f"data=simulator needs a simulator with _target_, a scoresde.data.Simulator, got {simulator!r}."
        )
    check_whole(
        "data=simulator", "2 <= size <= 100000000", "0 <= test_size <= 100000000", "seed >= 0",
        size=size, test_size=test_size, seed=seed,
    )  # fmt: skip
    _check_scaling("data=simulator", standardize, transform)
    name = type(simulator).__name__
    train, test = (
        simulated(simulator, *of) for of in ((size, seed, "simulation"), (test_size, seed, "test-simulation"))
    )
    return _dataset("data=simulator", name, train, test, standardize, transform)


def simulated(simulator: Simulator, count: int, seed: int, purpose: str = "simulation") -> Split:
    """The first `count` pairs of a stream, in whole blocks, so that each is the same whatever their number.

    Raises:
        ValueError: If the simulator returns something else than one finite row for each θ.
    """
    parts = []
    for block in range(max(1, -(-count // BLOCK))):
        generator = stream_generator(seed, purpose, block)
        theta = torch.as_tensor(simulator.prior(BLOCK, generator))
        parts.append((theta, torch.as_tensor(simulator.simulate(theta, generator))))
        _check_rows(type(simulator).__name__, *parts[-1])
    theta, x = (torch.cat(part) for part in zip(*parts, strict=True))
    split = _pairs(theta.numpy(), x.numpy(), type(simulator).__name__)
    return take(split, torch.arange(count))


def pairs(
    path: str | Path | None = None, test_fraction: float = TEST_FRACTION, seed: int = 0, standardize: bool = True,
    transform: str | None = None,
) -> Dataset:  # fmt: skip
    """Pairs from a simulator of your own, in a .npz with `theta`, (N, *), and `x`, (N, *), its condition.

    Args:
        path: The file.
        test_fraction: Share of the pairs kept for the test split.
        seed: Seed of that split.
        standardize, transform: Of θ, as for `array`.
    """
    check_split("data=pairs", test_fraction, seed)
    _check_scaling("data=pairs", standardize, transform)
    found = find(path, "data=pairs needs a .npz file with theta and x; set data.path to it")
    try:
        names = member_names(found)
        stored = read_members(found, [name for name in ("theta", "x") if name in names])
    except TooLarge:
        raise
    except Exception as error:  # zip, zlib and header damage all raise their own types
        raise ValueError(
            f"{found} is not a whole .npz file of plain numbers; write it with numpy.savez(path, theta=..., x=...)"
        ) from error
    if len(stored) < 2:
        raise ValueError(f"{found} needs the arrays theta and x, got {', '.join(names) or '(none)'}")
    for name, values in stored.items():
        if values.dtype.kind not in "biuf" or values.ndim == 0 or len(values) != len(stored["theta"]):
            raise ValueError(
                f"{found} needs as many real rows in theta and x, got {name} of {values.dtype} and shape {values.shape}"
            )
    split = _pairs(stored["theta"], stored["x"], str(found))
    train, test = (take(split, index) for index in split_indices(len(split), test_fraction, seed))
    return _dataset("data=pairs", found.stem, train, test, standardize, transform)


def _pairs(theta: np.ndarray, x: np.ndarray, where: str) -> Split:  # type: ignore[type-arg]
    theta = theta[:, None] if theta.ndim == 1 else theta
    values = torch.from_numpy(np.array(theta, dtype=np.float32, order="C"))
    check_finite(values, f"{where}, theta")
    condition = stored_condition(np.asarray(x))
    check_conditions(condition, f"{where}, x")
    return Split(x=values, condition=condition)


def _check_scaling(owner: str, standardize: object, transform: object) -> None:
    check_flag(owner, "standardize", standardize)
    check_scaling(owner, transform, None)


def _dataset(owner: str, name: str, train: Split, test: Split, standardize: bool, transform: str | None) -> Dataset:
    names = [str(column) for column in range(train.x.shape[1])]
    codec = fit_codec(owner, train.x, names, standardize=standardize, transform=transform)
    return Dataset(name=name, train=train, test=test, codec=codec)


def _check_rows(name: str, theta: Tensor, x: Tensor) -> None:
    if theta.ndim < 1 or x.ndim < 1 or len(theta) != BLOCK or len(x) != BLOCK:
        raise ValueError(
            f"{name} needs prior(n, generator) and simulate(theta, generator) to return n rows, got shapes "
            f"{tuple(theta.shape)} and {tuple(x.shape)} for n = {BLOCK}."
        )
    for part, values in (("prior", theta), ("simulate", x)):
        if not bool(torch.isfinite(values.double()).all()):
            raise ValueError(f"{name}.{part} returned NaN or infinity: leave such simulations out, or repair them.")


def _accepted(draw: Callable[[int], Tensor], inside: Callable[[Tensor], Tensor], n: int) -> Tensor | None:
    """The first n draws that are inside; None if there are next to none."""
    kept: list[Tensor] = []
    for _ in range(200):
        theta = draw(max(n, 1000))
        kept.append(theta[inside(theta)])
        if sum(map(len, kept)) >= n:
            return torch.cat(kept)[:n]
    return None
