"""A CSV file that grows batch by batch, says what it belongs to, and can be gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from scoresde.files import open_append, write_atomically

Row = dict[str, str]


class GrowingTable:
    """Rows on disk, and beside them a JSON file of the same name with what they belong to.

    Every `append` is whole on disk before it returns, and nothing is touched before the first. A table of something
    else is then set aside as name-1.csv, name-2.csv, ...; a last line that was cut off is dropped.

    Args:
        path: The CSV file.
        columns: Names of the columns.
        identity: All that the rows depend on, as plain JSON values.
        resume: Go on with the rows that are there; False: replace them.
    Attributes:
        rows: Those on disk, as text by column.
        aside: Where another table has gone, or will go; None if there is none.
    """

    def __init__(self, path: Path, columns: Sequence[str], identity: Mapping[str, Any], *, resume: bool = True) -> None:
        self.path, self.columns = path, list(columns)
        self.identity = json.loads(json.dumps(identity))
        self.rows: list[Row] = []
        self.aside: Path | None = None
        self._file: TextIO | None = None
        if path.is_dir() or path.suffix != ".csv":
            raise ValueError(f"the table of likelihoods needs a name that ends in .csv, got {path}.")
        if resume and path.is_file():
            if self._known() == self.identity:
                self.rows = list(self._read())
            else:
                self.aside = self._free_name()

    @property
    def sidecar(self) -> Path:
        """The JSON file."""
        return self.path.with_suffix(".json")

    def keep(self, count: int) -> None:
        """Forget all rows but the first `count`."""
        self.rows = self.rows[:count]

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; what a column has no value for stays empty."""
        if self._file is None:
            self._file = self._open()
        lines = [{name: _cell(row.get(name)) for name in self.columns} for row in rows]
        self._file.write(self._text(lines).decode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows += lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _text(self, lines: Sequence[Row]) -> bytes:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([line[name] for name in self.columns] for line in lines)
        return buffer.getvalue().encode()

    def _known(self) -> Any:
        try:
            return json.loads(self.sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _read(self) -> Iterator[Row]:
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = csv.reader(io.StringIO(whole))
        if next(lines, None) != self.columns:
            return
        for line in lines:
            if len(line) != len(self.columns):
                return
            yield dict(zip(self.columns, line, strict=True))

    def _open(self) -> TextIO:
        """The file for appending, with the rows that were kept."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.aside is not None:
                if self.sidecar.is_file():
                    self.sidecar.replace(self.aside.with_suffix(".json"))
                self.path.replace(self.aside)
            write_atomically(self.sidecar, json.dumps(self.identity, indent=2).encode())
            write_atomically(self.path, self._text([dict(zip(self.columns, self.columns, strict=True)), *self.rows]))
            return open_append(self.path)
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror}. Choose another place with out=...") from None

    def _free_name(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"{self.path.stem}-{number}.csv")).exists():
            number += 1
        return aside


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
