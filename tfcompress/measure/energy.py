"""energy: joules and grams of CO2, estimated from measured time and a stated power."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import keras

from tfcompress.measure.files_of import as_file
from tfcompress.tables import as_text, table

_JOULES_PER_KWH = 3.6e6


@dataclasses.dataclass(frozen=True)
class Power:
    """What an estimate of energy takes as given.

    Args:
        watts: Power of the machine above idle while it computes, in watts: of one core of a phone
            about 1 to 3, of a server's socket what its meter says.
        grams_per_kwh: Grams of CO2 for a kilowatt-hour of the grid; None gives no CO2.

    Raises:
        ValueError: If a number is not positive.
    """

    watts: float
    grams_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be positive. Received: {name}={value!r}")

    def joules(self, seconds: float) -> float:
        """Returns the energy of a time."""
        return self.watts * seconds

    def grams(self, joules: float) -> float | None:
        """Returns the CO2 of an energy; None if nothing is known of the grid."""
        if self.grams_per_kwh is None:
            return None
        return joules / _JOULES_PER_KWH * self.grams_per_kwh

    def __str__(self) -> str:
        grid = "" if self.grams_per_kwh is None else f", {self.grams_per_kwh:g} g CO2/kWh"
        return f"{self.watts:g} W{grid}"


@dataclasses.dataclass(frozen=True)
class Energy:
    """An estimate: measured time, times a stated power.

    Attributes:
        seconds: The measured time, of one inference or of a training.
        power: What was stated.
    """

    seconds: float
    power: Power

    @property
    def joules(self) -> float:
        """The energy."""
        return self.power.joules(self.seconds)

    @property
    def grams_per_million(self) -> float | None:
        """Grams of CO2 a million times this."""
        return self.power.grams(1e6 * self.joules)

    def __rich__(self) -> Any:
        rows = [
            ("measured time", f"{1000 * self.seconds:,.4g} ms"),
            ("stated", str(self.power)),
            ("energy", f"{1000 * self.joules:,.4g} mJ"),
        ]
        if self.grams_per_million is not None:
            rows.append(("CO2 a million times", f"{self.grams_per_million:,.4g} g"))
        return table("energy, an estimate", ("", ""), rows)

    def __str__(self) -> str:
        return as_text(self.__rich__())


def energy(model: Any, power: Power, *, num_threads: int = 1, runs: int = 200) -> Energy:
    """Estimates the energy of one inference from its median latency on this machine.

    Only what is stated makes joules of milliseconds: name the power of the device that the file
    will run on if its time is like this machine's, or measure there.

    Args:
        model: A Keras model, which is measured as a float32 file, a `TFLiteModel`, or a path.
        power: Power and grid.
        num_threads: Number of threads of the interpreter.
        runs: Number of inferences to measure.

    Returns:
        The estimate with its inputs.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If `model` is no model and no path.

    Example:
        >>> import tfcompress as tfc
        >>> power = tfc.Power(watts=2.0, grams_per_kwh=400.0)
        >>> found = tfc.energy("tflite_models/fashion_mnist_student_int8.tflite", power, runs=5)
        >>> found.joules == 2.0 * found.seconds
        True

    References:
        Lacoste et al. 2019, arXiv:1910.09700.
    """
    file = as_file("model", model, num_threads)
    return Energy(file.benchmark(runs=runs).median_ms / 1000, power)


class TrainingEnergy(keras.callbacks.Callback):
    """Estimates the energy of trainings from their time: add it to `fit`.

    The time of several trainings adds up, as of the stages of a pruning.

    Args:
        power: Power of the machine while it trains, and its grid.
        counters: Whether to read the machine's counters of energy (those of the processor, RAPL,
            and of GPUs), by codecarbon, in place of the stated watts.

    Attributes:
        seconds: The time so far.

    Raises:
        ImportError: If `counters` is true and codecarbon is missing.
        ValueError: If the machine has no counters that can be read.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        >>> model.compile("adam", "mse")
        >>> meter = tfc.TrainingEnergy(tfc.Power(watts=65.0))
        >>> history = model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0, callbacks=[meter])
        >>> meter.energy.joules > 0
        True
    """

    def __init__(self, power: Power, *, counters: bool = False) -> None:
        super().__init__()
        self.power = power
        self.seconds = 0.0
        self._started = 0.0
        self._tracker_class = _tracker_class() if counters else None
        self._counter: Any = None
        self._measured = 0.0  # joules

    @property
    def energy(self) -> Energy:
        """The estimate; with counters its power is the mean of what they measured."""
        if self._tracker_class is None or not self.seconds:
            return Energy(self.seconds, self.power)
        watts = self._measured / self.seconds
        return Energy(self.seconds, dataclasses.replace(self.power, watts=watts))

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts the clock."""
        if self._tracker_class is not None:
            # The country decides the carbon, which is not taken from there.
            self._counter = self._tracker_class(
                country_iso_code="USA", save_to_file=False, log_level="error"
            )
            self._counter.start()
        self._started = time.perf_counter()

    def on_train_end(self, logs: Any = None) -> None:
        """Stops the clock."""
        self.seconds += time.perf_counter() - self._started
        if self._counter is not None:
            self._counter.stop()
            data = self._counter.final_emissions_data
            self._measured += _JOULES_PER_KWH * (data.cpu_energy + data.gpu_energy)
            self._counter = None


def _tracker_class() -> Any:
    """Returns the class of codecarbon that reads the machine's counters."""
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.core.cpu import is_rapl_available  # an extra
    except ImportError as error:
        raise ImportError(
            "counters=True needs codecarbon: pip install tfcompress[energy]."
        ) from error
    if not is_rapl_available():
        raise ValueError(
            "counters=True: this machine has no counters of its processor's energy that can be "
            "read (RAPL; some need rights). Leave counters out: then the stated watts count."
        )
    return OfflineEmissionsTracker


def inferences_to_pay_back(training: Energy, before: Energy, after: Energy) -> float | None:
    """Returns after how many inferences a compressed model has saved what its training took.

    Args:
        training: The training of the compressed model.
        before: One inference of the first model.
        after: One inference of the compressed model.

    Returns:
        The number; None if it saves nothing.

    Example:
        >>> import tfcompress as tfc
        >>> phone, server = tfc.Power(watts=2.0), tfc.Power(watts=50.0)
        >>> saved = tfc.Energy(0.002, phone), tfc.Energy(0.001, phone)
        >>> round(tfc.inferences_to_pay_back(tfc.Energy(60.0, server), *saved))
        1500000
    """
    saved = before.joules - after.joules
    return training.joules / saved if saved > 0 else None
