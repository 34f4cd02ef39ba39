"""Compares the outputs of a file with those of its model, channel by channel."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from tfcompress.errors import ExportError

_LEAST = 0.01  # of its largest value: the smallest reference deviation of a channel


_LEAST_OF_ALL = 0.002  # likewise, of the deviation of all channels


_HARDLY = 0.05  # of its largest value: a channel with a smaller deviation hardly varies


_FIXED_SCALE = 1 / 256  # of softmax and sigmoid outputs


_ENOUGH = 16  # samples, to decide that a channel does not vary


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well a file agrees with a Keras model.

    Attributes:
        samples: Samples compared.
        source: Where they come from: "representative_dataset", "training" or "noise".
        rmse: Root mean squared difference of the outputs over the deviation of the model's, the
            worst output; of outputs that are integers or booleans, such as classes, the share of
            values that differ.
        max_lsb: Largest difference in LSB, the scale of the output; None if it has no scale.
        max_error: Largest absolute difference.
        top1: Share of samples with the same largest output; None if outputs are not vectors.
        kernels: The runtime and kernels compared.
        worst: The channel that is farthest off, by the name of its output.
        worst_rmse: Its RMSE over its own deviation, where that is not negligible.
    """

    samples: int
    source: str
    rmse: float
    max_lsb: float | None
    max_error: float
    top1: float | None
    kernels: str
    worst: str = ""
    worst_rmse: float = 0.0

    @property
    def max_steps(self) -> float | None:
        """`max_lsb`, under the name that it had in version 0.1.0."""
        return self.max_lsb

    def __str__(self) -> str:
        parts = [f"RMSE {self.rmse:.4f} of the deviation"]
        if self.worst_rmse > max(2 * self.rmse, 0.01):
            parts.append(f"{self.worst_rmse:.4f} at {self.worst}")
        if self.max_lsb is not None:
            parts.append(f"at most {self.max_lsb:.1f} LSB")
        if self.top1 is not None:
            parts.append(f"same top-1 on {self.top1:.1%}")
        kind = "samples of noise" if self.source == "noise" else f"{self.source} samples"
        return f"{', '.join(parts)} ({self.samples} {kind}, {self.kernels})"


@dataclasses.dataclass(frozen=True)
class Output:
    """How an output of a file differs from the model's, by channel of its last axis.

    Attributes:
        name: Its name.
        wanted: The output of the model; shape (samples, ..., channels).
        difference: Output of the file minus `wanted`.
        lsb: Scale of the output, which is one LSB; 0 if it has none.
        rmse: Root mean squared difference of each channel.
        deviation: Standard deviation of each channel in the model.
        largest: Largest absolute value of each channel in the model.
        file_deviation: Standard deviation of each channel in the file.
        farthest: Largest absolute difference in each channel.
        in_all: Standard deviation of all channels together.
    """

    name: str
    wanted: np.ndarray
    difference: np.ndarray
    lsb: float
    rmse: np.ndarray
    deviation: np.ndarray
    largest: np.ndarray
    file_deviation: np.ndarray
    farthest: np.ndarray
    in_all: float

    @property
    def pooled(self) -> float:
        """RMSE of all channels together, over their deviation."""
        if self.is_choice:
            return float(self.rmse.mean())
        # A constant output has no deviation: its largest value is the reference then.
        reference = self.in_all or float(self.largest.max()) or 1.0
        return float(np.sqrt(np.mean(self.rmse**2)) / reference)

    def usual(self) -> tuple[float, float]:
        """Returns RMSE and deviation without the outliers, 2% of the samples.

        Outliers dominate the deviation, and would hide the error of all other samples.
        """
        samples = self.wanted.reshape(len(self.wanted), -1)
        middle = np.nanmean(samples, axis=0)
        distance = np.nanmax(np.abs(samples - middle), axis=1)
        kept = np.argsort(distance)[: max(1, math.ceil(0.98 * len(samples)))]
        rmse = np.sqrt(np.mean(np.square(self.difference[kept]), dtype=np.float64))
        return float(rmse), float(np.nanstd(samples[kept], dtype=np.float64))

    @property
    def is_choice(self) -> bool:
        """Whether it holds classes or booleans, which are either equal or wrong."""
        return self.wanted.dtype.kind in "biu"

    @property
    def is_fixed(self) -> bool:
        """Whether it has the fixed range of a softmax or sigmoid, and no measured one."""
        return self.lsb == _FIXED_SCALE

    def reference(self, least_of_all: float = _LEAST_OF_ALL) -> np.ndarray:
        """Returns the reference deviation of each channel, which errors are divided by.

        It is the standard deviation of the channel, with a lower limit for channels that hardly
        vary.

        Args:
            least_of_all: The lower limit, as a share of the deviation of all channels.
        """
        if self.is_choice:
            return np.ones_like(self.rmse)
        least = np.maximum(_LEAST * self.largest, least_of_all * self.in_all)
        return np.where(np.maximum(self.deviation, least) > 0, np.maximum(self.deviation, least), 1)

    def rows(self, reference: np.ndarray) -> np.ndarray:
        """Returns the RMSE of each row, over a reference deviation for each channel, flat."""
        if self.difference.ndim < 3:
            return np.zeros(0)
        squares = (self.difference / reference.astype(np.float32)) ** 2
        return np.sqrt(squares.mean((0, -1), dtype=np.float64)).ravel()

    def lost(self) -> np.ndarray:
        """Returns which channels vary in the model, but not in the file or by less than 1/2 LSB."""
        varies = self.deviation > _HARDLY * np.maximum(self.largest, 1e-9)
        if self.is_choice or len(self.wanted) < _ENOUGH:
            return np.zeros(len(self.rmse), bool)
        still = self.file_deviation < 0.1 * self.deviation
        if self.is_fixed:  # most of a thousand classes stay below one LSB, which is no error
            all_lost = (self.file_deviation == 0).all() and varies.any()
            return varies if all_lost else np.zeros(len(self.rmse), bool)
        return varies & (still | (self.lsb > 2 * self.deviation))

    def at(self, channel: int) -> str:
        """Returns the name of a channel."""
        return f"output {self.name!r}" + (f", channel {channel}" if len(self.rmse) > 1 else "")


@dataclasses.dataclass(frozen=True)
class OutputComparison:
    """The outputs of a file beside those of a model.

    Attributes:
        agreement: The figures that are reported.
        outputs: The comparison of each output.
    """

    agreement: Agreement
    outputs: tuple[Output, ...]


def compare_outputs(
    expected: dict[str, np.ndarray],
    actual: dict[str, np.ndarray],
    scales: dict[str, float],
    *,
    source: str,
    kernels: str,
) -> OutputComparison:
    """Measures the agreement of a file's outputs with the model's.

    Args:
        expected: The model's outputs by name.
        actual: The file's outputs by name.
        scales: Scale of each output; 0 where there is none.
        source: Where the samples come from.
        kernels: Which kernels ran.

    Raises:
        ExportError: If names or shapes differ, one of the two holds NaN where the other does not,
            or there is nothing to compare.
    """
    outputs = []
    for name, wanted in expected.items():
        if name not in actual or actual[name].shape != wanted.shape:
            shape = actual[name].shape if name in actual else "nothing"
            raise ExportError(
                f"The file is broken: output {name!r} should have the shape {wanted.shape} and "
                f"has {shape}."
            )
        if not wanted.size:
            raise ExportError(
                f"Nothing could be compared: output {name!r} is empty, of the shape "
                f"{wanted.shape}. No file was written."
            )
        outputs.append(_output(name, wanted, actual[name], scales.get(name, 0.0), source))
    return OutputComparison(_agreement(outputs, source, kernels), tuple(outputs))


def _output(name: str, wanted: np.ndarray, got: np.ndarray, lsb: float, source: str) -> Output:
    if wanted.ndim < 2:
        wanted, got = wanted.reshape(-1, 1), got.reshape(-1, 1)
    axes = tuple(range(wanted.ndim - 1))
    if wanted.dtype.kind in "biu":
        differs = (wanted != got.astype(wanted.dtype)).astype(np.float32)
        rate, ones = differs.mean(axes, dtype=np.float64), np.ones(wanted.shape[-1])
        return Output(
            name, wanted, differs, 0.0, rate, ones, ones, ones, differs.max(axes).astype(float), 1.0
        )
    wanted, got = (x.astype(np.float32, copy=False) for x in (wanted, got))
    finite = np.isfinite(wanted)
    if not finite.any():
        raise ExportError(
            f"Nothing could be compared: the model itself puts out NaN or infinity as {name!r} "
            f"for all {len(wanted)} {source} samples. Pass samples like those of training as "
            "representative_dataset. No file was written."
        )
    all_finite = finite.all() and np.isfinite(got).all()
    if not all_finite:
        unlike = (finite | np.isfinite(got)) & ~(finite & np.isfinite(got))
        unlike |= (np.isinf(wanted) | np.isinf(got)) & (wanted != got)
        if unlike.any():
            raise ExportError(
                f"The file is broken: output {name!r} holds NaN or infinity where the model's "
                "output is finite, or the other way round."
            )
        wanted, got = np.where(finite, wanted, np.nan), np.where(finite, got, np.nan)
    std, maximum = (np.std, np.max) if all_finite else (np.nanstd, np.nanmax)
    difference = got - wanted
    if not all_finite:
        difference = np.where(finite, difference, 0)
    with np.errstate(invalid="ignore"):  # a channel that is never finite
        return Output(
            name,
            wanted,
            difference,
            lsb,
            channel_rmse(got, wanted),
            np.nan_to_num(std(wanted, axes, dtype=np.float64)),
            np.nan_to_num(maximum(np.abs(wanted), axes)).astype(np.float64),
            np.nan_to_num(std(got, axes, dtype=np.float64)),
            np.abs(difference).max(axes).astype(np.float64),
            float(std(wanted, dtype=np.float64)),
        )


def channel_rmse(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the RMSE of two arrays for each channel, or the share of classes that differ."""
    one, other = (x.reshape(-1, 1) if x.ndim < 2 else x for x in (one, other))
    if one.dtype.kind in "biu":
        return (one != other).mean(tuple(range(one.ndim - 1)), dtype=np.float64)
    difference = np.nan_to_num(one.astype(np.float32) - other.astype(np.float32))
    return np.sqrt(np.square(difference).mean(tuple(range(one.ndim - 1)), dtype=np.float64))


def _agreement(outputs: Sequence[Output], source: str, kernels: str) -> Agreement:
    in_lsb = [float(o.farthest.max() / o.lsb) for o in outputs if o.lsb]
    same = [
        float(np.mean(o.wanted.argmax(-1) == (o.wanted + o.difference).argmax(-1)))
        for o in outputs
        if not o.is_choice and o.wanted.shape[-1] > 1
    ]
    channels = [o.rmse / o.reference() for o in outputs]
    worst = max(range(len(outputs)), key=lambda i: float(channels[i].max()))
    channel = int(channels[worst].argmax())
    return Agreement(
        len(outputs[0].wanted),
        source,
        max(o.pooled for o in outputs),
        max(in_lsb) if in_lsb else None,
        max(float(o.farthest.max()) for o in outputs),
        min(same) if same else None,
        kernels,
        outputs[worst].at(channel),
        float(channels[worst][channel]),
    )
