"""The configuration of a run: a file format, in which earlier versions wrote other words."""

from __future__ import annotations

from typing import Any

import yaml

from scoresde.commands.build import ConfigError
from scoresde.training import RunDirectory

NEEDED = ("task", "sde", "parameterization", "model", "data")
TASKS = {  # what `task: denoiser` was, until tasks were classes
    "denoiser": "TrainDenoiser",
    "classifier": "TrainClassifier",
    "variance_head": "TrainVarianceHead",
    "dequantization": "TrainDequantization",
}


def read_config(run: RunDirectory) -> dict[str, Any]:
    """The run's own configuration, as plain values and in today's words."""
    try:
        config = yaml.safe_load(run.config_text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{run.config} is not readable YAML: {str(error).splitlines()[0]}.") from None
    if not isinstance(config, dict):
        config = {}
    missing = [key for key in NEEDED if key not in config]
    if missing:
        raise ConfigError(f"{run.config} is not the configuration of a training run: it lacks {', '.join(missing)}.")
    return in_todays_words(config, str(run.config)) if isinstance(config["task"], str) else config


def in_todays_words(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A configuration whose task is a word, with the class that this word stood for."""
    if config["task"] not in TASKS:
        raise ConfigError(f"{name} says task: {config['task']}, which no version knew: one of {', '.join(TASKS)}.")
    task: dict[str, Any] = {"_target_": f"scoresde.commands.{TASKS[config['task']]}"}
    if config["task"] == "denoiser":
        task |= {
            "variance_output": config.get("variance_output", "fixed"),
            "steps": (config.get("loss") or {}).get("steps"),
        }
    if config["task"] == "variance_head":
        task["head"] = (config.get("head") or {}).get("kind")
    return {key: task if key == "task" else value for key, value in config.items() if key != "variance_output"}
