"""How fast the files are: every family of keras.applications, every kind of layer, text, 4 bits.

Every network is exported in float and in int8 (measured on random samples, weights random), and the
files of one network are run in turns, in several processes one after the other; the figures are
medians over the processes of the medians of each. Losing rows are printed like the others. The
part "peers" also quantizes each network with TensorFlow's converter and, where they are installed,
with litert-quantizer (and immutabledict), on the same samples, and measures how far each file is
from the float model; with the wheel of mtcnn, its nets are among them. By hand, half an hour on one
core:

    python -m benchmarks.latency [--part GLOB] [--only GLOB] [--processes 5] [--json FILE]
"""

import argparse
import concurrent.futures
import fnmatch
import importlib
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import warnings

from benchmarks.applications_int8 import MODELS, build
from benchmarks.operations import processor

SIZE, SAMPLES = 224, 16
KINDS = (
    "relu relu6 leaky_relu elu swish sigmoid tanh hard_sigmoid hard_swish selu softplus mish gelu "
    "softmax PReLU ReLU_alone LeakyReLU_0 LayerNormalization RMSNormalization AveragePooling "
    "AveragePooling_same Depthwise_7x7"
).split()


def images(count, shape, low=0.0, high=255.0):
    """Returns random images."""
    import numpy as np

    return np.random.default_rng(0).uniform(low, high, (count, *shape)).astype("float32")


def family(name):
    """Returns a network of keras.applications, and samples."""
    return build(name, SIZE), images(SAMPLES, (SIZE, SIZE, 3))


def kind(name):
    """Returns two layers of a kind between convolutions of 32x32x32, and samples."""
    import keras
    from keras import layers as L

    made = {
        "PReLU": lambda: L.PReLU(shared_axes=[1, 2], alpha_initializer="random_uniform"),
        "LeakyReLU_0": lambda: L.LeakyReLU(0.0),
        "LayerNormalization": L.LayerNormalization,
        "RMSNormalization": L.RMSNormalization,
        "AveragePooling": lambda: L.AveragePooling2D(3, 1),
        "AveragePooling_same": lambda: L.AveragePooling2D(3, 1, "same"),
        "Depthwise_7x7": lambda: L.DepthwiseConv2D(7, padding="same"),
        "softmax": L.Softmax,
    }
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 32))
    x = L.Conv2D(32, 3, padding="same")(inputs)
    for _ in range(2):
        if name == "ReLU_alone":  # its input is read by a sum as well
            x = L.Add()([L.Conv2D(32, 3, padding="same")(L.ReLU()(x)), x])
        else:
            x = made.get(name, lambda: L.Activation(name))()(x)
            x = L.Conv2D(32, 3, padding="same")(x)
    return keras.Model(inputs, x), images(32, (32, 32, 32), -2, 2)


def transformer(name):
    """Returns MiniLM of three layers as in the example, or a ViT-Tiny, and samples."""
    import importlib.util

    import keras
    import numpy as np
    from keras import layers as L

    keras.utils.set_random_seed(0)
    if name == "ViT-Tiny":
        inputs = keras.Input((SIZE, SIZE, 3))
        x = L.Reshape((196, 192))(L.Conv2D(192, 16, 16)(inputs))
        for _ in range(12):
            y = L.LayerNormalization(epsilon=1e-6)(x)
            x = L.Add()([x, L.MultiHeadAttention(3, 64)(y, y)])
            y = L.Dense(768, activation="gelu")(L.LayerNormalization(epsilon=1e-6)(x))
            x = L.Add()([x, L.Dense(192)(y)])
        x = L.GlobalAveragePooling1D()(L.LayerNormalization(epsilon=1e-6)(x))
        return keras.Model(inputs, L.Dense(10)(x)), images(SAMPLES, (SIZE, SIZE, 3), -1, 1)
    path = pathlib.Path(__file__).parent.parent / "examples" / "distil_text.py"
    spec = importlib.util.spec_from_file_location("distil_text", path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    settings = {
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "layer_norm_eps": 1e-12,
    }
    ids = np.random.default_rng(0).integers(1, 30000, (32, 128)).astype("int32")
    return example.classifier(settings, 3, 128, 5, padded="padded" in name), ids


def recurrent(name):
    """Returns a recurrent layer over as many steps as its name says, and samples."""
    import keras
    from keras import layers as L

    keras.utils.set_random_seed(0)
    layer, steps = name.split()
    inputs = keras.Input((int(steps), 32))
    x = getattr(L, layer)(64, return_sequences=True)(inputs)
    return keras.Model(inputs, x), images(32, (int(steps), 32), -2, 2)


def mtcnn(name):
    """Returns a net of mtcnn with its weights, and samples."""
    import joblib
    import keras
    import numpy as np

    home = pathlib.Path(importlib.import_module("mtcnn").__file__).parent
    size = {"PNet": 12, "RNet": 24, "ONet": 48}[name]
    net = getattr(importlib.import_module(f"mtcnn.network.{name.lower()}"), name)()
    net.build((None, size, size, 3))
    net(np.zeros((1, size, size, 3), "float32"))
    net.set_weights(joblib.load(home / "assets" / "weights" / f"{name.lower()}.lz4"))
    inputs = keras.Input((size, size, 3))
    return keras.Model(inputs, net(inputs)), images(64, (size, size, 3), -1, 1)


def exported(make, name, folder, schemes):
    """Writes the files of a network, and returns their paths and bytes by variant."""
    import tfcompress as tfc

    model, samples = make(name)
    files = {}
    for variant, scheme in schemes.items():
        path = pathlib.Path(folder) / f"{name}_{variant}.tflite".replace(" ", "_")
        data = {} if scheme in ("float32", "float16") else {"representative_dataset": samples}
        result = tfc.export_tflite(
            model, path, scheme=scheme, metadata=False, verify=False, verbose=False, **data
        )
        files[variant] = str(path), result.bytes, dict(result.report.outside)
    return files


def peers_files(make, name, folder):
    """Returns files by the converter, litert-quantizer and us, with their error in each output."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfcompress as tfc

    model, samples = make(name)
    files = exported(lambda _: (model, samples), name, folder, {"float": "float32", "ours": "int8"})
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in samples)
    contents = {}
    try:
        contents["converter"] = converter.convert()
    except Exception as error:  # whatever it raises is a figure of it
        print(f"{name}: the converter fails: {str(error).splitlines()[0][:100]}", flush=True)
    try:
        contents["litert-quantizer"] = by_litert_quantizer(files["float"][0], samples)
    except ImportError:
        pass
    except Exception as error:
        print(f"{name}: litert-quantizer fails: {str(error)[:100]}", flush=True)
    for variant, content in contents.items():
        path = pathlib.Path(folder) / f"{name}_{variant}.tflite"
        path.write_bytes(content)
        files[variant] = str(path), len(content), {}
    wanted = [
        np.asarray(t, np.float64) for t in keras.tree.flatten(model.predict(samples, verbose=0))
    ]
    errors = {}
    for variant, (path, *_) in files.items():
        found = keras.tree.flatten(tfc.TFLiteModel(path).predict(samples))
        left = list(found)
        off = []
        for array in wanted:  # outputs of other tools may be in another order
            index = min(
                (i for i, value in enumerate(left) if value.shape == array.shape),
                key=lambda i: np.abs(left[i] - array).mean(),
            )
            off.append(np.sqrt(np.mean((left.pop(index) - array) ** 2)) / (array.std() or 1))
        errors[variant] = max(off)
    return files, errors


def by_litert_quantizer(path, samples):
    """Returns the file that litert-quantizer makes of a float file; samples may be a dict."""
    from litert_quantizer import quantizer, recipe

    tool = quantizer.Quantizer(path, recipe.static_wi8_ai8())
    import tfcompress as tfc

    if not isinstance(samples, dict):
        (info,) = tfc.TFLiteModel(path).inputs
        samples = {info.name: samples}
    count = len(next(iter(samples.values())))
    batches = [{name: x[i : i + 1] for name, x in samples.items()} for i in range(count)]
    data = {"serving_default": batches}
    return bytes(tool.quantize(tool.calibrate(data)).quantized_model)


def medians(files, threads, runs, seconds):
    """Returns the median milliseconds of each file of each network, in turns, in this process."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tfcompress as tfc
    from tfcompress.tflite.benchmark import benchmark

    figures = {}
    for name, variants in files.items():
        models = {v: tfc.TFLiteModel(path, threads) for v, (path, *_) in variants.items()}
        first = benchmark(models, runs=5, warmup=3)
        slowest = sum(result.median_ms for result in first.values())
        count = int(min(max(seconds * 1000 / slowest, 10), runs))
        results = benchmark(models, runs=count)
        figures[name] = {variant: result.median_ms for variant, result in results.items()}
    return figures


def measured(files, processes, threads=1, runs=200, seconds=2.0):
    """Returns the median over processes, and the least and largest ratio to the first variant."""
    context = multiprocessing.get_context("spawn")
    each = []
    for _ in range(processes):
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
            each.append(pool.submit(medians, files, threads, runs, seconds).result())
    return {
        name: {v: statistics.median(run[name][v] for run in each) for v in variants}
        for name, variants in files.items()
    }


def table(head, rows):
    """Prints a table in Markdown."""
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def part(title, make, names, schemes, folder, options, figures):
    """Exports, measures and prints a table: each variant beside the first one."""
    files = {}
    for name in names:
        if fnmatch.fnmatch(name, options.only):
            files[name] = exported(make, name, folder, schemes)
    if not files:
        return
    times = measured(files, options.processes)
    first, *others = schemes
    head = ["network", f"{first} ms"]
    for variant in others:
        head += [f"{variant} ms", f"{first} / {variant}", f"{variant} bytes / {first}", "outside"]
    rows = []
    for name, by_variant in times.items():
        row = [name, f"{by_variant[first]:.3f}"]
        for variant in others:
            _, size, outside = files[name][variant]
            row += [
                f"{by_variant[variant]:.3f}",
                f"{by_variant[first] / by_variant[variant]:.2f}x",
                f"{size / files[name][first][1]:.2f}",
                ", ".join(outside) or "-",
            ]
        rows.append(row)
    print(f"## {title}\n")
    table(head, rows)
    figures[title] = times


def peers(folder, options, figures):
    """Prints our files beside those of two peers."""
    makers = dict.fromkeys(
        "MobileNetV2 MobileNetV3Small EfficientNetB0 NASNetMobile DenseNet121 ResNet50V2 "
        "InceptionV3".split(),
        family,
    )
    if importlib.util.find_spec("mtcnn"):
        makers.update(dict.fromkeys(("PNet", "RNet", "ONet"), mtcnn))
    makers["ViT-Tiny"] = transformer
    files, errors = {}, {}
    for name, make in makers.items():
        if fnmatch.fnmatch(name, options.only):
            files[name], errors[name] = peers_files(make, name, folder)
    times = measured(files, options.processes)
    rows = []
    for name, by_variant in times.items():
        others = [by_variant[v] for v in ("converter", "litert-quantizer") if v in by_variant]
        row = [name]
        for variant in ("float", "converter", "litert-quantizer", "ours"):
            known = variant in by_variant
            row.append(f"{by_variant[variant]:.3f}" if known else "-")
            if variant != "float":
                row.append(f"{errors[name][variant]:.4f}" if known else "-")
        rows.append([*row, f"{by_variant['ours'] / min(others):.2f}" if others else "-"])
    print("## Beside peers: milliseconds, and RMSE over the deviation of the worst output\n")
    head = ("network", "float", "converter", "RMSE", "litert-quantizer", "RMSE", "ours", "RMSE")
    table((*head, "ours / faster"), rows)
    figures["peers"] = {"ms": times, "rmse": errors}


def threads(folder, options, figures):
    """Prints the latency on one, two and four threads."""
    files = {}
    for name in ("MobileNetV2", "ResNet50V2"):
        files[name] = exported(family, name, folder, {"float": "float32", "int8": "int8"})
    rows = []
    for count in (1, 2, 4):
        times = measured(files, options.processes, count)
        figures[f"threads {count}"] = times
        rows += [(n, count, f"{t['float']:.3f}", f"{t['int8']:.3f}") for n, t in times.items()]
    print(f"## Threads, on a machine of {os.cpu_count()} cores\n")
    table(("network", "threads", "float ms", "int8 ms"), sorted(rows))


def main():
    """Measures the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="*", help="a glob of parts")
    parser.add_argument("--only", default="*", help="a glob of networks")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--json", help="a file for the figures")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    warnings.simplefilter("ignore")
    from importlib import metadata

    import tfcompress as tfc

    print(f"{processor()}, ai-edge-litert {metadata.version('ai-edge-litert')}, one thread\n")
    both = {"float": "float32", "int8": "int8"}
    four = {"int8": "int8", "w4a8": tfc.QuantizationScheme(4)}
    small = {**four, "w4a8, bytes": tfc.QuantizationScheme(4, prefer="bytes")}
    figures = {}
    parts = {
        "families": lambda f: part("Families", family, MODELS, both, f, options, figures),
        "kinds": lambda f: part("Kinds", kind, KINDS, both, f, options, figures),
        "text": lambda f: part(
            "Transformers", transformer, ("MiniLM", "MiniLM padded", "ViT-Tiny"), both, f, options,
            figures,
        ),
        "four bits": lambda f: part(
            "4 bits", family, ("MobileNetV2", "MobileNetV3Large", "ResNet50V2"), small, f, options,
            figures,
        ),
        "recurrent": lambda f: part(
            "Recurrent layers", recurrent,
            ("LSTM 64", "GRU 64", "SimpleRNN 64", "LSTM 256", "LSTM 1000"),
            {**both, "dynamic": "dynamic_int8"}, f, options, figures,
        ),
        "threads": lambda f: threads(f, options, figures),
        "peers": lambda f: peers(f, options, figures),
    }  # fmt: skip
    for name, run in parts.items():
        if fnmatch.fnmatch(name, options.part):
            with tempfile.TemporaryDirectory() as folder:
                run(folder)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"on": processor(), **figures}))


if __name__ == "__main__":
    main()
