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
    native_extremes,
    native_rounding,
    write_convolutions,
)
from tfcompress.tflite.flatbuffer_edits import (
    plain_lookups,
    share_scales,
    store_four_bits,
    use_integer_kernels,
    without_copies,
)
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
) -> bytes:
    """Converts a model whose weights are final.

    Args:
        make: Returns a float32 model; for a quantization-aware one, with constant
            fake-quantization in it. It is let go before it is converted, so that large models are
            not in memory once more.
        process: Where the converter runs.
        inputs: Name of each input of the file, in order.
        outputs: Likewise of each output.
        scheme: What is written, a name of `SCHEMES`.
        io_dtype: "float32", "int8", "uint8" or "int16".
        batch_size: Fixed batch, or None to leave it open.
        sparse: Whether to store weights with many zeros in the runtime's sparse format.
        per_channel: Whether kernels have a scale for each output channel, or one in all.
        calibration: For "int16x8" without ranges in the model, samples by input name.

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
        warnings.filterwarnings("ignore", ".*Interpreter is deprecated")  # the calibrator's own
        try:
            if not gc.get_freeze_count():  # by nobody else
                gc.freeze()  # what is there already: looking through it takes half a second
                frozen.callback(gc.unfreeze)
            model = make()
            large = model.count_params() > HUGE
            ends = safe_names(inputs, "input"), safe_names(outputs, "output")
            loops = _save(tf, model, folder, ends, batch_size)
            del model
            if calibration is not None and loops:  # it ends the process
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
                # All that its last step does for these schemes, but for looking for copies slowly.
                skip_optimization(converter, without_copies)
            graph = tf.compat.v1.GraphDef()
            if ranges:
                graph.node.add(name="ranges", op="FakeQuantWithMinMaxArgs")
            content = converted(converter, graph)
            if io_dtype in ("int8", "uint8") and (found := _float_inputs(content)):
                raise ExportError(_NOT_ROUNDED.format(io_dtype, f"the input {found[0]!r}"))
            if calibration is not None:
                content = _calibrated(tf, content, calibration, io_dtype, batch_size or 1)
            if ranges:
                content = use_integer_kernels(content)
            if scheme == "w4a8":
                content = store_four_bits(content)
            if not per_channel:
                content = share_scales(content)
            content = merge_requantizations(content) if ranges else content
            return as_in_model(
                content,
                list(zip(inputs, ends[0], strict=True)),
                list(zip(outputs, ends[1], strict=True)),
            )
        except ExportError:
            raise
        except Exception as error:
            if "input is not dequantized" in str(error):
                raise ExportError(_NOT_ROUNDED.format(io_dtype, "an input")) from error
            reason = (str(error).strip() or type(error).__name__).splitlines()
            raise ExportError(
                "The TFLite converter could not convert the model: "
                + "\n".join(reason[:5])
                + (f"\nIts log ends with:\n{log}" if (log := process.log()) else "")
            ) from error


_NOT_ROUNDED = (
    "io_dtype={!r} is not possible: {} is read as the floats that it holds, by a layer that was "
    "left in float or because they are indices, such as the words of a text (make that input with "
    "dtype='int32'). Use io_dtype='float32'. No file was written."
)

_LOOPS = (
    "The TFLite converter cannot measure ranges inside of a loop, and {!r} is one. Give recurrent "
    "layers a fixed number of steps and unroll=True, or use scheme='int8'."
)


def _float_inputs(content: bytes) -> list[str]:
    """Returns the names of the inputs of a file that are float32, or are read as if they were.

    Where an operation compares the floats, the converter makes it read nothing at all.
    """
    schema = flatbuffer_schema()
    graph = schema.Model.GetRootAsModel(content, 0).Subgraphs(0)
    operators = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    unread = any(op.InputsLength() and op.Inputs(0) < 0 for op in operators)
    inputs = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
    floats = (schema.TensorType.FLOAT32, schema.TensorType.INT8 if unread else None)
    names = [t.Name().decode() for t in inputs if t.Type() in floats]
    return [name.removeprefix("serving_default_").split(":")[0] for name in names]


def _calibrated(
    tf: Any, content: bytes, samples: Mapping[str, np.ndarray], io_dtype: str, size: int
) -> bytes:
    """Returns a float file with activations of 16 and weights of 8 bits; `size` is its batch."""
    count = len(next(iter(samples.values())))

    def batches() -> Any:
        for start in range(0, count, size):
            rows = np.arange(start, start + size) % count
            yield {name: array[rows] for name, array in samples.items()}

    ends = tf.dtypes.as_dtype(io_dtype)
    # Operations without kernels for 16 bits stay in float.
    return (
        calibrator()
        .Calibrator(plain_lookups(content))
        .calibrate_and_quantize(
            batches, ends, ends, True, activations_type=tf.int16, bias_type=tf.int64
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

    Each variable costs the checkpoint milliseconds, each constant several copies of its bytes.

    Args:
        tf: TensorFlow.
        model: The model.
        folder: Where to write.
        names: Of the inputs, and of the outputs.
        batch_size: Of the file.

    Returns:
        The names of the loops in it.
    """
    specs = [
        tf.TensorSpec((batch_size, *t.shape[1:]), t.dtype, name=name)
        for t, name in zip(model.inputs, names[0], strict=True)
    ]
    structure = input_struct(model)
    single = len(specs) == 1 and not isinstance(structure, (dict, list, tuple))
    module = tf.Module()
    write_convolutions(tf, model)
    products = large_products(model)
    module.rows = [by_rows(tf, layer) for layer in products]
    replaced = {id(layer.kernel) for layer in products}
    variables = [v for v in model.variables if id(v) not in replaced]
    values = [v.value if _is_large(v) else v.numpy() for v in variables]
    module.large = [value for value in values if isinstance(value, tf.Variable)]

    @tf.function(autograph=False)
    def serve(*given: Any) -> dict[str, Any]:
        # The model is never called on variables: looking rows up in one is another operation.
        tensors = map(tf.convert_to_tensor, values)
        scope = keras.StatelessScope(list(zip(variables, tensors, strict=True)))
        with scope, native_rounding(), native_extremes():
            packed = given[0] if single else tree.pack_sequence_as(structure, list(given))
            outputs = tree.flatten(model(packed, training=False))
        return dict(zip(names[1], outputs, strict=True))

    concrete = serve.get_concrete_function(*specs)
    module.others = list(concrete.graph.variables)  # states that Keras does not count as variables
    tf.saved_model.save(
        module,
        folder,
        signatures={"serving_default": concrete},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    graphs = [concrete.graph.as_graph_def(), *concrete.graph.as_graph_def().library.function]
    nodes = [node for graph in graphs for node in getattr(graph, "node_def", None) or graph.node]
    return [node.name for node in nodes if node.op in ("While", "StatelessWhile")]


_LARGE = 1 << 14  # numbers
_SCOPE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")  # what TensorFlow calls a valid name


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
