"""Small teachers, students and distillers for the tests."""

import keras
import numpy as np
from keras import layers as L

import tfcompress as tfc
from tests import nets


def data(count=64):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 6)).astype("float32"), generator.integers(0, 3, count)


def teacher_of(width=16):
    return keras.Sequential(
        [keras.Input((6,)), L.Dense(width, activation="relu"), L.Dense(3)], name="teacher"
    )


def distiller_of(student=None, teacher=None, **options):
    return tfc.Distiller(teacher or teacher_of(), student or nets.tiny(), **options)


def hinted(student=None, teacher=None, losses=None, **options):
    losses = losses or [
        tfc.SoftTargets(2.0),
        tfc.FeatureMatching("hidden", "first"),
        tfc.RKDDistance("hidden", "first"),
        tfc.SimilarityPreserving("hidden", "first"),
    ]
    return tfc.Distiller(teacher or named_teacher(), student or nets.tiny(), losses, **options)


def named_teacher(name="teacher", seed=None):
    keras.utils.set_random_seed(seed or 8)
    return keras.Sequential(
        [
            keras.Input((6,)),
            L.Dense(16, activation="relu", name="hidden"),
            L.BatchNormalization(name="norm"),
            L.Dense(3, name="out"),
        ],
        name=name,
    )
