"""Keras 3 and TFLiteConverter, with keras.distillation, Keras' quantize and litert-quantizer."""

import pathlib
import tempfile

from benchmarks.peers import nets
from benchmarks.peers.workers import common

import keras  # isort: skip
import numpy as np  # isort: skip
import tensorflow as tf  # isort: skip


def train_float(task):
    """Trains the float network and keeps its weights, for all."""
    model = nets.NETS[task.job["net"]](keras)
    task.fit(keras, model, task.job["epochs"])
    probe = task.x[:16]
    arrays = {"probe": probe, "logits": np.asarray(model(probe, training=False))}
    for layer in model.layers:
        arrays |= {f"{layer.name}/{i}": w for i, w in enumerate(layer.get_weights())}
    np.savez(task.job["weights"], **arrays)


def float_file(task):
    return tf.lite.TFLiteConverter.from_keras_model(task.float_model(keras)).convert()


def ptq(task):
    return common.int8_file(tf, task.float_model(keras), task)


def dynamic(task):
    return common.int8_file(tf, task.float_model(keras))


def ptq_litert(task):
    from litert_quantizer import quantizer, recipe

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "float.tflite")
        task.float_model(keras).export(path, format="litert", verbose=False)
        worker = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        interpreter = tf.lite.Interpreter(str(path))
        (key,) = interpreter.get_signature_list()
        (name,) = interpreter.get_signature_list()[key]["inputs"]
        samples = [{name: sample[None]} for sample in task.calibration()]
        return bytes(worker.quantize(worker.calibrate({key: samples})).quantized_model)


def keras_quantize(mode):
    """Returns the recipe of Keras' own quantize in one mode."""

    def recipe(task):
        model = task.float_model(keras)
        if mode == "gptq":
            config = keras.quantizers.GPTQConfig(dataset=task.calibration(), tokenizer=None)
            model.quantize(mode, config=config)
        else:
            model.quantize(mode)
        try:
            return common.int8_file(tf, model, task)
        except Exception as error:
            task.told["calibrated"] = f"{type(error).__name__}: {str(error)[:300]}"
        return tf.lite.TFLiteConverter.from_keras_model(model).convert()

    return recipe


def distil_ptq(task):
    """keras.distillation with the float network as the teacher, then PTQ."""
    student = task.float_model(keras)
    distiller = keras.distillation.Distiller(
        task.float_model(keras),
        student,
        keras.distillation.LogitsDistillation(temperature=3.0, loss=keras.losses.KLDivergence()),
    )
    task.fit(keras, distiller, task.job["epochs"])
    return common.int8_file(tf, student, task)


RECIPES = {
    "train": train_float,
    "float": float_file,
    "PTQ": ptq,
    "dynamic": dynamic,
    "litert-quantizer PTQ": ptq_litert,
    "distillation, PTQ": distil_ptq,
    **{f"quantize {mode}": keras_quantize(mode) for mode in ("int8", "int4", "float8", "gptq")},
}

if __name__ == "__main__":
    common.run(keras, RECIPES)
