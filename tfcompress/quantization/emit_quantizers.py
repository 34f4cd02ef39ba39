"""Emits the layers that stand between operations, and keeps what is known of each tensor."""

from __future__ import annotations

from typing import Any

from tfcompress.graph.clone import Rewriter
from tfcompress.graph.read import layer_name, scope_name
from tfcompress.integer.grid_ops import Requantize
from tfcompress.quantization.activation_quantizer import ActivationQuantizer
from tfcompress.quantization.kept_in_float import AwayFromZero
from tfcompress.quantization.tensor_state import TensorState


class EmitQuantizers(Rewriter):
    """A rewriter that can put quantizers behind tensors.

    Args:
        learned: Whether ranges follow their gradient instead of the observed values.
    """

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self._learned = learned
        self._states: dict[int, TensorState] = {}
        self._names: dict[str, int] = {}
        self._alive: list[Any] = []  # so that the ids in the states stay unique

    def _away_from_zero(self, tensor: Any, state: TensorState) -> Any:
        self._alive.append(tensor)
        return AwayFromZero(name=self._name(f"{layer_name(tensor)}_nonzero"))(tensor)

    def _requantize(self, tensor: Any) -> Any:
        self._alive.append(tensor)
        return Requantize(name=self._name(f"{layer_name(tensor)}_crossing"))(tensor)

    def _new_quantizer(self, tensor: Any, bits: int, name: str | None = None) -> Any:
        name = name or layer_name(tensor)
        state = self._state(tensor)
        self._alive.append(tensor)
        return self._apply(
            ActivationQuantizer(
                bits=bits,
                non_negative=state.non_negative,
                learned=self._learned and bits == 8,
                symmetric=state.symmetric and bits == 8,
                name=self._name(f"{name}_quantizer"),
            ),
            tensor,
            state,
        )

    def _apply(
        self, quantizer: ActivationQuantizer, tensor: Any, state: TensorState, **kwargs: Any
    ) -> Any:
        return self._note(
            quantizer(tensor, **kwargs),
            TensorState(None, True, quantizer.bits, quantizer, non_negative=state.non_negative),
        )

    def _state(self, tensor: Any) -> TensorState:
        return self._states.get(id(tensor), TensorState())

    def _note(self, tensor: Any, state: TensorState) -> Any:
        self._alive.append(tensor)
        self._states[id(tensor)] = state
        return tensor

    def _name(self, wanted: str) -> str:
        """Returns a layer name that is not used yet."""
        wanted = scope_name(wanted)
        count = self._names.get(wanted, 0)
        self._names[wanted] = count + 1
        return f"{wanted}_{count}" if count else wanted
