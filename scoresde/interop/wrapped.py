"""The weights in a checkpoint of score_sde, whatever they are wrapped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoresde.interop.score_sde_keys import score_sde_keys
from scoresde.models import NCSNpp

PLACES = ("model", "state_dict", "model_state_dict", "net", "network", "weights", "params")
AVERAGES = ("ema", "ema_state_dict", "model_ema", "ema_model", "state_dict_ema", "params_ema")
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")  # of DataParallel, torch.compile and trainers
DEEPEST = 4  # places inside places


def weights_by_name(content: Mapping[str, Any], net: NCSNpp, ema: bool, source: str) -> dict[str, Tensor]:
    """The weights in a checkpoint, by their published names.

    Args:
        content: Of the file: weights by their published names, or by ours, or such a mapping under one of `PLACES`;
            averaged weights by name, or in the order of the parameters as `shadow_params`, under one of `AVERAGES`.
        net: The network of the config.
        ema: Take the averaged weights where there are some.
        source: What the content is called in messages.
    Raises:
        ValueError: If it has no weights, none but averaged ones for ema=False, or as many as another network.
    """
    named, average = _found(content, PLACES), _average(content)
    if named is None and average is None:
        held = ", ".join(map(str, list(content)[:5])) or "nothing"
        raise ValueError(f"{source} has no weights by name, at its top or under {', '.join(PLACES)}: it holds {held}.")
    if named is None and not ema:
        raise ValueError(f"{source} holds averaged weights alone: load them with ema=True.")
    weights, published = _unwrapped(named or {}, source), score_sde_keys(net)
    if ema and average is not None:
        weights |= _averaged(average, net, source)
    weights = {published.get(name, name): value for name, value in weights.items()}  # ours are taken too
    if named is None:  # buffers follow from the config
        weights = {published[name]: value for name, value in net.named_buffers() if name in published} | weights
    return weights


def _found(content: Mapping[str, Any], places: Sequence[str], depth: int = 0) -> Mapping[str, Any] | None:
    """The mapping that has tensors by name, here or deeper."""
    inner = [content[place] for place in places if isinstance(content.get(place), Mapping)]
    if depth < DEEPEST:
        for mapping in inner:
            if (found := _found(mapping, places, depth + 1)) is not None:
                return found
    weights = {key: value for key, value in content.items() if isinstance(value, Tensor) and "." in str(key)}
    return (weights and content) or None


def _average(content: Mapping[str, Any], depth: int = 0) -> Mapping[str, Any] | Sequence[Tensor] | None:
    """Averaged weights by name, or in the order of the parameters."""
    for place in AVERAGES:
        if isinstance(given := content.get(place), Mapping):
            if isinstance(given.get("shadow_params"), Sequence):
                return given["shadow_params"]  # type: ignore[no-any-return]
            if (found := _found(given, PLACES)) is not None:
                return found
    inner = [content[place] for place in PLACES if isinstance(content.get(place), Mapping)]
    averages = (_average(mapping, depth + 1) for mapping in inner if depth < DEEPEST)
    return next((average for average in averages if average is not None), None)


def _averaged(average: Mapping[str, Any] | Sequence[Tensor], net: NCSNpp, source: str) -> dict[str, Tensor]:
    if isinstance(average, Mapping):
        return _unwrapped(average, source)
    published = score_sde_keys(net)
    names = [published[name] for name, parameter in net.named_parameters() if parameter.requires_grad]
    if len(average) != len(names):
        raise ValueError(
            f"{source} has {len(average)} averaged parameters and the network of the config "
            f"has {len(names)}; use the config of this checkpoint."
        )
    return dict(zip(names, map(torch.as_tensor, average), strict=True))


def _unwrapped(named: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """By names without what wrappers put there."""
    weights: dict[str, Tensor] = {}
    for key, value in named.items():
        name = str(key).replace("._orig_mod.", ".")
        while wrapper := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), ""):
            name = name.removeprefix(wrapper)
        if name in weights:
            raise ValueError(f"{source} has {name} twice, under different wrappings: pass the state dict of one.")
        weights[name] = torch.as_tensor(value)
    return weights
