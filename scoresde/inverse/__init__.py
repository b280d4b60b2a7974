"""Inverse problems y = A(x0) + noise: operators, measurements, and the denoisers and samplers of p(x0 | y)."""

from scoresde.inverse.blur import Blur, gaussian_kernel
from scoresde.inverse.check_operator import check_operator
from scoresde.inverse.compressed_sensing import CompressedSensing
from scoresde.inverse.crop import Crop
from scoresde.inverse.daps import DAPS
from scoresde.inverse.ddrm import DDRM
from scoresde.inverse.decomposed import DecomposedMatrix, decomposed
from scoresde.inverse.diffpir import DiffPIR
from scoresde.inverse.down_sample import DownSample
from scoresde.inverse.dps import DPS
from scoresde.inverse.fourier_mask import FourierMask
from scoresde.inverse.function import Function, LinearFunction
from scoresde.inverse.gaussian_posterior import GaussianPosterior
from scoresde.inverse.grayscale import Grayscale
from scoresde.inverse.ilvr import ILVR
from scoresde.inverse.measurement import GaussianNoise, Measurement, NoiseLaw
from scoresde.inverse.mmps import MMPS
from scoresde.inverse.noise_laws import PoissonNoise, QuantisedNoise
from scoresde.inverse.observations import FactorisedPosterior, ProductPosterior
from scoresde.inverse.operators import KnowsSingularValues, LinearOperator, Mask, Matrix, Operator
from scoresde.inverse.pigdm import PiGDM
from scoresde.inverse.populations import Particles
from scoresde.inverse.posterior_denoiser import PosteriorDenoiser
from scoresde.inverse.repaint import RePaint
from scoresde.inverse.replacement import Replacement
from scoresde.inverse.tmpd import TMPD
from scoresde.inverse.twisted_smc import TwistedSMC

__all__ = [
    "DPS",
    "MMPS",
    "TMPD",
    "Blur",
    "CompressedSensing",
    "Crop",
    "DAPS",
    "DDRM",
    "DecomposedMatrix",
    "DiffPIR",
    "DownSample",
    "FactorisedPosterior",
    "FourierMask",
    "Function",
    "GaussianNoise",
    "GaussianPosterior",
    "Grayscale",
    "ILVR",
    "KnowsSingularValues",
    "LinearFunction",
    "LinearOperator",
    "Mask",
    "Matrix",
    "Measurement",
    "NoiseLaw",
    "Operator",
    "PiGDM",
    "Particles",
    "PoissonNoise",
    "PosteriorDenoiser",
    "ProductPosterior",
    "QuantisedNoise",
    "RePaint",
    "Replacement",
    "TwistedSMC",
    "check_operator",
    "decomposed",
    "gaussian_kernel",
]
