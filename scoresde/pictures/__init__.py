"""Pictures of samples and data, by their kind; drawn with Pillow."""

from scoresde.pictures.kinds import picture
from scoresde.pictures.loss_curve import loss_curve
from scoresde.pictures.shown import Shown

__all__ = ["Shown", "loss_curve", "picture"]
