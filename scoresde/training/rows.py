"""CSV files of ours, also after another program has saved them in its own way."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from scoresde.files import open_regular

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
DELIMITERS = ",;\t|"
DECIMAL_COMMA = re.compile(r"([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)")


class Table(NamedTuple):
    """What a CSV file holds.

    Args:
        header: Names of the columns.
        rows: Of as many cells as the header has.
        ours: Whether all of it is as we write it, but for a last line that was cut off.
    """

    header: list[str]
    rows: list[list[str]]
    ours: bool


def read_table(path: Path, first: str) -> Table | None:
    """The rows of a file; None if it is no regular file or no table.

    A byte-order mark, UTF-16, other ends of lines, other delimiters, decimal commas and quotes are understood.

    Args:
        path: The file.
        first: Name of the first column in a file of ours.
    Raises:
        FileNotFoundError: If there is no such file.
    """
    if path.is_symlink():
        return None
    try:
        with open_regular(path) as file:
            content = file.read()
    except ValueError:
        return None
    if not content:
        return Table([], [], ours=True)
    try:
        own = _ours(content, first)
        header, *lines = own or _foreign(content)
    except (ValueError, csv.Error):
        return None
    rows = [line for line in lines if len(line) == len(header)]
    return Table(header, rows, bool(own) and len(rows) == len(lines) and len(set(header)) == len(header))


def last_step(path: Path, limit: int) -> int:
    """The largest step up to a limit that has a row in a run's metrics; 0 if there is none."""
    found = read_table(path, "step") if path.is_file() else None
    steps = [int(row[0]) for row in (found.rows if found else []) if row[0].isdecimal()]
    return max((step for step in steps if step <= limit), default=0)


def table_bytes(lines: Iterable[Sequence[object]]) -> bytes:
    """Lines as we write them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode()


def free_name(path: Path) -> Path:
    """The first of name-1.csv, name-2.csv, ... that is free."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}-{number}{path.suffix}")):
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Give a file the first free name; returns that."""
    aside = free_name(path)
    os.rename(path, aside)
    return aside


def _ours(content: bytes, first: str) -> list[list[str]]:
    """The lines of a file that we wrote, without a last one that was cut off; none if it is not ours."""
    end = content.rfind(b"\n") + 1
    whole, cut = content[:end], content[end:]
    try:
        lines = list(csv.reader(io.StringIO(whole.decode(), newline="")))
        last = next(csv.reader([cut.decode(errors="replace")]), [])
    except (ValueError, csv.Error):
        return []
    ours = bool(lines) and lines[0][:1] == [first] and len(last) < len(lines[0]) and table_bytes(lines) == whole
    return lines if ours else []


def _foreign(content: bytes) -> list[list[str]]:
    """The lines of a file that another program has written."""
    encoding = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), "utf-8")
    text = content.decode(encoding)
    first, _, rest = text.partition("\n")
    if first.startswith("sep="):  # of a spreadsheet
        text, first = rest, rest.partition("\n")[0]
    delimiter = max(DELIMITERS, key=first.count)
    lines = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line]
    if delimiter == ",":
        return lines
    return [[DECIMAL_COMMA.sub(r"\1.\2", cell) if DECIMAL_COMMA.fullmatch(cell) else cell for cell in line]
            for line in lines]  # fmt: skip
