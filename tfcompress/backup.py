"""Backup of the state of training after each epoch, to resume a run that was killed."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import keras
import numpy as np

from tfcompress.archives import DAMAGES
from tfcompress.backends import process_index
from tfcompress.files import check_path, replacing
from tfcompress.graph.keras_internals import first_epoch


class BackupAndRestore(keras.callbacks.Callback):
    """Saves the state of training after each epoch, and resumes from there at the next `fit`.

    Like `keras.callbacks.BackupAndRestore`, but it also saves the states of random layers (dropout,
    augmentation), so that a resumed run ends with the same weights as an uninterrupted one. This
    requires an order of samples that depends on the epoch only: Keras shuffles arrays anew in each
    process, so pass shuffle=False and shuffled arrays, or a `keras.utils.PyDataset`. Where several
    processes train on JAX, the first one writes the file, and all read it: share the folder.

    Only you can read the file: that of a quantization-aware model contains training samples.

    Pays in: the time to write all weights and the optimizer's state, once an epoch.

    Args:
        backup_dir: Folder for the file; created if it does not exist.
        delete_checkpoint: Whether to remove the file when training ends.

    Raises:
        OSError: If the folder cannot be written.
        ValueError: When training begins, if the file is of another model.

    Example:
        >>> import keras, numpy as np, tempfile
        >>> import tfcompress as tfc
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> model.compile("sgd", "mse")
        >>> x, y = np.ones((4, 8)), np.ones((4, 4))
        >>> callback = tfc.BackupAndRestore(tempfile.mkdtemp())
        >>> _ = model.fit(x, y, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
    """

    def __init__(
        self, backup_dir: str | os.PathLike[str], *, delete_checkpoint: bool = True
    ) -> None:
        super().__init__()
        folder = pathlib.Path(backup_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = check_path(folder / "state.npz")
        self._delete = delete_checkpoint
        self.epoch = 0
        self.logs: dict[str, float] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        """Restores the state, if there is one."""
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        if not self._file.is_file():
            return
        variables = self._variables()
        try:
            with np.load(self._file) as backup:
                state = json.loads(str(backup["told"]))
                arrays = [backup[f"v{index}"] for index in range(len(state["shapes"]))]
        except DAMAGES as error:
            raise ValueError(
                f"The backup {str(self._file)!r} is damaged. Delete it to start anew."
            ) from error
        shapes = [list(variable.shape) for variable in variables]
        if shapes != state["shapes"]:
            raise ValueError(
                f"The backup {str(self._file)!r} is of another model: it holds "
                f"{len(state['shapes'])} variables, and model {self.model.name!r} with its "
                f"optimizer has {len(shapes)}, or their shapes differ. Delete it, or name another "
                "folder."
            )
        for variable, array in zip(variables, arrays, strict=True):
            variable.assign(array)
        self.epoch, self.logs = state["epoch"], state["logs"]
        first_epoch(self.model, self.epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Saves the state."""
        self.epoch = epoch + 1
        self.logs = {name: float(value) for name, value in (logs or {}).items()}
        if process_index():
            return
        variables = self._variables()
        state = {
            "epoch": self.epoch,
            "logs": self.logs,
            "shapes": [list(variable.shape) for variable in variables],
        }
        arrays: dict[str, Any] = {f"v{i}": _array(v) for i, v in enumerate(variables)}
        with replacing(self._file, private=True) as part:
            np.savez(part, told=np.array(json.dumps(state)), **arrays)

    def on_train_end(self, logs: Any = None) -> None:
        """Removes the file, if `delete_checkpoint` is true."""
        first_epoch(self.model, None)
        if self._delete and not process_index():
            self._file.unlink(missing_ok=True)

    def _variables(self) -> list[Any]:
        # The variables of the model include the states of random layers.
        return [*self.model.variables, *self.model.optimizer.variables]


def _array(variable: Any) -> np.ndarray:
    """Returns the value of a variable in a type that numpy can save."""
    array = keras.ops.convert_to_numpy(variable)
    return array if array.dtype.kind in "biuf" else array.astype(np.float32)
