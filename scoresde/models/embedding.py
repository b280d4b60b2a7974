"""Embeddings of noise levels and conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_flag, check_whole
from scoresde.models.condition_features import ConditionFeatures
from scoresde.models.layers import linear


def noise_levels(c_noise: Tensor | float, x: Tensor) -> Tensor:
    """One noise level per sample, in x's dtype but at least float32.

    Args:
        c_noise: Shape () or (B,).
        x: Shape (B, *).
    Returns:
        Shape (B,).
    Raises:
        ValueError: If c_noise has another shape.
    """
    c_noise = torch.as_tensor(c_noise, device=x.device)
    if c_noise.ndim and c_noise.shape != x.shape[:1]:
        raise ValueError(
            f"c_noise must be a scalar or one value per sample: expected shape () or ({x.shape[0]},) "
            f"for x of shape {tuple(x.shape)}, got {tuple(c_noise.shape)}."
        )
    return c_noise.to(torch.promote_types(x.dtype, torch.float32)).expand(x.shape[0])


def sinusoidal_embedding(c: Tensor, dim: int) -> Tensor:
    """The Transformer's embedding of a position c, used by DDPM for its time step.

        [sin(c ω₀), …, sin(c ω_{h−1}), cos(c ω₀), …, cos(c ω_{h−1})]
        ω_j = 10000^(−j / (h − 1)),   h = dim // 2

    and a zero if dim is odd.

    Args:
        c: Shape (B,).
        dim: Width of the embedding.
    Returns:
        Shape (B, dim).

    References:
        Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """
    half = dim // 2
    rate = -math.log(10000) / max(half - 1, 1)
    phase = c[:, None] * torch.exp(torch.arange(half, dtype=c.dtype, device=c.device) * rate)
    return F.pad(torch.cat([phase.sin(), phase.cos()], dim=1), (0, dim % 2))


class GaussianFourier(nn.Module):
    """Random Fourier features of the noise level; the frequencies are drawn once and never trained.

        [sin(2π W c), cos(2π W c)],   W ~ N(0, scale²)

    Args:
        features: Number of frequencies; the embedding is twice as wide.
        scale: Standard deviation of the frequencies.

    References:
        Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", 2020, arXiv:2006.10739.
    """

    def __init__(self, features: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(features) * scale, requires_grad=False)

    def forward(self, c: Tensor) -> Tensor:
        phase = c[:, None] * self.W * 2 * math.pi
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class NoiseEmbedding(nn.Module):
    """Embeds the noise level: sinusoids or random Fourier features, then two linear layers.

        e = dense₁(silu(dense₀(features(c))))

    Args:
        kind: "positional": sinusoids of c. "fourier": random Fourier features of c. "log_fourier": of log c.
        width: Frequencies of the Fourier features; e is four times as wide.
        scale: Standard deviation of the frequencies.
        used: False gives None (and keeps the frequencies, which published networks list).
    """

    def __init__(self, kind: str, width: int, scale: float, used: bool) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.fourier = None if kind == "positional" else GaussianFourier(width, scale)
        features, dim = (width if kind == "positional" else 2 * width), 4 * width
        self.dense = nn.Sequential(linear(features, dim), nn.SiLU(), linear(dim, dim)) if used else None

    def forward(self, c_noise: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Args: c_noise (B,); dtype of the result, (B, 4 width)."""
        if self.dense is None:
            return None
        if self.fourier is None:
            features = sinusoidal_embedding(c_noise, self.width)
        else:
            features = self.fourier(c_noise.log() if self.kind == "log_fourier" else c_noise)
        return self.dense(features.to(dtype))


class ConditionEmbedding(nn.Module):
    """Embeds a class label and a condition vector, to be added to the embedding of the noise level.

    The vector comes in the data's own units: see `ConditionFeatures`. It has no parameters, and gives None, when the
    network is built without either.

    Args:
        owner: Name of the network, for messages.
        dim: Width of the embedding.
        num_classes: Number of classes K, or None for a network without labels.
        condition_dim: Length of the condition vector, or None for a network without one.
        condition_mean, condition_std, condition_categories: Of its columns, see `ConditionFeatures`.
        condition_width: Hidden width of the MLP that embeds it; 0 or None: one linear layer.
        condition_optional: Whether there is a learned "no condition", for networks that are trained with it now and
            then. None is false.
    """

    def __init__(
        self, owner: str, dim: int, num_classes: int | None, condition_dim: int | None, *,
        condition_mean: Sequence[float] | None = None, condition_std: Sequence[float] | None = None,
        condition_categories: Sequence[int] | None = None, condition_width: int | None = None,
        condition_optional: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        sizes = {"num_classes": num_classes, "condition_dim": condition_dim, "condition_width": condition_width}
        needs = ("num_classes >= 1 or null", "condition_dim >= 1 or null", "condition_width >= 0 or null")
        check_whole(owner, *needs, **sizes)
        check_flag(owner, "condition_optional", condition_optional, optional=True)
        self.owner, self.num_classes, self.condition_dim = owner, num_classes, condition_dim
        # Row 0 is "no label", so that label −1 needs no special case and −2 is out of range like K.
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, dim)
        self.features: ConditionFeatures | None = None
        self.vector: nn.Module | None = None
        columns: dict[str, Any] = {"mean": condition_mean, "std": condition_std, "categories": condition_categories}
        if condition_dim is not None:
            self.features = ConditionFeatures(owner, condition_dim, **columns)
            self.vector = _layers(self.features, condition_width or 0, dim)
        elif said := [name for name, value in columns.items() if value is not None]:
            raise ValueError(f"{owner} without condition_dim has no use for condition_{said[0]}.")
        optional = condition_dim is not None and bool(condition_optional)
        self.none = nn.Parameter(torch.zeros(dim)) if optional else None

    def forward(self, x: Tensor, label: Tensor | None, condition: Tensor | None) -> Tensor | None:
        """Embed the conditions of a batch.

        Args:
            x: The batch, shape (B, *), for its size, dtype and device.
            label: Shape () or (B,), integers 0 … K−1, or −1 for no label; None is −1 everywhere.
            condition: Shape (condition_dim,), or (B, *) with condition_dim entries each. With condition_optional, None
                stands for no condition, and so does a row of NaN.
        Returns:
            Shape (B, dim), or None if the network takes neither.
        Raises:
            ValueError: If a condition does not fit the network, or is missing.
        """
        terms = []
        if self.label is not None:
            terms.append(self._embed_label(self.label, x, label))
        elif label is not None:
            raise ValueError(f"{self.owner} was built without num_classes, so it takes no label; set num_classes.")
        if self.features is not None and self.vector is not None:
            terms.append(self._embed_vector(self.features, self.vector, x, condition))
        elif condition is not None:
            raise ValueError(
                f"{self.owner} was built without condition_dim, so it takes no condition; set condition_dim."
            )
        return sum(terms[1:], terms[0]) if terms else None

    def _embed_label(self, table: nn.Embedding, x: Tensor, label: Tensor | None) -> Tensor:
        if label is None:
            return table.weight[:1].expand(x.shape[0], -1)
        label = torch.as_tensor(label, device=x.device)
        if label.is_floating_point() or label.shape not in ((), x.shape[:1]):
            raise ValueError(
                f"{self.owner} needs integer labels of shape () or ({x.shape[0]},) "
                f"for x of shape {tuple(x.shape)}, got {label.dtype} of shape {tuple(label.shape)}."
            )
        try:
            return table(label.expand(x.shape[0]).long() + 1)
        except IndexError:  # raised on the CPU only: looking at the values on a GPU would stall every solver step
            raise ValueError(
                f"{self.owner} needs labels from 0 to {table.num_embeddings - 2}, or -1 for no label, "
                f"got values from {int(label.min())} to {int(label.max())}."
            ) from None

    def _embed_vector(
        self, features: ConditionFeatures, layers: nn.Module, x: Tensor, condition: Tensor | None
    ) -> Tensor:
        if condition is None:
            if self.none is None:
                raise ValueError(
                    f"{self.owner} was trained with a condition of {self.condition_dim} numbers and never without: "
                    f"give it one, as denoiser.given(condition=...), or train with condition dropout."
                )
            return self.none.expand(x.shape[0], -1)
        given = torch.as_tensor(condition, device=x.device)
        rows = given.reshape(1, -1) if given.ndim < 2 else given.flatten(1)
        if rows.shape != (1 if given.ndim < 2 else x.shape[0], features.dim):
            raise ValueError(
                f"{self.owner} needs a condition of shape ({x.shape[0]}, {features.dim}) "
                f"for x of shape {tuple(x.shape)}, got {tuple(given.shape)}."
            )
        absent = None if self.none is None else rows.isnan().all(1)
        features.check(rows, absent)
        if absent is None or self.none is None:
            embedded: Tensor = layers(features(rows).to(x.dtype))
        else:
            known = layers(features(rows.masked_fill(absent[:, None], 0)).to(x.dtype))
            embedded = torch.where(absent[:, None], self.none.to(known.dtype), known)
        return embedded.expand(x.shape[0], -1)


def _layers(features: ConditionFeatures, width: int, dim: int) -> nn.Module:
    """One linear layer, or with a hidden width two and a silu between them.

    The two start with units and an embedding of size about one, like that of a label, from columns of size one: DDPM's
    initialisation, which is for many inputs, learns from a few several times more slowly.
    """
    if width == 0:
        return linear(features.features, dim)
    first, second = linear(features.features, width), linear(width, dim)
    nn.init.normal_(first.weight, std=features.dim**-0.5)
    nn.init.uniform_(first.bias, -1, 1)
    nn.init.normal_(second.weight, std=(2 / width) ** 0.5)
    return nn.Sequential(first, nn.SiLU(), second)
