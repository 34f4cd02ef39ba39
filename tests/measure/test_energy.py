"""Energy: time times a stated power, and what that pays back."""

import sys
import types

import keras
import numpy as np
import pytest

import tfcompress as tfc

FILE = "tflite_models/fashion_mnist_student_int8.tflite"


def test_energy_is_time_times_power_and_says_so():
    found = tfc.energy(FILE, tfc.Power(3.0, 500.0), runs=5)
    assert found.joules == pytest.approx(3.0 * found.seconds) and found.seconds > 0
    # A million inferences of 3.6 J are 3.6 MJ, which is one kilowatt-hour.
    assert tfc.Energy(1.2, tfc.Power(3.0, 500.0)).grams_per_million == pytest.approx(500)
    assert "estimate" in str(found) and "3 W, 500 g CO2/kWh" in str(found)
    assert tfc.Energy(1.0, tfc.Power(2.0)).grams_per_million is None
    assert "CO2" not in str(tfc.Energy(1.0, tfc.Power(2.0)))


@pytest.mark.parametrize("wrong", [{"watts": 0}, {"watts": 1.0, "grams_per_kwh": -1.0}])
def test_what_is_stated_must_be_positive(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        tfc.Power(**wrong)
    with pytest.raises(TypeError, match="model must be a Keras model"):
        tfc.energy(3, tfc.Power(1.0))


def test_trainings_add_up():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("adam", "mse")
    meter = tfc.TrainingEnergy(tfc.Power(65.0))
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[meter])
    first = meter.energy.joules
    model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[meter])
    assert meter.energy.joules > first > 0
    assert meter.energy.joules == pytest.approx(65.0 * meter.seconds)


def test_a_comparison_says_when_training_is_paid_back(tmp_path):
    power = tfc.Power(2.0)
    model = keras.Sequential([keras.Input((256,)), keras.layers.Dense(256, name="one")])
    x = np.random.default_rng(0).normal(size=(32, 256)).astype("float32")
    small = tfc.export_tflite(model, tmp_path / "int8.tflite", representative_dataset=x).path
    took = tfc.Energy(60.0, tfc.Power(65.0))
    models = {"float": model, "int8": small, "again": model}
    found = tfc.compare(models, runs=50, power=power, trained={"int8": took})
    first, int8, again = found.rows
    assert int8.joules == pytest.approx(2.0 * int8.latency_ms / 1000)
    saved = first.joules - int8.joules
    if saved > 0:
        assert int8.pays_back == pytest.approx(took.joules / saved)
    assert again.pays_back is None and first.pays_back is None
    told = " ".join(str(found).split())
    assert "mJ" in told and "pays" in told and "a stated 2 W" in told
    found.to_html(tmp_path / "page.html")
    assert "pays back after, inferences" in (tmp_path / "page.html").read_text()
    with pytest.raises(ValueError, match="trained needs power="):
        tfc.compare(models, runs=1, trained={"int8": took})
    assert tfc.inferences_to_pay_back(took, first_energy(1.0), first_energy(2.0)) is None
    assert tfc.inferences_to_pay_back(took, first_energy(2.0), first_energy(1.0)) == 1950


def first_energy(seconds):
    return tfc.Energy(seconds, tfc.Power(2.0))


def test_counters_take_the_place_of_the_stated_power(monkeypatch):
    """A stand-in for codecarbon, whose counters need a real machine: 36 kJ in each training."""
    readable = []

    class Tracker:
        def __init__(self, **options):
            assert options["save_to_file"] is False

        def start(self):
            self.final_emissions_data = None

        def stop(self):
            self.final_emissions_data = types.SimpleNamespace(cpu_energy=0.006, gpu_energy=0.004)

    package, core, cpu = (types.ModuleType(n) for n in ("codecarbon", "core", "cpu"))
    package.OfflineEmissionsTracker, cpu.is_rapl_available = Tracker, lambda: bool(readable)
    for name, module in (("", package), (".core", core), (".core.cpu", cpu)):
        monkeypatch.setitem(sys.modules, f"codecarbon{name}", module)
    power = tfc.Power(watts=5.0, grams_per_kwh=100.0)
    with pytest.raises(ValueError, match="no counters"):
        tfc.TrainingEnergy(power, counters=True)
    readable.append(True)
    meter = tfc.TrainingEnergy(power, counters=True)
    for _ in range(2):
        meter.on_train_begin()
        meter.on_train_end()
    assert meter.energy.joules == pytest.approx(2 * 36_000)
    assert meter.energy.grams_per_million == pytest.approx(1e6 * 0.02 * 100)


def test_counters_need_codecarbon(monkeypatch):
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(ImportError, match=r"tfcompress\[energy\]"):
        tfc.TrainingEnergy(tfc.Power(watts=5.0), counters=True)
