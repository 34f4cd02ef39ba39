"""Weight transforms: a tensor in, a tensor of the same shape out, with state."""

# First of all: importing Keras imports the classes that it must know (see tfcompress/__init__.py),
# which must not happen in the middle of a module that they need.
import keras  # noqa: F401

from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.clusters import Clusters
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.transforms.keep import KeepZeros
from tfcompress.transforms.mask import MagnitudeMask
from tfcompress.transforms.schedules import ConstantSparsity, PolynomialDecay, SparsitySchedule

__all__ = [
    "Clusters",
    "ConstantSparsity",
    "FakeQuant",
    "KeepZeros",
    "MagnitudeMask",
    "PolynomialDecay",
    "SparsitySchedule",
    "WeightTransform",
]
