"""The house keeps its shape: imports flow down, modules stay small."""

import ast
import pathlib

import pytest

import tfcompress

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "tfcompress"
LAYERS = [
    "__init__",
    "errors",
    "files",
    "archives",
    "process",
    "stderr",
    "progress",
    "tables",
    "scheme",
    "data",
    "transforms",
    "graph",
    "wrap",
    "probes",
    "data_checks",
    "rewrite",
    "ptq",
    "tflite",
    "distill",
    "callbacks",
    "backup",
    "agreement",
    "ends",
    "preflight",
    "export",
    "tune",
    "distributions",
    "report",
    "comparison",
    "legacy",
    "demo",
    "cli",
    "__main__",
]
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(module):
    """Returns the top-level part of the package that a dotted name or a path belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_flow_down(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":  # loads names lazily, and imports for type checkers only
        return
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.split(".")[0] == "tfcompress":
                assert LAYERS.index(room(name)) <= LAYERS.index(own), f"{path} imports {name}"


def test_every_room_is_listed():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES}
    assert rooms == set(LAYERS)


def test_modules_are_small():
    too_long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not too_long


def test_only_tflite_the_cache_gradients_and_keras_2_import_tensorflow():
    """The cache of a teacher is a tf.data pipeline; Taylor scores are gradients; TensorBoard."""
    inside = {"tflite", "cache.py", "cached.py", "scoring.py", "legacy", "callbacks.py"}
    outside = [p for p in MODULES if not inside & set(p.relative_to(PACKAGE).parts)]
    for path in outside:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "tensorflow" for n in names), path


def test_no_assert_in_library_code():
    for path in MODULES:
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))), (
            path
        )


def test_no_module_hides_a_public_name():
    """Importing tfcompress.x would put the module where tfcompress.x, the function, is."""
    modules = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES}
    assert not modules & set(tfcompress.__all__)
