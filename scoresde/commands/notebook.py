"""A trained run in a notebook: samples and log p as arrays in the data's own units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.checks import check_whole
from scoresde.commands.build import ConfigError, build_as
from scoresde.commands.conditions import choose_conditions, class_number, with_conditions
from scoresde.commands.drawing import conditioned, draw
from scoresde.commands.examples import ARRAY, fitting_examples, stored_rows
from scoresde.commands.guidance import NoGuidance
from scoresde.commands.interfaces import Guidance, Likelihood
from scoresde.commands.likelihood import stored_batch
from scoresde.commands.load import TrainedModel
from scoresde.commands.load import load_run as load_trained
from scoresde.commands.packaged import packaged
from scoresde.commands.saved_samples import sample_values
from scoresde.commands.variance import NoVariance
from scoresde.data import Codec, Names
from scoresde.data.dataset import Split
from scoresde.denoiser import Denoiser
from scoresde.solvers import Solver


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedRun:
    """A trained run, as `load_run` and `fit` return it: samples and log p in the data's own units.

    Args:
        trained: The run, as the commands use it.
    """

    trained: TrainedModel

    def __repr__(self) -> str:
        trained = self.trained
        return f"TrainedRun({str(self.path)!r}, shape={trained.shape}, step={trained.step})"

    @property
    def path(self) -> Path:
        """The run directory, for `sample.py run=...`."""
        return self.trained.run.path

    @property
    def denoiser(self) -> Denoiser:
        """E[x0 | x_t] in the model's own units, for every solver and likelihood of the library."""
        return self.trained.denoiser

    @property
    def codec(self) -> Codec:
        """Map between the data's own values and the model's."""
        return self.trained.codec

    @property
    def config(self) -> dict[str, Any]:
        """The configuration that it was trained with."""
        return self.trained.config

    @property
    def names(self) -> Names:
        """What its classes, columns and conditions are called."""
        return self.trained.names

    def sample(
        self,
        n: int,
        *,
        condition: Any = None,
        label: Any = None,
        image: Any = None,
        sequence: Any = None,
        solver: Solver | str = "exponential_adams",
        guidance: Guidance | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> NDArray[Any]:
        """Samples, (n, *): the numbers that `sample.py` writes to samples.npz for the same seed and solver.

        Args:
            n: How many.
            condition: One row (C,) for all, rows (R, C) in turn, or {column: value}; of one column, numbers in turn.
                "none": without, if the model was trained for that. None: those of the run's own test split.
            label: Class by name or number, or several in turn. None: all classes of a conditional model in turn.
            image: Images (R, C, *), in turn, or one. "none" and None: as for condition.
            sequence: Tokens (R, L) or vectors (R, L, C), in turn, or one; of text, a word or words in turn. "none" and
                None: as for condition.
            solver: A solver, or the name of one as `sample.py` has it.
            guidance: For example `scoresde.commands.ClassifierFreeGuidance(scale=2.0)`.
            seed: Sample k depends on (seed, k) alone.
            batch_size: Samples at a time.
        Raises:
            ConfigError: If the run cannot be conditioned on that, or on nothing.
            FloatingPointError: If the solver returns NaN or infinity.
        """
        check_whole("sample", "n >= 1", "seed >= 0", "batch_size >= 1", n=n, seed=seed, batch_size=batch_size)
        trained, chosen = self.trained, NoGuidance() if guidance is None else guidance
        solver = build_as(Solver, packaged("solver", solver), "solver") if isinstance(solver, str) else solver
        asked = {
            "label": _plain(label), "condition": self._asked(condition), "image": image, "sequence": sequence,
            "num_samples": n,
        }  # fmt: skip
        conditions, steering = choose_conditions(asked, trained, chosen), chosen(trained)
        chunks = []
        for first in range(0, n, batch_size):
            indices = range(first, min(first + batch_size, n))
            denoiser = conditioned(steering, conditions, indices, trained.device)
            chunks.append(draw(denoiser, solver, trained.shape, seed, indices, trained.device).cpu())
        return sample_values(torch.cat(chunks), trained)

    def log_prob(
        self,
        x: Any,
        *,
        condition: Any = None,
        label: Any = None,
        image: Any = None,
        sequence: Any = None,
        likelihood: Likelihood | str = "hutchinson",
        seed: int = 0,
        batch_size: int = 256,
    ) -> NDArray[np.float64]:
        """log p of each example in nats, (N,): the numbers that `sample.py` writes to likelihood.csv for the same rows.

        Of continuous data it is the log density in the data's own units: the Jacobian of the scaling is in it. Of
        levels, as pictures have, it is the log probability of the whole numbers, a lower bound of it on average:
        divided by −d log 2 it is bits per dimension.

        Args:
            x: Examples in the data's own units and layout, (N, *).
            condition: Of a model with one: a row for each example, (N, C), or one for all.
            label: Of a model of classes: one for each example, by name or number, or one for all. None: p(x) without a
                label.
            image, sequence: Of a model with one, in the same way.
            likelihood: A likelihood, or the name of one as `sample.py` has it: hutchinson, exact, elbo, ...
            seed: Of what is random in it; the value of a row depends on (seed, its number).
            batch_size: Examples at a time.
        Raises:
            ConfigError: If the examples, or what they are conditioned on, are not of the kind of the run's data.
            ValueError: If a row holds NaN or no value that the data can have, with its number.
            FloatingPointError: If the value of a row is not finite, with its number.
        """
        check_whole("log_prob", "seed >= 0", "batch_size >= 1", seed=seed, batch_size=batch_size)
        trained = self.trained
        asked = {"condition": self._asked(condition), "image": image, "sequence": sequence}
        node = likelihood if not isinstance(likelihood, str) else packaged("likelihood", likelihood)
        own = {key: value for key, value in node.items() if key != "when"} if isinstance(node, dict) else node
        chosen = build_as(Likelihood, own, "likelihood") if isinstance(own, dict) else own
        rows = stored_rows("log_prob", _plain_array(x), channels_last=self._channels_last)
        stored = Split(x=rows, label=self._labels(label, len(rows)), condition=None)
        examples = fitting_examples(trained, "examples", stored, torch.arange(len(rows)))
        for row, reason in examples.reasons.items():
            raise ValueError(f"log_prob cannot score row {row}, which {reason}.")
        examples = with_conditions(examples, asked, trained)
        score, found = chosen.prepare(trained, NoVariance()), []
        for first in range(0, len(rows), batch_size):
            scores = score(stored_batch(trained, examples, range(first, min(first + batch_size, len(rows))), seed))
            for row, reason in scores.failures.items():
                raise FloatingPointError(f"log_prob has no value for row {first + row}: {reason}")
            found.append(scores.nats.double().cpu())
        return torch.cat(found).numpy()

    @property
    def _channels_last(self) -> bool:
        node = self.config.get("data") or {}
        return node.get("_target_") == ARRAY and bool(node.get("channels_last"))

    def _asked(self, condition: Any) -> Any:
        """What `condition` says, as the command line has it; of one column, numbers are as many rows."""
        asked = _plain(condition)
        rows = (
            self.trained.condition_dim == 1 and isinstance(asked, list) and not any(isinstance(v, list) for v in asked)
        )
        return [[value] for value in asked] if rows else asked

    def _labels(self, label: Any, count: int) -> Tensor | None:
        if label is None:
            return None
        if self.trained.classes is None:
            raise ConfigError(f"label needs a model of classes, but {self.path} was trained without labels.")
        given = _plain(label)
        numbers = [class_number(one, self.trained) for one in (given if isinstance(given, list) else [given])]
        if len(numbers) not in (1, count):
            raise ConfigError(f"label has {len(numbers)} values for {count} examples: give one, or as many.")
        return torch.tensor(numbers).expand(count)


def load_run(
    run: str | Path, *, device: str | torch.device | None = None, extensions: Sequence[str] = ()
) -> TrainedRun:
    """A trained run: `load_run("runs/mine").sample(100)`, `.log_prob(x)`, `.denoiser`, `.codec`, `.config`, `.names`.

    Args:
        run: A run directory, or a checkpoint inside one.
        device: Where to put it; None is the CPU.
        extensions: The user's own modules that the run's classes may come from.
    Raises:
        FileNotFoundError: If there is no such run or it has no checkpoint.
        CheckpointError: If the checkpoint is damaged or could run code.
        ConfigError: If the run is that of a classifier, or its configuration names something that is not allowed.
    """
    trained = load_trained(run, device=device, extensions=extensions)
    _ = trained.denoiser  # or a sentence why it has none
    return TrainedRun(trained=trained)


def _plain(value: Any) -> Any:
    """Arrays and tensors as lists, the rest as it is."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value


def _plain_array(x: Any) -> NDArray[Any]:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
