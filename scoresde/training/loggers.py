"""Where metrics and pictures of a run go."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from scoresde.files import open_append, write_atomically
from scoresde.streams import say
from scoresde.training.rows import Table, free_name, read_table, set_aside, table_bytes
from scoresde.training.run import RunDirectory


@runtime_checkable
class Logger(Protocol):
    """Receives what a run reports. Calls come in the order start, any number of log and image, close.

    What it raises is said once, and training goes on.
    """

    def start(self, step: int) -> None:
        """The run goes on after `step` finished steps; anything logged beyond that will be logged again."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics after `step` finished steps; the names are the same at every call."""

    def image(self, step: int, path: Path) -> None:
        """A picture on disk, made after `step` finished steps."""

    def close(self) -> None:
        """The run has ended or was stopped."""


class CSVLogger:
    """Rows of metrics in the run's metrics.csv.

    A resumed run first drops the rows beyond the step that it resumes from, so that the file ends up as that
    of a run which was never stopped, timings apart. A file that another program has changed is set aside as
    metrics-1.csv, ..., and its rows are gone on with where they can be understood. Rows that cannot be written are
    kept, and written with a later one.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.metrics
        self._columns: list[str] = []  # of the file, as long as it is there
        self._inherited = False  # whether an earlier session chose them
        self._waiting: list[dict[str, Any]] = []
        self._failing = False
        self._stamp: tuple[int, ...] | None = None  # of the file, as it was left

    def start(self, step: int) -> None:
        self._waiting = []
        self._attempt(partial(self._take_up, step))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row: dict[str, Any] = {"step": step, **metrics}
        if self._columns and not self._inherited and set(row) != set(self._columns):
            raise ValueError(f"{self.path} has columns {', '.join(self._columns)}, got {', '.join(row)}.")
        self._waiting.append(row)
        self._attempt(self._write)

    def image(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        if self._waiting:
            self._attempt(self._write)

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
            self._failing = False
        except OSError as error:
            self._columns, self._stamp = [], None  # look at the file again before anything is added to it
            if not self._failing:
                say(
                    f"cannot write {self.path} ({error.strerror or error}): training goes on, and the rows are kept "
                    f"until they can be written."
                )
            self._failing = True

    def _take_up(self, step: int) -> None:
        """Go on with the rows up to a step, whoever wrote them."""
        self._columns, self._stamp = [], None
        if not os.path.lexists(self.path):
            return
        header, rows, ours = read_table(self.path, "step") or Table([], [], ours=False)
        if header[:1] != ["step"] or len(set(header)) != len(header):
            rows = []
        kept = [row for row in rows if row[0].isdecimal() and int(row[0]) <= step]
        steps = [int(row[0]) for row in rows if row[0].isdecimal()]
        ours = ours and len(steps) == len(rows) and steps == sorted(set(steps))
        if not ours:
            aside = free_name(self.path) if kept else set_aside(self.path)
            if kept:
                write_atomically(aside, self.path.read_bytes())
            what = f"its rows up to step {kept[-1][0]} are gone on with" if kept else "a new one begins"
            say(f"{self.path} has been changed by another program: it is {aside.name} from now on, and {what}.")
        if kept:
            write_atomically(self.path, table_bytes([header, *kept]))
            self._columns, self._inherited, self._stamp = header, True, self._present_stamp()

    def _write(self) -> None:
        """Add the rows that wait."""
        if self._stamp != self._present_stamp():
            self._take_up(self._waiting[0]["step"] - 1)
        names = list(self._waiting[0])
        if self._columns and set(names) != set(self._columns):
            say(f"{self.path} has other columns than are logged now: it is {set_aside(self.path).name} from now on.")
            self._columns = []
        if not self._columns:
            write_atomically(self.path, table_bytes([names]))
            self._columns = names
        with open_append(self.path) as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerows(self._waiting)
        self._waiting, self._inherited, self._stamp = [], False, self._present_stamp()

    def _present_stamp(self) -> tuple[int, ...] | None:
        """What tells whether the file is still as it was left."""
        if not os.path.lexists(self.path):
            return None
        now = os.lstat(self.path)
        return now.st_ino, now.st_size, now.st_mtime_ns


def writes_rows(logger: Logger) -> bool:
    """Whether a logger writes the run's metrics.csv."""
    return isinstance(logger, CSVLogger) or (isinstance(logger, MultiLogger) and any(map(writes_rows, logger.loggers)))


class MultiLogger:
    """Several loggers as one. A log that cannot be written never ends training: that is said once for each.

    Args:
        loggers: Each gets every call, also where another one fails.
    """

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)
        self._failed: set[int] = set()

    def start(self, step: int) -> None:
        self._each(lambda logger: logger.start(step))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each(lambda logger: logger.log(step, metrics))

    def image(self, step: int, path: Path) -> None:
        self._each(lambda logger: logger.image(step, path))

    def close(self) -> None:
        self._each(lambda logger: logger.close())

    def _each(self, call: Callable[[Logger], None]) -> None:
        for number, logger in enumerate(self.loggers):
            try:
                call(logger)
            except Exception as error:
                if number not in self._failed:
                    reason = " ".join(str(error).split()) or type(error).__name__
                    say(f"{type(logger).__name__} failed ({reason.rstrip('.')}): training goes on.")
                self._failed.add(number)
