"""What differs between the backends of Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of tensors that runs as one graph, where the backend has such."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # only of this backend

        return tf.function(function)
    if keras.backend.backend() == "jax":
        import jax  # only of this backend

        return jax.jit(function)
    return function


def bits_of(x: Any) -> Any:
    """Returns the bits of a float32 tensor as int32."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf  # only of this backend

        return tf.bitcast(x, tf.int32)
    if keras.backend.backend() == "jax":
        import jax  # only of this backend

        return jax.lax.bitcast_convert_type(x, "int32")
    import torch  # only of this backend

    return x.view(torch.int32)


def process_index() -> int:
    """Returns the number of this process among those that train together on JAX; else 0."""
    if keras.backend.backend() != "jax":
        return 0
    import jax  # only of this backend

    return jax.process_index()
