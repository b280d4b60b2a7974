"""A trained denoiser from its run directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from scoresde.commands.build import ConfigError, build, build_model
from scoresde.covariance import LearnedRange
from scoresde.data import Quantized, Standardized, codec_from_state
from scoresde.denoiser import Denoiser, NetworkDenoiser
from scoresde.guidance.noisy_classifier import NoisyClassifier
from scoresde.training import RunDirectory, load_checkpoint, load_weights

CODEC_FILE = "codec.pt"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A trained model and what is needed to use it.

    Args:
        run: Its run directory.
        config: The configuration that it was trained with.
        model: A `NetworkDenoiser`, `LearnedRange` or `NoisyClassifier` with averaged weights, in evaluation mode.
        codec: Map between the data's own values and the model's.
        shape: Event shape.
        step: Number of training steps behind the weights.
        dequantize: Whether it was trained on dequantised levels rather than on the centres of their cells.
        extensions: The user's own modules that its classes may come from.
    """

    run: RunDirectory
    config: dict[str, Any]
    model: NetworkDenoiser | LearnedRange | NoisyClassifier
    codec: Quantized | Standardized
    shape: tuple[int, ...]
    step: int
    dequantize: bool = True
    extensions: Sequence[str] = ()


def load(path: str | Path, *, device: str | torch.device | None = None, extensions: Sequence[str] = ()) -> Denoiser:
    """The denoiser of a run, with averaged weights, ready for solvers.

    Args:
        path: A run directory, or a checkpoint inside one.
        device: Where to put it; None is the CPU.
        extensions: The user's own modules that the run's classes may come from.
    Raises:
        FileNotFoundError: If there is no such run or it has no checkpoint.
        CheckpointError: If the checkpoint is damaged, or could run code.
        ConfigError: If the run is that of a classifier, or its configuration names something that is not allowed.
    """
    model = load_run(path, device=device, extensions=extensions).model
    if not isinstance(model, Denoiser):
        raise ConfigError(f"{path} is the run of a classifier, not of a denoiser.")
    return model


def load_run(
    path: str | Path, *, device: str | torch.device | None = None, extensions: Sequence[str] = ()
) -> TrainedModel:
    """Everything about the model of a run; see `load` for arguments and errors."""
    path = Path(path)
    is_file = path.suffix == ".pt"
    run = RunDirectory.open(path.parent.parent if is_file else path)
    checkpoint = path if is_file else run.checkpoint
    config = read_config(run)
    if config["task"] in ("variance_head", "dequantization"):
        noun = config["task"].replace("_", " ")
        raise ConfigError(f"{run.path} is a {noun}: name the denoiser's run, {run.path.parent}.")
    state = load_checkpoint(checkpoint)
    codec = load_checkpoint(run.path / CODEC_FILE)
    model = build_model(config, extensions)
    load_weights(model, state, ema=True)
    return TrainedModel(
        run=run,
        config=config,
        model=model.to(device or "cpu").eval().requires_grad_(False),
        codec=codec_from_state(codec["codec"]),
        shape=tuple(codec["shape"]),
        step=int(state.get("step", 0)),
        dequantize=_dequantizes(config.get("loss"), extensions),
        extensions=extensions,
    )


def _dequantizes(loss: Any, extensions: Sequence[str]) -> bool:
    try:
        return bool(getattr(build(loss, "loss", extensions), "dequantize", True))
    except ConfigError:  # a loss of the user's own, which takes no part in using the model
        return True


def read_config(run: RunDirectory) -> dict[str, Any]:
    """The run's own configuration, as plain values."""
    try:
        config = yaml.safe_load(run.config_text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{run.config} is not readable YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(config, dict):
        config = {}
    missing = [key for key in ("task", "sde", "parameterization", "model", "data") if key not in config]
    if missing:
        raise ConfigError(f"{run.config} is not the configuration of a training run: it lacks {', '.join(missing)}.")
    return config


def newest_run(task: str, root: str | Path = "runs") -> RunDirectory:
    """The most recently trained run of a task, "denoiser" or "classifier"."""
    runs = [RunDirectory(config.parent) for config in Path(root).rglob("config.yaml")]
    fitting = [run for run in runs if run.has_checkpoint and read_config(run)["task"] == task]
    if not fitting:
        if task == "classifier":
            raise FileNotFoundError(
                f"no classifier found under {root}/: train one with python train.py experiment=digits_classifier, "
                f"or name one with guidance.classifier=..."
            )
        return RunDirectory.newest(root)  # raises with the reason
    return max(fitting, key=lambda run: run.checkpoint.stat().st_mtime_ns)
