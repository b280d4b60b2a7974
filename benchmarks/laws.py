"""Laws of tables, series, volumes and conditional densities whose log p is known, to judge trained models by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """Draws of x, and of a condition if there is one, with their log p in nats.

    Attributes:
        experiment: Name of the recipe that suits the kind of data.
        draw: (n, generator) -> x (n, *shape), log p (n,), condition (n, columns) or None.
        spoil: x -> the same examples as anomalies, or None.
    """

    experiment: str
    draw: Callable[[int, np.random.Generator], tuple[Array, Array, Array | None]]
    spoil: Callable[[Array, np.random.Generator], Array] | None = None


def gaussian(covariance: Array, shape: tuple[int, ...], n: int, rng: np.random.Generator) -> tuple[Array, Array, None]:
    """N(0, covariance) of the flattened events."""
    root = np.linalg.cholesky(covariance)
    z = rng.standard_normal((n, len(root)))
    log_p = -0.5 * (z**2).sum(1) - np.log(np.diag(root)).sum() - 0.5 * len(root) * np.log(2 * np.pi)
    return (z @ root.T).reshape(n, *shape), log_p, None


def series_covariance(kind: str, length: int = 128, nugget: float = 0.1) -> Array:
    """Of three correlated channels: exponentiated quadratic, Ornstein-Uhlenbeck, AR(2), growing or mixed scales."""
    rng, t = np.random.default_rng(7), np.arange(length)
    lag = np.abs(t[:, None] - t)
    mixing = rng.standard_normal((3, 3))
    channels = mixing @ mixing.T / 3 + 0.3 * np.eye(3)
    if kind == "rbf":
        along = np.exp(-0.5 * (lag / 8) ** 2)
    elif kind == "ou":
        along = np.exp(-lag / 8)
    elif kind == "ar2":
        impulse = [0.0, 1.0]
        for _ in range(800 + length):
            impulse.append(2 * 0.95 * np.cos(0.3) * impulse[-1] - 0.95**2 * impulse[-2])
        h = np.array(impulse[1:])
        along = np.array([h[:800] @ h[k : 800 + k] for k in range(length)])[lag] / (h[:800] @ h[:800])
    elif kind == "growing":
        size = 0.3 + 1.5 * t / length
        along = np.exp(-0.5 * (lag / 8) ** 2) * size[:, None] * size
    else:  # a scale of its own for each of three sources
        sources = [np.outer(column, column) for column in mixing.T]
        parts = [np.kron(a, np.exp(-0.5 * (lag / size) ** 2)) for a, size in zip(sources, (3, 10, 30), strict=True)]
        return sum(parts) + nugget**2 * np.eye(3 * length)
    return np.asarray(np.kron(channels, along) + nugget**2 * np.eye(3 * length))


def series(kind: str) -> Law:
    covariance = series_covariance(kind)

    def spoil(x: Array, rng: np.random.Generator) -> Array:
        """A bump of one channel, a fifth of its standard deviation over five entries."""
        start = rng.integers(0, 123, len(x))
        inside = (np.arange(128) >= start[:, None]) & (np.arange(128) < start[:, None] + 5)
        x = x.copy()
        x[:, 0] += 0.8 * x.std() * inside
        return x

    return Law("series", lambda n, rng: gaussian(covariance, (3, 128), n, rng), spoil)


def volume(kind: str, size: int = 16) -> Law:
    """A Gaussian field with a power spectrum, on a torus or cut out of one, and white noise."""
    wide = size if kind == "periodic" else 2 * size
    k = np.fft.fftfreq(wide) * wide * size / wide
    square = sum(axis**2 for axis in np.meshgrid(k, k, k, indexing="ij"))
    power = (1 + square) ** -1.8
    power *= wide**3 / power.sum()
    correlation = np.fft.ifftn(power).real
    index = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1).reshape(-1, 3)
    lag = (index[:, None] - index) % wide
    covariance = correlation[tuple(np.moveaxis(lag, -1, 0))] + 0.01 * np.eye(size**3)

    def spoil(x: Array, rng: np.random.Generator) -> Array:
        """Three entries off by half a standard deviation, in a field that is smoother than that."""
        x, rows = x.copy(), np.arange(len(x))
        for _ in range(3):
            where = rng.integers(0, size, (3, len(x)))
            x[rows, 0, where[0], where[1], where[2]] += 0.5 * x.std()
        return x

    return Law("volume", lambda n, rng: gaussian(covariance, (1, size, size, size), n, rng), spoil)


SCALES = np.array([1e-6, 1e-2, 1.0, 1e3, 1e7])


def table(kind: str) -> Law:
    """Five columns of very different scale: correlated, or with two modes and skewed columns as well."""
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((5, 5)) / 5**0.5 + 0.5 * np.eye(5)
    root = np.linalg.cholesky(mixing @ mixing.T + 0.05 * np.eye(5))
    shift = np.array([1.5, 0.0, -1.0, 0.5, 0.0]) if kind == "mixed" else np.zeros(5)

    def log_normal(z: Array) -> Array:
        white = np.linalg.solve(root, z.T)
        return -0.5 * (white**2).sum(0) - np.log(np.diag(root)).sum() - 2.5 * np.log(2 * np.pi)

    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array, None]:
        sign = np.where(rng.random(n) < 0.3, -1.0, 1.0)[:, None]
        z = rng.standard_normal((n, 5)) @ root.T + sign * shift
        log_p = np.logaddexp(np.log(0.3) + log_normal(z + shift), np.log(0.7) + log_normal(z - shift))
        y, slope = z.copy(), np.ones_like(z)
        if kind == "mixed":  # two skewed columns
            y[:, 1:3], slope[:, 1:3] = np.exp(0.5 * z[:, 1:3]), 0.5 * np.exp(0.5 * z[:, 1:3])
        return (y + 3) * SCALES, log_p - np.log(slope * SCALES).sum(1), None

    def spoil(x: Array, rng: np.random.Generator) -> Array:
        """One column off by two and a half standard deviations, which the others do not explain."""
        x, column = x.copy(), rng.integers(0, 5, len(x))
        x[np.arange(len(x)), column] += 2.5 * x.std(0)[column]
        return x

    return Law("table", draw, spoil)


def conditional(columns: int) -> Law:
    """Two columns given one or two in other units: a curved mean, a spread that changes, two branches."""

    def draw(n: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        c = rng.uniform(-1, 1, (n, columns))
        first, last = c[:, 0], c[:, -1]
        std = 0.2 + 0.15 * (1 + first)
        branch = np.where(rng.random(n) < 0.5, -1.0, 1.0)
        a = np.sin(2.5 * first) + std * rng.standard_normal(n)
        b = 0.8 * branch * (1.2 + last) + 0.5 * a + 0.3 * rng.standard_normal(n)
        log_a = -0.5 * ((a - np.sin(2.5 * first)) / std) ** 2 - np.log(std)
        arms = [-0.5 * ((b - 0.5 * a - sign * 0.8 * (1.2 + last)) / 0.3) ** 2 for sign in (-1, 1)]
        log_b = np.logaddexp(*arms) - np.log(2 * 0.3)
        units = np.array([1e3, 2.0])[:columns]
        return np.stack([1e-3 * a, 40 * b], 1), log_a + log_b - np.log(2 * np.pi) - np.log(0.04), c * units + 5e4

    return Law("table", draw)


LAWS: dict[str, Callable[[], Law]] = {
    "table": lambda: table("correlated"),
    "table-mixed": lambda: table("mixed"),
    "conditional-1": lambda: conditional(1),
    "conditional-2": lambda: conditional(2),
    **{f"series-{kind}": lambda kind=kind: series(kind) for kind in ("rbf", "ou", "ar2", "growing", "mixed")},  # type: ignore[misc]
    **{f"volume-{kind}": lambda kind=kind: volume(kind) for kind in ("periodic", "cut")},  # type: ignore[misc]
}
