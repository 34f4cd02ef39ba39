"""tfcompress demo: a distilled, pruned, quantization-aware student in one fit, and its file."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import Progress

from tfcompress.demo.data import Data, load
from tfcompress.demo.models import resnet
from tfcompress.demo.plot import draw
from tfcompress.distill.distiller import Distiller
from tfcompress.export.export_tflite import export_tflite
from tfcompress.export.result import ExportResult
from tfcompress.files import temporary_folder, write_whole
from tfcompress.graph.cost import macs, parameters
from tfcompress.progress import FitProgress, progress_bars
from tfcompress.qat import quantize
from tfcompress.tables import table
from tfcompress.tflite.benchmark import benchmark
from tfcompress.tflite.run import TFLiteModel
from tfcompress.transforms.schedules import PolynomialDecay
from tfcompress.wrap.prune import prune

BATCH = 64
TEACHER_EPOCHS = 5
STUDENT_EPOCHS = 7
FULL_DIVISOR = 4  # all of Fashion-MNIST has six times the training steps per epoch
STUDENT: dict[str, Any] = {"widths": (12, 24, 40), "stem_strides": 2, "name": "student"}
SPARSITY = 0.72
ALPHA = 0.8
TEMPERATURE = 3.0
SEED = 7
ROWS = {
    "teacher": "teacher, float32",
    "student_float": "student trained alone, float32",
    "student_int8": "student distilled + pruned + QAT, int8",
}


@dataclasses.dataclass(frozen=True)
class Measured:
    """One row of the demo's table.

    Attributes:
        accuracy: Fraction of the test images that the file classifies correctly.
        bytes: Size of the file.
        gzip_bytes: Size of the file after gzip.
        parameters: Scalars in the weights.
        macs: Multiply-accumulates of one image.
        latency_ms: Median of one inference, one thread.
    """

    accuracy: float
    bytes: int
    gzip_bytes: int
    parameters: int
    macs: int
    latency_ms: float


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        data: Description of the images.
        rows: `Measured` by the keys of `ROWS`.
        sparsity: Fraction of zeros in the kernels of the INT8 file.
        keras_accuracy: Accuracy of the Keras model that was exported to the INT8 file.
        agreement: The file's agreement with it, in words.
        runtime: Runtime that the latencies were measured with.
        seconds: Time the demo took.
        output: Folder of the results.
    """

    data: str
    rows: dict[str, Measured]
    sparsity: float
    keras_accuracy: float
    agreement: str
    runtime: str
    seconds: float
    output: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the content of demo.json."""
        content: dict[str, Any] = {k: dataclasses.asdict(row) for k, row in self.rows.items()}
        teacher = self.rows["teacher"]
        content["ratios_to_teacher"] = {
            key: _ratios(row, teacher) for key, row in self.rows.items()
        }
        for field in ("data", "sparsity", "keras_accuracy", "agreement", "runtime", "seconds"):
            content[field] = getattr(self, field)
        return content

    def __rich__(self) -> Any:
        columns = (
            "",
            "accuracy",
            "bytes",
            "gzip bytes",
            "smaller",
            "parameters",
            "MACs",
            "fewer",
            "latency ms",
            "faster",
        )
        rows = []
        for key, row in self.rows.items():
            ratios = _ratios(row, self.rows["teacher"])
            rows.append(
                (
                    ROWS[key],
                    f"{row.accuracy:.2%}",
                    row.bytes,
                    row.gzip_bytes,
                    f"{ratios['gzip_bytes']:.1f}x",
                    row.parameters,
                    row.macs,
                    f"{ratios['macs']:.1f}x",
                    f"{row.latency_ms:.3f}",
                    f"{ratios['latency_ms']:.1f}x",
                )
            )
        result = table("Fashion-MNIST, measured on the .tflite files", columns, rows)
        result.caption = (
            f"{self.data}; the INT8 student starts from the float one; {self.sparsity:.0%} of its "
            "kernels are zero; accuracy of the Keras "
            f"model behind the INT8 file {self.keras_accuracy:.2%}; one thread, {self.runtime}; "
            f"{self.seconds:.0f} s. Results: {self.output}/"
        )
        return result


def run_demo(output: pathlib.Path, *, full: bool = False, quiet: bool = False) -> DemoResult:
    """Runs the main job and writes student.tflite, demo.json and demo.png.

    Args:
        output: Folder to write to; created if it does not exist.
        full: Whether to use all of Fashion-MNIST.
        quiet: Whether to show no progress.

    Raises:
        OSError: If the folder cannot be written, or `full` finds no data.
    """
    started = time.perf_counter()
    output.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=quiet)
    data = load(full)
    console.print(f"Data: {data.source}")
    divisor = FULL_DIVISOR if full else 1
    keras.utils.set_random_seed(SEED)

    teacher = resnet(name="teacher")
    student_float = resnet(**STUDENT)
    epochs = math.ceil(STUDENT_EPOCHS / divisor)
    steps = epochs * math.ceil(len(data.x_train) / BATCH)
    with progress_bars(console) as progress:
        _fit(teacher, data, math.ceil(TEACHER_EPOCHS / divisor), progress, ROWS["teacher"])
        _fit(student_float, data, epochs, progress, ROWS["student_float"])
        schedule = PolynomialDecay(
            0.0, SPARSITY, begin_step=0, end_step=int(0.5 * steps), frequency=10
        )
        student = quantize(prune(student_float, schedule))
        distiller = Distiller(teacher, student, alpha=ALPHA, temperature=TEMPERATURE)
        _fit(distiller, data, epochs, progress, "student distilled + pruned + QAT")

    console.print("Exporting, checking and measuring ...")
    result = export_tflite(
        distiller.student, output / "student.tflite", io_dtype="int8", verbose=False
    )
    rows = _measure(
        {"teacher": teacher, "student_float": student_float, "student_int8": student}, result, data
    )
    predicted = student.predict(data.x_test, batch_size=256, verbose=0).argmax(-1)
    outcome = DemoResult(
        data.source,
        rows,
        result.report.sparsity,
        float(np.mean(predicted == data.y_test)),
        str(result.agreement),
        TFLiteModel(result.path).runtime,
        time.perf_counter() - started,
        str(output),
    )
    content = json.dumps(outcome.as_dict(), indent=2) + "\n"
    write_whole(output / "demo.json", content.encode())
    draw(outcome.rows, ROWS, output / "demo.png")
    return outcome


def _fit(model: keras.Model, data: Data, epochs: int, progress: Progress, name: str) -> None:
    steps = math.ceil(len(data.x_train) / BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=8,
        # On two cores XLA halves the training step of the small student, but slows the teacher.
        jit_compile=model.name == STUDENT["name"],
    )
    model.fit(
        data.x_train,
        data.y_train,
        batch_size=BATCH,
        epochs=epochs,
        verbose=0,
        callbacks=[FitProgress(progress, name, epochs, steps)],
    )


def _measure(
    models: dict[str, keras.Model], result: ExportResult, data: Data
) -> dict[str, Measured]:
    """Measures the files; those of the float models are temporary."""
    with temporary_folder() as folder:
        reports, files = {}, {}
        for key in models:
            exported = result
            if key != "student_int8":
                exported = export_tflite(models[key], pathlib.Path(folder) / key, verbose=False)
            reports[key], files[key] = exported.report, TFLiteModel(exported.path)
        latencies = benchmark(files, runs=500)
    return {
        key: Measured(
            files[key].evaluate(data.x_test, data.y_test),
            reports[key].bytes,
            reports[key].gzip_bytes,
            parameters(model),
            macs(model),
            latencies[key].median_ms,
        )
        for key, model in models.items()
    }


def _ratios(row: Measured, teacher: Measured) -> dict[str, float]:
    names = ("bytes", "gzip_bytes", "parameters", "macs", "latency_ms")
    ratios = {name: getattr(teacher, name) / getattr(row, name) for name in names}
    return {"accuracy": row.accuracy / teacher.accuracy, **ratios}
