"""One process at a time for what cannot be written by two."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scoresde.files import open_regular, try_lock

_held: dict[str, tuple[int, int]] = {}  # real path of a lock -> (the thread that has it, its open file)


class InUse(BlockingIOError):
    """Another process has what is asked for; the message says which, where and since when."""


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Inside the `with` block this thread alone has what a lock file stands for; again inside it does nothing.

    The operating system frees the lock of a process that has ended, however it did; its file is taken over. Where the
    file system has no locks, one is held as long as the process that its file names is there. Where nothing can be
    written, nothing is locked.

    Args:
        path: The lock file, which is made, and removed at the end.
        what: What it stands for, for the message.
    Raises:
        InUse: If another has it.
        ValueError: If the file is a link, or none of ours.
    """
    key = os.path.realpath(path)
    thread = threading.get_ident()
    if key in _held and _held[key][0] == thread:
        yield
        return
    opened = _open(path, what)
    if opened is None:
        yield
        return
    _held[key] = thread, opened
    try:
        yield
    finally:
        del _held[key]
        with suppress(OSError):
            if os.path.samestat(os.fstat(opened), os.lstat(path)):
                os.unlink(path)
        os.close(opened)


def remove_stale(path: Path) -> None:
    """Remove a lock file whose process has been killed."""
    with suppress(OSError, ValueError):
        if not path.is_symlink() and path.is_file():
            with open_regular(path) as file:
                if try_lock(file.fileno()) and os.path.samestat(os.fstat(file.fileno()), os.lstat(path)):
                    os.unlink(path)


def _open(path: Path, what: str) -> int | None:
    """The lock file, locked and with our name in it; None where nothing can be written."""
    while True:
        if path.is_symlink():
            raise ValueError(f"nothing is written through {path}: it is a link; remove it.")
        try:
            opened = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return None
            raise
        try:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise ValueError(f"{path} is no regular file: remove it.")
            free, holder = try_lock(opened), _holder(opened)
            if free is False or (free is None and _may_live(holder)):
                raise InUse(_in_use(what, path, holder, bool(free is None)))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(opened), os.lstat(path)):  # else its last holder has just removed it
                    os.ftruncate(opened, 0)
                    os.pwrite(opened, json.dumps(_ourselves(), indent=2).encode(), 0)
                    return opened
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)


def _ourselves() -> dict[str, Any]:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"host": socket.gethostname(), "pid": os.getpid(), "command": command[:500], "since": since}


def _holder(opened: int) -> dict[str, str]:
    """What a lock file says, as text that can be printed."""
    try:
        said = json.loads(os.pread(opened, 4096, 0))
        return {key: "".join(c for c in str(said[key]) if c.isprintable())[:200] for key in _ourselves()}
    except (ValueError, KeyError, TypeError):
        return {}


def _may_live(holder: dict[str, str]) -> bool:
    if not holder:
        return False
    if holder["host"] != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:
        return True
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    return True


def _in_use(what: str, path: Path, holder: dict[str, str], by_name: bool) -> str:
    who = "another process"
    if holder:
        who = f"process {holder['pid']} on {holder['host']} ({holder['command']}) since {holder['since']}"
    gone = f"; if that has ended, remove {path}" if by_name else ""
    return f"{what} is in use by {who}: wait until it ends, or stop it{gone}."


def _forget() -> None:
    """A child process has no lock of its parent's, and must not keep one when the parent ends."""
    for _, opened in _held.values():
        os.close(opened)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
