"""Diagnostics of a run on its test data: numbers as JSON, four panels as a picture, and a summary in words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.analytic import EmpiricalDenoiser
from scoresde.commands.build import ConfigError
from scoresde.commands.companion import data_of, labelled
from scoresde.commands.diagnostics_picture import draw
from scoresde.commands.diagnostics_words import summary
from scoresde.commands.load import TrainedModel
from scoresde.data import Dataset, Quantized, Split
from scoresde.denoiser import Denoiser
from scoresde.diagnostics import (
    Curve,
    asymmetry_by_noise,
    fokker_planck_by_noise,
    gaussian_loss,
    logsnr_edges,
    loss_by_noise,
    marginal_gap,
    optimum_by_noise,
)
from scoresde.noise import stream_generator
from scoresde.sde import SDE
from scoresde.training.checkpoint import write_atomically

KINDS = ("loss", "fokker_planck", "asymmetry", "gap")
LARGEST_COVARIANCE = 4096  # entries of an event for which the linear optimum is computed
LARGEST_MEMORY = 10**10  # products for the optimum of the training set itself
MEMORY_DRAWS = 128
CELL_DRAWS = 2048
OPTIONS = {  # least values; None where null is allowed
    "bins": (1, False), "num_examples": (2, True), "jacobian_examples": (2, False), "probes": (2, True),
    "gap_samples": (2, False), "steps": (1, False),
}  # fmt: skip
GAP_LEVELS = 8
Batches = list[tuple[Tensor, dict[str, Any]]]


def diagnose(
    trained: TrainedModel,
    options: dict[str, Any],
    seed: int,
    batch_size: int,
    device: torch.device,
    extensions: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    """Compute the diagnostics of a run, write diagnostics.json and diagnostics.png to `out`, and print a summary.

    Args:
        trained: The run of a denoiser.
        options: which ("all" or names), bins, num_examples, jacobian_examples, probes, gap_samples, steps.
        seed: Of examples, levels, noise, probes and samples.
        batch_size: Examples per network call.
        device: Of the model.
        extensions: The user's own modules that the run's classes may come from.
        out: Folder, made if there is none.
    Returns:
        {"diagnostics": ...} with one number or two of each kind, for metrics.json.
    """
    which = _checked(options)
    model = trained.model
    if not isinstance(model, Denoiser):
        raise ConfigError(f"{trained.run.path} is the run of a classifier: name the run of a denoiser with run=...")
    data, start = data_of(trained, extensions), time.perf_counter()
    test = _Test(trained, data, seed, batch_size, device)
    edges = logsnr_edges(model.sde, options["bins"])
    report: dict[str, Any] = {
        "run": str(trained.run.path), "step": trained.step, "seed": seed, "examples": test.name,
        "shape": list(trained.shape), "unit": "bits/dim" if isinstance(trained.codec, Quantized) else "nats",
        "logsnr_edges": edges.tolist(),
    }  # fmt: skip

    def generator(number: int) -> torch.Generator:
        return stream_generator(seed, "diagnostic", number, device=device)

    if "loss" in which:
        rows = test.rows(options["num_examples"])
        with _bar("loss", len(rows) * options["bins"]) as progress:
            loss = loss_by_noise(model, test.batches(rows), bins=edges, generator=generator(0), progress=progress)
        report["loss"] = {
            "num_examples": len(rows), **_plain(loss.loss), "nats": loss.nats.value.tolist(),
            "nats_std_error": loss.nats.std_error.tolist(), "total_nats": loss.total,
            "total_nats_std_error": loss.total_std_error, **_references(model, test, edges, generator(1)),
        }  # fmt: skip
    few = test.rows(options["jacobian_examples"])
    measures: dict[str, Callable[..., Curve]] = {
        "fokker_planck": fokker_planck_by_noise, "asymmetry": asymmetry_by_noise,
    }  # fmt: skip
    for number, (name, measure) in enumerate(measures.items()):
        if name in which:
            with _bar(name.replace("_", "-"), len(few) * options["bins"]) as progress:
                curve = measure(
                    model, test.batches(few), bins=edges, probes=options["probes"], generator=generator(2 + number),
                    progress=progress,
                )  # fmt: skip
            report[name] = {"num_examples": len(few), **_plain(curve)}
    if "gap" in which:
        samples, steps = options["gap_samples"], options["steps"]
        with _bar("ODE and SDE", 3 * samples) as progress:
            gap = marginal_gap(
                model, trained.shape, samples=samples, steps=steps, levels=min(GAP_LEVELS, steps), device=device,
                batch_size=batch_size, cond=test.conditions(samples), generator=generator(4), progress=progress,
            )  # fmt: skip
        report["gap"] = {"samples": samples, "steps": steps, **{k: v.tolist() for k, v in vars(gap).items()}}
    report["seconds"] = round(time.perf_counter() - start, 1)
    return _write(report, out)


def _write(report: dict[str, Any], out: Path) -> dict[str, Any]:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {out}: {error.strerror}. Choose another with out=...") from None
    write_atomically(out / "diagnostics.json", json.dumps(report, indent=2).encode())
    numbers, sentences = summary(report)
    print("\n".join(sentences))
    try:
        write_atomically(out / "diagnostics.png", draw(report))
        print(f"wrote {out / 'diagnostics.png'} and diagnostics.json in {report['seconds']:.0f} s")
    except ImportError:
        print(
            f"wrote {out / 'diagnostics.json'} in {report['seconds']:.0f} s; the picture needs matplotlib: "
            f"pip install 'scoresde[plot]', then run this again"
        )
    return {"diagnostics": {**numbers, "seconds": report["seconds"]}}


class _Test:
    """Test examples in the model's scaling, with their conditions; training examples if there are too few."""

    def __init__(self, trained: TrainedModel, data: Dataset, seed: int, batch_size: int, device: torch.device) -> None:
        self.codec, self.batch_size, self.device, self.labelled = trained.codec, batch_size, device, labelled(trained)
        self.data, self.seed = data, seed
        self.split: Split = data.test if len(data.test) > 1 else data.train
        self.name = "test examples" if len(data.test) > 1 else "training examples"
        self.dequantize = trained.dequantize

    def rows(self, count: int | None) -> Tensor:
        order = torch.randperm(len(self.split), generator=stream_generator(self.seed, "order"))
        return order if count is None else order[:count]

    def batches(self, rows: Tensor) -> Batches:
        x = self.encode(self.split.x[rows])
        return [
            (part, self._given(some))
            for part, some in zip(x.split(self.batch_size), rows.split(self.batch_size), strict=True)
        ]

    def encode(self, x: Tensor, *, dequantize: bool = True) -> Tensor:
        """In the model's scaling; dequantised if that is wanted and the model is trained on dequantised levels."""
        generator = stream_generator(self.seed, "dequantization")
        return self.codec.encode(x, generator=generator, dequantize=dequantize and self.dequantize).to(self.device)

    def conditions(self, count: int) -> dict[str, Tensor]:
        """Of as many examples, again from the first where there are fewer."""
        rows = self.rows(None)
        return self._given(rows[torch.arange(count) % len(rows)])

    def _given(self, rows: Tensor) -> dict[str, Tensor]:
        has = {"label": self.split.label if self.labelled else None, "condition": self.split.condition}
        return {key: value[rows].to(self.device) for key, value in has.items() if value is not None}


def _references(model: Denoiser, test: _Test, edges: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """Losses between which a good model's lies: of the best linear denoiser, and of one that knows the training set.

    The first is above the optimum of any law with this covariance, the second is below it on average over training
    sets: it knows all examples, or all levels but not the dequantisation, whichever is worse. Neither where it is too
    dear to compute, the second not with conditions.
    """
    found: dict[str, Any] = {}
    x = test.data.train.x
    entries = x[0].numel()
    if entries <= LARGEST_COVARIANCE and len(x) > 1:
        flat = test.encode(x[: 4 * LARGEST_COVARIANCE]).flatten(1).double()
        variances = torch.linalg.eigvalsh(torch.atleast_2d(flat.T.cov())).clamp_min(0).cpu()
        found["linear_optimum"] = gaussian_loss(variances, edges).tolist()
    draws, bins = min(MEMORY_DRAWS, len(x)), len(edges) - 1
    if len(x) * entries * draws * bins <= LARGEST_MEMORY and not test.conditions(1):
        points = test.encode(x, dequantize=False)
        law = EmpiricalDenoiser(model.sde, points)
        chosen = points[torch.randperm(len(x), generator=stream_generator(test.seed, "order"))[:draws]]
        with _bar("memorising", draws * bins) as progress:
            curve = optimum_by_noise(law, [chosen.double()], bins=edges, generator=generator, progress=progress)
        found["memorising_optimum"] = torch.maximum(curve.value, _cell_optimum(model.sde, test, edges)).tolist()
    return found


def _cell_optimum(sde: SDE, test: _Test, edges: Tensor) -> Tensor:
    """The least loss of one who knows all levels but not where in their cells the dequantised values are; (bins,)."""
    if not isinstance(test.codec, Quantized) or not test.dequantize:
        return torch.zeros(len(edges) - 1, dtype=torch.float64)
    low, high = test.codec.value_range
    width = (high - low) / test.codec.levels
    finest = math.exp(-0.5 * float(edges[-1]))  # σ/α, which the points of the cell are closer than
    points = min(max(16, math.ceil(2 * width / finest)), 4096)
    cell = width * ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5)
    law = EmpiricalDenoiser(sde, cell[:, None].to(test.device))
    generator = stream_generator(test.seed, "cell", device=test.device)
    draws = law.sample(CELL_DRAWS, generator=generator)
    return optimum_by_noise(law, [draws], bins=edges, generator=generator).value


def _checked(options: dict[str, Any]) -> tuple[str, ...]:
    """The kinds that are asked for, after a look at the numbers."""
    for name, (least, nullable) in OPTIONS.items():
        value = options[name]
        if value is None and nullable:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(
                f"diagnostics.{name} needs a whole number of at least {least}{', or null' if nullable else ''}, "
                f"got {value!r}."
            )
    which = options["which"]
    chosen = KINDS if which == "all" else (which,) if isinstance(which, str) else tuple(which or ())
    if not chosen or not set(chosen) <= set(KINDS):
        raise ConfigError(f"diagnostics.which needs to be all, or some of [{', '.join(KINDS)}], got {which!r}.")
    return chosen


def _plain(curve: Curve) -> dict[str, Any]:
    return {"value": curve.value.tolist(), "std_error": curve.std_error.tolist()}


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    with tqdm(total=total, desc=name, unit="example", disable=None, leave=False) as bar:
        yield bar.update
