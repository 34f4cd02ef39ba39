"""cache_teacher: runs a teacher once, and stores its outputs and features on disk.

Layout of a cache: `manifest.json` describes the content and the teacher. The folders `shard-00000`
and so on hold the outputs and features of `shard_size` samples each, as .npy files, and a digest of
the samples. Each is written under a temporary name and renamed, so that an existing shard is
complete even if the process was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tfcompress.backends import compiled
from tfcompress.distill.cached import CachedTeacher
from tfcompress.distill.features import Feature, find_layer, input_spec
from tfcompress.distill.losses.base import same_shape
from tfcompress.distill.losses.response import SoftTargets, layer_kind, output_kind
from tfcompress.distill.shards import (
    MANIFEST,
    alone,
    save_shard,
    shard_name,
    to_arrays,
    to_half,
    write_manifest,
)
from tfcompress.distill.teachers import LiveTeacher
from tfcompress.distill.terms import make_terms
from tfcompress.graph.fingerprint import digest_of


def cache_teacher(
    teacher: keras.Model,
    dataset: Any,
    path: str | os.PathLike[str],
    losses: Any = None,
    *,
    top_k: int | None = None,
    augment: Callable[..., Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    shard_size: int = 4096,
    verbose: bool = True,
) -> CachedTeacher:
    """Runs a teacher once over a dataset and stores what the losses need, for `Distiller`.

    An interrupted call continues where it stopped when it is repeated; a call in another process
    waits until the cache is complete, and takes it. On a finished cache, the
    function checks that teacher, data and losses are the same, without running the teacher, and
    raises an error if not. Outputs are stored in float32, features in float16.

    Costs disk space (40 bytes a sample for the logits of ten classes); saves the teacher's forward
    pass in every step of every epoch.

    Args:
        teacher: A built Keras model.
        dataset: Arrays `x`, `(x, y)` or `(x, y, sample_weight)`, or a `tf.data.Dataset` of such
            elements, batched or not, that yields the same samples in the same order each time: not
            shuffled, and not augmented at random.
        path: Folder for the cache; created if it does not exist.
        losses: The losses of the later `Distiller`; None is `SoftTargets`.
        top_k: Stores the k largest logits (or probabilities) of each output and the mass of the
            rest, which is distributed evenly: for thousands of classes. None stores all.
        augment: `augment(x, seed=s)` changes one sample, in the same way for the same seed `s` (two
            integers), like the functions `tf.image.stateless_...`. Teacher and student get the
            same augmented sample in every epoch.
        seed: Seed of the augmentation.
        batch_size: Batch size of the teacher.
        shard_size: Number of samples in a shard.
        verbose: Whether to show progress.

    Returns:
        The cache; fit the distiller on its `dataset(batch_size)`.

    Raises:
        TypeError: If `dataset` has no supported form.
        ValueError: If the folder holds a cache of another teacher, other data or other losses.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> def net(units):
        ...     return keras.Sequential(
        ...         [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dense(3)]
        ...     )
        >>> x, y = np.ones((64, 4), "float32"), np.zeros(64, "int64")
        >>> cache = tfc.cache_teacher(net(16), (x, y), tempfile.mkdtemp() + "/t", verbose=False)
        >>> distiller = tfc.Distiller(cache, net(2), alpha=1.0)
        >>> distiller.compile("adam")
        >>> history = distiller.fit(cache.dataset(batch_size=16), verbose=0)
    """
    losses = SoftTargets() if losses is None else losses
    losses = list(losses) if isinstance(losses, (list, tuple)) else [losses]
    if not isinstance(teacher, keras.Model) or not teacher.built:
        raise ValueError(f"teacher must be a built Keras model. Received: teacher={teacher!r}")
    features, uses_outputs = _needs(losses, teacher)
    source = _Source(dataset, teacher, augment, seed)
    live = LiveTeacher(teacher, features)
    folder = pathlib.Path(path)
    description = _describe(teacher, live, features, uses_outputs, top_k, shard_size, source)
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder):
        samples = _open(folder, description)
        _fill(folder, description, live, source, top_k, batch_size, samples, verbose)
    cache = CachedTeacher(folder)
    cache.source = source
    return cache


class _Source:
    """The samples of a dataset in order, unbatched and augmented.

    Attributes:
        samples: A `tf.data.Dataset` of samples, as tuples.
        arrays: Tensors that hold all samples; None if they come as a dataset or are augmented.
    """

    def __init__(self, dataset: Any, teacher: keras.Model, augment: Any, seed: int) -> None:
        import tensorflow as tf

        self.arrays: Any = None
        if not isinstance(dataset, tf.data.Dataset):
            if not isinstance(dataset, tuple):
                dataset = (dataset,)
            if any(isinstance(part, list) or part is None for part in dataset):
                raise TypeError(
                    "dataset must be arrays (x, or a tuple (x, y) or (x, y, sample_weight), where "
                    "x may be a dict) or a tf.data.Dataset. Received a "
                    + ", ".join(type(part).__name__ for part in dataset)
                )
            odd = (tf.RaggedTensor, tf.SparseTensor)
            if not any(isinstance(part, odd) for part in tree.flatten(dataset)):
                dataset = tree.map_structure(tf.convert_to_tensor, dataset)
                self.arrays = dataset if augment is None else None
            dataset = tf.data.Dataset.from_tensor_slices(dataset)
        elif int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
            raise ValueError("dataset repeats without end. Cache one pass: leave out repeat().")
        elif not isinstance(dataset.element_spec, tuple):
            dataset = dataset.map(lambda x: (x,))
        actual, expected = dataset.element_spec[0], input_spec(teacher)
        if isinstance(actual, dict) and not isinstance(expected, dict):
            expected = {t.name: t for t in teacher.inputs or []}
        first = next(iter(actual)) if isinstance(actual, dict) else None
        if first is not None and first not in expected:
            raise ValueError(
                f"dataset holds an input {first!r}; the teacher takes {', '.join(expected)}."
            )
        shape = tuple((tree.flatten(actual)[0] if first is None else actual[first]).shape)
        wanted = tuple((tree.flatten(expected)[0] if first is None else expected[first]).shape)
        if not same_shape((None, *shape), wanted) and not same_shape(shape, wanted):
            raise ValueError(
                f"dataset holds samples of shape {shape}; the teacher takes {wanted[1:]}."
            )
        if len(shape) == len(wanted):
            dataset = dataset.unbatch()
        if augment is not None:
            dataset = dataset.enumerate().map(
                lambda i, sample: (
                    augment(sample[0], seed=tf.stack([tf.cast(seed, tf.int64), i])),
                    *sample[1:],
                )
            )
        self.samples = dataset
        self.augmented = augment is not None
        self.seed = seed

    def shards(self, size: int) -> Iterator[Any]:
        """Yields the inputs of so many samples at a time."""
        if self.arrays is None:
            batches = self.samples.map(lambda *sample: sample[0]).batch(size)
            yield from batches.as_numpy_iterator()
            return
        inputs = tree.map_structure(lambda tensor: tensor.numpy(), self.arrays[0])
        for start in range(0, len(tree.flatten(inputs)[0]), size):
            yield tree.map_structure(lambda a, s=start: a[s : s + size], inputs)


def _needs(losses: list[Any], teacher: keras.Model) -> tuple[list[Feature], bool]:
    terms = make_terms(losses, teacher, teacher, resolve=False)
    features = list(dict.fromkeys(f for term in terms for f in term.features[0]))
    return features, any(term.uses_outputs for term in terms)


def _describe(
    teacher: keras.Model,
    live: LiveTeacher,
    features: list[Feature],
    uses_outputs: bool,
    top_k: int | None,
    shard_size: int,
    source: _Source,
) -> dict[str, Any]:
    outputs, shapes = live.shapes()
    if uses_outputs and outputs is None:
        raise ValueError(
            f"The outputs of the subclassed teacher {teacher.name!r} have no known shape: wrap it, "
            "keras.Model(inputs, teacher(inputs))."
        )
    stored = (outputs or []) if uses_outputs else []
    # Weights, not all variables: states of random layers differ at every run.
    digest = hashlib.sha256(_nameless_config(teacher).encode())
    for weight in teacher.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return {
        "teacher": teacher.name,
        "weights": digest.hexdigest(),
        "outputs": [list(shape) for shape in stored],
        "output_kinds": [output_kind(teacher, i) for i in range(len(stored))],
        "features": [[f.path, f.quantity, list(shapes[f])] for f in features],
        "layer_kinds": {
            f.path: layer_kind(find_layer(teacher, f.path, "teacher_layer")) for f in features
        },
        "top_k": top_k,
        "shard_size": shard_size,
        "augmented": source.seed if source.augmented else None,
        "samples": None,
    }


def _nameless_config(teacher: keras.Model) -> str:
    """Returns the teacher's config without names, to which Keras may append numbers."""

    def nameless(value: Any) -> Any:
        if isinstance(value, dict):
            dropped = {"name", "inbound_nodes", "input_layers", "output_layers", "compile_config"}
            return {k: nameless(v) for k, v in value.items() if k not in dropped}
        if isinstance(value, (list, tuple)):
            return [nameless(v) for v in value]
        return value if isinstance(value, (int, float, str, bool, type(None))) else str(type(value))

    try:
        config = teacher.get_config()
    except NotImplementedError:  # a subclassed model: only its weights identify it
        config = {}
    return json.dumps([type(teacher).__name__, nameless(config)], sort_keys=True)


_MEANS = {
    "weights": "another teacher",
    "outputs": "other losses",
    "output_kinds": "other losses",
    "features": "other losses",
    "layer_kinds": "other losses",
    "top_k": "another top_k",
    "shard_size": "another shard_size",
    "augmented": "another augmentation",
}


def _open(folder: pathlib.Path, description: dict[str, Any]) -> int | None:
    """Creates a cache or checks an existing one; returns the sample count of a finished one."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".cache-")]
        if others:
            raise ValueError(
                f"path={str(folder)!r} holds other files ({others[0]!r}); name an empty folder."
            )
        write_manifest(manifest, description)
        return None
    existing = json.loads(manifest.read_text())
    for key, meaning in _MEANS.items():
        if existing.get(key) != description[key]:
            raise ValueError(
                f"path={str(folder)!r} holds a cache made with {meaning} ({key}: "
                f"{existing.get(key)!r}, now {description[key]!r}). Name another folder, or delete "
                "this one."
            )
    return existing["samples"]


def _fill(
    folder: pathlib.Path,
    description: dict[str, Any],
    live: LiveTeacher,
    source: _Source,
    top_k: int | None,
    batch_size: int,
    samples: int | None,
    verbose: bool,
) -> None:
    """Writes the missing shards, and checks the data of the existing ones."""
    for temporary in folder.glob(".cache-*"):
        shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()
    run = _runner(live, description, top_k)
    count = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    cardinality = int(source.samples.cardinality())
    with Progress(*columns, disable=not verbose) as progress:
        task = progress.add_task("Caching the teacher", total=max(cardinality, 0) or None)
        for index, x in enumerate(source.shards(description["shard_size"])):
            digest = digest_of(x)
            shard = folder / shard_name(index)
            size = len(tree.flatten(x)[0])
            if not shard.is_dir():
                if samples is not None:
                    raise ValueError(
                        f"The cache in {str(folder)!r} holds {samples} samples; the dataset has "
                        "more. Name another folder, or delete this one."
                    )
                save_shard(shard, digest, run(x, size, batch_size))
            elif (shard / "data.txt").read_text() != digest:
                raise ValueError(
                    f"path={str(folder)!r} holds a cache of other data: samples {count} to "
                    f"{count + size} differ, or come in another order. The dataset must yield the "
                    "same samples each time; shuffle what cache.dataset() does, not before."
                )
            count += size
            progress.update(task, completed=count)
    if not count:
        raise ValueError("dataset is empty: it yielded no samples.")
    if samples not in (None, count):
        raise ValueError(
            f"The cache in {str(folder)!r} holds {samples} samples; the dataset has {count}. Name "
            "another folder, or delete this one."
        )
    if samples is None:
        write_manifest(folder / MANIFEST, {**description, "samples": count})


def _runner(
    live: LiveTeacher, description: dict[str, Any], top_k: int | None
) -> Callable[..., Any]:
    stored = [Feature(path, quantity) for path, quantity, _ in description["features"]]

    @compiled
    def forward(x: Any) -> tuple[list[Any], list[Any]]:
        outputs, recorded = live(x, None)
        return outputs if description["outputs"] else [], [recorded[feature] for feature in stored]

    def run(x: Any, size: int, batch_size: int) -> dict[str, np.ndarray]:
        to_numpy = keras.ops.convert_to_numpy
        parts: dict[str, list[np.ndarray]] = {}
        for start in range(0, size, batch_size):
            part = tree.map_structure(
                lambda a, s=start: keras.ops.convert_to_tensor(a[s : s + batch_size]),
                x,
            )
            outputs, features = forward(part)
            batch_arrays: dict[str, np.ndarray] = {}
            for i, output in enumerate(outputs):
                kind = description["output_kinds"][i]
                batch_arrays |= to_arrays(f"output_{i}", to_numpy(output), kind, top_k)
            for i, feature in enumerate(features):
                path = description["features"][i][0]
                batch_arrays[f"feature_{i}"] = to_half(to_numpy(feature), path)
            for key, array in batch_arrays.items():
                parts.setdefault(key, []).append(array)
        return {key: np.concatenate(arrays) for key, arrays in parts.items()}

    return run
