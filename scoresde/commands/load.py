"""A trained denoiser from its run directory."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde.commands.build import ConfigError, build, build_as, require
from scoresde.commands.identity import PLACES
from scoresde.commands.interfaces import Task
from scoresde.commands.origin import check_data, hash_of_weights, origin_of
from scoresde.commands.saved_config import building, checked_config
from scoresde.commands.train import ModelTask, build_model
from scoresde.data import Codec, Dataset, Names, Quantized, codec_from_state
from scoresde.data.columns import NO_NAMES
from scoresde.data.fingerprint import fingerprint
from scoresde.denoiser import Denoiser
from scoresde.guidance import EmbeddingPair, NoisyClassifier
from scoresde.losses import Loss
from scoresde.sde import SDE
from scoresde.training import CheckpointError, RunDirectory, load_checkpoint, load_weights

LARGEST_EVENT = 2**26  # entries
NOUNS: dict[type, str] = {
    NoisyClassifier: "a classifier",
    EmbeddingPair: "an embedding",
}  # what runs may be of, other than a denoiser
OPTIONS_OF_CONDITIONS = {  # of networks, by the condition that they are given
    "label": "num_classes", "condition": "condition_dim", "image": "image", "sequence": "sequence",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model and what is needed to use it.

    Args:
        run: Its run directory.
        config: The configuration that it was trained with.
        model: What its task makes, a denoiser or a classifier, with averaged weights, in evaluation mode.
        net: The network inside it.
        codec: Map between the data's own values and the model's.
        shape: Event shape.
        step: Number of training steps behind the weights.
        dequantize: Whether it was trained on dequantised levels rather than on the centres of their cells.
        extensions: The user's own modules that its classes may come from.
        fingerprint: Of its data, see `scoresde.data.fingerprint`; None: an earlier version did not keep it.
        names: What its classes, columns and conditions are called.
        class_counts: Training examples of each class; None: there are no classes, or an earlier version did not say.
        process: What its denoiser is put on, see `OnProcess`; None: its own.
    """

    run: RunDirectory
    config: dict[str, Any]
    model: nn.Module
    net: nn.Module
    codec: Codec
    shape: tuple[int, ...]
    step: int
    dequantize: bool = True
    extensions: Sequence[str] = ()
    fingerprint: Mapping[str, Any] | None = None
    names: Names = NO_NAMES
    class_counts: Sequence[int] | None = None
    process: SDE | None = None

    @property
    def denoiser(self) -> Denoiser:
        """The model, if it is a denoiser.

        Raises:
            ConfigError: If it is something else.
        """
        if not isinstance(self.model, Denoiser):
            noun = NOUNS.get(type(self.model), f"a {type(self.model).__name__}")
            raise ConfigError(f"{self.run.path} is the run of {noun}: name the run of a denoiser with run=...")
        return self.model if self.process is None else self.model.on(self.process)

    def on(self, process: SDE | None) -> TrainedModel:
        """The same run on another process, or on its own."""
        return replace(self, process=process)

    def given(self, label: Tensor | None) -> Denoiser:
        """The denoiser, with labels (B,) or None for no label if it is a model of classes."""
        return self.denoiser if self.classes is None else self.denoiser.given(label=label)

    @cached_property
    def weights(self) -> str:
        """Hash of its weights, by which what is made from them is known."""
        return hash_of_weights(self.model)

    @property
    def classes(self) -> int | None:
        """Number of classes of labels that its network is given; None if it is given none."""
        return self.config["model"].get("num_classes")

    @property
    def takes_gaps(self) -> bool:
        """Whether it was trained with `data.missing=mask`, and is told which entries are missing."""
        return (self.config["data"] or {}).get("missing") is not None

    @property
    def seen_classes(self) -> list[int] | None:
        """The classes that had examples, of those that its network is given; None if it is given none."""
        if self.classes is None:
            return None
        if self.class_counts is None:
            return list(range(self.classes))
        return [label for label, count in enumerate(self.class_counts[: self.classes]) if count > 0]

    @property
    def condition_dim(self) -> int | None:
        """Length of the condition that its network is given; None if it is given none."""
        return self.config["model"].get("condition_dim")

    @property
    def condition_optional(self) -> bool:
        """Whether it was trained without its condition now and then."""
        return self.condition_dim is not None and bool(self.config["model"].get("condition_optional"))

    @property
    def conditions(self) -> tuple[str, ...]:
        """What its network is given beside x, of label, condition, image and sequence."""
        return tuple(key for key, option in OPTIONS_OF_CONDITIONS.items() if self.config["model"].get(option))

    @property
    def optional(self) -> tuple[str, ...]:
        """Those of its conditions that its network can do without: labels, and what was dropped in training."""
        model = self.config["model"]
        known = {"label": True, "condition": self.condition_optional}
        return tuple(
            key
            for key in self.conditions
            if known.get(key, isinstance(options := model.get(key), Mapping) and options.get("optional"))
        )

    @property
    def data_range(self) -> tuple[float, float] | None:
        """The range of the data in the model's scaling: that of quantised data; None if it has no bounds."""
        return self.codec.value_range if isinstance(self.codec, Quantized) else None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def data(self) -> Dataset:
        """The data that it was trained on, with the codec that it was trained with.

        Raises:
            ConfigError: If they are not where they were.
            CheckpointError: If they have changed.
        """
        for key in PLACES:
            place = (self.config["data"] or {}).get(key)
            if place is not None and not Path(place).exists():
                raise ConfigError(
                    f"the data of {self.run.path} are not where they were, {place} does not exist: give their new "
                    f"place with data=own data.{key}=..., or write it into {self.run.config}."
                )
        data = require(build(self.config["data"], "data", self.extensions), Dataset, "data")
        if data.shape != self.shape:
            raise ConfigError(f"the data of {self.run.path} are no longer those that it was trained on.")
        check_data(self.fingerprint, fingerprint(data), self.run.path)
        return replace(data, codec=self.codec)


def load(path: str | Path, *, device: str | torch.device | None = None, extensions: Sequence[str] = ()) -> Denoiser:
    """The denoiser of a run, with averaged weights, ready for solvers.

    Args:
        path: A run directory, or a checkpoint inside one.
        device: Where to put it; None is the CPU.
        extensions: The user's own modules that the run's classes may come from.
    Raises:
        FileNotFoundError: If there is no such run or it has no checkpoint.
        CheckpointError: If the checkpoint is damaged, could run code, or holds weights that are not finite.
        ConfigError: If the run is that of a classifier, or its configuration names something that is not allowed, as
            a loss of the user's own that is not among the extensions.
    """
    return load_run(path, device=device, extensions=extensions).denoiser


def load_run(
    path: str | Path, *, device: str | torch.device | None = None, extensions: Sequence[str] = ()
) -> TrainedModel:
    """Everything about the model of a run; see `load` for arguments and errors."""
    path = Path(path)
    is_file = path.suffix == ".pt"
    run = RunDirectory.open(path.parent.parent if is_file else path)
    config = checked_config(run, extensions)
    task: Task = build_as(Task, config["task"], "task", extensions)
    if not isinstance(task, ModelTask):
        raise ConfigError(
            f"{run.path} is the run of a {type(task).__name__}, which makes no model of data by itself: name the "
            f"denoiser's run, {run.path.parent}."
        )
    checkpoint, state = (path, load_checkpoint(path)) if is_file else run.newest_state()
    origin = origin_of(run, checkpoint, state, config)
    shape = _checked_shape(origin.shape, config["model"], run)
    with building(run, state):
        model, net = build_model(task, config, extensions)
        dequantize = config.get("loss") is None or build_as(Loss, config["loss"], "loss", extensions).dequantize
    load_weights(model, state, ema=True)
    return TrainedModel(
        run=run,
        config=config,
        model=model.to(device or "cpu").eval().requires_grad_(False),
        net=net,
        codec=codec_from_state(origin.codec),
        shape=shape,
        step=int(state.get("step", 0)),
        dequantize=dequantize,
        extensions=extensions,
        fingerprint=origin.data,
        names=origin.names,
        class_counts=origin.class_counts,
    )


def _checked_shape(shape: Any, model: Mapping[str, Any], run: RunDirectory) -> tuple[int, ...]:
    """The shape of one example as codec.pt says, if it is one that the network of the configuration takes."""
    sizes = shape if isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape) else []
    expected = sizes
    if str(model["_target_"]).startswith("scoresde."):
        size = model.get("image_size")
        images = [model.get("channels"), *(size if isinstance(size, list) else [size, size])]
        expected = model.get("shape") or images
    if not sizes or sizes != expected or math.prod(sizes) > LARGEST_EVENT:
        raise CheckpointError(f"the codec of {run.path} is not that of its model: it is of examples of shape {shape}.")
    return tuple(sizes)


def newest_run(makes: type, root: str | Path = "runs", extensions: Sequence[str] = ()) -> RunDirectory:
    """The most recently trained run of a task that makes `Denoiser`s, `NoisyClassifier`s or `EmbeddingPair`s.

    A later one whose configuration cannot be read is passed over with a word on the error stream.

    Raises:
        FileNotFoundError: If there is none.
    """

    def fits(run: RunDirectory) -> bool:
        try:
            task: Task = build_as(Task, checked_config(run, extensions)["task"], "task", extensions)
        except (OSError, ValueError) as error:
            print(f"{run.path} is passed over: {error}", file=sys.stderr)
            return False
        return isinstance(task, ModelTask) and issubclass(task.makes, makes)

    runs = [RunDirectory(config.parent) for config in Path(root).rglob("config.yaml")]
    trained = [run for run in runs if run.has_checkpoint]
    latest_first = sorted(trained, key=lambda run: run.checkpoint.stat().st_mtime_ns, reverse=True)
    found = next(filter(fits, latest_first), None)
    if found is not None:
        return found
    if makes in NOUNS:
        noun = NOUNS[makes].partition(" ")[2]
        raise FileNotFoundError(
            f"no {noun} found under {root}/: train one with python train.py experiment=digits_{noun}, "
            f"or name one with guidance.{noun}=..."
        )
    return RunDirectory.newest(root)  # raises with the reason
