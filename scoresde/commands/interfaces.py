"""What the groups of the command lines name: interfaces, so that a user's own is one class and one YAML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from scoresde.checks import check_choice, check_numbers, check_text, check_whole
from scoresde.covariance import CovarianceDenoiser
from scoresde.denoiser import Denoiser
from scoresde.inverse import NoiseLaw, Operator
from scoresde.solvers import Solver

if TYPE_CHECKING:
    from scoresde.commands.load import TrainedModel

DRAWS, MEAN_ERROR = "draws", "mean_error"  # columns of a likelihood's table that its summary needs

Steering = Callable[[Tensor | None], Denoiser]  # labels (B,) of a batch, or None -> its guided denoiser
SolverOf = Callable[[Tensor | None], Solver]  # the same -> its solver


class Guidance(ABC):
    """How samples of a run are steered: `guidance=...`."""

    @property
    def classifies(self) -> bool:
        """Whether it steers a model without classes to a label."""
        return False

    @abstractmethod
    def __call__(self, trained: TrainedModel) -> Steering:
        """Load what it takes, once, and return the function that makes the guided denoiser of every batch.

        Args:
            trained: The run; `trained.given(label)` is its denoiser without guidance.
        Raises:
            ConfigError: If the run lacks what is needed.
        """

    def solvers(self, solver: Solver, trained: TrainedModel) -> SolverOf:
        """The function that makes the solver of every batch, for guidance that changes steps and not the denoiser.

        Args:
            solver: As chosen on the command line.
            trained: The run.
        Raises:
            ConfigError: If the solver's steps cannot be guided so.
        """
        return lambda label: solver


class Variance(ABC):
    """What a run knows of Cov[x0 | x_t], for solvers and bounds of the optimal reverse variance: `variance=...`."""

    @abstractmethod
    def __call__(self, trained: TrainedModel) -> CovarianceDenoiser:
        """The run's denoiser with its covariance."""


class SolverGrid(ABC):
    """Where a solver stops, as far as the run decides it: `grid=...`; other grids are functions (sde, steps, t_end)."""

    @abstractmethod
    def __call__(self, solver: Solver, trained: TrainedModel) -> Solver:
        """The solver on this grid."""


class StoredBatch(NamedTuple):
    """Stored examples on the model's device.

    Attributes:
        x: Levels, or values in the data's own units, (B, *).
        cond: Conditions of the model, each (B, *).
        seeds: One per example.
    """

    x: Tensor
    cond: dict[str, Tensor]
    seeds: list[int]

    def take(self, rows: Tensor) -> StoredBatch:
        cond = {name: value[rows] for name, value in self.cond.items()}
        return StoredBatch(self.x[rows], cond, [self.seeds[row] for row in rows.tolist()])


class Scores(NamedTuple):
    """Values of a batch.

    Attributes:
        nats: log p(x) in the data's own units, or log P of the levels, (B,).
        std_error: Of nats, from the estimator's own random numbers, (B,); its square is unbiased, NaN if not known.
        nfe: Network calls of each example, (B,).
        terms: More columns by name, (B,). Two count in the error of the mean over all rows: "draws", how many a value
            is the mean of, if some have more than others, and "mean_error", in place of std_error, if the rows share
            out their random numbers (`Bound`).
        failures: Why a row has no value, by its place in the batch.
    """

    nats: Tensor
    std_error: Tensor
    nfe: Tensor
    terms: Mapping[str, Tensor] = {}
    failures: Mapping[int, str] = {}


class Estimand(NamedTuple):
    """What a likelihood is of: a short name, and the distribution whose log p it is, in words."""

    name: str
    distribution: str


Scorer = Callable[[StoredBatch], Scores]


class Likelihood(ABC):
    """How log p of the examples of a run is estimated: `likelihood=...`.

    Attributes:
        columns: Names of `Scores.terms`.
        per_example: Whether a row is a function of its seed alone; otherwise of the batch it is in.
    """

    columns: ClassVar[tuple[str, ...]] = ()
    per_example: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        """The function that gives the values of a batch of the run's examples.

        Args:
            trained: The run.
            variance: What gives it a covariance.
        Raises:
            ConfigError: If the run lacks what is needed.
        """

    @property
    def name(self) -> str:
        """What metrics.json calls it."""
        return type(self).__name__.lower()

    @property
    def estimands(self) -> dict[str, Estimand]:
        """What the column "nats" is of, and those with a prefix."""
        return {"": Estimand(self.name, self.name)}

    @property
    def uses_covariance(self) -> bool:
        """Whether the values depend on the `variance` group."""
        return False


class Diagnostics(ABC):
    """A look at a run: `diagnostics=...`."""

    @abstractmethod
    def __call__(self, trained: TrainedModel, *, seed: int, batch_size: int, out: Path) -> dict[str, Any]:
        """Look at a run, and write to a folder what there is to see.

        Args:
            trained: The run of a denoiser.
            seed: Of all random numbers.
            batch_size: Examples per network call.
            out: Folder, which need not exist yet.
        Returns:
            Entries of metrics.json.
        """


class Task(ABC):
    """What `train.py` does with its configuration: `task=...`. Those that train a model of data are `ModelTask`s."""

    @abstractmethod
    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        """Train, or go on where an earlier training stopped; returns the metrics logged last."""


@dataclass(frozen=True, kw_only=True)
class InverseProblem(ABC):
    """What is measured of examples, of which samples are then drawn: `task=...` of `sample.py`.

    Args:
        path: A file of observations, or of examples; None: examples of the run's own test split, which are measured.
        given: observation: what the file holds was measured; truth: its examples are measured now, with noise.
        noise: Standard deviation of the measurement, in the model's scaling: pictures there lie in [−1, 1], and
            standardised data have standard deviation 1. Or a law of noise.
        num_observations: How many; None: all of a file, 4 of the test split.
    """

    path: str | None = None
    given: str = "observation"
    noise: float | NoiseLaw = 0.05
    num_observations: int | None = None

    by_mask: ClassVar[bool] = False  # whether an observation has the shape of an event, and NaN is unobserved

    def __post_init__(self) -> None:
        check_text("task", "path", self.path)
        check_choice("task", "given", self.given, ("observation", "truth"))
        if self.path is None and self.given != "observation":
            raise ValueError("task needs path=..., a file of examples, for given=truth.")
        if not isinstance(self.noise, NoiseLaw):
            check_numbers("task", "0 <= noise < inf", noise=self.noise)
        if self.num_observations is not None:
            check_whole("task", "1 <= num_observations", num_observations=self.num_observations)

    @abstractmethod
    def operator(self, shape: tuple[int, ...], seeds: Sequence[int], present: Tensor | None) -> Operator:
        """A of all observations; what differs between them has one row for each.

        Args:
            shape: Of an event.
            seeds: One for each observation, of what is random in A.
            present: False where an example has no value, (J, *shape); None: all have.
        Raises:
            ValueError: If the data are not of a kind that it is for.
        """
