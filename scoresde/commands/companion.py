"""Companions of a run: modules trained for its frozen denoiser and kept in its folder, as runs of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from scoresde.commands.batches import Batches
from scoresde.commands.build import ANY_INTERFACE, ConfigError, build
from scoresde.commands.load import TrainedModel, newest_run
from scoresde.data import Dataset
from scoresde.training import RunDirectory, Trainer

OWN = ("loss", "optimizer", "trainer", "batch_size", "seed")  # what a companion's configuration says itself


def companion_config(config: dict[str, Any], noun: str, experiment: str) -> dict[str, Any]:
    """What training a companion needs, from a configuration of `train.py`: `of` is the run, `model` the network.

    Args:
        config: The configuration.
        noun: What the companion is, for messages.
        experiment: A recipe that trains one.
    Raises:
        ConfigError: If the configuration says something that the run has decided.
    """
    given = [key for key in ("run", "conditional", "sde", "parameterization", "data") if config.get(key)]
    if given:
        raise ConfigError(
            f"a {noun} takes {' and '.join(given)} from its run: leave out {given[0]}=..., name the run with "
            f"of=..., and start from experiment={experiment}."
        )
    own = {key: config[key] for key in (*OWN, "logger", "device", "extensions")}
    return {**own, "run": newest_run("denoiser").path if config["of"] is None else config["of"]}


def train_companion(
    trained: TrainedModel,
    module: nn.Module,
    parameters: Sequence[Tensor],
    loss: Any,
    config: dict[str, Any],
    *,
    task: str,
    key: str,
    path: Path,
    options: dict[str, Any],
) -> dict[str, float]:
    """Train a module around the denoiser of a run, or go on with the one that has the same configuration.

    Args:
        trained: The run.
        module: What is trained; the loss is called with it.
        parameters: Those that are trained.
        loss: Called as loss(module, x0, generator=..., **cond).
        config: loss, optimizer, trainer, logger, batch_size, seed and extensions, as nodes.
        task, key: Written into the companion's configuration: its task, and the name under which it has `options`.
        path: Of its run.
        options: What it takes to build the module again, and the denoiser's `step`.
    """
    extensions = [*config["extensions"], ANY_INTERFACE]
    device = parameters[0].device
    data = data_of(trained, config["extensions"])
    whole = {**trained.config, **{key: config[key] for key in OWN}, "task": task, key: options}
    run = RunDirectory.create(path, yaml.safe_dump(whole, sort_keys=False))
    count = sum(parameter.numel() for parameter in parameters)
    print(f"{run.path}: {count:,} parameters, {len(data.train):,} training examples, {device}")
    trainer = build(
        config["trainer"],
        "trainer",
        extensions,
        denoiser=module,
        loss=loss,
        optimizer=build(config["optimizer"], "optimizer", extensions)(parameters),
        batch=Batches(
            data, config["batch_size"], config["seed"], labelled=labelled(trained), dequantize=trained.dequantize
        ),
        run=run,
        logger=build(config["logger"], "logger", extensions)(run),
        seed=config["seed"],
        device=device,
    )
    assert isinstance(trainer, Trainer)
    return trainer.fit()


def open_companion(trained: TrainedModel, path: Path, key: str, *, noun: str, command: str) -> RunDirectory:
    """The run of a companion.

    Raises:
        ConfigError: If there is none, or if the denoiser has been trained further since.
    """
    if not (path / "config.yaml").is_file():
        raise ConfigError(
            f"{trained.run.path} has no {noun}: train one for it first, with python train.py {command} "
            f"of={trained.run.path}, which makes {path}."
        )
    run = RunDirectory.open(path)
    step = options_of(run, key)["step"]
    if step != trained.step:
        raise ConfigError(
            f"the {noun} in {path} was trained for step {step} of {trained.run.path}, which is at step "
            f"{trained.step}: remove {path} and train it again."
        )
    return run


def options_of(run: RunDirectory, key: str) -> dict[str, Any]:
    """What `train_companion` was given as `options`."""
    return dict(yaml.safe_load(run.config_text)[key])


def data_of(trained: TrainedModel, extensions: Sequence[str]) -> Dataset:
    """The data that a run was trained on.

    Raises:
        ConfigError: If they have changed.
    """
    data = build(trained.config["data"], "data", extensions)
    if not isinstance(data, Dataset) or data.shape != trained.shape:
        raise ConfigError(f"the data of {trained.run.path} are no longer those that it was trained on.")
    return data


def labelled(trained: TrainedModel) -> bool:
    """Whether a run's network is given labels."""
    return trained.config["model"].get("num_classes") is not None
