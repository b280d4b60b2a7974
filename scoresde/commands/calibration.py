"""`diagnostics=calibration`: whether the posteriors of a run are calibrated, on its test pairs."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.commands.batches import conditions_at
from scoresde.commands.build import ConfigError, build
from scoresde.commands.drawing import draw
from scoresde.commands.interfaces import Diagnostics
from scoresde.commands.load import TrainedModel
from scoresde.commands.sample import make_folder
from scoresde.data import Simulator
from scoresde.diagnostics import PosteriorCalibration, c2st, ecdf_band, posterior_calibration
from scoresde.files import write_atomically
from scoresde.noise import stream_generator
from scoresde.pictures import calibration_picture
from scoresde.pictures.canvas import png
from scoresde.progress import Progress
from scoresde.solvers import ExponentialAdams, Solver

MOST_ENTRIES = 64  # of an event, whose ranks are tested one by one
SIMULATED = "scoresde.data.simulator"


@dataclass(frozen=True, kw_only=True)
class CalibrationDiagnostics(Diagnostics):
    """Draws from p(x0 | condition) at test pairs, against what belongs to them: ranks, coverage and TARP.

    Writes calibration.png and calibration.npz: `truth` (n, *), `samples` (S, n, *), in the data's own values,
    `condition` and `ranks`. Events of more than 64 entries are tested at 64 of them, spread evenly.

    Args:
        num_examples: Test pairs, n; None: all.
        draws: For each of them, S.
        solver: That draws them; None: `ExponentialAdams()`.
        exact: Pairs whose posterior is compared with exact draws, where the run's simulator has them.
        exact_draws: For each of these.
    """

    num_examples: int | None = 200
    draws: int = 99
    solver: Any = None
    exact: int = 3
    exact_draws: int = 1000

    def __post_init__(self) -> None:
        limits = ("num_examples >= 2 or null", "1 <= draws <= 1000000", "exact >= 0", "10 <= exact_draws <= 1000000")
        check_whole("diagnostics", *limits, **vars(self))
        if self.solver is not None and not isinstance(self.solver, Solver):
            raise ConfigError(
                f"diagnostics.solver needs a solver, as {{_target_: scoresde.DDIM, steps: 50}}, or null, got "
                f"{self.solver!r}."
            )

    def __call__(self, trained: TrainedModel, *, seed: int, batch_size: int, out: Path) -> dict[str, Any]:
        """See `Diagnostics`; the entry "calibration" has p-values, coverage, and the distance from exact draws."""
        if trained.takes_gaps or (trained.condition_dim is None and trained.classes is None):
            raise ConfigError(
                f"diagnostics=calibration is of models of x given something, and {trained.run.path} is given no "
                f"condition and no label."
            )
        began, pairs = time.perf_counter(), _TestPairs(trained, seed, self.num_examples)
        solver = self.solver or ExponentialAdams()
        samples = pairs.samples(solver, self.draws, batch_size)
        entries = _spread(pairs.truth[0].numel())
        flat, truth = samples.flatten(2)[..., entries], pairs.truth.flatten(1)[:, entries]
        generator = stream_generator(seed, "diagnostic", 5)
        found = posterior_calibration(flat, truth, generator=generator)
        numbers, words = _summary(found, pairs)
        if self.exact > 0 and (reference := _exact(self, trained, pairs, solver, batch_size)) is not None:
            numbers |= reference
            words.append(
                f"against exact draws at {numbers['exact_pairs']} pairs: C2ST {numbers['c2st']:.3f} (0.5: alike), "
                f"mean off by {numbers['mean_error']:.3f} standard deviations, which are {numbers['std_ratio']:.3f} "
                f"times the exact ones"
            )
        make_folder(out)
        write_atomically(out / "calibration.npz", _packed(samples, pairs, found))
        write_atomically(out / "calibration.png", _picture(found, trained, pairs, entries))
        numbers["seconds"] = round(time.perf_counter() - began, 1)
        print("\n".join(words))
        print(f"wrote {out / 'calibration.png'} and calibration.npz in {numbers['seconds']:.0f} s")
        return {"calibration": numbers}


class _TestPairs:
    """Test examples with their conditions, in random order; training examples if there are too few."""

    def __init__(self, trained: TrainedModel, seed: int, count: int | None) -> None:
        data = trained.data()
        split = data.test if len(data.test) > 1 else data.train
        self.name = "test pairs" if len(data.test) > 1 else "training pairs"
        order = torch.randperm(len(split), generator=stream_generator(seed, "order"))
        self.rows = order if count is None else order[:count]
        if len(self.rows) < 2:
            raise ConfigError(f"diagnostics=calibration needs two pairs or more, and {trained.run.path} has one.")
        self.trained, self.seed = trained, seed
        self.truth = split.x[self.rows].double()
        self.cond = conditions_at(split, self.rows, labelled=trained.classes is not None)

    def samples(self, solver: Solver, draws: int, batch_size: int, first: int = 0, pairs: int | None = None) -> Tensor:
        """(draws, n, *), float64, in the data's own values; number i draws + s is a function of (seed, number)."""
        count = (len(self.rows) if pairs is None else pairs) * draws
        parts = []
        with Progress("posterior draws", count, "draws") as progress:
            for indices in _ranges(count, batch_size):
                rows = torch.tensor(indices) // draws
                given = {key: value[rows].to(self.trained.device) for key, value in self.cond.items()}
                numbers = range(first + indices.start, first + indices.stop)
                denoiser = self.trained.denoiser.given(**given)
                x = draw(denoiser, solver, self.trained.shape, self.seed, numbers, self.trained.device)
                parts.append(self.trained.codec.decode(x.cpu()).double())
                progress.advance(len(indices))
        x = torch.cat(parts)
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError("the solver returned NaN or infinity: try more steps, or check the model.")
        return x.reshape(-1, draws, *x.shape[1:]).movedim(0, 1)


def _ranges(count: int, size: int) -> Iterator[range]:
    return (range(first, min(first + size, count)) for first in range(0, count, size))


def _spread(entries: int) -> Tensor:
    """Which entries of an event are tested."""
    count = min(entries, MOST_ENTRIES)
    return torch.arange(count) * entries // count


def _summary(found: PosteriorCalibration, pairs: _TestPairs) -> tuple[dict[str, Any], list[str]]:
    uniform, cover, levels = found.uniformity, found.coverage, found.coverage.levels
    numbers: dict[str, Any] = {
        "num_examples": len(found.ranks), "draws": found.draws, "rank_p": uniform.p,
        "rank_p_each": uniform.band_p.tolist(), "chi_square_p": uniform.chi_square_p.tolist(), "tarp_p": found.tarp_p,
    }  # fmt: skip
    shares = []
    for level in (0.5, 0.9):
        at = int((levels - level).abs().argmin())
        value, error = float(cover.mean[at]), float(cover.mean_std_error[at])
        numbers |= {f"coverage{100 * level:.0f}": value, f"coverage{100 * level:.0f}_std_error": error}
        shares.append(f"{100 * level:.0f} % intervals hold {100 * value:.1f} ± {100 * error:.1f} %")
    verdict = "as exact posteriors' are" if min(uniform.p, found.tarp_p) >= 0.05 else "not as exact posteriors' are"
    lines = [
        f"calibration: {len(found.ranks)} {pairs.name} with {found.draws} draws each are {verdict}: ranks p = "
        f"{uniform.p:.2g}, TARP p = {found.tarp_p:.2g}",
        f"             {', '.join(shares)}",
    ]
    return numbers, lines


def _exact(
    options: CalibrationDiagnostics, trained: TrainedModel, pairs: _TestPairs, solver: Solver, batch_size: int
) -> dict[str, Any] | None:
    """How far draws are from exact ones, averaged over pairs; None where nothing exact is known."""
    node: Mapping[str, Any] = trained.config["data"]
    if node.get("_target_") != SIMULATED or "condition" not in pairs.cond:
        return None
    simulator = build(dict(node["simulator"]), "data.simulator", trained.extensions)
    count, draws = min(options.exact, len(pairs.rows)), options.exact_draws
    assert isinstance(simulator, Simulator)
    exact = []
    for k in range(count):
        generator = stream_generator(pairs.seed, "exact", k)
        exact.append(simulator.posterior(pairs.cond["condition"][k : k + 1].double(), draws, generator))
    known = [values for values in exact if values is not None]
    if len(known) < count:
        return None
    first = len(pairs.rows) * options.draws  # numbers that no draw has had
    samples = pairs.samples(solver, draws, batch_size, first, count)
    mean, std = torch.stack([v.mean(0) for v in known]), torch.stack([v.std(0) for v in known])
    return {
        "exact_pairs": count,
        "c2st": sum(c2st(samples[:, k], known[k], seed=pairs.seed) for k in range(count)) / count,
        "mean_error": float(((samples.mean(0) - mean) / std).square().mean().sqrt()),
        "std_ratio": float((samples.std(0) / std).log().mean().exp()),
    }


def _packed(samples: Tensor, pairs: _TestPairs, found: PosteriorCalibration) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {"truth": pairs.truth, "samples": samples, "ranks": found.ranks, **pairs.cond}
    np.savez_compressed(buffer, **{name: value.numpy() for name, value in arrays.items()})
    return buffer.getvalue()


def _picture(found: PosteriorCalibration, trained: TrainedModel, pairs: _TestPairs, entries: Tensor) -> bytes:
    n, uniform = len(found.ranks), found.uniformity
    low, high = uniform.counts_band()
    band = ecdf_band(n, found.tarp.levels)
    columns = trained.names.columns
    picture = calibration_picture(
        counts=uniform.counts, counts_band=(low, high), levels=found.tarp.levels, coverage=found.coverage.value,
        coverage_band=band, tarp=found.tarp.value, tarp_band=band,
        names=[f"x{k}" for k in entries.tolist()] if columns is None else [columns[k].name for k in entries.tolist()],
        notes=(f"p = {uniform.p:.2g}", "", f"p = {found.tarp_p:.2g}"),
        title=f"{trained.run.path}, step {trained.step}: {n} {pairs.name}, {found.draws} draws each; grey: 95 % of "
        f"exact posteriors",
    )  # fmt: skip
    return png(picture)
