"""The configuration of a run: a file format, in which earlier versions wrote other words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from scoresde.commands.allowed import NotAllowed, check_saved
from scoresde.commands.build import ConfigError, check_kind
from scoresde.commands.interfaces import Task
from scoresde.commands.plain_yaml import plain_yaml
from scoresde.losses import Loss
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.training import CheckpointError, RunDirectory

INTERFACES = {"task": Task, "sde": SDE, "parameterization": Parameterization, "model": nn.Module, "loss": Loss}
ROOM = 2**20  # entries that a model may have beside what its checkpoint holds
NEEDED = ("task", "sde", "parameterization", "model", "data")
TASKS = {  # what `task: denoiser` was, until tasks were classes
    "denoiser": "TrainDenoiser",
    "classifier": "TrainClassifier",
    "variance_head": "TrainVarianceHead",
    "dequantization": "TrainDequantization",
}


def checked_config(run: RunDirectory, extensions: Sequence[str] = ()) -> dict[str, Any]:
    """The run's own configuration, to build from.

    Raises:
        ConfigError: As `read_config`, and if it names what a saved run may not name, see `check_saved`.
    """
    config = read_config(run)
    for place, interface in INTERFACES.items():
        if place in config:
            check_kind(interface, config[place], place, extensions)
    try:
        check_saved(config, extensions)
    except NotAllowed as error:
        raise ConfigError(f"{run.config} is refused: {error}.") from None
    return config


def read_config(run: RunDirectory) -> dict[str, Any]:
    """The run's own configuration, as plain values and in today's words; not to build from, see `checked_config`.

    Raises:
        ConfigError: If it is not readable, or not that of a training run.
    """
    try:
        config = plain_yaml(run.config_text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{run.config} is not readable YAML: {error}.") from None
    except ValueError as error:
        raise ConfigError(f"{run.config} {error}.") from None
    if not isinstance(config, dict):
        config = {}
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise ConfigError(f"{run.config} is not the configuration of a training run: it lacks {', '.join(missing)}.")
    return in_todays_words(config, str(run.config)) if isinstance(config["task"], str) else config


@contextmanager
def building(run: RunDirectory, state: dict[str, Any]) -> Iterator[None]:
    """While a model is built as a saved configuration says: it gets no larger than the weights of its checkpoint.

    Args:
        run: Whose configuration it is.
        state: Its checkpoint.
    Raises:
        ConfigError: If the model would be larger, or if its numbers make no model.
    """
    weights = state.get("model")
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(f"the checkpoint of {run.path} holds no weights of a training run.")
    entries, tensors = ROOM + 2 * sum(weight.numel() for weight in weights.values()), 1000 + 4 * len(weights)

    def count(module: object, name: str, tensor: Tensor | None) -> None:
        nonlocal entries, tensors
        entries, tensors = entries - (0 if tensor is None else tensor.numel()), tensors - 1
        if entries < 0 or tensors < 0:
            raise ConfigError(f"{run.config} describes a larger model than the checkpoint of the run holds.")

    hooks = [register_module_parameter_registration_hook(count), register_module_buffer_registration_hook(count)]
    try:
        yield
    except (RuntimeError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{run.config} describes no model that can be built: {reason}.") from error
    finally:
        for hook in hooks:
            hook.remove()


def in_todays_words(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration whose task is a word, with the class that this word stood for."""
    if config["task"] not in TASKS:
        raise ConfigError(f"{name} says task: {config['task']}, which no version knew: one of {', '.join(TASKS)}.")
    loss, head = (value if isinstance(value := config.get(key), dict) else {} for key in ("loss", "head"))
    task: dict[str, Any] = {"_target_": f"scoresde.commands.{TASKS[config['task']]}"}
    if config["task"] == "denoiser":
        task |= {
            "variance_output": config.get("variance_output", "fixed"),
            "steps": loss.get("steps"),
        }
    if config["task"] == "variance_head":
        task["head"] = head.get("kind")
    return {key: task if key == "task" else value for key, value in config.items() if key != "variance_output"}
