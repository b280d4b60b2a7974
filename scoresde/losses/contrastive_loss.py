"""The contrastive loss that trains encoders of noisy images and of texts."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scoresde.guidance.embedding import EmbeddingPair
from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.loss import Loss
from scoresde.sde import SDE


@dataclass(frozen=True, kw_only=True)
class ContrastiveLoss(Loss):
    """Symmetric InfoNCE of noisy images and captions of their labels, in nats per example.

        l_ij = ⟨g(x_t^i, t_i), h(c_j)⟩/τ,      x_t = α_t x0 + σ_t ε,  c_j a caption of label j, τ learned
        L_i  = −½ mean_{j: y_j = y_i} (log softmax_j l_ij + log softmax_j l_ji)      (Radford et al. 2021, Fig. 3)

    The captions of all examples of one class match all their images (Khosla et al. 2020): without repeated labels this
    is CLIP's loss. It compares the examples of one batch, so that its value depends on the batch.

    Args:
        noise: The `DenoisingLoss` whose times and noise are used.

    References:
        Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
        Khosla et al., "Supervised Contrastive Learning", 2020, arXiv:2004.11362.
    """

    noise: DenoisingLoss = field(default_factory=DenoisingLoss)

    def __call__(
        self, pair: EmbeddingPair, x0: Tensor, *, label: Tensor, generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        t, noise = self.draw(pair.sde, x0, generator)
        images = pair(pair.sde.perturb(x0, t, noise), t)
        texts = pair.of_captions(label, generator)
        return contrast(pair.scale * images @ texts.T, label)

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        return self.noise.draw(sde, x0, generator)


def contrast(logits: Tensor, label: Tensor) -> Tensor:
    """½ (cross-entropy along rows + along columns), (B,), of logits (B, B) whose matches are those of equal labels."""
    same = (label[:, None] == label).to(logits.dtype)
    match = same / same.sum(1, keepdim=True)
    both = [nn.functional.cross_entropy(each, match, reduction="none") for each in (logits, logits.T)]
    return 0.5 * torch.stack(both).sum(0)
