"""The mean over a test set with its error, and how much of that is the estimator's own."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor


class Summary(NamedTuple):
    """A mean over examples, in the units of its values.

        std_error² = estimator_error² + data_error²

    Attributes:
        mean: Over the examples with a finite value; NaN if there are none.
        std_error: Standard error of the mean as an estimate of the expectation over all data, by every source of
            scatter; NaN for fewer than two examples.
        estimator_error: The part that another seed would change: random probes, times, noises, dequantisation.
            NaN if the errors of single examples are not known.
        data_error: The part that only more test data reduce.
        n: Examples that count.
        failed: Examples whose value was NaN or infinite.
    """

    mean: float
    std_error: float
    estimator_error: float
    data_error: float
    n: int
    failed: int


class RunningMean:
    """A mean with its errors over values that come in parts.

        std_error² = Σ (v_i − v̄)² / (n (n − 1)),     estimator_error² = Σ s_i² / n²

    with s_i the standard error of value i. Whatever the parts, the result is that of all values at once.
    """

    def __init__(self) -> None:
        self.n = self.failed = self._known = 0
        self._mean = self._squares = self._variances = 0.0

    def update(self, values: Tensor, std_error: Tensor | None = None) -> RunningMean:
        """Take in more examples; returns itself.

        Args:
            values: One per example, any shape; NaN and infinite ones count as failed.
            std_error: Standard error of every value, of the same shape; None or NaN is unknown.
        """
        values = values.detach().double().flatten()
        counts = values.isfinite()
        if std_error is not None:
            if std_error.numel() != values.numel():
                raise ValueError(
                    f"RunningMean needs one std_error for each value, got {std_error.numel()} for {values.numel()}."
                )
            variances = std_error.detach().double().flatten()[counts].square()
            variances = variances[variances.isfinite()]
            self._known += variances.numel()
            self._variances += float(variances.sum())
        self.failed += int((~counts).sum())
        self._merge(values[counts])
        return self

    def _merge(self, values: Tensor) -> None:
        """Mean and Σ (v − v̄)² of two parts together (Chan et al. 1979), without cancellation."""
        more = values.numel()
        if more == 0:
            return
        mean = float(values.mean())
        shift, total = mean - self._mean, self.n + more
        self._squares += float((values - mean).square().sum()) + shift**2 * self.n * more / total
        self._mean += shift * more / total
        self.n = total

    def summary(self) -> Summary:
        """The mean so far."""
        n = self.n
        std_error = math.sqrt(self._squares / (n * (n - 1))) if n > 1 else math.nan
        estimator = math.sqrt(self._variances / (self._known * n)) if self._known else math.nan
        data = math.sqrt(max(std_error**2 - estimator**2, 0.0)) if math.isfinite(std_error * estimator) else math.nan
        return Summary(self._mean if n else math.nan, std_error, estimator, data, n, self.failed)


def summarize(values: Tensor, std_error: Tensor | None = None) -> Summary:
    """Mean over a test set, its standard error, and the two parts of that.

    Args:
        values: One per example, (N,), for instance bits/dim.
        std_error: Standard errors of the values from their own random numbers, (N,), in the same units.
    Returns:
        A `Summary`.
    """
    return RunningMean().update(values, std_error).summary()
