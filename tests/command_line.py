"""Running the command lines inside the tests' own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def command(main: Callable[[], Any], *arguments: str) -> None:
    """Run an entry point as if its script had been called with these arguments."""
    argv, sys.argv = sys.argv, [main.__name__.replace("_main", ".py"), *arguments]
    try:
        main()
    finally:
        sys.argv = argv


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """With `folder` as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
