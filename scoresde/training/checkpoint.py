"""Checkpoints: tensors and plain values in one file, written whole or not at all, and checked when read."""

from __future__ import annotations

import hashlib
import io
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.files import write_atomically
from scoresde.plain_pickle import NotPlain, read_tensors

FORMAT = 1
_MARK = b"sha256:"
_TRAILER = len(_MARK) + 64  # the mark and a hexadecimal digest


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, is damaged, or does not fit."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is incomplete, or not what was written."""


def save_checkpoint(path: str | Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write a checkpoint.

    The file is what `torch.save` writes, with the SHA-256 of all its other bytes as the comment of the zip
    archive, so `torch.load(path, weights_only=True)` reads it. It gets its name only when it is complete.

    Args:
        path: Where to write; an existing file is replaced in one step.
        state: Nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.
        keep: Name in the same folder for the file that is replaced.
    Raises:
        TypeError: If state holds anything else, naming its key.
        CheckpointError: If the file cannot be written, as on a full disk; an existing file is then untouched.
    """
    buffer = io.BytesIO()
    torch.save(_plain(state, ""), buffer)
    content = buffer.getbuffer()
    content[-2:] = struct.pack("<H", _TRAILER)  # length of the archive's comment, the last field of a zip file
    digest = hashlib.sha256(content).hexdigest().encode()
    try:
        write_atomically(path, content, _MARK + digest, keep=keep)
    except OSError as error:
        raise CheckpointError(
            f"cannot save {path}: {error.strerror or error}; earlier files are untouched; "
            f"free some space or choose another folder, then run the same command again."
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of `save_checkpoint` onto the CPU, without running any code that it may hold.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is truncated, altered or unreadable, or holds more than tensors and plain
            values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: train first, or correct the path.")
    try:
        with path.open("rb") as file:
            state = _verified(file, path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}.") from error
    if state.get("format", FORMAT) != FORMAT:
        raise CheckpointError(f"{path} has format {state['format']}, this version reads {FORMAT}: update scoresde.")
    return state


def load_weights(module: nn.Module, state: dict[str, Any], *, ema: bool = True) -> None:
    """Put the weights of a checkpoint into a module.

    Args:
        module: The module that was trained, built with the same options.
        state: What `load_checkpoint` returned.
        ema: Averaged weights (for sampling) rather than the latest ones (to go on training).
    Raises:
        CheckpointError: If names, shapes or kinds of numbers differ, or if a number is not finite, naming the first
            parameter of which that is so.
    """
    if "model" not in state or (ema and "ema" not in state):
        raise CheckpointError(f"the checkpoint holds {', '.join(state)}, but not the weights of a training run.")
    state = with_present_names(module, state)
    try:
        weights = dict(state["model"])
        if ema:
            weights |= state["ema"]["params"] | state["ema"]["buffers"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint does not hold weights by their names: {error}.") from None
    check_weights(weights, module.state_dict())
    module.load_state_dict(weights)


def check_weights(theirs: Mapping[str, Any], ours: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError unless a checkpoint has finite numbers by the same names, of the same shapes and kinds.

    The width may differ: float64 goes into float32, as it always did.
    """
    for name in [*ours, *theirs]:
        stored = theirs.get(name)
        here = tuple(ours[name].shape) if name in ours else "nothing"
        there = tuple(stored.shape) if isinstance(stored, Tensor) else "nothing"
        if here != there or not isinstance(stored, Tensor):
            raise CheckpointError(
                f"the checkpoint is of another model: {name!r} is {there} there and {here} here; "
                f"build the model with the options that it was trained with."
            )
        kinds = [(t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (stored, ours[name])]
        if kinds[0] != kinds[1]:
            raise CheckpointError(
                f"the checkpoint holds {name!r} as {stored.dtype}, where {ours[name].dtype} is needed."
            )
        if not bool(stored.isfinite().all()):
            raise CheckpointError(f"the checkpoint holds {name!r} with NaN or infinity: take an earlier one.")


def with_present_names(module: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a run from before the layers of the score U-Nets had names, under today's names.

    They stood in one list, `all_modules`; its order and the shapes are still those of the module.

    Args:
        module: The module that was trained.
        state: What `load_checkpoint` returned; that of a later run is returned as it is.
    """
    pairs = zip(state.get("model", ()), module.state_dict(), strict=False)  # load_weights names what does not fit
    names = {old: new for old, new in pairs if "all_modules." in old}

    def renamed(weights: dict[str, Any]) -> dict[str, Any]:
        return {names.get(name, name): value for name, value in weights.items()}

    if not names:
        return state
    ema = {part: renamed(kept) if isinstance(kept, dict) else kept for part, kept in state.get("ema", {}).items()}
    return state | {"model": renamed(state["model"]), "ema": ema}


def _plain(value: Any, key: str) -> Any:
    """The same value in exact plain types, tensors on the CPU and no larger than themselves."""
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        return tensor if whole else tensor.clone()
    if isinstance(value, dict):
        for name in value:
            if type(name) not in (str, int):
                raise TypeError(f"a checkpoint needs keys of type str or int, got {name!r} under {key or 'its top'!r}.")
        return {name: _plain(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{key}[{index}]") for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"a checkpoint holds tensors, numbers, strings and plain containers only, got {type(value).__name__} "
        f"at {key!r}; convert it first, as with float(...) or torch.as_tensor(...)."
    )


def _verified(file: io.BufferedReader, path: Path) -> dict[str, Any]:
    damaged = DamagedCheckpoint(
        f"{path} is damaged: it is incomplete or its checksum does not match; "
        f"put an earlier snapshot in its place, or remove it to start again."
    )
    start = max(file.seek(0, os.SEEK_END) - _TRAILER, 0)
    file.seek(start)
    trailer = file.read()
    signed = trailer.startswith(_MARK)
    if signed and trailer != _MARK + _digest(file, start):
        raise damaged
    file.seek(0)
    bare_pickle = file.read(1) == b"\x80"  # which is not read at all
    try:
        state = read_tensors(file)
    except Exception as error:  # of the many types that damaged bytes can lead to
        if bare_pickle or isinstance(error, NotPlain):
            raise CheckpointError(
                f"{path} is refused: it holds objects that could run code, not only tensors and plain values."
            ) from None
        raise damaged from error
    if not signed or not isinstance(state, dict):
        raise damaged
    return state


def _digest(file: io.BufferedReader, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, in hexadecimal."""
    file.seek(0)
    digest = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        digest.update(block)
        size -= len(block)
    return digest.hexdigest().encode()
