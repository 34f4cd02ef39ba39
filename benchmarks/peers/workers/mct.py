"""Sony's model-compression-toolkit 2.6 on TensorFlow 2.15."""

import pathlib
import tempfile

from benchmarks.peers.workers import common

import model_compression_toolkit as mct  # isort: skip
import tensorflow as tf  # isort: skip

keras = tf.keras


def ptq(task):
    model, _ = mct.ptq.keras_post_training_quantization(
        task.float_model(keras),
        lambda: ([s[None]] for s in task.calibration()),
        target_platform_capabilities=capabilities(),
    )
    return exported(model)


def qat(task):
    model, *_ = mct.qat.keras_quantization_aware_training_init_experimental(
        task.float_model(keras),
        lambda: ([s[None]] for s in task.calibration()),
        target_platform_capabilities=capabilities(),
    )
    task.fit(keras, model, task.job["epochs"])
    return exported(mct.qat.keras_quantization_aware_training_finalize_experimental(model))


def steps(task):
    model, *_ = mct.qat.keras_quantization_aware_training_init_experimental(
        task.float_model(keras),
        lambda: ([s[None]] for s in task.calibration()),
        target_platform_capabilities=capabilities(),
    )
    common.step_times(keras, task, {"float": task.float_model(keras), "QAT": model})


def capabilities():
    """Returns what TFLite can do, as MCT describes it."""
    return mct.get_target_platform_capabilities("1.0", device_type="tflite")


def exported(model):
    """Returns the model as an INT8 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "m.tflite")
        mct.exporter.keras_export_model(
            model,
            str(path),
            serialization_format=mct.exporter.KerasExportSerializationFormat.TFLITE,
            quantization_format=mct.exporter.QuantizationFormat.FAKELY_QUANT,
        )
        return path.read_bytes()


RECIPES = {"PTQ": ptq, "QAT": qat, "steps": steps}

if __name__ == "__main__":
    common.run(keras, RECIPES)
