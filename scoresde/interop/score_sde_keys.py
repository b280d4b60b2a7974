"""Names of the parameters in published score_sde checkpoints."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from scoresde.models import NCSNpp
from scoresde.models.blocks import AttentionBlock, ResidualBlock
from scoresde.models.embedding import ConditionEmbedding, GaussianFourier
from scoresde.models.resample import ConvDown, ConvUp, Down, Up
from scoresde.models.stages import InputSkip, OutputSkip

_LAYERS = (GaussianFourier, nn.Linear, nn.Conv2d, nn.GroupNorm, ResidualBlock, AttentionBlock, InputSkip)
_RESAMPLING = (ConvDown, ConvUp, Down, Up)


def score_sde_keys(net: NCSNpp) -> dict[str, str]:
    """{our key: published key} of every tensor in the network's state dict, in the order of both.

        embed.fourier.W                               all_modules.0.W
        embed.dense.0.weight                          all_modules.1.weight
        down.0.blocks.0.residual.Conv_0.weight        all_modules.4.Conv_0.weight

    The published networks keep all layers in one list in the order of the forward pass. Conditions, which they do
    not have, keep our names. For the other direction: `{published: ours for ours, published in keys.items()}`.
    """
    places = {name: place for place, name in enumerate(_layers(net))}
    keys = {}
    for key in net.state_dict():
        layer = next((name for name in places if key.startswith(f"{name}.")), None)
        keys[key] = key if layer is None else f"all_modules.{places[layer]}{key.removeprefix(layer)}"
    return keys


def _layers(module: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of the layers that the published list counts, also of those without weights."""
    for name, child in module.named_children():
        if isinstance(child, ConditionEmbedding) or (isinstance(module, OutputSkip) and name == "up"):
            continue
        if isinstance(child, (*_LAYERS, *_RESAMPLING)):
            yield prefix + name
        else:
            yield from _layers(child, f"{prefix}{name}.")
