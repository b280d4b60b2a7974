"""Estimators of likelihoods on stored examples: by the probability flow, by bounds, and all side by side."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.load import TrainedModel
from scoresde.covariance import CovarianceDenoiser
from scoresde.data import Quantized, Standardized
from scoresde.denoiser import Denoiser
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.dequantization import Dequantization
from scoresde.likelihood.discrete import discrete_log_prob
from scoresde.likelihood.flow_density import LogProb, log_prob
from scoresde.likelihood.report import PROBABILITY_FLOW
from scoresde.noise import stream_seed

REPORTED = ("nats", "std_error", "nfe")  # what a report keeps of a bound


class Batch(NamedTuple):
    """Stored examples on the model's device.

    Attributes:
        x: Levels, or values in the data's own units, (B, *).
        cond: Conditions of the model, each (B, *).
        seeds: One per example.
    """

    x: Tensor
    cond: dict[str, Tensor]
    seeds: list[int]

    def take(self, rows: Tensor) -> Batch:
        cond = {name: value[rows] for name, value in self.cond.items()}
        return Batch(self.x[rows], cond, [self.seeds[row] for row in rows.tolist()])


class Scores(NamedTuple):
    """Values of a batch.

    Attributes:
        nats: log p(x) in the data's own units, or log P of the levels, (B,).
        std_error: Of nats, from the estimator's own random numbers, (B,); NaN if it is not known.
        nfe: Network calls of each example, (B,).
        terms: More columns by name, (B,).
        failures: Why a row has no value, by its place in the batch.
    """

    nats: Tensor
    std_error: Tensor
    nfe: Tensor
    terms: dict[str, Tensor]
    failures: dict[int, str]


class Estimator(ABC):
    """A kind of likelihood for one run.

    Attributes:
        columns: Names of `Scores.terms`.
        per_example: Whether a row is a function of its seed alone; otherwise of the batch it is in.
        laws: Name and law, in words, of the values in the column "nats", and in those with a prefix.
        needs_variance: Whether the values depend on the `variance` group.
    """

    columns: tuple[str, ...]
    per_example: bool
    laws: dict[str, tuple[str, str]]
    needs_variance: bool = False

    @abstractmethod
    def __call__(self, batch: Batch) -> Scores:
        """Values of a batch."""


@dataclass(frozen=True, kw_only=True)
class FlowEstimator(Estimator):
    """log p by the probability-flow ODE; of levels by dequantisation.

    Args:
        trained: The run.
        ode: Arguments of `log_prob`.
        dequantization: q(x | k) of quantised data; None for continuous data.
        samples: Draws of it per example.
        importance: Whether the draws are importance-weighted.
        repeat: Share of the examples that get two draws where the others get one: they tell the estimator's error.
    """

    trained: TrainedModel
    ode: Mapping[str, Any]
    dequantization: Dequantization | None
    samples: int = 1
    importance: bool = False
    repeat: float = 0.0

    columns = ("solver_error",)
    per_example = True
    laws = {"": ("ODE", PROBABILITY_FLOW)}  # noqa: RUF012  # never changed

    def __call__(self, batch: Batch) -> Scores:
        continuous = self.dequantization is None
        alone = (self.ode["probes"] if continuous else self.samples) == 1
        alone = alone and not (continuous and self.ode["divergence"] == "exact")
        again = [alone and stream_seed(seed, "repeat") < self.repeat * 2**63 for seed in batch.seeds]
        parts = []
        for twice in (False, True):
            rows = torch.tensor([row for row, chosen in enumerate(again) if chosen is twice], device=batch.x.device)
            if len(rows):
                score = self._density if continuous else self._probability
                parts.append((rows, score(batch.take(rows), twice)))
        return _joined(parts)

    def _density(self, batch: Batch, twice: bool) -> Scores:
        codec = self.trained.codec
        assert isinstance(codec, Standardized)
        result = log_prob(
            given(self.trained, batch), codec.encode(batch.x), seeds=batch.seeds, on_error="nan",
            **{**self.ode, **({"probes": 2} if twice else {})},
        )  # fmt: skip
        nats, terms = result.log_prob.double() - codec.log_det, {"solver_error": result.solver_error}
        return Scores(nats, result.std_error, result.nfe, terms, result.failures)

    def _probability(self, batch: Batch, twice: bool) -> Scores:
        assert self.dequantization is not None

        def density(model: Denoiser, x: Tensor, *, t_start: float | None, **options: Any) -> LogProb:
            start = self.ode["t_start"] if t_start is None else t_start
            return log_prob(model, x, **{**self.ode, **options, "t_start": start})

        result = discrete_log_prob(
            given(self.trained, batch), batch.x, self.dequantization, samples=2 if twice else self.samples,
            importance=self.importance, seeds=batch.seeds, on_error="nan", log_prob=density,
        )  # fmt: skip
        terms = {"solver_error": result.solver_error}
        return Scores(result.log_prob, result.std_error, result.nfe, terms, result.failures)


@dataclass(frozen=True, kw_only=True)
class BoundEstimator(Estimator):
    """The bound of the reverse SDE or of a discrete chain; of levels with a decoder over them.

    Args:
        trained: The run.
        bound: `elbo` or `vlb` with their options.
        columns: Terms of the bound.
        law: Its name and law.
        spread: Gives the denoiser the covariance that variance="optimal" needs.
    """

    trained: TrainedModel
    bound: Callable[..., Bound]
    columns: tuple[str, ...]
    law: tuple[str, str]
    spread: CovarianceDenoiser | None = None

    per_example = False

    @property
    def laws(self) -> dict[str, tuple[str, str]]:  # type: ignore[override]
        return {"": self.law}

    @property
    def needs_variance(self) -> bool:  # type: ignore[override]
        return self.spread is not None

    def __call__(self, batch: Batch) -> Scores:
        codec, denoiser = self.trained.codec, given(self.trained, batch)
        denoiser = denoiser if self.spread is None else self.spread.around(denoiser)
        generator = torch.Generator(batch.x.device).manual_seed(batch.seeds[0])
        result = self.bound(denoiser, codec.encode(batch.x, dequantize=False), generator=generator)
        terms = {name: term.reshape(len(term), -1).sum(1) for name, term in result.terms.items()}
        log_det = 0.0 if isinstance(codec, Quantized) else codec.log_det
        return Scores(result.log_prob.double() - log_det, result.std_error, result.nfe, terms, {})


@dataclass(frozen=True, kw_only=True)
class ReportEstimator(Estimator):
    """The probability flow and two bounds side by side; "nats" is the flow's.

    Args:
        flow: The first.
        bounds: The others, by the prefix of their columns.
    """

    flow: FlowEstimator
    bounds: Mapping[str, BoundEstimator]

    per_example = False

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.flow.columns, *(f"{prefix}{name}" for prefix in self.bounds for name in REPORTED))

    @property
    def laws(self) -> dict[str, tuple[str, str]]:  # type: ignore[override]
        return {**self.flow.laws, **{prefix: bound.law for prefix, bound in self.bounds.items()}}

    @property
    def needs_variance(self) -> bool:  # type: ignore[override]
        return any(bound.needs_variance for bound in self.bounds.values())

    def __call__(self, batch: Batch) -> Scores:
        scores = self.flow(batch)
        terms = dict(scores.terms)
        for prefix, bound in self.bounds.items():
            other = bound(batch)
            terms |= {f"{prefix}{name}": getattr(other, name) for name in REPORTED}
        return scores._replace(terms=terms)


def given(trained: TrainedModel, batch: Batch) -> Denoiser:
    """The run's denoiser with the conditions of a batch."""
    assert isinstance(trained.model, Denoiser)
    return trained.model.given(**batch.cond)


def _joined(parts: Sequence[tuple[Tensor, Scores]]) -> Scores:
    """The scores of some rows and those of the others as one."""
    places = torch.cat([rows for rows, _ in parts])
    order = places.argsort()

    def column(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.double() for value in values])[order]

    nats, std_error, nfe = (column([getattr(scores, name) for _, scores in parts]) for name in REPORTED)
    terms = {name: column([scores.terms[name] for _, scores in parts]) for name in parts[0][1].terms}
    failures = {int(rows[k]): reason for rows, scores in parts for k, reason in scores.failures.items()}
    return Scores(nats, std_error, nfe, terms, failures)
