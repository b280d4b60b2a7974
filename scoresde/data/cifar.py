"""CIFAR-10, from the files its authors publish or from parquet."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from scoresde.checks import check_flag
from scoresde.data.codec import Quantized
from scoresde.data.dataset import Dataset, Split, find

SHAPE = (3, 32, 32)
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))


def cifar10(path: str | Path | None = None, flip: bool = False) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32 pixels, RGB, 10 classes.

    Args:
        path: Folder of the python version (data_batch_1 to data_batch_5 and test_batch, also one level down
            in cifar-10-batches-py), or of train.parquet and test.parquet (columns `img` or `image`, `label`).
        flip: Mirror training images at random.
    """
    check_flag("data=cifar10", "flip", flip)
    needs = (
        "data=cifar10 needs a folder with the python batches of CIFAR-10 (cifar-10-batches-py, from "
        "https://www.cs.toronto.edu/~kriz/cifar.html) or with train.parquet and test.parquet; "
        "set data.path to it"
    )
    folder = find(path, needs)
    for batches in (folder, folder / "cifar-10-batches-py"):
        if (batches / "test_batch").is_file():
            parts = [_read_batches(batches, TRAIN_BATCHES), _read_batches(batches, ("test_batch",))]
            break
    else:
        tables = [folder / "train.parquet", folder / "test.parquet"]
        if not all(table.is_file() for table in tables):
            raise FileNotFoundError(f"{needs}; {folder} has neither")
        parts = [_read_parquet(table) for table in tables]
    train, test = (Split(x=x, label=label) for x, label in parts)
    return Dataset(name="cifar10", train=train, test=test, codec=Quantized(levels=256), num_classes=10, flip=flip)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, strings and numpy arrays, and refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module.replace("numpy.core", "numpy._core"), name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only numpy arrays are allowed") from None


def _latin1(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


# numpy's own names for these functions moved between its versions, so they are taken from what it pickles.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy._core.multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
    ("numpy._core.multiarray", "scalar"): np.int64(0).__reduce__()[0],
    ("numpy._core.numeric", "_frombuffer"): np.zeros(1).__reduce_ex__(5)[0], ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype, ("_codecs", "encode"): _latin1,
}  # fmt: skip


def _read_batches(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    xs, labels = zip(*(_read_batch(folder / name) for name in names), strict=True)
    return torch.cat(xs), torch.cat(labels)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"data=cifar10 needs {path.name} in {path.parent}")
    try:
        with path.open("rb") as file:
            stored = ArrayUnpickler(file, encoding="latin1").load()
        x, label = np.asarray(stored["data"]), np.asarray(stored["labels"])
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"{path} is not a batch of CIFAR-10: {type(error).__name__}: {error}") from error
    if x.dtype != np.uint8 or x.shape != (len(x), 3072) or label.dtype.kind not in "iu" or label.shape != (len(x),):
        raise ValueError(
            f"{path} is not a batch of CIFAR-10: expected uint8 data of shape (N, 3072) and N integer "
            f"labels, got {x.dtype} {x.shape} and {label.dtype} {label.shape}"
        )
    return torch.from_numpy(x.copy()).reshape(-1, *SHAPE), torch.from_numpy(label.astype(np.int64))


def _read_parquet(path: Path) -> tuple[Tensor, Tensor]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(f"{path} needs pyarrow, which is not installed: pip install 'scoresde[data]'") from error
    try:
        table = parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    column = next((name for name in ("img", "image") if name in table.column_names), None)
    if column is None or "label" not in table.column_names:
        raise ValueError(f"{path} needs the columns img (or image) and label, got {table.column_names}")

    label = np.asarray(table["label"].to_pylist())
    if label.dtype.kind not in "iu":
        raise ValueError(f"{path} needs integers in its column label, got {label.dtype}")
    x = np.empty((len(label), *SHAPE), dtype=np.uint8)
    rows = tqdm(table[column], desc=f"decoding {path.name}", disable=len(label) <= 1000)
    for i, row in enumerate(rows):
        x[i] = _decode(row.as_py(), f"{path}, row {i}")
    return torch.from_numpy(x), torch.from_numpy(label.astype(np.int64))


def _decode(cell: Any, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(cell["bytes"]), formats=("PNG", "JPEG")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(f"{where} does not hold a readable PNG or JPEG image: {error}") from error
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{where} should hold an image of 32×32 pixels, got {pixels.shape[1]}×{pixels.shape[0]}")
    return pixels.transpose(2, 0, 1)
