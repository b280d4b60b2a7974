"""What the groups of the command lines name: interfaces, so that a user's own is one class and one YAML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from scoresde.covariance import CovarianceDenoiser
from scoresde.denoiser import Denoiser
from scoresde.solvers import Solver

if TYPE_CHECKING:
    from scoresde.commands.load import TrainedModel

Steering = Callable[[Tensor | None], Denoiser]  # labels (B,) of a batch, or None -> its guided denoiser


class Guidance(ABC):
    """How samples of a run are steered: `guidance=...`.

    Attributes:
        classifies: Whether it steers a model without classes to a label.
    """

    classifies: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, trained: TrainedModel) -> Steering:
        """Load what it takes, once, and return the function that makes the guided denoiser of every batch.

        Args:
            trained: The run; `trained.given(label)` is its denoiser without guidance.
        Raises:
            ConfigError: If the run lacks what is needed.
        """


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


class Task(ABC):
    """What `train.py` does with its configuration: `task=...`. Those that train a model of data are `ModelTask`s."""

    @abstractmethod
    def __call__(self, config: dict[str, Any]) -> dict[str, float]:
        """Train, or go on where an earlier training stopped; returns the metrics logged last."""
