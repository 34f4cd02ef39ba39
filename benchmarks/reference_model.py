"""Puts the student of a demo run into tflite_models/, with its manifest.

Run by hand after `tfcompress demo`: python -m benchmarks.reference_model demo-output
"""

import hashlib
import json
import pathlib
import shutil
import sys

import tensorflow as tf

import tfcompress as tfc

NAME = "fashion_mnist_student_int8.tflite"
FOLDER = pathlib.Path(__file__).resolve().parent.parent / "tflite_models"


def main():
    source = pathlib.Path(sys.argv[1])
    told = json.loads((source / "demo.json").read_text())
    shutil.copy(source / "student.tflite", FOLDER / NAME)
    report = tfc.inspect_tflite(FOLDER / NAME)
    entry = {
        "accuracy": told["student_int8"]["accuracy"],
        "measured_on": "the first 5,000 test images of Fashion-MNIST, values in [0, 1]",
        "bytes": report.bytes,
        "gzip_bytes": report.gzip_bytes,
        "sha256": hashlib.sha256((FOLDER / NAME).read_bytes()).hexdigest(),
        "sparsity": report.sparsity,
        "parameters": told["student_int8"]["parameters"],
        "inputs": report.inputs,
        "outputs": report.outputs,
        "made_by": "tfcompress demo; distilled from a ResNet of 78,426 parameters, pruned and "
        "quantization-aware in one fit",
        "made_with": f"tfcompress {tfc.__version__}, TensorFlow {tf.__version__}",
    }
    (FOLDER / "manifest.json").write_text(json.dumps({NAME: entry}, indent=2) + "\n")


if __name__ == "__main__":
    main()
