"""What targets take of a file: asked, run and compiled."""

import pytest

import tfcompress as tfc
from tests.cli.conftest import run
from tests.devices.conftest import export, small

pytest.importorskip("tflite_micro")
pytest.importorskip("ethosu")


@pytest.mark.parametrize("target", ["xnnpack", "tflite-micro", "ethos-u55-32", "ethos-u85-256"])
def test_an_integer_file_fits(integer_file, target):
    report = tfc.check_target(integer_file[0], target)
    # XNNPACK has no average pooling in int8, which "exactness" takes.
    expected = ["AVERAGE_POOL_2D"] if target == "xnnpack" else []
    assert [issue.operation for issue in report.issues] == expected
    assert report.fits == (not expected) and report.operations >= 3
    text = " ".join(str(report).split())  # a long path is folded
    assert f"all {report.operations} operations" in text or expected


def test_what_an_npu_leaves_is_named_with_what_helps(gelu_file):
    report = tfc.check_target(gelu_file, "ethos-u55-128")
    compiled = tfc.compile_ethos_u(gelu_file, "ethos-u55-128")
    kinds = [issue.operation for issue in report.issues]
    assert {kind: kinds.count(kind) for kind in kinds} == compiled.on_cpu
    gelu = next(issue for issue in report.issues if issue.operation == "GELU")
    assert gelu.layer.startswith("conv2d") and "Float32" in gelu.reason
    assert 'prefer="exactness"' in gelu.change and report.partitions == 2
    assert "what helps" in str(report)


def test_the_change_helps(tmp_path):
    """A file that was made by the advice fits."""
    scheme = tfc.QuantizationScheme(prefer="exactness")
    from keras import layers as L

    path, _ = export(
        tmp_path / "m.tflite",
        lambda x: small(L.Conv2D(8, 3, activation="gelu")(x)),
        scheme=scheme,
        io_dtype="int8",
    )
    assert tfc.check_target(path, "ethos-u55-128").fits


def test_what_tflite_micro_lacks(gelu_file):
    report = tfc.check_target(gelu_file, "tflite-micro")
    (issue,) = report.issues
    assert issue.operation == "GELU" and issue.reason == "no kernel"
    assert "another activation" in issue.change and report.partitions == 0


def test_bad_input(integer_file):
    with pytest.raises(ValueError, match="one of xnnpack, .*ethos-u85-2048. Received: 'tpu'"):
        tfc.check_target(integer_file[0], "tpu")


def test_the_command(integer_file, gelu_file):
    assert run("check", integer_file[0], "--target", "ethos-u55-128").exit_code == 0
    process = run("check", gelu_file, "--target", "tflite-micro", "--json")
    assert process.exit_code == 1 and '"GELU"' in process.stdout
