"""What is known of a tensor while quantizers are placed."""

from __future__ import annotations

import dataclasses

from tfcompress.quantization.activation_quantizer import ActivationQuantizer


@dataclasses.dataclass(frozen=True)
class TensorState:
    """The role still open for fusing, or the quantizer that a tensor is on.

    Attributes:
        pending: While the tensor waits for the operation that decides its grid: a key of `FUSES`
            or JOIN; else None.
        quantized: Whether its values are on a grid.
        bits: Of that grid, or of the operation that is waiting for it.
        quantizer: The layer that put it there; None if that stands in another model.
        leader: Where it does, that layer, if its grid is the only one the tensor may be on.
        non_negative: Whether its values cannot be negative.
        floating: The role of the operation that made it, if that was left out of quantization.
    """

    pending: str | None = None
    quantized: bool = False
    bits: int = 8
    quantizer: ActivationQuantizer | None = None
    leader: ActivationQuantizer | None = None
    non_negative: bool = False
    floating: str | None = None

    def followed(self) -> ActivationQuantizer | None:
        """Returns the quantizer that another model can follow, if there is one."""
        found = self.quantizer or self.leader
        return found if found is not None and found.bits == 8 else None

    def entering(self, once: bool) -> TensorState:
        """Returns what is known of the tensor inside of a model that it enters.

        Args:
            once: Whether that is the only call of the model.
        """
        bits = self.bits if self.quantized else 8
        leader = self.followed() if once else None
        return TensorState(None, self.quantized, bits, leader=leader)

    def leaving(self) -> TensorState:
        """Returns what is known of the tensor outside of the model that puts it out."""
        return dataclasses.replace(self, quantizer=None, leader=self.followed())
