"""A residual multilayer perceptron for vectors and toy data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_numbers, check_sizes, check_whole
from scoresde.models.embedding import ConditionEmbedding, GaussianFourier, noise_levels
from scoresde.models.image_condition import ImageCondition, image_channels
from scoresde.models.layers import fan_avg_uniform_, linear
from scoresde.models.sequence_condition import SequenceCondition, tokens_of
from scoresde.models.wiener import wiener_filter


class MLP(nn.Module):
    """Residual MLP with time embedding, for data of any event shape.

        h <- h + W₂ silu((1 + a) norm(W₁ silu(h)) + b),   (a, b) = affine(silu(e(c_noise) + conditions))

    The data are flattened, and the output starts at F = 0, or at the best linear denoiser of the data with a
    `WienerFilter`. Without one, whatever F needs of an event must pass through `width` numbers: noise of more entries
    than that cannot be told from data.

    Args:
        shape: Event shape of the data, x has shape (B, *shape).
        out_channels: Length of F's first axis; None for that of the data. Twice that for `LearnedRange`, which also
            predicts a variance.
        width: Width of the hidden features and of the embedding.
        depth: Number of residual blocks.
        fourier_scale: Standard deviation of the frequencies that embed c_noise; 1 suits c_noise = ¼ log(σ/α).
        dropout: Probability of dropping an activation.
        num_classes: Accept `label`, (B,) integers; −1 or None is the learned "no label".
        condition_dim: Accept `condition`, (B, condition_dim), in the data's own units.
        condition_mean, condition_std, condition_categories, condition_width, condition_optional: See
            `ConditionEmbedding`.
        concat_channels: Accept `concat`, (B, concat_channels, *shape[1:]), appended to x; None is zeros.
        image: Accept `image`, (B, channels, *) of any resolution, appended to x, which is an image then, a series or a
            volume: options of `ImageCondition`, as {"channels": 3}.
        sequence: Accept `sequence`, (B, L) or (B, L, dim), pooled by attention: options of `SequenceCondition`, as
            {"vocabulary": 26}.
        wiener: What F is, "edm", "epsilon" or "data", for a `WienerFilter` around the network; None or "none": none.
        data_scale: The parameterization's sigma_data, for the filter.
    """

    def __init__(
        self, *, shape: Sequence[int] = (2,), out_channels: int | None = None, width: int = 128, depth: int = 4,
        fourier_scale: float = 1.0, dropout: float = 0.0, num_classes: int | None = None,
        condition_dim: int | None = None, condition_mean: Sequence[float] | None = None,
        condition_std: Sequence[float] | None = None, condition_categories: Sequence[int] | None = None,
        condition_width: int | None = None, condition_optional: bool | None = None,
        wiener: str | None = None, data_scale: float = 1.0, concat_channels: int | None = None,
        image: Mapping[str, Any] | None = None, sequence: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        sizes = {"out_channels": out_channels, "width": width, "depth": depth, "concat_channels": concat_channels}
        limits = ("out_channels >= 1 or null", "width >= 2", "depth >= 1", "0 <= concat_channels <= 65536 or null")
        check_whole("MLP", *limits, **sizes)
        rates = {"fourier_scale": fourier_scale, "dropout": dropout, "data_scale": data_scale}
        check_numbers("MLP", "0 < fourier_scale <= 1e9", "0 <= dropout < 1", "0 < data_scale <= 1e9", **rates)
        super().__init__()
        self.shape = check_sizes("MLP", "shape", shape)
        self.out_shape = self.shape if out_channels is None else (out_channels, *self.shape[1:])
        self.fourier = GaussianFourier(width // 2, fourier_scale)
        self.embed = nn.Sequential(linear(2 * (width // 2), width), nn.SiLU(), linear(width, width))
        self.conditions = ConditionEmbedding(
            "MLP", width, num_classes, condition_dim, condition_mean=condition_mean, condition_std=condition_std,
            condition_categories=condition_categories, condition_width=condition_width,
            condition_optional=condition_optional,
        )  # fmt: skip
        self.concat_shape = (concat_channels or 0, *self.shape[1:])
        if image is not None and not 2 <= len(self.shape) <= 4:
            raise ValueError(
                f"MLP with shape={self.shape} has no grid that an image could lie on: give the image as condition."
            )
        self.image = ImageCondition.of("MLP", len(self.shape) - 1, image)
        self.sequence = SequenceCondition.of("MLP", width, sequence)
        of_image = 0 if self.image is None else self.image.out_channels * math.prod(self.shape[1:])
        self.input = linear(math.prod(self.shape) + math.prod(self.concat_shape) + of_image, width)
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(depth))
        self.output = linear(width, math.prod(self.out_shape))
        nn.init.zeros_(self.output.weight)
        self.wiener = wiener_filter(self.shape, wiener, data_scale)

    def forward(
        self, x: Tensor, c_noise: Tensor | float, *, label: Tensor | None = None, condition: Tensor | None = None,
        concat: Tensor | None = None, image: Tensor | None = None, sequence: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Evaluate the network.

        Args:
            x: Shape (B, *shape).
            c_noise: Shape () or (B,).
            label, condition, concat, image, sequence: Conditions, see the class.
        Returns:
            F (B, *shape), with the first axis of `shape` replaced by out_channels, in the dtype of x.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"MLP with shape={self.shape} needs x of shape (B, *{self.shape}), got {tuple(x.shape)}.")
        levels = noise_levels(c_noise, x)
        embedding = self.embed(self.fourier(levels).to(x.dtype))
        tokens = tokens_of("MLP", self.sequence, x, sequence)
        for term in (self.conditions(x, label, condition), None if tokens is None else tokens.pooled):
            embedding = embedding if term is None else embedding + term
        beside = self._beside(x, concat, image)
        network = partial(self._network, embedding=F.silu(embedding), beside=beside)
        return network(x) if self.wiener is None else self.wiener(x, levels, network)

    def _network(self, x: Tensor, embedding: Tensor, beside: list[Tensor]) -> Tensor:
        h = self.input(torch.cat([x.flatten(1), *beside], 1) if beside else x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        out: Tensor = self.output(F.silu(h))
        return out.reshape(x.shape[0], *self.out_shape).to(x.dtype)

    def _beside(self, x: Tensor, concat: Tensor | None, image: Tensor | None) -> list[Tensor]:
        """What is appended to x, flat."""
        beside, shape = [], (len(x), *self.concat_shape)
        if concat is not None and (concat.shape != shape or self.concat_shape[0] == 0):
            raise ValueError(
                f"MLP with concat_channels={self.concat_shape[0]} needs concat of shape {shape} for x of shape "
                f"{tuple(x.shape)}, got {tuple(concat.shape)}."
            )
        if self.concat_shape[0]:
            beside.append(x.new_zeros(shape) if concat is None else concat.to(x.dtype))
        channels = image_channels("MLP", self.image, x, image)
        return [part.flatten(1) for part in (beside if channels is None else [*beside, channels])]


class MLPBlock(nn.Module):
    """One residual block of `MLP`."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.first = linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.affine = linear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)
        self.second = linear(width, width)
        fan_avg_uniform_(self.second.weight, 0.0)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Args: x, embedding (B, width)."""
        scale, shift = self.affine(embedding).chunk(2, dim=1)
        h = torch.addcmul(shift, 1 + scale, self.norm(self.first(F.silu(x))))
        return x + self.second(self.dropout(F.silu(h)))
