"""Residual and attention blocks of the score U-Nets.

Submodules keep the names of the original implementation (`GroupNorm_0`, `Conv_0`, `Dense_0`, ...), because
they are the keys of published checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from scoresde.models.layers import NIN, conv1, conv3, group_norm, linear


class ResidualBlock(nn.Module):
    """Residual block conditioned on an embedding, in DDPM's or BigGAN's arrangement.

        h = conv₀(resample(silu(norm₀(x)))) + dense(silu(e))
        y = shortcut(resample(x)) + conv₁(dropout(silu(norm₁(h))))         (divided by √2 with skip_rescale)

    DDPM's block has no resampling, and its shortcut is a NIN when the width changes. BigGAN's block may
    resample both branches, and its shortcut is a 1×1 convolution when the width or the size changes.

    Args:
        in_channels, out_channels: Widths of x and y.
        dims: Axes of the feature maps: 1 for series, 2 for images, 3 for volumes.
        embed_dim: Width of the embedding e, or None for a block without one.
        style: "ddpm" or "biggan".
        resample: Weightless resampling layer of a BigGAN block, or None.
        dropout: Probability of dropping an activation.
        init_scale: Initial scale of the last convolution; 0 starts the block as its shortcut.
        skip_rescale: Divide by √2, which keeps the variance of the sum.
        norm_groups: Groups of both normalisations; None for min(C/4, 32).
        checkpoint: Recompute the block in the backward pass, to save memory.

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        Brock et al., "Large Scale GAN Training" (BigGAN), 2018, arXiv:1809.11096.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embed_dim: int | None, *, dims: int = 2,
        style: Literal["ddpm", "biggan"] = "biggan", resample: nn.Module | None = None, dropout: float = 0.0,
        init_scale: float = 0.0, skip_rescale: bool = True, norm_groups: int | None = None, checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.resample, self.skip_rescale, self.checkpoint = resample, skip_rescale, checkpoint
        self.GroupNorm_0 = group_norm(in_channels, norm_groups)
        self.Conv_0 = conv3(in_channels, out_channels, dims=dims)
        if embed_dim is not None:
            self.Dense_0 = linear(embed_dim, out_channels)
        self.GroupNorm_1 = group_norm(out_channels, norm_groups)
        self.Dropout_0 = nn.Dropout(dropout)
        self.Conv_1 = conv3(out_channels, out_channels, dims=dims, init_scale=init_scale)
        widens, biggan = in_channels != out_channels, style == "biggan"
        convolves = biggan and (widens or resample is not None)
        self.Conv_2 = conv1(in_channels, out_channels, dims=dims) if convolves else None
        self.NIN_0 = NIN(in_channels, out_channels) if widens and not biggan else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Args: x (B, in_channels, *); embedding (B, embed_dim), or None to leave its term out."""
        return evaluate(self._y, x, embedding, checkpoint=self.checkpoint)

    def _y(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        h = F.silu(self.GroupNorm_0(x))
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.Conv_0(h)
        if embedding is not None:
            h = h + self.Dense_0(F.silu(embedding)).reshape(h.shape[0], -1, *[1] * (h.ndim - 2))
        h = self.Conv_1(self.Dropout_0(F.silu(self.GroupNorm_1(h))))
        shortcut = self.NIN_0 if self.Conv_2 is None else self.Conv_2
        return add_skip(x if shortcut is None else shortcut(x), h, self.skip_rescale)


class AttentionBlock(nn.Module):
    """Self-attention over the places of a feature map, single head.

        y = x + NIN₃(softmax(q kᵀ / √C) v),   q, k, v = NIN₀(n), NIN₁(n), NIN₂(n),   n = norm(x)

    divided by √2 with skip_rescale. The softmax is written out: at the sizes where these networks attend
    (16×16 and below) it is as fast as a fused kernel, and unlike those it has forward-mode and second
    derivatives.

    Args:
        channels: Width C of x, shape (B, C, *).
        init_scale, skip_rescale, norm_groups, checkpoint: As in `ResidualBlock`.
    """

    def __init__(
        self, channels: int, *, init_scale: float = 0.0, skip_rescale: bool = True, norm_groups: int | None = None,
        checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip_rescale, self.checkpoint = skip_rescale, checkpoint
        self.GroupNorm_0 = group_norm(channels, norm_groups)
        self.NIN_0, self.NIN_1, self.NIN_2 = (NIN(channels, channels) for _ in range(3))
        self.NIN_3 = NIN(channels, channels, init_scale=init_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Args: x (B, channels, *)."""
        return evaluate(self._y, x, checkpoint=self.checkpoint)

    def _y(self, x: Tensor) -> Tensor:
        h = self.GroupNorm_0(x)
        q, k, v = (nin(h).flatten(2) for nin in (self.NIN_0, self.NIN_1, self.NIN_2))
        weights = torch.softmax(q.transpose(1, 2) @ (k * x.shape[1] ** -0.5), dim=-1)
        h = (v @ weights.transpose(1, 2)).reshape(x.shape)
        return add_skip(x, self.NIN_3(h), self.skip_rescale)


class CrossAttentionBlock(nn.Module):
    """Attention of the places of a feature map to the tokens of a sequence, single head.

        y = x + NIN₁(softmax(q kᵀ / √C) v),   q = NIN₀(norm(x)),   k, v = K h, V h        over the tokens h

    divided by √2 with skip_rescale. Padding has weight 0.

    Args:
        channels: Width C of x, shape (B, C, *).
        width: Of the tokens.
        init_scale, skip_rescale, norm_groups, checkpoint: As in `ResidualBlock`.

    References:
        Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021, arXiv:2112.10752.
    """

    def __init__(
        self, channels: int, width: int, *, init_scale: float = 0.0, skip_rescale: bool = True,
        norm_groups: int | None = None, checkpoint: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.skip_rescale, self.checkpoint = skip_rescale, checkpoint
        self.GroupNorm_0 = group_norm(channels, norm_groups)
        self.NIN_0, self.NIN_1 = NIN(channels, channels), NIN(channels, channels, init_scale=init_scale)
        self.keys, self.values = linear(width, channels), linear(width, channels)

    def forward(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        """Args: x (B, channels, *); tokens (B, L, width) or (1, L, width); which of them are no padding, (B, L)."""
        return evaluate(self._y, x, tokens, present, checkpoint=self.checkpoint)

    def _y(self, x: Tensor, tokens: Tensor, present: Tensor) -> Tensor:
        q = self.NIN_0(self.GroupNorm_0(x)).flatten(2).transpose(1, 2)
        scores = q @ (self.keys(tokens) * x.shape[1] ** -0.5).transpose(1, 2)
        weights = torch.softmax(scores.masked_fill(~present[:, None], -torch.inf), dim=-1)
        h = (weights @ self.values(tokens)).transpose(1, 2).reshape(x.shape)
        return add_skip(x, self.NIN_1(h), self.skip_rescale)


def add_skip(x: Tensor, h: Tensor, rescale: bool) -> Tensor:
    """x + h, divided by √2 if rescale."""
    return (x + h) * 0.5**0.5 if rescale else x + h


def evaluate(function: Callable[..., Tensor], *args: Tensor | None, checkpoint: bool) -> Tensor:
    """function(*args); with checkpoint its intermediate values are recomputed in the backward pass, not kept."""
    if not (checkpoint and torch.is_grad_enabled()):
        return function(*args)
    return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=False)
