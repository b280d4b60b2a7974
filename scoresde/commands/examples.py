"""The examples whose likelihood is asked for: a split of the run's own data, or a file of the user's."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoresde.commands.build import ConfigError, build
from scoresde.commands.identity import PLACES
from scoresde.commands.load import TrainedModel
from scoresde.data import Dataset, Quantized
from scoresde.data.arrays import GIVEN, class_labels, examples_key, read_arrays, read_given
from scoresde.data.columns import Column
from scoresde.data.dataset import Split, find, split_indices, take
from scoresde.data.grids_and_tokens import together
from scoresde.data.table_files import read_columns
from scoresde.data.tables import Layout, layout_of, rows_of
from scoresde.noise import stream_generator

SPLITS = ("test", "train", "all")
ARRAY, TABLE = "scoresde.data.array", "scoresde.data.table"
FAR = 20.0  # typical |x| in the model's scaling, where the training data have 1, from which another unit is suspected


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Rows in the order in which they are scored.

    Args:
        name: What messages call them: "test examples".
        index: Number of each row in its file or split, (N,).
        x: As stored: levels, or values in the data's own units, (N, *).
        label: Class labels, (N,), or None.
        condition, image, sequence: Any other condition, (N, *), or None.
        reasons: Why a row cannot be scored, by position in x.
    """

    name: str
    index: Tensor
    x: Tensor
    label: Tensor | None
    condition: Tensor | None
    reasons: dict[int, str]
    image: Tensor | None = None
    sequence: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def digest(self) -> str:
        """A name for the content, of all rows but without their number."""
        content = hashlib.sha256()
        for part in (self.x, self.label, self.condition, self.image, self.sequence):
            if part is not None:
                content.update(part.contiguous().numpy().tobytes())
        return content.hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """The run's own data, which lie at another place than when it was trained.

    Args:
        path, test_path, image_path: Where they lie now; None: where they did.
    """

    path: str | None = None
    test_path: str | None = None
    image_path: str | None = None

    def __call__(self, trained: TrainedModel) -> TrainedModel:
        """The run with data at their new place.

        Raises:
            ConfigError: If no place is given, or its data have none.
        """
        node = trained.config["data"]
        places = {key: value for key in PLACES if (value := getattr(self, key)) is not None}
        if not places or not places.keys() <= node.keys():
            raise ConfigError(
                f"data=own needs data.path=..., the new place of the data of {trained.run.path}, which are "
                f"{node.get('_target_')} with {', '.join(key for key in PLACES if key in node) or 'no place to give'}."
            )
        return replace(trained, config={**trained.config, "data": {**node, **places}})


def own_examples(trained: TrainedModel, split: str | None, seed: int) -> Examples:
    """A split of the data that the run was trained on, in random order, so that any number of them stands for all."""
    data = trained.data()
    rows, name = _of_split(data, split or "test")
    if len(rows) == 0:
        raise ConfigError(f"the data of {trained.run.path} have no {name}: choose likelihood.split=train.")
    order = torch.randperm(len(rows), generator=stream_generator(seed, "order"))
    return _checked(trained, name, take(rows, order), order)


def given_examples(
    node: Mapping[str, Any], trained: TrainedModel, split: str | None, extensions: Sequence[str]
) -> Examples:
    """The examples of a `data` configuration of the user's, in their own order and with the run's codec.

    A file of `data=array` or `data=table` is read whole, with rows that cannot be scored; nothing is fitted to it.

    Raises:
        ConfigError: If they are not of the kind that the run was trained on.
    """
    if node.get("_target_") in (ARRAY, TABLE):
        stored, index, name = _read_file(node, split or "all", trained)
        levels = node.get("levels")
    else:
        data = build(dict(node), "data", extensions)
        if not isinstance(data, Dataset):
            raise ConfigError(f"data must be a scoresde.data.Dataset, got {type(data).__name__}.")
        stored, part = _of_split(data, split or "all")
        index, name, levels = torch.arange(len(stored)), f"{part} of {data.name}", data.levels
        if levels is None and isinstance(trained.codec, Quantized):
            levels = 0
    _check_levels(trained, levels)
    return fitting_examples(trained, name, stored, index)


def fitting_examples(trained: TrainedModel, name: str, stored: Split, index: Tensor) -> Examples:
    """Rows of the user's as those of a run, with the reasons why some cannot be scored.

    Raises:
        ConfigError: If they are of another shape, or none can be scored.
    """
    x = stored.x
    if x.shape[1:] == trained.shape[1:] and trained.shape[:1] == (1,):
        x = x.unsqueeze(1)  # pictures in one colour are often kept without an axis for it
    if tuple(x.shape[1:]) == (*trained.shape[1:], trained.shape[0]) != trained.shape:
        x = x.movedim(-1, 1)  # as samples.npz has pictures in colour
    if tuple(x.shape[1:]) != trained.shape:
        raise ConfigError(
            f"the data have events of shape {tuple(x.shape[1:])}, but {trained.run.path} was trained on events of "
            f"shape {trained.shape}: give data of that shape (data.channels_last=true if the last axis is channels)."
        )
    return _checked(trained, name, replace(stored, x=x), index)


def _of_split(data: Dataset, split: str) -> tuple[Split, str]:
    if split != "all":
        noun = "images" if data.is_image else "examples"
        return (data.test, f"test {noun}") if split == "test" else (data.train, f"training {noun}")
    parts = {key: (getattr(data.train, key), getattr(data.test, key)) for key in ("x", "label", *GIVEN)}
    both = {key: a if b is None or a is None else together(a, b) for key, (a, b) in parts.items()}
    return Split(**both), "examples"


def _read_file(node: Mapping[str, Any], split: str, trained: TrainedModel) -> tuple[Split, Tensor, str]:
    """The rows of a file as they are, good or not, and their numbers in it."""
    key = "test_path" if split == "test" and node.get("test_path") is not None else "path"
    path = find(node.get(key), f"data needs a file; set data.{key} to it")
    whole = table_rows(path, node, trained) if node["_target_"] == TABLE else array_rows(path, node, trained)
    index = torch.arange(len(whole))
    if split != "all" and node.get("test_path") is None:
        train, test = split_indices(len(whole), node["test_fraction"], node["seed"])
        index = (train if split == "train" else test).sort().values
    name = {"all": "examples", "test": "test examples", "train": "training examples"}[split]
    return take(whole, index), index, f"{name} of {path.name}"


def array_rows(path: Path, node: Mapping[str, Any], trained: TrainedModel) -> Split:
    label_key, last = node.get("label_key"), bool(node.get("channels_last"))
    stored = read_arrays(path, label_key, node.get("key"))
    key = examples_key(path, stored, label_key, node.get("key"))
    x, label = stored_rows(str(path), stored[key], channels_last=last), stored.get(label_key) if label_key else None
    letters = trained.names.letters
    given = read_given(path, stored, key, x.shape[1:], len(x), channels_last=last, letters=letters)
    return Split(
        x=x, label=None if label is None or label_key == key else class_labels(path, label_key, label, len(x)),
        condition=given.condition, image=given.image, sequence=given.sequence,
    )  # fmt: skip


def table_rows(path: Path, node: Mapping[str, Any], trained: TrainedModel) -> Split:
    """The columns that the run was trained on, with its categories; those of the file if its columns had no names."""
    stored, names = read_columns(path, node.get("separator")), trained.names
    if names.columns is None:
        given = (node.get(key) for key in ("columns", "condition", "categories", "label"))
        columns, condition, categories, label = given
        return rows_of(path, stored, layout_of(path, stored, columns, condition or (), categories or (), label))
    of_run = (trained.config.get("data") or {}).get("label") or node.get("label")
    label = None if names.classes is None or of_run is None else Column(name=of_run, categories=names.classes)
    return rows_of(path, stored, Layout(names.columns, names.conditions or (), label))


def stored_rows(where: str, values: Any, *, channels_last: bool) -> Tensor:
    """The rows of an array as they are, good or not, (N, C, *); whole numbers as such."""
    x = np.asarray(values)
    if x.dtype.kind not in "biuf" or x.ndim == 0 or x.size == 0:
        raise ConfigError(f"{where} needs real numbers of shape (N, *), got {x.dtype} of shape {x.shape}.")
    x = x[:, None] if x.ndim == 1 else x
    x = np.moveaxis(x, -1, 1) if channels_last else x
    wanted: Any = np.int64 if x.dtype.kind != "f" else np.float64 if x.dtype.itemsize > 4 else np.float32
    return torch.from_numpy(np.array(x, dtype=wanted, order="C"))


def _check_levels(trained: TrainedModel, levels: int | None) -> None:
    """Raise if the data say that they are of another kind than the run's; `levels` 0 stands for continuous."""
    codec, path = trained.codec, trained.run.path
    if levels is None:
        return
    if not isinstance(codec, Quantized):
        raise ConfigError(
            f"the data have levels={levels}, but {path} was trained on continuous values, whose likelihood is a "
            f"density: drop data.levels, or train a run with it."
        )
    if levels != codec.levels:
        raise ConfigError(
            f"the data have {f'{levels} levels' if levels else 'continuous values'}, but {path} was trained on "
            f"{codec.levels} levels, integers 0..{codec.levels - 1}: its likelihoods are for that scaling alone."
        )


def _checked(trained: TrainedModel, name: str, stored: Split, index: Tensor) -> Examples:
    """The rows with the reasons why some cannot be scored, with x in the kind of number that the codec takes."""
    x, codec = stored.x, trained.codec
    flat = x.flatten(1)
    bad: list[tuple[Tensor, str]] = []
    if x.is_floating_point():
        if trained.takes_gaps:
            bad.append((flat.isinf().any(1) | flat.isnan().all(1), "holds infinity, or nothing at all"))
        else:
            bad.append((~flat.isfinite().all(1), "holds NaN or infinity"))
    if isinstance(codec, Quantized):
        if x.is_floating_point():
            bad.append(((flat != flat.round()).any(1), f"holds values that are not integers, as the {codec.levels} "
                        f"levels of this run are"))  # fmt: skip
        outside = (flat < 0).any(1) | (flat >= codec.levels).any(1)
        bad.append((outside, f"holds values outside 0..{codec.levels - 1}, the {codec.levels} levels of this run"))
    else:
        bad += codec.refusals(x)
    classes = trained.config["model"].get("num_classes")
    if classes is not None and stored.label is not None:
        bad.append(((stored.label >= classes) | (stored.label < 0), f"has a label outside 0..{classes - 1}"))
    reasons: dict[int, str] = {}
    for where, reason in bad:
        for row in where.nonzero().flatten().tolist():
            reasons.setdefault(row, reason)
    if len(reasons) == len(x):
        raise ConfigError(
            f"none of the {len(x)} {name} can be scored by {trained.run.path}: each {reasons[0]} (the first is row "
            f"{int(index[0])}, with values from {flat[0].min():g} to {flat[0].max():g})."
        )
    good = [row for row in range(len(x)) if row not in reasons]
    if isinstance(codec, Quantized):
        x = torch.where(torch.tensor([row in reasons for row in range(len(x))]).reshape(-1, *[1] * (x.ndim - 1)),
                        torch.zeros_like(x), x).long()  # fmt: skip
    else:
        x = x if x.is_floating_point() else x.float()
        _warn(trained, x[good])
    return Examples(name=name, index=index, x=x, label=stored.label, reasons=reasons, **_given_of(stored))


def _given_of(stored: Split) -> dict[str, Tensor | None]:
    return {key: stored.given.get(key) for key in GIVEN}


def _warn(trained: TrainedModel, x: Tensor) -> None:
    """Say when continuous values are suspicious: in other units, or levels."""
    size = trained.codec.encode(x[:10_000]).abs().nanmedian().item()
    if size > FAR and not isinstance(trained.codec, Quantized):
        print(
            f"warning: the values are far from the training data of {trained.run.path}, {size:.3g} of its standard "
            f"deviations typically: are they in the same units?"
        )
    flat = x[:10_000].flatten()
    distinct = len(flat.unique())
    if distinct <= 256 and len(flat) >= 16 * distinct:
        print(
            f"warning: the values are only {distinct} different numbers, so their density has no upper limit and says "
            f"nothing: number them and train with data.levels={distinct}, which dequantises them."
        )
