"""The figures of docs/micro.md on targets: what their data says, beside what the tools do.

Draws files by a seed: kinds of layers (tests/test_layers.py), 12 families of keras.applications at
96x96, and nets of layers with odd kernels, strides, sizes and axes, each in one of six schemes.
Runs each operation of each file alone on tflite-micro, compiles each file with Vela, and counts
operations on which the prediction and the tool disagree, and files on which Vela fails.

With --operations instead: nets of a convolution and one operation each, in four schemes.

Run by hand, about a minute for ten files: python -m benchmarks.targets --seed 0 --files 20
"""

import argparse
import collections
import pathlib
import tempfile
import warnings

import numpy as np

SIZE = 96
FAMILIES = (
    "MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large EfficientNetB0 EfficientNetV2B0 "
    "DenseNet121 ResNet50 ResNet50V2 VGG16 NASNetMobile ConvNeXtTiny"
).split()


def schemes():
    """Returns the schemes to draw from, by name."""
    import tfcompress as tfc

    return {
        "exactness": tfc.QuantizationScheme(prefer="exactness"),
        "latency": tfc.QuantizationScheme(),
        "bytes": tfc.QuantizationScheme(prefer="bytes"),
        "int16x8": tfc.QuantizationScheme(activation_bits=16),
        "dynamic_int8": "dynamic_int8",
        "float32": "float32",
    }


def odd_layers(rng):
    """Returns functions that each add a layer of odd arguments to an image."""
    from keras import layers, ops

    one = rng.integers

    def axes(x):
        return [[1], [2], [1, 2], [-1], [1, 2, 3], [2, 3]][one(6)]

    def permuted(x):
        return layers.Permute([*(rng.permutation(3) + 1)])(x)

    padding = ("same", "valid")
    return [
        lambda x: layers.Conv2D(
            int(one(1, 9)), [*one(1, 6, 2)], strides=int(one(1, 5)), padding=padding[one(2)]
        )(x),
        lambda x: layers.Conv2D(8, 3, padding="same", dilation_rate=int(one(1, 4)))(x),
        lambda x: layers.DepthwiseConv2D(3, strides=int(one(1, 5)), padding=padding[one(2)])(x),
        lambda x: layers.Conv2DTranspose(
            int(one(1, 6)), [*one(1, 5, 2)], strides=int(one(1, 4)), padding=padding[one(2)]
        )(x),
        lambda x: layers.AveragePooling2D(int(one(2, 5)), strides=int(one(1, 5)), padding="same")(
            x
        ),
        lambda x: layers.AveragePooling2D(int(one(5, 11)), strides=1, padding="same")(x),
        lambda x: layers.MaxPooling2D(int(one(2, 5)), strides=int(one(1, 5)), padding="valid")(x),
        lambda x: layers.Resizing(
            int(x.shape[1] * one(1, 5)),
            int(x.shape[2] * one(1, 5)),
            ("bilinear", "nearest")[one(2)],
        )(x),
        lambda x: layers.UpSampling2D(
            int(one(2, 5)), interpolation=("bilinear", "nearest")[one(2)]
        )(x),
        lambda x: ops.mean(x, axis=axes(x), keepdims=True) + x,
        lambda x: ops.max(x, axis=axes(x), keepdims=True) * x,
        lambda x: ops.sum(x, axis=axes(x), keepdims=True) - x,
        permuted,
        lambda x: x[:, :: int(one(1, 3)), 1:, :],
        lambda x: ops.concatenate([x, ops.flip(x, axis=int(one(1, 4)))], axis=int(one(1, 4))),
        lambda x: ops.pad(x, [[0, 0], [1, 2], [0, 1], [0, int(one(2))]]),
        lambda x: ops.maximum(x, ops.roll(x, 1, axis=2)),
        lambda x: ops.softmax(x, axis=[-1, 1][one(2)]),
        lambda x: layers.LayerNormalization()(x),
        lambda x: layers.Activation(
            ("gelu", "swish", "hard_swish", "elu", "tanh", "selu", "relu6", "leaky_relu")[one(8)]
        )(x),
        lambda x: layers.PReLU(shared_axes=[1, 2])(x),
        lambda x: ops.abs(x),
        lambda x: ops.einsum("bhwc,bhvc->bhwv", x, x),
    ]


def odd_net(rng):
    """Returns a net of two to five layers of odd arguments, and samples."""
    import keras

    while True:
        inputs = keras.Input((int(rng.integers(8, 25)), int(rng.integers(8, 25)), 3))
        x = keras.layers.Conv2D(6, 3, activation="relu")(inputs)
        try:
            for _ in range(rng.integers(2, 6)):
                choices = odd_layers(rng)
                x = choices[rng.integers(len(choices))](x)
        except ValueError:  # an image too small for the layer
            continue
        if np.prod(x.shape[1:]) < 1e5:
            break
    model = keras.Model(inputs, x)
    return model, rng.normal(size=(16, *inputs.shape[1:])).astype("float32")


def model_of(rng):
    """Returns a name, a model and samples."""
    import keras

    from tests import test_layers

    source = rng.integers(3)
    keras.utils.set_random_seed(int(rng.integers(1 << 30)))
    if source == 0:
        name = str(rng.choice([*test_layers.INTEGER]))
        model = test_layers.INTEGER[name]()
        return name, model, test_layers.samples(model, 16, 0)
    if source == 1:
        name = str(rng.choice(FAMILIES))
        model = getattr(keras.applications, name)(weights=None, input_shape=(SIZE, SIZE, 3))
        return name, model, rng.random((4, SIZE, SIZE, 3)).astype("float32")
    model, data = odd_net(rng)
    return "odd net", model, data


def operations():
    """Returns functions of an image of four channels, most of which chips lack in some type."""
    from keras import layers, ops

    return {
        "argmax": lambda t: ops.argmax(t, axis=-1),
        "argmin": lambda t: ops.argmin(t, axis=-1),
        "argmax of rows": lambda t: ops.argmax(t, axis=1),
        "argmax of many": lambda t: ops.argmax(ops.repeat(t, 40, axis=-1), axis=-1),
        "top_k": lambda t: ops.top_k(t, 2)[0],
        "cumsum": lambda t: ops.cumsum(t, axis=1),
        "one_hot": lambda t: ops.one_hot(ops.argmax(t, axis=-1), 4),
        "floor": lambda t: ops.floor(t * 3),
        "round": lambda t: ops.round(t * 3),
        "cast": lambda t: ops.cast(ops.cast(t * 9, "int32"), "float32"),
        "where": lambda t: ops.where(t > 0.1, t, t * 0.5),
        "equal": lambda t: ops.cast(ops.equal(ops.argmax(t, -1), 1), "float32"),
        "any": lambda t: ops.any(t > 0.5, axis=-1),
        "all": lambda t: ops.all(t > 0.0, axis=-1),
        "reflect": lambda t: ops.pad(t, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect"),
        "square": lambda t: ops.square(t - ops.flip(t, axis=1)),
        "unit length": lambda t: layers.UnitNormalization()(t),
        "log_softmax": lambda t: ops.log_softmax(t),
        "divide": lambda t: t / (ops.abs(t) + 1.0),
        "dilation": lambda t: layers.Conv2D(4, 3, dilation_rate=2)(t),
        "depthwise dilation": lambda t: layers.DepthwiseConv2D(3, dilation_rate=2)(t),
        "negative": lambda t: -ops.relu(t),
        "exp": lambda t: ops.exp(t),
        "log": lambda t: ops.log(ops.abs(t) + 1.0),
        "sqrt": lambda t: ops.sqrt(ops.abs(t)),
        "rsqrt": lambda t: ops.rsqrt(ops.abs(t) + 1),
        "sin": lambda t: ops.sin(t),
        "power": lambda t: ops.power(ops.abs(t) + 0.1, 1.5),
        "minimum": lambda t: ops.minimum(ops.max(t, axis=3, keepdims=True), t),
        "prod": lambda t: ops.prod(t, axis=-1),
        "tile": lambda t: ops.tile(t, (1, 2, 1, 2)),
        "take": lambda t: ops.take(t, [3, 1], axis=-1),
        "take of rows": lambda t: ops.take(t, [3, 1], axis=1),
        "split": lambda t: ops.concatenate(ops.split(t, 2, axis=-1)[::-1], axis=-1),
        "stack": lambda t: ops.stack([t, t * 2], axis=1),
        "dense of five axes": lambda t: layers.Dense(5)(ops.reshape(t, (-1, 2, 4, 8, 4))),
        "long kernel": lambda t: layers.Conv1D(4, 30)(ops.reshape(t, (-1, 64, 4))),
        "mean of all": lambda t: ops.mean(t, axis=[1, 2, 3]),
        "mean": lambda t: ops.mean(t, axis=1),
        "sum": lambda t: ops.sum(t, axis=1),
        "sum of channels": lambda t: ops.sum(t, axis=-1),
        "max": lambda t: ops.max(t, axis=1),
        "max of channels": lambda t: ops.max(t, axis=-1),
        "resize": lambda t: layers.Resizing(12, 20)(t),
        "resize to nearest": lambda t: layers.Resizing(12, 20, "nearest")(t),
        "flip of columns": lambda t: ops.flip(t, axis=2),
        "flip of channels": lambda t: ops.flip(t, axis=3),
        "transpose": lambda t: ops.transpose(t, (0, 3, 2, 1)),
        "softplus": lambda t: ops.softplus(t),
        "gelu": lambda t: ops.gelu(t, approximate=True),
        "clip": lambda t: ops.clip(t, -1, 1),
    }


def files_of_operations():
    """Yields the name and content of a file for each operation and scheme."""
    import keras

    data = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    for name, function in operations().items():
        for scheme in ("exactness", "latency", "int16x8", "float32"):
            keras.utils.set_random_seed(0)
            inputs = keras.Input((8, 8, 4))
            model = keras.Model(inputs, function(keras.layers.Conv2D(4, 1)(inputs)))
            if content := exported(name, model, data, scheme):
                yield f"{name}, {scheme}", content


def draw(seed, count):
    """Yields the name and content of `count` files."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        name, model, data = model_of(rng)
        scheme = str(rng.choice([*schemes()]))
        if content := exported(name, model, data, scheme):
            made += 1
            yield f"{name}, {scheme}", content


def exported(name, model, data, scheme):
    """Returns a file; None after a line if the model cannot be exported in a scheme."""
    import tfcompress as tfc

    chosen = schemes()[scheme]
    options = {} if isinstance(chosen, str) else {"representative_dataset": data}
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        try:
            tfc.export_tflite(
                model, file.name, scheme=chosen, verify=False, verbose=False, **options
            )
        except (tfc.ExportError, ValueError) as error:
            print(f"{name}, {scheme}: not exported: {str(error).splitlines()[0][:100]}")
            return None
        return pathlib.Path(file.name).read_bytes()


def main():
    """Prints what disagrees, and how many operations agree."""
    from tfcompress.devices.check import check_target

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--operations", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = collections.defaultdict(collections.Counter)
    drawn = draw(arguments.seed, arguments.files)
    for name, content in files_of_operations() if arguments.operations else drawn:
        for target in ("tflite-micro", "ethos-u55", "ethos-u65", "ethos-u85"):
            count = counts[target]
            predicted = check_target(content, target, tool=False)
            try:
                measured = check_target(content, target, tool=True)
            except ValueError as error:
                count["files that the tool fails on"] += 1
                print(f"{target}, {name}: {str(error)[:120]}")
                continue
            count["files"] += 1
            count["operations"] += measured.operations
            count["not taken"] += len(measured.issues)
            one, other = ({i.index: i for i in r.issues} for r in (predicted, measured))
            for index in sorted(one.keys() ^ other.keys()):
                issue = one.get(index) or other.get(index)
                count["wrong"] += 1
                side = "predicted" if index in one else "measured"
                print(f"{target}, {name}: {issue.operation} {side} only: {issue.reason[:120]}")
    for target, count in counts.items():
        print(target, dict(count))


if __name__ == "__main__":
    main()
