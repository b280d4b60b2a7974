"""What is seen of samples: pictures by the kind of data, with examples of the data beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scoresde.commands.build import ConfigError
from scoresde.data import Dataset, Names, Quantized, Split
from scoresde.data.dataset import KINDS
from scoresde.files import write_atomically
from scoresde.pictures import Shown, picture
from scoresde.pictures.canvas import png
from scoresde.pictures.shown import MOST
from scoresde.training import CheckpointError

if TYPE_CHECKING:
    from scoresde.commands.load import TrainedModel

FOLDER, MOST_FILES = "scoresde.data.image_folder", 20_000
MOST_WRITTEN = 3  # numbers that are written below an image


def kind_of(shape: tuple[int, ...]) -> str:
    """Of examples of this shape: see `Dataset.kind`."""
    return KINDS.get(len(shape), "table")


def model_values(codec: Any, x: Tensor) -> NDArray[Any]:
    """What a picture shows of examples in the model's scaling: bytes of quantised images, the data's values of others.

    Args:
        codec: The run's.
        x: (B, *).
    """
    if isinstance(codec, Quantized) and x.ndim > 3:
        return codec.to_uint8(x).numpy()
    return codec.decode(x).numpy()  # type: ignore[no-any-return]


def stored_values(codec: Any, x: Tensor) -> NDArray[Any]:
    """The same of stored examples."""
    if isinstance(codec, Quantized) and x.ndim > 3:
        return (x.double() * 255 / (codec.levels - 1)).round().to(torch.uint8).numpy()
    return x.numpy()


def data_of(trained: TrainedModel, *, needed: bool = False) -> tuple[Dataset | None, str]:
    """The data of a run, or why they cannot be shown, in one sentence; what reading them says is not repeated.

    Args:
        trained: The run.
        needed: Read them even if they are very many files.
    """
    files = ((trained.fingerprint or {}).get("train") or {}).get("count", 0)
    if not needed and files > MOST_FILES and (trained.config["data"] or {}).get("_target_") == FOLDER:
        return None, f"the pictures show samples alone: reading {files:,} pictures of the data would take long.\n"
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            return trained.data(), ""
    except (ConfigError, CheckpointError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(": give ")[0].rstrip(".:")
        return None, f"the pictures show samples alone, as their data cannot be read: {reason}.\n"


def shown(
    codec: Any,
    samples: NDArray[Any],
    *,
    names: Names,
    split: Split | None = None,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
    words: Sequence[str] | None = None,
    kind: str | None = None,
    most: int | None = None,
) -> Shown:
    """What a picture of a run is drawn from.

    Args:
        codec: The run's.
        samples: As `model_values` has them.
        names: Of columns and classes.
        split: Where the data beside them come from.
        labels: Classes of the samples, (N,).
        condition: What else they are conditioned on, (N, C): more columns of tables, and written below images.
        words: Text that the samples are given, one each, which is written below images of no class.
        kind: Of the data; None: by the shape.
        most: Largest number of examples; None: as many as are good for the kind.
    """
    kind = kind or kind_of(samples.shape[1:])
    columns = names.columns if kind == "table" and names.columns and len(names.columns) == samples[0].size else None
    found = Shown(
        kind=kind,
        samples=samples,
        names=None if columns is None else [column.name for column in columns],
        categories={k: c.categories for k, c in enumerate(columns or ()) if c.categories is not None},
        labels=None if labels is None else labels.cpu().numpy(),
        classes=names.classes,
        captions=None if words is None or labels is not None or kind != "image" else list(words),
    ).limited(most)
    told = None if condition is None else condition.cpu().flatten(1)[: len(found.samples)]
    if split is None:
        return found if told is None else _conditioned(found, names, told, None)
    wanted = max(len(found.samples), MOST[kind] if kind in ("table", "series") else 1)
    rows = spread(len(split), wanted if most is None else most)
    if labels is not None and split.label is not None:
        rows = of_each_class(split.label, rows)
    label = None if split.label is None else split.label[rows].numpy()
    found = replace(found, data=stored_values(codec, split.x[rows]), data_labels=label)
    if told is None:
        return found
    return _conditioned(found, names, told, None if split.condition is None else split.condition[rows].flatten(1))


def _conditioned(look: Shown, names: Names, condition: Tensor, of_data: Tensor | None) -> Shown:
    """With what samples and data are conditioned on."""
    columns = names.conditions if names.conditions and len(names.conditions) == condition.shape[1] else None
    called = [f"c{k}" for k in range(condition.shape[1])] if columns is None else [column.name for column in columns]
    categories = {k: c.categories for k, c in enumerate(columns or ()) if c.categories is not None}
    if look.kind == "table":
        own = look.columns.shape[1]
        if look.data is not None and of_data is None:
            return look
        return replace(
            look,
            samples=np.concatenate([look.columns, condition.numpy()], 1),
            data=None if of_data is None else np.concatenate([look.data_columns, of_data.numpy()], 1),  # type: ignore[list-item]
            names=[*map(look.name, range(own)), *called],
            categories={**(look.categories or {}), **{own + k: names for k, names in categories.items()}},
        )
    if len(called) > MOST_WRITTEN or look.labels is not None:
        return look

    def written(rows: Tensor) -> list[str]:
        return [
            ", ".join(
                str(categories[k][round(value)]) if k in categories else f"{value:.3g}" for k, value in enumerate(row)
            )
            for row in rows.tolist()
        ]

    return replace(look, captions=written(condition), data_captions=None if of_data is None else written(of_data))


def words_of(sequence: Tensor | None, letters: Sequence[str] | None) -> list[str] | None:
    """Sequences of letters as text; None for others."""
    if sequence is None or letters is None:
        return None
    return ["".join(letters[k] for k in row if 0 <= k < len(letters)) for row in sequence.tolist()]


def save_given_images(path: Path, image: Tensor) -> None:
    """A PNG of the images that samples are given, in their order."""
    samples = image.cpu().numpy()
    save_look(path, Shown(kind=kind_of(tuple(image.shape[1:])), samples=samples, note="what they are given").limited())


def spread(count: int, wanted: int) -> Tensor:
    """Numbers of rows from all over `count` of them."""
    if count <= wanted:
        return torch.arange(count)
    return torch.from_numpy((np.arange(wanted) * (count / wanted)).astype(np.int64))


def of_each_class(label: Tensor, rows: Tensor, each: int = 10) -> Tensor:
    """Those rows, and before them some of every class."""
    first = [(label == value).nonzero().flatten()[:each] for value in label.unique()[:64]]
    return torch.cat([*first, rows]).unique()


def save_image(path: Path, image: Image.Image) -> None:
    write_atomically(path, png(image))


def save_look(path: Path, look: Shown) -> None:
    """A PNG of samples with data beside them."""
    save_image(path, picture(look))
