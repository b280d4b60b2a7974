"""Weights of score_sde under other names and in other places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from scoresde import VPSDE
from scoresde.interop import load_score_sde, score_sde_keys

CONFIG = {
    "training.sde": "vpsde", "training.continuous": True, "model.name": "ncsnpp", "model.nf": 8,
    "model.ch_mult": (1,), "model.num_res_blocks": 1, "model.attn_resolutions": (), "model.fir": False,
    "model.embedding_type": "positional", "data.image_size": 4, "data.num_channels": 1, "data.centered": True,
}  # fmt: skip


def network(seed: int) -> tuple[dict[str, Tensor], list[Tensor], dict[str, str]]:
    """Published names and weights, the trained ones in their order, and our names of the published ones."""
    from scoresde.interop.score_sde import _build_network, _section

    net = _build_network({name: _section(CONFIG, name) for name in ("training", "model", "data")})
    keys, generator = score_sde_keys(net), torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    trained = [parameter.data for parameter in net.parameters() if parameter.requires_grad]
    state = {keys[name]: value for name, value in net.state_dict().items()}
    return state, trained, {theirs: ours for ours, theirs in keys.items()}


STATE, TRAINED, OURS = network(0)
AVERAGED, AVERAGE, _ = network(1)
SHADOW = {"decay": 0.999, "num_updates": 1, "shadow_params": AVERAGE}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.mark.parametrize(
    "content, expected",
    [
        *[(prefixed(prefix), STATE) for prefix in (
            "module.", "module.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.net.module.",
        )],
        ({key.replace("all_modules.", "all_modules._orig_mod.", 1): value for key, value in STATE.items()}, STATE),
        ({"module." + OURS[key]: value for key, value in STATE.items()}, STATE),  # names of our own networks
        ({"state_dict": STATE, "epoch": 3, "step": torch.tensor(3)}, STATE),
        ({"checkpoint": None, "state_dict": {"model": prefixed("_orig_mod.")}}, STATE),
        ({"model": STATE, "ema": SHADOW, "step": 3}, AVERAGED),
        ({"ema": SHADOW, "step": 3}, AVERAGED),
        ({"state_dict": {"model": STATE, "ema": SHADOW}}, AVERAGED),
        ({"model": STATE, "ema": {"module." + key: value for key, value in AVERAGED.items()}}, AVERAGED),
        ({"model_ema": {"state_dict": AVERAGED}}, AVERAGED),
    ],
)  # fmt: skip
def test_weights_are_found_whatever_they_are_wrapped_in(content: Mapping[str, Any], expected: Any) -> None:
    loaded = load_score_sde(content, CONFIG)
    assert isinstance(loaded.sde, VPSDE)
    weights = loaded.net.state_dict()
    for ours, published in score_sde_keys(loaded.net).items():
        assert torch.equal(weights[ours], expected[published]), published


@pytest.mark.parametrize(
    "content, options, sentence",
    [
        ({"ema": SHADOW}, {"ema": False}, "holds averaged weights alone: load them with ema=True"),
        ({"epoch": 3, "history": {"loss": [1.0]}}, {}, "has no weights by name, .*: it holds epoch, history"),
        ({}, {}, "it holds nothing"),
        ({**prefixed("module."), **STATE}, {}, "twice, under different wrappings"),
        ({"ema": {"shadow_params": AVERAGE[:-1]}}, {}, r"averaged parameters and the network of the config has"),
        (prefixed("decoder."), {}, "does not fit the network of the config: it misses"),
    ],
)
def test_what_is_not_found_is_said(content: Mapping[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"the given mapping .*{sentence}"):
        load_score_sde(content, CONFIG, **options)
