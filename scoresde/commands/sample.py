"""`sample.py`: run directory -> denoiser -> guidance -> solver -> pictures and arrays; likelihoods; diagnostics."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.build import ANY_INTERFACE, ConfigError, build, build_as, require
from scoresde.commands.call_counter import CallCounter
from scoresde.commands.conditions import OTHERS, Conditions, choose_conditions
from scoresde.commands.device import pick_device
from scoresde.commands.diagnostics import NoDiagnostics
from scoresde.commands.drawing import Chosen, conditioned, describe, draw, rows_of, start
from scoresde.commands.guidance import NoGuidance
from scoresde.commands.interfaces import Diagnostics, Guidance, InverseProblem, Likelihood, Variance
from scoresde.commands.inverse_problems import NoTask
from scoresde.commands.likelihood import Evaluation, check_idle, chosen_likelihood, is_wanted
from scoresde.commands.load import TrainedModel, load_run, newest_run
from scoresde.commands.looks import data_of, model_values, save_given_images, save_look, shown, words_of
from scoresde.commands.neighbours import look_for_neighbours
from scoresde.commands.options import SAMPLE, check_options
from scoresde.commands.paired import check_flow_only
from scoresde.commands.posterior import draw_posterior
from scoresde.commands.saved_samples import sample_values, samples_csv
from scoresde.commands.solver_grid import on_grid
from scoresde.commands.trajectory import Trajectory, check_trajectory, kept, save_trajectory
from scoresde.commands.variance import NoVariance
from scoresde.covariance import CovarianceDenoiser
from scoresde.covariance.reverse_variance import ChoosesVariance
from scoresde.denoiser import Denoiser
from scoresde.files import inside, write_atomically
from scoresde.sde import SDE
from scoresde.solvers import ProbabilityFlowODE, Solver
from scoresde.solvers.base import Step
from scoresde.streams import held_back
from scoresde.training.lock import remove_stale

OWN_DATA = "scoresde.commands.OwnData"


def sample(config: dict[str, Any]) -> dict[str, Any]:
    """Draw samples from a run, evaluate likelihoods of its data or of a file, and draw diagnostics: what is asked for.

    Writes samples.png, samples.npz, likelihood.csv and metrics.json, and prints what it found.

    Returns:
        What metrics.json holds.
    """
    check_options(config, SAMPLE)
    n = config["num_samples"]
    device, extensions = pick_device(config["device"]), config["extensions"]
    run = newest_run(Denoiser, extensions=extensions).path if config["run"] is None else config["run"]
    trained = load_run(run, device=device, extensions=extensions)
    remove_stale(trained.run.lock)
    if (config.get("data") or {}).get("_target_") == OWN_DATA:
        trained, config = build(config["data"], "data")(trained), {**config, "data": None}
    own = [*extensions, ANY_INTERFACE]  # the command line is the user's own, while the run may come from elsewhere
    sde = None if config.get("sde") is None else build_as(SDE, config["sde"], "sde", own)
    chosen = Chosen(
        solver=build_as(Solver, config.get("solver"), "solver", own),
        grid=build(config.get("grid"), "grid", own),
        guidance=build_as(Guidance, config.get("guidance"), "guidance", own),
        variance=build_as(Variance, config.get("variance"), "variance", own),
    )
    steered = config["label"] is not None or not isinstance(chosen.guidance, NoGuidance)
    asked = next((key for key in OTHERS if config.get(key) is not None), None)
    metrics: dict[str, Any]
    out = inside(trained.run, Path(config["out"]) if config["out"] is not None else trained.run.samples)
    if (problem := posed(config, own)) is not None:
        metrics = {"run": str(trained.run.path), "step": trained.step, "seed": config["seed"]}
        _report(out, metrics, *draw_posterior(config, problem, trained.on(sde), chosen, out, own))
        print(f"wrote {out / 'metrics.json'}")
        return metrics
    evaluation = None
    options, likelihood = chosen_likelihood(config["likelihood"], own)
    if is_wanted(config, options, likelihood, chosen.solver, steered or asked is not None):
        if sde is not None and likelihood.uses_covariance:
            raise ConfigError(
                f"likelihood={likelihood.name} with a variance=... is of the run's own process: leave out sde=..., or "
                f"likelihood.variance=optimal."
            )
        evaluation = Evaluation(config, options, likelihood, trained.on(sde), out, chosen.variance)
        if not isinstance(chosen.guidance, NoGuidance):
            print("guidance is of the samples: the likelihood is that of the model without it.")
    else:
        check_idle(options, likelihood)
    check_trajectory(config.get("trajectory"), chosen.solver, n)
    if n == 0 and config.get("neighbours") is not None:
        raise ConfigError("neighbours are of samples, and num_samples=0 draws none: leave them out, or draw some.")
    check_flow_only(trained, chosen.solver if n > 0 else None, None if evaluation is None else likelihood)
    if n == 0 and steered:
        given = "guidance" if config["label"] is None else f"label={config['label']}"
        raise ConfigError(f"{given} is of samples, and num_samples=0 draws none: leave it out, or draw some.")
    if n == 0 and asked is not None and not (evaluation is not None and evaluation.given):
        raise ConfigError(f"{asked} is of samples or of the examples of data=..., and there are none: leave it out.")
    diagnostics = build_as(Diagnostics, config.get("diagnostics"), "diagnostics", own)
    if n == 0 and evaluation is None and isinstance(diagnostics, NoDiagnostics):
        raise ConfigError("num_samples=0 leaves nothing to do: add likelihood=hutchinson or a diagnostics=...")

    metrics = {"run": str(trained.run.path), "step": trained.step, "seed": config["seed"]}
    with nullcontext() if evaluation is None else evaluation.table:
        if n > 0:
            _report(out, metrics, *draw_samples(config, trained.on(sde), chosen, likelihood, out))
        if evaluation is not None:
            _report(out, metrics, *evaluation.run())
    with held_back() as words:
        found = diagnostics(trained.on(sde), seed=config["seed"], batch_size=config["batch_size"], out=out)
    _report(out, metrics, found, words.getvalue())
    print(f"wrote {out / 'metrics.json'}")
    return metrics


def posed(config: dict[str, Any], own: list[str]) -> InverseProblem | None:
    """What `task` says was measured; None if nothing was."""
    node = config.get("task")
    if node is None or isinstance(task := build(node, "task", own), NoTask):
        return None
    return require(task, InverseProblem, "task")  # type: ignore[no-any-return]


def _report(out: Path, metrics: dict[str, Any], found: dict[str, Any], words: str) -> None:
    """Add what was found to metrics.json, then say it."""
    metrics |= found
    make_folder(out)
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2).encode())
    print(words, end="")


def draw_samples(
    config: dict[str, Any], trained: TrainedModel, chosen: Chosen, likelihood: Likelihood, out: Path
) -> tuple[dict[str, Any], str]:
    """Samples as pictures and arrays; returns what metrics.json says of them, and what people read.

    Guidance and variance are of the run's own process, and go on the chosen one with the denoiser.
    """
    n, batch_size, own = config["num_samples"], config["batch_size"], trained.on(None)
    steering = chosen.guidance(own)
    conditions = choose_conditions(config, own, chosen.guidance)
    covariance = chosen_covariance(chosen, own, likelihood)
    solver = on_grid(chosen.solver, chosen.grid, trained)
    solver_of = chosen.guidance.solvers(solver, own)
    place = "" if trained.process is None else f" on {type(trained.process).__name__}"
    print(f"{trained.run.path}: step {trained.step}, {describe(solver)}{place}, {n} samples to {out}")

    began, chunks, denoisers, nfe = time.perf_counter(), [], [], 0
    parts = [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]
    frames, keep = config.get("trajectory"), kept(trained.shape, min(batch_size, n))
    trajectory = None if frames is None else Trajectory(frames, trained.denoiser.sde, keep)
    with CallCounter(trained, solver, [len(part) for part in parts]) as counter:
        for indices in parts:
            first = indices[0]
            denoiser = conditioned(steering, conditions, indices, trained.device)
            denoiser = denoiser if covariance is None else covariance.around(denoiser)
            denoiser = denoiser if trained.process is None else denoiser.on(trained.process)
            watch: list[Callable[[Step, int], object]] = [counter.step]
            watch += [] if trajectory is None else [trajectory]
            of_batch = solver_of(rows_of(conditions.label, indices, trained.device))
            x = draw(denoiser, of_batch, trained.shape, config["seed"], indices, trained.device, watch)
            if not bool(torch.isfinite(x).all()):
                raise FloatingPointError(
                    f"the solver returned NaN or infinity for sample {first}: try more steps, or check the model."
                )
            chunks.append(x.cpu())
            denoisers.append(denoiser)
            nfe = counter.finish()
    seconds = round(time.perf_counter() - began, 2)
    x = torch.cat(chunks)
    save_samples(out, x, conditions, trained)
    found = {
        "solver": type(solver).__name__, "num_samples": n, "variance": type(chosen.variance).__name__, "nfe": nfe,
        "seconds": seconds,
    }  # fmt: skip
    if trained.process is not None:
        found["sde"] = type(trained.process).__name__
    if trajectory is not None and isinstance(solver, ProbabilityFlowODE):
        noise = start(denoisers[0], trained.shape, config["seed"], parts[0], trained.device)
        trajectory.follow(solver, denoisers[0], noise, chunks[0])
    seen, words = look(config, trained, x, conditions, trajectory, out)
    where = f"{out / 'samples.png'} and samples.npz"
    return found | seen, f"{n} samples, {nfe} network calls each, in {seconds:.1f} s: {where}\n{words}"


def look(
    config: dict[str, Any], trained: TrainedModel, x: Tensor, conditions: Conditions, trajectory: Trajectory | None,
    out: Path,
) -> tuple[dict[str, Any], str]:  # fmt: skip
    """Pictures of samples, with the run's data beside them; returns what there is to say."""
    found: dict[str, Any] = {}
    wanted = config.get("neighbours")
    data, words = data_of(trained, needed=wanted is not None)
    split = None if data is None else data.train
    samples = model_values(trained.codec, x)
    seen = shown(
        trained.codec, samples, names=trained.names, split=split, labels=conditions.label,
        condition=conditions.condition, words=words_of(conditions.sequence, trained.names.letters),
    )  # fmt: skip
    save_look(out / "samples.png", seen)
    if conditions.image is not None:
        save_given_images(out / "conditions.png", conditions.image)
        words += f"the images that they are given, in the same order: {out / 'conditions.png'}\n"
    if trajectory is not None:
        save_trajectory(out / "trajectory.gif", trajectory.states, trained, split)
        words += f"{len(trajectory.states)} frames from noise to data: {out / 'trajectory.gif'}\n"
    if wanted is not None and data is not None:
        found, sentence = look_for_neighbours(trained, data, x, wanted, out, config["seed"])
        words += sentence
    elif wanted is not None:
        words += "neighbours are those among the data: none are looked for.\n"
    return found, words


def chosen_covariance(chosen: Chosen, trained: TrainedModel, likelihood: Likelihood) -> CovarianceDenoiser | None:
    """The run's denoiser with the covariance that a solver with the optimal variance asks for; None for other solvers.

    Raises:
        ConfigError: If the solver needs a covariance and there is none, or if nothing needs the one that there is.
    """
    solver, variance = chosen.solver, chosen.variance
    if asks_for_covariance(solver):
        if isinstance(variance, NoVariance):
            raise ConfigError(
                "solver.variance=optimal needs a covariance: add variance=analytic, corrected, hessian, npr or sn."
            )
        return variance(trained)
    if not isinstance(variance, NoVariance) and not likelihood.uses_covariance:
        has = f"variance={solver.variance}" if isinstance(solver, ChoosesVariance) else "no variance to choose"
        raise ConfigError(
            f"variance=... ({type(variance).__name__}) needs solver=ddpm or solver=ddim with solver.variance=optimal, "
            f"got a {type(solver).__name__} with {has}."
        )
    return None


def asks_for_covariance(solver: Any) -> bool:
    """Whether a solver, or one inside it, has variance="optimal"."""
    parts = [getattr(solver, field.name) for field in fields(solver)] if is_dataclass(solver) else []
    inside = any(asks_for_covariance(part) for part in parts if isinstance(part, Solver))
    return inside or (isinstance(solver, ChoosesVariance) and solver.variance == "optimal")


def save_samples(out: Path, x: Tensor, conditions: Conditions, trained: TrainedModel) -> None:
    """samples.npz with the data's own values, see `sample_values`."""
    make_folder(out)
    arrays: dict[str, Any] = {"x": sample_values(x, trained)}
    if conditions.label is not None:
        arrays["y"] = conditions.label.numpy()
    arrays |= {key: value.numpy() for key, value in conditions.beside.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(out / "samples.npz", buffer.getvalue())
    if (table := samples_csv(arrays["x"], conditions.condition, conditions.label, trained)) is not None:
        write_atomically(out / "samples.csv", table)


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {out}: {error.strerror}. Choose another with out=...") from None
