"""Files as C, compiled by a C compiler and compared byte by byte."""

import re
import shutil
import subprocess

import numpy as np
import pytest

import tfcompress as tfc
from tests.cli.conftest import done, run
from tests.cli.conftest import work as work  # a fixture
from tfcompress.devices.c_source import _method

COMPILER = shutil.which("g++")
STUB = """
#include <cstdio>
#include "{model}.h"
#include "{golden}.h"
struct Resolver {{
  int count = 0;
{methods}
}};
int main() {{
  Resolver resolver;
  bool ok = {model}_add_operations(resolver) && resolver.count == {upper}_OPERATIONS;
  ok &= reinterpret_cast<unsigned long>({model}_tflite) % 16 == 0;
  std::fwrite({model}_tflite, 1, {model}_tflite_size, stdout);
  std::fwrite({golden}_output_0, 1, sizeof {golden}_output_0, stdout);
  return !ok;
}}
"""


@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler")
def test_a_program_holds_the_file_and_what_it_must_put_out(integer_file, tmp_path):
    path, x = integer_file
    source, header = tfc.write_c_source(path, tmp_path / "my-model.c")
    archive, _ = tfc.write_golden(path, x, tmp_path / "golden.npz", count=5)
    text = header.read_text()
    methods = re.findall(r"resolver\.(\w+)\(", text)
    program = tmp_path / "main.cc"
    program.write_text(
        STUB.format(
            model="my_model",
            golden="golden",
            upper="MY_MODEL",
            methods="\n".join(f"  int {name}() {{ ++count; return 0; }}" for name in methods),
        ).replace('"my_model.h"', '"my-model.h"')
    )
    strict = [COMPILER, "-Wall", "-Wextra", "-Werror", "-I", str(tmp_path)]
    compiled = tmp_path / "model.o"
    subprocess.run([*strict, "-x", "c", "-std=c11", "-c", source, "-o", compiled], check=True)
    subprocess.run([*strict, program, compiled, "-o", tmp_path / "main"], check=True)
    output = subprocess.run([tmp_path / "main"], capture_output=True, check=True).stdout
    with open(path, "rb") as file:
        content = file.read()
    assert output[: len(content)] == content
    values = np.frombuffer(output[len(content) :], np.int8).reshape(5, 4)
    np.testing.assert_array_equal(values, tfc.run_micro(path, x[:5]).quantized)
    arena = int(re.search(r"ARENA_BYTES (\d+)", text)[1])
    assert arena == tfc.run_micro(path).arena_bytes


def test_golden_vectors_of_both_kernels(integer_file, tmp_path):
    path, x = integer_file
    archive, header = tfc.write_golden(path, x, tmp_path / "golden.npz", count=6)
    stored, model = np.load(archive), tfc.TFLiteModel(path)
    assert set(stored) == {"inputs_image", "outputs_scores", "micro_scores"}
    outputs = model.outputs[0].quantized(model.predict(x[:6]))
    np.testing.assert_array_equal(stored["outputs_scores"], outputs)
    np.testing.assert_array_equal(stored["inputs_image"], model.inputs[0].quantized(x[:6]))
    assert "tflite-micro" in header.read_text()


def test_golden_vectors_where_tflite_micro_lacks_something(gelu_file, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 12, 12, 8))
    archive, header = tfc.write_golden(gelu_file, x, tmp_path / "golden.npz", count=2)
    stored = np.load(archive)
    assert set(stored) == {"inputs_image", "outputs_scores"}
    assert "LiteRT with XNNPACK" in header.read_text() and "0x1." in header.read_text()


def test_names_of_the_resolver():
    assert [_method(kind) for kind in ("CONV_2D", "MAX_POOL_2D", "BATCH_MATMUL", "RELU6")] == [
        "AddConv2D",
        "AddMaxPool2D",
        "AddBatchMatMul",
        "AddRelu6",
    ]


def test_bad_input(integer_file, gelu_file, tmp_path):
    path, x = integer_file
    with pytest.raises(ValueError, match=r"must end in \.c\."):
        tfc.write_c_source(path, tmp_path / "m.txt")
    with pytest.raises(ValueError, match="no kernel for GELU"):
        tfc.write_c_source(gelu_file, tmp_path / "m.c")
    with pytest.raises(ValueError, match="count is 500, and x has 128"):
        tfc.write_golden(path, x, tmp_path / "m.npz", count=500)
    with pytest.raises(ValueError, match=r"must end in \.npz"):
        tfc.write_golden(path, x, tmp_path / "m.h")
    assert not list(tmp_path.iterdir())


def test_the_options_of_export(work, tmp_path):
    file, data = tmp_path / "m.tflite", work / "data.npz"
    options = ("--data", data, "--io-dtype", "int8", "--c-array", "--golden", 4)
    done("export", work / "model.keras", "-o", file, *options)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"m.tflite", "m.c", "m.h", "m_golden.npz", "m_golden.h"}
    refused = run("export", work / "model.keras", "-o", file, "--golden", 4)
    assert refused.exit_code == 1 and "--golden needs --data" in refused.stderr
