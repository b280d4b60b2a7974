"""The likelihood of a run by the probability-flow ODE."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flags, check_numbers, check_unused, check_whole
from scoresde.commands.auxiliary import load_dequantization
from scoresde.commands.interfaces import DRAWS, Estimand, Likelihood, Scorer, Scores, StoredBatch, Variance
from scoresde.commands.load import TrainedModel
from scoresde.data import Quantized
from scoresde.denoiser import Denoiser, MissingEntries
from scoresde.integrate.torchdiffeq_backend import check_ode_arguments
from scoresde.likelihood.chain import checked_start
from scoresde.likelihood.dequantization import Dequantization, TruncatedNormalDequantization, UniformDequantization
from scoresde.likelihood.discrete_log_prob import discrete_log_prob
from scoresde.likelihood.flow_density import LogProb, check_below, log_prob
from scoresde.likelihood.report import PROBABILITY_FLOW
from scoresde.likelihood.trace import check_trace
from scoresde.noise import stream_seed

ODE = ("divergence", "probes", "probe", "method", "rtol", "atol", "steps", "t_start")
CUT = 3.0  # standard deviations at which the noise of truncated_normal is cut, unless t_start says otherwise


@dataclass(frozen=True, kw_only=True)
class FlowLikelihood(Likelihood):
    """log p by the probability-flow ODE; of levels by dequantisation.

    Args:
        divergence, probes, probe, method, rtol, atol, steps, t_start: As for `log_prob`.
        below: As for `log_prob`, of continuous values.
        dequantization: q(x | k) of levels: "uniform", "truncated_normal", or the "variational" one that was trained for
            the run; None: the first, or the second for a model that was trained on the centres.
        samples: Draws of it per example.
        importance: Whether the draws are importance-weighted.
        repeat: Share of the examples that get two draws where the others get one: they tell the estimator's error. A
            draw is a probe, or of levels, and with below="decoder", all that is random.
    """

    divergence: str = "hutchinson"
    probes: int = 1
    probe: str = "rademacher"
    method: str = "adams"
    rtol: float = 1e-3
    atol: float = 1e-3
    steps: int | None = None
    t_start: float | None = None
    below: str = "density"
    dequantization: str | None = None
    samples: int = 1
    importance: bool = False
    repeat: float = 0.1

    columns: ClassVar = ("solver_error", DRAWS)
    per_example: ClassVar = True

    def __post_init__(self) -> None:
        check_trace("likelihood", self.divergence, self.probes, self.probe)
        if self.divergence == "exact" and self.probes != 1:
            raise ValueError(f"likelihood=exact has no probes, got probes={self.probes}: use likelihood=hutchinson.")
        check_ode_arguments("likelihood", self.method, self.rtol, self.atol, self.steps)
        check_below("likelihood", self.below)
        check_flags(self)
        if self.dequantization is not None:
            check_choice("likelihood", "dequantization", self.dequantization, tuple(DEQUANTIZATIONS))
        check_whole("likelihood", "samples >= 1", samples=self.samples)
        check_numbers("likelihood", "0 <= repeat <= 1", repeat=self.repeat)
        check_numbers("likelihood", "0 < t_start < 1 or null", t_start=self.t_start)
        if self.samples == 1:
            check_unused(self, "samples=1", importance=False)

    @property
    def name(self) -> str:
        return self.divergence

    @property
    def estimands(self) -> dict[str, Estimand]:
        return {"": Estimand("ODE", PROBABILITY_FLOW)}

    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        checked_start("likelihood", trained.denoiser.sde, self.t_start)
        if not isinstance(trained.codec, Quantized):
            check_unused(self, "continuous values", dequantization=None, samples=1)
            once = self.below == "decoder" or (self.probes == 1 and self.divergence != "exact")
            return partial(self._scores, partial(self._density, trained), once)
        # a model that was trained on the centres has never seen dequantised levels
        name = self.dequantization or ("uniform" if trained.dequantize else "truncated_normal")
        dequantization = DEQUANTIZATIONS[name](trained, trained.codec, self.t_start)
        return partial(self._scores, partial(self._probability, trained, dequantization), self.samples == 1)

    def _scores(self, score: Callable[[StoredBatch, bool], Scores], once: bool, batch: StoredBatch) -> Scores:
        """A batch in two parts: examples with one draw, and those that are chosen to have two."""
        again = [once and stream_seed(seed, "repeat") < self.repeat * 2**63 for seed in batch.seeds]
        parts = []
        for twice in (False, True):
            rows = torch.tensor([row for row, chosen in enumerate(again) if chosen is twice], device=batch.x.device)
            if len(rows):
                parts.append((rows, score(batch.take(rows), twice)))
        return _joined(parts)

    def _density(self, trained: TrainedModel, batch: StoredBatch, twice: bool) -> Scores:
        denoiser, gaps = trained.denoiser, batch.x.isnan()
        if "concat" in batch.cond:  # each gap, at 0, is standard normal by itself
            denoiser = MissingEntries(denoiser, std=1.0)
        denoiser = denoiser.given(**batch.cond)
        points = trained.codec.points(batch.x).x.masked_fill(gaps, 0.0)
        found = summed([self._at(denoiser, x, batch, twice) for x in points])
        filled = 0.5 * math.log(2 * math.pi) * gaps.flatten(1).sum(1)
        return found._replace(nats=found.nats + trained.codec.log_jacobian(batch.x) + filled)

    def _at(self, denoiser: Denoiser, x: Tensor, batch: StoredBatch, twice: bool) -> Scores:
        """log p of the model at its own points x, one for each example of a batch."""
        options = {"below": self.below, "on_error": "nan", **self._ode}
        if twice and self.below == "decoder":
            again = [stream_seed(seed, "again") for seed in batch.seeds]
            parts = [log_prob(denoiser, x, seeds=seeds, **options) for seeds in (batch.seeds, again)]
            first, second = (part.log_prob.double() for part in parts)
            value, std_error, draws = (first + second) / 2, (first - second).abs() / 2, 2.0
            solver_error, nfe = (parts[0].solver_error + parts[1].solver_error) / 2, parts[0].nfe + parts[1].nfe
            failures = parts[1].failures | parts[0].failures
        else:
            options |= {"probes": 2} if twice else {}
            value, std_error, _, nfe, solver_error, _, failures, _ = log_prob(denoiser, x, seeds=batch.seeds, **options)
            draws = _draws(2, self.probe, x[0].numel()) if twice else 1.0
        terms = {"solver_error": solver_error, DRAWS: torch.full_like(solver_error, draws)}
        return Scores(value.double(), std_error, nfe, terms, failures)

    def _probability(
        self, trained: TrainedModel, dequantization: Dequantization, batch: StoredBatch, twice: bool
    ) -> Scores:
        def density(model: Denoiser, x: Tensor, *, t_start: float | None, **options: Any) -> LogProb:
            start = self.t_start if t_start is None else t_start
            return log_prob(model, x, **{**self._ode, **options, "t_start": start})

        samples = 2 if twice else self.samples  # two draws that repeat one are weighted as that one is
        result = discrete_log_prob(
            trained.denoiser.given(**batch.cond), batch.x, dequantization, samples=samples,
            importance=self.importance and not twice, seeds=batch.seeds, on_error="nan", log_prob=density,
        )  # fmt: skip
        terms = {"solver_error": result.solver_error, DRAWS: torch.full_like(result.solver_error, samples)}
        return Scores(result.log_prob, result.std_error, result.nfe, terms, result.failures)

    @property
    def _ode(self) -> dict[str, Any]:
        """Arguments of `log_prob`."""
        return {name: value for name, value in vars(self).items() if name in ODE}


def _draws(probes: int, probe: str, entries: int) -> float:
    """How many independent probes so many are worth: orthogonal ones K (d − 1)/(d − K), and d of them are exact."""
    if probe != "orthogonal":
        return float(probes)
    return math.inf if probes >= entries else probes * (entries - 1) / (entries - probes)


def filling_time(trained: TrainedModel, codec: Quantized, halves: float) -> float:
    """Where half a cell is so many standard deviations, σ/α = w/(2 halves); t_min if there is more noise there."""
    sde = trained.denoiser.sde
    t = sde.time(torch.tensor(-2 * math.log(codec.cells.width / (2 * halves)), dtype=torch.float64)).item()
    return max(t, sde.t_min)


def _uniform(trained: TrainedModel, codec: Quantized, t_start: float | None) -> Dequantization:
    return UniformDequantization(levels=codec.levels, value_range=codec.value_range)


def _truncated_normal(trained: TrainedModel, codec: Quantized, t_start: float | None) -> Dequantization:
    t = filling_time(trained, codec, CUT) if t_start is None else t_start
    return TruncatedNormalDequantization(levels=codec.levels, value_range=codec.value_range, t=t)


def _variational(trained: TrainedModel, codec: Quantized, t_start: float | None) -> Dequantization:
    return load_dequantization(trained)


DEQUANTIZATIONS = {"uniform": _uniform, "truncated_normal": _truncated_normal, "variational": _variational}


def summed(parts: Sequence[Scores]) -> Scores:
    """Densities at several points that stand for the same example, added: log Σ e^nats."""
    if len(parts) == 1:
        return parts[0]
    nats = torch.stack([part.nats.double() for part in parts])
    share = nats.softmax(0)
    errors = torch.stack([part.std_error.double() for part in parts])
    bars = torch.stack([part.terms["solver_error"].double() for part in parts])
    terms = {**parts[0].terms, "solver_error": (share * bars).sum(0)}
    nfe = torch.stack([part.nfe for part in parts]).sum(0)
    failures = {row: reason for part in parts for row, reason in part.failures.items()}
    return Scores(nats.logsumexp(0), (share * errors).square().sum(0).sqrt(), nfe, terms, failures)


def _joined(parts: Sequence[tuple[Tensor, Scores]]) -> Scores:
    """The scores of some rows and those of the others as one."""
    order = torch.cat([rows for rows, _ in parts]).argsort()

    def column(values: Sequence[Tensor]) -> Tensor:
        return torch.cat([value.double() for value in values])[order]

    nats, std_error, nfe = (column(values) for values in zip(*(scores[:3] for _, scores in parts), strict=True))
    terms = {name: column([scores.terms[name] for _, scores in parts]) for name in parts[0][1].terms}
    failures = {int(rows[k]): reason for rows, scores in parts for k, reason in scores.failures.items()}
    return Scores(nats, std_error, nfe, terms, failures)
