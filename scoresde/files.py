"""Files read and written with care: regular ones, whole or not at all, and never through a link out of a run."""

from __future__ import annotations

import os
import re
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, TextIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # which Windows lacks
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading, if it is a regular one or a link to one: reading a pipe or a device may never end.

    Raises:
        OSError: If there is none, as `open` does.
        ValueError: If it is something else.
    """
    check_regular(path)
    return open(path, "rb")


def check_regular(path: str | Path) -> None:
    """Raise as `open_regular` does."""
    kind = stat.S_IFMT(os.stat(path).st_mode)
    if kind != stat.S_IFREG:
        raise ValueError(f"{path} is {_KINDS.get(kind, 'no regular file')}: a regular file is needed.")


def inside(root: str | os.PathLike[str], path: str | Path) -> Path:
    """The path, unless it lies in the folder `root` by its name and a link within that folder leads out of it.

    A run may come from elsewhere, and what is written to it must not land in the user's other files. A link above the
    folder, and a path that is elsewhere by its name, are the user's own.

    Raises:
        ValueError: If a link leads out, naming it.
    """
    top, full = os.path.abspath(root), os.path.abspath(path)
    if full == top or os.path.commonpath([top, full]) != top:
        return Path(path)
    place, home = top, os.path.realpath(top)
    for name in os.path.relpath(full, top).split(os.sep):
        place = os.path.join(place, name)
        if os.path.islink(place) and os.path.commonpath([home, os.path.realpath(place)]) != home:
            raise ValueError(
                f"nothing is written through {place}: it is a link that leads out of {os.fspath(root)}, to "
                f"{os.path.realpath(place)}; remove the link, or choose another place."
            )
    return Path(path)


def write_atomically(path: str | Path, *parts: bytes | memoryview, keep: Path | None = None) -> None:
    """Write a file under a new random name in its folder, flush it to the disk, then rename it.

    A link of the file's name is replaced, not followed. What a process that was killed here has left is removed.

    Args:
        path: The file.
        parts: What it holds, one after the other.
        keep: Name in the same folder for the file that is replaced; there is no moment at which neither has its name.
    Raises:
        OSError: If that fails; the temporary file is then removed.
    """
    path = Path(path)
    _remove_leftovers(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    created = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(created, "wb") as file:
            try_lock(file.fileno())  # until it has its name
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if keep is not None:
                _keep(path, keep)
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _keep(path: Path, name: Path) -> None:
    """Give a file, if there is one, a second name; where a file can have only one, that name alone."""
    if not os.path.lexists(path):
        return
    second = name.with_name(f"{name.name}.{secrets.token_hex(8)}.tmp")
    _remove_leftovers(name)
    try:
        os.link(path, second, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.replace(path, name)
        return
    try:
        os.replace(second, name)
    finally:
        second.unlink(missing_ok=True)  # it stays where both were names of one file already


def _remove_leftovers(path: Path) -> None:
    """Remove what `write_atomically` has left of a file when it was killed, but not what another process writes."""
    for entry in os.scandir(path.parent):
        mine = entry.name.startswith(f"{path.name}.") and _TEMPORARY.fullmatch(entry.name[len(path.name) :])
        if not mine or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(OSError), open(entry.path, "rb") as file:
            if try_lock(file.fileno()):
                os.unlink(entry.path)


def try_lock(opened: int) -> bool | None:
    """Lock a file until it is closed; False if it is locked already, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # as on some file systems of a network
        return None
    return True


def open_append(path: str | Path) -> TextIO:
    """Open a text file, new or to be gone on with, for appending; lines end as they are written.

    Raises:
        OSError: If that fails.
        ValueError: If its name is a link, or it is no regular file.
    """
    if os.path.islink(path):
        raise ValueError(f"nothing is written through {path}: it is a link; remove it, or choose another place.")
    if os.path.exists(path):
        check_regular(path)
    opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
    return os.fdopen(opened, "a", encoding="utf-8", newline="")
