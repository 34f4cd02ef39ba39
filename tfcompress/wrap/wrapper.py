"""CompressionWrapper: a layer that computes with transformed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops, tree

from tfcompress.graph.keras_internals import (
    copy_call_signature,
    first_call_in_pass,
    flatten_layers,
    history,
    symbolic_call,
)
from tfcompress.graph.weights import channel_axes, compressible_weights, input_axis
from tfcompress.integer.integer_sums import accumulate_in_integers
from tfcompress.integer.producers import Accumulation
from tfcompress.integer.trace import accumulation_of, link_nested_models, rounds_its_output
from tfcompress.transforms.base import WeightTransform


@keras.saving.register_keras_serializable("tfcompress")
class CompressionWrapper(keras.layers.Layer):
    """Runs a layer with its weights replaced by transformed ones.

    The stored weights change only through the optimizer; every call substitutes
    `transforms(weight)` for each compressible weight. All else that the layer does is kept:
    moving statistics, random seeds, added losses, masks, its dtype policy. The wrapper carries the
    layer's name.

    Args:
        layer: The layer to wrap, built or not.
        transforms: `WeightTransform` prototypes; each compressible weight gets its own copies, in
            the canonical order, independent of their order here.
        origin: Set by `quantize` if it replaced one layer by several: the original layer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        observer: None, or, during post-training quantization, a function that is called instead of
            the layer. Its arguments are the first input and a function that runs the layer.
        accumulation: The integer accumulation of the layer, if it is known. Inference then computes
            with quantized values.

    Raises:
        TypeError: If `layer` is no layer, or one of `transforms` no transform.
        ValueError: If `layer` is wrapped already, or two transforms are of the same kind.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> from tfcompress.transforms import MagnitudeMask
        >>> layer = tfc.CompressionWrapper(keras.layers.Dense(4), [MagnitudeMask(0.5)])
        >>> layer(keras.ops.ones((2, 8))).shape
        TensorShape([2, 4])
    """

    is_compression_wrapper = True
    skipped: tuple[type, ...] = ()  # kinds of transforms that are not applied, for comparisons

    def __init__(
        self,
        layer: keras.layers.Layer,
        transforms: Sequence[WeightTransform] = (),
        *,
        origin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(f"layer must be a Keras layer. Received: layer={layer!r}")
        if isinstance(layer, CompressionWrapper):
            raise ValueError(
                f"layer {layer.name!r} is wrapped already. Use prune() or quantize(), which add to "
                "the transforms of a wrapped layer."
            )
        for transform in transforms:
            if not isinstance(transform, WeightTransform):
                raise TypeError(f"transforms must be WeightTransforms. Received: {transform!r}")
        kinds = [type(transform) for transform in transforms]
        if len(set(kinds)) < len(kinds):
            raise ValueError(
                f"layer {layer.name!r} would get two transforms of the same kind: "
                f"{', '.join(kind.__name__ for kind in kinds)}. Each kind applies once; to change "
                "a setting, strip() the model and wrap it again."
            )
        kwargs.setdefault("name", layer.name)
        # float32 and no autocast: the wrapper passes tensors on unchanged, the layer casts them.
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.layer = layer
        self.transforms = sorted(transforms, key=lambda t: t.order)
        self.origin = origin
        self.weight_transforms: list[WeightTransform] = []
        self.observer: Any = None
        self.accumulation: Accumulation | None = None
        self._nested_models_linked = False
        copy_call_signature(layer, self)
        if _all_built(layer):
            self._attach()

    def _attach(self) -> None:
        for weight in compressible_weights(self.layer):
            for prototype in self.transforms:
                transform = type(prototype).from_config(prototype.get_config())
                transform.attach(
                    weight.shape, channel_axes(self.layer, weight), input_axis(self.layer, weight)
                )
                self.weight_transforms.append(transform)
        self.built = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the wrapped layer; the first call builds it."""
        if not self.built:
            specs = tree.map_structure(_symbolic, (args, kwargs))
            # Layers differ in the signature of build(); all build themselves when called.
            if not self.layer.built:
                self.layer(*specs[0], **specs[1])
            if not _all_built(self.layer):  # Keras does not load layers that only call() builds
                symbolic_call(self.layer.call, *specs[0], **specs[1])
            self._attach()
        return super().__call__(*args, **kwargs)

    def pipelines(self) -> Iterator[tuple[Any, list[WeightTransform]]]:
        """Yields each compressible weight with its transforms in order."""
        count = len(self.transforms)
        weights = compressible_weights(self.layer) if count else []
        for index, weight in enumerate(weights):
            yield weight, list(self.weight_transforms[index * count : (index + 1) * count])

    def start(self, kind: type = WeightTransform) -> None:
        """Sets the state of the transforms of a kind by the weights as they are now."""
        for weight, transforms in self.pipelines():
            value = ops.cast(ops.convert_to_tensor(weight), "float32")
            for index, transform in enumerate(transforms):
                if isinstance(transform, kind):
                    transform.start(value)
                if index + 1 < len(transforms):
                    value = transform.call(value)

    def effective_value(
        self, weight: Any, transforms: Sequence[WeightTransform], update: bool = False
    ) -> Any:
        """Returns the tensor that the layer computes with in place of `weight`.

        Args:
            weight: A compressible weight.
            transforms: Its transforms in order.
            update: Whether each transform first updates its state, once per training pass.
        """
        value = ops.cast(ops.convert_to_tensor(weight), "float32")
        for transform in transforms:
            if update:
                transform.update(value)
            value = transform.call(value)
        return ops.cast(value, weight.dtype)

    def skip_compression(self, kinds: tuple[type, ...] | None) -> None:
        """Skips transforms of these kinds from now on; None applies all again."""
        self.skipped = kinds or ()

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its transformed weights."""
        if self.observer is None:
            return self._compute(*args, training=training, **kwargs)
        return self.observer(args[0], lambda: self._compute(*args, training=training, **kwargs))

    def _compute(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if not (training or self._nested_models_linked):
            if rounds_its_output(self):
                link_nested_models(self)
            self._nested_models_linked = True
        floats = training or self.skipped or not self.transforms
        quantizer = None if floats else getattr(self.accumulation, "input_quantizer", None)
        if quantizer is not None and quantizer.exact and _is_float32(args[0]):
            return accumulate_in_integers(self, quantizer, args[0])
        if not self.transforms:
            return self.layer(*args, **kwargs)
        update = bool(training) and first_call_in_pass(self)
        # All variables are mapped to their current values. A variable that is missing here would
        # bypass an outer stateless scope (JAX training), and its updates would be lost.
        linked: list[Any] = getattr(self.layer, "linked_variables", list)()
        variables = [*self.layer.variables, *linked]
        values = {id(v): (v, ops.convert_to_tensor(v)) for v in variables}
        for weight, transforms in self.pipelines():
            applied = [t for t in transforms if not isinstance(t, self.skipped)]
            values[id(weight)] = (weight, self.effective_value(weight, applied, update))
        with keras.StatelessScope(list(values.values()), collect_losses=True) as scope:
            before = [(v, scope.get_current_value(v)) for v, _ in values.values()]
            outputs = self.layer(*args, **kwargs)
        for variable, old in before:
            new = scope.get_current_value(variable)
            if new is not old:
                variable.assign(new)
        for loss in scope.losses:
            self.add_loss(ops.cast(loss, "float32"))
        return outputs

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the symbolic output of the layer."""
        if args and history(args[0]) is not None:
            self.accumulation = accumulation_of(self, tree.flatten((args, kwargs)))
        kwargs.pop("training", None)
        outputs = self.layer.compute_output_spec(*args, **kwargs)
        inputs = {id(value) for value in tree.flatten((args, kwargs))}
        # Inputs that are returned unchanged are copied: a tensor is the output of one layer only.
        return tree.map_structure(lambda t: _symbolic(t) if id(t) in inputs else t, outputs)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the output shape of the layer."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask of symbolic outputs; for other tensors, the layer attaches it itself."""
        if not self.layer.supports_masking:
            return None
        return self.layer.compute_mask(inputs, previous_mask)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments."""
        config = super().get_config()
        config["layer"] = keras.saving.serialize_keras_object(self.layer)
        config["transforms"] = [keras.saving.serialize_keras_object(t) for t in self.transforms]
        config["origin"] = self.origin
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> CompressionWrapper:
        """Creates a wrapper from the result of `get_config`."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        transforms = [keras.saving.deserialize_keras_object(t) for t in config.pop("transforms")]
        return cls(layer, transforms, **config)

    def get_build_config(self) -> None:
        """Returns None: the config of the inner layer contains its build config."""

    def build_from_config(self, config: Any) -> None:
        """Does nothing: a layer that was built when saved is built from its own config."""


def _all_built(layer: Any) -> bool:
    return all(part.built for part in flatten_layers(layer))


def _is_float32(x: Any) -> bool:
    return keras.backend.standardize_dtype(x.dtype) == "float32"


def _symbolic(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return keras.KerasTensor(value.shape, dtype=keras.backend.standardize_dtype(value.dtype))
    return value
