"""TFLiteModel: a .tflite file that predicts like a Keras model. Needs no TensorFlow."""

from __future__ import annotations

import io
import os
import pathlib
import threading
import zipfile
from typing import Any

import numpy as np

from tfcompress.data import InputSpec, collect
from tfcompress.stderr import captured_stderr
from tfcompress.tensorflow_internals import operation_details, signatures
from tfcompress.tflite.benchmark import BenchmarkResult, benchmark
from tfcompress.tflite.io_tensors import CollectedOutput, TensorInfo, info_of
from tfcompress.tflite.trial import try_file

SETTINGS = "tfcompress.json"  # the JSON file in the appended zip that says how the file was made

DECODE = "TFLM_DECODE"  # tflite-micro's operation that decompresses weights
_BATCH = 64  # batch size where the file leaves the batch open


def interpreter_module() -> Any:
    """Returns the module of the first runtime that is installed.

    Raises:
        ImportError: If there is none.
    """
    try:
        from ai_edge_litert import interpreter

        return interpreter
    except ImportError:
        pass
    try:
        from tflite_runtime import interpreter

        return interpreter
    except ImportError:
        pass
    try:
        from tensorflow import lite

        return lite
    except ImportError:
        raise ImportError(
            "No TFLite runtime is installed: pip install ai-edge-litert (or tflite-runtime)."
        ) from None


class TFLiteModel:
    """Runs a `.tflite` file on the installed runtime: ai-edge-litert, tflite-runtime or TensorFlow.

    Integer inputs are quantized and integer outputs dequantized for you: pass and receive real
    values, as with the Keras model. Several threads may call `predict`: they share one interpreter,
    which runs one call at a time.

    Args:
        path_or_bytes: Path of the file, or its content.
        num_threads: Number of threads of the interpreter.
        delegates: False turns off the default delegate (XNNPACK), leaving the runtime's built-in
            kernels.
        keep_tensors: Whether intermediate tensors stay readable; costs memory.

    Attributes:
        content: The bytes of the file.
        inputs: `TensorInfo` of each input, in the order of the file's signature.
        outputs: `TensorInfo` of each output, likewise.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `path_or_bytes` is neither a path nor bytes.
        ValueError: If it is not a TFLite model, or a damaged one.

    Example:
        >>> import tfcompress as tfc
        >>> model = tfc.TFLiteModel("tflite_models/fashion_mnist_student_int8.tflite")
        >>> import numpy as np
        >>> model.predict(np.zeros((3, 28, 28, 1))).shape
        (3, 10)
    """

    def __init__(
        self,
        path_or_bytes: str | os.PathLike[str] | bytes,
        num_threads: int = 1,
        *,
        delegates: bool = True,
        keep_tensors: bool = False,
    ) -> None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:
            raise ValueError(f"num_threads must be an integer >= 1. Received: {num_threads!r}")
        self.name, self.content = read_content(path_or_bytes)
        self.num_threads = num_threads
        self.delegates = delegates
        self._module = interpreter_module()
        try:
            try_file(self.content, self._module.__name__)
        except ValueError as error:
            if DECODE.encode() in self.content:
                raise ValueError(
                    f"{self.name} is compressed for tflite-micro (compress_lut), which alone can "
                    "run it: use run_micro."
                ) from None
            raise ValueError(f"{self.name} is not a usable TFLite model: {error}.") from None
        self._interpreter = self.interpreter_of(
            self.content, delegates=delegates, keep_tensors=keep_tensors
        )
        self.inputs, self.outputs = self._signature()
        self._varies = any(None in info.shape for info in self.inputs)
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._one_at_a_time = threading.Lock()

    @property
    def runtime(self) -> str:
        """Name of the runtime and of its kernels."""
        package = self._module.__name__.split(".")[0]
        return package + ("" if self.delegates else " (built-in kernels)")

    @property
    def interpreter(self) -> Any:
        """The runtime's interpreter, with its tensors allocated."""
        return self._interpreter

    def interpreter_of(
        self, content: bytes, *, delegates: bool = True, keep_tensors: bool = False
    ) -> Any:
        """Returns a new interpreter of this runtime, with its tensors allocated.

        Args:
            content: A `.tflite` file, which must be a usable one.
            delegates: Whether to use the default delegate.
            keep_tensors: Whether intermediate tensors stay readable.

        Raises:
            ValueError: If the runtime rejects the file.
        """
        options: dict[str, Any] = {}
        if not delegates:
            # TensorFlow and the runtimes define it in different modules.
            home = self._module if hasattr(self._module, "OpResolverType") else None
            kinds = (home or self._module.experimental).OpResolverType
            options["experimental_op_resolver_type"] = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        if keep_tensors:
            options["experimental_preserve_all_tensors"] = True
        try:
            with captured_stderr():  # the runtime logs its delegate
                interpreter = self._module.Interpreter(
                    model_content=content, num_threads=self.num_threads, **options
                )
                interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"{self.name} is not a usable TFLite model: {_reason(error)}"
            ) from error
        return interpreter

    def _signature(self) -> tuple[list[TensorInfo], list[TensorInfo]]:
        by_key = signatures(self._interpreter)
        signature = next(iter(by_key.values())) if by_key else {}
        sides: list[list[TensorInfo]] = []
        for details, key in (
            (self._interpreter.get_input_details(), "inputs"),
            (self._interpreter.get_output_details(), "outputs"),
        ):
            names: dict[int, list[str]] = {}  # two outputs may be one tensor
            for name, index in signature.get(key, {}).items():
                names.setdefault(index, []).append(name)
            sides.append([])
            for tensor in details:
                unused = names.get(tensor["index"])
                sides[-1].append(info_of(tensor, unused.pop(0) if unused else tensor["name"]))
        return sides[0], sides[1]

    def predict(self, x: Any) -> Any:
        """Returns the outputs for all samples.

        Args:
            x: An array of samples; for several inputs a dict by input name or a tuple of arrays in
                the order of `inputs`; or a `tf.data.Dataset` or other iterable of such (labels are
                ignored). Values are real values, also for integer inputs with a scale.

        Returns:
            An array of shape (samples, ...), real-valued; a dict by output name if there are
            several.

        Raises:
            ValueError: If `x` is empty or of the wrong shape, or the runtime cannot run it.
        """
        return self._predict(collect(x, self.specs(), argument="x")[0])

    def evaluate(self, x: Any, y: Any = None) -> float:
        """Returns the accuracy: the share of samples whose largest output is at the label.

        A single output counts as 1 above 0.5, or above 0 if any lies outside [0, 1] (logits).

        Args:
            x: Samples as for `predict`, or labelled data.
            y: Integer labels, or one-hot rows; None if `x` holds them.

        Raises:
            ValueError: If labels are missing, or the file has several outputs.
        """
        features, labels = collect(x, self.specs(), argument="x")
        if y is not None:
            labels = np.asarray(y)
        if labels is None:
            raise ValueError("y is missing: pass labels, or data that holds them.")
        outputs = self._predict(features)
        if isinstance(outputs, dict):
            raise ValueError(f"evaluate() needs a single output; {self.name} has {len(outputs)}.")
        return accuracy(outputs, labels)

    def benchmark(self, runs: int = 200, warmup: int = 20) -> BenchmarkResult:
        """Measures the latency of one inference.

        Args:
            runs: Number of inferences to measure.
            warmup: Number of inferences before the measurement.
        """
        return benchmark({self.name: self}, runs=runs, warmup=warmup)[self.name]

    def arena_bytes(self) -> int:
        """Returns the working memory of one inference in bytes, with built-in kernels.

        This is the span of all tensors that are not constants, as the runtime allocated them.
        """
        model = TFLiteModel(self.content, self.num_threads, delegates=False)
        spans = []
        for details in model.interpreter.get_tensor_details():
            try:
                array = model.interpreter.tensor(details["index"])()
            except (ValueError, RuntimeError):  # an empty constant, or a fused tensor
                continue
            if not isinstance(array, np.ndarray):  # a scalar is returned as a copy
                continue
            if array.nbytes and not model.is_stored(array):
                spans.append((array.ctypes.data, array.ctypes.data + array.nbytes))
        return max(stop for _, stop in spans) - min(start for start, _ in spans) if spans else 0

    def is_stored(self, array: np.ndarray) -> bool:
        """Returns whether a view from the interpreter is a constant stored in the file."""
        offset = array.ctypes.data - np.frombuffer(self.content, np.uint8).ctypes.data
        return 0 <= offset < len(self.content)

    def computed_outputs(self) -> dict[str, int]:
        """Returns the tensor index of each output by name, before a final DEQUANTIZE if any."""
        quantized = {
            int(op["outputs"][0]): int(op["inputs"][0])
            for op in operation_details(self._interpreter)
            if op["op_name"] == "DEQUANTIZE"
        }
        return {info.name: quantized.get(info.index, info.index) for info in self.outputs}

    def invoke_once(self) -> None:
        """Runs one inference on the current inputs.

        Raises:
            ValueError: If the runtime cannot run it.
        """
        try:
            self._interpreter.invoke()
        except RuntimeError as error:
            raise ValueError(f"{self.name} cannot be run: {_reason(error)}") from error

    def specs(self) -> list[InputSpec]:
        """Returns the specification of each input of `predict`."""
        return [info.spec() for info in self.inputs]

    def _predict(self, features: dict[str, np.ndarray]) -> Any:
        samples = len(features[self.inputs[0].name])
        fixed = self.inputs[0].shape[0]
        size = fixed or min(samples, _BATCH)
        chunk = size * max(1, _BATCH // size)  # quantized at once: numpy is slow on single samples
        outputs = [CollectedOutput(samples) for _ in self.outputs]
        pairs = [(o, info.index) for o, info in zip(outputs, self.outputs, strict=True)]
        for start in range(0, samples, chunk):
            values = [
                info.quantized(features[info.name][start : start + chunk]) for info in self.inputs
            ]
            missing = -len(values[0]) % size if fixed else 0
            if missing:
                values = [np.concatenate([v, np.repeat(v[-1:], missing, 0)]) for v in values]
            with self._one_at_a_time:
                for first in range(0, len(values[0]), size):
                    batch = [value[first : first + size] for value in values]
                    self.set_inputs(batch)
                    self.invoke_once()
                    for output, index in pairs:
                        output.add(self._interpreter.get_tensor(index), len(batch[0]))
        arrays = [
            info.dequantized(output.array())
            for output, info in zip(outputs, self.outputs, strict=True)
        ]
        if len(arrays) == 1:
            return arrays[0]
        return {info.name: array for info, array in zip(self.outputs, arrays, strict=True)}

    def set_inputs(self, values: list[np.ndarray]) -> None:
        """Sets the input tensors, in the types of the file; resizes inputs of variable shape."""
        resized = False
        for info, value in zip(self.inputs, values, strict=True) if self._varies else ():
            if self._shapes.get(info.index, info.shape) != value.shape and None in info.shape:
                self._interpreter.resize_tensor_input(info.index, value.shape)
                self._shapes[info.index] = value.shape
                resized = True
        if resized:
            try:
                self._interpreter.allocate_tensors()
            except RuntimeError as error:
                raise ValueError(f"{self.name} takes no such sizes: {_reason(error)}") from error
        for info, value in zip(self.inputs, values, strict=True):
            self._interpreter.set_tensor(info.index, value)


def accuracy(outputs: np.ndarray, labels: Any) -> float:
    """Returns the share of samples whose prediction is the label (see `TFLiteModel.evaluate`)."""
    labels = np.asarray(labels)
    if len(labels) != len(outputs):
        raise ValueError(f"y has {len(labels)} labels for {len(outputs)} samples.")
    if labels.dtype.kind not in "biuf":
        raise ValueError(f"y must hold numbers of classes. Received labels of type {labels.dtype}.")
    if outputs.shape[-1] == 1:
        threshold = 0.5 if outputs.min() >= 0 and outputs.max() <= 1 else 0.0
        return float(np.mean((outputs.ravel() > threshold) == (labels.ravel() > 0.5)))
    if labels.ndim == outputs.ndim and labels.shape[-1] == outputs.shape[-1]:
        labels = labels.argmax(-1)
    if labels.size and not 0 <= labels.min() <= labels.max() < outputs.shape[-1]:
        raise ValueError(
            f"y must hold classes 0 to {outputs.shape[-1] - 1}. Received: {labels.min()} to "
            f"{labels.max()}."
        )
    predicted = outputs.argmax(-1)
    return float(np.mean(predicted == labels.reshape(predicted.shape)))


def _reason(error: Exception) -> str:
    return (str(error).strip() or "no reason given").splitlines()[0]


def read_content(path_or_bytes: Any) -> tuple[str, bytes]:
    """Returns the name of a file, and its content; raises an error if it is no TFLite model."""
    if isinstance(path_or_bytes, (bytes, bytearray)):
        name, content = "the content given", bytes(path_or_bytes)
    elif isinstance(path_or_bytes, (str, os.PathLike)):
        path = pathlib.Path(path_or_bytes)
        if not path.is_file():
            raise FileNotFoundError(f"No such file: {str(path)!r}")
        name, content = str(path), path.read_bytes()
    else:
        raise TypeError(
            "path_or_bytes must be the path or the bytes of a .tflite file. Received: "
            f"{type(path_or_bytes).__name__}"
        )
    if SETTINGS.encode() in content and not zipfile.is_zipfile(io.BytesIO(content)):
        raise ValueError(f"{name} is not a usable TFLite model: its end is missing.")
    if content[4:8] != b"TFL3":
        raise ValueError(f"{name} is not a TFLite model: it lacks the mark 'TFL3'.")
    return name, content
