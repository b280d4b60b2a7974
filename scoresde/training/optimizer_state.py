"""What a checkpoint says of an optimizer, checked before the optimizer's kernels, which check nothing, see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SCALARS = ("step", "eta", "mu", "mu_product")  # one number per parameter
COMPLETE = {"Adam": ("step", "exp_avg", "exp_avg_sq"), "AdamW": ("step", "exp_avg", "exp_avg_sq")}
FACTORED = ("Adafactor", "LBFGS", "Muon")  # those of torch whose state has shapes of its own


def check_optimizer_state(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Raise unless a saved state is one that this optimizer could have.

    Every moment has the shape of its parameter, every count is one number, and all are finite and real; options are
    numbers where the optimizer has numbers.

    Args:
        optimizer: Over the parameters that it is for.
        saved: From its `state_dict`.
    Raises:
        ValueError: Naming the first that is not.
    """
    whole = isinstance(saved, Mapping) and isinstance(saved.get("state"), Mapping)
    groups = saved.get("param_groups") if whole else None
    if not isinstance(groups, list) or len(groups) != len(optimizer.param_groups):
        raise ValueError("its optimizer has other groups of parameters")
    parameters: dict[Any, Tensor] = {}
    for theirs, ours in zip(groups, optimizer.state_dict()["param_groups"], strict=True):
        _check_options(theirs, ours)
    for group in optimizer.param_groups:
        parameters |= {len(parameters) + index: parameter for index, parameter in enumerate(group["params"])}
    for key, moments in saved["state"].items():
        if type(key) is not int or key not in parameters or not isinstance(moments, Mapping):
            raise ValueError(f"its optimizer has a state for {key!r}, which is no parameter here")
        _check_moments(optimizer, key, moments, parameters[key])


def _check_options(theirs: Any, ours: Mapping[str, Any]) -> None:
    if not isinstance(theirs, Mapping) or theirs.get("params") != ours["params"]:
        raise ValueError("its optimizer has other parameters")
    for name, value in ours.items():
        kept = theirs.get(name, value)
        if name != "params" and not _is_like(kept, value):
            raise ValueError(f"its optimizer has {name}={kept!r:.60}, where it is {value!r} here")


def _is_like(theirs: Any, ours: Any) -> bool:
    """Whether both are flags, finite numbers, or pairs of such; None stands beside a flag or a number."""
    if isinstance(ours, tuple | list):
        pairs = isinstance(theirs, tuple | list) and len(theirs) == len(ours)
        return pairs and all(_is_like(one, other) for one, other in zip(theirs, ours, strict=True))
    number = isinstance(theirs, int | float) and math.isfinite(theirs)
    if theirs is None or ours is None:
        return theirs is ours or theirs is None or number
    return bool(number and isinstance(theirs, bool) == isinstance(ours, bool))


def _check_moments(optimizer: torch.optim.Optimizer, key: int, moments: Mapping[str, Any], parameter: Tensor) -> None:
    kind = type(optimizer).__name__ if type(optimizer).__module__.startswith("torch.optim") else ""
    missing = [name for name in COMPLETE.get(kind, ()) if moments and name not in moments]
    if missing:
        raise ValueError(f"its optimizer lacks {missing[0]} of parameter {key}")
    for name, value in moments.items():
        if not isinstance(value, Tensor):
            if name.startswith("exp_avg") or not (value is None or isinstance(value, int | float)):
                raise ValueError(f"its optimizer has a {type(value).__name__} as {name} of parameter {key}")
            continue
        shape = () if name in SCALARS else tuple(parameter.shape)
        if tuple(value.shape) != shape and kind and kind not in FACTORED:
            raise ValueError(f"its optimizer has {name} of parameter {key} of shape {tuple(value.shape)} for {shape}")
        real = value.is_floating_point() or (name in SCALARS and not value.is_complex())
        if not real or not bool(value.isfinite().all()):
            raise ValueError(f"its optimizer has {name} of parameter {key} in {value.dtype}, or not finite")
