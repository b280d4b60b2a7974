"""`guidance=observations`: samples given several independent observations at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoresde.checks import check_text, check_whole
from scoresde.commands.build import ConfigError
from scoresde.commands.condition_rows import rows_of
from scoresde.commands.interfaces import Guidance, Steering
from scoresde.commands.load import TrainedModel
from scoresde.inverse import ProductPosterior
from scoresde.noise import stream_generator


@dataclass(frozen=True, kw_only=True)
class IndependentObservations(Guidance):
    """`ProductPosterior` of a conditional model: every row is one observation of the same unknown.

    Goes with condition=none, and needs a model that was trained with loss.condition_dropout.

    Args:
        rows: One list of numbers for each observation.
        path: A file with them, .npy, .npz or .csv, in place of `rows`.
        samples: Draws of each single posterior, for their covariances.
    """

    rows: Any = None
    path: str | None = None
    samples: int = 500

    def __post_init__(self) -> None:
        check_text("guidance", "path", self.path)
        check_whole("guidance", "3 <= samples <= 100000", samples=self.samples)
        listed = isinstance(self.rows, list) and self.rows and all(isinstance(row, list) and row for row in self.rows)
        if self.rows is not None and not listed:
            raise ConfigError(
                f"guidance.rows needs one list for each observation, [[0.1,2],[0.3,1]], got {self.rows!r}."
            )

    def __call__(self, trained: TrainedModel) -> Steering:
        if (self.rows is None) == (self.path is None):
            raise ConfigError("guidance=observations needs guidance.rows=[[...],[...]] or guidance.path=FILE.")
        if not trained.condition_optional:
            raise ConfigError(
                f"guidance=observations needs a model of a condition that was trained without it now and then, by "
                f"loss.condition_dropout=0.1, and {trained.run.path} was not."
            )
        rows = rows_of(self.rows if self.path is None else {"path": self.path}, trained)
        product = ProductPosterior.of(
            trained.denoiser, rows.to(trained.device), trained.shape, samples=self.samples,
            generator=stream_generator(0, "observations", device=trained.device),
        )  # fmt: skip
        return lambda label: product
