"""Files compiled by Vela."""

import pathlib

import numpy as np
import pytest
from keras import layers as L

import tfcompress as tfc
from tests.cli.conftest import run
from tests.devices.conftest import export
from tfcompress.devices.ethos_u import ACCELERATORS
from tfcompress.devices.micro_file import operations_of
from tfcompress.devices.outcome import DEVICES, check_device, outcome
from tfcompress.tflite.parts import objects_of

pytest.importorskip("ethosu")


@pytest.mark.parametrize("accelerator", ["ethos-u55-64", "ethos-u65-256", "ethos-u85-512"])
def test_an_integer_file_runs_wholly_on_the_npu(integer_file, accelerator):
    result = tfc.compile_ethos_u(integer_file[0], accelerator)
    assert result.share_on_npu == 1 and result.on_cpu == {} and result.reasons == []
    assert set(operations_of(objects_of(result.content))) == {"ethos-u"}
    assert result.cycles > 100 and 0 < result.milliseconds < 10
    assert result.sram_bytes > 12 * 12 * 8 and result.flash_bytes + result.dram_bytes > 500


def test_what_stays_on_the_cpu_has_a_reason(gelu_file):
    result = tfc.compile_ethos_u(gelu_file)
    assert result.on_cpu["GELU"] == 1 and 0 < result.share_on_npu < 1
    kinds = [kind for kind, _, _ in result.reasons]
    assert {kind: kinds.count(kind) for kind in kinds} == result.on_cpu
    assert all(reason for _, _, reason in result.reasons)
    assert "on the CPU: GELU" in str(result)


def test_zeros_take_less_flash(tmp_path):
    """Vela's compression of weights pays for pruning: what the docs say of it."""

    def dense(share):
        def outputs_of(x):
            layer = L.Dense(256)
            layer.build((None, 256))
            kernel = np.random.default_rng(0).normal(size=(256, 256))
            kernel[np.abs(kernel) < np.quantile(np.abs(kernel), share)] = 0
            layer.kernel.assign(kernel / 16)
            return layer(x)

        return outputs_of

    sizes = []
    for share in (0.0, 0.8):
        path, _ = export(tmp_path / "m.tflite", dense(share), (256,), io_dtype="int8")
        sizes.append(tfc.compile_ethos_u(path).flash_bytes)
    assert sizes[1] < 0.6 * sizes[0]


def test_the_compiled_file_is_written(integer_file, tmp_path):
    result = tfc.compile_ethos_u(integer_file[0])
    result.save(tmp_path / "vela.tflite")
    assert (tmp_path / "vela.tflite").read_bytes() == result.content
    assert "content" not in result.as_dict()


def test_bad_input(integer_file, monkeypatch, tmp_path):
    path, _ = integer_file
    with pytest.raises(ValueError, match=r"one of ethos-u55-32.*Received: 'u55'"):
        tfc.compile_ethos_u(path, "u55")
    with pytest.raises(ValueError, match="Vela cannot compile.*nonsense"):
        tfc.compile_ethos_u(path, system_config="nonsense")
    scheme = tfc.QuantizationScheme(weight_bits=4, prefer="bytes")
    four, _ = export(tmp_path / "four.tflite", lambda x: L.Dense(64)(x), (64,), scheme=scheme)
    with pytest.raises(ValueError, match=r"4-bit weights.*scheme='int8'"):
        tfc.compile_ethos_u(four)
    with pytest.raises(ValueError, match=r"devices must be of tflite-micro.*Received: 'tpu'"):
        tfc.compare({"m": path}, devices=("tpu",))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tfcompress\[micro\]"):
        tfc.compile_ethos_u(path)
    for device in DEVICES:
        with pytest.raises(ImportError, match=r"tfcompress\[micro\]"):
            check_device(device)


def test_in_words(integer_file, gelu_file):
    content, other = (pathlib.Path(path).read_bytes() for path in (integer_file[0], gelu_file))
    assert outcome(content, "tflite-micro").startswith("arena ")
    assert outcome(other, "tflite-micro") == "lacks GELU"
    assert outcome(content, ACCELERATORS[0]).startswith("100%, ")


def test_columns_of_the_comparison(integer_file, gelu_file, tmp_path):
    devices = ("tflite-micro", "ethos-u55-128")
    files = {"integers": integer_file[0], "gelu": gelu_file}
    comparison = tfc.compare(files, runs=3, devices=devices)
    assert comparison["gelu"].devices["tflite-micro"] == "lacks GELU"
    assert comparison["integers"].devices["ethos-u55-128"].startswith("100%, ")
    assert "GELU" in str(comparison)
    comparison.to_html(tmp_path / "page.html")
    assert "lacks GELU" in (tmp_path / "page.html").read_text()


def test_the_command(integer_file, tmp_path):
    target = tmp_path / "compiled.tflite"
    process = run("vela", integer_file[0], "-o", target)
    assert process.exit_code == 0 and "100% of" in process.stdout and target.exists()
    process = run("vela", integer_file[0], "--accelerator", "u55")
    assert process.exit_code == 1 and "ethos-u85-2048" in process.stderr
