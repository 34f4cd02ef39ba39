"""Every family of keras.applications as a backbone under a new head."""

import pytest

from benchmarks.applications_int8 import MODELS
from benchmarks.transfer_int8 import measured

QUICK = ("MobileNetV2",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_the_file_equals_the_model(name, tmp_path):
    result_agreement, floats = measured(name, tmp_path)
    assert floats == []
    assert result_agreement.rmse < 0.02, result_agreement
