"""assign_precision: a scheme for each layer, within a budget."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfcompress.files import write_whole
from tfcompress.graph.fingerprint import digest_of, fingerprint
from tfcompress.post_training.fold_batch_norm import fold_batch_norm
from tfcompress.post_training.noise import quantization_noise
from tfcompress.post_training.pipeline import post_training
from tfcompress.quantization.quantize import weight_quantizer_for
from tfcompress.scheme import PREFERENCES, QuantizationScheme, as_scheme, check_choice
from tfcompress.tables import as_text, table
from tfcompress.tune.score import Metric, Scorer, weighted_layers

_ORDER = ("w4a8", "int8", "int16x8", "float32")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One model that was tried.

    Attributes:
        layers: Number of layers with each scheme.
        score: Its metric.
        drop: The metric of the float model minus its metric.
        weight_bytes: Bytes of the weights, without scales and biases.
        reused: Whether the score was read from the file of an earlier run.
    """

    layers: dict[str, int]
    score: float
    drop: float
    weight_bytes: int
    reused: bool


@dataclasses.dataclass(frozen=True)
class AssignedScheme(QuantizationScheme):
    """The chosen scheme, and the trials that led to it.

    Attributes:
        trials: Every model that was tried, in order.
    """

    trials: tuple[Trial, ...] = ()

    def __rich__(self) -> Any:
        rows = [
            (
                ", ".join(f"{count} {name}" for name, count in trial.layers.items() if count),
                f"{trial.score:.4f}",
                f"{trial.drop:+.4f}",
                f"{trial.weight_bytes:,} B" + (" (read)" if trial.reused else ""),
            )
            for trial in self.trials
        ]
        return table("trials", ("layers", "metric", "drop", "weights"), rows)

    def __str__(self) -> str:
        chosen = ", ".join(f"{path}: {scheme}" for path, scheme in self.overrides.items())
        return as_text(self.__rich__()) + f"\n{self.name}; {chosen or 'no exceptions'}"


def assign_precision(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    max_drop: float | None = None,
    target_bytes: int | None = None,
    candidates: Sequence[str] = ("int8", "float32"),
    metric: Metric | None = None,
    resume: str | pathlib.Path | None = None,
    verbose: bool = True,
) -> AssignedScheme:
    """Chooses the fewest bits for each layer within a budget of accuracy or of bytes.

    Layers are ranked by the quantization noise around them, estimated in one pass. With `max_drop`,
    all layers get the first candidate. If the metric drops too far, the noisiest layers get the
    next candidate: bisection finds how many need it, then each layer that does not need it returns
    to the cheaper one. With `target_bytes`, all layers get 8 bits, and those with the least noise
    get 4 until the weights fit. Where 4 bits are among the choices, the scheme prefers "bytes".
    Pass the result to `export_tflite` (with the representative dataset) or to `quantize`.

    Args:
        model: A built Sequential or Functional model, trained. It is not changed.
        x: Samples, in any form that `export_tflite` takes; they also serve for calibration.
        y: Their labels; None compares with the outputs of the float model.
        max_drop: Largest allowed drop of the metric, such as 0.01.
        target_bytes: Instead of `max_drop`: largest allowed size of all weights in bytes.
        candidates: Schemes with `max_drop`, from the cheapest to the most precise: two or more of
            "w4a8", "int8", "int16x8" (useful where consecutive layers get it),
            "float32".
        metric: As for `sensitivity`.
        resume: A JSON file that stores the trials; an interrupted run continues from it.
        verbose: Whether to print each trial.

    Returns:
        A `QuantizationScheme` with overrides, and the trials.

    Raises:
        ValueError: If not exactly one budget is given, it cannot be met, or an argument is unknown.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> keras.utils.set_random_seed(0)
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> scheme = tfc.assign_precision(model, x, max_drop=0.05, verbose=False)
        >>> scheme.name, dict(scheme.overrides)
        ('int8', {})

    References:
        The trials by rank follow the accuracy-aware tuning of NNCF and Intel Neural Compressor.
    """
    if (max_drop is None) == (target_bytes is None):
        raise ValueError(
            "Give one budget: max_drop= (of the metric) or target_bytes= (of the weights). "
            f"Received: max_drop={max_drop!r}, target_bytes={target_bytes!r}"
        )
    for candidate in candidates:
        check_choice(candidate, "candidates", _ORDER)
    if len(candidates) < 2 or sorted(candidates, key=_ORDER.index) != list(candidates):
        raise ValueError(
            "candidates must be two or more schemes from the cheapest to the most precise, of "
            f"{', '.join(_ORDER)}. Received: {list(candidates)}"
        )
    bytes_count = target_bytes is not None or "w4a8" in candidates
    prefer = "bytes" if bytes_count else PREFERENCES[0]
    search = _Search(model, x, y, metric, resume, verbose, prefer)
    if max_drop is not None:
        chosen = search.within_drop(float(max_drop), list(candidates))
    else:
        chosen = search.within_bytes(int(target_bytes or 0))
    return search.result(chosen)


class _Search:
    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any,
        metric: Any,
        resume: Any,
        verbose: bool,
        prefer: str,
    ) -> None:
        self._prefer = prefer
        self._scorer = Scorer(model, x, y, metric)
        self._model = fold_batch_norm(self._scorer.model)
        self._sizes = {
            path: (sum(int(np.prod(w.shape)) for w in layer.weights), layer)
            for path, layer in weighted_layers(self._model)
        }
        self._samples = self._scorer.calibration
        self._verbose = verbose
        self._file = None if resume is None else pathlib.Path(resume)
        self._known = self._read()
        self._trials: list[Trial] = []

    def within_drop(self, budget: float, candidates: list[str]) -> dict[str, str]:
        """Returns the scheme of each layer."""
        chosen = dict.fromkeys(self._sizes, candidates[0])
        for cheap, precise in itertools.pairwise(candidates):
            if self._drop(chosen) <= budget:
                break
            all_precise = dict.fromkeys(self._sizes, precise)
            if precise != "float32" and self._drop(all_precise) > budget:
                chosen = all_precise  # this candidate does not suffice; try the next one
            else:
                chosen = self._raise(chosen, cheap, precise, budget)
        return chosen

    def _raise(
        self, chosen: dict[str, str], cheap: str, precise: str, budget: float
    ) -> dict[str, str]:
        """Gives the more precise scheme to as few layers as possible, the noisiest first."""
        noise = self._noise(cheap)
        ranked = sorted(self._sizes, key=lambda path: -noise[path])

        def raised(count: int) -> dict[str, str]:
            return chosen | dict.fromkeys(ranked[:count], precise)

        # Few layers are sensitive: doubles the count until it suffices, then bisects.
        low, high = 0, 1
        while high < len(ranked) and self._drop(raised(high)) > budget:
            low, high = high, min(2 * high, len(ranked))
        while high - low > 1:
            middle = (low + high) // 2
            if self._drop(raised(middle)) <= budget:
                high = middle
            else:
                low = middle
        schemes = raised(high)
        for path in ranked[: high - 1][::-1]:  # bisection showed that the last one needs it
            lowered = schemes | {path: cheap}
            if self._drop(lowered) <= budget:
                schemes = lowered
        return schemes

    def within_bytes(self, budget: int) -> dict[str, str]:
        """Returns the scheme of each layer."""
        chosen = dict.fromkeys(self._sizes, "int8")
        noise = self._noise("w4a8")
        ranked = sorted(
            (p for p in self._sizes if self._bytes({p: "w4a8"}) < self._bytes({p: "int8"})),
            key=lambda path: noise[path] / self._sizes[path][0],
        )
        for path in ranked:
            if self._bytes(chosen) <= budget:
                break
            chosen[path] = "w4a8"
        if self._bytes(chosen) > budget:
            raise ValueError(
                f"target_bytes={budget} cannot be met: with 4 bits wherever the runtime has them, "
                f"the weights take {self._bytes(chosen)} bytes. Remove channels first, or prune "
                "and compress the file."
            )
        self._drop(chosen)
        return chosen

    def result(self, chosen: dict[str, str]) -> AssignedScheme:
        """Returns the chosen schemes as one scheme with few overrides."""
        base = self._base(chosen)
        others = {path: scheme for path, scheme in chosen.items() if scheme != base}
        fields = dataclasses.asdict(self._scheme(base)) | {"overrides": others}
        return AssignedScheme(**fields, trials=tuple(self._trials))

    def _scheme(self, name: str) -> QuantizationScheme:
        return dataclasses.replace(as_scheme(name), prefer=self._prefer)

    @staticmethod
    def _base(chosen: dict[str, str]) -> str:
        return "w4a8" if list(chosen.values()).count("w4a8") * 2 > len(chosen) else "int8"

    def _drop(self, chosen: dict[str, str]) -> float:
        key = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
        reused = key in self._known
        if not reused:
            base = self._base(chosen)
            overrides = {path: scheme for path, scheme in chosen.items() if scheme != base}
            scheme = dataclasses.replace(self._scheme(base), overrides=overrides)
            quantized = post_training(self._model, scheme, self._samples)
            self._known[key] = self._scorer.score(quantized)
            self._write()
        score = self._known[key]
        counts = {name: list(chosen.values()).count(name) for name in _ORDER}
        drop = self._scorer.best - score
        trial = Trial(counts, score, drop, self._bytes(chosen), reused)
        if not any(trial == earlier for earlier in self._trials):
            self._trials.append(trial)
            if self._verbose:
                print(f"assign_precision: {counts} -> {score:.4f} ({drop:+.4f})", flush=True)
        return drop

    def _noise(self, scheme: str) -> dict[str, float]:
        options = dataclasses.replace(self._scheme(scheme), rounding="nearest", correct_bias=False)
        noise = quantization_noise(self._model, options, self._samples)
        return {path: _of_layer(noise, path) for path in self._sizes}

    def _bytes(self, chosen: dict[str, str]) -> int:
        bits = 0
        for path, scheme in chosen.items():
            count, layer = self._sizes[path]
            is_quantized = scheme != "float32"
            bits += count * (
                weight_quantizer_for(layer, self._scheme(scheme)).bits if is_quantized else 32
            )
        return -(-bits // 8)

    def _read(self) -> dict[str, float]:
        if self._file is None or not self._file.is_file():
            return {}
        content = json.loads(self._file.read_text())
        if content.get("model") != self._fingerprint():
            raise ValueError(
                f"resume={str(self._file)!r} is of another model or other samples. Name another "
                "file, or delete it."
            )
        return content["scores"]

    def _write(self) -> None:
        if self._file is not None:
            content = {"model": self._fingerprint(), "scores": self._known}
            write_whole(self._file, json.dumps(content).encode())

    def _fingerprint(self) -> str:
        samples = digest_of([*self._scorer.samples.values(), self._scorer.labels])
        return f"{fingerprint(self._model)} {samples}"


def _of_layer(noise: dict[str, float], path: str) -> float:
    """Returns the largest noise of a layer, or of the layers that it was split into."""
    parts = [v for p, v in noise.items() if p == path or p.startswith((f"{path}/", f"{path}_"))]
    return max(parts, default=0.0)
