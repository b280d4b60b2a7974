"""A condition that is a sequence of tokens, for cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde.checks import check_flag, check_whole
from scoresde.models.condition_features import ConditionFeatures
from scoresde.models.embedding import sinusoidal_embedding
from scoresde.models.image_condition import checked_options
from scoresde.models.layers import linear

OPTIONS = ("vocabulary", "dim", "mean", "std", "positions", "optional")
QUERIES = 4


class Tokens(NamedTuple):
    """What a network attends to.

    Attributes:
        features: One vector per token, (B, L, width), or (1, L, width) for all.
        present: Whether it is a token and no padding, (B, L).
        pooled: One vector for the sequence, (B, width).
    """

    features: Tensor
    present: Tensor
    pooled: Tensor


class SequenceCondition(nn.Module):
    """Embeds tokens, whole numbers or vectors, for cross-attention, and their sum by attention.

        h_l     = e_l + W₂ silu(W₁ e_l),   e_l = token_l + position_l
        pooled  = W Σ_l softmax_l(q · K h_l) V h_l                               (4 learned queries q)

    Without positions it is a set: the order of its tokens changes nothing. Padding changes nothing either.

    Args:
        owner: Name of the network, for messages.
        width: Of the vectors.
        vocabulary: Tokens are 0..vocabulary−1, and −1 is padding.
        dim: In place of that, tokens are vectors of this length, in their own units, and NaN is padding.
        mean, std: Of vectors, one per entry or one for all; None: 0 and 1.
        positions: Whether the order counts, by the sinusoids of the Transformer.
        optional: Whether there may be no sequence, for networks that are trained without it now and then: a learned
            token stands for none.

    References:
        Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762.
        Nichol et al., "GLIDE", 2021, arXiv:2112.10741.
    """

    def __init__(
        self, owner: str, width: int, *, vocabulary: int | None = None, dim: int | None = None,
        mean: Sequence[float] | None = None, std: Sequence[float] | None = None, positions: bool = True,
        optional: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if (vocabulary is None) == (dim is None):
            raise ValueError(
                f"{owner} needs sequence.vocabulary for whole numbers as tokens, or sequence.dim for vectors: one of "
                f"the two, got vocabulary={vocabulary} and dim={dim}."
            )
        limits = ("1 <= vocabulary <= 16777216 or null", "1 <= dim <= 65536 or null")
        check_whole(owner, *limits, vocabulary=vocabulary, dim=dim)
        check_flag(owner, "sequence.positions", positions)
        check_flag(owner, "sequence.optional", optional)
        self.owner, self.vocabulary, self.dim, self.positions = owner, vocabulary, dim, bool(positions)
        self.scaling: ConditionFeatures | None = None
        self.embed: nn.Module
        if dim is not None:
            self.scaling = ConditionFeatures(owner, dim, mean, std, None, prefix="sequence.", size="sequence.dim")
            self.embed = linear(dim, width)
        elif mean is not None or std is not None:
            raise ValueError(f"{owner} with sequence.vocabulary has no use for sequence.mean and sequence.std.")
        else:
            self.embed = nn.Embedding(vocabulary + 1, width)  # type: ignore[operator]  # row 0 is padding
        self.mix = nn.Sequential(linear(width, width), nn.SiLU(), linear(width, width))
        self.none = nn.Parameter(torch.zeros(width)) if optional else None
        self.pool = AttentionPool(width)

    @classmethod
    def of(cls, owner: str, width: int, options: Mapping[str, Any] | None) -> SequenceCondition | None:
        """From the option `sequence` of a network; None for None.

        Raises:
            ValueError: If it has other keys.
        """
        return None if options is None else cls(owner, width, **checked_options(owner, "sequence", options, OPTIONS))

    def forward(self, x: Tensor, sequence: Tensor | None) -> Tokens:
        """Embed the sequences of a batch.

        Args:
            x: The batch, (B, *), for its size, dtype and device.
            sequence: Whole numbers (B, L) or vectors (B, L, dim), or one row for all. Where the network can do without,
                None is no sequence, and so is a row of padding.
        Raises:
            ValueError: If the sequence does not fit the network, or is missing.
        """
        if sequence is None:
            if self.none is None:
                raise ValueError(
                    f"{self.owner} was trained with a sequence as condition and never without: give it one, as "
                    f"denoiser.given(sequence=...), or train with loss.sequence_dropout."
                )
            sequence = torch.full((1, 1), -1) if self.scaling is None else torch.full((1, 1, self.dim or 1), torch.nan)
        sequence = torch.as_tensor(sequence, device=x.device)
        features, present = self._of_vectors(x, sequence) if self.scaling is not None else self._of_numbers(x, sequence)
        if self.positions:
            places = torch.arange(features.shape[1], device=x.device, dtype=torch.float32)
            features = features + sinusoidal_embedding(places, features.shape[2]).to(features.dtype)
        features = features + self.mix(features)
        if self.none is not None:
            none = self.none.to(features.dtype).expand(len(features), 1, -1)
            features = torch.cat([none, features], 1)
            present = torch.cat([~present.any(1, keepdim=True), present], 1)
        pooled = self.pool(features, present)
        return Tokens(features, present, pooled.expand(len(x), -1))

    def _of_numbers(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.is_floating_point() or tokens.ndim != 2 or len(tokens) not in (1, len(x)) or tokens.shape[1] == 0:
            raise ValueError(
                f"{self.owner} needs a sequence of whole numbers of shape ({len(x)}, L) as condition for x of shape "
                f"{tuple(x.shape)}, got {tokens.dtype} of shape {tuple(tokens.shape)}."
            )
        numbers = tokens.long()
        self._check_present(numbers >= 0)
        try:
            return self.embed(numbers + 1), numbers >= 0
        except IndexError:  # raised on the CPU only, as of labels
            raise ValueError(
                f"{self.owner} needs tokens from 0 to {self.vocabulary - 1}, or -1 for padding, "  # type: ignore[operator]
                f"got values from {int(tokens.min())} to {int(tokens.max())}."
            ) from None

    def _of_vectors(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if tokens.ndim != 3 or len(tokens) not in (1, len(x)) or tokens.shape[1] == 0 or tokens.shape[2] != self.dim:
            raise ValueError(
                f"{self.owner} needs a sequence of shape ({len(x)}, L, {self.dim}) as condition for x of shape "
                f"{tuple(x.shape)}, got {tuple(tokens.shape)}."
            )
        assert self.scaling is not None
        wide = tokens if tokens.is_floating_point() else tokens.float()
        gone = wide.isnan().all(2)
        self._check_present(~gone)
        self.scaling.check(wide.flatten(0, 1), gone.flatten(), "sequences", "entry", wide.shape[1])
        scaled = self.scaling(wide.masked_fill(gone[:, :, None], 0).flatten(0, 1)).to(x.dtype)
        return self.embed(scaled).reshape(*wide.shape[:2], -1), ~gone

    def _check_present(self, present: Tensor) -> None:
        """Raise for a sequence without tokens where there must be one; only the CPU's are looked at."""
        if self.none is not None or present.device.type != "cpu" or torch.compiler.is_compiling():
            return
        try:
            empty = (~present.any(1)).nonzero().flatten().tolist()
        except RuntimeError:  # of tensors inside torch.func.vmap
            return
        if empty:
            raise ValueError(
                f"{self.owner} was trained with a sequence as condition and never without, and row {empty[0]} holds "
                f"padding alone: give it a token, or train with loss.sequence_dropout."
            )


def tokens_of(owner: str, part: SequenceCondition | None, x: Tensor, sequence: Tensor | None) -> Tokens | None:
    """The tokens of a network's sequences; None for a network that takes none.

    Raises:
        ValueError: If such a network is given one, and as `SequenceCondition`.
    """
    if part is not None:
        return part(x, sequence)  # type: ignore[no-any-return]
    if sequence is not None:
        raise ValueError(f"{owner} was built without sequence, so it takes no sequence as condition; set sequence.")
    return None


class AttentionPool(nn.Module):
    """One vector for a set of vectors: W [Σ_l softmax_l(q_i · K h_l / √d) V h_l]_i, over those that are present."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = QUERIES if width % QUERIES == 0 else 1
        self.query = nn.Parameter(torch.randn(self.heads, width // self.heads))
        self.keys, self.values, self.out = (linear(width, width) for _ in range(3))

    def forward(self, h: Tensor, present: Tensor) -> Tensor:
        """Args: h (B, L, width), present (B, L) -> (B, width)."""
        keys, values = (part(h).unflatten(2, (self.heads, -1)) for part in (self.keys, self.values))
        scores = torch.einsum("hd,blhd->bhl", self.query * self.query.shape[1] ** -0.5, keys)
        weights = torch.softmax(scores.masked_fill(~present[:, None], -torch.inf), -1)
        pooled: Tensor = self.out(torch.einsum("bhl,blhd->bhd", weights, values).flatten(1))
        return pooled
