"""Converts user data to arrays by input name, and checks it once. Needs only numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """The shape and type that a model or file expects at one input.

    Attributes:
        name: Name of the input.
        shape: Shape of one sample; None for an axis of any size.
        dtype: numpy name of the type samples are given in.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str


def samples(
    data: Any, inputs: Sequence[InputSpec], *, limit: int | None = None, argument: str = "data"
) -> dict[str, np.ndarray]:
    """Collects samples into one array per input.

    Args:
        data: An array; a tuple, list or dict of arrays (one per input, or inputs and labels); a
            `tf.data.Dataset`, batched or not, labelled or not; a `keras.utils.PyDataset`; any other
            iterable of such items, such as a PyTorch DataLoader; or a function that returns one.
        inputs: The specs of the model's inputs.
        limit: Maximum number of samples. From arrays, samples spread over the whole array are
            taken; from streams, the first.
        argument: What to call `data` in messages.

    Returns:
        Arrays of shape (samples, *shape of the input), by name of the input.

    Raises:
        TypeError: If `data` is none of these.
        ValueError: If it is empty, has the wrong shape or holds NaN or infinity.
    """
    return collect(data, inputs, limit=limit, argument=argument)[0]


def collect(
    data: Any, inputs: Sequence[InputSpec], *, limit: int | None = None, argument: str = "data"
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Like `samples`, and also returns the labels of labelled data, or None."""
    if data is None:
        raise TypeError(f"{argument} is missing.")
    if callable(data) and not hasattr(data, "as_numpy_iterator"):
        data = data()
    if _is_numbered(data):  # a keras.utils.PyDataset, which has batches by number
        data = (data[index] for index in range(len(data)))
    if _is_stream(data):
        gathered, labels = _gather(data, inputs, limit, argument)
    else:
        features, labels = _split_labels(data, inputs, argument)
        gathered = {s.name: _batched(features[s.name], s, argument) for s in inputs}
        gathered, labels = _thin(gathered, labels, limit, argument)
    for spec in inputs:
        array = gathered[spec.name]
        if not len(array):
            raise ValueError(f"{argument} is empty: it holds no samples for input {spec.name!r}.")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.size(array) - np.isfinite(array).sum())
            raise ValueError(
                f"{argument} holds {bad} NaN or infinite values at input {spec.name!r}. "
                "Remove or repair these samples."
            )
    return gathered, labels


def _is_stream(data: Any) -> bool:
    if hasattr(data, "as_numpy_iterator"):
        return True
    if isinstance(data, (Mapping, tuple, list)) or hasattr(data, "__array__"):
        return False
    return isinstance(data, (Iterable, Iterator))


def _is_numbered(data: Any) -> bool:
    return all(hasattr(data, name) for name in ("__getitem__", "__len__")) and not any(
        hasattr(data, name) for name in ("__iter__", "__array__", "as_numpy_iterator")
    )


def _gather(
    stream: Any, inputs: Sequence[InputSpec], limit: int | None, argument: str
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    items = stream.as_numpy_iterator() if hasattr(stream, "as_numpy_iterator") else iter(stream)
    parts: dict[str, list[np.ndarray]] = {spec.name: [] for spec in inputs}
    labels: list[np.ndarray] = []
    count = 0
    for item in items:
        features, label = _split_labels(item, inputs, argument)
        batch = {s.name: _batched(features[s.name], s, argument) for s in inputs}
        batch, _ = _thin(batch, None, None, argument)
        size = len(batch[inputs[0].name])
        for name, array in batch.items():
            if parts[name] and parts[name][0].shape[1:] != array.shape[1:]:
                raise ValueError(
                    f"{argument} yields samples of different sizes at input {name!r}: "
                    f"{_shape(parts[name][0].shape[1:])} and {_shape(array.shape[1:])}. Resize or "
                    "pad them to one size."
                )
            parts[name].append(array)
        if label is not None:
            labels.append(np.reshape(label, (size, -1)) if np.ndim(label) != 1 else label)
        count += size
        if limit is not None and count >= limit:
            break
    if not count:
        raise ValueError(f"{argument} is empty: it yielded no samples.")
    gathered = {name: np.concatenate(arrays)[:limit] for name, arrays in parts.items()}
    all_labels = np.concatenate(labels)[:limit] if labels else None
    return gathered, all_labels


def _split_labels(
    item: Any, inputs: Sequence[InputSpec], argument: str
) -> tuple[dict[str, Any], Any]:
    """Splits one item into features by input name and labels (None if there are none)."""
    names = [spec.name for spec in inputs]
    label = None
    while isinstance(item, (tuple, list)) and len(item) == 1 and _is_nested(item[0]):
        item = item[0]  # inputs without labels, as tf.data yields them
    if isinstance(item, (tuple, list)):
        first_holds_all = len(inputs) > 1 and isinstance(item[0], (tuple, list, Mapping))
        if (
            isinstance(item, tuple)
            and len(item) in (2, 3)
            and (len(inputs) == 1 or first_holds_all)
        ):
            item, label = item[0], np.asarray(item[1])
    flat = _leaves(item)
    if len(flat) == len(names) and any(map(_is_nested, _values(item))):
        return dict(
            zip(names, flat, strict=True)
        ), label  # Keras flattens dicts in the order of their keys
    if isinstance(item, Mapping):
        missing = [name for name in names if name not in item]
        if missing:
            raise ValueError(
                f"{argument} lacks the input(s) {', '.join(map(repr, missing))}. "
                f"Received the keys: {', '.join(map(repr, item)) or 'none'}"
            )
        return {name: item[name] for name in names}, label
    if len(names) == 1 and not (isinstance(item, (tuple, list)) and len(item) == 1):
        if isinstance(item, (tuple, list)) and item and np.ndim(item[0]) == 0:
            item = np.asarray(item)
        elif isinstance(item, (tuple, list)):
            item = np.stack([np.asarray(part) for part in item]) if item else np.empty((0,))
        return {names[0]: item}, label
    if not isinstance(item, (tuple, list)) or len(item) != len(names):
        received = f"{len(item)}" if isinstance(item, (tuple, list)) else type(item).__name__
        raise ValueError(
            f"{argument} must hold {len(names)} arrays, one for each of the inputs "
            f"{', '.join(map(repr, names))}. Received: {received}"
        )
    return dict(zip(names, item, strict=True)), label


def _is_nested(value: Any) -> bool:
    """Returns whether a value is a structure of arrays, not a list of numbers."""
    return isinstance(value, Mapping) or (
        isinstance(value, (tuple, list)) and any(map(_is_array, value))
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or _is_nested(value)


def _values(item: Any) -> list[Any]:
    if isinstance(item, Mapping):
        return [item[key] for key in sorted(item, key=str)]
    return list(item) if isinstance(item, (tuple, list)) else []


def _leaves(item: Any) -> list[Any]:
    """Returns the arrays in a structure, dicts by their keys."""
    if not _is_nested(item):
        return [item]
    return [leaf for value in _values(item) for leaf in _leaves(value)]


def _batched(value: Any, spec: InputSpec, argument: str) -> np.ndarray:
    """Returns an array with a batch axis, in the type of the input."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{argument} must hold arrays. Received a {type(value).__name__}: {error}"
        ) from error
    if array.dtype.kind not in "biufV" or array.dtype.names:
        raise TypeError(
            f"{argument} must hold numbers for input {spec.name!r}. Received values of type "
            f"{array.dtype}"
        )
    if array.ndim == len(spec.shape) and array.size:
        array = array[None]
    if array.size and not _fits(array.shape[1:], spec.shape):
        raise ValueError(
            f"{argument} has the wrong shape for input {spec.name!r}: samples must be "
            f"{_shape(spec.shape)}. Received: {_shape(array.shape)}"
        )
    if spec.dtype != "bfloat16" and array.dtype != np.dtype(spec.dtype):
        array = array.astype(spec.dtype)
    return array


def _fits(actual: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(actual) == len(expected) and all(
        e is None or g == e for g, e in zip(actual, expected, strict=True)
    )


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"


def _thin(
    arrays: dict[str, np.ndarray], labels: Any, limit: int | None, argument: str
) -> tuple[dict[str, np.ndarray], Any]:
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{argument} has inputs of different lengths: {sizes}")
    size = next(iter(sizes.values()))
    if labels is not None and len(labels) != size:
        raise ValueError(f"{argument} has {size} samples but {len(labels)} labels.")
    if limit is None:
        return arrays, labels
    picked = {name: spread(array, limit) for name, array in arrays.items()}
    return picked, None if labels is None else spread(labels, limit)


def spread(array: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` samples, spread evenly over an array."""
    if len(array) <= count:
        return array
    return array[np.linspace(0, len(array) - 1, count).astype(int)]
