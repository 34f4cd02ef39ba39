"""Weight transforms: a tensor in, a tensor of the same shape out, with state."""

from tfcompress.transforms.base import WeightTransform
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.transforms.mask import MagnitudeMask
from tfcompress.transforms.schedules import ConstantSparsity, PolynomialDecay, SparsitySchedule

__all__ = [
    "ConstantSparsity",
    "FakeQuant",
    "MagnitudeMask",
    "PolynomialDecay",
    "SparsitySchedule",
    "WeightTransform",
]
