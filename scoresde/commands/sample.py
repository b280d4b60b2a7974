"""`sample.py`: run directory -> denoiser -> guidance -> solver -> pictures, arrays, and the likelihood of test data."""

from __future__ import annotations

import io
import json
import time
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.build import ConfigError, build
from scoresde.classifier import NoisyClassifier
from scoresde.commands.device import pick_device
from scoresde.commands.fitting import with_grid
from scoresde.commands.likelihood import test_likelihood
from scoresde.commands.pictures import save_picture, save_scatter
from scoresde.commands.variance import KINDS, with_variance
from scoresde.covariance import CovarianceDenoiser
from scoresde.data import Quantized
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.guidance import ClassifierGuided, Guided
from scoresde.loading import TrainedModel, load_run, newest_run
from scoresde.solvers import ProbabilityFlowODE, Solver, per_sample_noise
from scoresde.training.checkpoint import write_atomically

MAX_PICTURES = 256  # images in samples.png


def sample(config: dict[str, Any]) -> dict[str, Any]:
    """Draw samples from a run and, with `solver=ode`, evaluate the likelihood of its test split.

    Writes samples.png, samples.npz and metrics.json, and prints what it found.

    Returns:
        What metrics.json holds.
    """
    n, batch_size = config["num_samples"], config["batch_size"]
    for name in ("num_samples", "batch_size"):
        if not isinstance(config[name], int) or config[name] < 1:
            raise ConfigError(f"{name} needs to be a whole number of at least 1, got {config[name]!r}.")
    device = pick_device(config["device"])
    run = newest_run("denoiser").path if config["run"] is None else config["run"]
    trained = load_run(run, device=device, extensions=config["extensions"])
    if not isinstance(trained.model, NetworkDenoiser):
        raise ConfigError(f"{trained.run.path} is the run of a classifier: name the run of a denoiser with run=...")
    solver = build(config["solver"], "solver", config["extensions"])
    if not isinstance(solver, Solver):
        raise ConfigError(f"solver must be a scoresde.Solver, got {type(solver).__name__}.")
    spread = covariance(config["variance"], solver, trained, config["extensions"])
    solver = with_grid(solver, config["grid"], trained, device, config["extensions"])
    out = Path(config["out"]) if config["out"] is not None else trained.run.samples
    labels = choose_labels(config["label"], n, trained, config["guidance"]["kind"])
    guide = Guidance(config["guidance"], trained, device, config["extensions"])
    print(f"{trained.run.path}: step {trained.step}, {describe(solver)}, {n} samples to {out}")

    start, chunks, nfe = time.perf_counter(), [], 0
    with CallCounter(trained.model, n) as counter:
        for first in range(0, n, batch_size):
            indices = range(first, min(first + batch_size, n))
            chunk = None if labels is None else labels[first : first + len(indices)].to(device)
            denoiser = guide(trained.model, chunk)
            denoiser = denoiser if spread is None else spread.around(denoiser)
            x = draw(denoiser, solver, trained.shape, config["seed"], indices, device)
            if not bool(torch.isfinite(x).all()):
                raise FloatingPointError(
                    f"the solver returned NaN or infinity for sample {first}: try more steps, or check the model."
                )
            chunks.append(x.cpu())
            nfe = counter.finish(len(indices))
    metrics: dict[str, Any] = {
        "run": str(trained.run.path), "step": trained.step, "solver": type(solver).__name__, "num_samples": n,
        "seed": config["seed"], "variance": config["variance"]["kind"], "nfe": nfe,
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip
    save_samples(out, torch.cat(chunks), labels, trained)
    print(f"{n} samples, {nfe} network calls each, in {metrics['seconds']:.1f} s")

    steered = config["guidance"]["kind"] != "none" or config["label"] is not None
    if isinstance(solver, ProbabilityFlowODE) and not steered and config["likelihood"]["num_examples"] != 0:
        metrics |= test_likelihood(
            trained, config["likelihood"], config["seed"], batch_size, device, config["extensions"]
        )
    write_atomically(out / "metrics.json", json.dumps(metrics, indent=2).encode())
    print(f"wrote {out / 'samples.png'}, samples.npz and metrics.json")
    return metrics


def covariance(
    config: dict[str, Any], solver: Solver, trained: TrainedModel, extensions: list[str]
) -> CovarianceDenoiser | None:
    """The run's denoiser with the covariance that a solver with the optimal variance asks for; None for other solvers.

    Raises:
        ConfigError: If the solver needs a covariance and there is none, or the other way round.
    """
    options = dict(config)
    kind, asks = options.pop("kind"), asks_for_covariance(solver)
    if kind == "none":
        if asks:
            raise ConfigError(f"solver.variance=optimal needs a covariance: add variance={' or '.join(KINDS)}.")
        return None
    if not asks:
        has = f"variance={solver.variance}" if hasattr(solver, "variance") else "no variance to choose"
        raise ConfigError(
            f"variance={kind} needs solver=ddpm or solver=ddim with solver.variance=optimal, got a "
            f"{type(solver).__name__} with {has}."
        )
    return with_variance(trained, kind, extensions=extensions, **options)


def asks_for_covariance(solver: Any) -> bool:
    """Whether a solver, or one inside it, has variance="optimal"."""
    parts = [getattr(solver, field.name) for field in fields(solver)] if is_dataclass(solver) else []
    return getattr(solver, "variance", None) == "optimal" or any(
        asks_for_covariance(part) for part in parts if isinstance(part, Solver)
    )


def draw(
    denoiser: Denoiser, solver: Solver, shape: tuple[int, ...], seed: int, indices: range, device: torch.device
) -> Tensor:
    """Samples number `indices`, each a function of (seed, index) alone."""
    seeds = [(seed * 1_000_003 + index) % 2**62 for index in indices]
    start = [denoiser.sde.prior_sample(shape, generator=torch.Generator().manual_seed(2 * s)) for s in seeds]
    x = torch.stack(start).to(device)
    return solver(denoiser, x, noise=per_sample_noise(x, [2 * s + 1 for s in seeds]))


def choose_labels(label: Any, n: int, trained: TrainedModel, guidance: str) -> Tensor | None:
    """One label per sample: those asked for in turn, or all classes of a conditional model in turn."""
    classes = trained.config["model"].get("num_classes")
    if label is None and (classes is None or guidance == "classifier"):
        if guidance in ("cfg", "classifier"):
            raise ConfigError(f"guidance={guidance} needs a class to guide to: add label=3.")
        return None
    if label is not None and classes is None and guidance != "classifier":
        raise ConfigError(
            f"label={label} needs a model of classes, but {trained.run.path} was trained without labels: "
            f"train one with conditional=true, or use guidance=classifier."
        )
    chosen = list(range(classes or 0)) if label is None else label if isinstance(label, list) else [label]
    for value in chosen:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (classes and value >= classes):
            limit = f"0..{classes - 1}" if classes else "0, 1, 2, ..."
            raise ConfigError(f"label needs whole numbers in {limit}, got {value!r}.")
    return torch.tensor(chosen)[torch.arange(n) % len(chosen)]


class Guidance:
    """The steering that a `guidance` configuration asks for: called with a denoiser and labels."""

    def __init__(
        self, config: dict[str, Any], trained: TrainedModel, device: torch.device, extensions: list[str]
    ) -> None:
        self.config, self.kind = config, config["kind"]
        self.interval = tuple(config["interval"]) if config.get("interval") else None
        self.conditional = trained.config["model"].get("num_classes") is not None
        self.other: Any = None
        if self.kind == "cfg" and not self.conditional:
            raise ConfigError(
                f"guidance=cfg needs a model of classes, but {trained.run.path} was trained without labels: "
                f"train one with conditional=true."
            )
        if self.kind in ("autoguidance", "classifier"):
            key = "reference" if self.kind == "autoguidance" else "classifier"
            path = newest_run("classifier").path if config[key] is None else config[key]
            other = load_run(path, device=device, extensions=extensions)
            expected = NetworkDenoiser if self.kind == "autoguidance" else NoisyClassifier
            if not isinstance(other.model, expected) or other.shape != trained.shape:
                raise ConfigError(
                    f"guidance.{key} needs the run of a {'denoiser' if key == 'reference' else 'classifier'} of data "
                    f"of shape {trained.shape}, got {other.run.path} of shape {other.shape}."
                )
            self.other, self.other_run = other.model, other.run

    def __call__(self, denoiser: Denoiser, label: Tensor | None) -> Denoiser:
        given = denoiser.given(label=label) if self.conditional else denoiser
        if self.kind == "cfg":
            return Guided(given, denoiser.given(label=None), self.config["scale"], self.interval)
        if self.kind == "autoguidance":
            reference = self.other.given(label=label) if self.conditional else self.other
            return Guided(given, reference, self.config["scale"], self.interval)
        if self.kind == "classifier":
            classes = self.other.num_classes
            if int(label.max()) >= classes:  # type: ignore[union-attr]  # choose_labels made sure of labels
                raise ConfigError(
                    f"label needs whole numbers in 0..{classes - 1}, the classes of {self.other_run.path}."
                )
            return ClassifierGuided(given, self.other.log_prob(label), self.config["scale"])
        return given


class CallCounter:
    """Counts the network calls per sample, and shows them in a progress bar."""

    def __init__(self, model: NetworkDenoiser, n: int) -> None:
        self.calls = 0
        self.bar = tqdm(total=n, desc="sampling", unit="sample", disable=None, leave=False)
        self.hook = model.net.register_forward_pre_hook(self._count)

    def _count(self, *args: Any) -> None:
        self.calls += 1
        self.bar.set_postfix_str(f"{self.calls} network calls", refresh=False)
        self.bar.update(0)

    def finish(self, samples: int) -> int:
        """Note finished samples; returns the calls since the last time."""
        calls, self.calls = self.calls, 0
        self.bar.update(samples)
        return calls

    def __enter__(self) -> CallCounter:
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()
        self.bar.close()


def save_samples(out: Path, x: Tensor, labels: Tensor | None, trained: TrainedModel) -> None:
    """samples.png and samples.npz: uint8 (N, H, W[, C]) of images, values in the data's own units otherwise."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {out}: {error.strerror}. Choose another with out=...") from None
    codec = trained.codec
    arrays: dict[str, Any] = {}
    if isinstance(codec, Quantized) and len(trained.shape) == 3 and trained.shape[0] in (1, 3):
        pixels = codec.to_uint8(x)
        save_picture(out / "samples.png", pixels[:MAX_PICTURES])
        last = pixels.permute(0, 2, 3, 1).numpy()
        arrays["x"] = last[..., 0] if last.shape[-1] == 1 else last
    else:
        values = codec.decode(x)
        arrays["x"] = values.numpy()
        flat = values.flatten(1).double()
        save_scatter(out / "samples.png", torch.cat([flat, torch.zeros_like(flat)], 1)[:, :2])
    if labels is not None:
        arrays["y"] = labels.numpy()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(out / "samples.npz", buffer.getvalue())


def describe(solver: Solver) -> str:
    """Name and main numbers of a solver, for people."""
    numbers = ("method", "steps", "rtol", "variance")
    shown = {key: getattr(solver, key) for key in numbers if getattr(solver, key, None) is not None}
    return f"{type(solver).__name__}({', '.join(f'{key}={value}' for key, value in shown.items())})"
