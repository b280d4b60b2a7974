"""`likelihood=KIND` and its options -> an estimator for a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from scoresde.commands.build import ConfigError
from scoresde.commands.estimators import BoundEstimator, Estimator, FlowEstimator, ReportEstimator
from scoresde.commands.interfaces import Variance
from scoresde.commands.load import TrainedModel
from scoresde.commands.variance import NoVariance
from scoresde.covariance import CovarianceDenoiser, LearnedRange
from scoresde.data import Quantized
from scoresde.likelihood import CategoricalDecoder, Cells, Decoder, DiscretizedGaussian, gaussian_decoder
from scoresde.likelihood.bound import Bound
from scoresde.likelihood.dequantization import Dequantization, TruncatedNormalDequantization, UniformDequantization
from scoresde.likelihood.elbo import elbo
from scoresde.likelihood.report import REVERSE_SDE, discrete_chain
from scoresde.likelihood.vlb import vlb

KINDS = ("exact", "hutchinson", "elbo", "vlb", "report", "none")
DEQUANTIZATIONS = ("uniform", "truncated_normal", "variational")
DECODERS = {"discretized": DiscretizedGaussian, "categorical": CategoricalDecoder}
CUT = 3.0  # standard deviations at which the noise of truncated_normal is cut, unless t_start says otherwise
HANDOVER = 1.5  # half cells per σ/α where a bound of spread levels ends: about the best for the digits, by measurement


def estimator(
    options: Mapping[str, Any], variance: Variance, trained: TrainedModel, extensions: Sequence[str]
) -> Estimator:
    """The estimator that a `likelihood` configuration asks for; `variance` is that group's.

    Raises:
        ConfigError: If there is no such kind, or the run lacks what it needs.
    """
    kind = options["kind"]
    for part in (options, *(value for value in options.values() if isinstance(value, Mapping))):
        _check_numbers(part)
    if kind in ("exact", "hutchinson"):
        return flow_estimator(options, trained, extensions)
    if kind in ("elbo", "vlb"):
        return bound_estimator(options, variance, trained, extensions)
    if kind == "report":
        nodes = {"ode": None, "elbo": "sde_", "vlb": "chain_"}
        missing = [key for key in nodes if not isinstance(options.get(key), Mapping)]
        if missing or options["ode"]["kind"] not in ("exact", "hutchinson"):
            raise ConfigError("likelihood=report needs its parts ode, elbo and vlb, with ode.kind=exact or hutchinson.")
        bounds = {
            prefix: bound_estimator({"kind": key, **options[key]}, variance, trained, extensions)
            for key, prefix in nodes.items()
            if prefix
        }
        return ReportEstimator(flow=flow_estimator(options["ode"], trained, extensions), bounds=bounds)
    raise ConfigError(f"likelihood.kind needs to be one of {', '.join(KINDS)}, got {kind!r}.")


def _check_numbers(options: Mapping[str, Any]) -> None:
    """Raise if an option that is a number is something else; their ranges are checked where they are used."""
    kinds: dict[str, tuple[Any, str]] = {
        **dict.fromkeys(("probes", "samples", "steps", "draws"), (int, "a whole number")),
        **dict.fromkeys(("rtol", "atol", "t_start", "repeat"), ((int, float), "a number")),
        "importance": (bool, "true or false"),
    }
    for key, (kind, words) in kinds.items():
        value = options.get(key)
        if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
            raise ConfigError(f"likelihood.{key} needs {words}, got {value!r}.")
    if not 0 <= options.get("repeat", 0) <= 1:
        raise ConfigError(f"likelihood.repeat needs a share between 0 and 1, got {options['repeat']!r}.")


def flow_estimator(options: Mapping[str, Any], trained: TrainedModel, extensions: Sequence[str]) -> FlowEstimator:
    ode = {key: options[key] for key in ("method", "rtol", "atol", "steps", "t_start")}
    ode["divergence"] = options["kind"]
    ode |= {key: options.get(key, default) for key, default in (("probes", 1), ("probe", "rademacher"))}
    quantized = isinstance(trained.codec, Quantized)
    if not quantized:
        ode["below"] = options["below"]
    return FlowEstimator(
        trained=trained,
        ode=ode,
        dequantization=_dequantization(options, trained, extensions) if quantized else None,
        samples=options["samples"],
        importance=options["importance"],
        repeat=options["repeat"],
    )


def bound_estimator(
    options: Mapping[str, Any], variance: Variance, trained: TrainedModel, extensions: Sequence[str]
) -> BoundEstimator:
    decoder = _decoder(options["decoder"], trained)
    options = {**options, "t_start": _last_time(options["t_start"], trained)}
    if options["kind"] == "elbo":
        chosen = {key: options[key] for key in ("form", "samples", "sampling", "t_start")}
        bound: Callable[..., Bound] = partial(elbo, decoder=decoder, **chosen)
        columns = ("prior", "diffusion", "reconstruction")
        return BoundEstimator(trained=trained, bound=bound, columns=columns, law=("SDE bound", REVERSE_SDE))
    spread = _spread(options["variance"], variance, trained, extensions)
    keys = ("steps", "variance", "decoder_variance", "samples", "draws", "t_start")
    return BoundEstimator(
        trained=trained,
        bound=partial(vlb, decoder=decoder, **{key: options[key] for key in keys}),
        spread=spread,
        columns=("prior", "transitions", "reconstruction"),
        law=("VLB", discrete_chain(options["steps"])),
    )


def _dequantization(options: Mapping[str, Any], trained: TrainedModel, extensions: Sequence[str]) -> Dequantization:
    # one that was trained on the centres has never seen levels spread over their cells
    kind = options["dequantization"] or ("uniform" if trained.dequantize else "truncated_normal")
    codec = trained.codec
    assert isinstance(codec, Quantized)
    levels, value_range = codec.levels, codec.value_range
    if kind == "uniform":
        return UniformDequantization(levels=levels, value_range=value_range)
    if kind == "truncated_normal":
        width = Cells(levels=levels, value_range=value_range).width
        t = _filling_time(trained, width, CUT) if options["t_start"] is None else options["t_start"]
        return TruncatedNormalDequantization(levels=levels, value_range=value_range, t=t)
    if kind == "variational":
        from scoresde.commands.auxiliary import load_dequantization

        return load_dequantization(trained)
    raise ConfigError(f"likelihood.dequantization needs to be one of {', '.join(DEQUANTIZATIONS)}, got {kind!r}.")


def _filling_time(trained: TrainedModel, width: float, halves: float) -> float:
    """Where half a cell is so many standard deviations, σ/α = w/(2 halves); t_min if there is more noise there."""
    sde = trained.denoiser.sde
    t = sde.time(torch.tensor(-2 * math.log(width / (2 * halves)), dtype=torch.float64)).item()
    return max(t, sde.t_min)


def _last_time(t_start: float | None, trained: TrainedModel) -> float | None:
    """Where a bound of levels hands over to the decoder, unless told.

    A model that was trained on levels spread over their cells knows nothing of where in a cell they are put: below the
    noise that fills a cell it can only lose. One that was trained on the centres goes down to t_min.
    """
    codec = trained.codec
    if t_start is not None or not isinstance(codec, Quantized):
        return t_start
    if not trained.dequantize:
        return None
    return _filling_time(trained, Cells(levels=codec.levels, value_range=codec.value_range).width, HANDOVER)


def _decoder(name: str, trained: TrainedModel) -> Decoder:
    codec = trained.codec
    if not isinstance(codec, Quantized):
        return gaussian_decoder
    if name not in DECODERS:
        raise ConfigError(f"likelihood.decoder needs to be {' or '.join(DECODERS)}, got {name!r}.")
    return DECODERS[name](levels=codec.levels, value_range=codec.value_range)


def _spread(
    kind: str, variance: Variance, trained: TrainedModel, extensions: Sequence[str]
) -> CovarianceDenoiser | None:
    """What likelihood.variance=optimal needs: the covariance of the `variance` group."""
    none = isinstance(variance, NoVariance)
    if kind != "optimal" or (none and isinstance(trained.model, LearnedRange)):
        return None
    if none:
        raise ConfigError(
            "likelihood.variance=optimal needs a covariance: add variance=analytic, corrected, hessian, npr or sn."
        )
    return variance(trained)
