"""What every worker does: reads its job, runs the recipe, writes the file and what it took.

A recipe is a function of a `Task` that returns the bytes of a .tflite file.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import sys
import time
import traceback
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np

from benchmarks.peers import data, nets

BATCH = 64
CALIBRATION = 200
FREQUENCY = 25
"""Training steps from one update of the masks to the next, for every peer that prunes."""
TURNS, STEPS_TIMED = 8, 10


@dataclasses.dataclass
class Task:
    """A job with its data."""

    job: dict[str, Any]
    x: np.ndarray
    y: np.ndarray
    seconds: float = 0.0
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def float_model(self, keras):
        """Returns the float network with the weights that all peers start from."""
        model = nets.NETS[self.job["net"]](keras)
        with np.load(self.job["weights"]) as kept:
            for layer in model.layers:
                count = len(layer.get_weights())
                layer.set_weights([kept[f"{layer.name}/{i}"] for i in range(count)])
            arrays = b"".join(kept[name].tobytes() for name in sorted(kept.files))
            self.told["weights"] = hashlib.sha256(arrays).hexdigest()[:16]
            found = np.asarray(model(kept["probe"], training=False))
            self.told["float_difference"] = float(np.abs(found - kept["logits"]).max())
        if self.told["float_difference"] > 1e-3:
            raise ValueError(f"The float networks differ: {self.told['float_difference']}")
        return model

    def steps(self, epochs):
        """Returns the training steps of a number of epochs."""
        return epochs * -(-self.job["images"] // BATCH)

    def stages(self, count):
        """Returns the epochs of each stage: the first has its share, the others the rest."""
        total, share = self.job["epochs"], self.job["settings"].get("share", 1.0)
        if count == 1:
            return [total]
        first = round(total * share)
        each, more = divmod(total - first, count - 1)
        return [first, *(each + (index < more) for index in range(count - 1))]

    def fit(self, keras, model, epochs, callbacks=(), loss=True, held=None):
        """Trains the model as the settings of the job say.

        Args:
            keras: The Keras to train with.
            model: The model.
            epochs: How long.
            callbacks: Callbacks.
            loss: Whether the model needs one.
            held: The share of the steps before a late cosine begins; None for that of the settings.
        """
        settings = self.job["settings"]
        rate = settings["rate"]
        late = settings["schedule"] == "late cosine"
        share = (settings["share"] if held is None else held) if late else 0.0
        if settings["schedule"] != "constant" and share < 1:
            steps = self.steps(epochs)
            first = int(share * steps)
            rate = keras.optimizers.schedules.CosineDecay(
                rate, steps - first, warmup_target=rate, warmup_steps=first
            )
        options = {}
        if loss:
            options["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), metrics=["accuracy"], **options)
        started = time.perf_counter()
        model.fit(
            self.batches(),
            steps_per_epoch=self.steps(1),
            epochs=epochs,
            verbose=0,
            callbacks=list(callbacks),
        )
        self.seconds += time.perf_counter() - started
        return model

    def batches(self):
        """Returns batches of the data without end, in a new order each time."""
        import tensorflow as tf

        x, y = tf.constant(self.x), tf.constant(self.y)
        order = tf.data.Dataset.range(len(self.x)).shuffle(len(self.x), self.job["seed"]).repeat()
        return order.batch(BATCH).map(lambda i: (tf.gather(x, i), tf.gather(y, i))).prefetch(2)

    def calibration(self):
        """Returns the samples that ranges are measured on, drawn by the seed of the job."""
        generator = np.random.default_rng(self.job["seed"])
        return self.x[generator.choice(len(self.x), CALIBRATION, replace=False)]


def int8_file(tf, source, task=None):
    """Returns an INT8 file by TFLiteConverter, calibrated if the task is given."""
    converter = tf.lite.TFLiteConverter.from_keras_model(source)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if task is not None:
        converter.representative_dataset = lambda: ([s[None]] for s in task.calibration())
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def step_times(keras, task, models):
    """Returns the milliseconds of a training step of each model, measured in turns: minima."""
    x, y = task.x[: 64 * STEPS_TIMED], task.y[: 64 * STEPS_TIMED]
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-4), loss=loss)
        model.fit(x, y, batch_size=64, verbose=0)
    times = {name: [] for name in models}
    for _ in range(TURNS):
        for name, model in models.items():
            started = time.perf_counter()
            model.fit(x, y, batch_size=64, verbose=0)
            times[name].append((time.perf_counter() - started) / STEPS_TIMED * 1000)
    task.told["step_ms"] = {name: min(found) for name, found in times.items()}


def run(keras, recipes):
    """Runs the job in the file that the first argument names; the second gets what it found."""
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    keras.utils.set_random_seed(job["seed"])
    x, y, *_ = data.parts(job["data"], job)
    task = Task(job, x, y)
    found = {}
    try:
        content = recipes[job["recipe"]](task)
        if content is not None:
            pathlib.Path(job["file"]).write_bytes(content)
    except Exception as error:
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {str(error)[:1000]}"
    found.update(task.told, train_seconds=task.seconds)
    pathlib.Path(sys.argv[2]).write_text(json.dumps(found))
