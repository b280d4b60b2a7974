"""How far something that takes long has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from time import perf_counter
from typing import Any

from tqdm import tqdm

from scoresde.streams import SafeStream

QUIET = 3.0  # seconds that go by before the first line
EVERY = 30.0  # seconds between lines at most, or a twentieth of the time since the start
GAP = 2.0  # seconds between lines at least
REFRESH = 0.1  # seconds between two states of a bar


class Progress:
    """A bar on a terminal; elsewhere a line at every tenth of the way and every half minute, none of what is quick.

    Goes to standard error, and never fails: what cannot be said is lost. Used in a `with` block.

    Args:
        what: What takes long: "sampling".
        total: How much there is to do.
        noun: Of what, in the plural: "calls".
        done: How much of it was done before.
    """

    def __init__(self, what: str, total: float = 1.0, noun: str = "", *, done: float = 0.0) -> None:
        self.what, self.total, self.noun = what, total, noun
        self.done = self._before = done
        self._began = self._shown = perf_counter()
        self._tenth = int(10 * done / total) if total else 0
        self._out = SafeStream(sys.stderr)
        self._bar: Any = None
        if self._out.isatty():
            form = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
            self._bar = tqdm(
                total=total, initial=done, desc=what, bar_format=form, leave=False, file=self._out,
                ncols=columns(self._out),
            )  # fmt: skip

    def advance(self, count: float = 1, words: str | None = None) -> None:
        """So much more is done; `words` take the place of "3 of 10 calls"."""
        self.to(self.done + count, words)

    def to(self, done: float, words: str | None = None) -> None:
        """So much is done in all."""
        self.done = min(done, self.total)
        now = perf_counter()
        if self._bar is not None:
            if now - self._shown >= REFRESH or self.done >= self.total:
                self._shown = now
                self._bar.n, self._bar.ncols = self.done, columns(self._out)
                self._bar.set_description_str(f"{self.what}, {self._words(words)}", refresh=True)
            return
        spent, tenth = now - self._began, int(10 * self.done / self.total + 1e-9) if self.total else 0
        since, ended = now - self._shown, self.done >= self.total
        due = tenth > self._tenth or (not ended and since >= max(EVERY, spent / 20))
        if due and spent >= QUIET and (ended or since >= GAP):
            self._tenth, self._shown = tenth, now
            print(f"{self.what}: {self._words(words)}{self._time(spent)}", file=self._out, flush=True)

    @property
    def due(self) -> bool:
        """Whether it is time to find out how far it is, where that costs something."""
        return perf_counter() - self._shown >= (REFRESH if self._bar is not None else min(1.0, GAP))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _words(self, words: str | None) -> str:
        return f"{self.done:,.0f} of {self.total:,.0f} {self.noun}" if words is None else words

    def _time(self, spent: float) -> str:
        if self.done >= self.total:
            return f", in {tqdm.format_interval(spent)}"
        new = self.done - self._before
        return f", {tqdm.format_interval(spent * (self.total - self.done) / new)} left" if new > 0 else ""


def columns(stream: SafeStream) -> int:
    """Of a terminal, for a bar: some say that they have none."""
    try:
        return max(os.get_terminal_size(stream.fileno()).columns, 1) - 1 or 79
    except (OSError, AttributeError, ValueError):
        return 79


def rate_words(rate: float) -> str:
    """A number per second: with a decimal below 10, and two digits below 1."""
    return f"{rate:.2g}" if 0 < rate < 0.95 else f"{rate:.1f}" if rate < 9.95 else f"{rate:.0f}"
