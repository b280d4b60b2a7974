"""Small files that would fill the memory, and things that are no files, are refused before they are read."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns.attack_files import npy, packed

from scoresde.data import array, cifar10, image_folder
from scoresde.data.handwritten import read_idx
from scoresde.interop.score_sde import _read

ZEROS = npy((2**26,), "|u1", bytes(2**26))
FEW = npy((40, 2), "<f4",
          np.random.default_rng(0).standard_normal((40, 2)).astype("f4").tobytes())  # fmt: skip


def png(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(min(height * (width + 1), 2**24)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def cifar(folder: Path, content: bytes) -> Any:
    good = pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(good)
    (folder / "data_batch_2").write_bytes(content)
    return cifar10(folder)


class Asks:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


ATTACKS: dict[str, Callable[[Path], Any]] = {
    "npz": lambda p: array(packed(p / "a.npz", x=ZEROS)),
    "npz label": lambda p: array(packed(p / "a.npz", x=FEW, y=ZEROS)),
    "npz header": lambda p: array(packed(p / "a.npz", x=FEW.replace(b"(40, 2)", b"(9**9)"))),
    "npy header": lambda p: ((p / "a.npy").write_bytes(FEW.replace(b"(40, 2)", b"(4**9,)")), array(p / "a.npy"))[1],
    "npy large": lambda p: (
        (p / "a.npy").write_bytes(npy((10**12,), "<f8")), array(p / "a.npy")
    )[1],
    "npy nothing": lambda p: (
        (p / "a.npy").write_bytes(npy((10**12,), "|V0")), array(p / "a.npy")
    )[1],
    "npy objects": lambda p: (
        (p / "a.npy").write_bytes(npy((3,), "|O", pickle.dumps([1]))),
        array(p / "a.npy"),
    )[1],
    "idx": lambda p: ((p / "a").write_bytes(b"\0\0\x08\x01" + bytes([200] * 4)), read_idx(p / "a"))[1],
    "idx.gz": lambda p: (
        (p / "a.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + (2**27).to_bytes(4, "big") + bytes(2**24))),
        read_idx(p / "a.gz"),
    )[1],
    "png": lambda p: ((p / "a.png").write_bytes(png(12_000, 12_000)), image_folder(p))[1],
    "cifar size": lambda p: cifar(p, bytes(2**26 + 1)),
    "cifar array": lambda p: cifar(p, pickle.dumps({"data": Asks(np.ndarray, (10**6, 3072)), "labels": 0})),
    "cifar memo": lambda p: cifar(p, b"\x80\x02}r\xff\xff\xff\x7f."),
    "cifar bytes": lambda p: cifar(p, b"\x80\x05}\x96" + (10**10).to_bytes(8, "little") + b"."),
    "cifar bytearray": lambda p: cifar(p, pickle.dumps({"data": Asks(bytearray, 10**10), "labels": []})),
    "cifar void": lambda p: cifar(p, pickle.dumps({"data": Asks(np.dtype, "V1000000000"), "labels": []})),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=list(ATTACKS))
def test_a_small_file_takes_little_memory(tmp_path: Path, attack: Callable[[Path], Any]) -> None:
    with pytest.raises(ValueError, match="a.npz|a.npy|/a |a.gz|a.png|data_batch_2"):
        tracemalloc.start()
        try:
            attack(tmp_path)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    assert peak < 200 * 2**20


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    packed(tmp_path / "a.npz", x=FEW, other=ZEROS, more=b"no array")
    assert array(tmp_path / "a.npz").shape == (2,)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(tmp_path: Path, kind: str) -> None:
    def place(name: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        makers: dict[str, Callable[[Path], None]] = {
            "pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda path: path.symlink_to("/dev/zero")
        }  # fmt: skip
        makers[kind](path)
        return path

    for name in ("a.npz", "a.npy"):
        with pytest.raises(ValueError, match="a regular file is needed"):
            array(place(name))
    for name in ("a.pth", "a.safetensors"):
        with pytest.raises(ValueError, match="a regular file is needed"):
            _read(place(name))
    with pytest.raises(ValueError, match="a regular file is needed"):
        read_idx(place("idx"))
    place("pictures/a.png")
    with pytest.raises((ValueError, FileNotFoundError), match="a regular file is needed|no picture"):
        image_folder(tmp_path / "pictures")
