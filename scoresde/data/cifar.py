"""CIFAR-10, from the files its authors publish or from parquet."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from scoresde.checks import check_flag
from scoresde.data.bounded import open_picture, read_small
from scoresde.data.codec import Quantized
from scoresde.data.dataset import Dataset, Split, find
from scoresde.files import check_regular
from scoresde.plain_pickle import ArrayUnpickler

SHAPE = (3, 32, 32)
MOST_ROWS = 100_000  # of a split, in parquet
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


def _read_batches(folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    xs, labels = zip(*(_read_batch(folder / name) for name in names), strict=True)
    return torch.cat(xs), torch.cat(labels)


def _read_batch(path: Path) -> tuple[Tensor, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"data=cifar10 needs {path.name} in {path.parent}")
    try:
        stored = ArrayUnpickler(io.BytesIO(read_small(path))).load()
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
        check_regular(path)
        table = parquet.ParquetFile(path)
        names = table.schema_arrow.names
        column = next((name for name in ("img", "image") if name in names), None)
        if column is None or "label" not in names:
            raise ValueError(f"{path} needs the columns img (or image) and label, got {names}")
        if table.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"{path} has {table.metadata.num_rows:,} rows, more than CIFAR-10")
        label = np.asarray(table.read(["label"])["label"].to_pylist())
        if label.dtype.kind not in "iu":
            raise ValueError(f"{path} needs integers in its column label, got {label.dtype}")
        x = np.empty((len(label), *SHAPE), dtype=np.uint8)
        batches = table.iter_batches(64, columns=[column])  # a few at a time: one cell may stand in many rows
        rows = (row for batch in batches for row in batch[column])
        for i, row in enumerate(tqdm(rows, desc=f"decoding {path.name}", disable=len(label) <= 1000)):
            x[i] = _decode(row.as_py(), f"{path}, row {i}")
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    return torch.from_numpy(x), torch.from_numpy(label.astype(np.int64))


def _decode(cell: Any, where: str) -> np.ndarray:
    try:
        with open_picture(io.BytesIO(cell["bytes"]), where, ("PNG", "JPEG")) as image:
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types on damaged files
        raise ValueError(f"{where} does not hold a readable PNG or JPEG image: {error}") from error
    if pixels.shape != (32, 32, 3):
        raise ValueError(f"{where} should hold an image of 32×32 pixels, got {pixels.shape[1]}×{pixels.shape[0]}")
    return pixels.transpose(2, 0, 1)
