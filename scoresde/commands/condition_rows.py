"""`condition=...`: rows of numbers and names of categories, one by one, by column name, or from a file."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.build import ConfigError
from scoresde.commands.load import TrainedModel
from scoresde.data import Column
from scoresde.data.bounded import member_names, read_members
from scoresde.files import open_regular
from scoresde.spelling import did_you_mean, nearest

SHAPES = "condition=[1.5,2], a list of such rows, condition={mass: 3.2, kind: dog} or condition.path=FILE"


def rows_of(asked: Any, trained: TrainedModel) -> Tensor:
    """The rows that `condition` says, (R, C), in float64 and in the data's own units; categories by number.

    Raises:
        ConfigError: If they are not of the model's columns.
    """
    columns = columns_of(trained)
    if isinstance(asked, Mapping):
        if set(asked) == {"path"} and "path" not in [column.name for column in columns]:
            rows = _of_file(asked["path"], columns)
        else:
            rows = [_by_name(asked, columns)]
    elif isinstance(asked, list) and asked and all(isinstance(row, list) for row in asked):
        rows = asked
    else:
        rows = [asked if isinstance(asked, list) else [asked]]
    for row in rows:
        if len(row) != len(columns):
            more = f": one row is [{', '.join(column.name for column in columns)}]" if len(columns) < 9 else ""
            raise ConfigError(
                f"condition needs {len(columns)} value{'s' * (len(columns) > 1)} per row for {trained.run.path}, got "
                f"{len(row)}{more}."
            )
    values = [[_number(value, column) for value, column in zip(row, columns, strict=True)] for row in rows]
    return torch.tensor(values, dtype=torch.float64)


def columns_of(trained: TrainedModel) -> tuple[Column, ...]:
    """The columns of a run's condition; without names of their own they are called "column 0", ...

    Raises:
        ConfigError: If it has none.
    """
    dim = trained.condition_dim
    if dim is None:
        raise ConfigError(
            f"condition=... needs a model with a condition, but {trained.run.path} was trained on data without one."
        )
    if (names := trained.names.conditions) is not None and len(names) == dim:
        return names
    counts = trained.config["model"].get("condition_categories") or [0] * dim
    return tuple(
        Column(name=f"column {j}", categories=tuple(map(str, range(count))) or None) for j, count in enumerate(counts)
    )


def _by_name(asked: Mapping[str, Any], columns: Sequence[Column]) -> list[Any]:
    names = [column.name for column in columns]
    for name in asked:
        if name not in names:
            near = nearest(str(name), names)
            there = did_you_mean(near) if near else f": there is {', '.join(names)}."
            raise ConfigError(f"condition.{name} is no column of the condition{there}")
    if missing := [name for name in names if name not in asked]:
        raise ConfigError(f"condition needs every column, and {', '.join(missing)} is missing: condition.NAME=...")
    return [asked[name] for name in names]


def _number(value: Any, column: Column) -> float:
    """A value as the data have it: a finite number, or the number of a category that is meant by its name."""
    if column.categories is not None:
        word = str(value).lower() if isinstance(value, bool) else str(value)
        if word in column.categories:
            return float(column.categories.index(word))
        if isinstance(value, float) and value.is_integer() and str(int(value)) in column.categories:
            return float(column.categories.index(str(int(value))))
        near = nearest(word, column.categories)
        there = did_you_mean(near) if near else f": there is {', '.join(column.categories[:12])}."
        raise ConfigError(f"condition {column.name} has no category {word!r}{there}")
    try:
        number = float("nan") if isinstance(value, bool | None) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"condition {column.name} needs a finite number, got {value!r}: {SHAPES}.")
    return number


def _of_file(path: Any, columns: Sequence[Column]) -> list[list[Any]]:
    """The rows of a .npy or .npz file, there under the name condition, or of a .csv file."""
    if not isinstance(path, str) or not (found := Path(path).expanduser()).exists():
        raise ConfigError(f"condition.path needs a .npy, .npz or .csv file, and {path} does not exist.")
    if found.suffix == ".csv":
        return _of_csv(found, columns)
    try:
        names = member_names(found)
        name = "condition" if "condition" in names else names[0]
        arrays = read_members(found, [name])
        values = np.asarray(arrays[name])
    except Exception as error:  # zip, zlib and header damage all raise their own types
        raise ConfigError(f"condition.path needs a whole .npy, .npz or .csv file of numbers, got {found}.") from error
    if (len(names) > 1 and name != "condition") or values.dtype.kind not in "biuf" or values.size == 0:
        raise ConfigError(f"condition.path needs numbers (N, C), in .npz under the name condition, got {found}.")
    flat = values.reshape(len(values), -1) if values.ndim != 1 else values[:, None]
    rows: list[list[Any]] = flat.astype(np.float64).tolist()
    return [[_category(value, column) for value, column in zip(row, columns, strict=False)] for row in rows]


def _category(value: float, column: Column) -> Any:
    """What an array holds: categories by number."""
    if column.categories is None or not value.is_integer() or not 0 <= value < len(column.categories):
        return value
    return column.categories[int(value)]


def _of_csv(path: Path, columns: Sequence[Column]) -> list[list[Any]]:
    """Cells as text; with a header, which names all columns, in any order and with others beside them."""
    with open_regular(path) as file:
        table = list(csv.reader(file.read().decode("utf-8-sig").splitlines()))
    table = [[cell.strip() for cell in row] for row in table if row]
    names = [column.name for column in columns]
    if table and set(names) <= set(table[0]):
        places = [table[0].index(name) for name in names]
        if short := next((k for k, row in enumerate(table) if len(row) <= max(places)), None):
            raise ConfigError(f"{path} has {len(table[short])} cells in line {short + 1}, fewer than in its header.")
        return [[row[place] for place in places] for row in table[1:]] or _empty(path)
    return table or _empty(path)


def _empty(path: Path) -> list[list[Any]]:
    raise ConfigError(f"condition.path={path} holds no rows.")
