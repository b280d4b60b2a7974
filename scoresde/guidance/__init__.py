"""Denoisers made from denoisers: guidance, composition, and conditioning on a differentiable log p(y | x_t)."""

from scoresde.guidance.apg import APG
from scoresde.guidance.cfgpp import CFGPP
from scoresde.guidance.classifier_free import Guided
from scoresde.guidance.composed import Composed, Mixture
from scoresde.guidance.embedding import EmbeddingGuided, EmbeddingPair, EmbeddingPotential
from scoresde.guidance.guided import ClassifierGuided, ReconstructionGuided
from scoresde.guidance.noisy_classifier import LabelLogProb, NoisyClassifier
from scoresde.guidance.potential import Potential
from scoresde.guidance.scales import CosineScale, PowerScale

__all__ = [
    "APG", "CFGPP", "ClassifierGuided", "Composed", "CosineScale", "EmbeddingGuided", "EmbeddingPair",
    "EmbeddingPotential", "Guided", "LabelLogProb", "Mixture", "NoisyClassifier", "Potential", "PowerScale",
    "ReconstructionGuided",
]  # fmt: skip
