"""Optional callbacks: they log compression, and freeze ranges and statistics."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import keras
import numpy as np

from tfcompress.data import samples
from tfcompress.graph.layers import plain
from tfcompress.graph.read import input_specs, walk_layers
from tfcompress.graph.run import packed
from tfcompress.measure.summary import summary
from tfcompress.quantization.state import quantizers


def _student(model: Any) -> keras.Model:
    return getattr(model, "student", model)


class CompressionSummaries(keras.callbacks.Callback):
    """Logs sparsity and ranges after each epoch, for the history and for TensorBoard.

    The history gets `sparsity`, the share of zeros in all kernels together. TensorBoard gets the
    sparsity of every kernel and the minimum and maximum of every activation range, by layer.

    Args:
        log_dir: Folder for TensorBoard, such as that of `keras.callbacks.TensorBoard`; None logs to
            the history alone. Needs the packages tensorboard and tensorflow, whatever the backend.

    Raises:
        ImportError: If `log_dir` is given and TensorBoard is not installed.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> pruned = tfc.prune(model, 0.5)
        >>> pruned.compile("sgd", "mse")
        >>> x, y = np.ones((4, 8)), np.ones((4, 4))
        >>> history = pruned.fit(x, y, verbose=0, callbacks=[tfc.CompressionSummaries()])
        >>> history.history["sparsity"]
        [0.5]
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self._log_dir = None if log_dir is None else os.fspath(log_dir)
        if log_dir is not None and not importlib.util.find_spec("tensorboard"):
            raise ImportError("log_dir needs TensorBoard: pip install tensorboard")
        self._writer: Any = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Logs sparsity and ranges after the epoch."""
        model = _student(self.model)
        rows = [row for row in summary(model).layers if row.sparsity is not None]
        kernel_sizes = sum(row.kernel_size for row in rows)
        sparsity = sum((row.sparsity or 0.0) * row.kernel_size for row in rows) / max(
            kernel_sizes, 1
        )
        if logs is not None:
            logs["sparsity"] = sparsity
        if self._log_dir is None:
            return
        values = {f"sparsity/{row.path}": row.sparsity for row in rows} | {"sparsity": sparsity}
        for quantizer in quantizers(model):
            if quantizer.fixed_range is None and quantizer.is_trained:
                name = quantizer.name.removesuffix("_quantizer")
                low, high = quantizer.range()
                values |= {f"range/{name}/minimum": low, f"range/{name}/maximum": high}
        self._write(values, epoch)

    def on_train_end(self, logs: Any = None) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, values: dict[str, Any], step: int) -> None:
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(f"{self._log_dir}/compression")
        with self._writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()


class FreezeQuantization(keras.callbacks.Callback):
    """Freezes activation ranges, and BatchNormalization, for the last epochs of QAT.

    From `epoch` on, ranges stay constant, and BatchNormalization also uses its moving statistics in
    training, as the exported file does (Jacob et al. 2018, arXiv:1712.05877, section 3.2). The
    training step is traced again once. When `fit` ends, everything is unfrozen; a model saved while
    it is frozen is saved with its BatchNormalizations not trainable.

    Args:
        epoch: First epoch, counted from 0, that trains frozen.
        batch_norm: Whether BatchNormalization is frozen, too, including its gamma and beta. Not
            on JAX, whose training step keeps the variables it started with.

    Raises:
        ValueError: If `epoch` is negative, or `batch_norm` is asked for on JAX.

    Example:
        >>> import tfcompress as tfc
        >>> callback = tfc.FreezeQuantization(epoch=8)
    """

    def __init__(self, epoch: int, *, batch_norm: bool = True) -> None:
        super().__init__()
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise ValueError(f"epoch must be an integer >= 0. Received: epoch={epoch!r}")
        if batch_norm and keras.backend.backend() == "jax":
            raise ValueError(
                "batch_norm=True is not possible on JAX. Pass batch_norm=False, or train the last "
                "epochs in a fit() of their own with the BatchNormalizations' trainable=False."
            )
        self._epoch = epoch
        self._batch_norm = batch_norm
        self._frozen: tuple[list[Any], list[Any]] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Checks the backend, and unfreezes what a stopped run has left frozen."""
        self._unfreeze()
        learned = any(quantizer.learned for quantizer in quantizers(_student(self.model)))
        if learned and keras.backend.backend() == "jax":
            raise ValueError("Learned ranges (activation_range='learned') cannot be frozen on JAX.")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Freezes once the epoch is reached."""
        if epoch < self._epoch or self._frozen is not None:
            return
        model = _student(self.model)
        all_quantizers = quantizers(model)
        # Not trainable: otherwise the optimizer's momentum would still change learned ranges.
        fixed: list[Any] = [quantizer for quantizer in all_quantizers if quantizer.learned]
        if self._batch_norm:
            layers = [plain(layer) for _, layer in walk_layers(model)]
            fixed += [x for x in layers if isinstance(x, keras.layers.BatchNormalization)]
        self._frozen = all_quantizers, [layer for layer in fixed if layer.trainable]
        for quantizer in all_quantizers:
            quantizer.frozen = True
        for layer in self._frozen[1]:
            layer.trainable = False
        self.model.make_train_function(force=True)

    def on_train_end(self, logs: Any = None) -> None:
        """Unfreezes everything."""
        if self._frozen is not None:
            self._unfreeze()
            self.model.make_train_function(force=True)

    def _unfreeze(self) -> None:
        ranges, layers = self._frozen or ([], [])
        for quantizer in ranges:
            quantizer.frozen = False
        for layer in layers:
            layer.trainable = True
        self._frozen = None


class TeacherAgreement(keras.callbacks.Callback):
    """Logs how often student and teacher predict the same class, after each epoch.

    The history gets `agreement`, the fraction of samples with the same largest output. The teacher
    runs once.

    Args:
        x: Samples to compare on, in any form that `export_tflite` accepts.
        teacher: A Keras model; None is the teacher of the `Distiller` that trains.
        limit: Maximum number of samples.

    Raises:
        ValueError: If there is no teacher, or outputs are no vectors.

    Example:
        >>> import keras, numpy as np
        >>> import tfcompress as tfc
        >>> make = lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> x = np.random.default_rng(0).random((16, 8))
        >>> distiller = tfc.Distiller(make(), make(), alpha=1.0)
        >>> distiller.compile("adam")
        >>> agreement = tfc.TeacherAgreement(x)
        >>> history = distiller.fit(x, verbose=0, callbacks=[agreement]).history
        >>> 0 <= history["agreement"][0] <= 1
        True
    """

    def __init__(self, x: Any, teacher: Any = None, *, limit: int = 1024) -> None:
        super().__init__()
        self._x = x
        self._teacher = teacher
        self._limit = limit

    def on_train_begin(self, logs: Any = None) -> None:
        """Runs the teacher."""
        teacher = self._teacher or getattr(self.model, "teacher", None)
        if not isinstance(teacher, keras.Model):
            raise ValueError(
                "teacher must be a Keras model, or the model that trains a Distiller with one that "
                f"is not cached. Received: teacher={teacher!r}"
            )
        model = _student(self.model)
        # Read once: a shuffled dataset would yield other samples the next time, a generator none.
        self._features = samples(self._x, input_specs(model), limit=self._limit, argument="x")
        names = [spec.name for spec in input_specs(teacher)]
        if len(names) != len(self._features):
            raise ValueError(
                f"teacher has {len(names)} inputs and the model {len(self._features)}: they must "
                "read the same."
            )
        teacher_features = dict(zip(names, self._features.values(), strict=True))
        self._teacher_classes = self._predicted_classes(teacher, teacher_features)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Runs the student and compares."""
        agreement = float(
            np.mean(
                self._predicted_classes(_student(self.model), self._features)
                == self._teacher_classes
            )
        )
        if logs is not None:
            logs["agreement"] = agreement

    @staticmethod
    def _predicted_classes(model: keras.Model, features: dict[str, np.ndarray]) -> np.ndarray:
        # Direct calls: predict() inside fit() would change the state of fit().
        inputs = packed(model, features)
        count = len(next(iter(features.values())))
        outputs = [
            keras.ops.convert_to_numpy(
                model(keras.tree.map_structure(lambda a, s=start: a[s : s + 64], inputs))
            )
            for start in range(0, count, 64)
        ]
        if outputs[0].ndim < 2 or outputs[0].shape[-1] < 2:
            raise ValueError(
                f"The outputs of model {model.name!r} are no vectors to compare the largest of."
            )
        return np.concatenate(outputs).argmax(-1)
