"""CompressionWrapper: a layer that computes with transformed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops, tree
from keras.src import backend

from tfcompress.graph.cost import DEPTHWISE, TRANSPOSED, einsum_letters
from tfcompress.transforms import WeightTransform
from tfcompress.wrap.custom import description
from tfcompress.wrap.integers import Grid, Sum, rounded_weight, straight_through

_NEVER_COMPRESSED = {"bias", "recurrent_bias", "gamma", "beta", "alpha", "scale"}
_LAST_AXIS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


def variable_name(variable: Any) -> str:
    """Returns the last part of a variable's path: "kernel", "embeddings", ..."""
    return variable.path.split("/")[-1]


def compressible_weights(layer: Any) -> list[Any]:
    """Returns the weights of a built layer that transforms apply to: its trainable matrices.

    Kernels and embeddings, also those of layers inside the layer (the cell of an LSTM, the
    projections of an attention layer); no biases, no normalization, no activation slopes.
    """
    # By how they were made, not by `weight.trainable`, which freezing a layer turns off.
    learned = {id(v) for part in layer._flatten_layers() for v in part._trainable_variables}
    told = description(layer)
    never = _NEVER_COMPRESSED | (told.uncompressed if told else frozenset())
    return [
        weight
        for weight in layer.weights
        if id(weight) in learned
        and len(weight.shape) >= 2
        and keras.backend.is_float_dtype(weight.dtype)
        and variable_name(weight) not in never
    ]


def step_of(layer: Any) -> Any:
    """Returns the layer that a TimeDistributed applies at each step, or the layer itself."""
    return step_of(layer.layer) if isinstance(layer, keras.layers.TimeDistributed) else layer


def channel_axes(layer: Any, weight: Any) -> tuple[int, ...]:
    """Returns the axes of a kernel for which TFLite keeps a scale per index.

    Empty where the runtime keeps one scale for the whole tensor (embeddings, batched products).
    """
    name = variable_name(weight)
    layer = step_of(layer)
    told = description(layer)
    if told is not None:
        return (told.channel_axes[name],) if name in told.channel_axes else ()
    if isinstance(layer, DEPTHWISE) or name == "depthwise_kernel":
        return (-2, -1)
    if isinstance(layer, TRANSPOSED):
        return (-2,)
    if isinstance(layer, _LAST_AXIS) or getattr(layer, "rounds_each_column", False):
        return (-1,)
    if isinstance(layer, keras.layers.EinsumDense):
        given, letters, result = einsum_letters(layer)
        batched = any(letter in given and letter in result for letter in letters)
        kept = [axis - len(letters) for axis, letter in enumerate(letters) if letter in result]
        return () if batched else tuple(kept)  # of a batch of products there is one scale
    return ()


def input_axis(layer: Any, weight: Any) -> int | None:
    """Returns the axis of a kernel that the layer sums over, its input channels.

    None for tables of embeddings and depthwise kernels, which sum over no channels.
    """
    name = variable_name(weight)
    layer = step_of(layer)
    depthwise = isinstance(layer, DEPTHWISE) or name == "depthwise_kernel"
    if depthwise or isinstance(layer, keras.layers.Embedding) or name == "embeddings":
        return None
    if isinstance(layer, TRANSPOSED):
        return -1
    for part in layer._flatten_layers():
        if isinstance(part, keras.layers.EinsumDense) and weight is part.kernel:
            _, letters, result = einsum_letters(part)
            summed = [axis for axis, letter in enumerate(letters) if letter not in result]
            return summed[-1] - len(letters) if summed else None
    return -2


def first_call_in_pass(layer: keras.layers.Layer) -> bool:
    """Returns whether this is the first call of `layer` in the current pass of its model.

    Keras opens one call context for the outermost layer called and closes it when that returns, so
    the context is the pass. It lives in the thread that runs the pass: the replicas of a
    distribution strategy each have their own.
    """
    context = layer._get_call_context()
    seen = context.get_value("tfcompress_seen")
    if seen is None:
        seen = set()
        context.set_value("tfcompress_seen", seen)
    first = id(layer) not in seen
    seen.add(id(layer))
    return first


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
            the canonical order whatever the order given.
        origin: Set by `quantize` where it replaced one layer by several: which layer it was.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        observer: While roundings are chosen, a function that is called in place of the layer, with
            the first input and a function that returns what the layer returns; else None.
        sum: What the runtime adds up, where that is known: then inference does (see `integers.py`).

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
        # float32 and no autocast: the wrapper hands tensors through, the layer casts for itself.
        kwargs["dtype"] = "float32"
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.layer = layer
        self.transforms = sorted(transforms, key=lambda t: t.order)
        self.origin = origin
        self.weight_transforms: list[WeightTransform] = []
        self.observer: Any = None
        self.sum: Sum | None = None
        self._told = False
        # Keras looks there for tensors and their masks, by name.
        self._call_signature = layer._call_signature
        self._allow_non_tensor_positional_args = layer._allow_non_tensor_positional_args
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
        """Calls the wrapped layer, building it first as it builds itself."""
        if not self.built:
            specs = tree.map_structure(_symbolic, (args, kwargs))
            # Layers differ in the signature of build(); all build themselves when called.
            if not self.layer.built:
                self.layer(*specs[0], **specs[1])
            if not _all_built(self.layer):  # by call() alone, which Keras forgets on loading
                backend.compute_output_spec(self.layer.call, *specs[0], **specs[1])
            self._attach()
        return super().__call__(*args, **kwargs)

    def pipelines(self) -> Iterator[tuple[Any, list[WeightTransform]]]:
        """Yields each compressible weight with its transforms in order."""
        count = len(self.transforms)
        weights = compressible_weights(self.layer) if count else []
        for index, weight in enumerate(weights):
            yield weight, list(self.weight_transforms[index * count : (index + 1) * count])

    def start(self) -> None:
        """Sets the state of every transform by the weights as they are now."""
        for weight, transforms in self.pipelines():
            value = ops.cast(ops.convert_to_tensor(weight), "float32")
            for index, transform in enumerate(transforms):
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
            update: Whether each transform first changes its state, as once a training pass.
        """
        value = ops.cast(ops.convert_to_tensor(weight), "float32")
        for transform in transforms:
            if update:
                transform.update(value)
            value = transform.call(value)
        return ops.cast(value, weight.dtype)

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Calls the layer with its transformed weights."""
        if self.observer is None:
            return self._compute(*args, training=training, **kwargs)
        return self.observer(args[0], lambda: self._compute(*args, training=training, **kwargs))

    def _compute(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        if not (training or self._told):
            from tfcompress.wrap.sources import has_own_grid, tell_nested_models

            if has_own_grid(self):
                tell_nested_models(self)
            self._told = True
        floats = training or self.skipped or not self.transforms
        read = None if floats else getattr(self.sum, "read", None)
        if read is not None and read.exact and _is_float32(args[0]):
            return self._in_integers(read, args[0])
        if not self.transforms:
            return self.layer(*args, **kwargs)
        update = bool(training) and first_call_in_pass(self)
        # Every variable is mapped, at its current value: one that is missing would be read past an
        # outer stateless scope (JAX training), and its updates would be lost.
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

    def _in_integers(self, read: Grid, x: Any) -> Any:
        """Returns what the layer returns, from integers of the grid that `x` is on.

        A sum of products of integers is exact in floats, in whatever order it is added up.
        """
        ((weight, _),) = self.pipelines()
        value, rounding = rounded_weight(self)
        step = rounding.scale(value)
        values = [(weight, straight_through(value / step, rounding.integers(value, step)))]
        bias = self.layer.bias
        if bias is not None:
            values.append((bias, ops.zeros(bias.shape)))
        unit = read.grid()[0]
        places = x / unit
        steps = straight_through(places, ops.where(read.rounds(), ops.round(places), places))
        with keras.StatelessScope(values):
            sums = self.layer(steps)
        sums = sums * (unit * ops.reshape(step, (-1,)))
        return sums if bias is None else sums + ops.convert_to_tensor(bias)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the layer itself would return, symbolically."""
        # Here, because the roles of layers are those of layers that may be wrapped.
        from tfcompress.wrap.sources import sum_of

        if getattr(args[0] if args else None, "_keras_history", None) is not None:
            self.sum = sum_of(self, tree.flatten((args, kwargs)))
        kwargs.pop("training", None)
        made = self.layer.compute_output_spec(*args, **kwargs)
        given = {id(value) for value in tree.flatten((args, kwargs))}
        # A tensor that is handed on as it is would be the output of two layers.
        return tree.map_structure(lambda t: _symbolic(t) if id(t) in given else t, made)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the output shape of the layer."""
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        """Returns the mask of the layer's output, which the layer itself attaches to values."""
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
        """Makes a wrapper from the result of `get_config`."""
        config = dict(config)
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        transforms = [keras.saving.deserialize_keras_object(t) for t in config.pop("transforms")]
        return cls(layer, transforms, **config)

    def get_build_config(self) -> None:
        """Returns nothing: the config of the layer inside holds what builds it."""

    def build_from_config(self, config: Any) -> None:
        """Does nothing: a layer that was built when saved is built by its own config."""


def _all_built(layer: Any) -> bool:
    return all(part.built for part in layer._flatten_layers())


def _is_float32(x: Any) -> bool:
    return keras.backend.standardize_dtype(x.dtype) == "float32"


def _symbolic(value: Any) -> Any:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return keras.KerasTensor(value.shape, dtype=keras.backend.standardize_dtype(value.dtype))
    return value
