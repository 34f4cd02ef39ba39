"""Keras model -> bytes of a .tflite file. Needs the TensorFlow backend."""

from __future__ import annotations

import tempfile
from typing import Any

import keras
from keras import tree

from tfcompress.data import InputSpec
from tfcompress.errors import ExportError
from tfcompress.stderr import captured_stderr
from tfcompress.tflite.edit import share_scales, store_four_bits, use_integer_kernels


def input_specs(model: keras.Model) -> list[InputSpec]:
    """Returns what a model expects, in the order of its inputs."""
    return [
        InputSpec(
            # The layer's name is the one the user gave; the tensor's may be made up.
            t._keras_history.operation.name,
            tuple(t.shape[1:]),
            keras.backend.standardize_dtype(t.dtype),
        )
        for t in model.inputs
    ]


def output_names(model: keras.Model) -> list[str]:
    """Returns a distinct name for each output: dict keys, else the names of the last layers."""
    struct = getattr(model, "_outputs_struct", None)
    if isinstance(struct, dict) and len(struct) == len(model.outputs):
        return list(tree.flatten({key: key for key in struct}))
    names: list[str] = []
    for tensor in model.outputs:
        name = _maker(tensor)
        same = sum(n == name or n.startswith(f"{name}_") for n in names)
        names.append(f"{name}_{same}" if same else name)
    return names


def _maker(tensor: Any) -> str:
    """Returns the name of the layer that made an output, as it was before wrapping."""
    operation, node_index, _ = tensor._keras_history
    if getattr(operation, "is_compression_helper", False):
        return _maker(operation._inbound_nodes[node_index].input_tensors[0])
    origin = getattr(operation, "origin", None)
    return origin["name"] if origin else operation.name


def convert(
    model: keras.Model,
    *,
    names: list[str],
    quantized: str | None,
    io_dtype: str,
    batch_size: int | None,
    sparse: bool,
    per_channel: bool = True,
) -> bytes:
    """Converts a model whose weights are final.

    Args:
        model: A float32 model; for a quantization-aware one, with constant fake-quantization in it.
        names: Name of each output in the signature.
        quantized: None for float32, "dynamic" for int8 weights, "int8" for integers throughout,
            "w4a8" to store in 4 bits what lies on such a grid.
        io_dtype: "float32", "int8" or "uint8".
        batch_size: Fixed batch, or None to leave it open.
        sparse: Whether to store weights with many zeros in the runtime's sparse format.
        per_channel: Whether kernels have a scale for each output channel, or one in all.

    Raises:
        ExportError: If the converter fails.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory(prefix="tfcompress-") as folder, captured_stderr() as log:
        try:
            graph = _frozen(tf, model, names, batch_size)
            _save(tf, graph, folder, model, names)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            _configure(tf, converter, quantized, io_dtype, sparse)
            content = converter.convert()
            if quantized in ("int8", "w4a8"):
                content = use_integer_kernels(content)
            if quantized == "w4a8":
                content = store_four_bits(content)
            return content if per_channel else share_scales(content)
        except ExportError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()
            raise ExportError(
                f"The TFLite converter could not convert model {model.name!r}: "
                + "\n".join(reason[:5])
                + (f"\nIts log ends with:\n{log()}" if log() else "")
            ) from error


def _frozen(tf: Any, model: keras.Model, names: list[str], batch_size: int | None) -> Any:
    """Traces the model and turns its variables into constants: 3-6x faster to convert."""
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    signature = [
        tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype, name=spec.name)
        for t, spec in zip(model.inputs, input_specs(model), strict=True)
    ]
    structure = getattr(model, "_inputs_struct", None)

    @tf.function(autograph=False)
    def serve(*tensors: Any) -> dict[str, Any]:
        single = len(tensors) == 1 and not isinstance(structure, (dict, list, tuple))
        if structure is None or single:
            inputs = tensors[0]
        else:
            inputs = tree.pack_sequence_as(structure, list(tensors))
        outputs = tree.flatten(model(inputs, training=False))
        return dict(zip(names, outputs, strict=True))

    # Loops are left whole: taken apart, they could not be converted at all.
    concrete = serve.get_concrete_function(*signature)
    return convert_variables_to_constants_v2(concrete, lower_control_flow=False)


def _save(tf: Any, graph: Any, folder: str, model: keras.Model, names: list[str]) -> None:
    """Writes a SavedModel of the frozen graph: it keeps the names of inputs and outputs."""
    module = tf.Module()
    specs = {
        spec.name: tf.TensorSpec(tensor.shape, tensor.dtype, name=spec.name)
        for spec, tensor in zip(input_specs(model), graph.inputs, strict=True)
    }
    order = list(specs)
    # The frozen function returns its outputs in the order of the sorted names.
    keys = sorted(names)

    @tf.function(autograph=False)
    def serve(**inputs: Any) -> dict[str, Any]:
        outputs = graph(*(inputs[name] for name in order))
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        flat = tree.flatten(outputs[0]) if isinstance(outputs[0], dict) else outputs
        return dict(zip(keys, flat, strict=True))

    module.serve = serve
    tf.saved_model.save(
        module,
        folder,
        signatures={"serving_default": serve.get_concrete_function(**specs)},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )


def _configure(tf: Any, converter: Any, quantized: str | None, io_dtype: str, sparse: bool) -> None:
    if quantized:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if sparse:
        converter.optimizations = [
            *converter.optimizations,
            tf.lite.Optimize.EXPERIMENTAL_SPARSITY,
        ]
    if io_dtype != "float32":
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(
            io_dtype
        )
