"""The state of a tensor during the placement of quantizers."""

from __future__ import annotations

import dataclasses

from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@dataclasses.dataclass(frozen=True)
class TensorState:
    """Whether a tensor is quantized, and by what, or how it may still be fused.

    Attributes:
        pending: While the operation that reads the tensor decides how to quantize it: a key of
            `FUSES` or JOIN; else None.
        quantized: Whether its values are quantized.
        bits: Of the quantized values; before quantization, of the operation that computed them.
        quantizer: Its quantizer; None if that is in another model.
        leader: Its quantizer in another model, if that is the same for every call of the model.
        non_negative: Whether its values cannot be negative.
        symmetric: Whether its quantizer must have the zero point 0.
        floating: The role of the operation that computed it, if that was left out of quantization.
    """

    pending: str | None = None
    quantized: bool = False
    bits: int = 8
    quantizer: ActivationQuantizer | None = None
    leader: ActivationQuantizer | None = None
    non_negative: bool = False
    symmetric: bool = False
    floating: str | None = None

    def followed(self) -> ActivationQuantizer | None:
        """Returns the quantizer that another model can follow, if there is one."""
        quantizer = self.quantizer or self.leader
        return quantizer if quantizer is not None and quantizer.bits == 8 else None

    def entering(self, once: bool) -> TensorState:
        """Returns the state of the tensor as an input inside a nested model.

        Args:
            once: Whether the model has no other call.
        """
        bits = self.bits if self.quantized else 8
        leader = self.followed() if once else None
        return TensorState(None, self.quantized, bits, leader=leader)

    def leaving(self) -> TensorState:
        """Returns the state of the tensor as an output, outside the nested model."""
        return dataclasses.replace(self, quantizer=None, leader=self.followed())
