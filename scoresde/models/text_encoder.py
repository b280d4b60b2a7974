"""An encoder of short texts, for guidance by embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_whole
from scoresde.models.layers import linear

PAD = 0  # a byte b is the token b + 1


class TextEncoder(nn.Module):
    """Features of short texts, such as the names of classes, from their bytes.

        h_i = silu(W (byte_i + place_i) + b),      features = MLP(mean_i h_i)

    Args:
        features: Number of features D.
        width: Channels inside.
        length: Most bytes of a text.
    """

    def __init__(self, *, features: int = 64, width: int = 64, length: int = 32) -> None:
        check_whole("TextEncoder", "1 <= features <= 65536", "1 <= width <= 65536", "1 <= length <= 65536",
                    features=features, width=width, length=length)  # fmt: skip
        super().__init__()
        self.features, self.length = features, length
        self.bytes = nn.Embedding(257, width, padding_idx=PAD)
        self.places = nn.Embedding(length, width)
        self.mix = linear(width, width)
        self.output = nn.Sequential(linear(width, width), nn.SiLU(), linear(width, features))

    def forward(self, tokens: Tensor) -> Tensor:
        """Features (N, D) of texts as tokens (N, length), see `tokens`."""
        there = (tokens != PAD).unsqueeze(2)
        h = F.silu(self.mix(self.bytes(tokens) + self.places.weight)) * there
        return self.output(h.sum(1) / there.sum(1))  # type: ignore[no-any-return]

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Texts as tokens (N, length) on the CPU: their bytes in UTF-8, in lower case and without spaces around.

        Raises:
            ValueError: If a text is empty or too long, or is no text.
        """
        rows = torch.full((len(texts), self.length), PAD)
        for row, text in zip(rows, texts, strict=True):
            data = text.strip().lower().encode() if isinstance(text, str) else b""
            if not 1 <= len(data) <= self.length:
                raise ValueError(f"TextEncoder needs texts of 1 to {self.length} bytes, got {text!r}.")
            row[: len(data)] = torch.tensor(list(data)) + 1
        return rows
