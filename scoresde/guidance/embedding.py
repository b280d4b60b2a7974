"""Guidance by two encoders, one of images and one of what they are to show, whose features agree where they match."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoresde.checks import check_flag
from scoresde.denoiser import Denoiser
from scoresde.guidance.guided import ClassifierGuided, ReconstructionGuided
from scoresde.guidance.noisy_classifier import noisy_output
from scoresde.guidance.potential import Potential
from scoresde.parameterization import Parameterization
from scoresde.sde import SDE
from scoresde.sde.levels import Level

HOTTEST = 100.0  # of the temperature's inverse, as in CLIP
NoisyEncoder = Callable[[Tensor, Tensor], Tensor]  # (x (B, *), t () or (B,)) -> features (B, D)
CleanEncoder = Callable[[Tensor], Tensor]  # x0 (B, *) -> features (B, D)


class EmbeddingGuided(Denoiser):
    """A denoiser steered to what an encoder of images takes for a description c.

        score' = score + scale ∇ₓ ⟨g, h(c)⟩,     ‖g‖ = ‖h‖ = 1                   (Nichol et al. 2022, eq. 6)
        g = g(x, t)          an encoder that has seen noisy data at all levels
        g = g(x̂0(x))         `clean`: one of clean data, asked through the denoiser, by a gradient through both

    ⟨g, h⟩ is no log p(c | x_t), so that no scale samples a posterior: what a scale does has to be looked at. Divided
    by the temperature τ of a contrastive pair it is log p(c | x_t) but for a sum over captions: scales of 1/τ and a
    few times that are usual. `MeanShift` with `EmbeddingPotential` moves means by scale Σ ∇, which is the paper's form.

    Args:
        denoiser: The prior.
        encoder: g, not normalised: an `EmbeddingPair`, or called as encoder(x, t), or with `clean` as encoder(x0_hat),
            -> (B, D).
        target: h(c), (D,) for all or (B, D); need not be normalised.
        scale: Guidance scale.
        clean: Whether the encoder is one of clean data.

    References:
        Nichol et al., "GLIDE: Towards Photorealistic Image Generation and Editing with Text-Guided Diffusion Models",
        2022, arXiv:2112.10741.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        encoder: NoisyEncoder | CleanEncoder,
        target: Tensor,
        scale: float = 1.0,
        clean: bool = False,
    ) -> None:
        super().__init__()
        check_flag(self, "clean", clean)
        self.sde, self.denoiser = denoiser.sde, denoiser
        self.encoder = encoder  # registered, if it is a module
        self.guided: Denoiser
        if clean:
            target = check_target(target)
            clean_encoder: Any = encoder
            self.guided = ReconstructionGuided(denoiser, lambda x0: similarity(clean_encoder(x0), target), scale, True)
        else:
            self.guided = ClassifierGuided(denoiser, EmbeddingPotential.of(encoder, target), scale)

    @property
    def unguided(self) -> Denoiser:
        return self.denoiser.unguided

    def x0(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.guided.x0(x, level, **cond)

    def v_at(self, x: Tensor, level: Level, **cond: Any) -> Tensor:
        return self.guided.v_at(x, level, **cond)


class EmbeddingPair(nn.Module):
    """Encoders of noisy images and of texts, trained so that features of what belongs together agree.

        g(x, t) = normalised image(c_in x, c_noise),     h(c) = normalised text(c),     ⟨g, h⟩/τ: `ContrastiveLoss`

    Args:
        image: Network (c_in x, c_noise) -> features (B, D).
        text: A `TextEncoder` of D features.
        sde: Process whose noise the image encoder sees.
        parameterization: Gives c_in and c_noise.
        captions: What each class is called: one text, or several; the first one stands for the class.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
    """

    tokens: Tensor
    first: Tensor
    count: Tensor

    def __init__(
        self,
        image: nn.Module,
        text: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        captions: Sequence[str | Sequence[str]],
    ) -> None:
        super().__init__()
        self.image, self.text, self.sde, self.parameterization = image, text, sde, parameterization
        self.captions = check_captions(captions)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # −log τ
        counts = torch.tensor([len(texts) for texts in self.captions])
        for name, value in {
            "tokens": self.tokens_of([text for texts in self.captions for text in texts]),
            "first": counts.cumsum(0) - counts,
            "count": counts,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """g(x, t), unit features (B, D) of x (B, *) at t () or (B,), in x's dtype."""
        return F.normalize(noisy_output(self.image, self.sde, self.parameterization, x, t), dim=1)

    def of_texts(self, texts: Sequence[str]) -> Tensor:
        """h(c), unit features (N, D) of texts."""
        return F.normalize(self.text(self.tokens_of(texts).to(self.log_scale.device)), dim=1)

    def of_classes(self) -> Tensor:
        """h(c), unit features (K, D) of the first caption of every class."""
        return F.normalize(self.text(self.tokens[self.first]), dim=1)

    def of_captions(self, label: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """h(c), unit features (B, D) of one of the captions of each label (B,), drawn at random."""
        u = torch.rand(len(label), generator=generator, device=label.device)
        chosen = self.first[label] + (u * self.count[label]).long()
        return F.normalize(self.text(self.tokens), dim=1)[chosen]

    @property
    def scale(self) -> Tensor:
        """1/τ, at most 100."""
        return self.log_scale.exp().clamp_max(HOTTEST)

    def tokens_of(self, texts: Sequence[str]) -> Tensor:
        return self.text.tokens(texts)  # type: ignore[operator,no-any-return]


class EmbeddingPotential(Potential):
    """⟨g(x, t), h⟩ of unit features, for `ClassifierGuided` and `MeanShift`.

    Args:
        pair: Gives g, and the process whose noise it has seen.
        target: h, (D,) for all or (B, D).
    """

    noun = "encoder"

    def __init__(self, pair: EmbeddingPair, target: Tensor) -> None:
        self.pair, self.sde, self.target = pair, pair.sde, check_target(target)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return similarity(self.pair(x, t), self.target)

    @staticmethod
    def of(encoder: Any, target: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The same of any function (x, t) -> features, which is asked with the denoiser's own times."""
        if isinstance(encoder, EmbeddingPair):
            return EmbeddingPotential(encoder, target)
        target = check_target(target)
        return lambda x, t: similarity(encoder(x, t), target)


def similarity(features: Tensor, target: Tensor) -> Tensor:
    """⟨g/‖g‖, h/‖h‖⟩, (B,), of features (B, D) and a target (D,) or (B, D).

    Raises:
        ValueError: If their shapes do not belong together.
    """
    if features.ndim != 2 or target.shape[-1] != features.shape[1] or target.shape[:-1] not in ((), features.shape[:1]):
        raise ValueError(
            f"EmbeddingGuided needs features (B, D) and a target (D,) or (B, D), got features of shape "
            f"{tuple(features.shape)} and a target of {tuple(target.shape)}."
        )
    return (F.normalize(features, dim=1) * F.normalize(target.to(features), dim=-1)).sum(1)


def check_target(target: Tensor) -> Tensor:
    """Features that give a direction.

    Raises:
        ValueError: If they do not.
    """
    if not isinstance(target, Tensor) or not target.is_floating_point() or target.ndim not in (1, 2):
        got = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else repr(target)
        raise ValueError(f"EmbeddingGuided needs a target of features, (D,) or (B, D), got {got}.")
    if not bool((target.isfinite().all(-1) & (target != 0).any(-1)).all()):
        raise ValueError("EmbeddingGuided needs a target that is finite and not 0, which has no direction.")
    return target.detach()


def check_captions(captions: Any) -> tuple[tuple[str, ...], ...]:
    """What every class is called, as tuples of texts.

    Raises:
        ValueError: If there is none, or if one stands for two classes.
    """
    rows = [(row,) if isinstance(row, str) else row for row in captions] if isinstance(captions, list | tuple) else []
    good = all(isinstance(row, list | tuple) and row and all(isinstance(text, str) for text in row) for row in rows)
    if not rows or not good:
        raise ValueError(f"captions must be one text per class, or a list of texts for each, got {captions!r}.")
    known: dict[str, int] = {}
    for number, row in enumerate(rows):
        for text in row:
            if known.setdefault(text.strip().lower(), number) != number:
                raise ValueError(f"captions must tell classes apart, and {text!r} stands for two of them.")
    return tuple(tuple(row) for row in rows)
