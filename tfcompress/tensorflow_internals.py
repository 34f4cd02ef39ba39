"""Private names of TensorFlow and LiteRT, which they may change; no other module uses them.

Imports are inside the functions, because a device has no TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from typing import Any


def has_computed() -> bool:
    """Returns whether TensorFlow has started its threads in this process."""
    context: Any = sys.modules.get("tensorflow.python.eager.context")
    return getattr(getattr(context, "_context", None), "_initialized", False)


def as_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that runs as a graph where TensorFlow would run a loop eagerly."""
    import keras

    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False) if tf.executing_eagerly() else function


def operation_details(interpreter: Any) -> list[dict[str, Any]]:
    """Returns an interpreter's details of each operation: its name, its inputs and outputs."""
    return interpreter._get_ops_details()


def signatures(interpreter: Any) -> dict[str, Any]:
    """Returns the signatures of the file that an interpreter runs, by key."""
    return interpreter._get_full_signature_list()


def flatbuffer_schema() -> Any:
    """Returns the module of the flatbuffer classes that read and write TFLite files.

    Raises:
        ImportError: If no installed package has it.
    """
    with contextlib.suppress(ImportError):
        return importlib.import_module("ai_edge_litert.schema_py_generated")
    return importlib.import_module("tensorflow.lite.python.schema_py_generated")


def without_copies_of_buffers(content: bytes) -> bytes:
    """Returns a file in which equal constants are stored once."""
    from tensorflow.lite.python import convert

    return bytes(convert.deduplicate_readonly_buffers(content))


def saved_model_converter(folder: str) -> Any:
    """Returns the converter of a SavedModel, without loading it.

    `TFLiteConverter.from_saved_model` would load it into this process three times, to find out
    whether it contains fake-quantization.
    """
    from tensorflow.lite.python import lite

    return lite.TFLiteSavedModelConverterV2(folder, {"serve"}, ["serving_default"])


def skip_optimization(converter: Any, replacement: Any) -> None:
    """Replaces the converter's last pass by one that only sets the types of inputs and outputs.

    Args:
        converter: The result of `saved_model_converter`.
        replacement: A function of the file's content; its result gets the types.
    """
    from tensorflow.lite.python import lite

    types = converter.inference_input_type, converter.inference_output_type
    converter._optimize_tflite_model = lambda content, *_, **__: replacement(
        lite._modify_model_io_type(content, *types)
    )


def converted(converter: Any, graph: Any) -> bytes:
    """Returns the converted file; the graph shows whether the model has fake-quantization."""
    return converter._convert_from_saved_model(graph)


def calibrator() -> Any:
    """Returns the module with the runtime's calibrator."""
    from tensorflow.lite.python.optimize import calibrator as module

    return module


def native_functions() -> list[tuple[Any, str]]:
    """Returns each module that calls the native converter, and the name of the function there."""
    from tensorflow.lite.python import convert
    from tensorflow.lite.python.metrics.wrapper import metrics_wrapper

    functions = [(module, "wrap_converter") for module in (convert, metrics_wrapper)]
    return [*functions, (calibrator(), "_calibration_wrapper")]


def make_operations_deterministic() -> None:
    """Makes operations give the same numbers in each run, until the process ends."""
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()
