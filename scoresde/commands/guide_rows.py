"""`image=...` and `sequence=...`: what samples and examples are given, from the command line, a notebook or a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scoresde.commands.build import ConfigError
from scoresde.commands.load import TrainedModel
from scoresde.data.bounded import member_names, read_members
from scoresde.data.grids_and_tokens import padded, spelt, stored_image, stored_sequence
from scoresde.data.picture_files import SUFFIXES, read_pictures

KEYS = ("image", "sequence")
SHAPES = {
    "image": "image.path=FILE, a .npy, a .npz with an array image, a picture, or a folder of pictures",
    "sequence": "sequence=[3,1,2], a list of such rows, or sequence.path=FILE, a .npy or a .npz with an array sequence",
}


def guide_rows(key: str, asked: Any, trained: TrainedModel) -> Tensor:
    """The images or sequences that an option says, one row each, as a run's data keep them.

    Args:
        key: "image" or "sequence".
        asked: {path: FILE}; an array or a tensor; of sequences, words or tokens too.
        trained: The run.
    Raises:
        ConfigError: If they are not of the kind that the run was trained with.
    """
    if key not in trained.conditions:
        raise ConfigError(
            f"{key}=... needs a model with {'an image' if key == 'image' else 'a sequence'} as condition, but "
            f"{trained.run.path} was trained on data without one."
        )
    if isinstance(asked, Mapping):
        if set(asked) != {"path"}:
            raise ConfigError(f"{key} needs {key}.path=FILE, got the keys {', '.join(map(str, asked))}.")
        asked = _of_file(key, asked["path"], trained)
    try:
        return _images(asked, trained) if key == "image" else _sequences(asked, trained)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{str(error).rstrip('.')}.") from error


def fitting_guides(key: str, rows: Tensor, name: str, trained: TrainedModel) -> Tensor:
    """Images or sequences of a user's examples, if they are of the kind of a run's.

    Raises:
        ConfigError: If they are not.
    """
    options = trained.config["model"][key]
    if key == "image":
        axes, channels = len(trained.shape) - 1, options.get("channels")
        if rows.ndim != axes + 2 or rows.shape[1] != channels:
            raise ConfigError(
                f"the {name} have images of shape {tuple(rows.shape[1:])}, but {trained.run.path} was trained with "
                f"images of {channels} channel{'s' * (channels != 1)} on {axes} ax{'es' if axes > 1 else 'is'}."
            )
        if (counts := options.get("categories")) is not None:
            _check_whole(key, rows, 0, counts[0], name, trained)
        return rows
    dim, vocabulary = options.get("dim"), options.get("vocabulary")
    if dim is None and not rows.is_floating_point():
        _check_whole(key, rows, -1, vocabulary, name, trained)
        return rows
    if dim is None or not rows.is_floating_point() or rows.shape[2] != dim:
        kind = "tokens that are whole numbers (N, L)" if dim is None else f"vectors (N, L, {dim})"
        raise ConfigError(
            f"the {name} have sequences of shape {tuple(rows.shape)} of {str(rows.dtype).removeprefix('torch.')}, but "
            f"{trained.run.path} was trained with {kind}."
        )
    return rows


def _check_whole(key: str, rows: Tensor, low: int, count: int, name: str, trained: TrainedModel) -> None:
    if bool((rows != rows.round()).any()) or int(rows.min()) < low or int(rows.max()) >= count:
        raise ConfigError(
            f"{key} of the {name} needs whole numbers in 0..{count - 1}, those of {trained.run.path}, got values from "
            f"{float(rows.min()):g} to {float(rows.max()):g}."
        )


def _images(asked: Any, trained: TrainedModel) -> Tensor:
    values = np.asarray(asked.detach().cpu() if isinstance(asked, Tensor) else asked)
    if values.dtype.kind not in "biuf" or values.ndim == 0:
        raise ConfigError(f"image needs {SHAPES['image']}, got {asked!r}.")
    axes, channels = len(trained.shape) - 1, trained.config["model"]["image"].get("channels")
    if values.ndim == axes or (values.ndim == axes + 1 and channels not in (1, None) and channels == values.shape[0]):
        values = values[None]  # one for all
    last = values.ndim == axes + 2 and values.shape[1] != channels and values.shape[-1] == channels
    rows = stored_image("image=...", values, trained.shape, len(values), channels_last=last)
    return fitting_guides("image", rows, "samples", trained)


def _sequences(asked: Any, trained: TrainedModel) -> Tensor:
    letters = trained.names.letters
    if isinstance(asked, Tensor | np.ndarray):
        values = np.asarray(asked.detach().cpu() if isinstance(asked, Tensor) else asked)
        values = values[None] if values.ndim == 0 else values
        if values.dtype.kind != "U" or letters is None:
            return _stored(values, trained)
        asked = values.tolist()
    given = asked if isinstance(asked, list) and asked else [asked]
    if letters is not None and not any(isinstance(row, list) for row in given):
        words = [str(word) for word in given]
        if not all(words):
            raise ConfigError("sequence needs words of one letter at least, got ''.")
        return spelt("sequence=...", words, letters)
    rows = given if all(isinstance(row, list) for row in given) else [given]
    flat = [value for row in rows for value in row]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in flat) or not all(rows):
        try:
            return _stored(np.asarray(rows, dtype=np.float32), trained)
        except (ValueError, TypeError) as error:
            if isinstance(error, ConfigError):
                raise
            wants = "a word, or a list of words" if letters is not None else SHAPES["sequence"]
            raise ConfigError(f"sequence needs {wants}, got {asked!r}.") from error
    if max(map(abs, flat)) >= 2**24:
        raise ConfigError(f"sequence needs tokens below 2^24, got {max(flat, key=abs)}.")
    return fitting_guides("sequence", padded(rows), "samples", trained)


def _stored(values: NDArray[Any], trained: TrainedModel) -> Tensor:
    if values.ndim == 1 and values.dtype.kind in "biuf":
        values = values[None]  # one row
    rows = stored_sequence("sequence=...", values, len(values), trained.names.letters).tokens
    return fitting_guides("sequence", rows, "samples", trained)


def _of_file(key: str, path: Any, trained: TrainedModel) -> NDArray[Any]:
    """The array of a .npy or .npz file, or pictures."""
    if not isinstance(path, str) or not (found := Path(path).expanduser()).exists():
        raise ConfigError(f"{key}.path needs a file, and {path} does not exist.")
    if key == "image" and (found.is_dir() or found.name.lower().endswith(SUFFIXES)):
        return _pictures(found, trained)
    try:
        names = member_names(found)
        name = key if key in names else names[0]
        values = np.asarray(read_members(found, [name])[name])
    except Exception as error:  # zip, zlib and header damage all raise their own types
        raise ConfigError(f"{key}.path needs a whole file, {SHAPES[key]}, got {found}.") from error
    if len(names) > 1 and name != key:
        raise ConfigError(f"{key}.path needs an array {key} in {found}: there is {', '.join(names[:12])}.")
    return values


def _pictures(found: Path, trained: TrainedModel) -> NDArray[Any]:
    """A picture, or those of a folder in the order of their names, as bytes (N, C, H, W)."""
    files = [found] if not found.is_dir() else sorted(f for f in found.iterdir() if f.name.lower().endswith(SUFFIXES))
    channels = trained.config["model"]["image"].get("channels")
    if not files:
        raise ConfigError(f"image.path={found} holds no picture.")
    if channels not in (1, 3):
        raise ConfigError(f"image.path={found} has pictures, and {trained.run.path} was trained with images of "
                          f"{channels} channels: give a .npy.")  # fmt: skip
    try:
        pixels: NDArray[Any] = read_pictures(files, None, channels, 256).x.numpy()
    except ValueError as error:
        words = str(error).replace("data=image_folder without a size", "image.path").split("; set data.size")[0]
        raise ConfigError(f"{words.rstrip('.')}.") from error
    return pixels
