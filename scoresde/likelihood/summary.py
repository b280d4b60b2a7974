"""The mean over a test set with its error, and how much of that is the estimator's own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scoresde.likelihood.intervals import coverage_factor

HELPS = 0.25  # least share of the variance that more draws could take away for them to be worth it


class Summary(NamedTuple):
    """A mean over examples, in the units of its values.

        std_error² = estimator_error² + data_error²

    Every error is a standard error; `interval` turns the whole one into an interval. None holds the model's own error,
    how far its law is from the data's.

    Attributes:
        mean: Over the examples with a finite value; NaN if there are none.
        std_error: Standard error of the mean as an estimate of the expectation over all data, by every source of
            scatter; NaN for fewer than two examples.
        estimator_error: The part that another seed would change: random probes, times, noises, dequantisation.
            NaN if the errors of single examples are not known.
        data_error: The part that only more test data reduce.
        n: Examples that count.
        failed: Examples whose value was NaN or infinite.
        known: Examples whose own error is known.
    """

    mean: float
    std_error: float
    estimator_error: float
    data_error: float
    n: int
    failed: int
    known: int = 0

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the interval that holds the expectation over all data in a share `level` of cases (Student's t)."""
        half = float(coverage_factor(max(self.n - 1, 1), level)) * self.std_error
        return self.mean - half, self.mean + half

    @property
    def more_draws_help(self) -> bool:
        """Whether the estimator causes a quarter of std_error² or more, beyond what may be chance.

            estimator_error² (1 − 2 √(2/known)) > ¼ std_error² (1 + 2 √(2/(n − 1)))

        An error that is known from two draws each of k examples, or a scatter of n, has a relative variance of 2/k.
        """
        if self.known == 0 or self.n < 2:
            return False
        least = self.estimator_error**2 * (1 - 2 * math.sqrt(2 / self.known))
        return least > HELPS * self.std_error**2 * (1 + 2 * math.sqrt(2 / (self.n - 1)))


class RunningMean:
    """A mean with its errors over values that come in parts.

        std_error²       = Σ (v_i − v̄)² / (n (n − 1))
        estimator_error² = (Σ_known s_i² + σ² Σ_unknown 1/m_i) / n²,     σ² the mean of m_i s_i² over the known

    with s_i the standard error of value i, which is the mean of m_i draws of standard deviation σ or so. Whatever the
    parts, the result is that of all values at once.
    """

    def __init__(self) -> None:
        self.n = self.failed = self._known = self._telling = 0
        self._mean = self._squares = self._variances = self._per_draw = self._unknown = 0.0

    def update(self, values: Tensor, std_error: Tensor | None = None, draws: Tensor | None = None) -> RunningMean:
        """Take in more examples; returns itself.

        Args:
            values: One per example, any shape; NaN and infinite ones count as failed.
            std_error: Standard error of every value, of the same shape; None or NaN is unknown.
            draws: Draws that every value is the mean of, of the same shape, for values that have different ones; None:
                all have as many.
        """
        values = values.detach().double().flatten()
        counts = values.isfinite()
        errors, draws = (
            torch.full_like(values, default) if part is None else _alike(name, part, values)
            for name, part, default in (("std_error", std_error, math.nan), ("draws", draws, 1.0))
        )
        variances, draws = errors[counts].square(), draws[counts]
        known = variances.isfinite()
        telling = known & draws.isfinite()
        self._known += int(known.sum())
        self._telling += int(telling.sum())
        self._variances += float(variances[known].sum())
        self._per_draw += float((draws * variances)[telling].sum())
        self._unknown += float((1 / draws[~known]).sum())
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
        estimator = self._estimator_error()
        data = math.sqrt(max(std_error**2 - estimator**2, 0.0)) if math.isfinite(std_error * estimator) else math.nan
        return Summary(self._mean if n else math.nan, std_error, estimator, data, n, self.failed, self._known)

    def _estimator_error(self) -> float:
        if self._known == 0 or (self._unknown > 0 and self._telling == 0):
            return math.nan
        unknown = self._unknown * self._per_draw / self._telling if self._unknown else 0.0
        return math.sqrt(self._variances + unknown) / self.n


def _alike(name: str, part: Tensor, values: Tensor) -> Tensor:
    if part.numel() != values.numel():
        raise ValueError(f"RunningMean needs one {name} for each value, got {part.numel()} for {values.numel()}.")
    return part.detach().to(values).flatten()


def summarize(values: Tensor, std_error: Tensor | None = None, draws: Tensor | None = None) -> Summary:
    """Mean over a test set, its standard error, and the two parts of that.

    Args:
        values: One per example, (N,), for instance bits/dim.
        std_error: Standard errors of the values from their own random numbers, (N,), in the same units; of a `Bound`
            its `mean_error`. NaN where it is not known, if it is for some.
        draws: How many draws each value is the mean of, (N,), where that differs.
    Returns:
        A `Summary`.
    """
    return RunningMean().update(values, std_error, draws).summary()
