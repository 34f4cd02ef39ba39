import numpy as np
import pytest

from tests.export.test_compare_outputs import OUT, measured
from tfcompress.errors import ExportError
from tfcompress.export.tolerances import TOLERANCES, judge

GENERATOR = np.random.default_rng(0)
MANY = GENERATOR.normal(size=(200, 4)).astype("float32")


def test_equal_outputs_pass():
    assert judge(measured(OUT), "float32") is None


@pytest.mark.parametrize("scheme", [k for k in TOLERANCES if k != "trained"])
def test_missing_weights_are_refused_under_every_scheme(scheme):
    """A file whose output is constant has an error of one deviation."""
    with pytest.raises(ExportError, match="does not compute what its model computes"):
        judge(measured(np.full_like(MANY, MANY.mean()), 0.1, MANY), scheme)


def test_a_channel_is_judged_by_its_own_deviation():
    """What pooling hides: a score that is wrong, beside boxes of some hundred pixels."""
    wanted = MANY * [300, 300, 300, 0.5]
    got = wanted.copy()
    got[:, 3] += 0.05  # a tenth of the deviation
    comparison = measured(got, 1e-3, wanted)
    assert comparison.agreement.rmse < 1e-3
    for scheme in ("float32", "int8 copy"):
        with pytest.raises(ExportError, match=r"output 'y', channel 3 is off by 0\.0[89]"):
            judge(comparison, scheme)


def test_a_channel_that_hardly_varies_has_a_floor():
    wanted = np.concatenate([MANY, 5 + 1e-3 * MANY[:, :1]], 1)
    got = wanted.copy()
    got[:, 4] += 2e-4  # a fifth of its deviation, and little beside its value
    assert judge(measured(got, 0, wanted), "int8 copy") is None


def test_a_row_is_judged_by_itself():
    """A hundred boxes of which one is wrong."""
    wanted = GENERATOR.normal(size=(32, 100, 4)).astype("float32")
    got = wanted.copy()
    got[:, 17] += 0.2
    with pytest.raises(ExportError, match=r"output 'y', row 17, is off by 0\.2"):
        judge(measured(got, 1e-3, wanted), "int8 copy")


def test_a_single_value_far_off_is_seen():
    got = MANY.copy()
    got[50, 1] += 0.4
    assert judge(measured(got, 1e-3, MANY), "int8 copy of half") is None
    got[50, 1] += 0.2 * MANY[:, 1].std() + 0.1
    with pytest.raises(
        ExportError, match=r"channel 1 is off by 0\.\d+ deviations at single values|RMSE"
    ):
        judge(measured(got, 1e-3, MANY), "int8 copy")


def test_values_in_the_middle_between_two_quantized_values_may_be_rounded_to_either():
    scale = 0.5
    wanted = np.round(MANY / scale) * scale  # a deviation is two LSB
    got = wanted.copy()
    got[::200] += scale
    assert judge(measured(got, scale, wanted), "int8 copy") is None
    got[::4] += scale
    with pytest.raises(ExportError):
        judge(measured(got, scale, wanted), "int8 copy")
    near = MANY + 0.5 * scale * GENERATOR.random(MANY.shape)  # no quantized value is nearer
    assert judge(measured(near, scale, MANY), "int8 copy") is None


@pytest.mark.filterwarnings("ignore")
def test_what_kernels_differ_by_is_no_fault_of_the_file():
    def off(by):
        return measured(MANY + by * GENERATOR.normal(size=MANY.shape), 1e-3, MANY)

    noise = [np.full(4, 0.3)]
    with pytest.raises(ExportError):
        judge(off(0.04), "int8 copy")
    assert "poor copy" in judge(off(0.04), "int8 copy", allowed=lambda: noise)
    with pytest.raises(ExportError):
        judge(off(0.04), "int8 copy", allowed=lambda: [np.full(4, 0.02)])
    with pytest.raises(ExportError):  # kernels for integers only do not differ as much
        judge(off(0.1), "int8 copy", allowed=lambda: noise)
    assert "poor copy" in judge(off(0.25), "int8 copy in part", allowed=lambda: noise)


def test_poor_but_honest_files_warn_with_figures():
    poor = measured(MANY + 0.2 * GENERATOR.normal(size=MANY.shape), 0.05, MANY)
    said = judge(poor, "int8")
    assert "is off by 0.2" in said or "is off by 0.19" in said
    assert "preprocessed" in said
    with pytest.raises(ExportError):
        judge(poor, "int8 copy")
    assert judge(poor, "w4a8") is None and judge(poor, "trained") is None


def test_an_output_that_hardly_varies_is_refused_whatever_the_lsb_say():
    scale = 5.0
    rounded = np.round(MANY / scale) * scale
    comparison = measured(rounded, scale, MANY)
    assert comparison.agreement.max_lsb <= 0.5
    for scheme in ("int8", "w4a8", "trained"):
        with pytest.raises(ExportError, match="4 of the 4 channels .* hardly in the file"):
            judge(comparison, scheme)
    two = measured(np.where(rounded == 0, 0.5 * np.sign(MANY), 0), scale, MANY * 0.2)
    with pytest.raises(ExportError, match="hardly in the file|does not compute"):
        judge(two, "int8")


def test_one_dead_channel_among_many_is_warned_of():
    wanted = np.concatenate([MANY] * 5, 1)
    got = wanted.copy()
    got[:, 7] = 0.1
    assert "1 of the 20 channels" in judge(measured(got, 0.01, wanted), "int8")


def test_classes_below_one_lsb_of_a_softmax():
    """Of many classes most are below 1/256, which is no error; not all of them."""
    scale = 1 / 256
    wanted = np.abs(MANY) * [0.2, 0.2, 5e-4, 5e-4]
    assert judge(measured(np.round(wanted / scale) * scale, scale, wanted), "int8") is None
    small = np.abs(MANY) * 4e-4
    with pytest.raises(ExportError, match="export the model without it"):
        judge(measured(np.zeros_like(small), scale, small), "int8")
    off = np.round(small / scale) * scale
    off[::3] = 3 * scale  # three LSB, which are little beside 1
    assert "0.2102" in judge(measured(off, scale, small), "int8")


def test_classes_are_the_same_or_not():
    wanted = np.arange(200) % 7
    got = wanted.copy()
    assert judge(measured(got, 0, wanted), "float32") is None
    got[::2] += 1
    comparison = measured(got, 0, wanted)
    assert comparison.agreement.rmse == 0.5
    with pytest.raises(ExportError):
        judge(comparison, "float32")
