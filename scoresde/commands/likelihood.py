"""`likelihood=...` of `sample.py`: examples -> estimator -> a table that grows on disk -> what it says."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoresde.checks import check_choice, check_flags, check_whole
from scoresde.commands.build import ConfigError, build, build_as
from scoresde.commands.call_counter import CountedExamples, labels_of_ends
from scoresde.commands.conditions import OTHERS, with_conditions
from scoresde.commands.examples import SPLITS, Examples, given_examples, own_examples
from scoresde.commands.interfaces import Likelihood, Scorer, Scores, StoredBatch, Variance
from scoresde.commands.likelihood_words import Unit, means, print_summary, with_error
from scoresde.commands.load import TrainedModel
from scoresde.commands.tables import GrowingTable
from scoresde.noise import stream_seed
from scoresde.solvers import ProbabilityFlowODE, Solver
from scoresde.streams import held_back


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What every `likelihood` has beside the options of its own class.

    Args:
        when: "always", or "ode": with `solver=ode` or `data` only.
        num_examples: How many are evaluated; None: all, 0: none.
        split: "test", "train" or "all"; None: test of the run's own data, all of `data`.
        batch_size: Examples at a time.
        seed: None: that of the command.
        csv: The table; None: likelihood.csv in the folder of the results.
        resume: Whether to go on with the rows that are there.
    """

    when: str = "always"
    num_examples: int | None = None
    split: str | None = None
    batch_size: int = 256
    seed: int | None = None
    csv: str | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        check_flags(self)
        check_choice("likelihood", "when", self.when, ("always", "ode"))
        if self.split is not None:
            check_choice("likelihood", "split", self.split, SPLITS)
        check_whole("likelihood", "num_examples >= 0 or null", "batch_size >= 1", "seed >= 0 or null", **vars(self))


SHARED = tuple(field.name for field in fields(EvaluationOptions))


def chosen_likelihood(node: Mapping[str, Any], extensions: Sequence[str]) -> tuple[EvaluationOptions, Likelihood]:
    """What a `likelihood` configuration asks for: which examples, and how."""
    shared = {key: node[key] for key in SHARED if key in node}
    own = {key: value for key, value in node.items() if key not in SHARED}
    options = build({"_target_": f"{__name__}.EvaluationOptions", **shared}, "likelihood")
    likelihood = build_as(Likelihood, own, "likelihood", extensions)
    for key in SHARED:
        if key in inspect.signature(type(likelihood)).parameters:
            raise ConfigError(
                f"likelihood.{key} is an option of every likelihood: {own['_target_']} needs another name."
            )
    return options, likelihood


@dataclass(frozen=True, kw_only=True)
class NoLikelihood(Likelihood):
    """Nothing is evaluated."""

    def prepare(self, trained: TrainedModel, variance: Variance) -> Scorer:
        raise ConfigError("likelihood=none evaluates nothing: use likelihood=hutchinson, or another.")


def is_wanted(
    config: dict[str, Any], options: EvaluationOptions, likelihood: Likelihood, solver: Solver, steered: bool
) -> bool:
    """Whether the likelihood is to be evaluated: always, with `data`, or with the solver that exists for it."""
    if isinstance(likelihood, NoLikelihood) or options.num_examples == 0:
        return False
    asked = options.when == "always" or config.get("data") is not None
    return asked or (isinstance(solver, ProbabilityFlowODE) and not steered)


def check_idle(options: EvaluationOptions, likelihood: Likelihood) -> None:
    """Raise if a likelihood that is not evaluated was given options, which would have no effect.

    Raises:
        ConfigError: With the first of them.
    """
    if options.when == "always" or options.num_examples == 0 or not is_dataclass(likelihood):
        return
    for field in fields(likelihood):
        if (value := getattr(likelihood, field.name)) != field.default and field.default is not MISSING:
            raise ConfigError(
                f"likelihood.{field.name}={value} has no effect: this likelihood is evaluated with solver=ode or "
                f"data=... only. Add likelihood.when=always, or name one, as likelihood=hutchinson."
            )


def stored_batch(trained: TrainedModel, examples: Examples, positions: Sequence[int], seed: int) -> StoredBatch:
    """The examples at these positions, as an estimator takes them."""
    rows = torch.as_tensor(positions)
    cond: dict[str, Tensor] = {}
    if trained.classes is not None and examples.label is not None:
        cond["label"] = examples.label[rows].to(trained.device)
    for key in OTHERS:
        if (value := getattr(examples, key)) is not None:
            cond[key] = value[rows].to(trained.device)
    seeds = [stream_seed(seed, "example", index) for index in examples.index[rows].tolist()]
    x = examples.x[rows].to(trained.device)
    if trained.takes_gaps:
        cond["concat"] = x.isnan().float()
    return StoredBatch(x, cond, seeds)


class Evaluation:
    """The likelihoods of a run's examples, or of a user's, one batch after the other.

    By the probability flow, an example's value is a function of (seed, its row) alone. A bound shares its draws out
    over a batch: there it depends on `likelihood.batch_size` as well, but not on where an earlier evaluation stopped.

    Args:
        config: Of `sample.py`.
        options: Which examples.
        likelihood: How.
        trained: The run.
        out: Folder of the table.
        variance: What gives the run a covariance.
    Raises:
        ConfigError: If the options, the data and the run do not fit together.
    """

    def __init__(
        self,
        config: dict[str, Any],
        options: EvaluationOptions,
        likelihood: Likelihood,
        trained: TrainedModel,
        out: Path,
        variance: Variance,
    ) -> None:
        self.options, self.likelihood, self.trained = options, likelihood, trained
        self.seed = config["seed"] if options.seed is None else options.seed
        self.given = config.get("data") is not None
        if self.given:
            given = given_examples(config["data"], trained, options.split, config["extensions"])
            self.examples = with_conditions(given, config, trained)
        else:
            self.examples = own_examples(trained, options.split, self.seed)
        self.score = likelihood.prepare(trained, variance)
        self.unit = Unit.of(trained)
        self.count = min(len(self.examples), options.num_examples or len(self.examples))
        path = out / "likelihood.csv" if options.csv is None else Path(options.csv).expanduser()
        self.table = GrowingTable(path, self._columns(), self._identity(config), resume=options.resume)

    def run(self) -> tuple[dict[str, Any], str]:
        """Score what is not in the table yet, which is open; returns what metrics.json says, and what people read."""
        start, size, count = time.perf_counter(), self.options.batch_size, self.count
        done = len(self.table.rows)
        if not self.likelihood.per_example and done < count:
            done -= done % size  # a bound's batch that was cut off is drawn again
        self.table.keep(done)
        if done:
            print(f"{self.table.path} has {min(done, count)} of {count} rows already")
        mean = means(self.table.rows, self.unit)
        try:
            sde = self.trained.denoiser.sde
            ends = labels_of_ends(self.trained.model, sde, sde.t_min) if self.likelihood.per_example else None
            with CountedExamples(self.trained.net, count, done, batch=size, ends=ends) as counter:
                for first in range(done, count, size):
                    self.table.append(self._rows(range(first, min(first + size, count))))
                    summary = means(self.table.rows[first:], self.unit, mean).summary()
                    counter.finish(len(self.table.rows), f"{self.unit.name} {with_error(summary)}")
        except KeyboardInterrupt:
            print(
                f"stopped after {len(self.table.rows)} of {count} examples, which are in {self.table.path}: the same "
                f"command goes on from there"
            )
            raise SystemExit(130) from None
        seconds = time.perf_counter() - start
        rows = self.table.rows[:count]
        with held_back() as words:
            if self.table.trouble:
                print(self.table.trouble)
            found = print_summary(rows, self.unit, self.likelihood, self.examples.name, seconds, self.given)
            print(f"every value: {self.table.path}")
        found = {"likelihood_kind": self.likelihood.name, **found, "likelihood_csv": str(self.table.path)}
        return found, words.getvalue()

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
            scores = self.score(stored_batch(self.trained, self.examples, positions, self.seed))
        except FloatingPointError as error:
            if len(positions) == 1:
                return {positions[0]: {"status": " ".join(str(error).split())}}
            return {k: row for position in positions for k, row in self._values([position]).items()}
        return {k: self._cells(scores, place) for place, k in enumerate(positions)}

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
        return ["index", *label, "nats", *bits, "std_error", *self.likelihood.columns, "nfe", "status"]

    def _identity(self, config: dict[str, Any]) -> dict[str, Any]:
        """All that a row of the table depends on."""
        likelihood = {key: value for key, value in config["likelihood"].items() if key not in SHARED}
        if not self.likelihood.per_example:
            likelihood["batch_size"] = self.options.batch_size
        return {
            "weights": self.trained.weights,
            "step": self.trained.step,
            "rows": [self.examples.name, self.examples.digest()],
            "seed": self.seed,
            "likelihood": likelihood,
            "variance": config["variance"] if self.likelihood.uses_covariance else None,
            **({} if config.get("sde") is None else {"sde": config["sde"]}),
        }
