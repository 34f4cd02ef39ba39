"""The contract of a weight transform.

How to write one
----------------
A weight transform maps the stored value of one weight to the value the layer computes with. It
never overwrites the stored value: only the optimizer changes that. To add one:

1. Subclass `WeightTransform` in a file of its own in this folder and register it for Keras
   serialization (`@keras.saving.register_keras_serializable("tfcompress")`).
2. Set `order`, its position in the canonical sequence (mask 0, cluster 10, fake-quantization 20),
   and `keeps_zeros` if `call` maps 0 to 0 exactly.
3. Implement `call(weight)`: a float32 tensor in, a tensor of the same shape out, written in
   `keras.ops` so that it trains on every Keras backend. If the map is piecewise constant, define
   its gradient (usually straight-through).
4. If it has state, create it in `build(shape)` with `add_weight` and change it in
   `update(weight)`, which runs once per training pass before `call`. Compute new values inside
   `keras.ops.cond`, assign outside of it: that is what `tf.distribute` demands.
5. Return every constructor argument from `get_config`.
6. Export the class from `transforms/__init__.py` and add a test file, which calls
   `tfcompress.testing.check_transform`: shapes, gradients, save and load, strip and sparsity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


class WeightTransform(keras.layers.Layer):
    """Maps one stored weight to the value its layer computes with.

    A transform is a Keras layer only so that its state is saved, restored and distributed like any
    other; it is applied by `CompressionWrapper`, never called in a model by itself.

    Attributes:
        order: Position in the canonical sequence; smaller runs first.
        keeps_zeros: True if `call` maps exact zeros to exact zeros.

    Args:
        **kwargs: Arguments of `keras.layers.Layer`.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> @keras.saving.register_keras_serializable("my_package")
        ... class Halve(tfc.WeightTransform):
        ...     keeps_zeros = True
        ...
        ...     def call(self, weight):
        ...         return weight / 2
        >>> dense = keras.layers.Dense(2, kernel_initializer="ones")
        >>> outputs = tfc.CompressionWrapper(dense, [Halve()])(keras.ops.ones((1, 4)))
        >>> keras.ops.convert_to_numpy(outputs).tolist()
        [[2.0, 2.0]]
    """

    order: int = 0
    keeps_zeros: bool = False

    def __init__(self, **kwargs: Any) -> None:
        # Weights are read in full precision: under mixed_float16, magnitudes and scales computed in
        # float16 would give other masks and quantized values than the stored weight.
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.built: bool
        self.channel_axes: tuple[int, ...] = ()
        self.input_axis: int | None = None
        self._shape: tuple[int, ...] = ()

    def attach(
        self, shape: Sequence[int], channel_axes: Sequence[int], input_axis: int | None = None
    ) -> None:
        """Creates the state for one weight.

        Args:
            shape: Shape of the weight.
            channel_axes: Axes of the weight that enumerate its output channels; empty where the
                runtime keeps one scale for the whole tensor.
            input_axis: Axis along which the weight sums up input channels; None if there is none.
        """
        if self.built:
            return
        self.channel_axes = tuple(channel_axes)
        self.input_axis = input_axis
        self._shape = tuple(shape)
        self.build(self._shape)
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Returns the arguments of `attach`, from which Keras builds a copy."""
        if not self.built:
            return None
        axes = {"channel_axes": self.channel_axes, "input_axis": self.input_axis}
        return {"shape": self._shape, **axes}

    def build_from_config(self, config: dict[str, Any] | None) -> None:
        """Builds a copy by what `get_build_config` returned."""
        if config:
            self.attach(**config)

    def build(self, shape: tuple[int, ...]) -> None:
        """Creates the state; the default transform has none."""

    @property
    def output_axis(self) -> int:
        """Axis of the output channels; the last one where channels have several axes, or none."""
        return self.channel_axes[0] if len(self.channel_axes) == 1 else -1

    def start(self, weight: Any) -> None:
        """Initializes the state from the weight when a model is wrapped; nothing by default.

        Args:
            weight: The stored weight, a float32 tensor, transformed by the earlier transforms.
        """

    def update(self, weight: Any) -> None:
        """Updates the state, once per training pass and before `call`; nothing by default.

        Args:
            weight: The stored weight, a float32 tensor.
        """

    def call(self, weight: Any) -> Any:
        """Returns the value to compute with, a tensor of the shape of `weight`."""
        raise NotImplementedError(f"{type(self).__name__} must implement call(weight).")

    def unfinished(self) -> str | None:
        """Returns why the transform should not be exported yet; None if it may be."""
        return None

    def report(self) -> dict[str, Any]:
        """Returns what `summary` shows of this transform, by column."""
        return {}
