"""`init=...` of `train.py`: training starts from the averaged weights of another run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from scoresde.commands.build import ConfigError
from scoresde.commands.origin import hash_of_weights
from scoresde.commands.saved_config import read_config
from scoresde.training import CheckpointError, RunDirectory, load_checkpoint, load_weights


def start_from(config: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Put the averaged weights of `init`, a run or a checkpoint of one, into a new model.

    Returns:
        The configuration with the place of the weights and their hash as `init`: what the run begins with is a part of
        what it is. A run that has a checkpoint of its own needs them no more, so they may be gone then.
    Raises:
        ConfigError: If there are no such weights, or they are of another model, with the first parameter that differs.
    """
    given = config.get("init")
    if given is None:
        return config
    if not isinstance(given, str):
        raise ConfigError(f"init needs a run directory or a checkpoint, or null, got {given!r}.")
    path = Path(given).expanduser().resolve()
    if not path.exists():
        for known in _known(config):
            if known.get("path") == str(path):
                return {**config, "init": known}
        raise ConfigError(f"init={given} needs a run directory or a checkpoint: {path} does not exist.")
    try:
        state = load_checkpoint(path) if path.is_file() else RunDirectory.open(path).newest_state()[1]
        load_weights(model, state, ema=True)
    except CheckpointError as error:
        raise ConfigError(f"init={given} cannot be started from: {error}") from error
    return {**config, "init": {"path": str(path), "weights": hash_of_weights(model)}}


def _known(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What runs that have a checkpoint, and may be the one that is meant, began with."""
    runs = Path("runs").glob("*") if config["run"] is None else [Path(config["run"])]
    for run in map(RunDirectory, sorted(runs)):
        if run.config.is_file() and run.has_checkpoint:
            try:
                yield read_config(run).get("init") or {}
            except ConfigError:
                continue
