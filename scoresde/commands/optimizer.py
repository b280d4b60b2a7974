"""`optimizer=...` of `train.py`: torch's optimizers, with ranges for the arguments that most of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from scoresde.checks import check_numbers, check_pair
from scoresde.commands.build import ConfigError, build_as

RANGES = {
    "lr": "0 < lr <= 1e9",
    "eps": "0 <= eps <= 1e9",
    "weight_decay": "0 <= weight_decay <= 1e9",
    "momentum": "0 <= momentum < 1",
    "alpha": "0 <= alpha < 1",
}


def build_optimizer(node: Any, extensions: Sequence[str], parameters: Sequence[Any]) -> torch.optim.Optimizer:
    """The optimizer of a configuration.

    Args:
        node: Its class and arguments; it waits for the parameters.
        extensions: Modules of the user's own.
        parameters: What is trained, tensors or groups of them.
    Raises:
        ConfigError: If an argument is out of its range, or if the optimizer refuses one.
    """
    try:
        if isinstance(node, Mapping) and str(node.get("_target_")).startswith("torch.optim."):
            given = {str(key): value for key, value in node.items()}
            check_numbers("optimizer", *(RANGES[key] for key in RANGES if key in given), **given)
            for condition in ("0 <= low < 1", "0 <= high < 1") if "betas" in given else ():
                check_pair("optimizer", "betas", given["betas"], condition)
        made: torch.optim.Optimizer = build_as(torch.optim.Optimizer, node, "optimizer", extensions, parameters)
    except (ValueError, TypeError, IndexError) as error:
        raise ConfigError(str(error) if str(error).startswith("optimizer") else f"optimizer: {error}") from error
    return made
