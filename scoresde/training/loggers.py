"""Where metrics and pictures of a run go."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from scoresde.files import open_append, write_atomically
from scoresde.training.run import RunDirectory


@runtime_checkable
class Logger(Protocol):
    """Receives what a run reports. Calls come in the order start, any number of log and image, close."""

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
    of a run which was never stopped, timings apart.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.path = run.metrics
        self._columns: list[str] | None = None

    def start(self, step: int) -> None:
        if not self.path.is_file():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            whole = [row for row in rows if len(row) == len(header) and row[0].isdigit() and int(row[0]) <= step]
            if header[:1] != ["step"] or not whole:
                self.path.unlink()
                return
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([header, *whole])
            write_atomically(self.path, text.getvalue().encode())
        except OSError as error:
            raise OSError(f"cannot continue {self.path}: {error.strerror or error}.") from error
        self._columns = header

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        fresh = self._columns is None
        if self._columns is None:
            self._columns = list(row)
        if set(row) != set(self._columns):
            raise ValueError(f"{self.path} has columns {', '.join(self._columns)}, got {', '.join(row)}.")
        try:
            if fresh:
                write_atomically(self.path, f"{','.join(self._columns)}\n".encode())
            with open_append(self.path) as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
        except OSError as error:
            raise OSError(f"cannot write {self.path}: {error.strerror or error}.") from error

    def image(self, step: int, path: Path) -> None:
        pass

    def close(self) -> None:
        pass


class MultiLogger:
    """Several loggers as one."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self.loggers = list(loggers)

    def start(self, step: int) -> None:
        for logger in self.loggers:
            logger.start(step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log(step, metrics)

    def image(self, step: int, path: Path) -> None:
        for logger in self.loggers:
            logger.image(step, path)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
