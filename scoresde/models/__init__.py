"""Networks: (x, c_noise, **conditions) -> F, the raw output that a parameterisation turns into a denoiser."""

from scoresde.models.classifier import Classifier
from scoresde.models.ddpm_unet import DDPMUNet
from scoresde.models.fourier_features import FourierFeatures
from scoresde.models.image_encoder import ImageEncoder
from scoresde.models.mlp import MLP
from scoresde.models.ncsnpp import NCSNpp
from scoresde.models.text_encoder import TextEncoder
from scoresde.models.wiener import WienerFilter

__all__ = ["MLP", "Classifier", "DDPMUNet", "FourierFeatures", "ImageEncoder", "NCSNpp", "TextEncoder", "WienerFilter"]
