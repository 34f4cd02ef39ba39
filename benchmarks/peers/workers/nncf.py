"""NNCF 2.19 on TensorFlow 2.15."""

from benchmarks.peers.workers import common

import nncf  # isort: skip
import tensorflow as tf  # isort: skip
from nncf import NNCFConfig  # isort: skip
from nncf.tensorflow.helpers.model_creation import create_compressed_model  # isort: skip
from nncf.tensorflow.initialization import register_default_init_args  # isort: skip

keras = tf.keras


def samples(task):
    return tf.data.Dataset.from_tensor_slices(task.calibration()).batch(1)


def ptq(task):
    data = nncf.Dataset(samples(task), lambda x: x)
    model = nncf.quantize(task.float_model(keras), data, subset_size=common.CALIBRATION)
    return converted(nncf.strip(model))


def aware(task):
    """Returns the network with NNCF's quantizers, initialized on samples, and its controller."""
    config = NNCFConfig.from_dict(
        {
            "input_info": {"sample_size": [1, *task.x.shape[1:]]},
            "compression": {
                "algorithm": "quantization",
                "initializer": {"range": {"num_init_samples": common.CALIBRATION}},
            },
        }
    )
    labelled = tf.data.Dataset.from_tensor_slices(
        (task.calibration(), task.y[: common.CALIBRATION])
    )
    config = register_default_init_args(config, labelled.batch(1), 1)
    return create_compressed_model(task.float_model(keras), config)


def qat(task):
    controller, model = aware(task)
    task.fit(keras, model, task.job["epochs"])
    return converted(controller.strip())


def converted(model):
    """Returns the file of a model with fake quantization in its graph."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def steps(task):
    models = {"float": task.float_model(keras), "QAT": aware(task)[1]}
    common.step_times(keras, task, models)


RECIPES = {"PTQ": ptq, "QAT": qat, "steps": steps}

if __name__ == "__main__":
    common.run(keras, RECIPES)
