"""What a person sees while a run trains."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from scoresde.progress import columns, rate_words
from scoresde.streams import SafeStream


class Progress:
    """A bar on a terminal; elsewhere a plain line at every tenth of the way, and at least every ten minutes.

    Args:
        start: Steps already done.
        steps: Steps in all.
        shown: False for silence.
    """

    def __init__(self, start: int, steps: int, shown: bool = True) -> None:
        self.start = start
        self._began = self._printed = time.perf_counter()
        self._tenth = 10 * start // steps
        self._out = SafeStream(sys.stderr)
        self._lines = shown and not self._out.isatty()
        self._bar = tqdm(
            total=steps, initial=start, desc="training", unit="step", ncols=columns(self._out),
            disable=not shown or self._lines, file=self._out,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps in all, which may change on the way."""
        return int(self._bar.total)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._bar.total = steps

    def advance(self) -> None:
        """One more step is done."""
        self._bar.update(1)

    def report(self, step: int, loss: float, rate: float, noun: str = "examples") -> None:
        """Show the loss and the examples per second; `noun` is what a batch holds."""
        self._bar.set_postfix_str(f"loss {loss:.4g}, {rate_words(rate)} {noun}/s", refresh=False)
        now, tenth = time.perf_counter(), 10 * step // self.steps
        if not self._lines or (tenth == self._tenth and now - self._printed < 600):
            return
        self._tenth, self._printed = tenth, now
        left = (now - self._began) / max(step - self.start, 1) * (self.steps - step)
        words = f"step {step} of {self.steps}   loss {loss:.4g}   {rate_words(rate)} {noun}/s"
        print(f"{words}   {tqdm.format_interval(left)} left", file=self._out, flush=True)

    def close(self) -> None:
        self._bar.close()
