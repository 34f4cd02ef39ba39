"""What says that a model and data are the same as before: hashes of their contents."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import keras
import numpy as np
from keras import tree


def fingerprint(model: keras.Model) -> str:
    """Returns a hash of a model: its layers, how they are connected, and its weights."""
    config = json.loads(model.to_json())["config"]
    del config["name"]  # to which Keras may append a number
    text = json.dumps(config, sort_keys=True)
    digest = hashlib.sha256(numbered(text).encode())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()


def numbered(config: str) -> str:
    """Returns a config in JSON with its shared objects numbered, instead of memory addresses."""
    numbers: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return match[1] + str(numbers.setdefault(match[2], len(numbers)))

    return re.sub(r'("shared_object_id": )(\d+)', number, config)


def digest_of(arrays: Any) -> str:
    """Returns a hash of arrays in any nesting: their types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for array in tree.flatten(arrays):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
