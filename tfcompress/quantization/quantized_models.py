"""The models that `quantize` returns: theirs are the output names of what was quantized."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.read import layer_names


@keras.saving.register_keras_serializable("tfcompress")
class QuantizedModel(keras.Model):
    """A Functional model under `quantize`, whose outputs keep their names behind quantizers.

    Keras finds losses, metrics and targets by the name of the layer that an output comes from.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.output_names = layer_names(self.outputs)


@keras.saving.register_keras_serializable("tfcompress")
class ChainedModel(QuantizedModel):
    """What a Sequential model becomes under `quantize`; `strip` makes it Sequential again.

    A Sequential model cannot hold a layer twice, and a quantizer around an averaging layer is one
    layer called twice.
    """
