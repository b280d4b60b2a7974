"""What the data decide of a training configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from scoresde.commands.arguments import complaint
from scoresde.commands.build import ANY_INTERFACE, ConfigError, check_kind, find_target
from scoresde.commands.second_moments import with_filter
from scoresde.data import Dataset, Quantized
from scoresde.data.conditions import condition_columns, constant_columns
from scoresde.data.grids_and_tokens import image_options, sequence_options
from scoresde.models import DDPMUNet, NCSNpp
from scoresde.models.fourier_features import level_exponents


def fill(config: dict[str, Any], data: Dataset, *, labelled: bool, outputs: int = 1) -> dict[str, Any]:
    """The configuration with what the data decide in place of nulls: shapes, classes, widths, sigma_data, size.

    Args:
        config: With the nodes model, parameterization and loss.
        data: The data.
        labelled: Whether the network is given labels.
        outputs: Values that the network gives for every entry of the data.
    Raises:
        ConfigError: If the model or the labels do not suit the data.
    """
    for key in ("model", "parameterization", "loss"):
        if not isinstance(config.get(key), Mapping):
            raise ConfigError(f"{key}={config.get(key)} names no class: it is needed to train a model.")
    _check_given(config["model"])
    config = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    model, shape = config["model"], data.shape
    if labelled and data.num_classes is None:
        raise ConfigError(f"data={data.name} has no labels: it needs conditional=false and task=denoiser.")
    _check_shape(model, shape, data.name)
    suited: dict[str, Any] = {"shape": list(shape), "num_classes": data.num_classes if labelled else None}
    quantised = {}
    if isinstance(data.codec, Quantized):
        quantised = {"levels": data.codec.levels, "value_range": list(data.codec.value_range)}
    suited |= quantised
    suited |= _suited_conditions(model, config["loss"], data)
    if outputs != 1:
        if "out_channels" not in model:
            raise ConfigError(
                f"a task whose network gives {outputs} values per entry of the data needs a network with out_channels: "
                f"use model=ncsnpp or model=mlp, got {model['_target_']}."
            )
        suited["out_channels"] = outputs * shape[0]
    if "image_size" in model:
        suited |= _suited_unet(shape, model.get("channel_mults"), model.get("patch", 1))
    if data.missing:
        _suit_gaps(model, config, shape[0])
    for key, value in suited.items():
        if key in model and (model[key] is None or isinstance(model[key], Mapping)):
            model[key] = value
    _check_attention(model)
    if config["parameterization"].get("sigma_data", 0) is None:
        config["parameterization"]["sigma_data"] = _standard_deviation(data)
    known = {
        "sigma_data": config["parameterization"].get("sigma_data"),
        "size": math.prod(shape[1:] or shape),
        **quantised,
    }
    if model.get("fourier_features") == "levels":
        model["fourier_features"] = _level_features(data)
    if model.get("data_scale", 0) is None:
        model["data_scale"] = known["sigma_data"] or 1.0
    config["model"] = with_filter(model, config["parameterization"])
    for key, none in (("patch", 1), ("image", None), ("sequence", None)):  # as earlier versions wrote it
        if config["model"].get(key, 0) == none:
            del config["model"][key]
    config["loss"] = _without_nulls(config["loss"], known)
    if isinstance(config.get("data"), dict) and config["data"].get("levels", 0) is None and quantised:
        config["data"]["levels"] = quantised["levels"]
    return config


def _suit_gaps(model: dict[str, Any], config: Mapping[str, Any], channels: int) -> None:
    """Tell a network of which entries are missing.

    Raises:
        ConfigError: If network or task have no place for that.
    """
    task = config.get("task") or {}
    if not str(task.get("_target_")).endswith("TrainDenoiser") or task.get("variance_output", "fixed") != "fixed":
        raise ConfigError("data.missing=mask is for task=denoiser with variance_output=fixed.")
    if "concat_channels" not in model:
        raise ConfigError(
            f"data.missing=mask needs a network with concat_channels, got {model['_target_']}: use model=mlp or "
            f"model=ncsnpp."
        )
    if model.get("wiener") not in (None, "none"):
        raise ConfigError("data.missing=mask needs model.wiener=none: the best linear denoiser is of whole examples.")
    model["concat_channels"] = channels
    if "wiener" in model:
        model["wiener"] = "none"


CONDITION_WIDTH = 128


def _suited_conditions(model: Mapping[str, Any], loss: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """What a network needs to know of the conditions of its training examples; says which of them tell it nothing."""
    optional, given = check_dropout(model, loss, data), data.train.given
    suited: dict[str, Any] = {}
    if "condition" in given and "condition_dim" in model:
        suited |= _suited_columns(model, data) | {"condition_optional": "condition" in optional}
    for key in ("image", "sequence"):
        of_user = model.get(key)
        if key not in model or (key not in given and of_user is None):
            continue
        if key not in given:
            raise ConfigError(f"model.{key} is of data with {key}, and data={data.name} has none: leave it out.")
        make = image_options if key == "image" else sequence_options
        count = data.image_categories if key == "image" else data.vocabulary
        known = make(given[key], count, optional=key in optional)
        if of_user is not None and not isinstance(of_user, Mapping):
            raise ConfigError(f"model.{key} needs options, as {{optional: true}}, or null, got {of_user!r}.")
        suited[key] = known | dict(of_user or {})
    return suited


def _suited_columns(model: Mapping[str, Any], data: Dataset) -> dict[str, Any]:
    """What a network needs to know of the columns of a condition."""
    condition, columns = data.train.given["condition"], data.names.conditions
    if constant := constant_columns(condition, columns):
        print(f"the condition {', '.join(constant)} is the same in all training examples: it tells the model nothing.")
    known = condition_columns(condition, columns)
    if model["condition_dim"] not in (None, known["condition_dim"]):
        raise ConfigError(
            f"model.condition_dim={model['condition_dim']}, but the conditions of data={data.name} have "
            f"{known['condition_dim']} columns: leave it out."
        )
    return {**known, "condition_width": CONDITION_WIDTH}


def check_dropout(model: Mapping[str, Any], loss: Mapping[str, Any], data: Dataset) -> list[str]:
    """The conditions that are to be dropped in training, if network and data are for that.

    Raises:
        ConfigError: If they are not.
    """
    dropped: list[str] = []
    for key in ("condition", "image", "sequence"):
        own, joint = loss.get(f"{key}_dropout") or 0, loss.get("joint_dropout") or 0
        if key not in data.train.given:
            if own:
                raise ConfigError(f"loss.{key}_dropout={own} has nothing to drop: data={data.name} has no {key}s.")
            continue
        if not own and not joint:
            continue
        if "_target_" in model and not _may_be_absent(model, key):
            which = f"{key}_dropout={own}" if own else f"joint_dropout={joint}"
            option = "condition_optional" if key == "condition" else f"{key}.optional"
            raise ConfigError(
                f"loss.{which} needs a network that can do without its {key}: model.{option}=true, of model=mlp, "
                f"ncsnpp or the other U-Nets."
            )
        dropped.append(key)
    return dropped


def _may_be_absent(model: Mapping[str, Any], key: str) -> bool:
    """Whether a network can do without a condition, as far as its configuration says."""
    if key == "condition":
        return "condition_optional" in model and model["condition_optional"] in (None, True)
    options = model.get(key, False)
    return options is None or (isinstance(options, Mapping) and options.get("optional", True) is True)


def _check_shape(model: Mapping[str, Any], shape: Sequence[int], name: str) -> None:
    """Raise if a convolutional network cannot take examples of this shape."""
    if "image_size" not in model:
        return
    target = find_target(model["_target_"], "model", [ANY_INTERFACE])
    of_any_size = target in (NCSNpp, DDPMUNet)
    if of_any_size and not 2 <= len(shape) <= 4:
        needs = "series (channels, length), images (channels, height, width) or volumes"
    elif not of_any_size and (len(shape) != 3 or shape[1] != shape[2]):
        needs = "square images (channels, height, width)"
    else:
        return
    raise ConfigError(
        f"model {model['_target_']} needs {needs}, but data={name} has events of shape {tuple(shape)}: use model=mlp."
    )


def _check_attention(model: Mapping[str, Any]) -> None:
    """Raise if a U-Net is to attend at a size that no stage has, which it would leave undone."""
    mults, resolutions, size = (model.get(key) for key in ("channel_mults", "attention_resolutions", "image_size"))
    if isinstance(mults, list) and isinstance(resolutions, list) and isinstance(size, int | list):
        sizes = stage_sizes(size if isinstance(size, list) else [size], len(mults), model.get("patch", 1))
        if missing := [resolution for resolution in resolutions if resolution not in sizes]:
            raise ConfigError(
                f"model.attention_resolutions needs sizes of stages, among {', '.join(map(str, sizes))}, "
                f"got {missing[0]!r}."
            )


def _check_given(model: Mapping[str, Any]) -> None:
    """Raise if what the user gave for a model is not what it takes, before the rest follows from it."""
    if "_target_" not in model:
        return
    check_kind(nn.Module, model, "model", [ANY_INTERFACE])
    target = find_target(model["_target_"], "model", [ANY_INTERFACE])
    decided = (None, "levels")  # by the data
    given = {key: value for key, value in model.items() if key != "_target_" and value not in decided}
    if wrong := complaint(target, given, "model", waits=True):
        raise ConfigError(wrong)


def _without_nulls(node: Any, known: Mapping[str, Any]) -> Any:
    """A node in which known values, at any depth, stand in place of nulls."""
    if not isinstance(node, Mapping):
        return node
    filled = {key: _without_nulls(value, known) for key, value in node.items()}
    return filled | {key: value for key, value in known.items() if key in node and node[key] is None}


def _suited_unet(shape: Sequence[int], channel_mults: Sequence[int] | None, patch: int) -> dict[str, Any]:
    """Defaults of a U-Net for series, images or volumes of this shape."""
    channels, sizes = shape[0], list(shape[1:])
    size, square = max(sizes), len(sizes) == 2 and len(set(sizes)) == 1
    stages = len(channel_mults) if channel_mults else stages_of(sizes, patch)
    at = stage_sizes(sizes, stages, patch)
    return {
        "channels": channels,
        "image_size": size if square else sizes,
        "width": 48 if size < 16 else 96 if size < 32 else 128,
        "channel_mults": [1] + [2] * (stages - 1),
        "num_res_blocks": 2 if size < 32 else 4,
        "attention_resolutions": [s for s in at[1:] if s <= 16][:1] if size >= 16 else [],
        "fir": size >= 16,
        "progressive_input": "residual" if size >= 16 else "none",
    }


def stages_of(sizes: Sequence[int], patch: int = 1) -> int:
    """A stage for every halving of the longest axis, in patches, down to 4 places; at most 4 stages."""
    longest = max(sizes) // patch
    return next((stages for stages in (4, 3, 2) if longest >> (stages - 1) >= 4), 1)


def stage_sizes(sizes: Sequence[int], stages: int, patch: int = 1) -> list[int]:
    """The longest axis at every stage, in patches, which `attention_resolutions` refers to."""
    return [-(-max(sizes) // (patch * 2**stage)) for stage in range(stages)]


def _level_features(data: Dataset) -> list[float]:
    """Exponents of `FourierFeatures` that tell the data's levels apart."""
    if not isinstance(data.codec, Quantized):
        raise ConfigError(f"model.fourier_features=levels needs data with levels, but data={data.name} is continuous.")
    return list(level_exponents(data.codec.levels, data.codec.value_range))


def _standard_deviation(data: Dataset) -> float:
    """Standard deviation of the training data in model space over all entries, to three digits."""
    x = data.train.x[:4096]
    encoded = data.codec.encode(x, dequantize=False) if isinstance(data.codec, Quantized) else data.codec.encode(x)
    value = encoded[~encoded.isnan()].double().std().item()
    return float(f"{value:.3g}") if math.isfinite(value) and value > 0 else 1.0
