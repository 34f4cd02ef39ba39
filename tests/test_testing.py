"""The public checks pass what is right, and say what is wrong."""

import doctest

import keras
import pytest
from keras import ops

import tfcompress as tfc
from tfcompress import testing
from tfcompress.distill.losses.base import average
from tfcompress.testing import check_distillation_loss, check_transform
from tfcompress.transforms import MagnitudeMask

LOSSES = {
    "soft": tfc.SoftTargets,
    "hard": tfc.HardTargets,
    "decoupled": tfc.DecoupledTargets,
    "features": lambda: tfc.FeatureMatching("hidden", "hidden"),
    "projected": lambda: tfc.FeatureMatching("conv", "conv", projector=keras.layers.Dense(4)),
    "attention": lambda: tfc.AttentionTransfer("conv", "conv"),
    "maps": lambda: tfc.AttentionMaps("attention", "attention"),
    "flow": lambda: tfc.FSP(("conv", "conv"), ("conv", "conv")),
    "distances": lambda: tfc.RKDDistance("hidden", "hidden"),
    "angles": lambda: tfc.RKDAngle("hidden", "hidden"),
    "similarities": lambda: tfc.SimilarityPreserving("hidden", "hidden"),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES)
def test_our_own_losses_pass(make):
    check_distillation_loss(make)


def test_the_examples():
    assert doctest.testmod(testing).failed == 0


@keras.saving.register_keras_serializable("tests.testing")
class Shift(tfc.WeightTransform):
    """A transform whose claims are wrong in a way that `how` names."""

    order = 5

    def __init__(self, how="", **kwargs):
        super().__init__(**kwargs)
        self.how = how

    @property
    def keeps_zeros(self):
        return self.how == "zeros"

    def call(self, weight):
        if self.how == "gradient":
            return ops.stop_gradient(weight)
        if self.how == "shape":
            return weight[None]
        return weight + 0.1

    def get_config(self):
        how = {} if self.how == "config" else {"how": self.how}
        return {**super().get_config(), **how}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("", None),
        ("zeros", "moves zeros"),
        ("gradient", "no gradient"),
        ("shape", "changes the shape"),
        ("config", "does not come back"),
        ("after the mask", "pruned weight came back"),
    ],
)
def test_a_wrong_transform_is_told(how, message):
    others = [lambda: MagnitudeMask(0.5)] if how == "after the mask" else []
    if message is None:
        check_transform(lambda: Shift(how))
        return
    with pytest.raises(AssertionError, match=message):
        check_transform(lambda: Shift(how), others)


@keras.saving.register_keras_serializable("tests.testing")
class Wrong(tfc.DistillationLoss):
    """A loss that is wrong in a way that `how` names."""

    needs_layers = False

    def __init__(self, how="", **kwargs):
        super().__init__(**kwargs)
        self.how = how

    def call(self, teacher, student, sample_weight=None):
        if self.how == "gradient":
            student = ops.stop_gradient(student)
        values = ops.mean(ops.square(teacher - student), axis=-1)
        return average(values, None if self.how == "weights" else sample_weight)

    def get_config(self):
        how = {} if self.how == "config" else {"how": self.how}
        return {**super().get_config(), **how}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("", None),
        ("weights", "weight zero"),
        ("gradient", "No gradients"),
        ("config", "does not come back"),
    ],
)
def test_a_wrong_loss_is_told(how, message):
    if message is None:
        check_distillation_loss(lambda: Wrong(how))
        return
    with pytest.raises(AssertionError, match=message):
        check_distillation_loss(lambda: Wrong(how))
