"""Operations that need unquantized inputs: those that are steep near zero, and comparisons."""

from __future__ import annotations

from typing import Any

import keras

from tfcompress.graph.keras_internals import inbound_nodes
from tfcompress.integer.roles import COMPARE, OUTPUT, PRECISE, integer_layer


def _second(operation: Any) -> Any:
    arguments = inbound_nodes(operation)[0].arguments
    return (*arguments.args, *arguments.kwargs.values())[1]


def _power(operation: Any) -> str:
    exponent = _second(operation)
    return OUTPUT if isinstance(exponent, (int, float)) and exponent >= 1 else PRECISE


def _quotient(operation: Any) -> str:
    return PRECISE if isinstance(_second(operation), keras.KerasTensor) else OUTPUT


integer_layer("Sqrt Rsqrt Reciprocal Log Log1p Log2 Log10", role=PRECISE)
integer_layer("Power", role=_power)
integer_layer("Divide TrueDivide", role=_quotient)
integer_layer("Masking Equal NotEqual Greater GreaterEqual Less LessEqual", role=COMPARE)
