"""Checks for custom weight transforms and distillation losses, to call from a test.

Each trains a small network for a second, and raises AssertionError if a check fails.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from tfcompress.distill.distiller import Distiller
from tfcompress.distill.losses.base import DistillationLoss
from tfcompress.files import temporary_folder
from tfcompress.lowering.strip import strip
from tfcompress.transforms.base import WeightTransform
from tfcompress.wrap.wrapper import CompressionWrapper

__all__ = ["check_distillation_loss", "check_transform"]


def check_transform(
    make: Callable[[], WeightTransform], others: Sequence[Callable[[], WeightTransform]] = ()
) -> None:
    """Checks that a weight transform fulfils its contract, alone and with others.

    It checks shapes, zeros that must stay, the canonical order, the gradient of the stored weight,
    saving and loading, and `strip`: the stripped layer must compute the same as the wrapped one.

    Args:
        make: Creates the transform; its class, for example.
        others: Functions that create other transforms; each is combined with the first.

    Raises:
        AssertionError: If anything is wrong; the message says what.

    Example:
        >>> from tfcompress.testing import check_transform
        >>> from tfcompress.transforms import FakeQuant, MagnitudeMask
        >>> check_transform(FakeQuant, others=[lambda: MagnitudeMask(0.5)])
    """
    for companions in [(), *[(other,) for other in others]]:
        _check_combination([make, *companions])


def _check_combination(makers: Sequence[Callable[[], WeightTransform]]) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 6)).astype("float32")
    y = generator.normal(size=(16, 4)).astype("float32")
    layer = CompressionWrapper(layers.Dense(4, name="dense"), [make() for make in makers])
    model = keras.Sequential([keras.Input((6,)), layer])
    (weight, transforms), *_ = layer.pipelines()
    orders = [transform.order for transform in transforms]
    _require(orders == sorted(orders), f"transforms are not in their order: {orders}")
    for transform in transforms:
        name = type(transform).__name__
        shape = tuple(transform.call(ops.convert_to_tensor(weight)).shape)
        _require(shape == tuple(weight.shape), f"{name}.call changes the shape to {shape}")
        if transform.keeps_zeros:
            output = _array(transform.call(ops.zeros(weight.shape)))
            _require(not output.any(), f"{name} has keeps_zeros, and moves zeros")
    names = " and ".join(type(transform).__name__ for transform in transforms)
    before = _array(weight)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    losses = model.fit(x, y, epochs=5, batch_size=8, verbose=0).history["loss"]
    _require(bool(np.isfinite(losses).all()), f"training with {names} gives {losses}")
    learned = losses[-1] < losses[0] and bool(np.any(_array(weight) != before))
    _require(learned, f"no gradient passes {names}: the loss goes {losses}")
    loaded = _saved_and_loaded(model)
    configs = [[t.get_config() for t in m.layers[0].transforms] for m in (model, loaded)]
    _require(configs[0] == configs[1], f"get_config of {names} does not come back: {configs}")
    outputs = _array(model(x))
    _require(np.array_equal(_array(loaded(x)), outputs), f"{names}: a loaded model differs")
    stripped = strip(layer)
    effective = _array(layer.effective_value(weight, transforms))
    _require(
        np.array_equal(_array(stripped.kernel), effective), f"{names}: strip changes the weight"
    )
    close = np.allclose(_array(stripped(x)), outputs, atol=1e-5)
    _require(close, f"{names}: the stripped layer differs")
    for mask in (_array(t.mask) for t in transforms if hasattr(t, "mask")):
        _require(not effective[mask == 0].any(), f"{names}: a pruned weight came back")


def check_distillation_loss(make: Callable[[], DistillationLoss]) -> None:
    """Checks that a distillation loss fulfils its contract.

    A `Distiller` trains with this loss alone. The gradient must reach the student, the loss must
    decrease, samples of weight zero must have no effect, and teacher, student and loss must be
    restored from a file. Teacher and student map 8x8 images of 3 channels to 5 logits. Their layers
    are "conv" (8, 8, 4), "attention" (64, 4; a MultiHeadAttention) and "hidden" (6,).

    Args:
        make: Creates the loss; a loss on layers must use these layers.

    Raises:
        AssertionError: If anything is wrong; the message says what.

    Example:
        >>> import tfcompress as tfc
        >>> from tfcompress.testing import check_distillation_loss
        >>> check_distillation_loss(lambda: tfc.FeatureMatching("hidden", "hidden"))
    """
    keras.utils.set_random_seed(0)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(32, 8, 8, 3)).astype("float32")
    y = generator.integers(0, 5, 32)
    loss = make()
    name = type(loss).__name__
    restored = type(loss).from_config(loss.get_config())
    same = restored.get_config() == loss.get_config()
    _require(same, f"get_config of {name} does not come back: {restored.get_config()}")
    distiller = Distiller(_network("teacher"), _network("student"), [loss], alpha=1.0)
    distiller.compile(
        keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    before = [_array(v) for v in distiller.trainable_variables]

    def has_changed() -> bool:
        now = [_array(v) for v in distiller.trainable_variables]
        return any(np.any(a != b) for a, b in zip(before, now, strict=True))

    try:
        distiller.fit(x, y, sample_weight=np.zeros(32), batch_size=16, verbose=0)
    except ValueError as error:  # raised by Keras if the student has no gradient at all
        raise AssertionError(f"training with {name} fails: {error}") from error
    _require(not has_changed(), f"{name} learns from samples of weight zero")
    losses = distiller.fit(x, y, epochs=10, batch_size=16, verbose=0).history["loss"]
    _require(bool(np.isfinite(losses).all()), f"training with {name} gives {losses}")
    _require(has_changed(), f"no gradient of {name} reaches the student")
    _require(losses[-1] < losses[0], f"{name} does not fall: {losses}")
    loaded = _saved_and_loaded(distiller)
    values = [
        float(m.evaluate(x, y, verbose=0, return_dict=True)["loss"]) for m in (distiller, loaded)
    ]
    close = abs(values[0] - values[1]) <= 1e-5 * abs(values[0])
    _require(close, f"{name}: the loss of a loaded Distiller is {values[1]}, not {values[0]}")


def _network(name: str) -> keras.Model:
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="conv")(inputs)
    x = layers.Reshape((64, 4))(x)
    x = layers.MultiHeadAttention(1, 4, name="attention")(x, x)
    x = layers.Dense(6, name="hidden")(layers.GlobalAveragePooling1D()(x))
    return keras.Model(inputs, layers.Dense(5, name="logits")(x), name=name)


def _saved_and_loaded(model: keras.Model) -> Any:
    with temporary_folder() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return keras.saving.load_model(path)


def _array(value: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(value))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
