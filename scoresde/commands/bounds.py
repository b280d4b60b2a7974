"""Bounds on the likelihood of a run, and all its likelihoods side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_whole
from scoresde.commands.build import ConfigError
from scoresde.commands.flow_likelihood import FlowLikelihood, filling_time
from scoresde.commands.interfaces import DRAWS, MEAN_ERROR, Estimand, Likelihood, Scorer, Scores, StoredBatch, Variance
from scoresde.commands.load import TrainedModel
from scoresde.commands.variance import NoVariance
from scoresde.covariance import CovarianceDenoiser, LearnedRange
from scoresde.data import Quantized
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.chain import check_variances, checked_start
from scoresde.likelihood.decoder import CategoricalDecoder, Decoder, DiscretizedGaussian, gaussian_decoder
from scoresde.likelihood.elbo import check_elbo, elbo
from scoresde.likelihood.report import REVERSE_SDE, discrete_chain
from scoresde.likelihood.vlb import vlb

DECODERS = {"discretized": DiscretizedGaussian, "categorical": CategoricalDecoder}
REPORTED = ("nats", "std_error", "nfe")  # what a report keeps of `Scores`, in their order, and of their terms
HANDOVER = 1.5  # half cells per σ/α where a bound hands over to the decoder: about the best for the digits, measured


@dataclass(frozen=True, kw_only=True)
class ELBO(Likelihood):
    """The bound of the reverse SDE; of levels with a decoder over them.

    Args:
        form, samples, sampling: As for `elbo`.
        t_start: Where the decoder takes over; None: where the noise fills a cell, for models of dequantised levels, and
            the SDE's t_min for the others.
        decoder: Of levels: "discretized" or "categorical"; continuous values have a Gaussian.
    """

    form: str = "dsm"
    samples: int = 16
    sampling: str = "stratified"
    t_start: float | None = None
    decoder: str = "discretized"

    columns: ClassVar = ("prior", "diffusion", "reconstruction", MEAN_ERROR)

    def __post_init__(self) -> None:
        check_elbo("likelihood", self.form, self.samples, self.sampling)
        _check_ends(self.decoder, self.t_start)

    @property
    def estimands(self) -> dict[str, Estimand]:
        return {"": Estimand("SDE bound", REVERSE_SDE)}

    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        bound = partial(
            elbo, form=self.form, samples=self.samples, sampling=self.sampling,
            t_start=_last_time(self.t_start, trained), decoder=_decoder(self.decoder, trained),
        )  # fmt: skip
        return partial(_bound_scores, trained, bound, None)


@dataclass(frozen=True, kw_only=True)
class VLB(Likelihood):
    """The bound of a discrete chain, ancestral sampling; of levels with a decoder over them.

    Args:
        steps, variance, decoder_variance, samples, draws: As for `vlb`; variance "optimal" needs a `variance` group.
        t_start, decoder: As for `ELBO`; 1/steps in place of t_min where the process ends without signal.
    """

    steps: int = 100
    variance: str = "small"
    decoder: str = "discretized"
    decoder_variance: float | str | None = None
    samples: int = 2
    draws: int | None = None
    t_start: float | None = None

    columns: ClassVar = ("prior", "transitions", "reconstruction")  # rows share nothing: mean_error is std_error

    def __post_init__(self) -> None:
        check_variances("likelihood", self.variance, self.decoder_variance)
        _check_ends(self.decoder, self.t_start)
        numbers = {"steps": self.steps, "samples": self.samples, "draws": self.draws}
        check_whole("likelihood", "2 <= steps <= 1000000", "samples >= 1", "draws >= 1 or null", **numbers)

    @property
    def estimands(self) -> dict[str, Estimand]:
        return {"": Estimand("VLB", discrete_chain(self.steps))}

    @property
    def uses_covariance(self) -> bool:
        return self.variance == "optimal"

    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        none = isinstance(variance, NoVariance)
        if self.uses_covariance and none and not isinstance(trained.model, LearnedRange):
            raise ConfigError(
                "likelihood.variance=optimal needs a covariance: add variance=analytic, corrected, hessian, npr or sn."
            )
        bound = partial(
            vlb, steps=self.steps, variance=self.variance, decoder=_decoder(self.decoder, trained),
            decoder_variance=self.decoder_variance, samples=self.samples, draws=self.draws,
            t_start=_last_time(self.t_start, trained),
        )  # fmt: skip
        return partial(_bound_scores, trained, bound, variance(trained) if self.uses_covariance and not none else None)


@dataclass(frozen=True, kw_only=True)
class LikelihoodReport(Likelihood):
    """Three distributions of one model side by side: the values are those of `ode`, and the others have a prefix.

    Args:
        ode: Of the probability flow.
        elbo: Of the reverse SDE; its columns begin with "sde_".
        vlb: Of ancestral sampling; its columns begin with "chain_".
    """

    ode: Likelihood = field(default_factory=lambda: FlowLikelihood(below="decoder"))
    elbo: Likelihood = field(default_factory=ELBO)
    vlb: Likelihood = field(default_factory=VLB)

    def __post_init__(self) -> None:
        for name in ("ode", "elbo", "vlb"):
            if not isinstance(part := getattr(self, name), Likelihood):
                raise ValueError(f"LikelihoodReport needs {name} to be a Likelihood, got {part!r}.")

    @property
    def name(self) -> str:
        return "report"

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        kept = {prefix: (*REPORTED, *_of_the_mean(other)) for prefix, other in self._others.items()}
        return (*self.ode.columns, *(f"{prefix}{name}" for prefix, names in kept.items() for name in names))

    @property
    def estimands(self) -> dict[str, Estimand]:
        return {prefix: part.estimands[""] for prefix, part in {"": self.ode, **self._others}.items()}

    @property
    def uses_covariance(self) -> bool:
        return any(part.uses_covariance for part in (self.ode, *self._others.values()))

    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        first = self.ode.prepare(trained, variance)
        others = {prefix: part.prepare(trained, variance) for prefix, part in self._others.items()}

        def score(batch: StoredBatch) -> Scores:
            scores = first(batch)
            terms = dict(scores.terms)
            for prefix, other in others.items():
                found = other(batch)
                terms |= {f"{prefix}{name}": value for name, value in zip(REPORTED, found[:3], strict=True)}
                terms |= {f"{prefix}{name}": found.terms[name] for name in _of_the_mean(self._others[prefix])}
            return scores._replace(terms=terms)

        return score

    @property
    def _others(self) -> dict[str, Likelihood]:
        return {"sde_": self.elbo, "chain_": self.vlb}


def _of_the_mean(likelihood: Likelihood) -> list[str]:
    """Its columns that the error of the mean needs."""
    return [name for name in (DRAWS, MEAN_ERROR) if name in likelihood.columns]


def _bound_scores(
    trained: TrainedModel, bound: Callable[..., Bound], covariance: CovarianceDenoiser | None, batch: StoredBatch
) -> Scores:
    if "concat" in batch.cond:
        raise ConfigError("bounds are of whole examples: use likelihood=exact or hutchinson with data.missing=mask.")
    codec, denoiser = trained.codec, trained.denoiser.given(**batch.cond)
    denoiser = denoiser if covariance is None else covariance.around(denoiser)
    generator = torch.Generator(batch.x.device).manual_seed(batch.seeds[0])
    points = codec.points(batch.x)
    parts = []
    for x in points.x:
        result = bound(denoiser, x, generator=generator)
        terms = {name: term.reshape(len(term), -1).sum(1) for name, term in result.terms.items()}
        if result.mean_error is not None:
            terms[MEAN_ERROR] = result.mean_error
        parts.append(Scores(result.log_prob.double(), result.std_error, result.nfe, terms))
    scores = averaged(parts, points.weight)
    return scores._replace(nats=scores.nats + codec.log_jacobian(batch.x))


def averaged(parts: Sequence[Scores], weight: Tensor) -> Scores:
    """A bound from those at several points that stand for the same example, Σ w (bound − log w), w (K, B).

    By Jensen's inequality it is below log Σ p for every w that adds up to 1.
    """
    if len(parts) == 1:
        return parts[0]
    entropy = -torch.special.xlogy(weight, weight).sum(0)

    def mean(values: Sequence[Tensor]) -> Tensor:
        return (weight * torch.stack([value.double() for value in values])).sum(0)

    errors = torch.stack([part.std_error.double() for part in parts])
    terms = {name: mean([part.terms[name] for part in parts]) for name in parts[0].terms}
    nfe = torch.stack([part.nfe for part in parts]).sum(0)
    nats = mean([part.nats for part in parts]) + entropy
    return Scores(nats, (weight * errors).square().sum(0).sqrt(), nfe, terms)


def _last_time(t_start: float | None, trained: TrainedModel) -> float | None:
    """Where a bound of levels hands over to the decoder, unless told.

    A model that was trained on dequantised levels knows nothing of where in a cell they are put: below the noise that
    fills a cell it can only lose. One that was trained on the centres goes down to t_min.
    """
    checked_start("likelihood", trained.denoiser.sde, t_start)
    if t_start is not None or not isinstance(trained.codec, Quantized) or not trained.dequantize:
        return t_start
    return filling_time(trained, trained.codec, HANDOVER)


def _decoder(name: str, trained: TrainedModel) -> Decoder:
    codec = trained.codec
    if not isinstance(codec, Quantized):
        if name != next(iter(DECODERS)):
            raise ConfigError(f"likelihood.decoder={name} is of levels, but {trained.run.path} has continuous values.")
        return gaussian_decoder
    return DECODERS[name](levels=codec.levels, value_range=codec.value_range)


def _check_ends(decoder: str, t_start: float | None) -> None:
    check_choice("likelihood", "decoder", decoder, tuple(DECODERS))
    check_numbers("likelihood", "0 < t_start < 1 or null", t_start=t_start)
