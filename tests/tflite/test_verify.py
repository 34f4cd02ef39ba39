import dataclasses

import numpy as np
import pytest

from tfcompress.errors import ExportError
from tfcompress.tflite.verify import REFUSED, Agreement, compare_outputs, judge, synthetic

OUT = np.array([[0.0, 1, 2], [3, 1, 0], [0, 2, 1]])


def measured(actual, scale=0.5):
    return compare_outputs({"y": OUT}, {"y": actual}, {"y": scale}, source="given", kernels="any")


def test_measures_what_it_says():
    other = OUT.copy()
    other[0] = [1.5, 1, 2]
    other[1] = [0, 1, 3]
    agreement = measured(other)
    difference = other - OUT
    assert agreement.rmse == pytest.approx(np.sqrt(np.mean(difference**2)) / OUT.std())
    assert agreement.max_steps == 6 and agreement.max_error == 3
    assert agreement.top1 == pytest.approx(2 / 3) and agreement.samples == 3


def test_equal_outputs_agree():
    agreement = measured(OUT)
    assert (agreement.rmse, agreement.max_steps, agreement.top1) == (0, 0, 1)
    assert judge(agreement, "float32") is None


def test_nan_shape_and_name_are_broken_files():
    with pytest.raises(ExportError, match="NaN or infinity"):
        measured(np.full_like(OUT, np.nan))
    with pytest.raises(ExportError, match="should have the shape"):
        measured(OUT[:, :2])
    with pytest.raises(ExportError, match="has nothing"):
        compare_outputs({"y": OUT}, {"z": OUT}, {}, source="given", kernels="any")


@pytest.mark.parametrize("scheme", REFUSED)
def test_missing_weights_are_refused_under_every_scheme(scheme):
    """A file that puts out a constant is off by a whole deviation."""
    with pytest.raises(ExportError, match="does not compute what its model computes"):
        judge(measured(np.full_like(OUT, OUT.mean())), scheme)


def test_poor_but_honest_files_warn_with_figures():
    poor = Agreement(10, "given", 0.2, 9.0, 1.0, 0.9, "any")
    assert "RMSE 0.2000" in judge(poor, "int8") and "preprocessed" in judge(poor, "int8")
    with pytest.raises(ExportError):
        judge(poor, "int8 trained")


def test_two_steps_are_exact_where_the_model_has_the_same_grid():
    coarse = Agreement(10, "given", 0.05, 2.0, 1.0, 1.0, "any")
    assert judge(coarse, "int8 trained") is None
    assert judge(dataclasses.replace(coarse, max_steps=3.0), "int8 trained")
    assert judge(dataclasses.replace(coarse, rmse=0.2), "int8")  # stretched by outliers
    with pytest.raises(ExportError):
        judge(dataclasses.replace(coarse, rmse=0.2), "int8 trained")
    assert judge(dataclasses.replace(coarse, rmse=0.2, max_steps=0.5), "int8 trained") is None
    assert judge(dataclasses.replace(coarse, rmse=0.2), "int8 measured") is None  # samples alike
    with pytest.raises(ExportError, match="did not keep its"):
        judge(dataclasses.replace(coarse, rmse=0.2, max_steps=3.0), "int8 measured")


def test_synthetic_samples_suit_the_inputs():
    from tfcompress.data import InputSpec

    made = synthetic([InputSpec("x", (4, None), "float32"), InputSpec("ids", (3,), "int32")], 5)
    assert made["x"].shape == (5, 4, 8) and made["x"].min() >= 0
    assert set(np.unique(made["ids"])) <= {0, 1}
