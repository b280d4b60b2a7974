"""Data sets: examples in memory, a training and a test split, and the codec between them and the model."""

from scoresde.data.arrays import array
from scoresde.data.cifar import cifar10
from scoresde.data.circular import Circular
from scoresde.data.codec import Codec, Quantized, Standardized
from scoresde.data.columns import Column, Names
from scoresde.data.dataset import Dataset, Split, batch_indices, random_crop, random_flip
from scoresde.data.folder import image_folder
from scoresde.data.handwritten import digits, mnist
from scoresde.data.simulators import LinearGaussian, Simulator, TwoMoons, pairs, simulator
from scoresde.data.stored_codec import codec_from_state, codec_state
from scoresde.data.tables import table
from scoresde.data.toys import toy
from scoresde.data.transforms import Transformed

__all__ = [
    "Circular", "Codec", "Column", "Dataset", "LinearGaussian", "Names", "Quantized", "Simulator", "Split",
    "Standardized", "Transformed", "TwoMoons", "array", "batch_indices", "cifar10", "codec_from_state", "codec_state",
    "digits", "image_folder", "mnist", "pairs", "random_crop", "random_flip", "simulator", "table", "toy",
]  # fmt: skip
