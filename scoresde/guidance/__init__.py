"""Denoisers made from denoisers: guidance, composition, and conditioning on a differentiable log p(y | x_t)."""

from scoresde.guidance.guided import ClassifierGuided, Composed, Guided, ReconstructionGuided
from scoresde.guidance.noisy_classifier import LabelLogProb, NoisyClassifier
from scoresde.guidance.potential import Potential

__all__ = [
    "ClassifierGuided", "Composed", "Guided", "LabelLogProb", "NoisyClassifier", "Potential", "ReconstructionGuided",
]  # fmt: skip
