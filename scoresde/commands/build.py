"""Objects from plain configurations: `_target_` names a class or function, the other keys are its arguments."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from scoresde.covariance import LearnedRange
from scoresde.data import Dataset, Quantized
from scoresde.denoiser import NetworkDenoiser
from scoresde.guidance.noisy_classifier import NoisyClassifier
from scoresde.models.fourier_features import level_exponents
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.solvers import Solver

INTERFACES = (SDE, Parameterization, Solver, nn.Module, torch.optim.Optimizer)
ANY_INTERFACE = "*"  # in `extensions`: any class that implements one of INTERFACES


class ConfigError(ValueError):
    """A configuration cannot be turned into objects; the message says which entry and why."""


def build(node: Any, where: str = "config", extensions: Sequence[str] = (), /, **overrides: Any) -> Any:
    """Build a configuration node and everything inside it.

    A dict with `_target_` becomes a call of what that names, or with `_partial_: true` a function that waits for more
    arguments; other dicts, lists and values stay as they are. Targets are public names of scoresde, optimizers of
    torch, and names in `extensions`; nothing else is imported, so a configuration from elsewhere cannot run code.
    With "*" in `extensions`, for configurations that the user wrote, also any class of the right interface.

    Args:
        node: Plain dicts, lists and values.
        where: Name of the node in error messages.
        extensions: Modules of the user's own whose names may be targets.
        overrides: More arguments for the outermost call.
    Raises:
        ConfigError: If a target is refused or does not exist, or if a call fails; with the reason in one sentence.
    """
    if isinstance(node, Mapping):
        arguments = {
            key: build(value, f"{where}.{key}", extensions)
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return arguments
        target = find_target(node["_target_"], where, extensions)
        arguments |= overrides
        _check_types(target, arguments, where)
        if node.get("_partial_", False):
            return partial(target, **arguments)
        try:
            return target(**arguments)
        except TypeError as error:
            raise ConfigError(f"{where}: {error}") from error
    if isinstance(node, list | tuple):
        return [build(value, f"{where}[{index}]", extensions) for index, value in enumerate(node)]
    return node


def _check_types(target: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Raise if a number, flag or text stands where the signature's default says another kind belongs."""
    kinds: dict[type, tuple[Any, str]] = {
        bool: (bool, "true or false"),
        int: (int, "a whole number"),
        float: ((int, float), "a number"),
        str: (str, "text"),
    }
    for name, parameter in inspect.signature(target).parameters.items():
        value, default = arguments.get(name), parameter.default
        if name not in arguments or value is None or type(default) not in kinds:
            continue
        allowed, words = kinds[type(default)]
        if not isinstance(value, allowed) or (isinstance(value, bool) and type(default) is not bool):
            raise ConfigError(f"{where}.{name} needs {words}, got {value!r}.")


def find_target(name: Any, where: str, extensions: Sequence[str] = ()) -> Any:
    """The class or function that a dotted name stands for, if it is allowed.

    Raises:
        ConfigError: If the name is refused or leads nowhere.
    """
    allowed = ("scoresde", "torch.optim", *extensions)
    root = next((module for module in allowed if str(name).startswith(module + ".")), None)
    if root is None and ANY_INTERFACE in extensions and "." in str(name):
        root = str(name).split(".")[0]
    if root is None:
        raise ConfigError(
            f"{where}._target_ names {name!r}, which is not part of scoresde or torch.optim: "
            f"if the module is yours, allow it with extensions=[{str(name).split('.')[0]}]."
        )
    module_name, _, attribute = str(name).rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError):
        raise ConfigError(f"{where}._target_ names {name!r}, which does not exist.") from None
    home = getattr(target, "__module__", None) or ""
    if not callable(target) or not (home == root or home.startswith(root + ".")):
        raise ConfigError(f"{where}._target_ names {name!r}, which is not a class or function of {root}.")
    if root not in ("scoresde", *extensions) and not (isinstance(target, type) and issubclass(target, INTERFACES)):
        raise ConfigError(
            f"{where}._target_ names {name!r}, which is none of {', '.join(kind.__name__ for kind in INTERFACES)}: "
            f"if it is yours and meant, allow it with extensions=[{root}]."
        )
    return target


def require(built: Any, interface: type, where: str) -> Any:
    """What was built, if it is of the kind that its place needs.

    Args:
        built: The object.
        interface: The class that it must be an instance of.
        where: The group, for the message: what the user wrote in front of "=".
    Raises:
        ConfigError: If it is something else.
    """
    if isinstance(built, interface):
        return built
    article = "an" if interface.__name__[0] in "AEIO" else "a"
    if isinstance(built, Mapping):
        got = f"options without a class ({', '.join(map(str, built)) or 'none'}): name one with _target_"
    else:
        got = getattr(built, "__name__", type(built).__name__)
    raise ConfigError(f"{where}=... must be {article} {interface.__name__}, got {got}.")


def fill(config: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The configuration with what the data decide in place of nulls: shapes, classes, widths, sigma_data.

    Raises:
        ConfigError: If the model or `conditional` does not suit the data.
    """
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    model, shape = config["model"], data.shape
    labelled = bool(config["conditional"]) or config["task"] == "classifier"
    if labelled and data.num_classes is None:
        raise ConfigError(f"data={data.name} has no labels: it needs conditional=false and task=denoiser.")
    if "image_size" in model and (len(shape) != 3 or shape[1] != shape[2]):
        raise ConfigError(
            f"model {model['_target_']} needs square images (channels, height, width), but data={data.name} has "
            f"events of shape {shape}: use model=mlp."
        )
    suited: dict[str, Any] = {"shape": list(shape), "num_classes": data.num_classes if labelled else None}
    quantised = {}
    if isinstance(data.codec, Quantized):
        quantised = {"levels": data.codec.levels, "value_range": list(data.codec.value_range)}
    suited |= quantised
    if data.train.condition is not None:
        suited["condition_dim"] = data.train.condition[0].numel()
    if config.get("variance_output", "fixed") != "fixed":
        _require_learned_range(config)
        suited["out_channels"] = 2 * shape[0]
    if "image_size" in model:
        suited |= _suited_unet(shape, channel_mults=model.get("channel_mults"))
    for key, value in suited.items():
        if key in model and model[key] is None:
            model[key] = value
    if config["parameterization"].get("sigma_data", 0) is None:
        config["parameterization"]["sigma_data"] = _standard_deviation(data)
    known = {"sigma_data": config["parameterization"].get("sigma_data"), **quantised}
    if model.get("fourier_features") == "levels":
        model["fourier_features"] = _level_features(data)
    if model.get("data_scale", 0) is None:
        model["data_scale"] = known["sigma_data"] or 1.0
    config["loss"] = _without_nulls(config["loss"], known)
    return config


def _without_nulls(node: Any, known: Mapping[str, Any]) -> Any:
    """A node in which known values, at any depth, stand in place of nulls."""
    if not isinstance(node, Mapping):
        return node
    filled = {key: _without_nulls(value, known) for key, value in node.items()}
    return filled | {key: value for key, value in known.items() if key in node and node[key] is None}


def _require_learned_range(config: Mapping[str, Any]) -> None:
    kind = config["variance_output"]
    if kind != "learned_range":
        raise ConfigError(f"variance_output needs to be fixed or learned_range, got {kind!r}.")
    if config["task"] != "denoiser" or "out_channels" not in config["model"]:
        raise ConfigError(
            f"variance_output=learned_range needs task=denoiser and a network with out_channels, for twice the "
            f"channels of the data: use model=ncsnpp or model=mlp, got {config['model']['_target_']}."
        )


def build_model(
    config: Mapping[str, Any], extensions: Sequence[str] = ()
) -> NetworkDenoiser | LearnedRange | NoisyClassifier:
    """The denoiser or classifier that a filled-in training configuration describes, with fresh weights."""
    sde = require(build(config["sde"], "sde", extensions), SDE, "sde")
    rule = require(
        build(config["parameterization"], "parameterization", extensions), Parameterization, "parameterization"
    )
    net = require(build(config["model"], "model", extensions), nn.Module, "model")
    if config.get("variance_output", "fixed") == "learned_range":
        return LearnedRange(net, sde, rule, steps=config["loss"].get("steps"))
    kind = NoisyClassifier if config["task"] == "classifier" else NetworkDenoiser
    return kind(net, sde, rule)


def _suited_unet(shape: Sequence[int], channel_mults: Sequence[int] | None) -> dict[str, Any]:
    """Defaults of a U-Net for images of this shape."""
    channels, size = shape[0], shape[-1]
    levels = 1
    while levels < 4 and size % 2**levels == 0 and size >> levels >= 4:
        levels += 1
    levels = len(channel_mults) if channel_mults else levels
    sizes = [size >> level for level in range(levels)]
    return {
        "channels": channels,
        "image_size": size,
        "width": 48 if size < 16 else 96 if size < 32 else 128,
        "channel_mults": [1] + [2] * (levels - 1),
        "num_res_blocks": 2 if size < 32 else 4,
        "attention_resolutions": [s for s in sizes[1:] if s <= 16][:1] if size >= 16 else [],
        "fir": size >= 16,
        "progressive_input": "residual" if size >= 16 else "none",
    }


def _level_features(data: Dataset) -> list[float]:
    """Exponents of `FourierFeatures` that tell the data's levels apart."""
    if not isinstance(data.codec, Quantized):
        raise ConfigError(f"model.fourier_features=levels needs data with levels, but data={data.name} is continuous.")
    return list(level_exponents(data.codec.levels, data.codec.value_range))


def _standard_deviation(data: Dataset) -> float:
    """Standard deviation of the training data in model space over all entries, to three digits."""
    x = data.train.x[:4096]
    encoded = data.codec.encode(x, dequantize=False) if isinstance(data.codec, Quantized) else data.codec.encode(x)
    value = encoded.double().std().item()
    return float(f"{value:.3g}") if math.isfinite(value) and value > 0 else 1.0
