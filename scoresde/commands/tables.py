"""A CSV file that grows batch by batch, says what it belongs to, and can be gone on with."""

from __future__ import annotations

import csv
import io
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

from scoresde.files import open_append, write_atomically
from scoresde.training.lock import locked
from scoresde.training.rows import free_name, set_aside

Row = dict[str, str]
CHECK = "check"  # last column: a checksum of the row, of all rows before it, and of what they belong to


class GrowingTable:
    """Rows on disk, and beside them a JSON file of the same name with what they belong to.

    Inside its `with` block no other process has it. Every `append` is whole on disk before it returns, and nothing is
    touched before the first. A table of something
    else is then set aside as name-1.csv, name-2.csv, ..., and so is one with rows that are not what was written: those
    before them are gone on with. A last line that was cut off is dropped.

    Args:
        path: The CSV file.
        columns: Names of the columns.
        identity: All that the rows depend on, as plain JSON values.
        resume: Go on with the rows that are there; False: replace them, if they are of a table of ours.
    Attributes:
        rows: Those on disk, as text by column.
        aside: Where another table has gone, or will go; None if there is none.
        trouble: What to say of a table that could not be gone on with as it was; empty otherwise.
    """

    def __init__(self, path: Path, columns: Sequence[str], identity: Mapping[str, Any], *, resume: bool = True) -> None:
        if path.is_dir() or path.suffix != ".csv":
            raise ValueError(f"the table of likelihoods needs a name that ends in .csv, got {path}.")
        self.path, self.columns, self.resume = path, list(columns), resume
        self.identity = json.loads(json.dumps(identity))
        self.rows: list[Row] = []
        self.aside: Path | None = None
        self.trouble = ""
        self._sum = 0
        self._file: TextIO | None = None
        self._stack = ExitStack()

    def __enter__(self) -> GrowingTable:
        try:
            new = not self.path.parent.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritable(error) from None
        self._stack.callback(self._leave, new)
        with ExitStack() as undo:
            undo.callback(self._stack.close)
            self._stack.enter_context(locked(self.path.with_name(f"{self.path.name}.lock"), f"the table {self.path}"))
            self._take_up()
            undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

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
        try:
            self._file.write("".join(map(self._line, lines)))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        self.rows += lines

    def _line(self, row: Row) -> str:
        """A row with its check, which goes on from the line that was made before."""
        cells = [row[name] for name in self.columns]
        self._sum = zlib.crc32(_csv(cells).encode(), self._sum)
        return _csv([*cells, f"{self._sum:08x}"])

    def _restart(self) -> str:
        """The header; the next line is that of the first row."""
        self._sum = zlib.crc32(json.dumps([self.identity, self.columns], sort_keys=True).encode())
        return _csv([*self.columns, CHECK])

    def _known(self) -> Any:
        try:
            return json.loads(self.sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _take_up(self) -> None:
        """The rows that are there and are what was written."""
        known = self._known()
        if not self.resume and isinstance(known, dict):
            return
        if not self.path.is_file():
            if known == self.identity:
                self.trouble = f"{self.path} is missing: its rows are evaluated again"
            return
        if known != self.identity:
            self.aside = free_name(self.path)
            what = "of another model, data or options" if known else f"whose {self.sidecar.name} is missing or damaged"
            self.trouble = f"the {self.path} {what} is now {self.aside}"
            return
        content = self.path.read_bytes()
        known_until = self._read(content.decode(errors="replace"))
        rest = content[known_until:]
        if rest or not content:
            self.aside = None if known_until and b"\n" not in rest else free_name(self.path)
            then = f"; as it was it is now {self.aside}" if self.aside else ""
            self.trouble = (
                f"{self.path} was cut off or changed after row {len(self.rows)}, and goes on from there{then}"
            )

    def _read(self, text: str) -> int:
        """Take up rows as long as each is the line that was written; returns the length of these lines in bytes."""
        header = self._restart()
        at = len(header)
        if not text.startswith(header):
            return 0
        try:
            for cells in csv.reader(io.StringIO(text[at:], newline="")):
                row = dict(zip(self.columns, cells, strict=False))
                if len(cells) != len(self.columns) + 1 or not text.startswith(line := self._line(row), at):
                    break
                self.rows.append(row)
                at += len(line)
        except csv.Error:  # of what no table of ours holds
            pass
        return len(text[:at].encode())

    def _open(self) -> TextIO:
        """The file for appending, with the rows that were kept."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.aside is not None:
                if self.sidecar.is_file():
                    self.sidecar.replace(self.aside.with_suffix(".json"))
                self.aside = set_aside(self.path)
            write_atomically(self.sidecar, json.dumps(self.identity, indent=2).encode())
            write_atomically(self.path, "".join([self._restart(), *map(self._line, self.rows)]).encode())
            return open_append(self.path)
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> OSError:
        why = error.strerror or error
        return OSError(f"cannot write {self.path}: {why}. Mend that, or choose another place with out=...")

    def _leave(self, new: bool) -> None:
        if self._file is not None:
            with suppress(OSError):  # all that was appended is on disk
                self._file.close()
            self._file = None
        if new:
            with suppress(OSError):  # it is not empty
                self.path.parent.rmdir()


def _csv(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _cell(value: Any) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value)
