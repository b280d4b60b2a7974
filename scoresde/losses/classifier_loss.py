"""The cross-entropy that trains a classifier of noisy data."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from scoresde.guidance import NoisyClassifier
from scoresde.losses.denoising import DenoisingLoss
from scoresde.losses.loss import Loss
from scoresde.sde import SDE


@dataclass(frozen=True, kw_only=True)
class ClassifierLoss(Loss):
    """Cross-entropy of labels given noisy data, in nats per example.

        L = −log p(y | x_t),      x_t = α_t x0 + σ_t ε

    Conditions beside the labels are not looked at.

    Args:
        noise: The `DenoisingLoss` whose times and noise are used.
    """

    noise: DenoisingLoss = field(default_factory=DenoisingLoss)

    def __call__(
        self, classifier: NoisyClassifier, x0: Tensor, *, label: Tensor, generator: torch.Generator | None = None,
        condition: Tensor | None = None, image: Tensor | None = None, sequence: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        t, noise = self.draw(classifier.sde, x0, generator)
        logits = classifier(classifier.sde.perturb(x0, t, noise), t)
        return nn.functional.cross_entropy(logits, label, reduction="none")

    def draw(self, sde: SDE, x0: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random times (B,) and noise (B, *) for a batch."""
        return self.noise.draw(sde, x0, generator)
