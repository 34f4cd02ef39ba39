"""Samples of a model's inputs, kept while it trains."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from tfcompress.graph.keras_internals import first_call_in_pass
from tfcompress.graph.read import check_built, walk_layers

MOST_SAMPLES = 32


def samples_to_keep(shapes: list[tuple[int | None, ...]]) -> int:
    """Returns how many samples of all inputs together are kept: about 2 MB, at most 32.

    Args:
        shapes: Shape of each input, with the batch first. Where one has no fixed size, none of them
            is kept.
    """
    size = 0
    for shape in shapes:
        dimensions = [n for n in shape[1:] if n is not None]
        if len(dimensions) < len(shape) - 1:
            return 0
        size += math.prod(dimensions)
    return max(1, min(MOST_SAMPLES, 500_000 // max(1, size)))


@keras.saving.register_keras_serializable("tfcompress")
class InputSamples(keras.layers.Layer):
    """Returns an input of the model unchanged, and keeps samples of it during training.

    `export_tflite` checks the file against the model on these samples. The first batch fills the
    buffer, then each training step replaces one. They are real training data and are stored in the
    `.keras` file; `strip` removes them.

    Args:
        capacity: Samples to keep, the same number for every input of the model, so that the inputs
            of one sample stay together; 0 for none.
        prefer: The `prefer` of the scheme, which the export of the trained model follows. Models
            that were saved before there was a choice have "exactness".
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    is_compression_helper = True

    def __init__(self, capacity: int, prefer: str = "exactness", **kwargs: Any) -> None:
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.capacity = capacity
        self.prefer = prefer

    def build(self, input_shape: Any) -> None:
        """Creates the buffer."""
        if self.capacity:
            self.samples = self.add_weight(
                name="samples",
                shape=(self.capacity, *input_shape[1:]),
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
            )
            self.seen = self.add_weight(
                name="seen",
                shape=(),
                dtype="int32",
                initializer="zeros",
                trainable=False,
                aggregation="only_first_replica",
            )

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the inputs."""
        if training and self.capacity and first_call_in_pass(self):
            self._keep(ops.cast(ops.stop_gradient(inputs), "float32"))
        return inputs

    def _keep(self, batch: Any) -> None:
        seen, kept = ops.convert_to_tensor(self.seen), ops.convert_to_tensor(self.samples)
        size = ops.shape(batch)[0]

        def filled() -> Any:
            return ops.take(batch, ops.mod(ops.arange(self.capacity), size), axis=0)

        def replaced() -> Any:
            start = (ops.mod(seen, self.capacity), *(0 for _ in batch.shape[1:]))
            return ops.slice_update(kept, start, batch[:1])

        self.samples.assign(ops.cond(seen == 0, filled, replaced))
        self.seen.assign(seen + ops.where(seen == 0, ops.minimum(size, self.capacity), 1))

    def kept(self) -> Any:
        """Returns the samples kept so far as one array; None if there are none."""
        if not self.capacity:
            return None
        count = min(int(ops.convert_to_numpy(self.seen)), self.capacity)
        return ops.convert_to_numpy(self.samples)[:count] if count else None

    def forget(self) -> None:
        """Empties the buffer."""
        if self.capacity:
            self.samples.assign(ops.zeros(self.samples.shape))
            self.seen.assign(0)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the shape and dtype of the input."""
        return keras.KerasTensor(inputs.shape, dtype=inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        return {**super().get_config(), "capacity": self.capacity, "prefer": self.prefer}


def sample_keepers(model: keras.Model) -> list[InputSamples]:
    """Returns the layers of a model that keep samples of its inputs."""
    return [layer for _, layer in walk_layers(model) if isinstance(layer, InputSamples)]


def forget_samples(model: keras.Model) -> None:
    """Removes the training samples that a quantization-aware model keeps.

    Do so before you hand on a `.keras` or `.weights.h5` file of a model that was trained on data
    that others must not see; `summary` says how many are kept. The export then checks the file on
    noise, or on a `representative_dataset`. Further training keeps samples again: pass
    keep_samples=0 to `quantize` to keep none.

    Args:
        model: A model from `quantize`. It is changed.

    Raises:
        TypeError: If `model` is no Keras model.
        ValueError: If it is unbuilt, or keeps no samples.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> model = tfc.quantize(keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)]))
        >>> _ = model(np.ones((4, 8)), training=True)
        >>> tfc.summary(model).samples
        4
        >>> tfc.forget_samples(model)
        >>> tfc.summary(model).samples
        0
    """
    check_built(model)
    keepers = sample_keepers(model)
    if not keepers:
        raise ValueError(
            f"model {model.name!r} keeps no samples: only models from quantize() do. Received one "
            "without."
        )
    for keeper in keepers:
        keeper.forget()
