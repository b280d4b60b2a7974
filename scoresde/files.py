"""Files read and written with care: regular ones, whole or not at all, and never through a link out of a run."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import BinaryIO, TextIO

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # which Windows lacks
_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp")
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
                f"nothing is written through {place}: it is a link that leads out of {root}, to "
                f"{os.path.realpath(place)}; remove the link, or choose another place."
            )
    return Path(path)


def write_atomically(path: str | Path, *parts: bytes | memoryview) -> None:
    """Write a file under a new random name in its folder, flush it to the disk, then rename it.

    A link of the file's name is replaced, not followed.

    Raises:
        OSError: If that fails; the temporary file is then removed.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    created = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(created, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
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


def remove_leftovers(folder: str | Path) -> None:
    """Remove what `write_atomically` left in a folder when it was killed; for the only process that writes there."""
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            os.unlink(entry.path)


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
