"""Signals as a wish to stop after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

ALWAYS = ("SIGINT", "SIGTERM")
UNLESS_USED = ("SIGHUP", "SIGUSR1", "SIGXCPU")  # a closed terminal, a batch system's warning, its limit; not on Windows


class Interrupted(SystemExit):
    """A run was stopped by a signal and its state is saved. The exit status is 128 + signal: 130, 143, ..."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class StopSignals:
    """Inside the `with` block the first signal that asks to stop is noted in `received`.

    A second SIGINT acts as before; other signals may come again while the state is saved, as a batch system sends them.
    SIGHUP, SIGUSR1 and SIGXCPU are left alone where something else has been told to answer or, as by `nohup`, to ignore
    them. Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for name in (*ALWAYS, *UNLESS_USED):
                signum = getattr(signal, name, None)
                if signum is not None and (name in ALWAYS or signal.getsignal(signum) is signal.SIG_DFL):
                    self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for signum in [*self._previous]:
            self._restore(signum)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signum
        self._restore(signal.SIGINT)

    def _restore(self, signum: int) -> None:
        if signum in self._previous:
            handler = self._previous.pop(signum)
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
