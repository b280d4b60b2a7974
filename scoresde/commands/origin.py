"""What a run is made from, as each of its checkpoints says: a run knows its own configuration, data and codec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.commands.identity import differences, identity
from scoresde.data import Dataset, Names, codec_from_state, codec_state
from scoresde.data.columns import NO_NAMES
from scoresde.data.fingerprint import change, fingerprint
from scoresde.training import CheckpointError, RunDirectory, load_checkpoint, save_checkpoint

CODEC_FILE = "codec.pt"  # what a run's checkpoints say of codec and data, in a small file of its own


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run is made from.

    Args:
        config: What of its configuration makes it another run, see `identity`.
        data: Fingerprint of its data; None: an earlier version did not keep it.
        codec: Map between the data's values and the model's, as `codec_state` describes it.
        shape: Event shape.
        names: What classes, columns and conditions are called.
        class_counts: Training examples of each class; None: there are no classes, or an earlier version did not say.
        base: Hash of the frozen weights that something is trained for, see `hash_of_weights`; None if there are none.
    """

    config: Mapping[str, Any]
    data: Mapping[str, Any] | None
    codec: Mapping[str, Any]
    shape: Sequence[int]
    names: Names = NO_NAMES
    class_counts: Sequence[int] | None = None
    base: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], data: Dataset, base: str | None = None) -> Origin:
        """That of a run with this configuration on these data."""
        return cls(
            config=identity(config), data=fingerprint(data), codec=codec_state(data.codec), shape=list(data.shape),
            names=data.names, class_counts=data.class_counts, base=base,
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; see `check`."""
        return {
            "config": self.config, "data": self.data, "codec": self.codec, "shape": self.shape, "base": self.base,
            "names": self.names.state(), "class_counts": self.class_counts,
        }  # fmt: skip

    def check(self, state: Mapping[str, Any] | None, path: Path) -> None:
        """Raise if a checkpoint, from `path`, has another origin; None is that of a version that did not say.

        Raises:
            CheckpointError: With what differs.
        """
        if state is not None:
            theirs = _read(state, path)
            check_base(theirs, self.base, path)
            check_data(theirs.data, self.data, path)
            check_config(theirs, self.config, path)


def check_base(origin: Origin, base: str | None, path: Path) -> None:
    """Raise if the checkpoint at `path`, of this origin, was trained for other weights than those with this hash."""
    if origin.base is not None and origin.base != base:
        raise CheckpointError(
            f"{path} was trained for other weights than those of this run: remove {path.parent.parent}, which was "
            f"copied from another run or is older than the run's weights, and train it again."
        )


def check_data(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None, path: Path) -> None:
    """Raise if data, by their fingerprints, are not those that the run or checkpoint at `path` was trained on."""
    changed = change(before, now) if before and now else None
    if changed is not None:
        raise CheckpointError(
            f"the data differ from those that {path} was trained on: there are {changed}. Put the earlier data back, "
            f"or name another run directory with run=... (with init={path} to start from these weights)."
        )


def check_config(origin: Origin, config: Mapping[str, Any], path: Path) -> None:
    """Raise if a run's configuration is not that of the origin which its checkpoint, from `path`, says."""
    for difference in differences(origin.config, identity(config)):
        raise CheckpointError(
            f"{path} was trained with another configuration than this run has: {difference}. One of the two was "
            f"changed or copied from another run: put the right one back."
        )


def with_codec_of(path: Path, data: Dataset, origin: Origin) -> tuple[Dataset, Origin]:
    """Data, and the origin of a run on them, with the codec of the run that is at `path` already.

    A codec is fitted to the data once: a run that an earlier version began goes on in the scaling that it began with.
    """
    said = read_codec(RunDirectory(path)) or {}
    if said.get("shape") != origin.shape or said.get("data") not in (None, origin.data):
        return data, origin  # other data are refused where the run is taken up
    if _same(said["codec"], origin.codec):
        return data, origin
    try:
        codec = codec_from_state(said["codec"])
    except ValueError:
        return data, origin
    return replace(data, codec=codec), replace(origin, codec=said["codec"])


def keep_codec(run: RunDirectory, origin: Origin) -> None:
    """Write codec.pt if it is not there or says something else, with a word if it once said the same."""
    path = run.path / CODEC_FILE
    said = read_codec(run)
    if said is None or not _same(said, _codec_part(origin)):
        if run.has_checkpoint and (said is None or "data" in said):  # an earlier version did not write data
            what = "was damaged or is of another run" if path.exists() else "is missing"
            print(f"{path} {what}: it is written again.")
        save_checkpoint(path, _codec_part(origin))


def read_codec(run: RunDirectory) -> dict[str, Any] | None:
    """What codec.pt says; None if it is not there or damaged."""
    try:
        return load_checkpoint(run.path / CODEC_FILE)
    except (CheckpointError, OSError):
        return None


def origin_of(run: RunDirectory, checkpoint: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> Origin:
    """The origin of a run that is loaded.

    Args:
        run: Its directory.
        checkpoint, state: Path and content of the checkpoint.
        config: The run's own configuration.
    Raises:
        CheckpointError: If checkpoint, configuration and codec.pt do not belong together.
    """
    path = run.path / CODEC_FILE
    if state.get("origin") is None:  # of an earlier version
        return _read({"config": config, "data": None, **load_checkpoint(path)}, path)
    origin = _read(state["origin"], checkpoint)
    check_config(origin, config, checkpoint)
    said = read_codec(run)
    if said is None:
        print(f"{path} is missing or damaged: the codec is that of {checkpoint}, which holds it too.")
    elif not _same(said, {key: value for key, value in _codec_part(origin).items() if key in said}):
        raise CheckpointError(
            f"{path} and {checkpoint} are not of one run: one of the two was copied from another. Put the right one "
            f"back; if it is {checkpoint.name} that belongs here, remove {path}."
        )
    return origin


def hash_of_weights(module: nn.Module) -> str:
    """Of all that a module's state holds, with its names and shapes; about a second per gigabyte."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _codec_part(origin: Origin) -> dict[str, Any]:
    return {"codec": origin.codec, "shape": origin.shape, "data": origin.data}


def _read(state: Mapping[str, Any], path: Path) -> Origin:
    """The origin that a file says."""
    try:
        names, counts = Names.from_state(state.get("names")), state.get("class_counts")
        said = {key: state[key] for key in ("config", "data", "codec", "shape")}
        counts = None if counts is None else [int(count) for count in counts]
        origin = Origin(**said, names=names, class_counts=counts, base=state.get("base"))
        codec_from_state(origin.codec)
        identity(origin.config)
        if origin.data is not None:
            change(origin.data, origin.data)
        return origin
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} does not say what it was made from: {type(error).__name__}: {error}.") from None


def _same(one: Any, other: Any) -> bool:
    """Whether two nests of plain values and tensors are equal."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    return bool(type(one) is type(other) and one == other)
