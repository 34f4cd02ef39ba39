"""Intel Neural Compressor 2.6 on TensorFlow 2.15."""

import pathlib
import tempfile

from benchmarks.peers.workers import common

import tensorflow as tf  # isort: skip
from neural_compressor import PostTrainingQuantConfig, quantization  # isort: skip

keras = tf.keras


def ptq(task):
    samples = tf.data.Dataset.from_tensor_slices((task.calibration(), task.y[: common.CALIBRATION]))
    model = quantization.fit(
        task.float_model(keras),
        PostTrainingQuantConfig(calibration_sampling_size=[common.CALIBRATION]),
        calib_dataloader=Batches(samples.batch(1)),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "saved")
        model.save(str(path))
        return tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()


class Batches:
    """What the tool calls a data loader."""

    batch_size = 1

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter((x.numpy(), y.numpy()) for x, y in self.dataset)


RECIPES = {"PTQ": ptq}

if __name__ == "__main__":
    common.run(keras, RECIPES)
