import numpy as np
import pytest

from tfcompress.errors import ExportError
from tfcompress.export.compare_outputs import compare_outputs

OUT = np.array([[0.0, 1, 2], [3, 1, 0], [0, 2, 1]])


def measured(actual, scale=0.5, wanted=OUT):
    return compare_outputs({"y": wanted}, {"y": actual}, {"y": scale}, source="given", kernels="x")


def test_measures_what_it_says():
    other = OUT.copy()
    other[0] = [1.5, 1, 2]
    other[1] = [0, 1, 3]
    agreement = measured(other).agreement
    difference = other - OUT
    assert agreement.rmse == pytest.approx(np.sqrt(np.mean(difference**2)) / OUT.std())
    assert agreement.max_lsb == 6 and agreement.max_error == 3
    assert agreement.top1 == pytest.approx(2 / 3) and agreement.samples == 3
    by_channel = np.sqrt((difference**2).mean(0)) / OUT.std(0)
    assert agreement.worst_rmse == pytest.approx(by_channel.max())
    assert agreement.worst == f"output 'y', channel {by_channel.argmax()}"


def test_equal_outputs_agree():
    comparison = measured(OUT)
    assert (comparison.agreement.rmse, comparison.agreement.max_lsb, comparison.agreement.top1) == (
        0,
        0,
        1,
    )


def test_what_is_not_finite():
    broken = np.where(OUT == 2, np.nan, OUT)
    for wanted, got in ((OUT, np.full_like(OUT, np.nan)), (OUT, broken), (broken, OUT)):
        with pytest.raises(ExportError, match="NaN or infinity"):
            measured(got, wanted=wanted)
    assert measured(broken, wanted=broken).agreement.rmse == 0
    endless = np.where(OUT == 2, -np.inf, OUT)
    assert measured(endless, wanted=endless).agreement.rmse == 0
    with pytest.raises(ExportError, match="NaN or infinity"):
        measured(-endless, wanted=endless)


def test_nothing_to_compare():
    with pytest.raises(ExportError, match="Nothing could be compared: the model itself"):
        measured(np.full_like(OUT, np.nan), wanted=np.full_like(OUT, np.nan))
    with pytest.raises(ExportError, match="Nothing could be compared: output 'y' is empty"):
        measured(OUT[:, :0], wanted=OUT[:, :0])


def test_shape_and_name():
    with pytest.raises(ExportError, match="should have the shape"):
        measured(OUT[:, :2])
    with pytest.raises(ExportError, match="has nothing"):
        compare_outputs({"y": OUT}, {"z": OUT}, {}, source="given", kernels="any")
