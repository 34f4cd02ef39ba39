"""Runs files on their inputs and stores their outputs; run by the Python of another processor.

Imports nothing but numpy and the runtime: python arm_child.py FOLDER, which holds NAME.tflite and
NAME.npz for each file, and gets NAME.out.npz.
"""

import pathlib
import sys

import numpy as np


def outputs_of(interpreter, inputs):
    """Returns the outputs for each sample, stacked."""
    ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
    results = [[] for _ in outs]
    for sample in range(len(inputs["0"])):
        for position, details in enumerate(ins):
            value = inputs[str(position)][sample : sample + 1]
            interpreter.set_tensor(details["index"], value.reshape(details["shape"]))
        interpreter.invoke()
        for result, details in zip(results, outs, strict=True):
            result.append(interpreter.get_tensor(details["index"]).copy())
    return {str(i): np.stack(result) for i, result in enumerate(results)}


def main(folder):
    from ai_edge_litert.interpreter import Interpreter

    for path in sorted(pathlib.Path(folder).glob("*.tflite")):
        interpreter = Interpreter(str(path), num_threads=1)
        interpreter.allocate_tensors()
        inputs = np.load(path.with_suffix(".npz"))
        np.savez(path.with_suffix(".out.npz"), **outputs_of(interpreter, inputs))


if __name__ == "__main__":
    main(sys.argv[1])
