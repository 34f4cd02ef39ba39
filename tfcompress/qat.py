"""quantize: a model that computes during training as its INT8 file will, for a target."""

from __future__ import annotations

import pathlib
import tempfile
import warnings
from typing import Any

import keras

from tfcompress.devices.for_target import io_dtype_for, known_target, report_for, scheme_for
from tfcompress.errors import CompressionWarning
from tfcompress.export.export_tflite import export_tflite
from tfcompress.export.preflight import backend_problem
from tfcompress.graph.inline import as_graph, code_of_open_sizes
from tfcompress.graph.layers import plain
from tfcompress.graph.preprocessing import check_no_tables
from tfcompress.graph.read import input_specs, walk_layers
from tfcompress.graph.select import LayerSelection
from tfcompress.post_training.calibrate import calibrate
from tfcompress.quantization.input_samples import MOST_SAMPLES
from tfcompress.quantization.quantize import quantized, weight_quantizer_for
from tfcompress.samples.probes import noise_for
from tfcompress.scheme import QuantizationScheme, as_scheme
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.sparsity import warn_of_zeros
from tfcompress.wrap.state import check_wrapped
from tfcompress.wrap.wrap_layers import wrap_layer


def quantize(
    model_or_layer: Any,
    scheme: str | QuantizationScheme = "int8",
    *,
    layers: LayerSelection = None,
    target: str | None = None,
    input_shape: Any = None,
    keep_samples: int = MOST_SAMPLES,
    check: bool = True,
) -> Any:
    """Returns a copy that trains with the rounding of the INT8 file it will become (QAT).

    Weights are quantized per output channel, activations per tensor with ranges learned while
    training, where the runtime quantizes them and nowhere else. Fused activations become layers of
    their own, and a Sequential model becomes a chain in a Functional one; `strip` undoes both.
    Train with plain `compile` and `fit`, then `export_tflite`: no calibration data is needed.
    The model keeps a few training samples, which the export checks the file on; they are in its
    `.keras` and `.weights.h5` files as well.

    Pays in: a quarter of the bytes of float32, and milliseconds, on every TFLite runtime.

    Args:
        model_or_layer: A built Sequential or Functional model, wrapped by `prune` or not, or one
            layer (whose weights alone are then rounded). It is not changed.
        scheme: "int8", "w4a8" (4-bit weights, 8-bit activations), "int16x8" (16-bit activations) or
            a `QuantizationScheme`.
        layers: Which layers, as for `prune`; the others stay float in the model and in the file.
        target: What the file will run on, one of `check_target`'s. The model takes the forms that
            it has (`prefer` of the scheme), and a file is made and checked before any training:
            what the target cannot run is refused, and what it leaves to others is warned of. The
            check needs Keras on TensorFlow; elsewhere only the scheme is looked at. None for any.
        input_shape: Shape of one sample, without the batch, for a model that takes any size; a dict
            of these by input name if there are several. It trains and runs with this size only.
            Custom layers whose code computes with sizes, as that of transformers for texts of any
            length does, can be quantized only so.
        keep_samples: Training samples to keep at most, fewer where they are large; 0 for none: the
            export then checks the file on noise, unless it is given samples. `forget_samples`
            removes them later.
        check: Whether to compare the result with the model first, as for `prune`.

    Returns:
        A new model with the same weights, not compiled; for a layer, the wrapped layer.

    Raises:
        ExportError: If `target` cannot run the file that this model will become.
        TypeError: If `model_or_layer` is neither a model nor a layer.
        ValueError: If the model is unbuilt, it is quantized already, `scheme` is unknown,
            `layers` or an override matches nothing, or a part of the model cannot go into
            a file (see `split_preprocessing`); if there is no such target, or it does not compute
            with the bits of the scheme.

    Warns:
        CompressionWarning: If the model was pruned, and nothing would keep its zeros; if the target
            leaves operations to others; if custom layers stay in float because `input_shape` is
            missing.

    Example:
        >>> import keras
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, activation="relu")])
        >>> student = tfc.quantize(tfc.prune(model, 0.5))  # pruned and quantization-aware
        >>> student(keras.ops.ones((1, 8))).shape
        TensorShape([1, 4])

    References:
        Jacob et al. 2018, arXiv:1712.05877.
    """
    scheme = as_scheme(scheme if target is None else scheme_for(scheme, target))
    if isinstance(keep_samples, bool) or not isinstance(keep_samples, int) or keep_samples < 0:
        raise ValueError(f"keep_samples must be an integer >= 0. Received: {keep_samples!r}")
    if not isinstance(model_or_layer, keras.Model):
        wrapped = wrap_layer(model_or_layer, weight_quantizer_for(plain(model_or_layer), scheme))
        if wrapped.built:
            wrapped.start(FakeQuant)
        return wrapped
    model = as_graph(model_or_layer, input_shape=input_shape)
    check_no_tables(model)
    if left := code_of_open_sizes(model):
        shapes = {spec.name: spec.shape for spec in input_specs(model)}
        warnings.warn(
            f"{left[0]!r} stays in float ({len(left)} such layers): its code computes with the "
            "sizes of its inputs, which are open. Pass the shape of a sample as input_shape, a "
            f"dict for {shapes}, with numbers in place of None.",
            CompressionWarning,
            stacklevel=2,
        )
    wrapped = quantized(model, scheme, layers, keep_samples=keep_samples)
    # Elsewhere than on TensorFlow no file can be made.
    if target is not None and known_target(target) is not None and not backend_problem():
        content = _trial_file(target, model, scheme, layers)
        report_for(content, target, f"the file of model {model.name!r}")
    if check:
        check_wrapped(model, wrapped, "quantize")
    warn_of_zeros(walk_layers(model))
    return wrapped


_NOISE_SAMPLES = 8


def _trial_file(target: str, model: keras.Model, scheme: QuantizationScheme, layers: Any) -> bytes:
    """Returns a file of the operations that a model will have when it is trained."""
    trial = quantized(model, scheme, layers, keep_samples=0)
    calibrate(trial, noise_for(model, input_specs(model), _NOISE_SAMPLES), "min_max")
    io_dtype = io_dtype_for(None, scheme.name, target)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the noise
        path = pathlib.Path(folder, "model.tflite")
        export_tflite(trial, path, io_dtype=io_dtype, metadata=False, verify=False, verbose=False)
        return path.read_bytes()
