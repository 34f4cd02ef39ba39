"""export_tflite: converts a Keras model to a file that is checked against it."""

from __future__ import annotations

import dataclasses
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfcompress.data import collect
from tfcompress.devices.for_target import io_dtype_for, report_for, scheme_for
from tfcompress.errors import CompressionWarning, ExportError, QuantizationError
from tfcompress.export.agreement import Check
from tfcompress.export.auto_scheme import advice, smallest_within
from tfcompress.export.io_metadata import labels_by_output, normalization_by_input, settings_of
from tfcompress.export.latency import measured_latency, slower_than_float
from tfcompress.export.preflight import (
    backend_problem,
    batch_of,
    check_arguments,
    check_ranges,
    check_sizes,
    check_trained,
    check_weights,
    choose_scheme,
    with_sizes_of,
)
from tfcompress.export.result import ExportResult
from tfcompress.files import check_path, write_whole
from tfcompress.graph.inline import as_graph
from tfcompress.graph.preprocessing import check_no_tables
from tfcompress.graph.read import input_specs, output_names
from tfcompress.lowering.lower import lower
from tfcompress.lowering.strip import without_transforms
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.kept_in_float import kept_in_float
from tfcompress.quantization.state import (
    preference,
    quantizers,
    rounds_per_channel,
    uses_int16_activations,
)
from tfcompress.samples.data_checks import problems_of
from tfcompress.samples.probes import probes, spare
from tfcompress.scheme import (
    INTEGER_SCHEMES,
    QuantizationScheme,
    as_scheme,
)
from tfcompress.tflite.convert import convert
from tfcompress.tflite.converter_process import converter_process
from tfcompress.tflite.converter_workarounds import HUGE, native_fake_quant
from tfcompress.tflite.inspect import inspect_tflite
from tfcompress.tflite.metadata import write_metadata
from tfcompress.tflite.run import interpreter_module
from tfcompress.tflite.trial import claim, warm_up
from tfcompress.wrap.state import is_wrapped, warn_unfinished

CALIBRATION_SAMPLES = 512
_NOT_PASSED_ON = ("model", "path", "scheme", "max_rmse", "max_drop")  # to the trials of "auto"


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    scheme: str | QuantizationScheme | None = None,
    representative_dataset: Any = None,
    io_dtype: str | None = None,
    target: str | None = None,
    batch_size: int | None = 1,
    input_shape: Any = None,
    max_rmse: float | None = None,
    max_drop: float | None = None,
    sparse: bool = False,
    labels: Any = None,
    normalization: Any = None,
    metadata: bool | Mapping[str, Any] = True,
    verify: bool = True,
    benchmark: bool = False,
    verbose: bool | str = "auto",
) -> ExportResult:
    """Writes a model to a `.tflite` file, and checks the file against the model first.

    The file is run on real samples: the representative dataset, or the training samples that a
    quantization-aware model keeps; where there are none, on noise in the range that the first
    layers expect. A file that does not compute what the model computes is refused and never reaches
    `path`; one that is honest but poor is written with a warning. Each channel of each output is
    measured by its RMSE over its own deviation: float32 files are refused above 0.001, int8 files
    above 0.03 of the integers that their quantized model computes. What quantization costs, against
    the float model, is measured over all channels, and refused above 0.5 (warning above 0.1), or
    where outputs hardly vary that do in the model. docs/exactness.md says why.

    Args:
        model: A built Sequential or Functional model, wrapped or not. It is not changed.
        path: File to write; an existing one is replaced at the end, atomically.
        scheme: "float32"; "float16" (half the bytes, computed in float); "dynamic_int8" (int8
            weights, float activations); "int8" (integers throughout); "int16x8" (int16
            activations, int8 weights: close to float, slower than int8, on the CPU only; what has
            no such kernel stays float); "w4a8" (4-bit weights); or a `QuantizationScheme`, which
            can give 16 bits to some layers. None is what the model was trained for; with a
            representative dataset, int8.
        representative_dataset: Samples like those of training, preprocessed alike: an array, a
            tuple or dict of arrays, a `tf.data.Dataset`, or a function that returns an iterable. Up
            to 512 samples are used. A quantization-aware model needs none. If it has labels that
            are classes, as in (x, y), the accuracy of model and file is measured as well.
        io_dtype: Type of inputs and outputs: "float32"; "int8" or "uint8" for int8 files; "int16"
            for int16x8 files. Integer inputs such as token numbers keep their type. None is
            "float32", or "int8" for a target that has no floats.
        target: What the file will run on, one of `check_target`'s: it decides `prefer` of the
            scheme, and the file is checked for it. None for XNNPACK, without that check.
        batch_size: Batch of the file; None leaves it open. Of a model whose inputs have a fixed
            batch, it is that one.
        input_shape: Shape of one sample, without the batch, for a model that takes any size; a dict
            of these by input name where there are several inputs. None leaves sizes open, where
            every layer works on any.
        max_rmse: For "auto": the largest RMSE between file and float model, over the deviation of
            the outputs.
        max_drop: For "auto": the largest loss of accuracy, 0.01 for a hundredth, on a
            representative dataset with labels that are classes.
        sparse: Store matrices with many zeros in TFLite's sparse format: smaller files, no faster
            on x86. For float32 and float16; the runtime refuses sparse integers.
        labels: What each channel of the output means: a list of strings, or a dict of these by
            output. Written into the file, where tools for phones find it.
        normalization: The (mean, deviation) of `(x - mean) / deviation`, numbers or one for each
            channel, that raw inputs go through before they reach the model; a dict by input where
            there are several. Written into the file, not applied.
        metadata: Whether to write into the file (half a kilobyte) how it was made and how well it
            agrees with its model; see `inspect_tflite`. A dict adds entries of your own.
        verify: False skips the check, for a model that cannot be run here.
        benchmark: Whether to measure the file and the float file of the model on this machine, in
            turns. Without, a file that is slower than in float is warned of by a table of costs.
        verbose: Whether to say what is being done; "auto" does for models that take long.

    Returns:
        What was written and how well it agrees with the model.

    Raises:
        ExportError: If the converter fails, the file is broken, or `target` cannot run it; if no
            scheme stays within the tolerance. Where integers are too coarse, the message names the
            layers to blame and a scheme that works.
        OSError: If `path` cannot be written.
        TypeError: If `model` is no Keras model, or the dataset has no known form.
        ValueError: If the model is unbuilt, its ranges were never trained, an argument is unknown,
            or the dataset is empty, of the wrong shape, or holds NaN.

    Warns:
        CompressionWarning: If the file is a poor copy, a pruning schedule has not ended, or the
            samples make no sense: too few, constant, repeated, single values far from all others, a
            range far from what the first layers expect; if an integer file is slower than the float
            one; if the target leaves operations to others.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> data = np.random.default_rng(0).random((32, 8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = tfc.export_tflite(
        ...         model, folder + "/model.tflite", representative_dataset=data
        ...     )
        >>> result.scheme, result.float_tensors
        ('int8', [])
    """
    given = {k: v for k, v in locals().items() if k not in _NOT_PASSED_ON}
    if scheme == "auto":
        return smallest_within(export_tflite, model, path, max_rmse, max_drop, given)
    if max_rmse is not None or max_drop is not None:
        raise ValueError(f"max_rmse and max_drop are for scheme='auto'. Received: {scheme!r}")
    started = time.perf_counter()
    if problem := backend_problem():
        raise ExportError(problem)
    model = as_graph(model, input_shape=input_shape)
    check_no_tables(model)
    check_sizes(model)
    destination = check_path(path, ".tflite")
    trained = quantizers(model)
    chosen = choose_scheme(scheme, model, representative_dataset is not None, bool(trained))
    if target is not None:
        fitting = scheme_for(scheme or chosen, target)
        scheme = chosen if trained and scheme is None else fitting
    options = scheme if isinstance(scheme, QuantizationScheme) else None
    scheme, io_dtype = chosen, io_dtype_for(io_dtype, chosen, target)
    check_arguments(scheme, io_dtype, batch_size, sparse, verbose)
    batch_size = batch_of(model, batch_size)
    check_weights(model)
    specs = input_specs(model)
    label_lists = labels_by_output(labels, model)
    normalizations = normalization_by_input(normalization, model)
    if not metadata and (label_lists or normalizations):
        raise ValueError("labels and normalization are metadata. Received: metadata=False.")
    samples = classes = None
    if representative_dataset is not None:
        samples, classes = collect(
            representative_dataset,
            specs,
            limit=CALIBRATION_SAMPLES,
            argument="representative_dataset",
        )
        if chosen in INTEGER_SCHEMES and not trained:
            model = with_sizes_of(model, samples)
            specs = input_specs(model)
    # In 16 bits, the converter measures ranges of more operations than it reads ranges of.
    by_converter = scheme == "int16x8" and options is None and not trained
    integer = scheme in INTEGER_SCHEMES
    use_ranges = bool(trained) and integer
    if use_ranges:
        check_trained(model, scheme, options)
    elif integer and samples is None:
        raise ValueError(
            f"scheme={scheme!r} needs the ranges of the activations: pass representative_dataset="
            "(samples like those of training), or train with quantize()."
        )
    if trained and not integer:
        raise ValueError(
            f"scheme={scheme!r} would drop the ranges that this model was trained with. Export it "
            "as int8, or export strip(model)."
        )
    sixteen = uses_int16_activations(model) or (options is not None and options.uses_sixteen_bits)
    if io_dtype != "float32" and sixteen:
        raise ValueError(
            f"io_dtype={io_dtype!r} is not possible where some layers have 16-bit activations. "
            "Use io_dtype='float32'."
        )
    if integer and samples is not None and not use_ranges:
        for suspect in problems_of(model, samples):
            warnings.warn(suspect, CompressionWarning, stacklevel=2)
    apart = 0
    post = integer and not use_ranges and not by_converter
    if post and samples and (options or as_scheme(scheme)).rounding == "adaround":
        apart = spare(samples)  # AdaRound fits the samples that it sees: others judge the file
    checked = None
    if verify or apart:
        checked = probes(model, specs, samples, classes, most=apart or None)
    fitted = checked.others(samples) if apart and checked and samples else samples
    warn_unfinished(model, "export_tflite")

    say = _speaker(verbose, model)
    if verify:
        warm_up(interpreter_module().__name__)
    final, check = model, None
    keep = model.count_params() <= HUGE
    with converter_process(keep=keep) as process:  # it loads while biases are corrected
        if post:
            with native_fake_quant():
                final = post_training(model, options or as_scheme(scheme), fitted or {}, say)
        if integer:
            check_ranges(final, samples)
        if verify and checked:
            copied = final if integer and not by_converter else None
            check = Check(model, checked, scheme, copied)
            if keep:  # of large models both at once would not fit
                process.meanwhile = check.prepare
        say("converting")
        content = convert(
            lambda: lower(final, int16=by_converter),
            process,
            inputs=[spec.name for spec in specs],
            outputs=output_names(model),
            scheme=scheme,
            io_dtype=io_dtype,
            batch_size=batch_size,
            sparse=sparse,
            per_channel=rounds_per_channel(final),
            calibration=samples if by_converter else None,
            prefer=preference(final),
        )
    claim(content)
    verdict = None
    if check is not None:
        say("checking the file against the model")
        try:
            verdict = check.judge(content)
        except QuantizationError as error:
            if scheme != "int8" or options is not None or trained or samples is None:
                raise
            say("looking for the layers to blame")
            raise ExportError(f"{error} {advice(export_tflite, model, samples, given)}") from error
        for problem in verdict.problems[:1]:
            warnings.warn(problem, CompressionWarning, stacklevel=2)
    agreed = verdict.agreement if verdict else None
    if metadata:
        entries = settings_of(model, scheme, use_ranges, agreed)
        entries |= {} if metadata is True else metadata
        content = write_metadata(
            content,
            entries,
            name=model.name,
            labels=label_lists,
            normalization=normalizations,
            tried=verify,
        )
    report = dataclasses.replace(inspect_tflite(content), path=str(destination), content=content)
    latency = None
    if benchmark:
        say("measuring its latency")

        def in_float() -> bytes:
            with converter_process(keep=keep) as process:
                return convert(
                    lambda: lower(without_transforms(model) if is_wrapped(model) else model),
                    process,
                    inputs=[spec.name for spec in specs],
                    outputs=output_names(model),
                    scheme="float32",
                    io_dtype="float32",
                    batch_size=batch_size or 1,
                    sparse=False,
                )

        latency = measured_latency(content, in_float)
    fast = integer and scheme != "int16x8"  # which is known to be slow
    if fast and (slow := slower_than_float(report, latency)):
        warnings.warn(slow, CompressionWarning, stacklevel=2)
    on_target = report_for(content, target, str(destination)) if target is not None else None
    write_whole(destination, content)
    seconds = time.perf_counter() - started
    say(f"wrote {destination} in {seconds:.1f} s")
    steep = kept_in_float(final) if integer and not by_converter else ()
    return ExportResult(
        str(destination),
        scheme,
        use_ranges,
        agreed,
        report,
        seconds,
        steep,
        verdict.float_agreement if verdict else None,
        verdict.accuracy if verdict else None,
        latency,
        on_target,
    )


def _speaker(verbose: bool | str, model: keras.Model) -> Any:
    large = sum(int(np.prod(w.shape)) for w in model.weights) > 2_000_000
    if verbose is True or (verbose == "auto" and large):
        return lambda text: print(f"export_tflite: {text}", flush=True)
    return lambda text: None
