"""Diagnostics of a run on its test data: numbers as JSON, four panels as a picture, and a summary in words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.analytic import EmpiricalDenoiser
from scoresde.checks import check_whole
from scoresde.commands.batches import conditions_at
from scoresde.commands.build import ConfigError
from scoresde.commands.diagnostics_picture import draw
from scoresde.commands.diagnostics_words import summary
from scoresde.commands.interfaces import Diagnostics
from scoresde.commands.load import TrainedModel
from scoresde.data import Quantized, Split
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
from scoresde.files import write_atomically
from scoresde.noise import stream_generator
from scoresde.progress import Progress
from scoresde.sde import SDE

LARGEST_COVARIANCE = 4096  # entries of an event for which the linear optimum is computed
LARGEST_MEMORY = 10**10  # products for the optimum of the training set itself
MEMORY_DRAWS = 128
CELL_DRAWS = 2048
WHOLE = (
    "bins >= 1", "num_examples >= 2 or null", "jacobian_examples >= 2", "probes >= 2 or null", "gap_samples >= 2",
    "1 <= steps <= 1000000",
)  # fmt: skip
GAP_TIMES = 8
Batches = list[tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class DenoiserDiagnostics(Diagnostics):
    """Where the denoiser of a run is wrong, over log-SNR: writes diagnostics.json and .png, and prints a summary.

        loss            of denoising, beside the optima of a linear denoiser and of one that knows the training set
        fokker_planck   departure from the diffusion of its own
        asymmetry       of the score's Jacobian
        gap             between the marginals of its ODE and its SDE

    Args:
        which: "all", or some of these names.
        bins: Of log-SNR, between t = 1 and t_min.
        num_examples: Test examples for the loss, each once per bin; None: all.
        jacobian_examples: Of them for fokker_planck and asymmetry, which differentiate the network twice.
        probes: Random directions per example for these two; None: all directions, exactly.
        gap_samples: Samples of the ODE, and of each half of the SDE's.
        steps: Of the ODE and the SDE.
    """

    which: str | Sequence[str] = "all"
    bins: int = 24
    num_examples: int | None = 512
    jacobian_examples: int = 16
    probes: int | None = 4
    gap_samples: int = 384
    steps: int = 40

    def __post_init__(self) -> None:
        check_whole("diagnostics", *WHOLE, **vars(self))
        if not self._chosen or not all(isinstance(name, str) and name in MEASURES for name in self._chosen):
            raise ConfigError(
                f"diagnostics.which needs to be all, or some of [{', '.join(MEASURES)}], got {self.which!r}."
            )

    def __call__(self, trained: TrainedModel, *, seed: int, batch_size: int, out: Path) -> dict[str, Any]:
        """See `Diagnostics`; the entry "diagnostics" has a number or two of each measure."""
        if trained.takes_gaps:
            raise ConfigError("diagnostics are of models of whole examples, and this one has data.missing=mask.")
        model, start = trained.denoiser, time.perf_counter()
        test = _Test(trained, seed, batch_size)
        edges = logsnr_edges(model.sde, self.bins)
        report: dict[str, Any] = {
            "run": str(trained.run.path), "step": trained.step, "seed": seed, "examples": test.name,
            "shape": list(trained.shape), "unit": "bits/dim" if isinstance(trained.codec, Quantized) else "nats",
            "logsnr_edges": edges.tolist(),
        }  # fmt: skip
        for name, measure in MEASURES.items():
            if name in self._chosen:
                report[name] = measure(self, model, test, edges)
        report["seconds"] = round(time.perf_counter() - start, 1)
        return _write(report, out)

    @property
    def _chosen(self) -> tuple[str, ...]:
        if self.which == "all":
            return tuple(MEASURES)
        return tuple(self.which) if isinstance(self.which, list | tuple) else (self.which,)  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class NoDiagnostics(Diagnostics):
    """Nothing is looked at."""

    def __call__(self, trained: TrainedModel, *, seed: int, batch_size: int, out: Path) -> dict[str, Any]:
        return {}


def _loss(options: DenoiserDiagnostics, model: Denoiser, test: _Test, edges: Tensor) -> dict[str, Any]:
    rows = test.rows(options.num_examples)
    with _bar("loss", len(rows) * options.bins) as progress:
        loss = loss_by_noise(model, test.batches(rows), bins=edges, generator=test.generator(0), progress=progress)
    return {
        "num_examples": len(rows), **_plain(loss.loss), "nats": loss.nats.value.tolist(),
        "nats_std_error": loss.nats.std_error.tolist(), "total_nats": loss.total,
        "total_nats_std_error": loss.total_std_error, **_references(model, test, edges),
    }  # fmt: skip


def _jacobian(
    name: str, measure: Callable[..., Curve], number: int,
    options: DenoiserDiagnostics, model: Denoiser, test: _Test, edges: Tensor,
) -> dict[str, Any]:  # fmt: skip
    rows = test.rows(options.jacobian_examples)
    with _bar(name, len(rows) * options.bins) as progress:
        curve = measure(
            model, test.batches(rows), bins=edges, probes=options.probes, generator=test.generator(number),
            progress=progress,
        )  # fmt: skip
    return {"num_examples": len(rows), **_plain(curve)}


def _gap(options: DenoiserDiagnostics, model: Denoiser, test: _Test, edges: Tensor) -> dict[str, Any]:
    samples, steps = options.gap_samples, options.steps
    with _bar("ODE and SDE", 3 * samples) as progress:
        gap = marginal_gap(
            model, test.shape, samples=samples, steps=steps, levels=min(GAP_TIMES, steps), device=test.device,
            batch_size=test.batch_size, cond=test.conditions(samples), generator=test.generator(4), progress=progress,
        )  # fmt: skip
    return {"samples": samples, "steps": steps, **{k: v.tolist() for k, v in vars(gap).items()}}


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

    def __init__(self, trained: TrainedModel, seed: int, batch_size: int) -> None:
        self.codec, self.shape, self.labelled = trained.codec, trained.shape, trained.classes is not None
        self.seed, self.batch_size, self.device = seed, batch_size, trained.device
        self.data = data = trained.data()
        self.split: Split = data.test if len(data.test) > 1 else data.train
        self.name = "test examples" if len(data.test) > 1 else "training examples"
        self.dequantize = trained.dequantize

    def generator(self, number: int) -> torch.Generator:
        return stream_generator(self.seed, "diagnostic", number, device=self.device)

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
        given = conditions_at(self.split, rows, labelled=self.labelled)
        return {key: value.to(self.device) for key, value in given.items()}


def _references(model: Denoiser, test: _Test, edges: Tensor) -> dict[str, Any]:
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
            curve = optimum_by_noise(law, [chosen.double()], bins=edges, generator=test.generator(1), progress=progress)
        found["memorising_optimum"] = torch.maximum(curve.value, _cell_optimum(model.sde, test, edges)).tolist()
    return found


def _cell_optimum(sde: SDE, test: _Test, edges: Tensor) -> Tensor:
    """The least loss of one who knows all levels but not where in their cells the dequantised values are; (bins,)."""
    if not isinstance(test.codec, Quantized) or not test.dequantize:
        return torch.zeros(len(edges) - 1, dtype=torch.float64)
    width = test.codec.cells.width
    finest = math.exp(-0.5 * float(edges[-1]))  # σ/α, which the points of the cell are closer than
    points = min(max(16, math.ceil(2 * width / finest)), 4096)
    cell = width * ((torch.arange(points, dtype=torch.float64) + 0.5) / points - 0.5)
    law = EmpiricalDenoiser(sde, cell[:, None].to(test.device))
    generator = stream_generator(test.seed, "cell", device=test.device)
    draws = law.sample(CELL_DRAWS, generator=generator)
    return optimum_by_noise(law, [draws], bins=edges, generator=generator).value


def _plain(curve: Curve) -> dict[str, Any]:
    return {"value": curve.value.tolist(), "std_error": curve.std_error.tolist()}


@contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], object]]:
    with Progress(name, total, "examples") as progress:
        yield progress.advance


MEASURES: dict[str, Callable[[DenoiserDiagnostics, Denoiser, _Test, Tensor], dict[str, Any]]] = {
    "loss": _loss,
    "fokker_planck": partial(_jacobian, "fokker-planck", fokker_planck_by_noise, 2),
    "asymmetry": partial(_jacobian, "asymmetry", asymmetry_by_noise, 3),
    "gap": _gap,
}
