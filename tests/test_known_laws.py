"""The laws of benchmarks/known_laws.py: their log p."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_expected_densities_are_those_of_the_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """E 1/p over a box that holds nearly all of p's mass is the volume of the box: true for no other p."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import laws  # type: ignore[import-not-found]

    rng = np.random.default_rng(0)
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    x, log_p, _ = laws.gaussian(covariance, (2,), 200_000, rng)
    inside = (np.abs(x) < 1).all(1)
    assert (np.exp(-log_p) * inside).mean() == pytest.approx(4, rel=0.01)

    x, log_p, _ = laws.table("mixed").draw(400_000, rng)
    low, high = np.quantile(x, 0.25, 0), np.quantile(x, 0.75, 0)
    inside = ((x > low) & (x < high)).all(1)
    assert (np.exp(-log_p) * inside).mean() == pytest.approx((high - low).prod(), rel=0.05)

    x, log_p, condition = laws.conditional(1).draw(200_000, rng)
    alike = condition[:, 0] < 5e4 - 800  # where no valley lies between the branches, in which 1/p is rare and large
    low, high = np.quantile(x[alike], 0.25, 0), np.quantile(x[alike], 0.75, 0)
    inside = ((x > low) & (x < high)).all(1)
    assert (np.exp(-log_p) * inside)[alike].mean() == pytest.approx((high - low).prod(), rel=0.05)
