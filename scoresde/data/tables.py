"""Tables with named columns, in CSV or parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.checks import check_flag, check_text
from scoresde.data.columns import Column, Names
from scoresde.data.conditions import stored_condition
from scoresde.data.dataset import TEST_FRACTION, Dataset, Split, check_no_split, check_split, find, split_indices, take
from scoresde.data.scaling import check_missing, check_scaling, check_transforms, chosen_transforms, fit_codec
from scoresde.data.table_files import SEPARATORS, Columns, read_columns
from scoresde.spelling import did_you_mean, nearest

OWNER = "data=table"
MOST_CATEGORIES = 1000


class Layout(NamedTuple):
    """Which columns of a table are what.

    Attributes:
        columns: Of x, in its order.
        conditions: Of the condition, in its order; those of text, and those that are said to be, have categories.
        label: Of the class labels, or None; `categories` are the classes.
    """

    columns: tuple[Column, ...]
    conditions: tuple[Column, ...]
    label: Column | None

    @property
    def names(self) -> Names:
        classes = None if self.label is None else self.label.categories
        return Names(classes=classes, columns=self.columns, conditions=self.conditions or None)


def table(
    path: str | Path | None = None, test_path: str | Path | None = None, columns: Sequence[str] | None = None,
    condition: Sequence[str] | None = None, categories: Sequence[str] | None = None, label: str | None = None,
    separator: str | None = None, standardize: bool = True, transform: str | Mapping[str, str] | None = None,
    circular: Mapping[str, float] | None = None, test_fraction: float = TEST_FRACTION, seed: int = 0,
    missing: str | None = None,
) -> Dataset:  # fmt: skip
    """The rows of a CSV file with a header, or of a parquet file; column names are kept with a run.

    x is (N, columns); numbers stay in float64 and in their own units. Text belongs in a condition, whose categories are
    numbered in the order of their names (of their numbers, if they are numbers), or in the label.

    Args:
        path: The file.
        test_path: A second file with the test split. None: test_fraction of the first.
        columns: Those of x. None: all but conditions and label.
        condition: Those that the model is conditioned on.
        categories: Those of the conditions whose numbers are categories; text always is.
        label: The column with the class of each row, of text or whole numbers.
        separator: Of a CSV file: a letter, or comma, semicolon, tab, bar. None: found from its header.
        standardize: Give the model (x − mean)/std with each column's mean and std in the training split.
        transform: log, asinh or quantile, of all columns of x, or of some by name, as {mass: log}; its Jacobian is in
            log p.
        circular: Columns of angles by name, with their period, as {phase: 360}.
        missing: "mask": cells of x without a value are gaps, of which the model knows that they are there and nothing
            else; its likelihood is that of what is observed. None: they are refused.
        test_fraction: Share of the rows kept for the test split, when there is no test_path.
        seed: Seed of that split.
    """
    check_split(OWNER, test_fraction, seed)
    check_flag(OWNER, "standardize", standardize)
    for name, chosen in (("columns", columns), ("condition", condition), ("categories", categories)):
        _check_names(name, chosen)
    for name, text in (("label", label), ("test_path", test_path)):
        check_text(OWNER, name, text)
    if separator is not None and not _is_separator(separator):
        raise ValueError(f"{OWNER} needs separator to be one letter, or {', '.join(SEPARATORS)}, got {separator!r}.")
    check_scaling(OWNER, transform, circular)
    check_missing(OWNER, missing)
    found = find(path, f"{OWNER} needs a CSV or parquet file; set data.path to it")
    stored = read_columns(found, separator)
    layout = layout_of(found, stored, columns, condition or (), categories or (), label)
    whole = rows_of(found, stored, layout)
    names = [column.name for column in layout.columns]
    _check_values(found, whole.x, names, gaps=missing is not None)
    scaling: dict[str, Any] = {"transform": transform, "circular": circular}
    check_transforms(str(found), whole.x, names, chosen_transforms(OWNER, names, **scaling)[0])
    if test_path is None:
        train, test = (take(whole, index) for index in split_indices(len(whole), test_fraction, seed))
    else:
        check_no_split(f"{OWNER} with a test_path", test_fraction)
        other = find(test_path, f"{OWNER} needs the CSV or parquet file of data.test_path")
        train, test = whole, rows_of(other, read_columns(other, separator), layout)
        _check_values(other, test.x, names, gaps=missing is not None)
    classes = layout.names.classes
    return Dataset(
        name=found.stem, train=train, test=test, num_classes=None if classes is None else len(classes),
        codec=fit_codec(OWNER, train.x, names, standardize=standardize, **scaling), names=layout.names,
        missing=missing is not None,
    )  # fmt: skip


def layout_of(
    path: Path, stored: Columns, columns: Sequence[str] | None, condition: Sequence[str], categories: Sequence[str],
    label: str | None,
) -> Layout:  # fmt: skip
    """What the columns of a file are, by what was asked for."""
    for name in (*(columns or ()), *condition, *categories, *([] if label is None else [label])):
        _present(path, stored, name)
    if beside := [name for name in categories if name not in condition]:
        raise ValueError(f"{OWNER} has categories={beside[0]}, which is no condition: add it to data.condition.")
    apart = [*condition, *([] if label is None else [label])]
    chosen = [name for name in stored if name not in apart] if columns is None else list(columns)
    if twice := [name for name in apart if name in chosen] or [name for name in apart if apart.count(name) > 1]:
        raise ValueError(f"{OWNER} has the column {twice[0]} twice: in one of columns, condition and label.")
    if not chosen:
        raise ValueError(f"{path} has no column left for x.")
    for name in chosen:
        _check_numbers(path, name, stored[name])
    conditions = tuple(
        Column(name=name, categories=_categories(path, name, stored[name]))
        if stored[name].dtype == object or name in categories
        else Column(name=name)
        for name in condition
    )
    classes = None if label is None else Column(name=label, categories=_categories(path, label, stored[label]))
    return Layout(tuple(Column(name=name) for name in chosen), conditions, classes)


def rows_of(path: Path, stored: Columns, layout: Layout) -> Split:
    """The rows of a file in a layout, which may be that of another: x may hold NaN."""
    for column in (*layout.columns, *layout.conditions):
        _present(path, stored, column.name)
    for column in layout.columns:
        _check_numbers(path, column.name, stored[column.name])
    x = torch.from_numpy(np.stack([stored[column.name] for column in layout.columns], 1))
    condition = label = None
    if layout.conditions:
        parts = [_condition(path, column, stored[column.name]) for column in layout.conditions]
        condition = stored_condition(np.stack(parts, 1))
    if layout.label is not None and layout.label.name in stored:
        label = torch.from_numpy(_numbered(path, layout.label, stored[layout.label.name])).long()
    return Split(x=x, label=label, condition=condition)


def _condition(path: Path, column: Column, values: NDArray[Any]) -> NDArray[np.float64]:
    if column.categories is not None:
        return _numbered(path, column, values).astype(np.float64)
    _check_numbers(path, column.name, values)
    if (bad := ~np.isfinite(values)).any():
        row = int(bad.nonzero()[0][0])
        raise ValueError(f"{path} lacks {int(bad.sum())} values in the condition {column.name} (first: row {row})")
    return values


def _numbered(path: Path, column: Column, values: NDArray[Any]) -> NDArray[np.int64]:
    """Categories by their number."""
    assert column.categories is not None
    number = {name: k for k, name in enumerate(column.categories)}
    words = _words(values)
    for row, word in enumerate(words):
        if word not in number:
            known = ", ".join(column.categories[:8]) + (", ..." if len(number) > 8 else "")
            raise ValueError(
                f"{path} has {word!r} in column {column.name}, row {row} (counted from 0), which is none of its "
                f"categories {known}{did_you_mean(nearest(word, number))}"
            )
    return np.array([number[word] for word in words])


def _categories(path: Path, name: str, values: NDArray[Any]) -> tuple[str, ...]:
    """The names of the categories of a column, in their order."""
    words = _words(values)
    if "" in words:
        raise ValueError(f"{path} has no category in column {name}, row {words.index('')} (counted from 0)")
    found = set(words)
    if len(found) > MOST_CATEGORIES:
        raise ValueError(
            f"{path} has {len(found)} categories in column {name}, more than {MOST_CATEGORIES}: leave it out"
        )
    if len(found) == 1:
        warn(f"column {name} of {path} has one category, {words[0]}, which tells a model nothing", stacklevel=4)
    try:
        return tuple(sorted(found, key=lambda word: (float(word), word)))
    except ValueError:
        return tuple(sorted(found))


def _words(values: NDArray[Any]) -> list[str]:
    if values.dtype == object:
        return [str(value) for value in values]
    return ["" if np.isnan(value) else f"{value:.15g}" for value in values.tolist()]


def _check_numbers(path: Path, name: str, values: NDArray[Any]) -> None:
    if values.dtype != object:
        return
    row, word = next((k, word) for k, word in enumerate(values) if not _is_number(word))
    raise ValueError(
        f"{path} has text in column {name} ({word!r} in row {row}, counted from 0), and x is of numbers: name its "
        f"columns with data.columns=[...], or make it data.condition=[{name}] or data.label={name}"
    )


def _is_separator(word: object) -> bool:
    return isinstance(word, str) and (word in SEPARATORS or (len(word) == 1 and word not in '"\r\n '))


def _is_number(word: str) -> bool:
    try:
        float(word or "nan")
    except ValueError:
        return False
    return True


def _check_values(path: Path, x: Tensor, names: Sequence[str], *, gaps: bool) -> None:
    bad = x.isinf() | x.isnan().all(1, keepdim=True) if gaps else ~x.isfinite()
    if bool(bad.any()):
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{path}: {int(bad.any(1).sum())} of {len(x)} rows lack a value or hold infinity (first: row {row}, "
            f"counted from 0, column {names[column]}); remove or repair them, or set data.missing=mask"
        )


def _present(path: Path, stored: Columns, name: str) -> None:
    if name not in stored:
        known = ", ".join(list(stored)[:8]) + (", ..." if len(stored) > 8 else "")
        raise ValueError(f"{path} has no column {name}, there is {known}{did_you_mean(nearest(name, stored))}")


def _check_names(key: str, chosen: object) -> None:
    if chosen is None:
        return
    listed = isinstance(chosen, list | tuple)
    if not listed or not all(isinstance(name, str) and name for name in chosen) or not chosen:  # type: ignore[attr-defined]
        raise ValueError(f"{OWNER} needs {key} to be names of columns, as [mass, age], or null, got {chosen!r}.")
    if len(set(chosen)) != len(chosen):  # type: ignore[call-overload, arg-type]
        raise ValueError(f"{OWNER} needs {key} to name each column once, got {chosen!r}.")
