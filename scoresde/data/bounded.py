"""Files of data read in memory in proportion to their size: what packed files claim is judged before it is unpacked."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

from scoresde.files import open_regular

ROOM = 2**24  # bytes that any file may unpack to
PICTURE_ROOM = 2**26
RATIO = 50  # and, beyond that, bytes per byte of the file
LARGEST_PICKLE = 2**26


class TooLarge(ValueError):
    """A file would unpack to far more than itself."""


def check_unpacked(path: str | Path, unpacked: int, packed: int, room: int = ROOM) -> None:
    """Raise TooLarge if bytes unpack to so many more that they are meant to fill the memory."""
    if unpacked > max(room, RATIO * packed):
        raise TooLarge(
            f"{path} would unpack from {packed:,} to {unpacked:,} bytes, as no data do: if it is meant, write "
            f"it without compression."
        )


def read_members(path: Path, wanted: Collection[str]) -> dict[str, NDArray[np.generic]]:
    """Arrays of a .npz file by name, those that are wanted and there; the one of a .npy file as x."""
    with open_regular(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not zipfile.is_zipfile(file):
            file.seek(0)
            return {"x": _array(file, size)}
        with zipfile.ZipFile(file) as archive:
            found = {}
            for name in wanted:
                if f"{name}.npy" in archive.namelist():
                    member = archive.getinfo(f"{name}.npy")
                    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise ValueError("numpy writes no members like these")
                    check_unpacked(path, member.file_size, min(member.compress_size, size))
                    with archive.open(member) as content:
                        found[name] = _array(content, member.file_size)
            return found


def member_names(path: Path) -> list[str]:
    """Names of the arrays in a .npz file; x for a .npy file."""
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            return ["x"]
        with zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _array(file: IO[bytes], size: int) -> NDArray[np.generic]:
    """One array of plain numbers, of as many bytes as there are."""
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("not an array of plain numbers")
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    start = file.tell()
    if dtype.hasobject or dtype.itemsize == 0 or math.prod(shape) * dtype.itemsize != size - start:
        raise ValueError("it holds another number of bytes than it says")
    content = bytearray(size - start)
    if file.readinto(content) != len(content) or file.read(1):  # type: ignore[attr-defined]
        raise ValueError("it is incomplete")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def open_picture(content: IO[bytes], where: str | Path, formats: Collection[str]) -> Image.Image:
    """A picture of one of these formats whose pixels are in proportion to its file; they are not decoded yet."""
    size = content.seek(0, io.SEEK_END)
    content.seek(0)
    picture = Image.open(content, formats=tuple(formats))
    check_unpacked(where, 4 * math.prod(picture.size), size, PICTURE_ROOM)
    return picture


def read_small(path: Path) -> bytes:
    """The content of a regular file that is not larger than what is unpickled here."""
    with open_regular(path) as file:
        content = file.read(LARGEST_PICKLE + 1)
    if len(content) > LARGEST_PICKLE:
        raise TooLarge(f"{path} is larger than {LARGEST_PICKLE >> 20} MB, as no batch of CIFAR-10 is.")
    return content
