"""Pictures of samples and data, by their kind, of losses and of calibration; drawn with Pillow."""

from scoresde.pictures.calibration_panels import calibration_picture
from scoresde.pictures.classification_panels import classification_picture
from scoresde.pictures.kinds import picture
from scoresde.pictures.loss_curve import loss_curve
from scoresde.pictures.shown import Shown

__all__ = ["Shown", "calibration_picture", "classification_picture", "loss_curve", "picture"]
