"""Models saved before the package was rearranged load, and compute what they did."""

import ast
import json
import pathlib
import subprocess
import sys
import zipfile

import pytest

FOLDER = pathlib.Path(__file__).parent / "saved_models"
PACKAGE = pathlib.Path(__file__).parent.parent / "tfcompress"
FILES = sorted(FOLDER.glob("*.keras"))

LOADING = """
import sys
import tfcompress
import keras, numpy as np
print("registered", sorted(keras.saving.get_custom_objects()))
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    saved = np.load(path.replace(".keras", ".npz"))
    weights = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.weights]
    expected = [saved[f"weight_{i}"] for i in range(len(weights))]
    assert f"weight_{len(weights)}" not in saved.files, path
    assert all(np.array_equal(a, b) for a, b in zip(weights, expected)), path
    outputs = keras.tree.flatten(model(saved["x"], training=False))
    for i, output in enumerate(outputs):
        difference = np.abs(keras.ops.convert_to_numpy(output) - saved[f"output_{i}"]).max()
        assert difference <= 1e-5 * max(1, np.abs(saved[f"output_{i}"]).max()), (path, difference)
    print("loaded", path)
"""


def registered_classes():
    """Returns the names of all classes of the package that Keras saves under a name of ours."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            for mark in (
                getattr(node, "decorator_list", ()) if isinstance(node, ast.ClassDef) else ()
            ):
                if "register_keras_serializable" in ast.unparse(mark):
                    names = [word.value.value for word in mark.keywords if word.arg == "name"]
                    yield names[0] if names else node.name


def named_in(config):
    if isinstance(config, dict):
        yield str(config.get("registered_name")).removeprefix("tfcompress>")
        config = config.values()
    for value in config if not isinstance(config, (str, int, float, type(None))) else ():
        yield from named_in(value)


def test_every_registered_class_was_saved():
    saved = set()
    for path in FILES:
        with zipfile.ZipFile(path) as archive:
            saved.update(named_in(json.loads(archive.read("config.json"))))
    assert set(registered_classes()) - saved == set()


@pytest.mark.parametrize("import_first", ["", "import keras; keras.models\n"])
def test_saved_models_load_in_a_fresh_process_and_compute_the_same(import_first):
    command = [sys.executable, "-c", import_first + LOADING, *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("loaded") == len(FILES) > 15
    names = ast.literal_eval(done.stdout.splitlines()[0].removeprefix("registered "))
    assert {f"tfcompress>{name}" for name in registered_classes()} <= set(names)
