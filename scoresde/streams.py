"""Standard output and error that cannot fail: what a program says never decides whether its work is done."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

PLAIN = {"±": "+/-", "−": "-", "·": "*", "→": "->", "…": "...", "α": "alpha", "σ": "sigma", "‖": "|"}


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """What a console has no character for, in those that it has; the rest as escapes."""
    assert isinstance(error, UnicodeEncodeError)
    missing = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in missing), error.end


codecs.register_error("scoresde.plain", _in_plain)


class SafeStream:
    """A text stream whose writing never raises: on a full device, or where nobody reads, the words are lost.

    Args:
        stream: Where to write, in any encoding; None: nowhere.
    """

    def __init__(self, stream: Any) -> None:
        self._stream: Any = stream._stream if isinstance(stream, SafeStream) else stream

    def write(self, text: str) -> int:
        with suppress(Exception):  # OSError; ValueError of a closed stream; whatever a notebook's own stream raises
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:
                self._stream.write(text.encode(error.encoding, "scoresde.plain").decode(error.encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with suppress(Exception):
            self._stream.flush()

    def isatty(self) -> bool:
        try:
            return bool(self._stream.isatty())
        except Exception:
            return False

    def __getattr__(self, name: str) -> Any:
        if name == "_stream":
            raise AttributeError(name)
        return getattr(self._stream, name)


def say(sentence: str) -> None:
    """Print a line on standard output, or lose it."""
    print(sentence, file=SafeStream(sys.stdout), flush=True)


@contextmanager
def held_back() -> Iterator[io.StringIO]:
    """What is printed inside the `with` block is kept, to be said once the files are written; an error lets it out."""
    words = io.StringIO()
    try:
        with redirect_stdout(words):
            yield words
    except BaseException:
        print(words.getvalue(), end="", file=SafeStream(sys.stdout), flush=True)
        raise


def make_streams_safe() -> None:
    """Standard output and error are `SafeStream`s from here on, also while Python flushes them at its end."""
    for number in range(3):  # a closed one would be given to the next file that is opened, and C code writes to it
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)  # type: ignore[assignment]
