"""`sample.py task=...`: samples of p(x0 | y) for every observation y, with their mean, spread and errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoresde.commands.build import FAILURES, ConfigError, build, build_as
from scoresde.commands.call_counter import CallCounter
from scoresde.commands.conditions import ARTICLES, OTHERS, Conditions, check_optional, choose_labels, rows_asked
from scoresde.commands.diagnostics import NoDiagnostics
from scoresde.commands.drawing import Chosen, conditioned, describe, solved
from scoresde.commands.interfaces import Diagnostics, Guidance, InverseProblem
from scoresde.commands.likelihood import NoLikelihood, check_idle, chosen_likelihood
from scoresde.commands.load import TrainedModel
from scoresde.commands.observations import Observations, observe
from scoresde.commands.packaged import packaged
from scoresde.commands.posterior_results import write_results
from scoresde.commands.solver_grid import on_grid
from scoresde.commands.variance import NoVariance
from scoresde.denoiser import Denoiser
from scoresde.inverse import GaussianNoise, Mask, Measurement, TwistedSMC
from scoresde.noise import stream_generator, stream_seed
from scoresde.solvers import Solver

OF_THE_MODEL = {
    "data": "examples whose likelihood is asked for",
    "trajectory": "the way of the model's own samples",
    "neighbours": "neighbours of the model's own samples",
}


class Method(NamedTuple):
    """How a posterior is drawn: the denoiser of a batch with its measurement, and the solver that asks it."""

    name: str
    denoiser: Callable[[Denoiser, Measurement], Denoiser]
    solver: Callable[[Measurement], Solver]


def draw_posterior(
    config: dict[str, Any], problem: InverseProblem, trained: TrainedModel, chosen: Chosen, out: Path, own: list[str]
) -> tuple[dict[str, Any], str]:
    """Samples of the posterior of every observation as arrays, a table and one picture; what metrics.json says of them.

    Sample k of observation j is a function of (seed, j, k), y and the model alone; of a population of particles, of
    how many samples there are as well.
    """
    check_task(config, chosen, own)
    n, seed, process = config["num_samples"], config["seed"], trained.process
    base = trained.on(None)
    steering = chosen.guidance(base)
    observations = observe(problem, base, seed)
    conditions = of_observations(config, base, chosen.guidance, observations)
    method = chosen_method(config, trained, chosen, own)
    measurement, count = observations.measurement.to(trained.device), len(observations)
    solver = method.solver(measurement)
    print(
        f"{trained.run.path}: step {trained.step}, {type(problem).__name__} by {method.name}, {describe(solver)}, "
        f"{n} samples for each of {count} {observations.name} to {out}"
    )
    began, chunks, nfe = time.perf_counter(), [], 0
    places = parts_of(n, count, config["batch_size"], solver)
    with CallCounter(trained, solver, [len(part) for part in places]) as counter:
        for part in places:
            pairs = [divmod(i, n) for i in part]
            rows = torch.tensor([j for j, _ in pairs])
            own_rows = Conditions(*(None if value is None else value[rows] for value in conditions))
            denoiser = conditioned(steering, own_rows, range(len(part)), trained.device)
            denoiser = denoiser if process is None else denoiser.on(process)
            shared = rows[:1] if is_population(solver) else rows
            seen = measurement.select(shared.to(trained.device), count)
            denoiser = method.denoiser(denoiser, seen)
            solver = chosen.guidance.solvers(method.solver(seen), base)(own_rows.label)
            latent = [
                denoiser.sde.prior_sample(trained.shape, generator=stream_generator(seed, "latent", j, k))
                for j, k in pairs
            ]
            seeds = [stream_seed(seed, "noise", j, k) for j, k in pairs]
            x = solved(denoiser, solver, torch.stack(latent).to(trained.device), seeds, [counter.step])
            if not bool(torch.isfinite(x).all()):
                j, k = pairs[int((~x.isfinite()).flatten(1).any(1).nonzero()[0])]
                raise FloatingPointError(
                    f"method={method.name} returned NaN or infinity for sample {k} of observation {j}: try more steps, "
                    f"or another method."
                )
            chunks.append(x.cpu())
            nfe = counter.finish()
    seconds = round(time.perf_counter() - began, 2)
    x = torch.cat(chunks).reshape(count, n, *trained.shape)
    x = with_exact(x, observations.measurement)
    found = {
        "task": type(problem).__name__, "method": method.name, "solver": type(solver).__name__, "num_samples": n,
        "num_observations": count, "nfe": nfe, "seconds": seconds,
    }  # fmt: skip
    seen_errors, words = write_results(out, x, observations, conditions, trained)
    head = f"{n} samples of {count} posteriors, {nfe} network calls each, in {seconds:.1f} s: {out / 'posterior.png'}"
    return found | seen_errors, f"{head} and posterior.npz\n{words}"


def is_population(solver: Solver) -> bool:
    """Whether the samples of an observation are drawn together, from one population of particles."""
    return isinstance(solver, TwistedSMC) and not solver.independent


def parts_of(n: int, count: int, batch_size: int, solver: Solver) -> list[range]:
    """The places j n + k of the samples k of observations j that are drawn together.

    Raises:
        ConfigError: If a population's samples are more than a batch.
    """
    if not is_population(solver):
        return [range(i, min(i + batch_size, n * count)) for i in range(0, n * count, batch_size)]
    if n > batch_size:
        raise ConfigError(
            f"method={type(solver).__name__} draws the samples of an observation together, and num_samples={n} is more "
            f"than batch_size={batch_size}: raise batch_size, or set method.independent=true."
        )
    return [range(j * n, (j + 1) * n) for j in range(count)]


def check_task(config: Mapping[str, Any], chosen: Chosen, own: list[str]) -> None:
    """Raise for options that are of the model rather than of a posterior."""
    if config["num_samples"] == 0:
        raise ConfigError(
            "task=... draws num_samples samples for every observation, got 0: leave out task, or draw some."
        )
    for key, what in OF_THE_MODEL.items():
        if config.get(key) is not None:
            raise ConfigError(
                f"{key}=... is of {what}, and task=... draws those of observations: leave one of them out."
            )
    options, likelihood = chosen_likelihood(config["likelihood"], own)
    if options.when == "always" and options.num_examples != 0 and not isinstance(likelihood, NoLikelihood):
        raise ConfigError("likelihood=... is of the model, and task=... draws posteriors: leave one of them out.")
    check_idle(options, likelihood)
    if not isinstance(build_as(Diagnostics, config.get("diagnostics"), "diagnostics", own), NoDiagnostics):
        raise ConfigError("diagnostics=... are of the model, and task=... draws posteriors: leave one of them out.")
    if not isinstance(chosen.variance, NoVariance):
        raise ConfigError("variance=... is of the model's own samples, and task=... draws posteriors: leave it out.")


def of_observations(
    config: Mapping[str, Any], trained: TrainedModel, guidance: Guidance, observations: Observations
) -> Conditions:
    """What each observation's posterior is conditioned on besides y, one row each.

    A label is what the command line says, in turn; without one the class is unknown, and p(x | y) is that of the model
    without a label. A condition is what the command line says, or that of the example.

    Raises:
        ConfigError: If the model cannot do without it.
    """
    count, label = len(observations), config["label"]
    if label is not None or guidance.classifies:
        labels = choose_labels(label, count, trained, guidance)
    else:
        labels = None
        rate = (trained.config.get("loss") or {}).get("label_dropout") or 0
        if trained.classes is not None and rate == 0:
            raise ConfigError(
                f"task=... of {trained.run.path}, a model of classes, needs label=...: without one the class is "
                f"unknown, and the model was trained with loss.label_dropout=0."
            )
    chosen: dict[str, Tensor | None] = {"condition": None}
    for key in OTHERS:
        asked = config.get(key)
        if isinstance(asked, str) and asked == "none":
            check_optional(key, trained)
        elif asked is not None:
            rows = rows_asked(key, asked, trained)
            chosen[key] = rows[torch.arange(count) % len(rows)]
        elif key in trained.conditions:
            chosen[key] = observations.beside.get(key)
            if chosen[key] is None:
                raise ConfigError(
                    f"task=... of {trained.run.path} needs {ARTICLES[key]} {key} of each observation, as the model was "
                    f"trained with one: put it into the file under that name, or give {key}.path=..."
                )
    return Conditions(labels, **chosen)


def chosen_method(config: Mapping[str, Any], trained: TrainedModel, chosen: Chosen, own: list[str]) -> Method:
    """The method of the command line, with the solver that it needs.

    A denoiser of p(x0 | y) goes into any solver. A method that is a solver takes the chosen one inside it if it has a
    place for one, and has no use for it otherwise.

    Raises:
        ConfigError: If it is neither, or has no use for what was chosen.
    """
    node = config.get("method")
    built = build(node, "method", own)
    kind = built.func if isinstance(built, partial) else None
    if not isinstance(kind, type) or not issubclass(kind, Denoiser | Solver):
        raise ConfigError(
            f"method=... must name a Denoiser or a Solver of scoresde.inverse with _partial_: true, got {node!r}."
        )

    def made(*arguments: Any, **named: Any) -> Any:
        try:
            return built(*arguments, **named)
        except FAILURES as error:
            raise ConfigError(f"method={kind.__name__}: {error}") from error

    if issubclass(kind, Denoiser):
        solver = on_grid(chosen.solver, chosen.grid, trained)
        return Method(kind.__name__, made, lambda measurement: solver)
    inside = is_dataclass(kind) and "solver" in {field.name for field in fields(kind)}
    default = {key: packaged(key, option) for key, option in (("solver", "exponential_adams"), ("grid", "own"))}
    changed = [key for key, plain in default.items() if config.get(key) != plain]
    if changed and not inside:
        raise ConfigError(
            f"{changed[0]}=... has no effect on method={kind.__name__}, which is a solver itself: leave it out, and "
            f"set method.steps=..."
        )
    named = {"solver": on_grid(chosen.solver, chosen.grid, trained)} if changed else {}
    return Method(kind.__name__, lambda denoiser, _: denoiser, lambda seen: made(measurement=seen, **named))


def with_exact(x: Tensor, measurement: Measurement) -> Tensor:
    """Samples (J, K, *) with the observed entries of an exact mask as they were observed."""
    operator, law = measurement.operator, measurement.noise
    exact = isinstance(law, GaussianNoise) and law.std is not None and not bool((law.std > 0).any())
    if not exact or not isinstance(operator, Mask):
        return x
    mask = operator.mask.cpu().expand(len(x), *operator.shape)[:, None]
    return torch.where(mask, measurement.y.cpu()[:, None].to(x), x)
