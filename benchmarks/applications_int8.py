"""Every family of keras.applications as an INT8 file: the table of docs/applications.md.

Each network is built with random weights at a small input, with the logits as its output; its
BatchNormalization gets statistics and scales that are not trivial. It trains with quantization for
a few steps on Fashion-MNIST, its statistics kept, is exported, and compared with the Keras model on
test images; and the float network is exported after training with a representative dataset.
"Kernels" is what the runtime's two sets of kernels, XNNPACK and its own, differ by on one and the
same file: no file can be expected to be nearer to its model. Each network runs in a process of its
own. By hand, about half an hour:

    python -m benchmarks.applications_int8 [--models GLOB] [--json FILE]
"""

import argparse
import collections
import fnmatch
import json
import multiprocessing
import os
import tempfile
import time
import warnings

SIZES = {"InceptionV3": 75, "InceptionResNetV2": 75, "Xception": 71}
MODELS = (
    "VGG16 ResNet50 ResNet50V2 MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large "
    "EfficientNetB0 EfficientNetV2B0 DenseNet121 InceptionV3 InceptionResNetV2 Xception "
    "NASNetMobile ConvNeXtTiny"
).split()
STEPS, BATCH = 8, 16


def build(name, size):
    """Returns the network with scales, offsets and statistics as training leaves them."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(size, size, 3), classes=10, classifier_activation=None
    )
    generator = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.moving_mean.shape
            if layer.gamma is not None:
                layer.gamma.assign(generator.uniform(0.5, 1.5, n))
            if layer.beta is not None:
                layer.beta.assign(generator.normal(0, 0.1, n))
            layer.moving_mean.assign(generator.normal(0, 0.1, n))
            layer.moving_variance.assign(generator.uniform(0.5, 1.5, n))
    return model


def pictures(count, size, test=False):
    """Returns images of Fashion-MNIST, enlarged, in three colours, with values in [0, 255]."""
    import keras
    import numpy as np

    from tfcompress.demo.data import load

    data = load()
    x, y = (data.x_test, data.y_test) if test else (data.x_train, data.y_train)
    x = keras.ops.image.resize(x[:count] * 255, (size, size))
    return np.repeat(np.asarray(x, "float32"), 3, axis=-1), y[:count]


def measured(name):
    """Returns the figures of one network."""
    warnings.simplefilter("ignore")
    import keras

    import tfcompress as tfc
    from tfcompress.export.agreement import measure

    size = SIZES.get(name, 64)
    model = build(name, size)
    x, y = pictures(STEPS * BATCH, size)
    probes = {model.inputs[0]._keras_history.operation.name: pictures(64, size, test=True)[0]}
    figures = {"model": name, "parameters": model.count_params()}
    with tempfile.TemporaryDirectory() as folder:
        try:
            aware = tfc.quantize(model)
            for layer in aware._flatten_layers():
                if isinstance(layer, keras.layers.BatchNormalization):
                    layer.trainable = False  # or the ranges would be those of other statistics
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            aware.compile(keras.optimizers.SGD(1e-6), loss)
            started = time.perf_counter()
            aware.fit(x, y, batch_size=BATCH, verbose=0)
            figures["fit_seconds"] = time.perf_counter() - started
            figures["qat"] = exported(tfc, measure, aware, probes, f"{folder}/qat.tflite")
        except Exception as error:
            figures["qat"] = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
        try:
            tfc.export_tflite(model, f"{folder}/float.tflite", verify=False)
            figures["float_bytes"] = os.path.getsize(f"{folder}/float.tflite")
            figures["ptq"] = exported(
                tfc, measure, model, probes, f"{folder}/ptq.tflite", representative_dataset=x
            )
        except Exception as error:
            figures["ptq"] = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
    return figures


def values_of(outputs):
    """Returns all outputs of a file in one array, each in units of its deviation."""
    import numpy as np

    each = outputs.values() if isinstance(outputs, dict) else [outputs]
    return np.concatenate([np.ravel(o) / (np.std(o) or 1) for o in each])


def exported(tfc, measure, model, probes, path, **options):
    """Exports one file and returns what it is like."""
    import numpy as np

    result = tfc.export_tflite(model, path, verify=False, **options)
    found = measure(model, path, probes)
    file = tfc.TFLiteModel(path, delegates=False)
    fast, plain = (values_of(f.predict(probes)) for f in (tfc.TFLiteModel(path), file))
    names = {d["index"]: d["name"] for d in file.interpreter.get_tensor_details()}
    left = set(result.float_tensors)
    ops = collections.Counter(
        op["op_name"]
        for op in file.interpreter._get_ops_details()
        if any(names.get(int(i)) in left for i in np.ravel(op["outputs"]))
    )
    return {
        "float_tensors": len(left),
        "tensors": sum(result.dtypes.values()),
        "float_ops": dict(ops.most_common()),
        "bytes": result.bytes,
        "rmse": found.rmse,
        "kernels": float(np.sqrt(np.mean((fast - plain) ** 2)) / fast.std()),
        "max_lsb": found.max_lsb,
        "top1": found.top1,
        "seconds": result.seconds,
    }


def row(figures):
    """Returns one line of the table."""
    cells = [figures["model"]]
    for kind in ("qat", "ptq"):
        found = figures.get(kind, {"error": "not run"})
        if "error" in found:
            cells += [found["error"].splitlines()[0][:60], "", "", "", "", "", ""]
            continue
        ops = ", ".join(f"{op} {n}" for op, n in found["float_ops"].items())
        ratio = found["bytes"] / figures["float_bytes"] if "float_bytes" in figures else 0
        cells += [
            f"{found['float_tensors']}" + (f" ({ops})" if ops else ""),
            f"{ratio:.3f}",
            f"{found['rmse']:.4f}",
            f"{found['kernels']:.4f}",
            f"{found['max_lsb']:.0f}",
            f"{found['top1']:.0%}",
            f"{found['seconds']:.0f}",
        ]
    return cells


def main():
    """Measures the models that were asked for and prints the table as Markdown."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="*")
    parser.add_argument("--json", default="")
    options = parser.parse_args()
    half = ["float tensors", "bytes", "RMSE", "kernels", "LSB", "top-1", "s"]
    header = ["network", *(f"QAT {c}" for c in half), *(f"PTQ {c}" for c in half)]
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header), flush=True)
    for name in MODELS:
        if not fnmatch.fnmatch(name, options.models):
            continue
        context = multiprocessing.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            figures = pool.apply(measured, (name,))
        print("| " + " | ".join(map(str, row(figures))) + " |", flush=True)
        if options.json:
            with open(options.json, "a") as file:
                file.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main()
