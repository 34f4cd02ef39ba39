"""qkeras-v3 1.2.1: QAT on Keras 3."""

from benchmarks.peers.workers import common

import keras  # isort: skip
import tensorflow as tf  # isort: skip
from qkeras.utils import model_quantize  # isort: skip

WEIGHTS = "quantized_bits(8, 0, alpha='auto', keep_negative=True)"


def aware(task):
    """Returns the network with 8-bit weights and activations."""
    model = task.float_model(keras)
    config = {
        "QConv2D": {"kernel_quantizer": WEIGHTS, "bias_quantizer": None},
        "QDepthwiseConv2D": {"depthwise_quantizer": WEIGHTS, "bias_quantizer": None},
        "QDense": {"kernel_quantizer": WEIGHTS, "bias_quantizer": None},
    }
    for layer in model.layers:
        if isinstance(layer, keras.layers.ReLU):
            config[layer.name] = "quantized_relu(8, 3)"
    return model_quantize(model, config, 8, transfer_weights=True)


def qat(task):
    model = task.fit(keras, aware(task), task.job["epochs"])
    return common.int8_file(tf, model, task)


def steps(task):
    models = {"float": task.float_model(keras), "QAT": aware(task)}
    common.step_times(keras, task, models)


RECIPES = {"QAT": qat, "steps": steps}

if __name__ == "__main__":
    common.run(keras, RECIPES)
