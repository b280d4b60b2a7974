"""What a table of likelihoods says: the mean with its error bar, failures, warnings and the least likely rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.interfaces import DRAWS, MEAN_ERROR, Likelihood
from scoresde.commands.load import TrainedModel
from scoresde.commands.tables import Row
from scoresde.data import Quantized
from scoresde.likelihood.report import NOT_IN_THE_BAR, Report, ReportRow
from scoresde.likelihood.summary import RunningMean, Summary

ANOMALIES = 5  # least likely rows that are named
MOST_REASONS = 5  # reasons of failure that are named


class Unit(NamedTuple):
    """What values are reported in: bits/dim of levels, nats of log density in the data's own units otherwise."""

    is_bits: bool
    nats: float  # of one unit, with its sign

    @classmethod
    def of(cls, trained: TrainedModel) -> Unit:
        is_bits = isinstance(trained.codec, Quantized)
        return cls(is_bits, -math.prod(trained.shape) * math.log(2) if is_bits else 1.0)

    @property
    def name(self) -> str:
        return "bits/dim" if self.is_bits else "log p"

    @property
    def key(self) -> str:
        """The name in metrics.json."""
        return "bits_per_dim" if self.is_bits else "log_prob_nats"

    def value(self, nats: float) -> float:
        return nats / self.nats


def means(rows: Sequence[Row], unit: Unit, mean: RunningMean | None = None) -> RunningMean:
    """The mean over the rows that have a value, in the unit of the report."""
    values, errors, draws = errors_of(rows)
    return (mean or RunningMean()).update(values / unit.nats, errors / abs(unit.nats), draws)


def errors_of(rows: Sequence[Row], of: str = "") -> tuple[Tensor, Tensor, Tensor | None]:
    """Nats, and what `summarize` takes for their errors; `of` is a prefix of the columns."""

    def column(name: str) -> Tensor:
        return torch.tensor([float(row[f"{of}{name}"] or "nan") for row in rows], dtype=torch.float64)

    names = rows[0].keys() if rows else ()
    error = MEAN_ERROR if f"{of}{MEAN_ERROR}" in names else "std_error"
    return column("nats"), column(error), column(DRAWS) if f"{of}{DRAWS}" in names else None


def with_error(summary: Summary) -> str:
    error = "" if math.isnan(summary.std_error) else f" ± {summary.std_error:.4f}"
    return f"{summary.mean:.4f}{error}"


def print_summary(
    rows: Sequence[Row], unit: Unit, likelihood: Likelihood, name: str, seconds: float, rank: bool
) -> dict[str, Any]:
    """Print what the rows say.

    Args:
        rows: Of the table.
        unit: Of the report.
        likelihood: What the values were made with.
        name: What the rows are, for people.
        seconds: That it took.
        rank: Whether to name the least likely rows.
    Returns:
        The numbers for metrics.json; null for those that are not known.
    """
    summary, good = means(rows, unit).summary(), [row for row in rows if row["status"] == "ok"]
    reasons = Counter(row["status"] for row in rows if row["status"] != "ok")
    calls = sum(int(row["nfe"]) for row in good) / max(1, len(good))
    found: dict[str, Any] = {
        "likelihood_num_examples": len(good), "likelihood_failed": len(rows) - len(good),
        "likelihood_nfe": round(calls, 1), "likelihood_seconds": round(seconds, 2),
        unit.key: summary.mean, f"{unit.key}_std_error": summary.std_error,
        f"{unit.key}_estimator_error": summary.estimator_error, f"{unit.key}_data_error": summary.data_error,
    }  # fmt: skip
    for column in (name for name in likelihood.columns if name not in (DRAWS, MEAN_ERROR)):
        known = [float(row[column]) for row in good if row[column]]
        found[f"likelihood_{column}"] = sum(known) / len(known) if known else math.nan
    if good:
        print(f"{_sentence(summary, unit, name)}, {calls:.0f} network calls each, {seconds:.0f} s")
        print(_estimands(rows, unit, likelihood))
    for reason, count in reasons.most_common(MOST_REASONS):
        first = next(row["index"] for row in rows if row["status"] == reason)
        print(f"failed: {count} of {len(rows)} rows, the first is row {first}: {reason}")
    if unit.is_bits and summary.mean < 0:
        print(
            "warning: bits/dim below 0, which no probability of levels has: the model's density has spikes at the "
            "levels, as after training without dequantisation"
        )
    if rank and good:
        lowest = sorted(good, key=lambda row: float(row["nats"]))[:ANOMALIES]
        found["likelihood_lowest"] = [int(row["index"]) for row in lowest]
        print("least likely: " + ", ".join(f"row {row['index']} ({float(row['nats']):.2f} nats)" for row in lowest))
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in found.items()}


def _estimands(rows: Sequence[Row], unit: Unit, likelihood: Likelihood) -> str:
    """What the values are of; a table if there are several."""
    if len(likelihood.estimands) == 1:
        return f"({likelihood.estimands[''].distribution})\n({NOT_IN_THE_BAR})"
    table = []
    for prefix, (name, distribution) in likelihood.estimands.items():
        nats, errors, draws = errors_of(rows, prefix)
        calls = torch.tensor([float(row[f"{prefix}nfe"] or "nan") for row in rows], dtype=torch.float64)
        scale = abs(unit.nats)
        table.append(ReportRow.of(name, distribution, -nats / scale, errors / scale, calls[nats.isfinite()], draws))
    return str(Report(rows=tuple(table), unit=unit.name if unit.is_bits else "nats"))


def _sentence(summary: Summary, unit: Unit, name: str) -> str:
    units = "" if unit.is_bits else " nats in the data's own units"
    if math.isnan(summary.std_error):
        return f"{unit.name} {with_error(summary)}{units} (one example, so no standard error)"
    own = "unknown" if math.isnan(summary.estimator_error) else f"± {summary.estimator_error:.4f}"
    if summary.estimator_error > summary.std_error:  # both are estimates
        own = f"about all, ± {summary.estimator_error:.4f} by itself"
    more = ", so more draws would help" if summary.more_draws_help else ""
    error = f"standard error over {summary.n} {name}; the estimator's part of it: {own}{more}"
    return f"{unit.name} {with_error(summary)}{units} ({error})"
