"""What was measured of examples, in the model's scaling: of a file of the user's, or of the run's own test split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.build import FAILURES, ConfigError
from scoresde.commands.conditions import OTHERS
from scoresde.commands.examples import (
    ARRAY,
    TABLE,
    Examples,
    array_rows,
    fitting_examples,
    own_examples,
    table_rows,
)
from scoresde.commands.interfaces import InverseProblem
from scoresde.commands.load import TrainedModel
from scoresde.data import Codec, Quantized, Standardized
from scoresde.data.dataset import find
from scoresde.data.transforms import Transformed
from scoresde.inverse import GaussianNoise, Grayscale, LinearOperator, Measurement, Operator
from scoresde.noise import stream_generator, stream_seed

OF_TEST_SPLIT, LARGEST = 4, 2**40  # observations


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """J measurements of J examples.

    Attributes:
        measurement: A, y (J, *measured) and the noise, in the model's scaling.
        truth: The examples, (J, *shape), in the model's scaling, NaN where an example has no value; None: not known.
        index: Their numbers in their file or split, (J,).
        label: Classes, (J,), or None.
        beside: Other conditions, (J, *), by name.
        name: What messages call them.
    """

    measurement: Measurement
    truth: Tensor | None
    index: Tensor
    label: Tensor | None
    beside: Mapping[str, Tensor]
    name: str

    def __len__(self) -> int:
        return len(self.index)

    @property
    def observed(self) -> Tensor | None:
        """Of a mask: where entries are observed, (J, *shape)."""
        mask, shape = self.measurement.operator.observed, self.measurement.operator.shape
        if mask is None or self.measurement.y.shape[1:] != shape:
            return None
        return mask.expand(len(self), *shape)


class Scaling(NamedTuple):
    """own = shift + scale · model, both broadcast against an event; of Quantized data `own` counts levels."""

    shift: Tensor
    scale: Tensor


def scaling_of(codec: Codec) -> Scaling | None:
    """Of a codec that is linear; None for others."""
    if isinstance(codec, Quantized):
        low, high = codec.value_range
        width = (high - low) / codec.levels
        return Scaling(torch.tensor(-low / width - 0.5), torch.tensor(1 / width))
    return Scaling(codec.mean, codec.std) if isinstance(codec, Standardized) else None


def observe(problem: InverseProblem, trained: TrainedModel, seed: int) -> Observations:
    """What a task says was measured.

    Raises:
        ConfigError: If the data are not there, or not of the kind of the run or of the task.
    """
    if isinstance(trained.codec, Transformed) and trained.codec.circular is not None:
        raise ConfigError(
            f"{trained.run.path} was trained on angles, of which the model has several turns: task=... is not for them."
        )
    try:
        if problem.path is not None and problem.given == "observation":
            return _of_observations(problem, trained, seed)
        return _of_examples(problem, trained, seed)
    except ConfigError:
        raise
    except FAILURES as error:
        raise ConfigError(str(error)) from error


def _of_examples(problem: InverseProblem, trained: TrainedModel, seed: int) -> Observations:
    """Examples whose values are known are measured, with noise drawn from (seed, observation)."""
    if problem.path is None:
        examples, most = own_examples(trained, "test", seed), problem.num_observations or OF_TEST_SPLIT
    else:
        examples, most = _read(problem, trained, None), problem.num_observations or LARGEST
    good = torch.tensor([row for row in range(len(examples)) if row not in examples.reasons])[:most]
    _check_count(problem, len(good), examples.name)
    codec, dequantize = trained.codec, trained.dequantize
    rows = [
        codec.encode(examples.x[k : k + 1], generator=stream_generator(seed, "dequantize", j), dequantize=dequantize)
        if isinstance(codec, Quantized)
        else codec.encode(examples.x[k : k + 1])
        for j, k in enumerate(good.tolist())
    ]
    truth = torch.cat(rows)
    present = ~truth.isnan()
    operator = problem.operator(trained.shape, _seeds(seed, len(truth)), present)
    law = problem.noise if not isinstance(problem.noise, int | float) else GaussianNoise(problem.noise)
    parts = []
    for j in range(len(truth)):
        one = torch.tensor([j])
        clean = operator.select(one, len(truth))(truth[j : j + 1].nan_to_num(0.0))
        parts.append(law.sample(clean, stream_generator(seed, "measurement", j)))
    return _found(operator, torch.cat(parts), law, truth, examples, good)


def _of_observations(problem: InverseProblem, trained: TrainedModel, seed: int) -> Observations:
    shape = trained.shape
    if problem.by_mask:
        examples = _read(problem, trained, shape, gaps=True)
        examples = _first(examples, problem.num_observations)
        y = _encoded(examples.x, trained)
        present = ~y.isnan()
        operator = problem.operator(shape, _seeds(seed, len(y)), present)
        return _found(operator, y.nan_to_num(0.0), problem.noise, None, examples)
    operator = problem.operator(shape, _seeds(seed, 1), None)
    with torch.no_grad():
        measured = tuple(operator(torch.zeros(1, *shape)).shape[1:])
    examples = _first(_read(problem, trained, measured), problem.num_observations)
    return _found(operator, _scaled(examples.x, operator, trained), problem.noise, None, examples)


def _found(
    operator: Operator, y: Tensor, noise: Any, truth: Tensor | None, examples: Examples, good: Tensor | None = None,
) -> Observations:  # fmt: skip
    y = y.float()
    if operator.observed is not None:
        y = torch.where(operator.observed, y, 0)
    rows = torch.arange(len(examples)) if good is None else good
    beside = {key: value[rows] for key in OTHERS if (value := getattr(examples, key)) is not None}
    return Observations(
        measurement=Measurement(operator, y, noise), truth=truth, index=examples.index[rows],
        label=None if examples.label is None else examples.label[rows], beside=beside, name=examples.name,
    )  # fmt: skip


def _seeds(seed: int, count: int) -> list[int]:
    return [stream_seed(seed, "operator", j) for j in range(count)]


def _check_count(problem: InverseProblem, there: int, name: str) -> None:
    if there == 0:
        raise ConfigError(f"task has nothing to measure: there are no {name}.")
    if problem.num_observations is not None and problem.num_observations > there:
        raise ConfigError(
            f"task.num_observations={problem.num_observations}, but there are only {there} {name}: ask for fewer."
        )


def _first(examples: Examples, wanted: int | None) -> Examples:
    if wanted is not None and wanted > len(examples):
        raise ConfigError(f"task.num_observations={wanted}, but {examples.name} holds only {len(examples)}.")
    kept = {
        key: value[:wanted] for key in ("x", "index", "label", *OTHERS) if (value := getattr(examples, key)) is not None
    }
    return replace(examples, **kept)


def _read(
    problem: InverseProblem, trained: TrainedModel, measured: tuple[int, ...] | None, *, gaps: bool = False
) -> Examples:
    """The rows of `task.path` in the data's own units.

    Args:
        problem, trained: What is read, and of which run.
        measured: Their shape; None: they are examples, checked as such.
        gaps: NaN may be in them.
    """
    path = find(problem.path, "task needs a file of numbers; set task.path to it")
    node = trained.config.get("data") or {}
    if path.suffix in (".csv", ".parquet"):
        of_table = node if node.get("_target_") == TABLE else {"_target_": TABLE}
        stored = table_rows(path, of_table, trained)
    else:
        of_array = node if node.get("_target_") == ARRAY else {"label_key": "y"}
        stored = array_rows(path, {**of_array, "channels_last": False}, trained)
    name = f"rows of {path.name}"
    if measured is None:
        x = _laid_out(stored.x, trained.shape, path)
        stored = replace(stored, x=x)
        return fitting_examples(trained, name, stored, torch.arange(len(x)))
    x = _laid_out(stored.x, measured, path).double()
    bad = x.isinf() if gaps else ~x.isfinite()
    if bool(bad.any()):
        row = int(bad.flatten(1).any(1).nonzero()[0])
        raise ConfigError(f"task.path={path} needs finite values{' or NaN' * gaps}, but row {row} holds others.")
    if isinstance(trained.codec, Quantized):
        top = trained.codec.levels - 1
        if bool(((x < -0.5) | (x > top + 0.5)).any()):
            raise ConfigError(
                f"task.path={path} needs values in 0..{top}, the levels of {trained.run.path}, got "
                f"{float(x.nan_to_num(0.0).min()):g} to {float(x.nan_to_num(0.0).max()):g}."
            )
    return Examples(
        name=path.name,
        index=torch.arange(len(x)),
        x=x,
        label=stored.label,
        reasons={},
        **{key: getattr(stored, key) for key in OTHERS},
    )


def _laid_out(x: Tensor, shape: tuple[int, ...], path: Path) -> Tensor:
    """Values as (N, *shape): of one row, without an axis for a single channel, or with the channels last as well."""
    if x.ndim == 2 and x.shape[1] == 1 and len(shape) == 1 and x.shape[0] == shape[0] != 1:
        x = x[:, 0]  # one vector, which was read as rows of one number
    last = (*shape[1:], shape[0])
    layouts = {(*shape,): lambda v: v, last: lambda v: v.movedim(-1, 1)}
    if shape[0] == 1 and len(shape) > 1:
        layouts[shape[1:]] = lambda v: v.unsqueeze(1)
    for layout, arrange in layouts.items():
        if tuple(x.shape[1:]) == layout:
            return arrange(x)  # type: ignore[no-untyped-call, no-any-return]
        if tuple(x.shape) == layout:
            return arrange(x[None])  # type: ignore[no-untyped-call, no-any-return]
    raise ConfigError(
        f"task.path={path} needs observations of shape (N, {', '.join(map(str, shape))}), one or several, got "
        f"{tuple(x.shape)}."
    )


def _encoded(x: Tensor, trained: TrainedModel) -> Tensor:
    """Own values, NaN among them, in the model's scaling."""
    codec = trained.codec
    if not isinstance(codec, Quantized):
        for where, reason in codec.refusals(x):
            row = int(where.nonzero()[0]) if bool(where.any()) else None
            if row is not None:
                raise ConfigError(f"task.path cannot be measured: row {row} {reason}.")
        return codec.encode(x)
    scaling = scaling_of(codec)
    assert scaling is not None
    return ((x - scaling.shift) / scaling.scale).float()


def _scaled(y: Tensor, operator: Operator, trained: TrainedModel) -> Tensor:
    """Observations in the data's own units as the operator has them of events in the model's scaling.

    own = A(shift + scale x) = A(shift) + scale A(x), if one scale is that of all that A mixes
    """
    scaling = scaling_of(trained.codec)
    if not isinstance(operator, LinearOperator):
        return y
    if scaling is None or not _commutes(scaling, operator, tuple(y.shape[1:])):
        raise ConfigError(
            f"task.path with given=observation needs data whose scaling is linear and the same for all that is mixed, "
            f"which that of {trained.run.path} is not: give examples, with task.given=truth."
        )
    return (unit_of(operator) * y - own_origin(scaling, operator)) / scaling.scale.double()


def own_values(y: Tensor, operator: Operator, codec: Codec) -> Tensor | None:
    """The inverse of `_scaled`; None if there is none."""
    scaling = scaling_of(codec)
    if scaling is None or not isinstance(operator, LinearOperator):
        return None
    if not _commutes(scaling, operator, tuple(y.shape[1:])):
        return None
    return (own_origin(scaling, operator) + scaling.scale.double() * y.double()) / unit_of(operator)


def own_origin(scaling: Scaling, operator: Operator) -> Tensor:
    """A of the event that is 0 in the model's scaling, (1, *measured), in own units."""
    return operator(scaling.shift.double().expand(1, *operator.shape).contiguous())  # type: ignore[no-any-return]


def unit_of(operator: Operator) -> float:
    """What an observation is multiplied with: of grey values, as people have them, √channels."""
    return math.sqrt(operator.shape[0]) if isinstance(operator, Grayscale) else 1.0


def _commutes(scaling: Scaling, operator: Operator, measured: tuple[int, ...]) -> bool:
    scale = scaling.scale
    if bool((scale == scale.flatten()[0]).all()):
        return True
    per_channel = scale.ndim == len(operator.shape) and scale.numel() == scale.shape[0]
    return per_channel and len(measured) == len(operator.shape) and measured[0] == operator.shape[0]


def real_values(x: Tensor, codec: Codec) -> Any:
    """Samples (N, *) in the data's own units, as real numbers: levels are not rounded."""
    if isinstance(codec, Quantized):
        scaling = scaling_of(codec)
        assert scaling is not None
        return (scaling.shift + scaling.scale * x.double()).numpy()
    return np.asarray(codec.decode(x).double().numpy())
