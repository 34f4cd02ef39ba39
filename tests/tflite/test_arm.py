"""Files on an emulated ARM processor put out the integers of x86 and of their models."""

import numpy as np
import pytest

from benchmarks import arm, arm_child, arm_machine

# SOFTMAX is a built-in kernel, with code of its own for ARM.
DIFFER = {"MultiHeadAttention", "GroupQueryAttention", "softmax"}


def run(part, folder, cpu):
    """Returns the names of the files that differ by processor, and (values, LSB) of the worst."""
    try:
        arm_machine.made()
    except arm_machine.Missing as missing:
        pytest.skip(str(missing))
    files = [(name, path, arm.stored_inputs(path, x)) for name, path, x, _ in part(folder)]
    arm_child.main(folder)
    here = arm.results(folder)
    for path in folder.glob("*.out.npz"):
        path.unlink()
    arm_machine.run(folder, cpu)
    there = arm.results(folder)
    found = {n: arm.compared(here[p.stem], there[p.stem], scales) for n, p, scales in files}
    assert all(count > 0 for count, _, _ in found.values())
    return {name: (wrong, lsb) for name, (_, wrong, lsb) in found.items() if wrong}


@pytest.mark.skipif(not arm_machine.is_made(), reason="the emulated machine is not there")
def test_the_student(tmp_path):
    assert run(arm.student, tmp_path, "max") == {}


@pytest.mark.slow
@pytest.mark.parametrize("cpu", arm_machine.CPUS)
def test_every_kind_of_layer(cpu, tmp_path):
    differing = run(arm.layers, tmp_path, cpu)
    assert set(differing) <= DIFFER
    assert all(lsb < 1.01 for _, lsb in differing.values())


def test_differences_are_counted_in_lsb():
    one = {"0": np.float32([[0.0, 0.5, 1.0]]), "1": np.int8([[1, 2]])}
    other = {"0": np.float32([[0.0, 0.75, 1.0]]), "1": np.int8([[1, 4]])}
    assert arm.compared(one, one, {"0": 0.25, "1": 1.0}) == (5, 0, 0.0)
    assert arm.compared(one, other, {"0": 0.25, "1": 1.0}) == (5, 2, 2.0)
