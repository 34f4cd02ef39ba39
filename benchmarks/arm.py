"""The table of docs/exactness.md: files on ARM processors, beside x86 and beside their models.

Runs every kind of layer (those of tests/test_layers.py, ranges measured), 15 families of
keras.applications at 224x224, the student in tflite_models/ and, where keras-hub is installed, six
of its families, on emulated processors (arm_machine.py). Run by hand, about 20 minutes:
python -m benchmarks.arm [--part layers|families|student|kerashub] [--cpu cortex-a72]
"""

import argparse
import importlib
import pathlib
import shutil
import tempfile

import numpy as np

from benchmarks import arm_child, arm_machine

STUDENT = pathlib.Path(__file__).resolve().parent.parent / "tflite_models"
SAMPLES = 4


def layers(folder):
    """Writes files of every kind of layer, and what their models compute."""
    import keras

    import tfcompress as tfc
    from tests import test_layers
    from tfcompress.graph.run import outputs_of
    from tfcompress.post_training.pipeline import post_training

    scheme = tfc.QuantizationScheme(activation_range="min_max", correct_bias=False)
    for number, (name, build) in enumerate(test_layers.INTEGER.items()):
        keras.utils.set_random_seed(1)
        model = build()
        data = test_layers.samples(model, 64, 0)
        path = folder / f"{number:03}.tflite"
        tfc.export_tflite(
            model, path, scheme=scheme, representative_dataset=data, metadata=False, verbose=False
        )
        measured = post_training(model, scheme, data)
        few = {key: value[:SAMPLES] for key, value in data.items()}
        yield name, path, few, outputs_of(measured, few)


def families(folder):
    """Writes files of keras.applications."""
    import tfcompress as tfc
    from benchmarks.latency import MODELS, family

    for number, name in enumerate(MODELS):
        model, samples = family(name)
        path = folder / f"{number:03}.tflite"
        tfc.export_tflite(
            model, path, representative_dataset=samples, metadata=False, verify=False, verbose=False
        )
        yield name, path, samples[:SAMPLES], None


def student(folder):
    """Copies the shipped file."""
    from tfcompress.demo.data import load

    path = folder / "000.tflite"
    shutil.copy(STUDENT / "fashion_mnist_student_int8.tflite", path)
    yield "the demo's student", path, load().x_test[:300], None


def kerashub(folder):
    """Writes files of small networks of KerasHub."""
    import tfcompress as tfc
    from tfcompress.graph.read import input_specs

    hub = importlib.import_module("keras_hub").models
    small = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
    text = {**small, "intermediate_dim": 32, "max_sequence_length": 12}
    resnet = {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [3],
        "stackwise_num_filters": [64, 128],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "image_shape": (32, 32, 3),
    }
    vit = {"image_shape": (32, 32, 3), "patch_size": 8, "num_layers": 2, "num_heads": 2}
    vit |= {"hidden_dim": 16, "mlp_dim": 32}
    makers = {
        "Bert": lambda: hub.BertBackbone(**text),
        "DistilBert": lambda: hub.DistilBertBackbone(**text),
        "Roberta": lambda: hub.RobertaBackbone(**text),
        "ViT": lambda: hub.ViTBackbone(**vit),
        "ResNet": lambda: hub.ResNetBackbone(
            block_type="basic_block", use_pre_activation=False, **resnet
        ),
        "VGG": lambda: hub.VGGBackbone([1, 1], [8, 16], image_shape=(32, 32, 3)),
    }
    generator = np.random.default_rng(0)
    for number, (name, make) in enumerate(makers.items()):
        model = make()
        data = {}
        names = [spec.name for spec in input_specs(model)]
        for name_of_input, tensor in zip(names, model.inputs, strict=True):
            shape = (128, *(size or 12 for size in tensor.shape[1:]))
            if "int" in tensor.dtype:
                high = 2 if "mask" in tensor.name or "segment" in tensor.name else 50
                data[name_of_input] = generator.integers(0, high, shape).astype("int32")
            else:
                data[name_of_input] = generator.normal(size=shape).astype("float32")
        path = folder / f"{number:03}.tflite"
        open_ones = any(None in tensor.shape[1:] for tensor in model.inputs)
        shapes = {key: value.shape[1:] for key, value in data.items()} if open_ones else None
        tfc.export_tflite(
            model, path, representative_dataset=data, input_shape=shapes, metadata=False,
            verbose=False,
        )  # fmt: skip
        yield name, path, {key: value[:SAMPLES] for key, value in data.items()}, None


PARTS = {"student": student, "layers": layers, "families": families, "kerashub": kerashub}


def stored_inputs(path, data):
    """Writes the inputs of a file in the order and types of the runtime."""
    import tfcompress as tfc

    model = tfc.TFLiteModel(path)
    infos = {info.index: info for info in model.inputs}
    details = model.interpreter.get_input_details()
    named = [infos[d["index"]] for d in details]
    data = data if isinstance(data, dict) else {named[0].name: data}
    arrays = {str(i): info.quantized(data[info.name]) for i, info in enumerate(named)}
    np.savez(path.with_suffix(".npz"), **arrays)
    return {str(i): _lsb(model, d["index"]) for i, d in enumerate(_outputs(model))}


def _outputs(model):
    return model.interpreter.get_output_details()


def _lsb(model, index):
    """Returns the scale of an output, or of the integers that it is dequantized from."""
    interpreter = model.interpreter
    scales = {d["index"]: d["quantization"][0] for d in interpreter.get_tensor_details()}
    for operation in interpreter._get_ops_details():
        if operation["op_name"] == "DEQUANTIZE" and index in operation["outputs"]:
            return scales[operation["inputs"][0]]
    return 1.0 if scales[index] else None


def results(folder):
    """Returns the outputs that a run left, by file."""
    return {p.name[:3]: dict(np.load(p)) for p in sorted(folder.glob("*.out.npz"))}


def compared(first, second, scales):
    """Returns (values, how many differ, by how many LSB at most)."""
    values = different = 0
    most = 0.0
    for key, one in first.items():
        other = second[key]
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64)).ravel()
        values, different = values + difference.size, different + int((difference > 0).sum())
        if difference.size and scales[key]:
            most = max(most, float(difference.max()) / scales[key])
    return values, different, most


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--cpu", action="append")
    options = parser.parse_args()
    for part in options.part or PARTS:
        if part == "kerashub" and importlib.util.find_spec("keras_hub") is None:
            print("\nkeras-hub is not installed: its families are left out")
            continue
        with tempfile.TemporaryDirectory() as home:
            folder, names, scales, models = pathlib.Path(home), {}, {}, {}
            for name, path, data, computed in PARTS[part](folder):
                names[path.stem], scales[path.stem] = name, stored_inputs(path, data)
                models[path.stem] = computed
            arm_child.main(home)
            here = results(folder)
            cpus = options.cpu or arm_machine.CPUS
            print(f"\n## {part}: {len(names)} files\n\n| | {' | '.join(cpus)} |")
            print("|---" * (len(cpus) + 1) + "|", flush=True)
            rows = {key: [] for key in names}
            for cpu in cpus:
                for path in folder.glob("*.out.npz"):
                    path.unlink()
                arm_machine.run(folder, cpu)
                there = results(folder)
                for key, cells in rows.items():
                    cells.append(compared(here[key], there[key], scales[key]))
            for key, cells in rows.items():
                text = [f"{d} of {n}, {m:.0f} LSB" if d else f"0 of {n}" for n, d, m in cells]
                print(f"| {names[key]} | {' | '.join(text)} |", flush=True)
            equal = [
                sum(d == 0 for _, d, _ in column) for column in zip(*rows.values(), strict=True)
            ]
            print(f"| files that are equal | {' | '.join(map(str, equal))} |", flush=True)
            exact = [k for k, m in models.items() if m and _equals(m, here[k])]
            if any(models.values()):
                print(f"\nequal to their model on x86: {len(exact)} of {len(names)}")


def _equals(computed, stored):
    return all(
        any(a.size == b.size and np.array_equal(a.ravel(), b.ravel()) for b in stored.values())
        for a in computed
    )


if __name__ == "__main__":
    main()
