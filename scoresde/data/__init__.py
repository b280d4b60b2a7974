"""Data sets: examples in memory, a training and a test split, and the codec between them and the model."""

from scoresde.data.arrays import array
from scoresde.data.cifar import cifar10
from scoresde.data.codec import Quantized, Standardized, codec_from_state, codec_state
from scoresde.data.columns import Column, Names
from scoresde.data.dataset import Dataset, Split, batch_indices, random_flip
from scoresde.data.folder import image_folder
from scoresde.data.handwritten import digits, mnist
from scoresde.data.toys import toy

__all__ = [
    "Column", "Dataset", "Names", "Quantized", "Split", "Standardized", "array", "batch_indices", "cifar10",
    "codec_from_state", "codec_state", "digits", "image_folder", "mnist", "random_flip", "toy",
]  # fmt: skip
