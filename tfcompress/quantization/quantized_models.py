"""The model classes that `quantize` returns; they keep the output names of the original."""

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
    """A Sequential model under `quantize`; `strip` returns a Sequential model again.

    A Sequential model cannot contain a layer twice, and the quantizer before and after an averaging
    layer is one layer called twice.
    """
