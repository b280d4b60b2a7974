"""`likelihood=...` of `sample.py`: examples -> estimator -> a table that grows on disk -> what it says."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.commands.build import ConfigError
from scoresde.commands.companion import labelled
from scoresde.commands.estimators import Batch, Scores
from scoresde.commands.examples import given_examples, own_examples
from scoresde.commands.findings import Unit, findings, means, with_error
from scoresde.commands.kinds import KINDS, estimator
from scoresde.commands.load import TrainedModel
from scoresde.commands.tables import GrowingTable
from scoresde.noise import stream_seed
from scoresde.solvers import ProbabilityFlowODE, Solver

NOT_VALUES = (
    "num_examples",
    "split",
    "csv",
    "resume",
    "when",
    "seed",
)  # options that change no row, or are given apart


def is_wanted(config: dict[str, Any], solver: Solver) -> bool:
    """Whether a likelihood was asked for: by name, with `data`, or by the solver that exists for it."""
    options = config["likelihood"]
    if options["kind"] == "none" or options["num_examples"] == 0:
        return False
    steered = config["guidance"]["kind"] != "none" or config["label"] is not None
    asked = options["when"] == "always" or config.get("data") is not None
    return asked or (isinstance(solver, ProbabilityFlowODE) and not steered)


class Evaluation:
    """The likelihoods of a run's examples, or of a user's, one batch after the other.

    By the probability flow, an example's value is a function of (seed, its row) alone. A bound shares its draws out
    over a batch: there it depends on `likelihood.batch_size` as well, but not on where an earlier evaluation stopped.

    Args:
        config: Of `sample.py`.
        trained: The run.
        out: Folder of the table.
        device: Of the model.
    Raises:
        ConfigError: If the options, the data and the run do not fit together.
    """

    def __init__(self, config: dict[str, Any], trained: TrainedModel, out: Path, device: torch.device) -> None:
        self.options, self.trained, self.device = check_options(config["likelihood"]), trained, device
        self.seed = config["seed"] if self.options["seed"] is None else self.options["seed"]
        self.given = config.get("data") is not None
        if self.given:
            self.examples = given_examples(config["data"], trained, self.options["split"], config["extensions"])
        else:
            self.examples = own_examples(trained, self.options["split"], self.seed, config["extensions"])
        self.score = estimator(self.options, config["variance"], trained, config["extensions"])
        self.unit = Unit.of(trained)
        self.count = min(len(self.examples), self.options["num_examples"] or len(self.examples))
        path = out / "likelihood.csv" if self.options["csv"] is None else Path(self.options["csv"]).expanduser()
        self.table = GrowingTable(path, self._columns(), self._identity(config), resume=self.options["resume"])

    def run(self) -> dict[str, Any]:
        """Score what is not in the table yet; returns what metrics.json says."""
        start, size, count = time.perf_counter(), self.options["batch_size"], self.count
        done = len(self.table.rows)
        if not self.score.per_example and done < count:
            done -= done % size  # a bound's batch that was cut off is drawn again
        self.table.keep(done)
        if done:
            print(f"{self.table.path} has {min(done, count)} of {count} rows already")
        mean = means(self.table.rows, self.unit)
        try:
            with tqdm(total=count, initial=done, desc="likelihood", unit="example", disable=None, leave=False) as bar:
                for first in range(done, count, size):
                    self.table.append(self._rows(range(first, min(first + size, count))))
                    summary = means(self.table.rows[first:], self.unit, mean).summary()
                    bar.set_postfix_str(f"{self.unit.name} {with_error(summary)}", refresh=False)
                    bar.update(len(self.table.rows) - first)
        except KeyboardInterrupt:
            print(
                f"stopped after {len(self.table.rows)} of {count} examples, which are in {self.table.path}: the same "
                f"command goes on from there"
            )
            raise SystemExit(130) from None
        finally:
            self.table.close()
        seconds = time.perf_counter() - start
        if self.table.aside is not None:
            print(f"the {self.table.path} of another model, data or options is now {self.table.aside}")
        found = findings(self.table.rows[:count], self.unit, self.score, self.examples.name, seconds, self.given)
        print(f"every value: {self.table.path}")
        return {"likelihood_kind": self.options["kind"], **found, "likelihood_csv": str(self.table.path)}

    def _rows(self, positions: range) -> list[dict[str, Any]]:
        """One row per example of a batch, in their order."""
        examples = self.examples
        values = self._values([k for k in positions if k not in examples.reasons])
        return [
            {
                "index": int(examples.index[k]),
                "label": None if examples.label is None else int(examples.label[k]),
                **(values[k] if k in values else {"status": examples.reasons[k]}),
            }
            for k in positions
        ]

    def _values(self, positions: Sequence[int]) -> dict[int, dict[str, Any]]:
        """The columns of the examples at these positions; if a batch fails as a whole, each is tried by itself."""
        if not positions:
            return {}
        try:
            scores = self.score(self._batch(positions))
        except FloatingPointError as error:
            if len(positions) == 1:
                return {positions[0]: {"status": " ".join(str(error).split())}}
            return {k: row for position in positions for k, row in self._values([position]).items()}
        return {k: self._cells(scores, place) for place, k in enumerate(positions)}

    def _batch(self, positions: Sequence[int]) -> Batch:
        rows, examples = torch.as_tensor(positions), self.examples
        cond: dict[str, Tensor] = {}
        if labelled(self.trained) and examples.label is not None:
            cond["label"] = examples.label[rows].to(self.device)
        if examples.condition is not None:
            cond["condition"] = examples.condition[rows].to(self.device)
        seeds = [stream_seed(self.seed, "example", index) for index in examples.index[rows].tolist()]
        return Batch(examples.x[rows].to(self.device), cond, seeds)

    def _cells(self, scores: Scores, place: int) -> dict[str, Any]:
        nats = float(scores.nats[place])
        if place in scores.failures or not math.isfinite(nats):
            return {"status": " ".join(scores.failures.get(place, "the value is NaN or infinite").split())}
        columns = {"nats": scores.nats, "std_error": scores.std_error, **scores.terms}
        numbers = {name: float(column[place]) for name, column in columns.items()}
        cells = {name: number if math.isfinite(number) else None for name, number in numbers.items()}
        bits = {"bits_per_dim": self.unit.value(nats)} if self.unit.is_bits else {}
        return {**cells, **bits, "nfe": int(scores.nfe[place]), "status": "ok"}

    def _columns(self) -> list[str]:
        label = ["label"] if self.examples.label is not None else []
        bits = ["bits_per_dim"] if self.unit.is_bits else []
        return ["index", *label, "nats", *bits, "std_error", *self.score.columns, "nfe", "status"]

    def _identity(self, config: dict[str, Any]) -> dict[str, Any]:
        """All that a row of the table depends on."""
        apart = (*NOT_VALUES, "batch_size") if self.score.per_example else NOT_VALUES
        return {
            "run": str(self.trained.run.path.resolve()),
            "step": self.trained.step,
            "rows": [self.examples.name, self.examples.digest()],
            "seed": self.seed,
            "likelihood": {key: value for key, value in self.options.items() if key not in apart},
            "variance": config["variance"] if self.score.needs_variance else None,
        }


def check_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options, if those that every kind has make sense."""
    if options["kind"] not in KINDS:
        raise ConfigError(f"likelihood.kind needs to be one of {', '.join(KINDS)}, got {options['kind']!r}.")
    for key, least, empty in (("num_examples", 0, True), ("batch_size", 1, False), ("seed", 0, True)):
        value = options[key]
        if not (value is None and empty) and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            words = ", or null" if empty else ""
            raise ConfigError(f"likelihood.{key} needs a whole number of at least {least}{words}, got {value!r}.")
    return dict(options)
