"""CSV and parquet files as columns of numbers or of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from scoresde.data.bounded import PICTURE_ROOM, TooLarge, check_unpacked
from scoresde.files import check_regular, open_regular

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
NOTHING = ("", "na", "n/a", "nan", "null", "none", "#n/a", "<na>")  # cells without a value, in small letters
PARQUET = (".parquet", ".pq")
ENCODINGS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))

Columns = dict[str, NDArray[Any]]  # float64, NaN where there is nothing, or text, "" where there is nothing


def read_columns(path: Path, separator: str | None = None) -> Columns:
    """The columns of a CSV file with a header, or of a parquet file, by name.

    Args:
        path: The file; parquet by its ending.
        separator: Of a CSV file: a letter, or comma, semicolon, tab, bar; None: the one of these that divides its
            header into most parts.
    """
    if path.suffix.lower() in PARQUET:
        return _parquet(path)
    with open_regular(path) as file:
        content = file.read()
    encoding = next((name for mark, name in ENCODINGS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}): save it as CSV in UTF-8") from None
    try:
        return _csv(path, text, separator)
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV file: {error}") from None


def _csv(path: Path, text: str, separator: str | None) -> Columns:
    separator = _separator(text) if separator is None else SEPARATORS.get(separator, separator)
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    if not rows:
        raise ValueError(f"{path} is empty")
    header = [name.strip() for name in rows[0]]
    if all(_number(name, separator) is not None for name in header):
        warn(f"{path} has no header: its columns are called 0 to {len(header) - 1}", stacklevel=4)
        header = [str(k) for k in range(len(header))]
    else:
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} has a header and no rows")
    for row, cells in enumerate(rows):
        if len(cells) != len(header):
            raise ValueError(
                f"{path} has {len(cells)} values in row {row} (counted from 0), where its header has {len(header)} "
                f"columns: {', '.join(header[:8])}"
            )
    return _named(path, header, [_column(cells, separator) for cells in zip(*rows, strict=True)])


def _named(path: Path, header: Sequence[str], columns: Sequence[NDArray[Any]]) -> Columns:
    """Columns by name, without those that have neither; row numbers without a name are left out with a word."""
    found: Columns = {}
    for name, values in zip(header, columns, strict=True):
        if name in found:
            raise ValueError(f"{path} has two columns called {name}: rename one")
        if name:
            found[name] = values
        elif values.dtype.kind == "f" and np.array_equal(values, np.arange(len(values))):
            warn(f"a column without a name in {path} holds row numbers, and is left out", stacklevel=5)
        elif not (values.dtype.kind == "f" and np.isnan(values).all()):
            raise ValueError(f"{path} has a column without a name: name it in the first line")
    return found


def _separator(text: str) -> str:
    """The separator that divides the first line into most parts; a comma if none does."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max(SEPARATORS.values(), key=lambda separator: len(next(csv.reader([first], delimiter=separator), [])))


def _column(cells: Sequence[str], separator: str) -> NDArray[Any]:
    """Numbers if all cells with something in them are, text otherwise."""
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        pass
    numbers = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        number = _number(cell, separator)
        if number is None:
            return np.array([text.strip() for text in cells], dtype=object)
        numbers[row] = number
    return numbers


def _number(cell: str, separator: str) -> float | None:
    """A number, NaN of nothing, None of text; decimal commas where commas do not separate."""
    word = cell.strip()
    if word.lower() in NOTHING:
        return np.nan
    try:
        return float(word)
    except ValueError:
        pass
    try:
        return float(word.replace(",", ".")) if separator != "," and word.count(",") == 1 else None
    except ValueError:
        return None


def _parquet(path: Path) -> Columns:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow, which is not installed: pip install 'scoresde[data]'") from error
    try:
        check_regular(path)
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        check_unpacked(path, 8 * file.metadata.num_rows * len(names), path.stat().st_size, PICTURE_ROOM)
        table = file.read()
        columns = [_values(pyarrow, table.column(k)) for k in range(len(names))]
    except TooLarge:
        raise
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    return _named(path, ["" if name.startswith("__index_level_") else name for name in names], columns)


def _values(pyarrow: Any, column: Any) -> NDArray[Any]:
    kinds, kind = pyarrow.types, column.type
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_decimal(kind):
        return np.asarray(column.cast(pyarrow.float64()).to_numpy(), dtype=np.float64)
    return np.array(["" if value is None else str(value) for value in column.to_pylist()], dtype=object)
