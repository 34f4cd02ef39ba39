"""The house keeps its shape: imports flow down, modules stay small, each is tested."""

import ast
import functools
import pathlib
import re

import pytest

import tfcompress

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfcompress"
FLOORS = (
    "errors files tensorflow_internals archives process stderr progress tables page backends "
    "scheme data transforms graph integer wrap quantization samples distill rewrite tflite "
    "devices lowering post_training export qat measure testing tune callbacks backup recipes "
    "pareto legacy demo cli __main__"
).split()
INTERNALS = ("graph/keras_internals.py", "tensorflow_internals.py")
# Scripts of processes of their own, which import nothing of tfcompress.
SCRIPTS = ("tflite/converter_child.py", "tflite/trial_child.py", "devices/micro_child.py")
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]

TESTED_ELSEWHERE = {
    "export/result": "export/test_export_tflite.py",
    "graph/code_layers": "graph/test_code.py graph/test_any_batch.py",
    "graph/expanded_source": "graph/test_code.py graph/test_inline.py",
    "post_training/noise": "tune/test_precision.py export/test_auto_scheme.py",
    "__init__": "test_architecture.py test_process.py",
    "__main__": "cli/test_cli.py",
    "cli/__init__": "cli/test_cli.py",
    "cli/data": "cli/test_work.py cli/test_mistakes.py",
    "cli/commands/compress": "cli/test_work.py",
    "cli/commands/devices": "devices/test_micro.py devices/test_ethos_u.py devices/test_lut.py",
    "cli/commands/training": "cli/test_work.py cli/test_train.py",
    "cli/commands/measure": "cli/test_work.py",
    "cli/options": "cli/test_mistakes.py",
    "demo/data": "demo/test_demo.py",
    "demo/main": "demo/test_demo.py",
    "demo/models": "demo/test_demo.py",
    "demo/plot": "demo/test_demo.py",
    "devices/facts": "devices/test_target.py",
    "devices/micro_child": "devices/test_micro.py",
    "devices/micro_file": "devices/test_micro.py devices/test_lut.py",
    "devices/outcome": "devices/test_ethos_u.py measure/test_comparison.py",
    "distill/cached": "distill/test_cache.py",
    "distill/losses/base": "distill/losses/test_response.py distill/test_distiller.py",
    "distill/shards": "distill/test_cache.py",
    "distill/teachers": "distill/test_distiller.py",
    "errors": "export/test_export_tflite.py",
    "export/agreement": "test_exactness.py test_tampering.py",
    "export/io_metadata": "tflite/test_metadata.py",
    "graph/fingerprint": "recipes/test_run.py tune/test_precision.py",
    "graph/keras_internals": "graph/test_read.py graph/test_clone.py distill/test_features.py",
    "graph/kernel_axes": "post_training/test_equalize.py post_training/test_adaround.py",
    "graph/layers": "quantization/test_canonicalize.py quantization/test_placement.py",
    "graph/plain_layers": "quantization/test_canonicalize.py",
    "graph/weights": "wrap/test_wrapper.py",
    "integer/affine": "integer/test_producers.py",
    "integer/fake_quant": "quantization/test_activation_quantizer.py",
    "integer/grid_ops": "tflite/test_mixed_bits.py",
    "integer/integer_sums": "integer/test_producers.py",
    "integer/role_queries": "quantization/test_placement.py",
    "integer/trace": "integer/test_producers.py quantization/test_following_quantizer.py",
    "legacy/__init__": "test_legacy.py",
    "legacy/convert": "test_legacy.py",
    "legacy/ranges": "test_legacy.py",
    "lowering/affine_conv": "test_exactness.py",
    "lowering/biases": "test_exactness.py",
    "lowering/clipping": "quantization/test_placement.py",
    "lowering/conv3d": "test_odd_graphs.py test_every_layer.py",
    "lowering/einsum": "test_odd_graphs.py graph/test_expand.py",
    "lowering/lower": "lowering/test_strip.py test_exactness.py",
    "lowering/normalization": "lowering/test_strip.py",
    "lowering/context": "lowering/test_strip.py test_exactness.py",
    "lowering/rules/activations": "quantization/test_placement.py",
    "lowering/rules/linear": "test_exactness.py lowering/test_one_channel.py",
    "lowering/rules/lookup": "integer/test_producers.py",
    "lowering/rules/merge": "tflite/test_mixed_bits.py quantization/test_following_quantizer.py",
    "lowering/rules/movement": "test_odd_graphs.py test_every_layer.py",
    "lowering/rules/normalization": "test_exactness.py lowering/test_strip.py",
    "lowering/rules/quantizers": "test_exactness.py graph/test_augmentation.py",
    "lowering/rules/recurrent": "tflite/test_mixed_bits.py",
    "measure/files_of": "measure/test_comparison.py measure/test_energy.py",
    "measure/weight_histograms": "measure/test_report.py",
    "page": "measure/test_report.py pareto/test_search_page.py",
    "pareto/objectives": "pareto/test_search.py",
    "pareto/result": "pareto/test_search.py",
    "pareto/space": "pareto/test_search.py",
    "pareto/words": "pareto/test_search.py",
    "pareto/attempt": "pareto/test_search.py",
    "pareto/worker": "pareto/test_search.py",
    "post_training/fold_batch_norm": "post_training/test_equalize.py",
    "post_training/pipeline": "post_training/test_calibrate.py export/test_export_tflite.py",
    "progress": "cli/test_cli.py demo/test_demo.py",
    "qat": "quantization/test_quantize.py devices/test_for_target.py",
    "quantization/canonical_wrapping": "quantization/test_canonicalize.py",
    "quantization/emit_quantizers": "quantization/test_placement.py",
    "quantization/layers/recurrent_cells": "quantization/layers/test_recurrent.py",
    "quantization/layers/recurrent_values": "quantization/layers/test_recurrent.py",
    "quantization/layers/activations": "quantization/test_canonicalize.py",
    "quantization/layers/base": "quantization/test_canonicalize.py integer/test_producers.py",
    "quantization/layers/linear": "quantization/test_canonicalize.py",
    "quantization/layers/movement": "quantization/test_placement.py",
    "quantization/layers/pooling": "quantization/test_canonicalize.py",
    "quantization/layers/precise": "quantization/test_kept_in_float.py",
    "quantization/layers/time_distributed": "quantization/test_canonicalize.py",
    "quantization/layers/merge": "integer/test_elementwise.py",
    "quantization/layers/normalization": "integer/test_producers.py",
    "quantization/quantized_models": "quantization/test_quantize.py",
    "quantization/state": "lowering/test_strip.py post_training/test_calibrate.py",
    "quantization/tensor_state": "quantization/test_placement.py",
    "recipes/apply": "recipes/test_run.py",
    "recipes/fitting": "cli/test_train.py recipes/test_run.py",
    "recipes/losses": "cli/test_train.py",
    "recipes/recipe": "recipes/test_parse.py",
    "recipes/reproduce": "recipes/test_run.py",
    "recipes/stages": "recipes/test_parse.py",
    "rewrite/channels/coupling": "rewrite/channels/test_rules.py",
    "rewrite/channels/cutting": "tune/test_channels.py rewrite/channels/test_rules.py",
    "rewrite/channels/passing": "rewrite/channels/test_rules.py",
    "rewrite/channels/scoring": "tune/test_channels.py",
    "rewrite/rank": "rewrite/test_low_rank.py",
    "rewrite/separable": "tune/test_student.py",
    "stderr": "test_process.py",
    "tables": "demo/test_demo.py",
    "tensorflow_internals": "tflite/test_convert.py test_process.py",
    "tflite/benchmark": "tflite/test_run.py",
    "tflite/delegates": "devices/test_delegate_report.py",
    "tflite/converter_child": "tflite/test_converter_process.py",
    "tflite/fast_file": "quantization/layers/test_forms.py tflite/test_fast_kernels.py",
    "tflite/fast_convolutions": "quantization/layers/test_forms.py tflite/test_fast_kernels.py",
    "tflite/io_tensors": "tflite/test_run.py",
    "tflite/parts": "tflite/test_profile.py tflite/test_costs.py",
    "tflite/tensor_owners": "measure/test_layer_errors.py",
    "tflite/tensors": "measure/test_layer_errors.py",
    "tflite/trial_child": "tflite/test_trial.py",
    "transforms/base": "transforms/test_mask.py test_docs.py",
    "tune/score": "tune/test_precision.py tune/test_sensitivity.py",
    "wrap/prune": "quantization/test_quantize.py wrap/test_training.py",
    "wrap/sparsity": "quantization/test_quantize.py",
    "wrap/state": "lowering/test_strip.py quantization/test_canonicalize.py",
    "wrap/wrap_layers": "quantization/test_canonicalize.py wrap/test_training.py",
}
"""Where a module is tested that has no test of its name."""


@functools.cache
def parsed(path):
    return ast.parse(path.read_text())


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {dotted(path): path for path in MODULES}


def imported(path):
    """Yields the line and the name of each module that a module imports."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "relative import"
            yield node, node.module
            for alias in node.names:
                if f"{node.module}.{alias.name}" in NAMES:
                    yield node, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)


def floor(path):
    return FLOORS.index(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))


def test_every_folder_has_its_floor():
    rooms = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES}
    assert rooms == {*FLOORS, "__init__"}


def test_scripts_import_nothing_of_the_package():
    for name in SCRIPTS:
        assert not any(n.split(".")[0] == "tfcompress" for _, n in imported(PACKAGE / name)), name


def test_the_page_on_architecture_names_every_floor():
    page = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`(\w+)/?`", page[: page.index("A dot says")])
    assert {*FLOORS} - {"__main__"} <= {*named}


# Imports in a fresh process each, Keras not loaded yet: in any order, all classes get registered.
FRESH = """
import importlib, os, sys
import tensorflow
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException as error:
            print("FAILED", name, repr(error), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_every_module_can_be_the_first_to_be_imported(python):
    names = [name for name in NAMES if not name.endswith("__main__")]
    code = FRESH.replace("sys.argv[1:]", repr(names))
    assert "FAILED" not in python(code, timeout=1200)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_imports_flow_down(path):
    if path == PACKAGE / "__init__.py":  # loads names when they are used
        return
    for node, name in imported(path):
        if name == "tfcompress":
            names = {alias.name for alias in getattr(node, "names", ())}
            assert names <= {"__version__"} or path.parent.name == "cli", f"line {node.lineno}"
        if name in NAMES and name != "tfcompress":
            assert floor(NAMES[name]) <= floor(path), f"line {node.lineno} imports {name}"


def test_no_circle():
    above = {
        path: {NAMES[name] for _, name in imported(path) if name in NAMES} - {path}
        for path in MODULES
        if path != PACKAGE / "__init__.py"
    }
    while above:
        free = [path for path, needs in above.items() if not needs & above.keys()]
        assert free, f"in or behind a circle: {sorted(map(dotted, above))}"
        for path in free:
            del above[path]


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_an_import_hidden_in_a_function_has_its_reason_beside_it(path):
    lines = path.read_text().splitlines()
    reasons = {"cli": "commands start fast: each imports what it needs"}
    if path.relative_to(PACKAGE).parts[0] in reasons or path.name in INTERNALS:
        return
    top = {id(node) for node in parsed(path).body}
    for node, name in imported(path):
        if id(node) not in top and not _if_there(path, node):
            beside = lines[max(node.lineno - 3, 0) : node.end_lineno]
            # Slow to import, or not there on every machine: no reason needs to be given.
            external = name.split(".")[0] in ("tensorflow", "matplotlib", "tf_keras", "scipy")
            assert external or any(
                "#" in line.replace("# noqa", "").replace("# type:", "") for line in beside
            ), f"line {node.lineno}: {name}"


def _if_there(path, node):
    blocks = [n for n in parsed(path).body if isinstance(n, ast.If)]
    blocks += [n for n in ast.walk(parsed(path)) if isinstance(n, ast.Try)]
    return any(node in ast.walk(block) for block in blocks)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_private_names_of_keras_and_tensorflow_stand_in_two_modules(path):
    if str(path.relative_to(PACKAGE)) in (*INTERNALS, *SCRIPTS):
        return
    tree = parsed(path)
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    own |= {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            inherited = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            assert node.attr in own or inherited, f"line {node.lineno}: {ast.unparse(node)}"
            assert node.attr not in PRIVATE, f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert node.value not in PRIVATE, f"line {node.lineno}: {node.value!r}"
    private = ("keras.src", "tensorflow.python", "tensorflow.lite.python")
    for node, name in imported(path):
        assert not name.startswith(private), f"line {node.lineno}: {name}"
        for alias in node.names:
            outside = name.split(".")[0] in ("keras", "tensorflow")
            assert not (outside and alias.name.startswith(("_", "src"))), f"line {node.lineno}"


PRIVATE = set(
    re.findall(r"\b_[a-z]\w+", " ".join((PACKAGE / name).read_text() for name in INTERNALS))
)


def test_modules_are_small():
    too_long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) > 400}
    assert not too_long


def test_only_tflite_the_cache_gradients_and_keras_2_import_tensorflow():
    """The cache of a teacher is a tf.data pipeline; Taylor scores are gradients; TensorBoard."""
    inside = {"tflite", "cache.py", "cached.py", "scoring.py", "legacy", "callbacks.py"}
    inside |= {"tensorflow_internals.py", "backends.py"}
    outside = [p for p in MODULES if not inside & set(p.relative_to(PACKAGE).parts)]
    for path in outside:
        assert not any(name.split(".")[0] == "tensorflow" for _, name in imported(path)), path


def test_no_assert_in_library_code():
    for path in MODULES:
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(parsed(path))), path


def test_no_module_hides_a_public_name():
    """Importing tfcompress.x would put the module where tfcompress.x, the function, is."""
    modules = {p.relative_to(PACKAGE).parts[0].removesuffix(".py") for p in MODULES}
    assert not modules & set(tfcompress.__all__)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_module_has_a_test(path):
    if path.name == "__init__.py" and len(path.read_text().splitlines()) < 40:
        return  # imports and words
    inside = path.relative_to(PACKAGE)
    mirror = ROOT / "tests" / inside.parent / f"test_{inside.stem.strip('_')}.py"
    elsewhere = TESTED_ELSEWHERE.get(inside.with_suffix("").as_posix())
    assert mirror.exists() or elsewhere, f"no {mirror.relative_to(ROOT)}"
    assert not (mirror.exists() and elsewhere), "tested in its own place: take its line out"
    for name in (elsewhere or "").split():
        assert (ROOT / "tests" / name).exists(), name


def test_the_picture_shows_the_imports():
    from docs.draw_architecture import PICTURE, picture  # which reads this module

    fix = "run python -m docs.draw_architecture"
    assert PICTURE.read_text() == picture(), fix
