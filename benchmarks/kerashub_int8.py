"""KerasHub's families as INT8 files: the table of docs/kerashub.md.

Each family is built small (see kerashub_families.py), for texts of 16 tokens. After quantize() its
ranges are set by two batches, it is exported, and the file compared with the quantized model; and
the float model is exported after training with 32 samples, and that file compared with the float
model, on 24 other inputs. Each family runs in a process of its own; the results are kept in a JSON
file, and a family that is in it is not run again. By hand, a quarter of an hour:

    python -m benchmarks.kerashub_int8 [--families GLOB] [--json FILE]
"""

import argparse
import concurrent.futures
import contextlib
import fnmatch
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
import warnings

from benchmarks.applications_int8 import exported

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "kerashub.md"
HEADER = (
    "family",
    "parameters",
    "float file",
    "INT8",
    "QAT: float tensors",
    "RMSE to its model",
    "LSB",
    "PTQ: float tensors",
    "RMSE to float",
    "s",
)


TEXT = """# KerasHub

Families of [KerasHub](https://keras.io/keras_hub/), built small: their real structure, two layers
or more, two heads or more, random weights, masks, and scales and statistics as training leaves
them. `python -m benchmarks.kerashub_int8` measures them and writes this page;
`tests/test_kerashub.py` checks them all.

Of {families} families, {clean} become files without any float tensor, and {close} of these differ
from the quantization-aware model by an RMSE of at most 0.01 of the deviation of their outputs. PTQ
is compared with the float model; random weights make that harder than trained ones do.

A model for texts of any length is quantized for one length:

```python
student = tfc.quantize(model, input_shape={{"token_ids": (128,), "padding_mask": (128,)}})
```

Without `input_shape`, layers whose code computes with the length stay in float, and a warning says
so. PTQ takes the length of the samples.
"""


def measured(name):
    """Returns the figures of one family."""
    warnings.simplefilter("ignore")
    import numpy as np

    import tfcompress as tfc
    from benchmarks.kerashub_families import built
    from tfcompress.export.agreement import measure
    from tfcompress.graph.keras_internals import producing_operation

    started = time.perf_counter()
    model, draw = built(name)
    generator = np.random.default_rng(1)
    x, probes = draw(generator, 32), draw(generator, 24)
    if not isinstance(probes, dict):
        probes = {producing_operation(model.inputs[0]).name: probes}
    figures = {"model": name, "parameters": model.count_params()}
    shape = shape_of(x)
    with tempfile.TemporaryDirectory() as folder:
        figures["float_bytes"] = 0
        with contextlib.suppress(tfc.ExportError):  # which the others report
            tfc.export_tflite(model, f"{folder}/float.tflite", input_shape=shape, verify=False)
            figures["float_bytes"] = os.path.getsize(f"{folder}/float.tflite")
        try:
            aware = with_ranges(tfc.quantize(model, input_shape=shape), x)
            figures["qat"] = exported(tfc, measure, aware, probes, f"{folder}/qat.tflite")
        except Exception as error:
            figures["qat"] = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
        try:
            options = {"representative_dataset": x, "input_shape": shape}
            figures["ptq"] = exported(
                tfc, measure, model, probes, f"{folder}/ptq.tflite", **options
            )
        except Exception as error:
            figures["ptq"] = {"error": f"{type(error).__name__}: {str(error)[:600]}"}
    figures["seconds"] = time.perf_counter() - started
    return figures


def shape_of(x):
    """Returns the shape of one sample, or a dict of these by input; None where a size is 0."""
    if not isinstance(x, dict):
        return x.shape[1:]
    return {name: array.shape[1:] for name, array in x.items() if 0 not in array.shape} or None


def with_ranges(aware, x):
    """Returns a quantized model after two batches of training without changes of weights."""
    import keras

    for layer in aware._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # or the ranges would be those of other statistics
    for half in (slice(0, 16), slice(16, 32)):
        batch = {k: a[half] for k, a in x.items()} if isinstance(x, dict) else x[half]
        aware(batch, training=True)
    return aware


def row(figures):
    """Returns one line of the table."""
    cells = [figures["model"], f"{figures['parameters']:,}", f"{figures['float_bytes']:,}"]
    qat, ptq = figures["qat"], figures["ptq"]
    sizes = [found["bytes"] for found in (qat, ptq) if "bytes" in found]
    whole = figures["float_bytes"]
    cells.append(f"{sizes[0] / whole:.2f}x" if sizes and whole else "")
    for found, columns in ((qat, ("rmse", "max_lsb")), (ptq, ("rmse",))):
        if "error" in found:
            cells += [" ".join(found["error"].split())[:120], *[""] * len(columns)]
            continue
        operations = ", ".join(f"{op} {n}" for op, n in found["float_ops"].items())
        cells.append(f"{found['float_tensors']}" + (f" ({operations})" if operations else ""))
        cells += [f"{found[c]:.4f}" if c == "rmse" else f"{found[c]:.0f}" for c in columns]
    return [*cells, f"{figures['seconds']:.0f}"]


def page(results):
    """Returns the page: what was measured, and the table."""
    clean = [r for r in results if r["qat"].get("float_tensors") == 0]
    close = [r for r in clean if r["qat"]["rmse"] <= 0.01]
    lines = [TEXT.format(families=len(results), clean=len(clean), close=len(close))]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(row(figures)) + " |" for figures in results]
    return "\n".join(lines) + "\n"


def main():
    """Measures the families that were asked for, and writes the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--families", default="*")
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("kerashub.json"))
    options = parser.parse_args()
    from benchmarks.kerashub_families import FAMILIES

    kept = json.loads(options.json.read_text()) if options.json.exists() else {}
    for name in FAMILIES:
        if name in kept or not fnmatch.fnmatch(name, options.families):
            continue
        context = multiprocessing.get_context("spawn")
        try:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                kept[name] = pool.submit(measured, name).result()
        except concurrent.futures.process.BrokenProcessPool:
            died = {"error": "the runtime dies on the file"}
            kept[name] = {"model": name, "parameters": 0, "float_bytes": 0, "seconds": 0}
            kept[name] |= {"qat": died, "ptq": died}
        options.json.write_text(json.dumps(kept, indent=1))
        print("| " + " | ".join(row(kept[name])) + " |", flush=True)
    PAGE.write_text(page([kept[name] for name in FAMILIES if name in kept]))


if __name__ == "__main__":
    main()
