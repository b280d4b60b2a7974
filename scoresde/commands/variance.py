"""`variance=...` of `sample.py`: Analytic-DPM's table, kept in the run's folder, probing, and trained heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoresde.checks import check_choice, check_flags, check_whole
from scoresde.commands.auxiliary import HEADS, TrainVarianceHead
from scoresde.commands.batches import Batches
from scoresde.commands.build import ConfigError
from scoresde.commands.call_counter import calls_counted
from scoresde.commands.interfaces import Variance
from scoresde.commands.load import TrainedModel
from scoresde.covariance import AnalyticVariance, CovarianceDenoiser, HessianDiagonal, SecondMoment, second_moment
from scoresde.covariance.moments import noise_levels
from scoresde.noise import stream_generator
from scoresde.progress import Progress
from scoresde.training import CheckpointError, load_checkpoint, save_checkpoint

VARIANCE_FILE = "variance.pt"


@dataclass(frozen=True, kw_only=True)
class NoVariance(Variance):
    """For solvers with a fixed or learned variance, or without noise."""

    def __call__(self, trained: TrainedModel) -> CovarianceDenoiser:
        raise ConfigError("variance=none knows no covariance: use variance=analytic, corrected, hessian, npr or sn.")


@dataclass(frozen=True, kw_only=True)
class TableVariance(Variance):
    """One variance per noise level, from the second moment of the model's noise prediction: `AnalyticVariance`.

    Args:
        samples, levels, seed: Of the table, see `moments_of`.
        corrected: Take the mean squared error of x̂0, which counts the model's mistakes as well.
    """

    samples: int = 500
    levels: int | None = None
    corrected: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_flags(self)
        check_whole(self, "samples >= 3", "levels >= 2 or null", "seed >= 0")

    def __call__(self, trained: TrainedModel) -> CovarianceDenoiser:
        table = moments_of(trained, samples=self.samples, levels=self.levels, seed=self.seed)
        covariance = AnalyticVariance(trained.denoiser, table, trained.data_range, corrected=self.corrected)
        return covariance.to(trained.device)


@dataclass(frozen=True, kw_only=True)
class ProbedVariance(Variance):
    """The diagonal of the model's Jacobian at every step, without table or training: `HessianDiagonal`.

    Args:
        probes, isotropic, seed: See `HessianDiagonal`.
    """

    probes: int | None = 1
    isotropic: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_flags(self)
        check_whole(self, "probes >= 1 or null", "seed >= 0")

    def __call__(self, trained: TrainedModel) -> CovarianceDenoiser:
        return HessianDiagonal(
            trained.denoiser, self.probes, trained.data_range, isotropic=self.isotropic, seed=self.seed
        )


@dataclass(frozen=True, kw_only=True)
class TrainedVariance(Variance):
    """Entry by entry, from a head that was trained for the run with `TrainVarianceHead`.

    Args:
        head: "npr": the squared error of the model; "sn": the second moment of the noise.
    """

    head: str

    def __post_init__(self) -> None:
        check_choice(self, "head", self.head, HEADS)

    def __call__(self, trained: TrainedModel) -> CovarianceDenoiser:
        head = TrainVarianceHead(head=self.head).load(trained)
        assert isinstance(head, CovarianceDenoiser)
        return head


def moments_of(
    trained: TrainedModel,
    *,
    samples: int = 500,
    levels: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> SecondMoment:
    """E‖ε̂‖²/d of a run over its training data: from variance.pt in its folder, or computed and written there.

    A file made from other weights, with another seed or levels, or from fewer samples is made again.
    """
    check_whole("moments_of", "samples >= 3", "levels >= 2 or null", samples=samples, levels=levels)
    path = trained.run.path / VARIANCE_FILE
    wanted = {"step": trained.step, "seed": seed, "levels": levels or 0, "weights": trained.weights}
    if (known := _known(path, wanted, samples)) is not None:
        return known
    with trained.run.locked():
        table = _computed(trained, path, samples, levels, seed, batch_size)
        save_checkpoint(path, {**table.state(), **wanted})
    return table


def _known(path: Path, wanted: Mapping[str, Any], samples: int) -> SecondMoment | None:
    """The table in a file, if it is whole and is what is wanted; says so where it is damaged."""
    if not path.is_file():
        return None
    try:
        state = {"weights": wanted["weights"], **load_checkpoint(path)}  # an earlier version did not keep them
        if all(state.get(key) == value for key, value in wanted.items()) and state["samples"] >= samples:
            return SecondMoment.from_state(state)
    except (CheckpointError, KeyError, TypeError, ValueError):
        print(f"{path} is damaged: it is made again.")
    return None


def _computed(
    trained: TrainedModel, path: Path, samples: int, levels: int | None, seed: int, batch_size: int
) -> SecondMoment:
    denoiser, device = trained.on(None).denoiser, trained.device  # by σ/α, of every process
    print(f"estimating the variance of {trained.run.path} from {samples} examples, once: kept in {path}")
    data = trained.data()
    batch_size = min(batch_size, len(data.train))
    batches = Batches(data, batch_size, seed, labelled=trained.classes is not None, dequantize=trained.dequantize)
    count = -(-samples // batch_size)

    def examples() -> Iterator[tuple[Tensor, dict[str, Any]]]:
        for step in range(count):
            x0, cond = batches(step)
            yield x0.to(device), {key: value.to(device) for key, value in cond.items()}

    generator = stream_generator(seed, "second moment", device=device)
    calls = count * len(noise_levels(denoiser.sde, levels))
    with Progress("variance", calls, "calls") as progress, calls_counted(trained.net, progress):
        return second_moment(denoiser, examples(), levels=levels, samples=samples, generator=generator)
