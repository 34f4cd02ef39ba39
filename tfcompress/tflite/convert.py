"""Keras model -> bytes of a .tflite file. Needs the TensorFlow backend."""

from __future__ import annotations

import contextlib
import gc
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from tfcompress.errors import ExportError
from tfcompress.files import temporary_folder
from tfcompress.graph.keras_internals import input_struct
from tfcompress.scheme import INTEGER_SCHEMES
from tfcompress.stderr import captured_stderr
from tfcompress.tensorflow_internals import (
    calibrator,
    converted,
    flatbuffer_schema,
    saved_model_converter,
    skip_optimization,
)
from tfcompress.tflite.converter_process import ConverterProcess
from tfcompress.tflite.converter_workarounds import (
    HUGE,
    by_rows,
    large_products,
    lower_convolutions,
    native_extremes,
    native_fake_quant,
)
from tfcompress.tflite.fast_kernels import use_fast_kernels
from tfcompress.tflite.flatbuffer_edits import (
    plain_lookups,
    share_scales,
    store_four_bits,
    use_integer_kernels,
    without_copies,
)
from tfcompress.tflite.integer_loops import carry_integers
from tfcompress.tflite.mixed_bits import merge_requantizations
from tfcompress.tflite.signature import as_in_model, safe_names


def convert(
    make: Callable[[], keras.Model],
    process: ConverterProcess,
    *,
    inputs: list[str],
    outputs: list[str],
    scheme: str,
    io_dtype: str,
    batch_size: int | None,
    sparse: bool,
    per_channel: bool = True,
    calibration: Mapping[str, np.ndarray] | None = None,
    prefer: str = "latency",
) -> bytes:
    """Converts a model whose weights are final.

    Args:
        make: Returns a float32 model; for a quantization-aware one, with constant
            fake-quantization in it. The model is released before the conversion, so that a large
            one is not in memory twice.
        process: The process that runs the converter.
        inputs: Names of the inputs of the file, in order.
        outputs: Names of the outputs of the file, in order.
        scheme: The scheme of the file, a name of `SCHEMES`.
        io_dtype: "float32", "int8", "uint8" or "int16".
        batch_size: Fixed batch, or None to leave it open.
        sparse: Whether to store weights with many zeros in the runtime's sparse format.
        per_channel: Whether kernels have a scale for each output channel, or one per tensor.
        calibration: For "int16x8" without ranges in the model, samples by input name.
        prefer: The `prefer` of the scheme, of integer files.

    Raises:
        ExportError: If the converter fails.
    """
    import tensorflow as tf

    with (
        temporary_folder() as folder,
        process.serving(),
        captured_stderr(),
        contextlib.ExitStack() as frozen,
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", ".*Interpreter is deprecated")  # raised by the calibrator
        try:
            if not gc.get_freeze_count():  # the caller may have frozen objects itself
                gc.freeze()  # a collection of all existing objects takes half a second
                frozen.callback(gc.unfreeze)
            model = make()
            large = model.count_params() > HUGE
            file_names = safe_names(inputs, "input"), safe_names(outputs, "output")
            loops = _save(tf, model, folder, file_names, batch_size)
            del model
            if calibration is not None and loops:  # the calibrator would crash
                raise ExportError(_LOOPS.format(loops[0]))
            if large:
                gc.collect()
            frozen.close()
            converter = saved_model_converter(folder)
            ranges = scheme in INTEGER_SCHEMES and calibration is None
            if ranges or scheme in ("float16", "dynamic_int8"):
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            _configure(tf, converter, scheme, io_dtype, sparse)
            if not sparse:
                # For these schemes the converter's last pass only merges equal constants, slowly.
                skip_optimization(converter, without_copies)
            graph = tf.compat.v1.GraphDef()
            if ranges:
                graph.node.add(name="ranges", op="FakeQuantWithMinMaxArgs")
            content = converted(converter, graph)
            if io_dtype in ("int8", "uint8") and (float_inputs := _float_inputs(content)):
                raise ExportError(
                    _INPUT_NOT_QUANTIZED.format(io_dtype, f"the input {float_inputs[0]!r}")
                )
            if calibration is not None:
                content = _calibrated(tf, content, calibration, io_dtype, batch_size or 1)
            if ranges:
                content = use_integer_kernels(content)
            if scheme == "w4a8":
                content = store_four_bits(content)
            if not per_channel:
                content = share_scales(content)
            if ranges:
                content = use_integer_kernels(merge_requantizations(content), ("RELU", "RELU6"))
                content = carry_integers(use_fast_kernels(content, prefer))
            return as_in_model(
                content,
                list(zip(inputs, file_names[0], strict=True)),
                list(zip(outputs, file_names[1], strict=True)),
            )
        except ExportError:
            raise
        except Exception as error:
            if "input is not dequantized" in str(error):
                raise ExportError(_INPUT_NOT_QUANTIZED.format(io_dtype, "an input")) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()
            raise ExportError(
                "The TFLite converter could not convert the model: "
                + "\n".join(reason[:5])
                + (f"\nIts log ends with:\n{log}" if (log := process.log()) else "")
            ) from error


_INPUT_NOT_QUANTIZED = (
    "io_dtype={!r} is not possible: {} is read as float values, by a layer that was "
    "left in float or because they are indices, such as the words of a text (make that input with "
    "dtype='int32'). Use io_dtype='float32'. No file was written."
)

_LOOPS = (
    "The TFLite converter cannot measure ranges inside of a loop, and {!r} is one. Give recurrent "
    "layers a fixed number of time steps and unroll=True, or use scheme='int8'."
)


def _float_inputs(content: bytes) -> list[str]:
    """Returns the names of the inputs of a file that are float32, or are read as float32.

    Where an operation compares float values of an integer input, the converter leaves the input of
    the operation out, or lets it read a tensor that nothing computes.
    """
    schema = flatbuffer_schema()
    model = schema.Model.GetRootAsModel(content, 0)
    graph = model.Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    computed = {i for i, t in enumerate(tensors) if model.Buffers(t.Buffer()).DataLength()}
    computed |= {graph.Inputs(i) for i in range(graph.InputsLength())}
    computed |= {op.Outputs(i) for op in operators for i in range(op.OutputsLength())}
    has_missing_input = any(op.InputsLength() and op.Inputs(0) not in computed for op in operators)
    inputs = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
    float_types = (schema.TensorType.FLOAT32, schema.TensorType.INT8 if has_missing_input else None)
    names = [t.Name().decode() for t in inputs if t.Type() in float_types]
    return [name.removeprefix("serving_default_").split(":")[0] for name in names]


def _calibrated(
    tf: Any, content: bytes, samples: Mapping[str, np.ndarray], io_dtype: str, size: int
) -> bytes:
    """Quantizes a float file to int16 activations and int8 weights; `size` is its batch size."""
    count = len(next(iter(samples.values())))

    def batches() -> Any:
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            yield {name: array[rows] for name, array in samples.items()}

    io_type = tf.dtypes.as_dtype(io_dtype)
    # Operations without int16 kernels stay in float.
    return (
        calibrator()
        .Calibrator(plain_lookups(content))
        .calibrate_and_quantize(
            batches, io_type, io_type, True, activations_type=tf.int16, bias_type=tf.int64
        )
    )


def _save(
    tf: Any,
    model: keras.Model,
    folder: str,
    names: tuple[list[str], list[str]],
    batch_size: int | None,
) -> list[str]:
    """Writes a SavedModel in which small weights are constants, and large ones variables.

    Each variable adds milliseconds to the checkpoint. Each constant is copied several times.

    Args:
        tf: TensorFlow.
        model: The model.
        folder: The folder to write.
        names: Names of the inputs, and of the outputs.
        batch_size: The batch size of the file, None to leave it open.

    Returns:
        The names of the loops in the model.
    """
    specs = [
        tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype, name=name)
        for t, name in zip(model.inputs, names[0], strict=True)
    ]
    structure = input_struct(model)
    single = len(specs) == 1 and not isinstance(structure, (dict, list, tuple))
    module = tf.Module()
    lower_convolutions(tf, model)
    products = large_products(model)
    module.rows = [by_rows(tf, layer) for layer in products]
    replaced = {id(layer.kernel) for layer in products}
    variables = [v for v in model.variables if id(v) not in replaced]
    values = [v.value if _is_large(v) else v.numpy() for v in variables]
    module.large = [value for value in values if isinstance(value, tf.Variable)]

    @tf.function(autograph=False)
    def serve(*arguments: Any) -> dict[str, Any]:
        # The model is called on tensors: a lookup in a variable would be another operation.
        tensors = map(tf.convert_to_tensor, values)
        scope = keras.StatelessScope(list(zip(variables, tensors, strict=True)))
        with scope, native_fake_quant(), native_extremes():
            packed = arguments[0] if single else tree.pack_sequence_as(structure, list(arguments))
            outputs = tree.flatten(model(packed, training=False))
        return dict(zip(names[1], outputs, strict=True))

    concrete = serve.get_concrete_function(*specs)
    module.others = list(concrete.graph.variables)  # states that Keras does not list as variables
    tf.saved_model.save(
        module,
        folder,
        signatures={"serving_default": concrete},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    graphs = [concrete.graph.as_graph_def(), *concrete.graph.as_graph_def().library.function]
    nodes = [node for graph in graphs for node in getattr(graph, "node_def", None) or graph.node]
    return [node.name for node in nodes if node.op in ("While", "StatelessWhile")]


_LARGE = 1 << 14  # elements
_SCOPE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # TensorFlow's rule for valid names


def _is_large(variable: Any) -> bool:
    name = variable.value.name.split(":")[0]
    return math.prod(variable.shape) > _LARGE and bool(_SCOPE.fullmatch(name))


def _configure(tf: Any, converter: Any, scheme: str, io_dtype: str, sparse: bool) -> None:
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if sparse:
        converter.optimizations = [
            *converter.optimizations,
            tf.lite.Optimize.EXPERIMENTAL_SPARSITY,
        ]
    if io_dtype not in ("float32", "int16"):
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(
            io_dtype
        )
