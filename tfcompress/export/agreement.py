"""Checks that a file computes what its Keras model computes: which samples, which errors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.data import spread
from tfcompress.errors import ExportError
from tfcompress.export.checked_file import CheckedFile, FileOnMicro, runs_on_micro
from tfcompress.export.compare_outputs import (
    Agreement,
    OutputComparison,
    channel_rmse,
)
from tfcompress.export.tolerances import TOLERANCES, judge
from tfcompress.graph.clone import Rewriter
from tfcompress.graph.keras_internals import inbound_nodes, producing_inputs, producing_operation
from tfcompress.graph.layers import is_custom, plain
from tfcompress.graph.read import output_names, walk_layers
from tfcompress.graph.run import fixed_batch, outputs_of
from tfcompress.graph.weights import compressible_weights
from tfcompress.integer.role_queries import quantizes_weights
from tfcompress.integer.roles import JOIN, MOVE, role
from tfcompress.lowering.strip import without_transforms
from tfcompress.post_training.fold_batch_norm import fold_batch_norm
from tfcompress.quantization.kept_in_float import kept_in_float
from tfcompress.quantization.quantize import quantized as as_quantized
from tfcompress.quantization.state import (
    fake_quantizing_in_float,
    follows_reference_kernels,
    quantizers,
    rounds_per_channel,
    uses_int16_activations,
    weight_quantizers,
)
from tfcompress.samples.probes import Probes, Samples, affordable, stressed
from tfcompress.scheme import as_scheme
from tfcompress.tflite.run import TFLiteModel, accuracy
from tfcompress.transforms.fake_quant import FakeQuant
from tfcompress.wrap.state import is_wrapped, without_compression


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """The accuracy of a model and of its file on the same labelled samples.

    Attributes:
        model: That of the Keras model that was exported, 0 to 1.
        file: That of the file.
        samples: Number of samples.
    """

    model: float
    file: float
    samples: int

    def __str__(self) -> str:
        return f"{self.file:.2%}, model {self.model:.2%} ({self.samples} labelled samples)"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of the comparisons of a file.

    Attributes:
        agreement: How well it agrees with the model that was exported.
        float_agreement: How well it agrees with a quantization-aware model whose weights and
            activations are not quantized. None for other models.
        accuracy: That of model and file, if the samples have labels.
        problems: Texts of warnings.
    """

    agreement: Agreement
    float_agreement: Agreement | None
    accuracy: Accuracy | None
    problems: list[str]


_STRESS = 256  # samples


_LITTLE = 0.03  # error by the rounding of weights, in deviations


_MANY = 100  # operations: some value is expected to be rounded to the other side


def _are_classes(labels: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Returns whether labels are classes of outputs of a shape, and not regression targets."""
    if shape[-1] == 1:
        return bool(np.isin(labels, (0, 1)).all())
    if labels.shape == shape:  # one-hot
        return bool(np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all())
    return bool((labels == np.round(labels)).all())


def _accuracy(
    expected: list[np.ndarray], actual: dict[str, np.ndarray], labels: np.ndarray | None
) -> Accuracy | None:
    """Returns the accuracy of model and file, where labels are classes of the only output."""
    if labels is None or len(expected) != 1 or expected[0].ndim < 2:
        return None
    if expected[0].dtype.kind != "f" or labels.dtype.kind not in "biuf":
        return None
    if not _are_classes(labels, expected[0].shape):
        return None
    (file_output,) = actual.values()
    try:
        model, file = accuracy(expected[0], labels), accuracy(file_output, labels)
    except ValueError:  # labels of something else, such as a mask or a box
        return None
    return Accuracy(model, file, len(labels))


def measure(model: keras.Model, content: Any, probes: Samples, source: str = "given") -> Agreement:
    """Measures how well a file agrees with a Keras model.

    Args:
        model: The Keras model.
        content: Path or bytes of the file.
        probes: Samples by input name.
        source: Where the samples come from, for the report.
    """
    # Eagerly: for so few samples, compiling the model for predict() takes ten times as long.
    file = CheckedFile(content, output_names(model))
    return file.compare(outputs_of(model, probes), file.outputs(probes), source).agreement


Expected = tuple[str, Samples, list[np.ndarray]]


class Check:
    """The comparisons that a file must pass: with its model, and with its quantized model.

    Args:
        model: The Keras model that is exported.
        probes: The samples that it is checked on.
        scheme: A name of `SCHEMES`.
        quantized: The model whose quantized values the file must reproduce: `model` itself if it
            is quantization-aware, or the one whose ranges were measured. None for other schemes.
    """

    def __init__(
        self,
        model: keras.Model,
        probes: Probes,
        scheme: str,
        quantized: keras.Model | None,
    ) -> None:
        self._model, self._scheme, self._quantized = model, scheme, quantized
        self._probes, self._source = probes, probes.source
        self._expected: list[Expected] | None = None
        self._names = output_names(model)
        self._in_part = quantized is not None and _followed_in_part(quantized)
        self._reference = quantized is not None and follows_reference_kernels(quantized)

    def prepare(self) -> list[Expected]:
        """Computes the expected outputs, unless that was done; the slow part of a check.

        Returns:
            For each comparison the key of its tolerance, the samples, and the outputs expected.
        """
        if self._expected is None:
            self._expected = [*self._compute()]
        return self._expected

    def _compute(self) -> Iterator[Expected]:
        half = " of half" if computes_in_half(self._model) else ""
        model, probes, quantized = self._model, self._probes.samples, self._quantized
        if quantized is None:
            tolerance = self._scheme + (half if self._scheme == "float32" else "")
            yield tolerance, probes, outputs_of(model, probes)
            copied = model
        else:
            copied = quantized
            int4 = any(rounding.bits < 8 for rounding in weight_quantizers(quantized))
            kind = " of 16 bits" if uses_int16_activations(quantized) else half
            kind = kind or (" of 4 bits" if int4 else "")
            tolerance = f"int8 copy{kind}"
            if quantized is model:
                yield tolerance, probes, outputs_of(model, probes)
                if self._source != "noise":
                    with without_compression(model, (FakeQuant,)):
                        yield "trained", probes, outputs_of(model, probes)
            else:
                yield self._scheme, probes, outputs_of(model, probes)
                if half:  # the quantized model computes in float32
                    return
                count = max(
                    8, affordable(model) // 2
                )  # simulated integers take a few times as long
                probes = {name: spread(array, count) for name, array in probes.items()}
                yield tolerance, probes, outputs_of(quantized, probes)
        if fixed_batch(model) is not None:
            return
        if quantized is None:
            if self._scheme != "float32":
                return  # the rounding depends on the range of the input
            tolerance = "float32 far out"
        stress = stressed(self._probes, min(affordable(model) // 2, _STRESS))
        expected = outputs_of(copied, stress)
        if all(np.isfinite(output).all() for output in expected if output.dtype.kind == "f"):
            yield tolerance, stress, expected

    def judge(self, content: bytes) -> Verdict:
        """Compares a file with the expected outputs.

        Args:
            content: The file.

        Raises:
            ExportError: If the file cannot be run, or does not compute what its model does.
        """
        comparisons: list[OutputComparison] = []
        problems = []
        prepared = self.prepare()
        try:
            file = CheckedFile(content, self._names)
            like = FileOnMicro(content, self._names) if self._on_micro(content) else file
            files = [like if e[0].startswith("int8 copy") else file for e in prepared]
            _, probes, whole = prepared[0]
            prepared = [
                (tolerance, each.few(samples), [each.few(e) for e in expected])
                for each, (tolerance, samples, expected) in zip(files, prepared, strict=True)
            ]
            outputs = [each.outputs(e[1]) for each, e in zip(files, prepared, strict=True)]
            # Of all samples, not of the few that a slow runtime is given.
            first = outputs[0] if files[0] is file else file.outputs(probes)
            accuracy = _accuracy(whole, first, self._probes.labels)
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                f"The runtime here cannot run the file: {' '.join(str(error).split())}. It is not "
                "written. If the message names an operation without a kernel, use another scheme."
            ) from error
        for each, (tolerance, probes, expected), actual in zip(
            files, prepared, outputs, strict=True
        ):
            comparisons.append(each.compare(expected, actual, self._source))
            if tolerance == "int8 copy" and self._in_part:
                tolerance += " in part"
            elif tolerance == "int8 copy" and self._reference and each is file:
                tolerance += " of other kernels"
            elif tolerance == "int8 copy" and file.operations > _MANY:
                tolerance += " of many"
            allowed = functools.partial(self._allowed, tolerance, content, probes, comparisons[-1])
            if problem := judge(comparisons[-1], tolerance, self._scheme, allowed):
                problems.append(problem)
        trained = self._quantized is self._model and self._source != "noise"
        unquantized = comparisons[1].agreement if trained else None
        return Verdict(comparisons[0].agreement, unquantized, accuracy, problems)

    def _on_micro(self, content: bytes) -> bool:
        """Returns whether the model computes like tflite-micro, and that runs the file here."""
        return self._reference and runs_on_micro(content)

    def _allowed(
        self, tolerance: str, content: bytes, probes: Samples, comparison: OutputComparison
    ) -> list[np.ndarray]:
        """Returns an RMSE for each channel that is not an error of the file."""
        if tolerance.startswith("int8 copy") and self._quantized is not None:
            allowed = self._kernel_differences(content, probes)
            # Where the model is not bit-exact, its own rounding in floats differs as much.
            few_lsb = all(o.farthest.max() < 2.5 * o.lsb for o in comparison.outputs)
            if " of " in tolerance or few_lsb:
                with fake_quantizing_in_float(self._quantized):
                    floats = outputs_of(self._quantized, probes)
                for index, (output, other) in enumerate(
                    zip(comparison.outputs, floats, strict=True)
                ):
                    rmse = channel_rmse(output.wanted, other)
                    allowed[index] = np.maximum(allowed[index], rmse)
            return [2 * rmse for rmse in allowed]
        if self._scheme == "float16":
            return [2 * rmse for rmse in self._weight_errors(probes)]
        if self._scheme not in ("dynamic_int8", "int16x8"):
            return [np.zeros(1)] * len(self._names)
        allowed = []
        for output, rmse in zip(comparison.outputs, self._weight_errors(probes), strict=True):
            # Most of the error is the rounding of weights; the rest is that of activations and of
            # lookup tables of functions.
            reference = output.reference(TOLERANCES[tolerance].least)
            share = float((rmse / reference).max())
            most = 0.6 if self._scheme == "dynamic_int8" else 0.25  # which rounds more
            # Where it is small, as in shallow networks, there is no other error.
            times = 6 if share > _LITTLE else 1
            allowed.append(max(2 * share, min(times * share, most)) * reference)
        return allowed

    def _kernel_differences(self, content: bytes, probes: Samples) -> list[np.ndarray]:
        """Returns the RMSE of each channel between two sets of kernels."""
        flat = []
        for delegates in (True, False):
            outputs = TFLiteModel(content, delegates=delegates).predict(probes)
            flat.append(
                [outputs[n] for n in self._names] if isinstance(outputs, dict) else [outputs]
            )
        return [channel_rmse(a, b) for a, b in zip(*flat, strict=True)]

    def _weight_errors(self, probes: Samples) -> list[np.ndarray]:
        """Returns the RMSE of each channel if only the weights of the model are rounded."""
        plain_model = without_transforms(self._model) if is_wrapped(self._model) else self._model
        folded = fold_batch_norm(plain_model)
        if self._scheme == "float16":
            rounded = Rewriter().run(folded)
            for weight in rounded.weights:
                weight.assign(keras.ops.cast(keras.ops.cast(weight, "float16"), weight.dtype))
            outputs = outputs_of(rounded, probes)
        else:
            rounded = as_quantized(folded, as_scheme("int8"))
            with without_compression(rounded, ()):
                outputs = outputs_of(rounded, probes)
        expected = outputs_of(plain_model, probes)
        return [channel_rmse(a, b) for a, b in zip(outputs, expected, strict=True)]


def _followed_in_part(quantized: keras.Model) -> bool:
    """Returns whether the model is bit-exact with its file in part only.

    Custom layers and layers that are kept in float compute in floats, and scales of whole tensors
    change where a BatchNormalization scales channels. Where the larger of two values was selected,
    its producer is unknown, and each producer rounds in its own way.
    """
    if any(q.producer is None and _is_selected(inbound_nodes(q)) for q in quantizers(quantized)):
        return True
    for _, layer in walk_layers(quantized):
        inner = plain(layer)
        if is_custom(inner):
            return True
        if compressible_weights(inner) and not quantizes_weights(layer):
            return True
    return bool(kept_in_float(quantized)) or not rounds_per_channel(quantized)


def _is_selected(nodes: Sequence[Any]) -> bool:
    """Returns whether the input of a quantizer was selected from several tensors."""
    if not nodes:  # inside of a layer
        return False
    tensor = nodes[0].input_tensors[0]
    while role(producing_operation(tensor)) == MOVE and producing_inputs(tensor):
        tensor = producing_inputs(tensor)[0]
    return role(producing_operation(tensor)) == JOIN and len(producing_inputs(tensor)) > 1


def computes_in_half(model: keras.Model) -> bool:
    """Returns whether the model itself is less precise than its float32 file."""
    dtypes = {plain(layer).compute_dtype for _, layer in walk_layers(model)}
    return bool(dtypes & {"float16", "bfloat16"})
