"""Codecs as plain values, as checkpoints keep them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scoresde.data.codec import Codec, Quantized, Standardized
from scoresde.data.transforms import Transformed

Stored = type[Quantized] | type[Standardized] | type[Transformed]
CODECS: dict[str, Stored] = {"quantized": Quantized, "standardized": Standardized, "transformed": Transformed}


def codec_state(codec: Codec) -> dict[str, Any]:
    """The codec as plain numbers, lists and tensors, which torch.load(weights_only=True) reads back."""
    return codec.state()


def codec_from_state(state: Mapping[str, Any]) -> Codec:
    """The codec that `codec_state` described."""
    if state["codec"] not in CODECS:
        raise ValueError(f"unknown codec {state['codec']!r}; known: {', '.join(CODECS)}")
    try:
        return CODECS[state["codec"]].from_state(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise ValueError(f"this codec state cannot be read: {type(error).__name__}: {error}") from error
