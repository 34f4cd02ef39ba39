"""The dense layers of a small CNN at rank 16: bytes and accuracy, for docs/channels.md.

Fashion-MNIST, the embedded images. By hand, some minutes: python -m benchmarks.low_rank
"""

import pathlib
import tempfile
import warnings

import keras
from keras import layers

import tfcompress as tfc
from benchmarks.quantization import compiled
from tfcompress.demo.data import load


def cnn():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, strides=2, activation="relu"),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(128, activation="relu", name="wide"),
            layers.Dense(64, activation="relu", name="narrow"),
            layers.Dense(10, name="logits"),
        ]
    )


def fit(model, data, epochs, rate):
    compiled(model, rate)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=epochs, verbose=0)
    return model


def main():
    """Prints accuracy and bytes of every seed."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    data = load()
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        model = fit(cnn(), data, 6, 1e-3)
        share = model.evaluate(data.x_test, data.y_test, verbose=0)[1]
        with tempfile.TemporaryDirectory() as folder:
            model.export(f"{folder}/saved", verbose=False)
            saved = sum(f.stat().st_size for f in pathlib.Path(folder).rglob("*") if f.is_file())
            print(seed, f"float {share:.4f}, SavedModel {saved:,} B")
            for trained in (False, True):
                small = tfc.factorize(model, 16, layers=["wide", "narrow"])
                if trained:
                    fit(small, data, 2, 5e-4)
                for scheme in ("float32", "int8"):
                    path = f"{folder}/m.tflite"
                    tfc.export_tflite(
                        small, path, scheme=scheme, representative_dataset=data.x_train[:500]
                    )
                    found = tfc.TFLiteModel(path).evaluate(data.x_test, data.y_test)
                    size = tfc.inspect_tflite(path).bytes
                    print(
                        seed,
                        f"rank 16{', trained on' if trained else ''}, {scheme}: {found:.4f} "
                        f"({100 * (found - share):+.2f} points), {size:,} B, 1/{saved / size:.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
