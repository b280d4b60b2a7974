"""Mean and covariance of the training data, for networks with a Wiener filter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from scoresde.commands.build import ConfigError
from scoresde.data import Dataset
from scoresde.models import WienerFilter

LARGEST = 2**25  # numbers that moments are taken from: 256 MiB in float64
FILTERS = {"EDM": "edm", "Epsilon": "epsilon", "Data": "data"}


def with_filter(model: Mapping[str, Any], parameterization: Mapping[str, Any]) -> dict[str, Any]:
    """The node of a network with the filter that suits a parameterization in place of null, and without words of none.

    Raises:
        ConfigError: If another one was given.
    """
    filled, given = dict(model), model.get("wiener", "none")
    name = str(parameterization.get("_target_")).rpartition(".")[2]
    suits = FILTERS.get(name, "none")
    if given not in (None, "none", suits):
        words = "no filter: edm, epsilon and data have one" if suits == "none" else f"model.wiener={suits}"
        raise ConfigError(f"model.wiener={given} does not suit parameterization={name.lower()}, which has {words}.")
    filled["wiener"] = suits if given is None else given
    if filled["wiener"] == "none":  # as earlier versions wrote it
        del filled["wiener"]
        if "fourier_features" not in filled:
            filled.pop("data_scale", None)
    return filled


def fit_filters(model: nn.Module, data: Dataset, *, dequantize: bool) -> None:
    """Give every `WienerFilter` in a model the mean and the covariance of the training data, as the model sees them."""
    filters = [module for module in model.modules() if isinstance(module, WienerFilter)]
    if not filters:
        return
    x = data.train.x
    rows = max(2, LARGEST // max(1, x[0].numel()))
    if len(x) > rows:
        x = x[torch.linspace(0, len(x) - 1, rows).long()]
    encoded = data.codec.encode(x, generator=torch.Generator().manual_seed(0), dequantize=dequantize)
    for module in filters:
        module.fit(encoded)
