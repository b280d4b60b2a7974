"""numpy files of any shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from warnings import warn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoresde.checks import check_flag, check_text, check_whole
from scoresde.data.bounded import TooLarge, member_names, read_members
from scoresde.data.codec import Codec, Quantized
from scoresde.data.columns import Names
from scoresde.data.conditions import check_conditions, stored_condition
from scoresde.data.dataset import (
    TEST_FRACTION,
    Dataset,
    Split,
    check_finite,
    check_no_split,
    check_split,
    find,
    split_indices,
    take,
)
from scoresde.data.grids_and_tokens import Sequences, stored_image, stored_sequence
from scoresde.data.hdf5_files import hdf5_names, is_hdf5, read_hdf5
from scoresde.data.scaling import check_missing, check_scaling, check_transforms, chosen_transforms, fit_codec
from scoresde.spelling import nearest

LABELS = "y"  # name of the labels in .npz
GIVEN = ("condition", "image", "sequence")  # names of what examples are conditioned on


class Read(NamedTuple):
    """The examples of a file, and the letters of their sequences, if those are text."""

    split: Split
    letters: tuple[str, ...] | None


def array(
    path: str | Path | None = None, test_path: str | Path | None = None, standardize: bool = True,
    test_fraction: float = TEST_FRACTION, seed: int = 0, label_key: str | None = LABELS, levels: int | None = None,
    num_classes: int | None = None, channels_last: bool = False, transform: str | Mapping[str, str] | None = None,
    circular: Mapping[str, float] | None = None, key: str | None = None,
    missing: str | None = None, vocabulary: int | None = None, image_categories: int | None = None,
) -> Dataset:  # fmt: skip
    """Examples in a .npy, .npz or HDF5 file, of any shape (N, *); an array of shape (N,) is read as (N, 1).

    In .npz and HDF5, the examples are `x`, or the only array; what they are conditioned on goes with them, if it is
    there: `condition`, numbers (N, *); `image`, an image, series or volume (N, C, *) of any resolution; `sequence`,
    text (N,), tokens (N, L) that are whole numbers, with −1 for padding, or vectors (N, L, C), with NaN.

    Args:
        path: The file.
        test_path: A second file with the test split. None: test_fraction of the first.
        standardize: Give the model (x − mean)/std with the training split's mean and std: of each column of a table,
            of each channel of series, images and volumes. False: the values as they are.
        test_fraction: Share of the examples kept for the test split, when there is no test_path.
        seed: Seed of that split.
        label_key: Name of the integer labels in .npz; "y" is used if present. None: ignore labels.
        levels: The values are integers 0..levels−1, dequantised as pixels are. None: they are continuous.
        num_classes: Labels are 0..num_classes−1. None: the largest training label plus one.
        channels_last: The last axis holds channels, as in (N, H, W, C), and moves to the front of each event.
        transform: log, asinh or quantile, of all values, or of columns or channels by number, as {0: log}; its Jacobian
            is in log p. See `scoresde.data.Transformed`.
        missing: "mask": NaN are gaps, of which the model knows that they are there and nothing else; its likelihood is
            that of what is observed. None: NaN are refused.
        key: Name of the examples in .npz or HDF5, with their group as in run1/x. None: `x`, or the only array.
        circular: Columns of angles by number, with their period, as {2: 360}. See `scoresde.data.Circular`.
        vocabulary: Tokens are 0..vocabulary−1. None: as many as there are.
        image_categories: `image` holds categories 0..image_categories−1, as a segmentation does. None: values.
    """
    check_split("data=array", test_fraction, seed)
    limits = ("2 <= levels <= 65536 or null", "num_classes >= 1 or null", "1 <= vocabulary <= 16777216 or null",
              "1 <= image_categories <= 65536 or null")  # fmt: skip
    check_whole("data=array", *limits, **locals())
    for name, flag in (("standardize", standardize), ("channels_last", channels_last)):
        check_flag("data=array", name, flag)
    for name, word in (("label_key", label_key), ("test_path", test_path), ("key", key)):
        check_text("data=array", name, word)
    check_scaling("data=array", transform, circular)
    check_missing("data=array", missing, levels)
    if levels is not None and (transform or circular):
        raise ValueError(f"data=array with levels={levels} has no use for transform or circular: leave them out.")
    found = find(path, "data=array needs a .npy, .npz or HDF5 file; set data.path to it")
    train, letters = _read_split(found, label_key, levels, channels_last, key, gaps=missing is not None)
    names = [str(column) for column in range(train.x.shape[1])]
    scaling: dict[str, Any] = {"transform": transform, "circular": circular}
    check_transforms(str(found), train.x, names, chosen_transforms("data=array", names, **scaling)[0])
    if test_path is None:
        train, test = (take(train, index) for index in split_indices(len(train), test_fraction, seed))
    else:
        check_no_split("data=array with a test_path", test_fraction)
        test_found = find(test_path, "data=array needs the file of data.test_path")
        test = _read_split(
            test_found, label_key, levels, channels_last, key, gaps=missing is not None, letters=letters
        ).split
    if num_classes is None and train.label is not None:
        num_classes = int(train.label.max()) + 1
        if num_classes > len(train):
            raise ValueError(
                f"{found} has labels up to {num_classes - 1} for {len(train)} training examples, which look "
                f"like identifiers; number them from 0, set data.num_classes, or set data.label_key=null"
            )
    codec: Codec
    if levels is not None:
        codec = Quantized(levels=levels)
    else:
        codec = fit_codec("data=array", train.x, names, standardize=standardize, **scaling)
    for name, option, value in (
        ("sequence", "vocabulary", vocabulary),
        ("image", "image_categories", image_categories),
    ):
        if value is not None and (
            name not in train.given or ((part := train.given[name]).is_floating_point() and name == "sequence")
        ):
            raise ValueError(f"{found} has no use for data.{option}={value}: it holds no {name} of whole numbers")
    return Dataset(
        name=found.stem, train=train, test=test, codec=codec, num_classes=num_classes, missing=missing is not None,
        names=Names(letters=letters), vocabulary=_vocabulary(vocabulary, letters, train, test),
        image_categories=image_categories,
    )  # fmt: skip


def _vocabulary(given: int | None, letters: Sequence[str] | None, train: Split, test: Split) -> int | None:
    """Number of tokens that there are; None if examples have none, or vectors."""
    if train.sequence is None or train.sequence.is_floating_point():
        return None
    if letters is not None:
        return len(letters)
    return given or 1 + max(
        int(split.sequence.max()) for split in (train, test) if split.sequence is not None and len(split)
    )


def _read_split(
    path: Path, label_key: str | None, levels: int | None, channels_last: bool, key: str | None, *, gaps: bool,
    letters: tuple[str, ...] | None = None,
) -> Read:  # fmt: skip
    stored = read_arrays(path, label_key, key)
    x_key = examples_key(path, stored, label_key, key)
    x = stored[x_key]
    if x.ndim == 0 or x.size == 0:
        raise ValueError(f"{path} needs an array of shape (N, *) with at least one entry, got shape {x.shape}")
    x = x[:, None] if x.ndim == 1 else x
    x = np.moveaxis(x, -1, 1) if channels_last else x

    values = _continuous(path, x, gaps) if levels is None else _integers(path, x, levels)
    if label_key not in (None, LABELS, *stored):
        raise ValueError(f"{path} has no array {label_key}, which data.label_key names: there is {', '.join(stored)}")
    label = None if label_key is None or label_key == x_key else stored.get(label_key)
    given = read_given(path, stored, x_key, values.shape[1:], len(x), channels_last=channels_last, letters=letters)
    classes = None if label is None else class_labels(path, label_key, label, len(x))
    split = Split(x=values, label=classes, condition=given.condition, image=given.image, sequence=given.sequence)
    return Read(split, given.letters)


class Given(NamedTuple):
    """What the examples of a file are conditioned on, as it is kept; None: nothing. Letters: see `Sequences`."""

    condition: Tensor | None
    image: Tensor | None
    sequence: Tensor | None
    letters: tuple[str, ...] | None


def read_given(
    path: Path, stored: Mapping[str, NDArray[np.generic]], x_key: str, shape: Sequence[int], count: int, *,
    channels_last: bool, letters: tuple[str, ...] | None = None,
) -> Given:  # fmt: skip
    """What `count` examples of event shape `shape` are conditioned on, of the arrays of a file.

    Raises:
        ValueError: If it is not one of each for every example.
    """
    condition, image, sequence = (None if name == x_key else stored.get(name) for name in GIVEN)
    read = Sequences(torch.empty(0), None)
    if sequence is not None:
        read = stored_sequence(str(path), sequence, count, letters)
    pictures = None if image is None else stored_image(str(path), image, shape, count, channels_last=channels_last)
    return Given(
        condition=None if condition is None else given_conditions(path, condition, count), image=pictures,
        sequence=None if sequence is None else read.tokens, letters=read.letters,
    )  # fmt: skip


def read_arrays(path: Path, label_key: str | None, key: str | None = None) -> dict[str, NDArray[np.generic]]:
    """The examples of a file by name, with their labels and what they are conditioned on; nothing else is read."""
    try:
        packed = is_hdf5(path)
        names, x = hdf5_names(path) if packed else member_names(path), key or "x"
        wanted = {*names[:1]} if len(names) == 1 and key is None else {x, *GIVEN, label_key}
        others = [name for name in names if name not in (label_key, *GIVEN)]
        if x not in names and len(others) == 1 and key is None:
            wanted |= {*others}
        elif x not in names:
            return dict.fromkeys(names, np.zeros(0))  # `examples_key` says what is missing
        chosen = [name for name in names if name in wanted]
        _say_unread(path, names, chosen)
        return read_hdf5(path, chosen) if packed else read_members(path, chosen)
    except (TooLarge, ImportError):
        raise
    except Exception as error:  # zip, zlib and header damage all raise their own types
        reason = f": {error}" if "a regular file is needed" in str(error) or "another file" in str(error) else ""
        raise ValueError(
            f"{path} is not a whole .npy, .npz or HDF5 file of plain numbers (object arrays and pickles are "
            f"refused); write it with numpy.savez(path, x=...){reason}"
        ) from error


def _say_unread(path: Path, names: Sequence[str], chosen: Sequence[str]) -> None:
    """A word on an array that is not read and whose name looks like one that is."""
    for name in names:
        meant = nearest(name, GIVEN)
        if name not in chosen and meant is not None and meant not in names:
            warn(f"{path} holds {name}, which is not read: call it {meant} if examples are given that", stacklevel=4)


def examples_key(
    path: Path, stored: dict[str, NDArray[np.generic]], label_key: str | None, key: str | None = None
) -> str:
    if key is not None:
        if key not in stored:
            known = ", ".join(list(stored)[:8]) or "(none)"
            raise ValueError(f"{path} has no array {key}, which data.key names: there is {known}")
        return key
    if "x" in stored:
        return "x"
    candidates = [key for key in stored if key not in (label_key, *GIVEN)]
    if len(candidates) != 1:
        raise ValueError(f"{path} needs its examples under the name x, got the arrays {', '.join(stored) or '(none)'}")
    return candidates[0]


def _real(path: Path, what: str, x: NDArray[np.generic]) -> None:
    if x.dtype.kind not in "biuf":
        raise ValueError(f"{path} needs real numbers in {what}, got {x.dtype}")


def _continuous(path: Path, x: NDArray[np.generic], gaps: bool) -> Tensor:
    _real(path, "x", x)
    single = np.result_type(x.dtype, np.float32) == np.float32
    values = torch.from_numpy(np.array(x, dtype=np.float32 if single else np.float64, order="C"))
    check_finite(values, str(path), gaps=gaps, hint=", or set data.missing=mask")
    return values


def _integers(path: Path, x: NDArray[np.generic], levels: int) -> Tensor:
    _real(path, "x", x)
    if x.dtype.kind == "f" and not np.array_equal(x, np.round(x)):
        raise ValueError(f"{path} holds values that are not integers, which levels={levels} needs; drop data.levels")
    low, high = int(x.min()), int(x.max())
    if low < 0 or high >= levels:
        raise ValueError(f"{path} with levels={levels} needs integers in 0..{levels - 1}, got {low}..{high}")
    return torch.from_numpy(np.array(x, dtype=np.uint8 if levels <= 256 else np.int32, order="C"))


def class_labels(path: Path, key: str | None, label: NDArray[np.generic], n: int) -> Tensor:
    if label.dtype.kind not in "biu" or label.shape != (n,):
        raise ValueError(
            f"{path} needs one integer label per example in {key}: expected shape ({n},), "
            f"got {label.dtype} of shape {label.shape}; real-valued ones belong in condition"
        )
    numbers = label.astype(np.int64)
    if numbers.min() < 0:
        index = int(np.argmax(numbers < 0))
        raise ValueError(f"{path} needs labels that are not negative, got {numbers[index]} at index {index}")
    return torch.from_numpy(numbers)


def given_conditions(path: Path, condition: NDArray[np.generic], n: int) -> Tensor:
    _real(path, "condition", condition)
    if condition.shape[:1] != (n,):
        raise ValueError(f"{path} needs one condition per example: {n}, got shape {condition.shape}")
    values = stored_condition(condition)
    check_conditions(values, f"{path}, condition")
    return values
