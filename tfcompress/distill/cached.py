"""CachedTeacher: reads stored outputs of a teacher and adds them to the samples of a dataset."""

from __future__ import annotations

import functools
import json
import os
import pathlib
from typing import Any

import numpy as np
from keras import tree

from tfcompress.distill.features import Feature
from tfcompress.distill.shards import MANIFEST, StoredOutput, shard_name
from tfcompress.distill.teachers import Shape

_IN_MEMORY = 2**28  # bytes; outputs beyond this are read from disk for each batch


def split_batch(x: Any) -> tuple[Any, Any]:
    """Splits a batch into its inputs and the stored outputs of a cache (None without a cache)."""
    if isinstance(x, dict) and set(x) == {"inputs", "teacher"}:
        return x["inputs"], x["teacher"]
    return x, None


class CachedTeacher:
    """Outputs and features that `cache_teacher` stored; pass it to `Distiller` as the teacher.

    Args:
        path: Folder of a complete cache.

    Raises:
        FileNotFoundError: If there is no cache.
        ValueError: If the cache was never finished.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> teacher = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> x, folder = np.ones((64, 4), "float32"), tempfile.mkdtemp() + "/t"
        >>> len(tfc.cache_teacher(teacher, x, folder, verbose=False))
        64
        >>> tfc.CachedTeacher(folder).shapes()[0]
        [(None, 3)]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        manifest = pathlib.Path(path) / MANIFEST
        if not manifest.is_file():
            raise FileNotFoundError(f"No cache of a teacher in {self.path!r}. Use cache_teacher().")
        self._manifest = json.loads(manifest.read_text())
        if self._manifest["samples"] is None:
            raise ValueError(
                f"The cache in {self.path!r} was never finished. Call cache_teacher() with the "
                "same arguments: it goes on where it stopped."
            )
        self.name = self._manifest["teacher"]
        self.source: Any = None
        self._tables: dict[str, Any] = {}

    def __len__(self) -> int:
        return int(self._manifest["samples"])

    def __repr__(self) -> str:
        return f"CachedTeacher({self.path!r}: {len(self)} samples of {self.name!r})"

    def kind(self, which: int | str) -> str:
        """Returns "linear", "softmax" or "sigmoid" of an output (by index) or layer (by path)."""
        if isinstance(which, str):
            return self._manifest["layer_kinds"].get(which, "linear")
        if which >= len(self._manifest["output_kinds"]):
            self.check_features([], uses_outputs=True)
        return self._manifest["output_kinds"][which]

    def shapes(self) -> tuple[list[Shape], dict[Feature, Shape]]:
        """Returns the shapes of the outputs and of the features."""
        outputs = [tuple(shape) for shape in self._manifest["outputs"]]
        return outputs, {Feature(p, q): tuple(s) for p, q, s in self._manifest["features"]}

    def check_features(self, features: list[Feature], uses_outputs: bool) -> None:
        """Raises ValueError if the cache lacks something that the losses need."""
        outputs, kept = self.shapes()
        missing = [f"{f.path} ({f.quantity})" for f in features if f not in kept]
        if uses_outputs and not outputs:
            missing.append("the outputs")
        if missing:
            raise ValueError(
                f"The cache in {self.path!r} does not hold {', '.join(missing)}, which the losses "
                "need. Cache again to another folder, with cache_teacher(..., losses=[...])."
            )

    def __call__(self, x: Any, given: Any) -> tuple[list[Any], dict[Feature, Any]]:
        """Returns outputs and features of a batch."""
        if given is None:
            raise ValueError(
                "A cached teacher needs the batches of its own dataset: fit on "
                "teacher.dataset(batch_size=...) instead of the data themselves."
            )
        outputs, features = self.shapes()
        values = {f: given[f"feature_{i}"] for i, f in enumerate(features)}
        return [given[f"output_{i}"] for i in range(len(outputs))], values

    def dataset(
        self,
        batch_size: int = 32,
        *,
        shuffle: bool | int = True,
        seed: int | None = None,
        drop_remainder: bool = False,
        process: tuple[int, int] = (0, 1),
    ) -> Any:
        """Returns a `tf.data.Dataset` of batches to fit a `Distiller` on.

        Args:
            batch_size: Number of samples in a batch; of all processes together.
            shuffle: True shuffles all samples in each epoch; a number is the size of the shuffle
                buffer, for data that do not fit into memory.
            seed: Seed of the shuffling.
            drop_remainder: Whether to drop an incomplete last batch; several processes always do.
            process: The number of this process, from 0, and how many train together: each gets its
                part of every batch. Give all the same seed.

        Raises:
            ValueError: If the batch cannot be divided among the processes, or they have no seed; if
                this object was not returned by `cache_teacher`, which has the data.
        """
        if self.source is None:
            raise ValueError(
                "This cache was opened without its data. Call cache_teacher(teacher, dataset, "
                f"{self.path!r}) again: it checks that all is as it was, and does not run the "
                "teacher."
            )
        import tensorflow as tf

        rank, processes = process
        if not 0 <= rank < processes or batch_size % processes:
            raise ValueError(
                f"process is (number, count), where count divides batch_size={batch_size}. "
                f"Received: process={process!r}"
            )
        if processes > 1 and shuffle and seed is None:
            raise ValueError("Several processes need the same seed=, or their batches differ.")
        in_memory = self._in_memory()

        def join(index: Any, sample: tuple[Any, ...]) -> tuple[Any, ...]:
            stored = {key: self._rows(key, index, key in in_memory) for key in self._stored}
            return ({"inputs": sample[0], "teacher": stored}, *sample[1:])

        arrays, whole = self.source.arrays, drop_remainder or processes > 1
        if arrays is None:
            known = tf.data.experimental.assert_cardinality(len(self))
            data = self.source.samples.apply(known).enumerate()
            size = len(self) if shuffle is True else int(shuffle)
            data = data.shuffle(size, seed=seed) if shuffle else data
            data = data.batch(batch_size, drop_remainder=whole)
        else:
            data = _numbers(len(self), batch_size, whole, shuffle, seed)
        if processes > 1:
            own = slice(rank * batch_size // processes, (rank + 1) * batch_size // processes)
            data = data.map(
                lambda *b: tree.map_structure(lambda a: a[own], b if len(b) > 1 else b[0])
            )
        if arrays is not None:
            data = data.map(
                lambda index: (index, tree.map_structure(lambda a: tf.gather(a, index), arrays))
            )
        return data.map(join, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what is stored of some samples: "teacher" of a batch that a `Distiller` takes.

        Args:
            index: Numbers of the samples, in the order they were cached in.
        """
        return {key: stored.rows(index) for key, stored in self._stored.items()}

    def _rows(self, key: str, index: Any, in_memory: bool) -> Any:
        """Returns the rows of one output or feature for a batch of samples, as tensors."""
        import tensorflow as tf

        stored = self._stored[key]
        if in_memory:
            if key not in self._tables:
                with tf.init_scope(), tf.device("CPU:0"):  # the constant must outlive this trace
                    self._tables[key] = tf.constant(stored.all())
            return tf.gather(self._tables[key], index)
        rows = tf.numpy_function(stored.rows, [index], tf.as_dtype(stored.dtype), stateful=False)
        rows.set_shape((None, *stored.shape))
        return rows

    def _in_memory(self) -> set[str]:
        """Returns the outputs and features to hold in memory: the smallest ones that fit."""
        chosen, free = set(), _IN_MEMORY
        for key, stored in sorted(self._stored.items(), key=lambda item: item[1].nbytes):
            free -= stored.nbytes
            if free >= 0:
                chosen.add(key)
        return chosen

    @functools.cached_property
    def _stored(self) -> dict[str, StoredOutput]:
        folder, size = pathlib.Path(self.path), self._manifest["shard_size"]
        shards = [folder / shard_name(i) for i in range(-(-len(self) // size))]
        outputs, features = self.shapes()
        keys = [
            *((f"output_{i}", shape) for i, shape in enumerate(outputs)),
            *((f"feature_{i}", shape) for i, shape in enumerate(features.values())),
        ]
        return {key: StoredOutput(shards, key, size, shape[1:]) for key, shape in keys}


def _numbers(
    count: int, batch_size: int, whole: bool, shuffle: bool | int, seed: int | None
) -> Any:
    """Returns a dataset of batches of the numbers below a count, in another order in each epoch.

    A buffer of all numbers would take 100 bytes for each; so a shuffle of all computes the order.

    Args:
        count: The count.
        batch_size: Numbers in a batch.
        whole: Whether to drop an incomplete last batch.
        shuffle: Whether to shuffle; a number shuffles in a buffer of this size.
        seed: Seed of the order.
    """
    import tensorflow as tf

    if shuffle is not True:
        numbers = tf.data.Dataset.range(count)
        numbers = numbers.shuffle(int(shuffle), seed=seed) if shuffle else numbers
        return numbers.batch(batch_size, drop_remainder=whole)
    batches = count // batch_size if whole else -(-count // batch_size)
    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)

    def epoch(key: Any) -> Any:
        def batch(index: Any) -> Any:
            numbers = tf.range(index * batch_size, tf.minimum((index + 1) * batch_size, count))
            return tf.random.experimental.index_shuffle(numbers, tf.cast(key, tf.uint32), count - 1)

        return tf.data.Dataset.range(batches).map(batch)

    ordered = keys.batch(2, drop_remainder=True).take(1).flat_map(epoch)
    return ordered.apply(tf.data.experimental.assert_cardinality(batches))
