"""What the documentation shows is run."""

import ast
import doctest
import importlib
import re

import pytest

import tfcompress as tfc
from tests.conftest import ROOT

PUBLIC = sorted(name for name in tfc.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_in_docstrings(name, monkeypatch, quiet):
    monkeypatch.chdir(ROOT)
    public = getattr(tfc, name)
    module = importlib.import_module(public.__module__)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in doctest.DocTestFinder(recurse=False).find(public, name, module=module):
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_documented(name):
    public = getattr(tfc, name)
    text = public.__doc__
    assert text and text.splitlines()[0].endswith("."), name
    is_result = hasattr(public, "__dataclass_fields__")
    is_error = isinstance(public, type) and issubclass(public, (Exception, Warning))
    if not (is_result or is_error):
        assert "Example:" in text and "Args:" in text, name


def test_the_readme_example_runs(tmp_path, monkeypatch, fashion, quiet):
    """The Python of the README, in order, on small data and with one epoch."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    code = "\n".join(blocks)
    ast.parse(code)
    code = re.sub(r"epochs ?= ?\d+", "epochs=1", code)
    monkeypatch.chdir(tmp_path)
    x, y, x_test, y_test = (a[:256] for a in fashion)
    from tfcompress.demo.models import resnet

    names = {
        "x_train": x,
        "y_train": y,
        "x_val": x_test,
        "y_val": y_test,
        "x_test": x_test,
        "y_test": y_test,
        "teacher": resnet(name="teacher"),
        "student": resnet((4, 8), 2, "student"),
    }
    exec(code, names)
    assert (tmp_path / "student.tflite").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["teacher_assistant", "distillation_token", "distil_text"])
def test_the_other_examples_run(name, python):
    script = (ROOT / "examples" / f"{name}.py").read_text()
    out = python(f"import sys; sys.argv = ['x', '--fast']\nexec({script!r})", timeout=600)
    assert "student" in out and "accuracy" in out


EXAMPLES = {
    "remove_channels": "after cut 3",
    "compose": "pruned + QAT + distilled",
    "prune": "blocks of 4",
    "quantize": "w4a8, trained",
    "mixed_precision": "mixed",
    "low_rank": "rank 16, trained on",
    "transfer_learning": "float tensors inside: 0",
}


LONG = ("compose low_rank mixed_precision prune quantize remove_channels transfer_learning").split()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        pytest.param(*example, marks=pytest.mark.slow if example[0] in LONG else ())
        for example in EXAMPLES.items()
    ],
)
def test_the_examples_of_one_technique_run(name, said, python):
    script = (ROOT / "examples" / f"{name}.py").read_text()
    assert said in python(f"import sys; sys.argv = ['x', '--fast']\nexec({script!r})", timeout=600)


@pytest.mark.slow
def test_the_example_of_keras_2_runs(python):
    pytest.importorskip("tf_keras")
    script = (ROOT / "examples" / "keras2.py").read_text()
    out = python(f"import sys; sys.argv = ['x', '--fast']\nexec({script!r})", timeout=600)
    assert "zeros in the weights" in out and "largest difference" in out


def test_every_example_is_run():
    named = {*EXAMPLES, "keras2", "compress_your_model"}
    slow = {"teacher_assistant", "distillation_token", "distil_text", "many_machines"}
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == named | slow


def test_the_example_script_runs(python):
    script = (ROOT / "examples" / "compress_your_model.py").read_text()
    assert len(script.splitlines()) < 60
    out = python(f"import sys; sys.argv = ['x', '--fast']\nexec({script!r})", timeout=600)
    assert "student" in out and "gzip" in out
