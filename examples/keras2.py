"""Bring a Keras 2 model over, pruned by tensorflow-model-optimization, and export it.

Needs `pip install 'tfcompress[legacy]'`.
"""

import sys

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

import tfcompress as tfc
from tfcompress.demo.data import load

count = 1000 if "--fast" in sys.argv else 10_000
data = load()
x, y = data.x_train[:count], data.y_train[:count]

old = tf_keras.Sequential([
    tf_keras.layers.InputLayer((28, 28, 1)),
    tf_keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
    tf_keras.layers.Flatten(),
    tf_keras.layers.Dense(10),
])  # fmt: skip
schedule = tfmot.sparsity.keras.ConstantSparsity(0.5, begin_step=0, frequency=10)
old = tfmot.sparsity.keras.prune_low_magnitude(old, pruning_schedule=schedule)
old.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
step = tfmot.sparsity.keras.UpdatePruningStep()
old.fit(x, y, batch_size=64, epochs=2, verbose=0, callbacks=[step])

new = tfc.from_tf_keras(old)
difference = np.abs(old.predict(x[:100], verbose=0) - new.predict(x[:100], verbose=0)).max()
print(f"largest difference of the outputs: {difference:.1e}")
print(tfc.export_tflite(new, "keras2.tflite", representative_dataset=x[:500]))
