"""Transfer learning with every family of keras.applications: the second table of applications.md.

Each network comes without its top, with random weights and statistics that are not trivial, at a
small input: as a nested model, frozen, called with `training=False`, behind augmentation and the
usual scaling, with pooling, dropout and a new head behind. It is quantized, unfrozen, trained for a
few steps, exported, and compared with the Keras model on other images. By hand, about ten minutes:

    python -m benchmarks.transfer_int8 [--models GLOB]
"""

import argparse
import fnmatch
import tempfile
import warnings

from benchmarks.applications_int8 import MODELS, SIZES

STEPS, BATCH = 2, 8


def build(name, size):
    """Returns the network under a new head, and its backbone."""
    import keras
    import numpy as np
    from keras import layers

    keras.utils.set_random_seed(0)
    backbone = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), include_top=False
    )
    generator = np.random.default_rng(0)
    for layer in backbone._flatten_layers():
        if isinstance(layer, layers.BatchNormalization):
            n = layer.moving_mean.shape
            layer.moving_mean.assign(generator.normal(0, 0.1, n))
            layer.moving_variance.assign(generator.uniform(0.5, 1.5, n))
    backbone.trainable = False
    inputs = keras.Input((size, size, 3))
    x = layers.RandomRotation(0.05)(layers.RandomFlip("horizontal")(inputs))
    x = backbone(layers.Rescaling(1 / 127.5, -1)(x), training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(5)(x)), backbone


def measured(name, folder):
    """Returns the agreement of the file with its model, and its float tensors."""
    import keras
    import numpy as np

    import tfcompress as tfc
    from tfcompress.export.agreement import measure
    from tfcompress.graph.read import input_names

    size = SIZES.get(name, 64)
    model, backbone = build(name, size)
    generator = np.random.default_rng(0)
    coarse = [generator.uniform(0, 255, (48, n, n, 3)) for n in (2, 5, 16)]
    x = np.mean([keras.ops.image.resize(c, (size, size)) for c in coarse], axis=0).astype("float32")
    aware = tfc.quantize(model)
    aware.get_layer(backbone.name).trainable = True
    aware.compile(keras.optimizers.SGD(1e-6), "mse")
    count = STEPS * BATCH
    aware.fit(x[:count], np.zeros((count, 5)), batch_size=BATCH, verbose=0)
    result = tfc.export_tflite(aware, f"{folder}/m.tflite", verify=False, verbose=False)
    found = measure(aware, result.path, {input_names(aware)[0]: x[count:]})
    return found, result.float_tensors


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="*")
    chosen = fnmatch.filter(MODELS, parser.parse_args().models)
    warnings.simplefilter("ignore")
    print("| network | RMSE / deviation | LSB | float tensors |\n|---|---|---|---|")
    for name in chosen:
        with tempfile.TemporaryDirectory() as folder:
            found, floats = measured(name, folder)
        print(f"| {name} | {found.rmse:.4f} | {found.max_lsb:.0f} | {len(floats)} |", flush=True)


if __name__ == "__main__":
    main()
